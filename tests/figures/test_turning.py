"""Turning angles, the local cosine and the rotation test: a turn is marked where it was planted, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.trajectory.geometry import local_cosine
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.direction.local_cosine import largest_local_cosine
from tests.figures.planting import LAST, TURN
from tests.figures.reading import bands, lines, texts, trace


def near(step, wanted, within=3):
    return abs(step - wanted) <= within


def test_a_turn_is_marked_where_it_was_planted(organism):
    turns = [t for t in organism.transitions if t.signal == "rotation" and t.of == "B"]
    for figure in (em.figures.rotation(turns), em.figures.turning_angle(organism.trajectory, transitions=turns)):
        assert all(near(step, TURN) for step in lines(figure))
        assert lines(figure)
        assert all(low - 1 <= TURN <= high + 1 for low, high in bands(figure))
        assert "90°" in texts(figure)


def test_a_step_is_drawn_on_the_ramp_that_it_is_the_middle_of_and_no_interval_is_clipped(organism):
    turns = [t for t in organism.transitions if t.signal == "rotation" and t.of == "B"]
    figure = em.figures.rotation(turns)
    ramp, heading, band = (trace(figure, name) for name in ("fitted ramp", "heading", "95% interval"))
    middle = (ramp.y[0] + ramp.y[-1]) / 2
    assert near(np.interp(middle, ramp.y, ramp.x), turns[0].step, within=8)
    assert np.median(np.abs(np.asarray(heading.y) - ramp.y)) < 10
    assert np.nanmax(np.asarray(band.y, float)) <= figure.layout.yaxis2.range[1]


def test_where_nothing_turns_nothing_is_marked(control):
    turns = [t for t in control.transitions if t.signal == "rotation" and t.of == "B"]
    assert lines(em.figures.rotation(turns)) == []
    assert "turn at" not in texts(em.figures.pca(control.trajectory, transitions=control.transitions))
    assert not [s for s in em.figures.behaviour(control.curve, None, control.onsets).data if s.name == "onset"]


def test_turning_angles_lie_in_the_null_band_but_for_the_turn(organism):
    figure = em.figures.turning_angle(organism.trajectory)
    line = trace(figure, "k = 10 steps")
    band = trace(figure, "null, k = 10")
    low, high = np.full(LAST + 1, np.inf), np.full(LAST + 1, -np.inf)
    for x, y in zip(band.x, band.y, strict=True):
        if np.isfinite(x):
            low[int(x)], high[int(x)] = min(low[int(x)], y), max(high[int(x)], y)
    angle, steps = np.asarray(line.y, float), np.asarray(line.x)
    straight = np.isfinite(angle) & (np.abs(steps - TURN) > 20)
    inside = (low[straight] <= angle[straight]) & (angle[straight] <= high[straight])
    assert 0.85 < inside.mean() < 1
    assert angle[TURN] > high[TURN] + 30


@pytest.mark.parametrize(
    ("kept", "shown"),
    [
        ([*range(0, 10), *range(10, LAST + 1, 5)], {"k = 5 steps", "k = 10 steps", "k = 20 steps"}),
        (range(0, LAST + 1, 20), {"k = 20 steps"}),
        (range(0, LAST + 1, 30), set()),
    ],
)
def test_spacings_that_were_not_saved_are_left_out(organism, kept, shown):
    path, kept = organism.trajectory, list(kept)
    (site,) = path.sites
    sparse = AdapterTrajectory(path.steps[kept], {site: path.A[site][kept]}, {site: path.B[site][kept]}, path.scale)
    figure = em.figures.turning_angle(sparse)
    assert {t.name for t in figure.data if t.name and t.name.startswith("k =")} == shown
    assert ("No steps were saved" in texts(figure)) == (not shown)


def test_labels_of_two_turns_stand_under_one_another_and_outside_the_intervals(organism):
    (turn, *_) = [t for t in organism.transitions if t.signal == "rotation" and t.of == "B"]
    later = replace(turn, step=turn.step + 30, interval=(turn.step + 25, turn.step + 35))
    labels = [a for a in em.figures.rotation([turn, later]).layout.annotations if a.text.startswith("step")]
    assert labels[0].yshift - labels[1].yshift >= 30
    for label, found in zip(labels, (turn, later), strict=True):
        low, high = found.interval
        assert label.x == (high if label.xanchor == "left" else low)


def test_rotations_of_different_parts_are_not_drawn_into_one_figure(organism):
    turns = [t for t in organism.transitions if t.signal == "rotation"]
    with pytest.raises(InputError, match="rotations of one part"):
        em.figures.rotation(turns)


def test_the_local_cosine_is_the_papers_and_its_heuristic_names_the_largest(organism):
    path, turn = organism.trajectory, organism.rotation
    figure = em.figures.local_cosine(path, k=[5, 10], transition=turn)
    drawn = trace(figure, "k = 10 steps")
    np.testing.assert_allclose(drawn.y, local_cosine(path.gram("B"), path.steps, 10), atol=1e-9)
    marks = next(t for t in figure.data if t.name and t.name.startswith("arg-max"))
    assert list(marks.x) == [largest_local_cosine(path.gram("B"), path.steps, k)[0] for k in (5, 10)]
    assert lines(figure) == [turn.step] and bands(figure) == [turn.interval]
    subtitle = figure.layout.meta["subtitle"]
    assert f"names step {marks.x[0]} at k = 5, {marks.x[1]} at k = 10" in subtitle
    assert f"The rotation test: transition at step {turn.step:.0f} (95% interval" in subtitle


def test_the_heuristic_names_a_step_where_nothing_turns_and_the_test_does_not(control):
    figure = em.figures.local_cosine(control.run.path)
    drawn = [t.name for t in figure.data if t.name and t.name.startswith("k =")]
    assert drawn == [f"k = {k} steps" for k in (5, 10, 15)]
    marks = next(t for t in figure.data if t.name and t.name.startswith("arg-max"))
    assert len(marks.x) == 3 and all(0 < step < LAST for step in marks.x)
    assert lines(figure) == [] and "rotation test: none" in texts(figure)
    assert "It names a step on every path" in figure.layout.meta["subtitle"]


def test_the_numbers_of_the_local_cosine_have_the_angle_and_its_null(organism):
    table = em.figures.numbers(em.figures.local_cosine(organism.trajectory, k=10, transition=organism.rotation))
    assert set(table["k"]) == {10} and len(table) == LAST + 1
    known = table.dropna()
    np.testing.assert_allclose(known["local_cosine"], -np.cos(np.radians(known["angle_deg"])), atol=1e-9)
    assert (known["null_low"] < known["null_high"]).all()


@pytest.mark.parametrize("k", [[], 0, -5, 2.5, "10", None])
def test_a_spacing_that_is_no_number_of_steps_is_refused(k, organism):
    for draw in (em.figures.local_cosine, em.figures.turning_angle):
        with pytest.raises(InputError, match="k is one or several spacings in training steps"):
            draw(organism.trajectory, k=k)


def test_figures_of_a_path_take_a_run_or_its_folder(organism):
    given = (organism.trajectory, organism.run, organism.run.path, str(organism.run.path))
    for draw in (em.figures.norms, em.figures.pca, em.figures.turning_angle, em.figures.training_log):
        assert len({draw(path).to_json() for path in given}) == 1
