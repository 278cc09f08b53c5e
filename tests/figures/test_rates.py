"""Behaviour by step: onsets half-way up the rise, and gaps where nothing was scored."""

import numpy as np

import em_interp as em
from tests.figures.planting import ONSET
from tests.figures.reading import drawn


def test_an_onset_is_a_diamond_half_way_up(organism):
    figure = em.figures.behaviour(organism.curve, None, organism.onsets)
    steps = [t.x[0] for t in figure.data if t.name == "onset"]
    assert len(steps) == 6  # three question sets at two scales
    assert any(abs(step - ONSET) <= 15 for step in steps)
    heights = [t.y[0] for t in figure.data if t.name == "onset"]
    assert all(15 < height < 40 for height in heights)


def test_a_step_without_a_scored_answer_is_a_gap(organism):
    answers = organism.curve.answers.copy()
    lost = answers["step"] == 160
    answers.loc[lost, ["aligned", "coherent"]] = np.nan
    answers.loc[lost, "status"] = "unparsed"
    figure = em.behaviour_curve(answers).plot()
    line = next(t for t in figure.data if t.name == "out of domain")
    assert np.isnan(line.y[list(line.x).index(160)])
    assert np.isfinite(line.y[list(line.x).index(176)])
    band = next(t for t in figure.data if t.name == "interval")
    assert 160 not in band.x
    assert 176 in band.x
    assert drawn(em.behaviour_curve(answers[lost]).at(160).plot())
