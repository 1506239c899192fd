"""A task as a waterfall: one bar for each span, from left to right as the time went. SVG, written by hand."""

from collections.abc import Sequence
from html import escape

from msgspec import Struct

WIDTH, NAMES_PX, BAR_PX, ROW_PX, TOP_PX = 860, 190, 560, 22, 46
COLOURS = {
    "API": "#3b6ea5",
    "queue": "#9aa5b1",
    "worker": "#4c956c",
    "cage": "#c8763c",
    "orchestrator": "#7d5ba6",
}
TICKS_MOST = 10


class Span(Struct, frozen=True):
    """Something that took time. `at_ms`: since the order was accepted; `who`: what does it; `is_inner`: within another."""

    name: str
    who: str
    at_ms: float
    took_ms: float
    is_inner: bool = False

    @property
    def end_ms(self) -> float:
        return self.at_ms + self.took_ms


def picture(spans: Sequence[Span]) -> str:
    """The drawing: text and shapes only, black or white by the reader's own scheme."""
    first, last = min(0.0, *(one.at_ms for one in spans)), max(one.end_ms for one in spans)
    scale = BAR_PX / (last - first)
    height = TOP_PX + ROW_PX * len(spans) + 34
    title = f"A no-op task: {last:.0f} ms from the accepted order to the acknowledged report"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">',
        f"<title>{title}</title>",
        "<style>text{font:12px sans-serif;fill:#24292f}.grid{stroke:#8c959f;stroke-opacity:.35}"
        "@media(prefers-color-scheme:dark){text{fill:#d0d7de}}</style>",
    ]
    parts += _grid(first, last, scale, height)
    for row, one in enumerate(spans):
        parts += _bar(one, TOP_PX + ROW_PX * row, NAMES_PX + (one.at_ms - first) * scale, scale)
    parts += _legend(height)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _grid(first: float, last: float, scale: float, height: int) -> list[str]:
    step = next(
        step for step in (5, 10, 20, 50, 100, 200, 500, 1000, 10_000) if (last - first) / step <= TICKS_MOST
    )
    lines = [f'<text x="{NAMES_PX}" y="16">milliseconds since the order was accepted (202)</text>']
    for tick in range(int(first // step) * step, int(last) + 1, step):
        x = NAMES_PX + (tick - first) * scale
        if tick >= first:
            lines.append(f'<line class="grid" x1="{x:.1f}" y1="38" x2="{x:.1f}" y2="{height - 28}"/>')
            lines.append(f'<text x="{x:.1f}" y="33" text-anchor="middle">{tick}</text>')
    return lines


def _bar(one: Span, y: int, x: float, scale: float) -> list[str]:
    wide, told, name = max(1.0, one.took_ms * scale), f"{one.took_ms:.1f}", escape(one.name)
    after = min(x + wide + 5, NAMES_PX + BAR_PX + 6)
    shade = ' fill-opacity="0.55"' if one.is_inner else ""
    place = f'x="{x:.1f}" y="{y + 2}" width="{wide:.1f}" height="{ROW_PX - 8}" rx="2"'
    return [
        f'<text x="{18 if one.is_inner else 6}" y="{y + 13}">{name}</text>',
        f'<rect {place} fill="{COLOURS[one.who]}"{shade}><title>{name} {told} ms</title></rect>',
        f'<text x="{after:.1f}" y="{y + 13}">{told}</text>',
    ]


def _legend(height: int) -> list[str]:
    parts = []
    for number, (who, colour) in enumerate(COLOURS.items()):
        x = NAMES_PX + 110 * number
        parts.append(f'<rect x="{x}" y="{height - 20}" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{x + 17}" y="{height - 10}">{escape(who)}</text>')
    return parts
