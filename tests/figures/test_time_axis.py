"""Transitions, behaviour and the log on one time axis."""

from dataclasses import replace

import numpy as np

import em_interp as em
from em_interp.transition.onsets.onset import onset
from tests.figures.planting import CHANGE, LAST, RATES
from tests.figures.reading import lines, texts, trace, values


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
    figure = em.figures.timeline(organism.transitions, organism.trajectory, known_changes={CHANGE: "new data"})
    assert lines(figure).count(CHANGE) == 2  # the log and the lanes; these transitions have no onset
    assert "step 100, new data" in texts(figure)


def test_without_a_log_the_time_axis_has_steps_alone(bare):
    figure = em.figures.timeline(bare.transitions, bare.trajectory)
    assert not [
        key for key, a in values(figure)["layout"].items() if key.startswith("xaxis") and a.get("side") == "top"
    ]
    assert figure.layout.xaxis.title.text == "Training step"


def test_the_rates_on_the_time_axis_have_their_intervals(organism):
    rise = next(t for t in organism.onsets if t.questions == "in_domain" and t.scale == 1)
    figure = em.figures.timeline([rise])
    band, line = trace(figure, "95% interval"), trace(figure, "in domain")
    half = len(line.y)
    high, low = np.array(band.y[:half]), np.array(band.y[half : 2 * half])[::-1]
    inside = np.array(line.y)
    assert (low <= inside).all() and (inside <= high).all() and (high - low > 5).all()


def test_the_axis_of_a_low_rate_holds_its_intervals(organism):
    rise = next(t for t in organism.onsets if t.questions == "in_domain" and t.scale == 1)
    low = replace(rise, evidence={**rise.evidence, "rate": np.full_like(rise.evidence["rate"], 0.05)})
    figure = em.figures.timeline([low])
    band = np.array(trace(figure, "95% interval").y)
    assert np.nanmax(band) > 5.2  # beyond an axis to 5 %
    assert trace(figure, "in domain").yaxis == "y"
    assert figure.layout.yaxis.range[0] < np.nanmin(band) and np.nanmax(band) < figure.layout.yaxis.range[1]


def test_one_transition_does_as_well_as_a_list_of_one(organism):
    one, path = organism.rotation, organism.trajectory
    for draw in (em.figures.timeline, lambda turns: em.figures.turning_angle(path, transitions=turns)):
        assert draw(one).to_json() == draw([one]).to_json()


def test_the_behaviour_of_a_run_is_drawn_from_its_path(organism):
    assert em.figures.behaviour(organism.run.path).to_json() == em.figures.behaviour(organism.curve).to_json()


def test_metrics_other_than_em_are_not_drawn_as_its_rate(organism):
    curve = organism.curve.split()[0]
    of_em, coherent = em.find_transition(curve), onset(curve, metric="coherent")
    drawn = [line for line in em.figures.timeline([of_em, coherent]).data if line.mode == "lines+markers"]
    assert len(drawn) == 1
    np.testing.assert_array_equal(drawn[0].y, 100 * of_em.evidence["rate"])
