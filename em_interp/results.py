"""What all results share: their methods, their card in a notebook, and the columns of an interval.

The picture is plain SVG, so that it needs no script, no network and no plotting library; `.plot()` has the real figure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 110, 46, 10, 8, 30  # pixels; the last four are margins
INK, FAINT = "#1f1f1f", "#b3b3b3"
CLAUSES = re.compile(r"; (?![^(]*\))")  # not within brackets
COLOURS = ("#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#56B4E9")  # Okabe and Ito (2008)


class Result:
    """What an analysis returns: `sentence()`, `frame()`, `plot()`, `to_dict()`, and a card in a notebook.

    A subclass gives the four; `_picture()` and `_table()` go on the card where they are given. A dataclass among the
    subclasses has `repr=False`, so that `repr()` is the sentence.
    """

    NEXT: ClassVar[tuple[str, ...]] = (".plot()", ".frame()", ".to_dict()")  # calls that the card suggests

    def sentence(self) -> str:
        """The result in words; a line or a clause for each finding, the first one first."""
        raise NotImplementedError

    def frame(self) -> pd.DataFrame:
        """The tidy table behind the figure."""
        raise NotImplementedError

    def plot(self) -> go.Figure:
        """The figure."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, as the command line's JSON has it."""
        raise NotImplementedError

    def _lines(self) -> list[str]:
        """The lines of the card, the first one in bold: the clauses of the sentence by default."""
        return [clause for line in self.sentence().splitlines() for clause in CLAUSES.split(line)]

    def _picture(self) -> str:
        """A small SVG for the card; none by default."""
        return ""

    def _table(self) -> pd.DataFrame | None:
        """A short table for the card; none by default."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sentence()})"

    def _repr_html_(self) -> str:
        table = self._table()
        return html_card(self._lines(), self._picture(), self.NEXT, "" if table is None else html_table(table))


def html_table(table: pd.DataFrame, classes: str | None = None) -> str:
    """A table for a card or a page: three digits, a dash for what is missing."""
    return table.to_html(index=False, float_format="{:.3g}".format, na_rep="–", border=0, classes=classes)


def interval_columns(name: str, interval: tuple[float, float] | None) -> dict[str, float]:
    """The two columns of the interval of `name`, in every table of the package: NaN where there is none."""
    low, high = interval or (float("nan"), float("nan"))
    return {f"{name}_low": low, f"{name}_high": high}


def percent(level: float) -> str:
    """A level, such as '95%' or '99.5%'."""
    return f"{100 * level:g}%"


def interval_text(interval: tuple[float, float] | None, level: float | None) -> str:
    """An interval of steps or degrees, such as '95% interval 184 to 197'."""
    if interval is None or level is None:
        return "no interval"
    return f"{percent(level)} interval {interval[0]:.0f} to {interval[1]:.0f}"


def local_name(name: str) -> str:
    """A name without the folders of this machine: `/home/me/qwen` is 'qwen', `org/qwen` stays."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute() or name.startswith(("~", ".")):
            return path.name or name
    return name


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


def html_card(lines: Sequence[str], picture: str = "", calls: Sequence[str] = (), table: str = "") -> str:
    """The HTML of a result: text in `lines`, the first in bold; `picture` and `table` are HTML, `calls` are code."""
    first, *rest = map(escape, lines)
    follow = " · ".join(f"<code>{escape(call)}</code>" for call in calls)
    parts = [
        f"<div>{'<br>'.join([f'<strong>{first}</strong>', *rest])}</div>",
        picture,
        table,
        f"<div>next: {follow}</div>" if calls else "",
    ]
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
        named = [(name, colour) for name, colour in zip(names, _cycle(len(names)), strict=True) if name]
        wide = (WIDTH - LEFT - RIGHT) / max(1, len(named))
        return "".join(
            _text(LEFT + wide * (index + 0.5), HEIGHT - 4, name, "middle", colour)
            for index, (name, colour) in enumerate(named)
        )


def _text(x: float, y: float, text: str, anchor: str, colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
