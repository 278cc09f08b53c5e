"""What was planted is marked where it was planted, and nothing else is."""

from dataclasses import replace

import numpy as np
import pytest

import em_interp as em
from em_interp.trajectory.geometry import principal_components
from em_interp.trajectory.trajectory import AdapterTrajectory
from tests.figures.planting import CHANGE, LAST, ONSET, RATES, TURN
from tests.figures.reading import bands, lines, texts, trace, values


def near(step, wanted, within=3):
    return abs(step - wanted) <= within


def test_a_turn_is_marked_where_it_was_planted(organism):
    turns = [t for t in organism.transitions if t.signal == "rotation" and t.of == "B"]
    for figure in (em.figures.rotation(turns), em.figures.turning_angle(organism.trajectory, transitions=turns)):
        assert all(near(step, TURN) for step in lines(figure))
        assert lines(figure)
        assert all(low - 1 <= TURN <= high + 1 for low, high in bands(figure))
        assert "90°" in texts(figure)


def test_the_ring_on_the_path_is_at_the_turn(organism):
    path = organism.trajectory
    figure = em.figures.pca(path, transitions=organism.transitions)
    (ring,) = [t for t in figure.data if t.text is not None and "turn" in t.text[0]]
    corner = principal_components(path.gram("B")).scores[TURN]
    assert np.hypot(ring.x[0] - corner[0], ring.y[0] - corner[1]) < 0.02
    assert figure.layout.yaxis.scaleanchor == "x"  # angles are what they look like


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


def test_the_norms_drawn_are_those_of_the_vectors(organism):
    figure = em.figures.norms(organism.trajectory)
    B = organism.trajectory.vectors("B")
    np.testing.assert_allclose(trace(figure, "‖B‖").y, np.linalg.norm(B, axis=1), rtol=1e-5)
    A = organism.trajectory.vectors("A")
    scale = next(iter(organism.trajectory.scale.values()))
    wanted = scale * np.linalg.norm(A, axis=1) * np.linalg.norm(B, axis=1)
    np.testing.assert_allclose(trace(figure, "‖ΔW‖").y, wanted, rtol=1e-5, atol=1e-6)


def test_the_hump_of_the_log_is_marked(organism, control):
    assert near(lines(em.figures.training_log(organism.trajectory, organism.transitions))[0], TURN, 8)
    assert lines(em.figures.training_log(control.trajectory, control.transitions)) == []


def test_an_onset_is_a_diamond_half_way_up(organism):
    figure = em.figures.behaviour(organism.curve, None, organism.onsets)
    steps = [t.x[0] for t in figure.data if t.name == "onset"]
    assert len(steps) == 6  # three question sets at two scales
    assert any(near(step, ONSET, 15) for step in steps)
    heights = [t.y[0] for t in figure.data if t.name == "onset"]
    assert all(15 < height < 40 for height in heights)


def test_offsets_are_arrows_from_the_turn_to_the_onset(organism):
    figure = em.figures.alignment(organism.alignment, organism.trajectory, organism.transitions)
    arrows = [a for a in figure.layout.annotations if a.showarrow]
    ends = [(a.ax, a.x) for a in arrows]
    wanted = [
        (organism.rotation.step, organism.alignment.behavioural[o.behavioural].step) for o in organism.alignment.offsets
    ]
    assert sorted(ends) == sorted(wanted)
    assert "steps later" in texts(figure)


def test_the_second_axis_tells_the_learning_rate_summed_up_to_each_step(organism):
    axes = values(em.figures.timeline(organism.transitions, organism.trajectory))["layout"]
    (axis,) = [a for key, a in axes.items() if key.startswith("xaxis") and a.get("side") == "top"]
    learned = 1e-3 * np.concatenate([[0], np.cumsum(RATES)])
    said = np.array(axis["ticktext"], float)
    np.testing.assert_allclose(said, np.linspace(0, learned[-1], 6), rtol=0.06)
    ticks = em.figures.timeline(organism.transitions, organism.trajectory).layout
    at = next(ticks[key].tickvals for key in axes if key.startswith("xaxis") and axes[key].get("side") == "top")
    np.testing.assert_allclose(np.interp(at, np.arange(LAST + 1), learned), np.linspace(0, learned[-1], 6), rtol=1e-6)


def test_a_known_change_is_a_dashed_line_in_every_panel_and_a_lane_in_words(organism):
    figure = em.figures.timeline(organism.transitions, organism.trajectory, planted={CHANGE: "new data"})
    assert lines(figure).count(CHANGE) == 2  # the log and the lanes; these transitions have no onset
    assert "step 100, new data" in texts(figure)


def test_without_a_log_the_time_axis_has_steps_alone(bare):
    figure = em.figures.timeline(bare.transitions, bare.trajectory)
    assert not [
        key for key, a in values(figure)["layout"].items() if key.startswith("xaxis") and a.get("side") == "top"
    ]
    assert figure.layout.xaxis.title.text == "Training step"


def test_several_sites_are_drawn_together_or_one_by_one(organism):
    one = organism.trajectory
    (site,) = one.sites
    other = site.replace("2", "3")
    both = AdapterTrajectory(
        one.steps,
        {site: one.A[site], other: one.A[site]},
        {site: one.B[site], other: 2 * one.B[site]},
        {site: one.scale[site], other: one.scale[site]},
    )
    together = em.figures.norms(both)
    assert "2 sites together" in together.layout.title.subtitle.text
    np.testing.assert_allclose(trace(together, "‖B‖").y, np.sqrt(5) * trace(em.figures.norms(one), "‖B‖").y)
    alone = em.figures.trajectory(both, site=other)
    np.testing.assert_allclose(trace(alone, "‖B‖").y, 2 * trace(em.figures.norms(one), "‖B‖").y)
    assert other in alone.layout.title.subtitle.text


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


def test_a_label_on_a_path_is_clear_of_it_and_of_the_frame(organism):
    figure = em.figures.pca(organism.trajectory, transitions=organism.transitions)
    scores = principal_components(organism.trajectory.gram("B")).scores
    size = np.ptp(scores)
    (low, high), labels = figure.layout.xaxis.range, [t for t in figure.data if t.text is not None]
    assert len(labels) == 2
    for label in labels:
        vertical, horizontal = label.textposition.split()
        middle = np.array([label.x[0], label.y[0]])
        middle += size * 0.1 * np.array([("left", "center", "right").index(horizontal) - 1, 0])
        middle += size * 0.05 * np.array([0, ("bottom", "middle", "top").index(vertical) - 1])
        away = np.abs(scores - middle) / size
        assert np.maximum(away[:, 0] / 0.09, away[:, 1] / 0.02).min() > 0.9
        assert low < middle[0] - 0.09 * size and middle[0] + 0.09 * size < high


def test_the_rates_on_the_time_axis_have_their_intervals(organism):
    onset = next(t for t in organism.onsets if t.questions == "in_domain" and t.scale == 1)
    figure = em.figures.timeline([onset])
    band, line = trace(figure, "95% interval"), trace(figure, "in domain")
    half = len(line.y)
    high, low = np.array(band.y[:half]), np.array(band.y[half : 2 * half])[::-1]
    inside = np.array(line.y)
    assert (low <= inside).all() and (inside <= high).all() and (high - low > 5).all()
