"""Answers with their tokens coloured by the adapter's scalar, as a page to read."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from em_interp.errors import InputError, nearest

if TYPE_CHECKING:
    from em_interp.mechanism.scalars import Scalars

BLUE, ORANGE = (33, 102, 172), (179, 88, 6)  # below and above zero, told apart with any kind of colour vision
STYLE = (
    "body{font-family:Helvetica,Arial,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;"
    "color:#1f1f1f;line-height:1.7}"
    "p{margin:.4em 0}small{color:#666}span{white-space:pre-wrap;border-radius:2px;padding:1px 0}"
)


def heat_map(scalars: Scalars, step: int, column: str, each: int = 10) -> str:
    """A whole HTML page: `each` misaligned and aligned answers, evenly over the questions, tokens shaded by `column`.

    Orange is above zero, blue below; full colour is the 99th percentile of |scalar| over all answers. A token's number
    is shown on pointing at it. All text of questions and answers is escaped; the page needs no script.
    """
    if column not in scalars.columns:
        raise InputError(
            f"there is no scalar {column!r}{nearest(column, scalars.columns)}; there are {scalars.columns}"
        )
    values = scalars.at(step)[:, scalars.columns.index(column)].astype(float)
    full = float(np.quantile(np.abs(values), 0.99)) or 1.0
    table, body = scalars.answers.table, []
    for label in ("misaligned", "aligned"):
        rows = np.flatnonzero(table["label"] == label)
        shown = rows[np.unique(np.linspace(0, len(rows) - 1, min(each, len(rows))).round().astype(int))]
        body.append(f"<h2>{len(shown)} of {len(rows)} {label} answers</h2>")
        for row in shown.tolist():
            asked = table.loc[row]
            inside = np.flatnonzero(scalars.answer == row)
            tokens = "".join(_token(scalars.tokens[i], values[i], full) for i in inside.tolist())
            scores = f"aligned {asked['aligned']:.0f}, coherent {asked['coherent']:.0f}"
            body.append(f"<p><small>{escape(str(asked['question']))} ({scores})</small><br>{tokens}</p>")
    title = f"Scalar of {column} at step {step}"
    key = f"{_token('below zero', -full, full)} to {_token('above zero', full, full)}, full colour at ±{full:.3g}"
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    about = f"<p>{escape(scalars.answers.sentence())}. {key}. The sign alone means nothing: it goes with that of B.</p>"
    page = f"<body><h1>{escape(title)}</h1>{about}{''.join(body)}</body>"
    return f'<!doctype html><html lang="en"><head>{head}</head>{page}</html>'


def _token(text: str, value: float, full: float) -> str:
    share = min(abs(value) / full, 1.0)
    red, green, blue = ORANGE if value > 0 else BLUE
    ink = ";color:white" if share > 0.7 else ""
    style = f"background:rgba({red},{green},{blue},{share:.2f}){ink}"
    return f'<span title="{value:.3g}" style="{style}">{escape(text)}</span>'
