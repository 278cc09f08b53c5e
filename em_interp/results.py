"""How a result shows itself in a notebook: what was found in words, a small picture, and what to call next.

The picture is plain SVG, so that it needs no script, no network and no plotting library; `.plot()` has the real figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from jaxtyping import Float

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 110, 46, 10, 8, 30  # pixels; the last four are margins
INK, FAINT = "#1f1f1f", "#b3b3b3"
COLOURS = ("#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#56B4E9")  # Okabe and Ito (2008)


@dataclass(frozen=True)
class Line:
    """A curve of the picture; NaN breaks it. Without a name it is not in the legend."""

    steps: Float[np.ndarray, " point"]
    values: Float[np.ndarray, " point"]
    name: str = ""


@dataclass(frozen=True)
class Mark:
    """A step with its interval, drawn as a line with a band."""

    step: float
    interval: tuple[float, float] | None = None


def html_card(said: Sequence[str], picture: str = "", calls: Sequence[str] = (), table: str = "") -> str:
    """The HTML of a result: `said` is text, the first of it in bold; `picture` and `table` are HTML; `calls` code."""
    lines = [f"<strong>{escape(said[0])}</strong>", *map(escape, said[1:])]
    follow = " · ".join(f"<code>{escape(call)}</code>" for call in calls)
    parts = [f"<div>{'<br>'.join(lines)}</div>", picture, table, f"<div>next: {follow}</div>" if calls else ""]
    return f'<div style="max-width: 60em">{"".join(parts)}</div>'


def picture(lines: Sequence[Line], y_axis: str, marks: Sequence[Mark] = (), x_axis: str = "training step") -> str:
    """A small SVG of curves over training steps with marked steps; empty where there is nothing finite to draw."""
    points = [(line.steps[ok], line.values[ok]) for line in lines if (ok := np.isfinite(line.values)).any()]
    if not points:
        return ""
    first, last = (float(f(np.concatenate([line.steps for line in lines]))) for f in (np.min, np.max))
    low, high = (float(f(np.concatenate([y for _, y in points]))) for f in (np.min, np.max))
    frame = _Frame(first, last if last > first else first + 1, low, high if high > low else low + 1)
    body = [frame.band(mark) for mark in marks] + [frame.axes(y_axis, x_axis)]
    for line, colour in zip(lines, _cycle(len(lines)), strict=True):
        body.append(frame.curve(line, colour))
    legend = frame.legend([line.name for line in lines])
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<svg {size} role="img" font-family="sans-serif" font-size="10">{"".join(body)}{legend}</svg>'


def _cycle(count: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]


@dataclass(frozen=True)
class _Frame:
    """The data's range, and where in the picture it is drawn."""

    first: float
    last: float
    low: float
    high: float

    def x(self, step: float) -> float:
        share = (min(max(step, self.first), self.last) - self.first) / (self.last - self.first)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)

    def band(self, mark: Mark) -> str:
        low, high = (self.x(end) for end in (mark.interval or (mark.step, mark.step)))
        tall = HEIGHT - TOP - BOTTOM
        band = f'<rect x="{low:.1f}" y="{TOP}" width="{max(high - low, 0.5):.1f}" height="{tall}" fill="#dddddd"/>'
        x = self.x(mark.step)
        return f'{band}<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{TOP + tall}" stroke="{INK}"/>'

    def curve(self, line: Line, colour: str) -> str:
        runs: list[list[str]] = [[]]
        for step, value in zip(line.steps.tolist(), line.values.tolist(), strict=True):
            if np.isfinite(value):
                runs[-1].append(f"{self.x(step):.1f},{self.y(value):.1f}")
            else:
                runs.append([])
        drawn = (" ".join(run) for run in runs if run)
        return "".join(f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="1.5"/>' for at in drawn)

    def axes(self, y_axis: str, x_axis: str) -> str:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        rules = f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="{FAINT}"/>'
        ticks = [
            _text(LEFT, bottom + 12, f"{self.first:g}", "start"),
            _text(right, bottom + 12, f"{self.last:g}", "end"),
        ]
        ticks += [_text(LEFT - 4, self.y(value) + 3, f"{value:.3g}", "end") for value in (self.low, self.high)]
        named = _text((LEFT + right) / 2, bottom + 12, x_axis, "middle")
        turned = f'<g transform="rotate(-90 9 {HEIGHT / 2 - 8})">{_text(9, HEIGHT / 2 - 8, y_axis, "middle")}</g>'
        return rules + "".join(ticks) + named + turned

    def legend(self, names: Sequence[str]) -> str:
        shown = [(name, colour) for name, colour in zip(names, _cycle(len(names)), strict=True) if name]
        wide = (WIDTH - LEFT - RIGHT) / max(1, len(shown))
        return "".join(
            _text(LEFT + wide * (index + 0.5), HEIGHT - 4, name, "middle", colour)
            for index, (name, colour) in enumerate(shown)
        )


def _text(x: float, y: float, said: str, anchor: str, colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(said)}</text>'
