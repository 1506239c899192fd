"""The page in a real Chromium: clicks, live updates, keyboard, both themes, a phone's width, axe-core, no word to others.

The operator's socket is a Unix socket, which no browser speaks: the same application is served on loopback, as a forwarded
socket would be; and at the address with mutual TLS as it is.
"""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]  # ships no types
from playwright.sync_api import Browser, Error, expect
from starlette.types import ASGIApp, Receive, Scope, Send

from agent.api.routes import operator_app, status_app
from agent.api.serving import listen, mutual_tls, serving
from agent.domain.jobs import JobEvent, JobState
from agent.ports.ledger import JobQuery
from tests.api.page.browser import CHROMIUM, PHONE, Witness, chromium, opened
from tests.api.page.stage import Stage, furnish, open_stage
from tests.builders import dataset, uuid_of

pytestmark = [
    pytest.mark.skipif(
        not CHROMIUM.exists(), reason="needs Chromium: the package chromium, from install.sh --deps"
    ),
    pytest.mark.xdist_group("browser"),  # one browser at a time, and one for all of these
]

DONE = uuid_of("done")
EVERY = {
    "overview": "/",
    "orders": "/orders",
    "order": f"/orders/{DONE}",
    "failed order": f"/orders/{uuid_of('lost')}",
    "receipt": f"/orders/{DONE}/receipts/8",
    "datasets": "/datasets",
    "dataset": f"/datasets/{dataset('a1').id}",
    "refusals": "/refusals",
    "checks": "/checks",
    "not found": "/orders/nonsense",
}
every_page = pytest.mark.parametrize("target", EVERY.values(), ids=EVERY)
LIVE_MS = 12_000


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    """A furnished house that nothing more happens in."""
    folder = tmp_path_factory.mktemp("house")
    stage = open_stage(folder)
    furnish(stage, folder)
    return stage


@pytest.fixture(scope="module")
def browser(furnished: Stage) -> Iterator[Browser]:
    """Opened after the house was furnished: playwright holds this thread's event loop, which calls of the house need too."""
    del furnished
    with chromium() as made:
        yield made


@pytest.fixture(scope="module")
def url(furnished: Stage) -> Iterator[str]:
    with serving(operator_app(furnished.house.desk), listen("127.0.0.1", 0), tls=None) as served:
        yield served


# ------------------------------------------------------------------ walking


@pytest.mark.parametrize("has_script", [True, False], ids=["with the script", "without JavaScript"])
def test_clicks_lead_from_the_overview_to_a_receipt(browser: Browser, url: str, has_script: bool) -> None:
    witness = Witness()
    with opened(browser, witness, java_script_enabled=has_script) as page:
        page.goto(url)
        page.get_by_role("link", name="all orders").click()
        page.get_by_role("link", name=DONE[:8], exact=True).click()
        expect(page.get_by_role("heading", name="Score against hop")).to_be_visible()
        page.get_by_role("link", name="receipt of task 8").click()

        expect(page.get_by_role("heading", level=1)).to_contain_text("Receipt of task 8")
        expect(page.get_by_text("agent-a tested the model on one dataset, and it ended well")).to_be_visible()
        page.get_by_role("link", name="receipt before").click()
        expect(page.get_by_role("heading", level=1)).to_contain_text("Receipt of task 7")

    assert witness.elsewhere(url) == []
    assert witness.complaints == []


def test_a_station_of_a_chain_leads_to_its_receipt(browser: Browser, url: str) -> None:
    with opened(browser) as page:
        page.goto(f"{url}/orders/{DONE}")
        page.get_by_role("link", name="0: learn at agent-a (here), done, 1 min: its receipt").click()

        expect(page.get_by_role("heading", level=1)).to_contain_text("Receipt of task 0")


def test_everything_is_reached_and_seen_by_the_keyboard(browser: Browser, url: str) -> None:
    with opened(browser) as page:
        page.goto(url)
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        expect(page.get_by_role("link", name="Skip to the content")).to_be_in_viewport()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        first = page.evaluate("document.activeElement.closest('main') !== null")
        seen = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        page.get_by_role("link", name="all orders").focus()
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="Orders", level=1)).to_be_visible()

    assert first
    assert seen == "solid"


# ------------------------------------------------------------------ live


async def stream(_scope: Scope, receive: Receive, send: Send) -> None:
    """A stream with five events a second, until the browser goes."""
    head = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    told = b": hello\n\n"
    while True:
        await send({"type": "http.response.body", "body": told, "more_body": True})
        told = b"event: job.done\ndata: {}\n\n"
        try:
            if (await asyncio.wait_for(receive(), 0.2))["type"] == "http.disconnect":
                return
        except TimeoutError:
            continue


def with_stream(app: ASGIApp) -> ASGIApp:
    async def both(scope: Scope, receive: Receive, send: Send) -> None:
        await (stream if scope.get("path") == "/v1/events" else app)(scope, receive, send)

    return both


@contextmanager
def living(folder: Path, *, has_stream: bool) -> Iterator[tuple[Stage, str]]:
    """A house in which a task runs, shown."""
    stage = open_stage(folder)
    stage.run(stage.order("order"))
    app = operator_app(stage.house.desk)
    with serving(with_stream(app) if has_stream else app, listen("127.0.0.1", 0), tls=None) as url:
        yield stage, url


def finish(stage: Stage) -> None:
    ledger, order = stage.house.ledger, stage.order("order")
    (job,) = ledger.jobs(JobQuery(states=frozenset({JobState.RUNNING})))
    ledger.move(job, JobEvent.ATTEST, stage.house.clock(), receipt=stage.receipts(order, 1)[0])


@pytest.mark.parametrize("has_stream", [True, False], ids=["by events", "by asking"])
def test_what_happens_is_seen_without_a_reload(browser: Browser, tmp_path: Path, has_stream: bool) -> None:
    witness = Witness()
    with living(tmp_path, has_stream=has_stream) as (stage, url), opened(browser, witness) as page:
        page.goto(url)
        page.evaluate("window.wasNotReloaded = true")
        expect(page.locator("#sentence")).to_have_text("1 task running")
        expect(page.locator("#live")).to_contain_text("live")
        page.get_by_role("link", name="all datasets").focus()

        finish(stage)

        expect(page.locator("#sentence")).to_have_text("Ready, nothing to do", timeout=LIVE_MS)
        expect(page.locator("#orders .hop.ok")).to_have_count(1)
        expect(page.locator("#said")).to_have_text("Ready, nothing to do")  # told to who does not see it
        expect(page.get_by_role("link", name="all datasets")).to_be_focused()
        assert page.evaluate("window.wasNotReloaded")
    assert witness.elsewhere(url) == []
    assert witness.complaints == []


def test_live_updates_pause_and_go_on(browser: Browser, tmp_path: Path) -> None:
    with living(tmp_path, has_stream=True) as (stage, url), opened(browser) as page:
        page.goto(url)
        expect(page.locator("#live")).to_have_text("live")
        page.get_by_role("button", name="Pause").click()
        expect(page.locator("#live")).to_have_text("paused")

        with page.expect_response(lambda answer: "part=main" in answer.url) as renewed:
            finish(stage)
            page.wait_for_timeout(1000)
            expect(page.locator("#sentence")).to_have_text("1 task running")
            page.get_by_role("button", name="Go on").click()

        assert renewed.value.ok
        expect(page.locator("#sentence")).to_have_text("Ready, nothing to do")


def test_without_javascript_a_reload_shows_what_happened(browser: Browser, tmp_path: Path) -> None:
    with (
        living(tmp_path, has_stream=True) as (stage, url),
        opened(browser, java_script_enabled=False) as page,
    ):
        page.goto(url)
        finish(stage)
        expect(page.locator("#live")).to_be_hidden()
        page.reload()

        expect(page.locator("#sentence")).to_have_text("Ready, nothing to do")


# ------------------------------------------------------------------ for everybody


@every_page
def test_axe_finds_nothing_in_either_theme_and_no_page_is_wider_than_a_phone(
    browser: Browser, url: str, target: str
) -> None:
    witness, found, backgrounds = Witness(), [], {}
    with opened(browser, witness, reduced_motion="reduce") as page:
        page.goto(url + target)
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            backgrounds[theme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
            for each in Axe().run(page).response["violations"]:
                found.append((theme, each["id"], [node["html"] for node in each["nodes"]][:3]))
        page.set_viewport_size(PHONE)
        wide, right = page.evaluate(
            "[document.documentElement.scrollWidth,"
            " Math.max(...[...document.querySelectorAll('main *')].map(each => each.getBoundingClientRect().right))]"
        )

    assert found == []
    assert backgrounds == {"light": "rgb(244, 246, 245)", "dark": "rgb(15, 20, 23)"}
    assert (wide, right <= PHONE["width"]) == (PHONE["width"], True)
    assert witness.elsewhere(url) == []
    assert [words for words in witness.complaints if "404" not in words] == []


@pytest.mark.parametrize(("motion", "moves"), [("reduce", 0), ("no-preference", 1)])
def test_nothing_moves_for_who_asked_for_that(browser: Browser, url: str, motion: Any, moves: int) -> None:
    with opened(browser, reduced_motion=motion) as page:
        page.goto(url)
        expect(page.locator("#live")).to_contain_text("live")
        running = page.evaluate("document.getAnimations().length")

    assert min(running, 1) == moves


def test_a_hostile_text_runs_nothing_in_a_real_browser(browser: Browser, tmp_path: Path) -> None:
    stage = open_stage(tmp_path)
    stage.house.ledger.move(
        stage.run(stage.order("order")),
        JobEvent.FAIL,
        stage.house.clock(),
        reason="<script>window.ran = 1</script><img src=x onerror='window.ran = 1'>",
    )
    witness = Witness()
    with (
        serving(operator_app(stage.house.desk), listen("127.0.0.1", 0), tls=None) as url,
        opened(browser, witness) as page,
    ):
        page.goto(url)
        expect(page.get_by_text("<script>window.ran = 1</script>").first).to_be_visible()
        ran = page.evaluate("window.ran")

    assert ran is None
    assert witness.elsewhere(url) == []


def test_the_policy_stops_a_script_that_got_into_a_page_all_the_same(browser: Browser, url: str) -> None:
    with opened(browser) as page:
        page.goto(url)
        ran = page.evaluate(
            "() => { const made = document.createElement('div'); made.innerHTML = '<img src=x onerror=\"window.ran = 1\">';"
            " document.body.append(made); const script = document.createElement('script');"
            " script.textContent = 'window.ran = 2'; document.body.append(script);"
            " return new Promise(done => setTimeout(() => done(window.ran), 300)); }"
        )

    assert ran is None


# ------------------------------------------------------------------ the address with mutual TLS


def test_at_its_own_address_the_page_is_shown_to_who_has_a_certificate_and_to_nobody_else(
    browser: Browser, tmp_path: Path
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    files = {}
    for name, made in (("server", authority.issue_cert("localhost")), ("reader", authority.issue_cert("reader@here.test")),
                       ("other", stranger.issue_cert("other@there.test"))):  # fmt: skip
        made.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.crt")
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
        os.chmod(tmp_path / f"{name}.key", 0o600)
        files[name] = (tmp_path / f"{name}.crt", tmp_path / f"{name}.key")
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    stage = open_stage(tmp_path)
    tls = mutual_tls(*files["server"], tmp_path / "ca.crt")

    def at(origin: str, name: str) -> dict[str, Any]:
        certificate, key = files[name]
        shown = {"origin": origin, "certPath": certificate, "keyPath": key}
        return {"ignore_https_errors": True, "client_certificates": [shown]}

    with serving(status_app(stage.house.desk), listen("127.0.0.1", 0), tls=tls) as url:
        origin = url.replace("127.0.0.1", "localhost")
        with opened(browser, **at(origin, "reader")) as page:
            page.goto(origin)
            expect(page.locator("#sentence")).to_have_text("Ready, nothing to do")
            assert page.goto(f"{origin}/v1/orders").status == 404  # type: ignore[union-attr]
        for refused in ({"ignore_https_errors": True}, at(origin, "other")):
            with opened(browser, **refused) as page, pytest.raises(Error):
                page.goto(origin, timeout=5000)
