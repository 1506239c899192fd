"""From the lines of the agents' logs to where the milliseconds of a task went, and to its picture."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from agent.bench.phases import lines_of, spans_of, whole_ms
from agent.bench.town import Event, Sent
from agent.bench.waterfall import COLOURS, Span, picture
from agent.domain.ids import OrderId

ORDER = OrderId("7d2f4f7e-3f0e-4b39-9a64-0c3f7d3c5b01")
JOB = f"{ORDER}.0"
DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
SENT = Sent(ORDER, 99.990, 100.004, ("A",))


def line(at_ms: float, name: str, **told: Any) -> Event:
    about = {} if name == "bell.heard" else {"order": ORDER, "position": 0}
    return Event(100 + at_ms / 1000, "A", name, about | told)


LOG = [
    line(0, "order.received"),
    line(2, "bell.heard", queue="learnuplets", item=JOB),
    line(10, "order.placed"),
    line(11, "bell.heard", queue="learn_tasks", item=JOB),
    line(15, "task.started"),
    line(16, "bell.heard", queue="deliveries", item=f"{JOB}.report.1"),
    line(20, "phase.ended", phase="ask", whole_s=0.005),
    line(25, "delivery.acknowledged", delivery=f"{JOB}.report.1"),
    line(26, "run.framed", whole_s=0.005),
    line(27, "phase.ended", phase="open", whole_s=0.007),
    line(50, "run.began", run="train"),
    line(53, "run.ended", run="train"),
    line(60, "phase.ended", phase="run", whole_s=0.040),
    line(70, "phase.ended", phase="publish", whole_s=0.008),
    line(75, "task.attested"),
    line(76, "bell.heard", queue="deliveries", item=f"{JOB}.report.2"),
    line(90, "delivery.acknowledged", delivery=f"{JOB}.report.2"),
]


def test_a_task_is_told_span_by_span_in_the_order_they_began() -> None:
    told = [(one.name, round(one.at_ms), round(one.took_ms)) for one in spans_of(LOG, SENT)]

    assert told == [
        ("accept", -10, 10),
        ("answer", 0, 4),
        ("bell", 0, 2),
        ("place", 2, 8),
        ("bell", 10, 1),
        ("claim", 11, 4),
        ("ask", 15, 5),
        ("open", 20, 7),
        ("frame", 21, 5),
        ("run", 20, 40),
        ("start", 20, 30),
        ("train", 50, 3),
        ("end", 53, 7),
        ("publish", 62, 8),
        ("attest", 70, 5),
        ("bell", 75, 1),
        ("report", 76, 14),
    ]


def test_the_whole_is_from_the_accepted_order_to_the_acknowledged_report() -> None:
    assert whole_ms(spans_of(LOG, SENT)) == pytest.approx(90)


def test_a_line_for_each_span_and_one_for_the_whole() -> None:
    tasks = [spans_of(LOG, SENT)] * 3

    assert len(lines_of(tasks)) == 1 + len(tasks[0]) + 1


def test_the_picture_has_a_bar_for_each_span_as_long_as_it_took() -> None:
    spans = [Span("a <b>", "worker", 0.0, 50.0), Span("c", "cage", 50.0, 25.0, is_inner=True)]

    drawn = ElementTree.fromstring(picture(spans))  # noqa: S314 - our own

    bars = [one for one in drawn.iter("{http://www.w3.org/2000/svg}rect") if len(one)]
    widths = [float(one.attrib["width"]) for one in bars]
    assert len(bars) == len(spans)
    assert widths[0] == pytest.approx(2 * widths[1], abs=0.3)
    assert [one.attrib["fill"] for one in bars] == [COLOURS["worker"], COLOURS["cage"]]
    assert "75 ms" in drawn.attrib["aria-label"]


def test_every_span_of_the_drawn_task_that_takes_over_5_ms_has_its_sentence() -> None:
    drawn = ElementTree.parse(DOCS / "images" / "task.svg")  # noqa: S314 - our own
    page = (DOCS / "performance.md").read_text()

    told = [one[0].text or "" for one in drawn.iter("{http://www.w3.org/2000/svg}rect") if len(one)]
    long = {name for name, took, _ in (one.split() for one in told) if float(took) > 5}

    assert long
    assert [name for name in sorted(long) if f"| `{name}` |" not in page] == []
