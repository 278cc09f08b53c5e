"""How the path turns: the published local cosine and its angle at several spacings, and the test for a rotation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.colors import sample_colorscale

from em_interp.errors import InputError
from em_interp.figures.style import (
    INK,
    MUTED,
    PART_COLOUR,
    PART_NAME,
    STEP,
    VERMILLION,
    error_bars,
    fade,
    mark_known_changes,
    mark_step,
    new_figure,
    note,
    place,
    ribbon,
    signal_table,
    step_label,
    verdict_text,
    with_numbers,
)
from em_interp.results import local_name
from em_interp.trajectory import geometry
from em_interp.trajectory.load import TrajectorySource, as_trajectory
from em_interp.trajectory.trajectory import AdapterTrajectory, Matrix, as_matrix
from em_interp.transition.direction.local_cosine import largest_local_cosine, straight_angles
from em_interp.transition.direction.rotation import MIN_TURN
from em_interp.transition.find import find_transition
from em_interp.transition.result import Transition
from em_interp.utils.checks import as_list, checked

PAPER_SPACINGS = (5, 10, 15)  # training steps, of arXiv 2506.11613
SPACINGS = (5, 10, 20)  # training steps
DASHES = ("dot", "dash", "solid")
NORMAL_95 = 1.96
MAX_REACH = 60.0  # degrees: an interval that reaches further tells nothing about a turn of 60°, and is not drawn
CURVE = ("step", "turn_deg", "error_deg")  # of the evidence behind a rotation
ANGLES = (
    "Lines: angle between the moves k steps before and after. Bands: where 95% of the angles of a straight path with "
    "this run's speed and noise would lie."
)
WINDOWS = (
    "Below: the turn at each step through the shortest window that resolves it; diamond: through the window tested, "
    "which its bar spans."
)
ALWAYS_NAMES = "It names a step on every path, whether the path turns there or not"


def about(path: AdapterTrajectory, site: str | None = None) -> str:
    """The base, the site and the saved steps of a path, for a subtitle."""
    sites = site or (path.sites[0] if len(path.sites) == 1 else f"{len(path.sites)} sites together")
    steps = f"{len(path.steps)} saved steps, {path.steps[0]} to {path.steps[-1]}"
    return " · ".join(part for part in (local_name(path.base or ""), sites, steps) if part)


def local_cosine(
    path: TrajectorySource,
    k: int | Sequence[int] = PAPER_SPACINGS,
    of: Matrix = "B",
    site: str | None = None,
    transition: Transition | None = None,
) -> go.Figure:
    """The paper's local cosine by step, with its arg-max heuristic and this package's rotation test.

    The local cosine (arXiv 2506.11613, section 4) is cos(v[t-k] - v[t], v[t+k] - v[t]): straight on is -1, a
    right-angled corner 0. The published heuristic names the step of its maximum, whether there is a turn or not.

    Args:
        path: a trajectory, or a run, folder of checkpoints or Hub id to load.
        k: spacing in training steps, one or several; the paper uses 5, 10 and 15. Spacings at which no step has both
            neighbours saved are left out.
        of: B, A or delta (ΔW).
        site: one adapted module; all of them together by default.
        transition: the answer of `find_transition` for this part and site, where it is known already.

    Returns:
        A line for each k, the band where a straight path of this speed and noise would lie in 95 %, a triangle at
        each arg-max, and the tested step with its interval (or the verdict, in words).
    """
    path, of = as_trajectory(path), as_matrix(of)
    gram, spacings = path.gram(of, site), _spacings(k)
    test = transition or find_transition(path, "rotation", of=of, site=site)
    named = {spacing: largest_local_cosine(gram, path.steps, spacing) for spacing in spacings}
    figure = new_figure(
        f"Local cosine of {PART_NAME[of]}", f"{about(path, site)}. {_compared(named, test)}", 330, headroom=16
    )
    drawn = _draw_spacings(figure, path, gram, spacings, _paper_cosine, "%{y:.2f}")
    _mark_heuristic(figure, named)
    mark_step(figure, test, PART_COLOUR[of], f"rotation test: {step_label(test)}" if test.step is not None else None)
    if test.step is None:
        style = {"x": 1, "xanchor": "right", "y": 1, "yanchor": "top", "font_color": PART_COLOUR[of]}
        figure.add_annotation(text=f"rotation test: {test.verdict}", xref="x domain", yref="y domain", **style)
    figure.update_xaxes(title_text=STEP, range=[float(path.steps[0]), float(path.steps[-1])])
    highest = max((cosine for _, cosine in named.values()), default=0.0)
    figure.update_yaxes(title_text="Local cosine (straight on: −1)", range=[-1.05, float(np.fmax(highest, -0.4)) + 0.6])
    return with_numbers(figure, drawn.assign(local_cosine=_paper_cosine(drawn["angle_deg"].to_numpy(float))))


def turning_angle(
    path: TrajectorySource,
    k: int | Sequence[int] = SPACINGS,
    of: Matrix = "B",
    site: str | None = None,
    transitions: Transition | Sequence[Transition] = (),
    known_changes: Mapping[float, str] | None = None,
) -> go.Figure:
    """The angle between the moves k steps before and after each step, with the band of a path that goes straight on.

    Args:
        path: a trajectory, or a run, folder of checkpoints or Hub id to load.
        k: spacing in training steps, one or several; those at which no step has both neighbours saved are left out.
        of: B, A or delta (ΔW).
        site: one adapted module; all of them together by default.
        transitions: answers of `find_transitions`; rotations of this part are drawn in a panel above, with their test.
        known_changes: what is known to have happened, by step; drawn dashed.

    Returns:
        The figure. The bands hold 95 % of the angles of a straight path with this run's speed and noise: an angle
        inside its band is no evidence of a turn.
    """
    path, of = as_trajectory(path), as_matrix(of)
    turns = [t for t in as_list(transitions) if t.signal == "rotation" and t.of == of]
    test_rows = _test_rows(turns)
    rows = test_rows + 1
    figure = new_figure(
        f"Turning of {PART_NAME[of]}",
        f"{about(path, site)}. {ANGLES}",
        290 + 210 * (rows - 1),
        rows=rows,
        shared_xaxes=True,
        vertical_spacing=0.1,
    )
    if turns:
        draw_rotation(figure, turns, 1, test_rows)
    drawn = draw_turning(figure, path, _spacings(k), of, site, rows, 1)
    for row in range(1, rows + 1):
        mark_known_changes(figure, known_changes or {}, place(row, 1), label=row == 1)
    for turn in turns:
        mark_step(figure, turn, PART_COLOUR[of], where=place(rows, 1))
    figure.update_xaxes(title_text=STEP, row=rows)
    return with_numbers(figure, drawn)


@checked
def rotation(transitions: Transition | Sequence[Transition]) -> go.Figure:
    """The test for a rotation: the turn at each step beyond steady curvature, against the 20° of the null.

    Args:
        transitions: one rotation, or all rotations of one part of one path in the order of their steps.

    Returns:
        Above, for each turn that was found, the heading in the plane of the turn, with the fitted ramp whose middle is
        the step, its interval, and the ramps that other windows see. Below, the test: the turn at each step through
        the shortest window that resolves it, with its pointwise 95 % interval, left out where it is wider than ±60°,
        and the window that was tested, from its first step to its last. Where the path turns less than its steady
        curvature would, 0 is drawn.

    Raises:
        InputError: for other signals, or rotations of several parts.
    """
    turns = [transitions] if isinstance(transitions, Transition) else list(transitions)
    if not turns or any(t.signal != "rotation" or t.of != turns[0].of for t in turns):
        raise InputError(f"expected rotations of one part of a path; found {[(t.signal, t.of) for t in turns]}")
    rows = _test_rows(turns)
    text = f"{verdict_text(*turns)}. {turns[0].reason}{f' {WINDOWS}' if rows == 2 else ''}"
    title, height = f"Turns of {PART_NAME.get(turns[0].of or '', 'the path')}", 300 + 210 * (rows - 1)
    figure = new_figure(title, text, height, rows=rows, shared_xaxes=True, vertical_spacing=0.1)
    draw_rotation(figure, turns, 1, rows)
    figure.update_xaxes(title_text=STEP, row=rows)
    evidence = turns[0].evidence
    curve: dict[str, np.ndarray] = {name: evidence[name] for name in CURVE if name in evidence}
    return with_numbers(figure, signal_table({"turn": curve}, turns))


def _test_rows(turns: Sequence[Transition]) -> int:
    """How many panels `draw_rotation` takes: the test, and the heading where a ramp was fitted to it."""
    return 0 if not turns else 1 + any("heading" in turn.evidence for turn in turns)


def draw_rotation(figure: go.Figure, turns: Sequence[Transition], first: int, rows: int) -> None:
    """The rotation test into a panel of a figure; where `rows` is 2, the headings with their ramps in one above it."""
    _draw_test(figure, turns, place(first + rows - 1, 1), alone=rows == 1)
    if rows == 2:
        _draw_headings(figure, [turn for turn in turns if "heading" in turn.evidence], place(first, 1))


def _draw_headings(figure: go.Figure, turns: Sequence[Transition], where: dict[str, int]) -> None:
    """The heading about each turn, the ramp whose middle is the step, and a mark for every other window's ramp."""
    colour, top = PART_COLOUR.get(turns[0].of or "", INK), 30.0
    for number, turn in enumerate(turns):
        step, seen, fitted = turn.evidence["heading"]
        style = {"x": step, "legendgroup": "heading", "showlegend": number == 0}
        points = go.Scatter(y=seen, mode="markers", marker={"color": colour, "size": 4}, name="heading", **style)
        ramp = go.Scatter(y=fitted, mode="lines", line={"color": INK, "width": 1.5}, name="fitted ramp")
        ramp.update(x=step, legendgroup="ramp", showlegend=number == 0, hoverinfo="skip")
        figure.add_trace(points.update(hovertemplate="step %{x}<br>heading %{y:.0f}°<extra></extra>"), **where)
        figure.add_trace(ramp, **where)
        top = max(top, float(np.nanmax([seen.max(), fitted.max()])))
        label = f"step {turn.step:.0f}<br>turn {turn.angle_deg:.0f}°" if turn.step is not None else ""
        mark_step(figure, turn, colour, label, where, rising=True, below=number)
    others = np.concatenate([turn.evidence["bends"][1:] for turn in turns])
    if len(others):
        middle, low, high = others.T
        bars = error_bars(middle, low, high, thickness=1, width=0)
        marks = go.Scatter(x=middle, y=np.full(len(others), 1.12 * top), mode="markers", name="ramps of other windows")
        marks.update(marker={"symbol": "line-ns-open", "size": 8, "color": MUTED}, error_x=bars)
        figure.add_trace(marks.update(hovertemplate="another window: step %{x:.0f}<extra></extra>"), **where)
    figure.update_yaxes(title_text="Heading from the first<br>direction (degrees)", range=[None, 1.2 * top], **where)


def _draw_test(figure: go.Figure, turns: Sequence[Transition], where: dict[str, int], alone: bool) -> None:
    """The turn at each step with its interval, the null, and the tested windows; `alone`, the steps as well."""
    evidence = turns[0].evidence
    figure.update_yaxes(title_text="Turn beyond steady<br>curvature (degrees)", **where)
    if not np.isfinite(evidence.get("turn_deg", np.nan)).any():
        figure.update_yaxes(range=[0, 120], **where)
        figure.update_xaxes(showticklabels=False, **where)
        note(figure, turns[0].reason, where)
        return
    colour = PART_COLOUR.get(turns[0].of or "", INK)
    step, turn, error = (evidence[key] for key in ("step", "turn_deg", "error_deg"))
    reach = np.where(np.isfinite(error), NORMAL_95 * error, np.nan)
    known = np.where(reach <= MAX_REACH, reach, np.nan)
    low, high = np.clip(turn - known, 0, 180), np.clip(turn + known, 0, 180)
    hover = "step %{x}<br>turn %{customdata[0]:.0f}° ± %{customdata[1]:.0f}°<extra></extra>"
    line = go.Scatter(x=step, y=np.maximum(turn, 0), customdata=np.stack([turn, reach], 1), mode="lines")
    null = go.Scatter(x=[None], y=[None], mode="markers", name=f"null: {MIN_TURN:.0f}° or less")
    null.update(marker={"symbol": "square", "size": 11, "color": fade(MUTED, 0.3)})
    figure.add_trace(ribbon(step, low, high, colour, "95% interval"), **where)
    figure.add_trace(line.update(name="turn", line_color=colour, hovertemplate=hover), **where)
    figure.add_trace(null, **where)
    figure.add_hrect(0, MIN_TURN, fillcolor=fade(MUTED, 0.18), line_width=0, layer="below", **where)
    for number, transition in enumerate(turns if alone else ()):
        angle = "" if transition.angle_deg is None else f"<br>{transition.angle_deg:.0f}° in all"
        at = "" if transition.step is None else f"step {transition.step:.0f}"
        mark_step(figure, transition, colour, at + angle, where, below=number)
    tested = _draw_windows(figure, turns, where)
    top = max(float(np.nanmax(drawn, initial=50)) for drawn in (turn, high, tested))
    figure.update_yaxes(range=[0, min((1.25 if alone else 1.05) * top, 185)], **where)
    figure.update_xaxes(range=[step[0], step[-1]], **where)


def _draw_windows(figure: go.Figure, turns: Sequence[Transition], where: dict[str, int]) -> Float[np.ndarray, " turn"]:
    """The window in which each turn was tested, and the turn through it; the upper ends of their intervals."""
    windows = np.array([turn.evidence["window"] for turn in turns if "window" in turn.evidence]).reshape(-1, 6)
    centre, first, last, turn, error, _ = windows.T
    if not len(windows):
        return np.empty(0)
    hover = "tested window: steps %{customdata[0]:.0f} to %{customdata[1]:.0f}<br>turn %{y:.0f}°<extra></extra>"
    marks = go.Scatter(x=centre, y=turn, customdata=windows[:, 1:3], mode="markers", name="tested window")
    style, half = {"color": INK, "thickness": 1, "width": 3}, NORMAL_95 * error
    marks.update(
        marker={"symbol": "diamond", "size": 7, "color": INK},
        error_x=error_bars(centre, first, last, **style),
        error_y={**style, "array": half},
        hovertemplate=hover,
    )
    figure.add_trace(marks, **where)
    return np.asarray(turn + half)


def draw_turning(
    figure: go.Figure,
    path: AdapterTrajectory,
    spacings: Sequence[int] = SPACINGS,
    of: Matrix = "B",
    site: str | None = None,
    row: int | None = None,
    col: int | None = None,
) -> pd.DataFrame:
    """Turning angles with their null bands into a panel of a figure; returns the numbers drawn."""
    drawn = _draw_spacings(figure, path, path.gram(of, site), spacings, lambda angle: angle, "%{y:.0f}°", row, col)
    figure.update_yaxes(title_text="Turning angle<br>(degrees)", rangemode="tozero", **place(row, col))
    return drawn


def _draw_spacings(
    figure: go.Figure,
    path: AdapterTrajectory,
    gram: Float[np.ndarray, "step step"],
    spacings: Sequence[int],
    scale: Callable[[np.ndarray], np.ndarray],
    form: str,
    row: int | None = None,
    col: int | None = None,
) -> pd.DataFrame:
    """A line and a null band for each spacing; `scale` takes angles to the y axis. Returns the numbers, in degrees."""
    where, tables = place(row, col), []
    shades = sample_colorscale("Blues", np.linspace(0.4, 1, len(spacings)).tolist(), colortype="rgb")
    for k, shade, dash in zip(spacings, shades, cycle(DASHES)):
        angle = geometry.turning_angle(gram, path.steps, k)
        if np.isnan(angle).all():
            continue
        low, high = straight_angles(gram, path.steps, k)
        tables.append(
            pd.DataFrame({"k": k, "step": path.steps, "angle_deg": angle, "null_low": low, "null_high": high})
        )
        colour = "#" + "".join(f"{int(part):02x}" for part in shade.removeprefix("rgb(").removesuffix(")").split(","))
        name = f"k = {k} steps"
        band = ribbon(path.steps, scale(low), scale(high), colour, f"null, k = {k}", showlegend=False)
        figure.add_trace(band.update(legendgroup=name), **where)
        hover = f"step %{{x}}<br>{form} at k = {k}<extra></extra>"
        line = go.Scatter(x=path.steps, y=scale(angle), mode="lines", hovertemplate=hover, connectgaps=False)
        line.update(line={"color": colour, "width": 1.6, "dash": dash}, name=name, legendgroup=name)
        figure.add_trace(line, **where)
    if not tables:
        note(figure, f"No steps were saved {', '.join(map(str, spacings))} steps apart.", where)
        return pd.DataFrame(columns=["k", "step", "angle_deg", "null_low", "null_high"])
    return pd.concat(tables, ignore_index=True)


def _spacings(k: int | Sequence[int]) -> tuple[int, ...]:
    """The spacings. Raises InputError for none, and for one that is no whole number of steps."""
    spacings = as_list(k)
    if not spacings or not all(isinstance(spacing, (int, np.integer)) and spacing > 0 for spacing in spacings):
        raise InputError(f"k is one or several spacings in training steps, such as [5, 10, 15]; found {k!r}")
    return tuple(map(int, spacings))


def _paper_cosine(angle_deg: np.ndarray) -> np.ndarray:
    """The local cosine in the paper's sign, of an angle between two moves."""
    return np.asarray(-np.cos(np.radians(angle_deg)))


def _mark_heuristic(figure: go.Figure, named: Mapping[int, tuple[int | None, float]]) -> None:
    """A triangle at each arg-max; the step it names is in the subtitle and at the mark."""
    marks = [(step, cosine, k) for k, (step, cosine) in named.items() if step is not None]
    if not marks:
        return
    x, y, spacings = zip(*marks, strict=True)
    hover = "arg-max at k = %{customdata}: step %{x}<extra></extra>"
    name = f"arg-max heuristic: step {', '.join(map(str, dict.fromkeys(x)))}"
    mark = go.Scatter(x=x, y=y, customdata=spacings, mode="markers", hovertemplate=hover, name=name)
    style = {"symbol": "triangle-down", "size": 11, "color": VERMILLION, "line": {"color": "white", "width": 1}}
    figure.add_trace(mark.update(marker=style, cliponaxis=False))


def _compared(named: Mapping[int, tuple[int | None, float]], test: Transition) -> str:
    """The two answers in words."""
    steps = [f"{step} at k = {k}" for k, (step, _) in named.items() if step is not None]
    heuristic = f"names step {', '.join(steps)}" if steps else "names none: no such neighbours were saved"
    return (
        f"Triangles: the published heuristic, the arg-max, {heuristic}. {ALWAYS_NAMES}. "
        f"The rotation test: {verdict_text(test).lower()}. Bands: a straight path with this run's speed and noise, 95%."
    )
