"""What each page tells, read as HTML from the operator's door, of a host to which something of everything happened."""

import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from agent.api.page.site import CSP, FILTERS
from agent.domain.control import Control, Mode
from agent.domain.jobs import JobEvent
from agent.errors import NotYours
from agent.pipeline.checkup import CHECKUP_FILE
from tests.api.page.stage import Page, Stage, furnish, open_stage
from tests.builders import NOW, changed, dataset, uuid_of


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A furnished house; tests only read."""
    folder = tmp_path_factory.mktemp("house")
    made = open_stage(folder)
    furnish(made, folder)
    return made


@pytest.fixture
def empty(tmp_path: Path) -> Stage:
    return open_stage(tmp_path)


PAGES = ("/", "/orders", "/datasets", "/refusals", "/checks")
EVERY = (
    *PAGES,
    f"/orders/{uuid_of('done')}",
    f"/orders/{uuid_of('lost')}",
    f"/orders/{uuid_of('elsewhere')}",
    f"/orders/{uuid_of('done')}/receipts/8",
    f"/orders/{uuid_of('done')}/receipts/0",
    f"/datasets/{dataset('a1').id}",
)


def text_of(stage: Stage, target: str) -> str:
    answer = stage.page(target)
    assert answer.status_code == 200
    return " ".join(Page(answer.text).text.split())


# ------------------------------------------------------------------ every page


@pytest.mark.parametrize("target", [*EVERY, "/orders/nonsense"])
def test_a_page_is_html_under_a_policy_that_lets_in_nothing_of_others(stage: Stage, target: str) -> None:
    answer = stage.page(target)
    page = Page(answer.text)

    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == CSP
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in CSP
    assert "unsafe" not in CSP
    assert page.tags.count("h1") == 1
    assert all(link.startswith(("/", "#")) and not link.startswith("//") for link in page.links)
    assert not [name for name, _ in page.attributes if name == "style" or name.startswith("on")]
    assert "style" not in page.tags


@pytest.mark.parametrize("target", EVERY)
def test_every_link_of_a_page_leads_somewhere(stage: Stage, target: str) -> None:
    links = {link.partition("#")[0] for link in Page(stage.page(target).text).links} - {""}

    lost = [link for link in links if stage.page(link).status_code != 200]

    assert not lost


@pytest.mark.parametrize("target", EVERY)
def test_the_part_of_a_page_is_its_main_and_nothing_around_it(stage: Stage, target: str) -> None:
    whole, part = stage.page(target).text, stage.page(f"{target}?part=main").text

    assert "<header" not in part
    assert Page(part).tags.count("section") == Page(whole).tags.count("section")
    assert '<main id="main"' in part


@pytest.mark.parametrize("target", EVERY)
def test_a_page_is_read_and_nothing_else(stage: Stage, target: str) -> None:
    answers = {
        method: stage.house.operator.request(method, target).status_code
        for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS")
    }
    before = len(stage.house.ledger.events(limit=100_000))
    head = stage.house.operator.request("HEAD", target)

    assert set(answers.values()) == {405}
    assert (head.status_code, head.content) == (200, b"")
    assert len(stage.house.ledger.events(limit=100_000)) == before


@pytest.mark.parametrize("target", ["/", "/orders", "/refusals", "/page.css", "/icon.svg"])
def test_the_network_has_no_page(stage: Stage, target: str) -> None:
    assert stage.house.network.get(target).status_code == 404


@pytest.mark.parametrize(
    "target", ["/?x=1", "/orders?stat=done", "/orders/%00", "/orders?state=nonsense", "/datasets/x"]
)
def test_what_is_misspelt_is_said_in_words(stage: Stage, target: str) -> None:
    answer = stage.page(target)

    assert answer.status_code in {400, 404}
    assert "Back to the overview" in answer.text


@pytest.mark.parametrize("name", ["page.css", "page.js", "icon.svg"])
def test_files_of_the_page_are_asked_for_again_only_when_they_changed(stage: Stage, name: str) -> None:
    first = stage.page(f"/{name}")
    again = stage.house.operator.get(f"/{name}", headers={"if-none-match": first.headers["etag"]})

    assert first.status_code == 200
    assert (again.status_code, again.content) == (304, b"")
    assert len(first.content) < 20 << 10


# ------------------------------------------------------------------ the overview


def test_the_overview_says_in_its_first_line_what_the_host_does(stage: Stage) -> None:
    assert "1 task running, 2 waiting" in text_of(stage, "/")


def test_what_waits_for_a_person_stands_first_with_the_command_that_leads_on(stage: Stage) -> None:
    told = text_of(stage, "/")

    assert "1 order waits for your word on an image dc-compute held" in told
    assert "1 message could not be delivered and wait for you dc-compute deliveries list --dead" in told
    assert "the doctor found 1 thing that must be mended" in told
    assert told.index("Waits for you") < told.index("Running now") < told.index("Refused lately")


def test_a_running_task_shows_how_far_it_came(stage: Stage) -> None:
    told = text_of(stage, "/")

    assert "task 0, learn on f12b8b9b for o1 36 s" in told
    assert "fetch inputs 2.0 s train 34 s send output" in told
    assert 'aria-label="Progress: 1 of 3 steps done"' in stage.page("/").text


def test_deliveries_tell_whom_they_do_not_reach_and_why(stage: Stage) -> None:
    told = text_of(stage, "/")

    assert "2 on the way · 1 undeliverable" in told
    assert "dead report to agent-b" in told
    assert "record-conflict: another receipt is recorded" in told
    assert "1 try in vain, next in 54 s: peer-unavailable: connection refused" in told


def test_the_overview_tells_what_the_doctor_found_and_when(stage: Stage) -> None:
    told = text_of(stage, "/")

    assert "Doctor, 3 h ago: 2 of 3 lines to mend." in told
    assert "swap: 2 GiB of swap that is not encrypted" in told


def test_disks_and_who_holds_what_are_shown(stage: Stage) -> None:
    told = text_of(stage, "/")

    assert " free of " in told
    assert "workspaces" in told


def test_a_paused_host_says_so_by_whom_and_why(empty: Stage) -> None:
    word = Control(mode=Mode.PAUSED, since=NOW, reason="disk swap", uid=1000)
    empty.house.ledger.set_control(word, NOW)

    told = text_of(empty, "/")

    assert (
        "Orders are taken, no task starts: dc-compute resume Mode: paused since 2026-03-01 12:00:00 UTC"
        in told
    )
    assert "by user 1000: disk swap" in told


def test_a_host_that_takes_no_order_says_which_check_fails(empty: Stage) -> None:
    empty.house.clock.pass_by(timedelta(days=400))  # the own key is over

    told = text_of(empty, "/")

    assert "No order is accepted: identity" in told


def test_an_end_within_thirty_days_is_told_and_a_later_one_needs_nobody(empty: Stage) -> None:
    assert "Waits for you" not in text_of(empty, "/")

    empty.house.clock.pass_by(timedelta(days=340))

    assert "agent key of agent-a ends 2027-03-01, and 8 more within 30 days" in text_of(empty, "/")


def test_an_empty_host_says_what_to_do_next(empty: Stage) -> None:
    told = text_of(empty, "/")

    assert "Ready, nothing to do" in told
    assert "No order has reached this host yet." in told
    assert "dc-compute submit FILE" in told
    assert "Nothing was refused." in told
    assert "The doctor has not looked at this host yet: dc-compute doctor" in told
    for target in PAGES[1:]:
        assert text_of(empty, target)


@pytest.mark.parametrize(
    "kept",
    [b"", b"{", b'{"at": 1}', b"\xff" * 40, b'{"at":"2026-03-01T00:00:00Z","version":"x","findings":[{}]}'],
)
def test_a_doctor_s_file_that_cannot_be_read_is_no_file(empty: Stage, tmp_path: Path, kept: bytes) -> None:
    (tmp_path / CHECKUP_FILE).write_bytes(kept)

    assert "has not looked at this host yet" in text_of(empty, "/")


# ------------------------------------------------------------------ orders


def test_the_list_of_orders_is_picked_by_state(stage: Stage) -> None:
    listed = {state: Page(stage.page(f"/orders?state={state}").text).text for state in FILTERS}

    assert stage.order("lost").order.id[:8] in listed["failed"]
    assert stage.order("lost").order.id[:8] not in listed["done"]
    assert "No order here is over." in listed["over"]


def test_a_chain_is_drawn_with_who_what_and_how_long(stage: Stage) -> None:
    html = stage.page(f"/orders/{uuid_of('lost')}").text

    assert 'aria-label="0: learn at agent-a (here), done, 1 min: its receipt"' in html
    assert 'aria-label="3: learn at agent-a (here), failed"' in html
    assert 'aria-label="4: test at a host not known here, nothing known here"' in html
    assert html.count('<svg class="hop') == 9


def test_an_order_that_was_sent_on_is_not_said_to_be_done_here(stage: Stage) -> None:
    html = stage.page(f"/orders/{uuid_of('elsewhere')}").text

    assert 'aria-label="0: learn at agent-b, sent on to that host"' in html


def test_scores_are_drawn_against_their_hops(stage: Stage) -> None:
    html = stage.page(f"/orders/{uuid_of('done')}").text

    assert 'aria-label="Score against hop. hop 4 at agent-c: 0.9758; hop 5 at agent-a: 0.9795;' in html
    assert html.count('class="dot-score"') == 5
    assert html.count('class="learn"') == 4
    assert "score so far <b>0.9906</b>" in html


def test_a_receipt_is_told_in_plain_words_with_every_signed_value(stage: Stage) -> None:
    receipt = stage.receipts(stage.order("done"), 9)[8]

    told = text_of(stage, f"/orders/{uuid_of('done')}/receipts/8")

    assert "agent-a tested the model on one dataset, and it ended well" in told
    assert "0.9906, as the problem's own program measured it" in told
    assert "The key is valid in this host's roster." in told
    said = receipt.receipt
    for value in (
        said.order,
        said.previous,
        said.policy,
        said.model_in,
        receipt.digest,
        receipt.signer,
        said.task.dataset,
    ):
        assert str(value) in told
    assert {output.digest for output in said.outputs} <= set(told.split())


def test_a_receipt_whose_key_was_revoked_says_so(tmp_path: Path) -> None:
    stage = open_stage(tmp_path)
    stage.arrive(stage.order("done"), 3)
    host = stage.house.host
    roster = changed(host.roster, stage.house.world.agent("b").keyid, revoked_at=NOW)
    stage.live_as(replace(host, roster=roster))

    told = text_of(stage, f"/orders/{uuid_of('done')}/receipts/1")

    assert "The key is over or revoked in this host's roster." in told


@pytest.mark.parametrize("position", ["9", "x", "-1", "00000", "٣"])
def test_a_receipt_that_is_not_here_is_not_found(stage: Stage, position: str) -> None:
    assert stage.page(f"/orders/{uuid_of('done')}/receipts/{position}").status_code == 404


def test_a_list_longer_than_a_page_leads_on_to_the_rest(empty: Stage) -> None:
    for number in range(20):
        empty.arrive(empty.order(f"order {number}"))

    first = Page(empty.page("/orders").text)
    (older,) = [link for link in first.links if "after=" in link]
    second = Page(empty.page(older).text)

    shown = [page.text.count("training for") for page in (first, second)]
    assert shown == [15, 5]


# ------------------------------------------------------------------ datasets, refusals, checks


def test_a_dataset_s_page_tells_who_used_it_for_what_and_how_that_ended(stage: Stage) -> None:
    told = text_of(stage, f"/datasets/{dataset('a2').id}")

    assert "learn task v1 o1 cd9d921e task 3 ✕failed oom" in told


def test_a_refused_use_stands_among_the_uses_of_a_dataset(stage: Stage) -> None:
    told = text_of(stage, f"/datasets/{dataset('a1').id}")

    assert "✕refused not-yours: orchestrator" in told


def test_refusals_name_the_caller_the_call_the_reason_and_the_mend(stage: Stage) -> None:
    told = text_of(stage, "/refusals")

    assert "✕not-yours agent-c" in told
    assert "GET /v1/held" in told
    assert "orchestrator o1 signed the order, o2 sent it" in told
    assert "✕unsigned-request a stranger, or the operator" in told
    assert "→ " + NotYours.advice in told


def test_the_checks_are_told_with_what_was_seen_and_the_doctor_s_with_their_mend(stage: Stage) -> None:
    told = text_of(stage, "/checks")

    assert "✓ ledger takes writes" in told
    assert "On 2026-03-01 09:00:00 UTC" in told
    assert "✕ certificate ends tomorrow → dc-compute init --certificate here" in told


def test_an_order_that_ended_elsewhere_is_picked_by_how_it_stands_here(stage: Stage) -> None:
    ledger = stage.house.ledger
    job = ledger.job(stage.arrive(stage.order("taken back")).id)
    ledger.move(job, JobEvent.CANCEL, NOW)

    assert stage.order("taken back").order.id[:8] in text_of(stage, "/orders?state=over")


def test_the_pictures_in_the_readme_are_there_and_small() -> None:
    root = Path(__file__).resolve().parents[3]
    named = re.findall(r"docs/images/[\w-]+\.png", (root / "README.md").read_text())

    sizes = {name: (root / name).stat().st_size for name in named}

    assert len(sizes) == 4
    assert {name for name, size in sizes.items() if size > 150 << 10} == set()
