"""Figures of what is inside the model: KL from the base, the answer shift, directions, probes, scalars, logit lens."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float, Int
from plotly.colors import sample_colorscale

from em_interp.figures.comparison import DIVERGING
from em_interp.figures.style import (
    BLUE,
    GREEN,
    MUTED,
    STEP,
    VERMILLION,
    colour_bar,
    fade,
    mark_step,
    new_figure,
    note,
    place,
    question_colours,
    readable,
    ribbon,
    step_label,
)
from em_interp.trajectory.geometry import evenly_spaced
from em_interp.transition.result import Transition


def plot_kl_from_base(rates: pd.DataFrame, level: float = 0.95) -> go.Figure:
    """KL(base ‖ adapted) in nats a token by step, a line for each question set.

    `rates` has columns step, questions, kl with `_low` and `_high`, and tokens. Bands are intervals for other
    questions of the kind.
    """
    tokens = ", ".join(f"{rows['tokens'].iloc[0]} {readable(str(name))}" for name, rows in rates.groupby("questions"))
    figure = new_figure(
        "KL divergence from the base",
        f"Mean over answer tokens ({tokens}). Bands: {level:.0%} intervals for other questions of the kind.",
        numbers=rates,
    )
    colours = question_colours(sorted(map(str, rates["questions"].unique())))
    for name, colour in colours.items():
        rows = rates[rates["questions"] == name]
        low, high = (rows[f"kl_{end}"].to_numpy() for end in ("low", "high"))
        figure.add_trace(ribbon(rows["step"].to_numpy(), low, high, colour, "interval", showlegend=False))
        hover = "step %{x}<br>%{y:.3g} nats a token<extra></extra>"
        line = go.Scatter(x=rows["step"], y=rows["kl"], mode="lines+markers", name=escape(readable(name)))
        figure.add_trace(line.update(line={"color": colour, "width": 1.8}, marker_size=4, hovertemplate=hover))
    figure.update_xaxes(title_text=STEP)
    return figure.update_yaxes(title_text="KL(base ‖ adapted)<br>(nats a token)", rangemode="tozero")


LANE = 26  # pixels


def plot_answer_shift(
    profile: pd.DataFrame,
    peak: Transition,
    shares: pd.DataFrame | None = None,
    unit: str = "Divergence",
    level: float = 0.95,
) -> go.Figure:
    """The divergence by step with its peak; below, the share of it that each property of the answers accounts for.

    `profile` has columns step, divergence with `_low` and `_high`, and permuted_max: the largest divergence under other
    labels (left, right) of the same checkpoints. `shares` has columns step, property, share with its interval, and
    null. Bands and bars are intervals for other answers to the same questions.
    """
    rows = 0 if shares is None else len(shares)
    heights = [260, LANE * rows + 20] if rows else [260]
    figure = new_figure(
        "Shift of the answers, without a judge",
        f"{peak.verdict}: {peak.reason}. Bands and bars: {level:.0%} intervals.",
        sum(heights) + 60 + 90 * bool(rows),
        least_width=480,
        numbers=profile,
        rows=len(heights),
        row_heights=heights,
        vertical_spacing=0.2 if rows else 0,
    )
    _draw_profile(figure, profile, peak, unit)
    if shares is not None and rows:
        _draw_shares(figure, shares)
    return figure


def _draw_profile(figure: go.Figure, profile: pd.DataFrame, peak: Transition, unit: str) -> None:
    step, where = profile["step"].to_numpy(), place(1, 1)
    low, high = (profile[f"divergence_{end}"].to_numpy() for end in ("low", "high"))
    figure.add_trace(ribbon(step, low, high, BLUE, "interval", showlegend=False), **where)
    permuted = go.Scatter(
        x=step, y=profile["permuted_max"], mode="lines", line={"color": MUTED, "width": 1, "dash": "dash"}
    )
    figure.add_trace(permuted.update(name="permuted checkpoints, largest"), **where)
    hover = "step %{x}<br>divergence %{y:.3f} from %{customdata} answers<extra></extra>"
    line = go.Scatter(x=step, y=profile["divergence"], mode="lines+markers", customdata=profile["answers"])
    line.update(line={"color": BLUE, "width": 1.8}, marker_size=5, name="left against right", hovertemplate=hover)
    figure.add_trace(line, **where)
    if peak.step is not None:
        mark_step(figure, peak, BLUE, step_label(peak), where)
    figure.update_yaxes(
        title_text=f"{unit}<br>(0–1, no unit)" if "(" not in unit else unit, rangemode="tozero", **where
    )
    figure.update_xaxes(title_text=STEP, **where)


def _draw_shares(figure: go.Figure, shares: pd.DataFrame) -> None:
    where, table = place(2, 1), shares.sort_values("share", ascending=True)
    if not np.isfinite(table["share"]).any():
        note(figure, "the divergence is zero, so there are no shares of it", where)
        return
    names = [escape(str(name)) for name in table["property"]]
    share = 100 * table["share"].to_numpy()
    bars = {"array": 100 * table["share_high"] - share, "arrayminus": share - 100 * table["share_low"]}
    points = go.Scatter(x=share, y=names, mode="markers", error_x={**bars, "symmetric": False, "thickness": 1.5})
    points.update(
        marker={"color": GREEN, "size": 9}, name="share accounted for", hovertemplate="%{y}: %{x:.0f} %<extra></extra>"
    )
    chance = go.Scatter(x=100 * table["null"], y=names, mode="markers", name="share, permuted")
    style = {"symbol": "line-ns-open", "size": 12, "color": MUTED, "line": {"width": 1.5}}
    figure.add_trace(chance.update(marker=style, hovertemplate="%{y}, permuted: %{x:.1f} %<extra></extra>"), **where)
    figure.add_trace(points, **where)
    at = float(table["step"].iloc[0])
    title = f"Share of the divergence at step {at:.0f} (%)"
    figure.update_xaxes(title_text=title, range=[-2, 102], **where)
    figure.update_yaxes(title_text="Property", range=[-0.6, len(names) - 0.4], **where)


def plot_mean_difference(layers: pd.DataFrame, about: str = "") -> go.Figure:
    """Two panels over the layers. `layers` has columns layer, share_of_stream and reliability."""
    figure = new_figure(
        "Misaligned minus aligned answers, by layer",
        about,
        260,
        least_width=480,
        numbers=layers,
        cols=2,
        horizontal_spacing=0.16,
    )
    panels = (
        ("share_of_stream", "Norm of the difference<br>(share of the residual stream's)", VERMILLION),
        ("reliability", "Cosine between halves<br>of the questions", BLUE),
    )
    for number, (column, title, colour) in enumerate(panels, 1):
        style = {"mode": "lines+markers", "line": {"color": colour}, "showlegend": False}
        hover = "after layer %{x}<br>%{y:.3f}<extra></extra>"
        figure.add_trace(
            go.Scatter(x=layers["layer"], y=layers[column], hovertemplate=hover, **style), **place(1, number)
        )
        top = 1.02 if column == "reliability" else 1.08 * float(layers[column].max())
        low = min(0.0, 1.05 * float(layers[column].min(skipna=True)))
        figure.update_yaxes(title_text=title, range=[low, top], **place(1, number))
    return figure.update_xaxes(title_text="After layer", nticks=min(len(layers), 10), tickformat="d")


STEPS_PANEL = 230  # pixels
MAX_LAYERS = 4


def plot_direction_steps(steps: pd.DataFrame, about: str = "") -> go.Figure:
    """A panel a layer (four of them, evenly, where there are more), a cell for each two steps.

    `steps` has columns layer, step, other_step and cosine.
    """
    layers = sorted(steps["layer"].unique().tolist())
    chosen = [layers[i] for i in evenly_spaced(np.arange(len(layers)), MAX_LAYERS)]
    words = "The answers are the same at every step, so what they say makes all directions alike; compare the shades."
    across = min(len(chosen), 2)
    down = -(-len(chosen) // across)
    figure = new_figure(
        "The misaligned direction in the models of different steps",
        f"{about}. {words}" if about else words,
        down * (STEPS_PANEL + 40),
        least_width=480,
        numbers=steps,
        rows=down,
        cols=across,
        horizontal_spacing=0.16,
        vertical_spacing=0.26 / down,
        subplot_titles=[f"After layer {layer}" for layer in chosen],
    )
    for number, layer in enumerate(chosen):
        where = place(number // across + 1, number % across + 1)
        square = steps[steps["layer"] == layer].pivot(index="step", columns="other_step", values="cosine")
        grid = {"x": square.columns.to_numpy(), "y": square.index.to_numpy(), "z": square.to_numpy()}
        hover = "steps %{y} and %{x}<br>%{z:.3f}<extra></extra>"
        figure.add_trace(go.Heatmap(**grid, coloraxis="coloraxis", hovertemplate=hover), **where)
    figure.update_xaxes(nticks=6, showgrid=False).update_xaxes(title_text=STEP, row=down)
    figure.update_yaxes(nticks=6, showgrid=False).update_yaxes(title_text=STEP, col=1)
    lowest = float(np.nanmin(steps["cosine"]))
    shades = [[i / (len(DIVERGING[2:]) - 1), colour] for i, colour in enumerate(DIVERGING[2:])]
    bar = colour_bar("cosine (no unit)", nticks=5, tickformat=".2f")
    floor = np.floor(20 * min(lowest, 0.95)) / 20
    return figure.update_layout(coloraxis={"cmin": floor, "cmax": 1, "colorscale": shades, "colorbar": bar})


def plot_probes(probes: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """AUC on held-out questions with its interval, next to chance and to a probe on the answer's length.

    `probes` has columns step, auc, auc_low, auc_high and length_auc.
    """
    figure = new_figure("Can the scalars tell misaligned answers?", about, 300, numbers=probes)
    x = probes["step"].to_numpy(float)
    band = probes["auc_low"].to_numpy(float), probes["auc_high"].to_numpy(float)
    figure.add_trace(ribbon(x, *band, VERMILLION, f"{level:.0%} interval for other questions"))
    line = go.Scatter(x=x, y=probes["auc"], mode="lines+markers", line_color=VERMILLION, name="probe on the scalars")
    figure.add_trace(line.update(hovertemplate="step %{x}<br>AUC %{y:.2f}<extra></extra>", marker_size=5))
    length = go.Scatter(x=x, y=probes["length_auc"], mode="lines", name="probe on the answer's length")
    figure.add_trace(length.update(line={"color": BLUE, "dash": "dash"}))
    figure.add_hline(0.5, line={"color": MUTED, "width": 1}, annotation={"text": "chance", "font_color": MUTED})
    low = min(0.4, float(probes["auc_low"].min()) - 0.05)
    figure.update_yaxes(title_text="AUC on questions not seen", range=[low, 1.02])
    return figure.update_xaxes(title_text=STEP)


SCALAR_COLOUR = {"misaligned": VERMILLION, "aligned": BLUE}
SCALARS_PANEL = 220  # pixels
MAX_SCALARS = 4


def plot_scalars(scalars: pd.DataFrame, about: str = "") -> go.Figure:
    """A row for each scalar (the first four): means over answers by question set and step, and tokens at the last step.

    `scalars` has columns step, column, questions, label, mean, mean_low, mean_high and quantiles q05 to q95.
    """
    columns = list(dict.fromkeys(scalars["column"]))
    drawn, sets = columns[:MAX_SCALARS], sorted(scalars["questions"].unique())
    last = int(scalars["step"].max())
    n_drawn = f" {len(drawn)} of {len(columns)} scalars." if len(drawn) < len(columns) else ""
    words = f"Left: mean over answers, ribbons for other answers. Right: tokens, 5 to 95 % of them.{n_drawn}"
    titles = [text for name in drawn for text in (escape(name), f"Tokens at step {last}")]
    figure = new_figure(
        "What the adapter computes, s·A·x",
        f"{about}. {words}" if about else words,
        len(drawn) * SCALARS_PANEL + 40,
        headroom=16,
        least_width=480,
        numbers=scalars,
        rows=len(drawn),
        cols=2,
        column_widths=[0.6, 0.4],
        vertical_spacing=0.3 / len(drawn),
        subplot_titles=titles,
    )
    for number, name in enumerate(drawn, 1):
        rows = scalars[scalars["column"] == name]
        _by_step(figure, rows, sets, place(number, 1))
        _tokens(figure, rows[rows["step"] == last], place(number, 2))
        figure.update_yaxes(title_text="Scalar s·A·x (no unit)", row=number)
    figure.update_xaxes(title_text=STEP, row=len(drawn), col=1)
    return figure.update_xaxes(title_text="Questions", col=2, row=len(drawn))


def _by_step(figure: go.Figure, rows: pd.DataFrame, sets: list[str], where: dict[str, int]) -> None:
    dashes = dict(zip(sets, ("solid", "dash", "dot", "dashdot") * len(sets), strict=False))
    for (questions, label), curve in rows.groupby(["questions", "label"], sort=True):
        x, colour = curve["step"].to_numpy(float), SCALAR_COLOUR[str(label)]
        edges = curve["mean_low"].to_numpy(float), curve["mean_high"].to_numpy(float)
        name = f"{label}, {escape(str(questions).replace('_', ' '))}"
        figure.add_trace(ribbon(x, *edges, colour, name, showlegend=False, legendgroup=name), **where)
        line = {"color": colour, "dash": dashes[str(questions)], "width": 1.8}
        first = not any(trace.name == name and trace.mode == "lines" and trace.showlegend for trace in figure.data)
        hover = f"{name}<br>step %{{x}}<br>%{{y:.3g}}<extra></extra>"
        trace = go.Scatter(x=x, y=curve["mean"], mode="lines", line=line, name=name, hovertemplate=hover)
        figure.add_trace(trace.update(legendgroup=name, showlegend=first), **where)


def _tokens(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int]) -> None:
    for label, colour in SCALAR_COLOUR.items():
        part = rows[rows["label"] == label]
        ticks = [escape(str(questions).replace("_", " ")) for questions in part["questions"]]
        edges = {"lowerfence": part["q05"], "q1": part["q25"], "median": part["q50"], "q3": part["q75"]}
        box = go.Box(x=ticks, **edges, upperfence=part["q95"], name=label, offsetgroup=label, showlegend=False)
        figure.add_trace(box.update(line_color=colour, fillcolor=fade(colour, 0.2), line_width=1.3), **where)
    figure.update_layout(boxmode="group")


SIDES = {"promoted": VERMILLION, "suppressed": BLUE}


def plot_logit_lens(
    followed: Mapping[str, Float[np.ndarray, " step"]],
    settling: pd.DataFrame,
    steps: Int[np.ndarray, " step"],
    site: str = "",
    settled: float = 0.8,
    k: int = 10,
) -> go.Figure:
    """Direct effects on some tokens by step; below, the Jaccard of the most affected tokens with the last step's.

    `followed` has an effect in logits at every step for each token; `settling` a row a step and side, with the Jaccard
    with the last step's tokens and its `null`, drawn thin.
    """
    figure = new_figure(
        "Logit lens of the adapter's write",
        f"{site}: direct effect of the mean write on logits, centred over the vocabulary; later layers are not in it. "
        f"Below: the {k} most affected tokens on either side; dashed, where they count as settled; thin, what random "
        "directions stay below.",
        470,
        numbers=settling,
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.08,
        row_heights=[0.62, 0.38],
    )
    where, order = place(1, 1), sorted(followed, key=lambda text: -float(np.nan_to_num(followed[text][-1])))
    shades = sample_colorscale("RdBu", _away_from_white(len(order)))
    for text, colour in zip(order, shades, strict=True):
        name = escape(text.strip() or repr(text))
        hover = f"step %{{x}}<br>{name}: %{{y:+.2f}} logits<extra></extra>"
        line = go.Scatter(x=steps, y=followed[text], mode="lines", name=name, hovertemplate=hover)
        figure.add_trace(line.update(line={"color": colour, "width": 1.8}), **where)
    figure.add_hline(0, line={"color": MUTED, "width": 1}, **where)
    for side, colour in SIDES.items():
        rows = settling[settling["side"] == side]
        hover = f"step %{{x}}<br>{side}: %{{y:.2f}}<extra></extra>"
        line = go.Scatter(x=rows["step"], y=rows["jaccard"], mode="lines", name=side, hovertemplate=hover)
        line.update(line={"color": colour, "width": 1.8, "shape": "hv"}, legend="legend2")
        figure.add_trace(line, **place(2, 1))
        figure.add_hline(rows["null"].iloc[0], line={"color": colour, "width": 0.8}, **place(2, 1))
    figure.add_hline(settled, line={"color": MUTED, "width": 1, "dash": "dash"}, **place(2, 1))
    for name, panel in (("legend", 1), ("legend2", 2)):  # beside the panel they belong to
        top = figure.get_subplot(panel, 1).yaxis.domain[1]
        style = {"orientation": "v", "x": 1.01, "y": top, "yref": "paper", "yanchor": "top", "font_size": 11}
        figure.update_layout({name: style})
    figure.update_yaxes(title_text="Direct effect (logits)", **place(1, 1))
    figure.update_yaxes(title_text="Jaccard with<br>the last step's", range=[-0.03, 1.05], **place(2, 1))
    figure.update_xaxes(title_text=STEP, **place(2, 1))
    return figure


def _away_from_white(count: int) -> list[float]:
    """Places on a scale from one colour to another, half of them in either, none in the pale middle."""
    half = (count + 1) // 2
    return [*np.linspace(0, 0.32, half), *np.linspace(0.68, 1, count - half)]


WRITES_PANEL = 190  # pixels
MAX_PANELS = 6
WRITE_COLOUR = {"write": VERMILLION, "effect": BLUE}


def plot_writes(cosines: pd.DataFrame, level: float = 0.95, about: str = "") -> go.Figure:
    """A panel a layer: the cosine of each write and of the effect to the direction after it, and the null band.

    `cosines` has columns step, what, layer, site, cosine with its interval, and band. Of many layers six are drawn:
    those with a write first, then evenly.
    """
    rows = cosines[cosines["what"].isin(list(WRITE_COLOUR))]
    layers = _layers(rows)
    n_drawn = f" {len(layers)} of {rows['layer'].nunique()} layers." if len(layers) < rows["layer"].nunique() else ""
    words = f"Grey: {level:.0%} band of random adapters. Ribbons: other questions.{n_drawn}"
    across = min(len(layers), 2)
    down = -(-len(layers) // across)
    figure = new_figure(
        "Does the adapter write or cause the misaligned direction?",
        f"{about}. {words}" if about else words,
        down * WRITES_PANEL + 40,
        headroom=16,
        numbers=rows,
        rows=down,
        cols=across,
        shared_xaxes=True,
        shared_yaxes=True,
        vertical_spacing=0.24 / down,
        horizontal_spacing=0.1,
        subplot_titles=[f"After layer {layer}" for layer in layers],
    )
    for number, layer in enumerate(layers):
        where = place(number // across + 1, number % across + 1)
        _draw(figure, rows[rows["layer"] == layer], where)
    reach = float(np.nanmax([*rows["cosine_high"].abs(), *rows["cosine_low"].abs(), *rows["band"], 0.1]))
    figure.update_yaxes(range=[-min(1.02, 1.1 * reach), min(1.02, 1.1 * reach)], nticks=5)
    figure.update_yaxes(title_text="Cosine", col=1)
    return figure.update_xaxes(nticks=5).update_xaxes(title_text=STEP, row=down)


def _layers(rows: pd.DataFrame) -> list[int]:
    written = sorted(rows.loc[rows["what"] == "write", "layer"].unique().tolist())[:MAX_PANELS]
    others = [layer for layer in sorted(rows["layer"].unique().tolist()) if layer not in written]
    room = MAX_PANELS - len(written)
    chosen = [others[i] for i in evenly_spaced(np.arange(len(others)), room)] if room else []
    return sorted([*written, *chosen])


def _draw(figure: go.Figure, rows: pd.DataFrame, where: dict[str, int]) -> None:
    # right after the first site the effect equals its write, so the write is drawn last, dashed
    for what in ("effect", "write"):
        for site, curve in rows[rows["what"] == what].groupby("site", sort=False):
            x, colour = curve["step"].to_numpy(float), WRITE_COLOUR[what]
            edges = curve["cosine_low"].to_numpy(float), curve["cosine_high"].to_numpy(float)
            figure.add_trace(ribbon(x, *edges, colour, what, showlegend=False, legendgroup=what), **where)
            line = {"color": colour, "width": 2, "dash": "dash" if what == "write" else "solid"}
            hover = f"{what} {site}<br>step %{{x}}<br>%{{y:.3f}}<extra></extra>"
            in_legend = not any(trace.name == what and trace.showlegend for trace in figure.data)
            style = {"mode": "lines", "line": line, "name": what, "legendgroup": what, "showlegend": in_legend}
            figure.add_trace(go.Scatter(x=x, y=curve["cosine"], hovertemplate=hover, **style), **where)
    band = float(rows["band"].max())
    if np.isfinite(band):  # not before the first site, where there is nothing to compare
        figure.add_hrect(-band, band, fillcolor=fade(MUTED, 0.2), line_width=0, layer="below", **where)
    figure.add_hline(0, line={"color": MUTED, "width": 1}, **where)
