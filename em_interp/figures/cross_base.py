"""Runs of different bases: what their adapters change, the tokens they promote, transferred directions, and turning.

Each function draws a table of `CrossBaseComparison`; `comparison.plot(...)` calls them.
"""

from __future__ import annotations

from html import escape
from textwrap import wrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.comparison import is_new, run_style
from em_interp.figures.style import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    VERMILLION,
    fade,
    new_figure,
    note,
    number,
    place,
    ribbon,
    sentences,
)
from em_interp.results import percent

SIMILARITY_TITLES = {
    "cka": "Debiased CKA of the changes",
    "procrustes": "Held-out Procrustes of the changes",
    "mapped_orthogonal": "Cosine to the mapped direction (rotation)",
    "mapped_ridge": "Cosine to the mapped direction (ridge)",
}
TRANSFER_TITLES = {"steering": "Added to the base at half depth", "ablation": "Ablated from the adapted model"}
CLOCK_AXES = {
    "cumulative_lr": "Share of the cumulative learning rate",
    "norm": "Norm of ΔW, as a share of its largest",
}
WHERE = {"write": "the write of the adapter", "final": "the whole change at the last layer"}
TRANSFER_ROW, SIMILARITY_PANEL, TOKENS_PANEL, PROFILES_PANEL = 42, 230, 300, 320  # pixels
NAMED_TOKENS = 6  # at either end of the ranks
MAX_PAIRS = 6  # in one figure of tokens
LEAST_ANGLE = 5.0  # degrees: an axis up to less would show rounding


def similarity(table: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel for each measure, a line for each pair over the share of depth, the null shaded.

    `table` has columns run, other, measure, depth, value, random_band and one_random_band; rows without a depth are
    for the figure of tokens.
    """
    rows = table.dropna(subset=["depth"])
    measures = [name for name in SIMILARITY_TITLES if (rows["measure"] == name).any()]
    shaded = (
        f"Shaded: random adapters of the same norms reach this in {percent(level)}, the widest of all pairs and nulls"
    )
    hollow = "Hollow: the direction mapped the other way" if any(name.startswith("mapped") for name in measures) else ""
    figure = new_figure(
        "What the adapters change, across bases",
        f"{sentences(about, shaded, hollow)}.",
        SIMILARITY_PANEL * -(-len(measures) // 2) + 60,
        headroom=50,
        least_width=480,
        numbers=rows,
        rows=-(-len(measures) // 2),
        cols=min(len(measures), 2),
        subplot_titles=[SIMILARITY_TITLES[name] for name in measures],
        horizontal_spacing=0.12,
        vertical_spacing=0.2,
    )
    pairs = [" and ".join(sorted(map(str, pair))) for pair in rows[["run", "other"]].drop_duplicates().to_numpy()]
    style = run_style(list(dict.fromkeys(pairs)))
    for index, name in enumerate(measures):
        _draw_similarity(figure, rows[rows["measure"] == name], name, style, place(index // 2 + 1, index % 2 + 1))
    figure.update_xaxes(title_text="Share of depth (1: the last layer)", range=[0, 1.04])
    return figure.update_yaxes(title_text="Similarity (no unit)", nticks=6)


def _draw_similarity(
    figure: go.Figure, rows: pd.DataFrame, measure: str, style: dict[str, tuple[str, str]], where: dict[str, int]
) -> None:
    widest = rows.assign(band=rows[["random_band", "one_random_band"]].max(axis=1)).groupby("depth")["band"].max()
    signed = measure.startswith("mapped")
    low = -widest.to_numpy() if signed else np.full(len(widest), min(0.0, rows["value"].min()))
    shade = ribbon(widest.index.to_numpy(), low, widest.to_numpy(), MUTED, "random adapters")
    figure.add_trace(shade.update(showlegend=is_new(figure, "random adapters")), **where)
    for (run, other), line in rows.groupby(["run", "other"], sort=False):
        name = " and ".join(sorted([str(run), str(other)]))
        colour, dash = style[name]
        back = signed and str(run) > str(other)  # the other way round: hollow marks
        marker = {"size": 7, "symbol": "circle-open" if back else "circle"}
        hover = f"{escape(str(run))} to {escape(str(other))}, depth %{{x:.2f}}<br>%{{y:.3f}}<extra></extra>"
        trace = go.Scatter(x=line["depth"], y=line["value"], mode="lines+markers", marker=marker, hovertemplate=hover)
        trace.update(line={"color": colour, "dash": dash}, name=escape(name), legendgroup=escape(name))
        figure.add_trace(trace.update(showlegend=is_new(figure, escape(name))), **where)


def steering_transfer(table: pd.DataFrame, about: str = "") -> go.Figure:
    """A panel for each intervention, a line for each source and target: transferred, own, and random directions.

    `table` has columns run, other, intervention, transferred, own, random_largest and adapter; effects are on the
    margin of misaligned over aligned answers, in nats a token.
    """
    kinds = [name for name in TRANSFER_TITLES if (table["intervention"] == name).any()]
    effect = "Effect on the log-probability of misaligned answers minus that of aligned ones"
    figure = new_figure(
        "Steering directions transferred from one base to another",
        f"{sentences(about, effect)}.",
        TRANSFER_ROW * len(table[["run", "other"]].drop_duplicates()) + 90,
        headroom=30,
        least_width=520,
        numbers=table,
        rows=1,
        cols=len(kinds),
        shared_yaxes=True,
        subplot_titles=[TRANSFER_TITLES[name] for name in kinds],
        horizontal_spacing=0.06,
    )
    for column, name in enumerate(kinds, 1):
        _draw_transfer(figure, table[table["intervention"] == name], place(1, column), column == 1)
    figure.update_xaxes(title_text="Effect on the margin (nats a token)", nticks=6, zeroline=True, zerolinecolor=INK)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure.update_yaxes(title_text="From → into", row=1, col=1)


def _draw_transfer(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int], legend: bool) -> None:
    names = [f"{escape(str(run))} → {escape(str(other))}" for run, other in rows[["run", "other"]].to_numpy()]
    for name, largest in zip(names, rows["random_largest"], strict=True):
        band = go.Scatter(x=[-largest, largest], y=[name, name], mode="lines", name="random transferred directions")
        band.update(line={"color": fade(MUTED, 0.35), "width": 14}, hoverinfo="skip", legendgroup="random")
        figure.add_trace(band.update(showlegend=legend and name == names[0]), **where)
    own = {"color": BLUE, "size": 10, "symbol": "diamond-open", "line_width": 2}
    marks = (
        ("transferred", "the transferred direction", {"color": VERMILLION, "size": 10}),
        ("own", "the target's own direction", own),
    )
    for column, label, marker in marks:
        hover = "%{y}<br>%{x:.3f} nats a token<extra></extra>"
        trace = go.Scatter(x=rows[column], y=names, mode="markers", marker=marker, name=label, hovertemplate=hover)
        figure.add_trace(trace.update(legendgroup=column, showlegend=legend), **where)


def logit_lens_similarity(
    tokens: pd.DataFrame, similarities: pd.DataFrame, at: str = "final", about: str = ""
) -> go.Figure:
    """A panel for each pair (the first six): rank of every token in both logit lenses, the extremes of both named.

    `tokens` has columns run, other, token, rank and other_rank (1: the most promoted); `similarities` the rows of
    `logit_lens_<at>` with value, random_band, one_random_band.
    """
    pairs = list(tokens.groupby(["run", "other"], sort=False))[:MAX_PAIRS]
    across = min(len(pairs), 3)
    down = -(-len(pairs) // across)
    lens = f"Logit lens of {WHERE[at]}, over tokens in the answers of both bases; rank 1 is the most promoted"
    figure = new_figure(
        "Tokens that the adapters promote and suppress",
        f"{sentences(about, lens)}.",
        down * (TOKENS_PANEL + 170) - 40,
        headroom=20,
        least_width=520,
        numbers=tokens,
        rows=down,
        cols=across,
        subplot_titles=[_spearman(similarities, str(run), str(other), at) for (run, other), _ in pairs],
        horizontal_spacing=0.1,
        vertical_spacing=0.5 / down,
    )
    figure.update_annotations(font_size=12)
    for index, ((run, other), rows) in enumerate(pairs):
        where = place(index // across + 1, index % across + 1)
        _draw_tokens(figure, rows, 100 // across, where)
        figure.update_xaxes(title_text=f"Rank in {escape(str(run))}", autorange="reversed", linecolor=INK, **where)
        figure.update_yaxes(title_text=f"Rank in {escape(str(other))}", autorange="reversed", **where)
    return figure.update_layout(showlegend=False, margin_b=170)


def _spearman(similarities: pd.DataFrame, run: str, other: str, at: str) -> str:
    """A panel's title: the correlation with its band."""
    chosen = (similarities["run"] == run) & (similarities["other"] == other)
    row = similarities[chosen & (similarities["measure"] == f"logit_lens_{at}")].iloc[0]
    band = max(row["random_band"], row["one_random_band"])
    return f"Spearman {number(row['value'], '.2f')} (random: ±{number(band, '.2f')})"


def _draw_tokens(figure: go.Figure, rows: pd.DataFrame, width: int, where: dict[str, int]) -> None:
    """The ranks as dots, and below them the tokens at either end, in lines of `width` characters."""
    order = np.argsort((rows["rank"] + rows["other_rank"]).to_numpy(), kind="stable")
    colour = np.full(len(rows), FAINT, dtype=object)
    colour[order[:NAMED_TOKENS]], colour[order[-NAMED_TOKENS:]] = VERMILLION, BLUE
    tokens = [escape(repr(str(token))) for token in rows["token"]]
    hover = "%{hovertext}<br>ranks %{x} and %{y}<extra></extra>"
    dots = go.Scatter(x=rows["rank"], y=rows["other_rank"], mode="markers", hovertemplate=hover, hovertext=tokens)
    figure.add_trace(dots.update(marker={"color": list(colour), "size": 5}), **where)
    named = (
        ("both promote", order[:NAMED_TOKENS], VERMILLION),
        ("both suppress", order[-NAMED_TOKENS:][::-1], BLUE),
    )
    at = {"x": 0, "xref": "x domain", "xanchor": "left", "yref": "y domain", "yanchor": "top", "align": "left"}
    for line, (title, chosen, shade) in enumerate(named):
        words = wrap(
            ", ".join(str(rows["token"].iloc[k]).strip() for k in chosen), width, max_lines=2, placeholder=" …"
        )
        text = f"<b>{title}</b><br>" + "<br>".join(map(escape, words))
        style = {"font": {"size": 11, "color": shade}, "showarrow": False}
        figure.add_annotation(text=text, y=-0.22 - 0.19 * line, **at, **style, **where)


def turning_profiles(profiles: pd.DataFrame, tests: pd.DataFrame, about: str = "") -> go.Figure:
    """A panel for each clock, a line for each run, a colour for each base.

    `profiles` has columns run, base, clock, time and degrees; `tests` a row for each two bases and clock with between,
    within and p_value.
    """
    clocks = [clock for clock in CLOCK_AXES if (profiles["clock"] == clock).any()]
    spread = "Lines of one colour are seeds of one base; bases differ where their lines lie further apart than seeds do"
    figure = new_figure(
        "Turning profiles",
        f"{sentences(about, spread)}.",
        PROFILES_PANEL + 40,
        headroom=20,
        least_width=480,
        numbers=profiles,
        rows=1,
        cols=len(clocks),
        horizontal_spacing=0.12,
    )
    style = run_style(list(dict.fromkeys(profiles["base"])))
    for column, clock in enumerate(clocks, 1):
        where = place(1, column)
        for (base, run), line in profiles[profiles["clock"] == clock].groupby(["base", "run"], sort=False):
            colour, dash = style[str(base)]
            name = escape(str(base))
            hover = f"{escape(str(run))}, time %{{x:.2f}}<br>%{{y:.1f}}°<extra></extra>"
            trace = go.Scatter(x=line["time"], y=line["degrees"], mode="lines", name=name, legendgroup=name)
            trace.update(line={"color": colour, "dash": dash, "width": 1.5}, hovertemplate=hover)
            figure.add_trace(trace.update(showlegend=is_new(figure, name)), **where)
        _write_tests(figure, tests[tests["clock"] == clock] if len(tests) else tests, where)
        figure.update_xaxes(title_text=CLOCK_AXES[clock], range=[0, 1.02], **where)
    top = 1.05 * max(float(profiles["degrees"].max()), LEAST_ANGLE)
    figure.update_yaxes(range=[0, top], nticks=6)
    return figure.update_yaxes(title_text="Angle of ΔW to its end (°)", row=1, col=1)


def _write_tests(figure: go.Figure, tests: pd.DataFrame, where: dict[str, int]) -> None:
    """The tests in words, in the corner that a falling curve leaves free."""
    lines = []
    for row in tests.to_dict("records"):
        p = f"p = {row['p_value']:.2g}" if row["p_value"] == row["p_value"] else "no null: too few runs"
        lines.append(f"{escape(row['base'])}, {escape(row['other'])}: {row['between']:.0f}° apart, {p}")
    at = {"x": 1, "y": 1, "xref": "x domain", "yref": "y domain", "xanchor": "right", "yanchor": "top"}
    if lines:
        style = {"showarrow": False, "align": "right", "font": {"size": 11}, "bgcolor": "rgba(255,255,255,0.85)"}
        figure.add_annotation(text="<br>".join(lines), **at, **style, **where)
    elif not any(trace.name for trace in figure.data):
        note(figure, "no run has this time", where)
