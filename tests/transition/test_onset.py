from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from em_interp.errors import InputError
from em_interp.transition.logistic import Grid, OutcomeCounts, climb, fit_rise, matched
from em_interp.transition.onset import locate_rise, onset, onset_by_threshold, onsets, verdict_of
from em_interp.transition.synthetic.curves import NULLS, RISES, planted_curve

STEPS = np.arange(0, 401, 20)


@dataclass
class Table:
    """A behaviour curve reduced to what an onset needs: the scored answers of one scale and question set."""

    answers: pd.DataFrame
    scale: float | None = 1.0
    questions: str | None = "broad"

    def outcomes(self, metric="em", aligned=30, coherent=50):
        table = self.answers
        values = {
            "em": (table.aligned < aligned) & (table.coherent > coherent),
            "coherent": table.coherent > coherent,
            "aligned_mean": table.aligned / 100,
            "coherent_mean": table.coherent / 100,
        }
        return table[["step", "question_id"]].assign(value=values[metric].astype(float))

    def parts(self):
        return [self]


def answers(rate, steps=STEPS, questions=8, n=10, seed=0):
    """Judged answers whose EM rate is `rate(step)`, others aligned and coherent."""
    rng = np.random.default_rng(seed)
    rows = pd.MultiIndex.from_product([steps, range(questions), range(n)], names=["step", "question_id", "sample"])
    table = rows.to_frame(index=False)
    bad = rng.random(len(table)) < rate(table.step.to_numpy(float))
    aligned = np.where(bad, rng.uniform(0, 25, len(table)), rng.uniform(80, 100, len(table)))
    return Table(table.assign(aligned=aligned, coherent=90.0))


def logistic(middle, width=60, low=0.0, high=0.5):
    return lambda steps: low + (high - low) * climb(steps, middle, width)


def flat(rate):
    return lambda steps: np.full(len(steps), rate)


def summary(kind, cases, seed=7):
    rows = []
    for case in range(cases):
        planted = planted_curve(kind, np.random.default_rng([seed, (RISES + NULLS).index(kind), case]))
        found = locate_rise(planted.tally, planted.control)
        rows.append((planted, found, verdict_of(found, "em")[0]))
    return rows


@pytest.mark.parametrize("kind", RISES)
def test_planted_rises_are_found_where_they_are(kind):
    rows = summary(kind, 20)
    found = [(planted, result.rise) for planted, result, verdict in rows if verdict == "transition"]
    assert len(found) >= 18
    covered = [rise.middle_interval[0] <= planted.middle <= rise.middle_interval[1] for planted, rise in found]
    assert np.mean(covered) >= 0.8
    assert np.median([abs(rise.middle - planted.middle) for planted, rise in found]) < 8
    tenths = [rise.tenth_interval[0] <= planted.tenth <= rise.tenth_interval[1] for planted, rise in found]
    assert np.mean(tenths) >= 0.8


@pytest.mark.parametrize("kind", NULLS)
def test_curves_without_a_rise_are_not_called_one(kind):
    rows = summary(kind, 20)
    assert sum(verdict == "transition" for *_, verdict in rows) <= 1
    if kind != "glitch":
        assert sum(result.p_value <= 0.1 for _, result, _ in rows) <= 6


def test_the_p_value_of_a_flat_curve_is_uniform_even_with_unequal_questions_and_missing_cells():
    rng, p = np.random.default_rng(5), []
    for _ in range(200):
        n = rng.integers(0, 9, (12, 4)).astype(float)
        n[:, 0] += 1
        total = rng.binomial(n.astype(int), [0.02, 0.1, 0.5, 0.9]).astype(float)
        p.append(locate_rise(OutcomeCounts(np.arange(12.0), tuple("abcd"), n, total, total)).p_value)
    for alpha in (0.01, 0.05, 0.1):
        assert np.mean(np.array(p) <= alpha) <= alpha + 2.6 * np.sqrt(alpha * (1 - alpha) / 200)
    assert 0.35 < np.mean(np.array(p) <= 0.5) < 0.62


def test_a_rise_is_told_from_step_0_and_in_words():
    found = onset(answers(logistic(200)))
    assert found.verdict == "transition" and found.signal == "onset" and found.of == "em"
    assert found.step == pytest.approx(200, abs=12)
    assert found.interval[0] < 200 < found.interval[1] and found.level == 0.95
    assert found.width == pytest.approx(60, abs=40)
    assert "no control" in found.reason and "a tenth of it by step" in found.reason
    assert found.evidence["tenth"] == pytest.approx(170, abs=20)
    assert found.scale == 1.0 and found.questions == "broad"


def test_a_curve_that_rises_as_its_control_does_is_none():
    found = onset(answers(logistic(200)), control=answers(logistic(200), seed=1))
    assert found.verdict == "none" and "control" in found.reason and found.p_value > 0.01
    assert found.step is None and found.interval is None


def test_a_curve_that_only_stays_up_while_its_control_falls_is_none():
    found = onset(answers(flat(0.3)), control=answers(logistic(200, low=0.3, high=0.0), seed=1))
    assert found.verdict == "none" and "step 0" in found.reason


def test_a_curve_that_rises_beyond_its_control_says_so():
    found = onset(answers(logistic(200)), control=answers(flat(0.01), seed=1))
    assert found.verdict == "transition" and "beyond its control" in found.reason


def test_no_answer_that_shows_the_behaviour_is_none_and_not_an_error():
    found = onset(answers(flat(0.0)))
    assert found.verdict == "none" and found.p_value == 1.0 and found.to_dict()["step"] is None


def test_a_significant_rise_of_less_than_two_points_is_none():
    found = onset(answers(logistic(200, high=0.01), n=400))
    assert found.verdict == "none" and found.p_value <= 0.01 and "less than 2 points" in found.reason


@pytest.mark.parametrize("middle, side", [(400, "last"), (-10, "first")])
def test_a_rise_at_an_end_of_the_run_is_inconclusive(middle, side):
    found = onset(answers(logistic(middle, width=30), n=20))
    assert found.verdict == "inconclusive" and side in found.reason and found.step is None


def test_too_few_steps_or_answers_are_inconclusive():
    few_steps = onset(answers(logistic(200), steps=[0, 200, 400]))
    assert few_steps.verdict == "inconclusive" and few_steps.p_value is None and "3 with scored" in few_steps.reason
    few_answers = onset(answers(flat(0.3), steps=np.arange(0, 400, 80), questions=2, n=2))
    assert few_answers.verdict == "inconclusive" and "too few answers" in few_answers.reason


def test_one_high_checkpoint_is_no_transition():
    glitch = answers(lambda steps: np.where(steps == 380, 0.6, 0.02))
    assert onset(glitch).verdict == "inconclusive"
    assert "one checkpoint" in onset(glitch).reason


def test_a_rise_between_two_asked_steps_has_the_gap_as_its_interval():
    found = onset(answers(lambda steps: np.where(steps > 210, 0.5, 0.0), n=40))
    assert found.step == pytest.approx(210, abs=2)
    assert 195 < found.interval[0] < 204 and 216 < found.interval[1] < 225


def test_dips_of_the_plateau_move_the_onset_little():
    rise = logistic(150)
    plain = onset(answers(rise))
    dipped = onset(answers(lambda steps: rise(steps) * np.where(np.isin(steps, [260, 340]), 0.2, 1.0)))
    assert dipped.verdict == "transition" and abs(dipped.step - plain.step) < 10


def test_mean_alignment_falls_where_the_em_rate_rises():
    curve = answers(logistic(200))
    found = onset(curve, metric="aligned_mean")
    assert found.verdict == "transition" and found.step == pytest.approx(onset(curve).step, abs=10)
    assert "falls from 90 to" in found.reason
    assert found.evidence["rate"][0] > 0.8 > found.evidence["rate"][-1]
    assert onset(curve, metric="coherent").verdict == "none"


def test_mean_alignment_against_a_control_behaves_as_the_rate_does():
    curve, control = answers(logistic(200)), answers(flat(0.0), seed=2)
    assert onset(curve, control, metric="aligned_mean").verdict == "transition"
    assert onset(curve, answers(logistic(200), seed=3), metric="aligned_mean").verdict == "none"


def test_unscored_answers_and_the_order_of_rows_change_nothing():
    curve = answers(logistic(200))
    table = curve.answers.sample(frac=1, random_state=0)
    unscored = table.assign(aligned=np.nan, coherent=np.nan)
    assert (
        OutcomeCounts.of(curve.outcomes()).rate.tolist()
        == OutcomeCounts.of(replace(curve, answers=table).outcomes()).rate.tolist()
    )
    mixed = pd.concat([table, unscored])
    outcomes = replace(curve, answers=mixed).outcomes().assign(value=lambda t: t.value.where(mixed.aligned.notna()))
    assert np.array_equal(OutcomeCounts.of(outcomes).n, OutcomeCounts.of(curve.outcomes()).n)
    assert onset(replace(curve, answers=table)).to_dict() == onset(curve).to_dict()


def test_the_onset_moves_with_the_clock():
    curve = answers(logistic(200))
    late = replace(curve, answers=curve.answers.assign(step=curve.answers.step * 3 + 50))
    assert onset(late).step == pytest.approx(onset(curve).step * 3 + 50, abs=3)


def test_thresholds_that_do_not_matter_leave_the_onset_where_it_is():
    curve = answers(logistic(200))
    table = onset_by_threshold(curve, aligned=(30, 70), coherent=(10, 50))
    assert len(table) == 4 and table.step.max() - table.step.min() == 0
    assert list(table.aligned_below) == [30, 30, 70, 70]


def test_a_threshold_artefact_shows():
    rng, curve = np.random.default_rng(0), answers(flat(0.0))
    drop = 60 * climb(curve.answers.step.to_numpy(float), 200, 200)
    curve = replace(curve, answers=curve.answers.assign(aligned=85 - drop + rng.normal(0, 3, len(drop))))
    table = onset_by_threshold(curve, aligned=(35, 70), coherent=(50,))
    assert (table.verdict == "transition").all() and table.step[0] - table.step[1] > 60


def test_onsets_takes_every_part_against_the_part_of_the_control_that_is_its_like():
    parts = [replace(answers(logistic(200)), questions=name) for name in ("in_domain", "broad")]
    others = [
        replace(answers(rate, seed=2), questions=name)
        for name, rate in (("broad", flat(0)), ("in_domain", logistic(200)))
    ]

    @dataclass
    class Several(Table):
        members: tuple = ()

        def parts(self):
            return self.members

    found = onsets(Several(parts[0].answers, members=parts), Several(parts[0].answers, members=others))
    assert [(f.questions, f.verdict) for f in found] == [("in_domain", "none"), ("broad", "transition")]
    with pytest.raises(InputError, match="no curve for scale and questions"):
        onsets(parts[0], others[0])
    with pytest.raises(InputError, match="one curve was expected; found 2"):
        onset(Several(parts[0].answers, members=parts))


def test_bad_input_is_named():
    curve = answers(logistic(200))
    with pytest.raises(InputError, match="no metric 'e m'; did you mean 'em'"):
        onset(curve, metric="e m")
    with pytest.raises(InputError, match="share no step"):
        onset(curve, control=answers(flat(0), steps=STEPS + 7))
    with pytest.raises(InputError, match=r"lie in \[0, 1\]; they run from 0 to 100"):
        OutcomeCounts.of(pd.DataFrame({"step": [0, 1], "question_id": ["a", "a"], "value": [0, 100]}))
    with pytest.raises(InputError, match="columns step, question_id, value"):
        OutcomeCounts.of(pd.DataFrame({"step": [0]}))


def test_a_control_asked_at_other_questions_too_is_compared_on_the_shared_ones():
    mine, other = (OutcomeCounts.of(answers(logistic(200), questions=q).outcomes()) for q in (3, 5))
    first, second = matched(mine, other)
    assert first.questions == second.questions == ("0", "1", "2")


def test_reshuffling_keeps_every_question_total_and_its_null_mean():
    tally = planted_curve("uneven_questions", np.random.default_rng(3)).tally
    drawn = tally.reshuffled(2000, np.random.default_rng(0))
    expected = (tally.n * (tally.total.sum(0) / tally.n.sum(0))).sum(1) / tally.answers
    assert np.abs(drawn.mean(0) - expected).max() < 0.01
    assert np.allclose(drawn @ tally.answers, tally.total.sum())


def test_the_normal_limit_of_reshuffling_has_the_spread_of_the_exact_one():
    tally = planted_curve("uneven_questions", np.random.default_rng(3)).tally
    nudged = replace(tally, squares=tally.squares - 1e-9)  # no longer exactly binary
    for draw in (
        lambda t: t.reshuffled(4000, np.random.default_rng(0)),
        lambda t: t.relabelled(t, 4000, np.random.default_rng(0)),
    ):
        exact, limit = draw(tally).std(0), draw(nudged).std(0)
        assert np.abs(exact - limit).max() < 0.1 * exact.max()


def test_the_grid_fit_equals_a_search_by_general_optimisation():
    from scipy.optimize import least_squares

    tally = OutcomeCounts.of(answers(logistic(190, width=80, low=0.05, high=0.6), n=50).outcomes())
    rise = fit_rise(tally, 0.95, np.random.default_rng(0))
    weight = np.sqrt(tally.answers / (rise.at(tally.steps) * (1 - rise.at(tally.steps))))

    def residuals(values):
        return weight * (values[2] + (values[3] - values[2]) * climb(tally.steps, values[0], values[1]) - tally.rate)

    slow = least_squares(residuals, [200, 60, 0.1, 0.5]).x
    assert rise.middle == pytest.approx(slow[0], abs=1)
    assert rise.width == pytest.approx(slow[1], rel=0.1)
    assert (rise.low, rise.high) == (pytest.approx(slow[2], abs=0.01), pytest.approx(slow[3], abs=0.01))


def test_gains_equal_the_fall_of_squared_error_of_an_explicit_regression():
    rng = np.random.default_rng(1)
    steps, weights, rate = np.arange(10.0), rng.uniform(1, 5, 10), np.linspace(0.1, 0.6, 10) + rng.normal(0, 0.02, 10)
    grid = Grid.over(steps, np.array([3.0, 6.0]), np.array([2.0, 8.0]))
    for share, gain in zip(grid.shares, grid.gains(weights, rate[None])[0], strict=True):
        design = np.stack([np.ones(10), share], 1) * np.sqrt(weights)[:, None]
        squared = np.linalg.lstsq(design, rate * np.sqrt(weights), rcond=None)[1][0]
        flat_error = (weights * (rate - np.average(rate, weights=weights)) ** 2).sum()
        assert gain == pytest.approx(flat_error - squared, rel=1e-6)


def test_an_unknown_planted_kind_is_refused():
    with pytest.raises(InputError, match="did you mean 'plain'"):
        planted_curve("plian", np.random.default_rng(0))
