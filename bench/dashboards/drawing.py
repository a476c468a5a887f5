"""A dashboard as a page: one SVG for each panel, in the places that Grafana gives them. No library, no script."""

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from math import ceil, floor, log10

WIDTH, HEIGHT = 300, 130  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 52, 6, 8, 16  # of its axes
COLOURS = ("#3274d9", "#e0752d", "#37872d", "#c4162a", "#8f3bb8", "#b8860b", "#0a8f9f", "#6b6b6b")
LEGEND_LIMIT = 6
ROW_HEIGHT = 206
PAGE_WIDTH = 3 * (WIDTH + 10) + 12
STYLE = f"""
body {{ margin: 8px; font: 10px sans-serif; color: #222; background: #fff; }}
h1 {{ font-size: 14px; margin: 0 0 8px; height: 18px; }}
main {{ display: grid; grid-template-columns: repeat(3, {WIDTH}px); gap: 8px; }}
section {{ border: 1px solid #ddd; box-sizing: border-box; height: {ROW_HEIGHT - 8}px; overflow: hidden; }}
h2 {{ font-size: 11px; margin: 4px 8px; }}
p {{ margin: 0 8px; line-height: 12px; }}
.empty {{ margin: 50px 8px; text-align: center; color: #666; }}
"""


@dataclass(frozen=True)
class Line:
    """One series: its name, and its points by time, both in seconds and the panel's unit."""

    name: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class Picture:
    """One panel; where there are no lines, `note` says why."""

    title: str
    unit: str
    lines: list[Line]
    note: str = ""


def page(title: str, pictures: list[Picture], began: float, ended: float) -> str:
    """Write a dashboard; the time runs from `began` to `ended`."""
    body = "".join(section(picture, began, ended) for picture in pictures)
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1><main>{body}</main>"
    )


def page_height(panel_count: int) -> int:
    """Say how high the page is."""
    return 40 + ceil(panel_count / 3) * ROW_HEIGHT


def section(picture: Picture, began: float, ended: float) -> str:
    head = f"<section><h2>{escape(picture.title)}</h2>"
    if not picture.lines:
        return f'{head}<div class="empty">no data: {escape(picture.note)}</div></section>'
    return f"{head}{chart(picture, began, ended)}<p>{legend(picture.lines)}</p></section>"


def legend(lines: list[Line]) -> str:
    """Name the lines; those that come to most first, and not all of very many."""
    words = [
        f'<span style="color:{COLOURS[number % len(COLOURS)]}">&#9644;</span> {escape(line.name)}'
        for number, line in enumerate(lines[:LEGEND_LIMIT])
    ]
    more = len(lines) - LEGEND_LIMIT
    return " &ensp;".join(words) + (f" &ensp;and {more} more" if more > 0 else "")


def chart(picture: Picture, began: float, ended: float) -> str:
    most = max(value for line in picture.lines for _, value in line.points)
    step = nice_step(most, picture.unit)
    top = step * max(1, ceil(most / step))

    def place(at: float, value: float) -> str:
        x = LEFT + (at - began) / (ended - began) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    drawn = []
    for number in range(round(top / step) + 1):
        y = float(place(began, number * step).split(",")[1])
        drawn.append(
            f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#e6e6e6"/>'
            f'<text x="{LEFT - 5}" y="{y + 3:.1f}" text-anchor="end">{show(number * step, picture.unit)}</text>'
        )
    for at in range(0, floor(ended - began) + 1, 60):
        x = place(began + at, 0).split(",")[0]
        drawn.append(f'<text x="{x}" y="{HEIGHT - 5}" text-anchor="middle">{at} s</text>')
    for number, line in reversed(list(enumerate(picture.lines))):
        colour = COLOURS[number % len(COLOURS)]
        drawn += [trace(run, place, colour) for run in unbroken(line.points)]
    # Without soft edges a picture is a third of the size.
    about = (
        f'width="{WIDTH}" height="{HEIGHT}" font-size="9" fill="#444" shape-rendering="crispEdges"'
    )
    return f"<svg {about}>{''.join(drawn)}</svg>"


def trace(
    points: list[tuple[float, float]], place: Callable[[float, float], str], colour: str
) -> str:
    if len(points) == 1:
        x, y = place(*points[0]).split(",")
        return f'<circle cx="{x}" cy="{y}" r="2" fill="{colour}"/>'
    joined = " ".join(place(*point) for point in points)
    return f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="1.3"/>'


def unbroken(points: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Part a line where it has no value for a while."""
    usual = min((b[0] - a[0] for a, b in pairwise(points)), default=0)
    runs = [[points[0]]]
    for point in points[1:]:
        if point[0] - runs[-1][-1][0] > 1.5 * usual:
            runs.append([])
        runs[-1].append(point)
    return runs


def nice_step(most: float, unit: str) -> float:
    """Choose what lies between two lines of the grid: some two or three of them, at round numbers."""
    if most <= 0:
        return 1.0
    base = 1024.0 ** floor(log10(most) / log10(1024)) if unit == "bytes" and most >= 1 else 1.0
    rough = most / base / 3
    power = 10.0 ** floor(log10(rough))
    return base * next(power * times for times in (1, 2, 5, 10) if power * times >= rough)


def show(value: float, unit: str) -> str:
    """Write a value of an axis."""
    if value == 0:
        return "0"
    match unit:
        case "percentunit":
            return f"{value * 100:g} %"
        case "s":
            return f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms"
        case "bytes":
            power = min(4, floor(log10(value) / log10(1024)))
            return f"{value / 1024**power:g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
        case "ops" | "reqps":
            return f"{value:g}/s"
        case _:
            return f"{value:g}"
