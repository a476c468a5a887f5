"""Draw curves as one SVG of small panels: what grows along the bottom by decades, what it costs from zero up."""

import math
from dataclasses import dataclass, field
from html import escape
from typing import Final

WIDTH: Final = 330
HEIGHT: Final = 230
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 34, 38  # room around a panel's plot
COLUMNS: Final = 3
COLOURS: Final = ("#1f6feb", "#d1570a", "#2da44e", "#8250df")
STYLE: Final = (
    "text{font:11px sans-serif;fill:#444}.t{font-weight:bold;fill:#111}.g{stroke:#ddd}"
    ".l{fill:none;stroke-width:2}.goal{stroke:#c00;stroke-dasharray:4 3}"
)

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One panel."""

    title: str  # what it costs, with its unit
    along: str  # what grows
    series: dict[str, Points]
    goal: float | None = None
    # What else was seen: for the results, not drawn.
    notes: dict[str, float] = field(default_factory=dict)


def draw(curves: list[Curve]) -> str:
    """Return the text of an SVG with a panel for each curve."""
    rows = -(-len(curves) // COLUMNS)
    width, height = COLUMNS * WIDTH, rows * HEIGHT
    panels = []
    for number, curve in enumerate(curves):
        row, column = divmod(number, COLUMNS)
        place = f"translate({column * WIDTH},{row * HEIGHT})"
        panels.append(f'<g transform="{place}">\n' + "\n".join(_panel(curve)) + "\n</g>")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">\n'
        f"<style>{STYLE}</style>\n"
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n'
        + "\n".join(panels)
        + "\n</svg>\n"
    )


def _panel(curve: Curve) -> list[str]:
    points = [point for series in curve.series.values() for point in series]
    low, high = (math.log10(edge(x for x, _ in points)) for edge in (min, max))
    top = _round_up(max([y for _, y in points] + [curve.goal or 0.0]))

    def at(x: float, y: float) -> tuple[float, float]:
        part = (math.log10(x) - low) / ((high - low) or 1.0)
        across = LEFT + part * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    lines = [_text(LEFT, 16, curve.title, "start", "t")]
    for part in range(5):
        value = top * part / 4
        _, y = at(10**low, value)
        lines.append(f'<path class="g" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        lines.append(_text(LEFT - 5, y + 4, f"{value:,.6g}", "end"))
    under = HEIGHT - BOTTOM + 14
    lines += [
        _text(at(x, 0)[0], under, _short(x), "middle") for x in sorted({x for x, _ in points})
    ]
    lines.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, curve.along, "middle"))
    if curve.goal is not None:
        y = at(10**low, curve.goal)[1]
        lines.append(f'<path class="goal" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
    for number, (name, series) in enumerate(curve.series.items()):
        lines += _line(name, [at(x, y) for x, y in series], number, is_alone=len(curve.series) == 1)
    return lines


def _line(name: str, points: Points, number: int, *, is_alone: bool) -> list[str]:
    colour = COLOURS[number % len(COLOURS)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    lines = [f'<path class="l" stroke="{colour}" d="M{path}"/>']
    lines += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points]
    if not is_alone:
        across = LEFT + number * (WIDTH - LEFT - RIGHT) / 3
        lines.append(f'<path class="l" stroke="{colour}" d="M{across:.1f} 26h12"/>')
        lines.append(_text(across + 16, 30, name, "start"))
    return lines


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    mark = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{mark}>{escape(text)}</text>'


def _round_up(value: float) -> float:
    """Return the next number above that reads well at the top of an axis."""
    size = 10.0 ** math.floor(math.log10(value)) if value > 0 else 1.0
    return next(step * size for step in (1, 2, 4, 6, 8, 10) if step * size >= value)


def _short(number: float) -> str:
    return f"{number / 1000:g}k" if number >= 1000 else f"{number:g}"
