"""The family-wise statement about a run's declared transitions."""

from dataclasses import replace

import numpy as np
import pytest

from em_interp.transition.align import align
from em_interp.transition.direction.rotation import locate_rotations, strongest
from em_interp.transition.family import FAMILY_LEVEL, family_wise, holm
from em_interp.transition.onsets.onset import locate_rise, verdict_of
from em_interp.transition.result import Transition
from em_interp.transition.synthetic.curves import planted_curve
from em_interp.transition.synthetic.paths import NOT_TURNING, planted_path


def rotation(p_value=0.001, of="B", verdict="transition"):
    return Transition(
        "rotation", verdict, "as planted", of=of, step=100.0, interval=(95, 105), level=0.95, p_value=p_value
    )


def onset(p_value=0.001, questions="out_of_domain", scale=1.0, verdict="transition"):
    return Transition(
        "onset", verdict, "as planted", of="em", step=150.0, p_value=p_value, scale=scale, questions=questions
    )


def test_the_rotation_and_the_onset_out_of_domain_are_declared_and_nothing_else():
    rest = [onset(questions="broad"), onset(scale=2.0), onset(questions="in_domain")]
    family = align(rotation(), [*rest, onset()]).family
    assert family.declared == (rotation(), onset())
    assert align(rotation(), rest).family.declared == (rotation(), onset(questions="broad"))


def test_the_adjusted_p_values_are_holms_and_an_undefined_one_counts():
    found = family_wise([rotation(0.02), onset(0.03)])
    assert found.adjusted == pytest.approx((0.04, 0.04)) and found.p_value == pytest.approx(0.04)
    assert all(found.holds(t) for t in found.declared)
    open_ = family_wise([rotation(None, verdict="inconclusive"), onset(0.03)])
    assert open_.adjusted == (1.0, 0.06)
    assert not any(open_.holds(t) for t in open_.declared)
    assert list(found.frame()["adjusted_p"]) == list(found.adjusted)


def test_what_is_not_found_is_not_held_at_the_family_wise_level():
    found = family_wise([rotation(0.001, verdict="none"), onset(0.001)])
    assert [found.holds(t) for t in found.declared] == [False, True]
    assert "1 of 2 declared transitions" in found.sentence()


def test_the_alignments_json_names_the_declared_and_the_family_wise_p():
    values = align(rotation(0.01), [onset(0.03), onset(0.001, questions="broad")]).to_dict()
    assert [row["signal"] for row in values["declared"]] == ["rotation", "onset"]
    assert values["declared"][1]["questions"] == "out_of_domain"
    assert values["family_wise_p"] == pytest.approx(0.02)


@pytest.mark.parametrize("dependence", [0.0, 0.9, 1.0])
def test_of_a_thousand_runs_without_a_transition_five_percent_get_a_claim(dependence):
    """Whatever the dependence of the p-values: here a common normal score beside their own."""
    from scipy.stats import norm

    rng = np.random.default_rng(0)
    common, own = rng.standard_normal((1000, 1)), rng.standard_normal((1000, 2))
    p_values = norm.sf(np.sqrt(dependence) * common + np.sqrt(1 - dependence) * own)
    claims = np.mean([family_wise([rotation(p), onset(q)]).p_value <= FAMILY_LEVEL for p, q in p_values])
    assert claims <= FAMILY_LEVEL + 2.6 * np.sqrt(FAMILY_LEVEL * (1 - FAMILY_LEVEL) / 1000)
    assert all(holm(p).min() >= p.min() for p in p_values)


def test_planted_runs_without_a_transition_get_a_claim_as_seldom():
    claims = 0
    for seed in range(36):
        path = planted_path(NOT_TURNING[seed % len(NOT_TURNING)], 900 + seed)
        turn = strongest(locate_rotations(path.gram, path.steps, path.cumulative_lr))
        curve = planted_curve("flat" if seed % 2 else "uneven_flat", 900 + seed)
        found = locate_rise(curve.counts, None)
        verdict, reason = verdict_of(found, "em")
        rise = Transition("onset", verdict, reason, of="em", p_value=found.p_value, questions="broad")
        family = family_wise([replace(turn, of="B"), rise])
        claims += any(family.holds(t) for t in family.declared)
    assert claims <= 3


def test_holms_adjustment_is_the_textbooks():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.9, 0.8])).max() == 1
