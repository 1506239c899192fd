"""What strangers wrote comes to the page as text: names, reasons, paths, versions, output names. None of it becomes HTML, none
of it hides, none of it makes a page large.
"""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest

from agent.api.page.site import _environment
from agent.domain.jobs import JobEvent
from agent.domain.orders import DatasetRef
from agent.domain.receipts import ImageUse, Output, Sandbox, Usage
from agent.pipeline.checkup import Checkup, Finding, keep_checkup
from agent.ports.ledger import Arrival
from agent.trust.signed import sign_receipt
from tests.api.page.stage import Page, Stage, open_stage
from tests.builders import NOW, changed, dataset, digest_named, failed, receipt_for, uuid_of

MAX_PAGE_BYTES = 100 << 10

SCRIPT = "<script>fetch('//evil.test')</script>"
HANDLER = "\"'><img src=x onerror=alert(1)>"
TEMPLATE = "{{ 7 * 7 }}{% include '/etc/passwd' %}"
BACKWARDS = "\u202egpj.exe\u2066"
LINK = "javascript:alert(1)"
LONG = "W" * 10_000
HOSTILE = (SCRIPT, HANDLER, TEMPLATE, BACKWARDS, LINK, LONG)

every_text = pytest.mark.parametrize(
    "text", HOSTILE, ids=["script", "handler", "template", "backwards", "link", "long"]
)


def harmless(html: str) -> None:
    page = Page(html)
    assert page.tags.count("script") <= 1  # the page's own
    assert not {"img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "style"]
    assert all(link.startswith(("/", "#")) for link in page.links)
    assert "\u202e" not in html
    assert "root:x:0" not in html
    assert len(html.encode()) <= MAX_PAGE_BYTES


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return open_stage(tmp_path)


@every_text
def test_a_name_of_the_roster_is_text(stage: Stage, text: str) -> None:
    name = "".join(each for each in text if each.isprintable())[:120]  # as much as a roster admits
    roster = changed(stage.house.host.roster, stage.house.world.agent("b").keyid, name=name)
    stage.live_as(replace(stage.house.host, roster=roster))
    stage.attest(stage.order("order"), 3, stage.letter())

    for target in ("/", "/orders", f"/orders/{uuid_of('order')}", f"/orders/{uuid_of('order')}/receipts/1"):
        answer = stage.page(target)
        assert answer.status_code == 200
        harmless(answer.text)


@every_text
def test_a_reason_and_an_error_of_others_are_text(stage: Stage, text: str) -> None:
    ledger = stage.house.ledger
    ledger.move(stage.run(stage.order("lost")), JobEvent.FAIL, NOW, reason=text)
    job = stage.attest(stage.order("sent"), 0, stage.letter())
    ledger.postpone(ledger.deliveries(order_id=job.order_id)[0].id, NOW, text)

    for target in (
        "/",
        "/orders?state=failed",
        f"/orders/{uuid_of('lost')}",
        f"/datasets/{dataset('a1').id}",
    ):
        answer = stage.page(target)
        assert answer.status_code == 200
        harmless(answer.text)


@every_text
def test_a_refused_call_is_text_though_its_caller_chose_every_word(stage: Stage, text: str) -> None:
    values: dict[str, str | int | float | None] = {
        "code": text, "detail": text, "method": text, "path": text, "who": text, "order_id": text, "kind": text,
        "version": text, "orchestrator": text, "position": text, "count": text, "codes": text, "since": text,
    }  # fmt: skip
    ledger = stage.house.ledger
    for number in range(60):
        name = "request.refused" if number % 2 else "requests.refused"
        ledger.record_event(name, NOW + timedelta(seconds=number), dataset=text, values=values)

    for target in ("/", "/refusals", "/datasets"):
        answer = stage.page(target)
        assert answer.status_code == 200
        harmless(answer.text)


@every_text
def test_what_a_peer_signed_in_a_receipt_is_text(stage: Stage, text: str) -> None:
    order = stage.order("order", train=("b1", "a1", "c1", "a2"))
    words = text[:200]
    key = stage.house.world.agent("b")
    told = receipt_for(
        order,
        [],
        key.keyid,
        outputs=tuple(Output(words[:120], digest_named(f"out {n}"), 1 << 60) for n in range(6)),
        images=tuple(ImageUse(words, digest_named("image"), NOW) for _ in range(4)),
        sandbox=Sandbox(words, words, {words: digest_named("x")}, {words: words}, (words,) * 4),
        usage=Usage(wall_s=1e12, cpu_s=0.0, max_memory_bytes=0, phases={words: 1e9}),
    )
    lost = failed(told, reason=words)
    for name, made in (("order", told), ("other", lost)):
        there = stage.order(name, train=("b1", "a1", "c1", "a2"))
        receipt = msgspec.structs.replace(
            made, order=there.digest, order_id=there.order.id, previous=there.digest
        )
        signed = sign_receipt(receipt, key)
        arrival = Arrival(order=there, receipts=(signed,), kind="learn", sender=key.keyid)  # type: ignore[arg-type]
        stage.house.ledger.admit(arrival, NOW, max_attempts=3, queue_limit=99)

        for target in ("/", f"/orders/{there.order.id}", f"/orders/{there.order.id}/receipts/0"):
            answer = stage.page(target)
            assert answer.status_code == 200
            harmless(answer.text)


@every_text
def test_what_the_doctor_saw_is_text(stage: Stage, tmp_path: Path, text: str) -> None:
    found = tuple(
        Finding(text, text, state, text, text) for state in ("ok", "warn", "fail", "note", text) * 8
    )
    keep_checkup(Checkup(NOW, text, found), tmp_path)

    for target in ("/", "/checks"):
        answer = stage.page(target)
        assert answer.status_code == 200
        harmless(answer.text)


@every_text
def test_a_path_and_a_query_of_a_stranger_are_text(stage: Stage, text: str) -> None:
    word = quote(text[:4000].replace("/", ""), safe="")
    for target in (f"/orders/{word}", f"/datasets/{word}", f"/orders/{uuid_of('x')}/receipts/{word}", f"/orders?state={word}",
                   f"/?{word}={word}", f"/orders?after={word}", f"/datasets?before={word}"):  # fmt: skip
        answer = stage.page(target)
        assert 400 <= answer.status_code < 500
        harmless(answer.text)


def test_a_chain_of_a_thousand_tasks_is_shown_in_windows(stage: Stage) -> None:
    many = tuple(DatasetRef(uuid_of(f"many {n}"), "v" * 60) for n in range(1000))
    order = stage.order("long", train_data=many[:999], test_data=many[999:])
    stage.arrive(order)

    for target in ("/", "/orders", f"/orders/{order.order.id}", f"/orders/{order.order.id}?first=960"):
        answer = stage.page(target)
        assert answer.status_code == 200
        harmless(answer.text)
    assert "tasks 960 to 999 of 1000" in stage.page(f"/orders/{order.order.id}?first=960").text
    assert stage.page(f"/orders/{order.order.id}?first=1000").status_code == 404


def test_templates_escape_by_themselves_and_know_no_missing_value() -> None:
    made = _environment()

    assert (
        made.from_string("{{ x }}").render(x=SCRIPT)
        == "&lt;script&gt;fetch(&#39;//evil.test&#39;)&lt;/script&gt;"
    )
    with pytest.raises(Exception, match="undefined"):
        made.from_string("{{ y }}").render()


def test_no_template_says_that_something_is_safe() -> None:
    folder = Path(__file__).resolve().parents[3] / "agent" / "api" / "page" / "templates"

    wrong = [
        file.name
        for file in folder.glob("*.html")
        if "|safe" in (text := file.read_text()) or "autoescape" in text
    ]

    assert not wrong
