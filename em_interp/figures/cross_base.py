"""What a carried direction does in another family, beside that family's own direction and random carried ones."""

from __future__ import annotations

from html import escape
from textwrap import wrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from em_interp.figures.comparison import run_style
from em_interp.figures.style import BLUE, FAINT, INK, MUTED, VERMILLION, fade, new_figure, note, place, ribbon

TRANSFER_TITLES = {"steering": "Added to the base at half depth", "ablation": "Projected out of the adapted model"}
ROW = 42  # pixels


def steering_transfer(use: pd.DataFrame, about: str = "") -> go.Figure:
    """A panel for each use, a line for each source and target: carried, own, and the largest of the random ones.

    `use` has columns run, other, use, carried, own, random_largest and adapter; effects are on the margin of misaligned
    over aligned answers, in nats a token.
    """
    uses = [name for name in TRANSFER_TITLES if (use["use"] == name).any()]
    words = "Effect on the log-probability of misaligned answers less that of aligned ones."
    figure = new_figure(
        "Directions carried from one family into another",
        f"{about}. {words}" if about else words,
        ROW * len(use[["run", "other"]].drop_duplicates()) + 90,
        headroom=30,
        least_width=520,
        rows=1,
        cols=len(uses),
        shared_yaxes=True,
        subplot_titles=[TRANSFER_TITLES[name] for name in uses],
        horizontal_spacing=0.06,
    )
    for number, name in enumerate(uses, 1):
        _draw_transfer(figure, use[use["use"] == name], place(1, number), number == 1)
    figure.update_xaxes(title_text="Effect on the margin (nats a token)", nticks=6, zeroline=True, zerolinecolor=INK)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure.update_yaxes(title_text="From → into", row=1, col=1)


def _draw_transfer(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int], legend: bool) -> None:
    names = [f"{escape(str(run))} → {escape(str(other))}" for run, other in rows[["run", "other"]].to_numpy()]
    for name, largest in zip(names, rows["random_largest"], strict=True):
        band = go.Scatter(x=[-largest, largest], y=[name, name], mode="lines", name="random carried directions")
        shown = legend and name == names[0]
        band.update(line={"color": fade(MUTED, 0.35), "width": 14}, showlegend=shown, hoverinfo="skip")
        figure.add_trace(band.update(legendgroup="random"), **where)
    marks = (
        ("carried", "the carried direction", {"color": VERMILLION, "size": 10}),
        ("own", "the target's own direction", {"color": BLUE, "size": 10, "symbol": "diamond-open", "line_width": 2}),
    )
    for column, said, marker in marks:
        hover = "%{y}<br>%{x:.3f} nats a token<extra></extra>"
        trace = go.Scatter(x=rows[column], y=names, mode="markers", marker=marker, name=said, hovertemplate=hover)
        figure.add_trace(trace.update(legendgroup=column, showlegend=legend), **where)


# --------
# How alike the changes of several runs are along the depth of their models, each measure above its null.


SIMILARITY_TITLES = {
    "cka": "Debiased CKA of the changes",
    "procrustes": "Held-out Procrustes of the changes",
    "carried_orthogonal": "Cosine to the carried direction (rotation)",
    "carried_ridge": "Cosine to the carried direction (ridge)",
}
NULL = "Shaded: what random adapters of the same norms reach in {level:.0%}, the widest of all pairs and of both nulls."
SIMILARITY_PANEL = 230  # pixels


def similarity(likeness: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel for each measure, a line for each pair over the share of depth, the null shaded.

    `likeness` has columns run, other, measure, depth, value, random_band and kept_band; rows without a depth are left
    to the figure of read-outs.
    """
    rows = likeness.dropna(subset=["depth"])
    measures = [name for name in SIMILARITY_TITLES if (rows["measure"] == name).any()]
    words = NULL.format(level=level)
    figure = new_figure(
        "What the adapters change, across families",
        f"{about}. {words}" if about else words,
        SIMILARITY_PANEL * -(-len(measures) // 2) + 60,
        headroom=50,
        least_width=480,
        rows=-(-len(measures) // 2),
        cols=min(len(measures), 2),
        subplot_titles=[SIMILARITY_TITLES[name] for name in measures],
        horizontal_spacing=0.12,
        vertical_spacing=0.2,
    )
    pairs = [f"{run}, {other}" for run, other in rows[["run", "other"]].drop_duplicates().to_numpy()]
    style = run_style(list(dict.fromkeys(" and ".join(sorted(pair.split(", "))) for pair in pairs)))
    for number, name in enumerate(measures):
        _draw_similarity(figure, rows[rows["measure"] == name], name, style, place(number // 2 + 1, number % 2 + 1))
    figure.update_xaxes(title_text="Share of depth (1: the last layer)", range=[0, 1.04])
    return figure.update_yaxes(title_text="no unit", nticks=6)


def _draw_similarity(
    figure: go.Figure, rows: pd.DataFrame, measure: str, style: dict[str, tuple[str, str]], where: dict[str, int]
) -> None:
    widest = rows.assign(band=rows[["random_band", "kept_band"]].max(axis=1)).groupby("depth")["band"].max()
    low = -widest.to_numpy() if measure.startswith("carried") else np.full(len(widest), min(0.0, rows["value"].min()))
    x = widest.index.to_numpy()
    shade = ribbon(x, low, widest.to_numpy(), MUTED, "random adapters", showlegend=_new(figure, "random adapters"))
    figure.add_trace(shade, **where)
    for (run, other), line in rows.groupby(["run", "other"], sort=False):
        name = " and ".join(sorted([str(run), str(other)]))
        colour, dash = style[name]
        back = measure.startswith("carried") and str(run) > str(other)  # the other way round: hollow marks
        marker = {"size": 7, "symbol": "circle-open" if back else "circle"}
        hover = f"{escape(str(run))} to {escape(str(other))}, depth %{{x:.2f}}<br>%{{y:.3f}}<extra></extra>"
        trace = go.Scatter(x=line["depth"], y=line["value"], mode="lines+markers", marker=marker, hovertemplate=hover)
        trace.update(line={"color": colour, "dash": dash}, name=escape(name), legendgroup=escape(name))
        figure.add_trace(trace.update(showlegend=_new(figure, escape(name))), **where)


def _new(figure: go.Figure, name: str) -> bool:
    return not any(trace.name == name for trace in figure.data)


# --------
# Which words two adapters favour: the ranks of the tokens that both families say, one against the other.


AT = {"write": "the write of the adapter", "final": "the whole change at the last layer"}
NAMED = 6  # tokens named at either end
MOST = 6  # pairs in one figure
READOUTS_PANEL = 300  # pixels


def logit_lens_similarity(
    tokens: pd.DataFrame, likeness: pd.DataFrame, at: str = "final", about: str = ""
) -> go.Figure:
    """A panel for each pair (the first six): rank of every token in both read-outs, the extremes of both named.

    `tokens` has columns run, other, token, rank and other_rank (1: the most promoted); `likeness` the rows of
    `readout_<at>` with value, random_band, kept_band.
    """
    pairs = [(key, rows) for key, rows in tokens.groupby(["run", "other"], sort=False)][:MOST]
    across = min(len(pairs), 3)
    down = -(-len(pairs) // across)
    titles = [_title(likeness, str(run), str(other), at) for (run, other), _ in pairs]
    words = f"Read-out of {AT[at]}, over tokens that both families say; rank 1 is the most promoted."
    figure = new_figure(
        "Tokens that the adapters promote and suppress",
        f"{about}. {words}" if about else words,
        down * (READOUTS_PANEL + 170) - 40,
        headroom=20,
        least_width=520,
        rows=down,
        cols=across,
        subplot_titles=titles,
        horizontal_spacing=0.1,
        vertical_spacing=0.5 / down,
    )
    figure.update_annotations(font_size=12)
    for number, ((run, other), rows) in enumerate(pairs):
        where = place(number // across + 1, number % across + 1)
        _draw_readouts(figure, rows, where)
        figure.update_xaxes(title_text=f"Rank in {escape(str(run))}", autorange="reversed", **where)
        figure.update_yaxes(title_text=f"Rank in {escape(str(other))}", autorange="reversed", **where)
    return figure.update_layout(showlegend=False, margin_b=170)


def _title(likeness: pd.DataFrame, run: str, other: str, at: str) -> str:
    chosen = (likeness["run"] == run) & (likeness["other"] == other) & (likeness["measure"] == f"readout_{at}")
    row = likeness[chosen].iloc[0]
    band = max(row["random_band"], row["kept_band"])
    return f"Spearman {row['value']:.2f} (random: within ±{band:.2f})"


def _draw_readouts(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int]) -> None:
    both = rows["rank"] + rows["other_rank"]
    order = np.argsort(both.to_numpy(), kind="stable")
    colour = np.full(len(rows), FAINT, dtype=object)
    colour[order[:NAMED]], colour[order[-NAMED:]] = VERMILLION, BLUE
    tokens = [escape(repr(str(token))) for token in rows["token"]]
    hover = "%{hovertext}<br>ranks %{x} and %{y}<extra></extra>"
    dots = go.Scatter(x=rows["rank"], y=rows["other_rank"], mode="markers", hovertemplate=hover, hovertext=tokens)
    figure.add_trace(dots.update(marker={"color": list(colour), "size": 5}), **where)
    ends = (("both promote", order[:NAMED], VERMILLION), ("both suppress", order[-NAMED:][::-1], BLUE))
    below = {"x": 0, "xref": "x domain", "xanchor": "left", "yref": "y domain", "yanchor": "top", "align": "left"}
    for line, (said, chosen, colour_of) in enumerate(ends):
        words = wrap(", ".join(str(rows["token"].iloc[k]).strip() for k in chosen), 34, max_lines=2, placeholder=" …")
        text = f"<b>{said}</b><br>" + "<br>".join(map(escape, words))
        style = {"font": {"size": 11, "color": colour_of}, "showarrow": False}
        figure.add_annotation(text=text, y=-0.22 - 0.19 * line, **below, **style, **where)
    figure.update_xaxes(linecolor=INK, **where)


# --------
# How the runs of several families turn, on a time they share.


AXES = {
    "cumulative_lr": "Share of the cumulative learning rate",
    "norm": "Norm of ΔW, as a share of its largest",
}
PROFILES_PANEL = 320  # pixels


def turning_profiles(profiles: pd.DataFrame, turning: pd.DataFrame, about: str = "") -> go.Figure:
    """A panel for each clock, a line for each run, a colour for each family; seeds of one show what chance does.

    `profiles` has columns run, family, clock, time and degrees; `turning` a row for each two families and clock with
    between, within and p_value.
    """
    clocks = [clock for clock in AXES if (profiles["clock"] == clock).any()]
    words = "The spread of one colour is what seeds do; runs of two families differ where they lie further apart."
    figure = new_figure(
        "Turning profiles",
        f"{about}. {words}" if about else words,
        PROFILES_PANEL + 40,
        headroom=20,
        least_width=480,
        rows=1,
        cols=len(clocks),
        horizontal_spacing=0.12,
    )
    style = run_style(list(dict.fromkeys(profiles["family"])))
    for number, clock in enumerate(clocks, 1):
        where = place(1, number)
        for (family, run), line in profiles[profiles["clock"] == clock].groupby(["family", "run"], sort=False):
            colour, dash = style[str(family)]
            name = escape(str(family))
            hover = f"{escape(str(run))}, time %{{x:.2f}}<br>%{{y:.1f}}°<extra></extra>"
            trace = go.Scatter(x=line["time"], y=line["degrees"], mode="lines", name=name, legendgroup=name)
            shown = not any(drawn.name == name for drawn in figure.data)
            trace.update(line={"color": colour, "dash": dash, "width": 1.5}, showlegend=shown, hovertemplate=hover)
            figure.add_trace(trace, **where)
        _say(figure, turning[turning["clock"] == clock] if len(turning) else turning, where)
        figure.update_xaxes(title_text=AXES[clock], range=[0, 1.02], **where)
    figure.update_yaxes(rangemode="tozero", nticks=6)
    return figure.update_yaxes(title_text="Angle of ΔW to its end (°)", row=1, col=1)


def _say(figure: go.Figure, tests: pd.DataFrame, where: dict[str, int]) -> None:
    """The tests in words, in the corner that a falling curve leaves free."""
    lines = []
    for row in tests.to_dict("records"):
        p = f"p = {row['p_value']:.2g}" if row["p_value"] == row["p_value"] else "no null: too few runs"
        lines.append(f"{escape(row['family'])}, {escape(row['other'])}: {row['between']:.0f}° apart, {p}")
    at = {"x": 1, "y": 1, "xref": "x domain", "yref": "y domain", "xanchor": "right", "yanchor": "top"}
    if lines:
        style = {"showarrow": False, "align": "right", "font": {"size": 11}, "bgcolor": "rgba(255,255,255,0.85)"}
        figure.add_annotation(text="<br>".join(lines), **at, **style, **where)
    elif not any(trace.name for trace in figure.data):
        note(figure, "no run has this time", where)
