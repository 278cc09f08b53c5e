"""The onset of a behavioural metric, on planted curves and on judged answers."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from em_interp.errors import InputError
from em_interp.transition.onsets.logistic import OutcomeCounts, logistic
from em_interp.transition.onsets.onset import locate_rise, onset, onset_by_threshold, onsets, verdict_of
from em_interp.transition.synthetic.curves import NULLS, RISES, planted_curve
from tests.transition.judged import STEPS, Table, answers, flat, rising


def summary(kind, cases, seed=7):
    rows = []
    for case in range(cases):
        planted = planted_curve(kind, np.random.default_rng([seed, (RISES + NULLS).index(kind), case]))
        found = locate_rise(planted.counts, planted.control)
        rows.append((planted, found, verdict_of(found, "em")[0]))
    return rows


@pytest.mark.parametrize("kind", RISES)
def test_planted_rises_are_found_where_they_are(kind):
    rows = summary(kind, 20)
    found = [(planted, result.rise) for planted, result, verdict in rows if verdict == "transition"]
    assert len(found) >= 18
    covered = [rise.half_interval[0] <= planted.half <= rise.half_interval[1] for planted, rise in found]
    assert np.mean(covered) >= 0.8
    assert np.median([abs(rise.half - planted.half) for planted, rise in found]) < 8
    tenths = [rise.tenth_interval[0] <= planted.tenth <= rise.tenth_interval[1] for planted, rise in found]
    assert np.mean(tenths) >= 0.8


@pytest.mark.parametrize("kind", NULLS)
def test_curves_without_a_rise_are_not_called_one(kind):
    rows = summary(kind, 20)
    assert sum(verdict == "transition" for *_, verdict in rows) <= 1
    if kind != "glitch":
        assert sum(result.p_value <= 0.1 for _, result, _ in rows) <= 6


def test_the_p_value_of_a_flat_curve_is_uniform_even_with_unequal_questions_and_missing_questions():
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
    found = onset(answers(rising(200)))
    assert found.verdict == "transition" and found.signal == "onset" and found.of == "em"
    assert found.step == pytest.approx(200, abs=12)
    assert found.interval[0] < 200 < found.interval[1] and found.level == 0.95
    assert found.width == pytest.approx(60, abs=40)
    assert "no control" in found.reason and "a tenth of it by step" in found.reason
    assert found.evidence["tenth"] == pytest.approx(170, abs=20)
    assert found.scale == 1.0 and found.questions == "broad"


def test_a_curve_that_rises_as_its_control_does_is_none():
    found = onset(answers(rising(200)), control=answers(rising(200), seed=1))
    assert found.verdict == "none" and "control" in found.reason and found.p_value > 0.01
    assert found.step is None and found.interval is None


def test_a_curve_that_only_stays_up_while_its_control_falls_is_none():
    found = onset(answers(flat(0.3)), control=answers(rising(200, low=0.3, high=0.0), seed=1))
    assert found.verdict == "none" and "step 0" in found.reason


def test_a_curve_that_rises_beyond_its_control_says_so():
    found = onset(answers(rising(200)), control=answers(flat(0.01), seed=1))
    assert found.verdict == "transition" and "beyond its control" in found.reason


def test_no_answer_that_shows_the_behaviour_is_none_and_not_an_error():
    found = onset(answers(flat(0.0)))
    assert found.verdict == "none" and found.p_value == 1.0 and found.to_dict()["step"] is None


def test_a_significant_rise_of_less_than_two_points_is_none():
    found = onset(answers(rising(200, high=0.01), n=400))
    assert found.verdict == "none" and found.p_value <= 0.01 and "less than 2 points" in found.reason


@pytest.mark.parametrize("middle, steps, side", [(400, STEPS, "last"), (20, STEPS[1:], "first")])
def test_a_rise_at_an_end_of_the_run_is_inconclusive(middle, steps, side):
    found = onset(answers(rising(middle, width=30), steps, n=20))
    assert found.verdict == "inconclusive" and "the half-rise may lie" in found.reason and side in found.reason
    assert found.step is None


def test_a_rise_that_begins_at_step_0_is_dated_by_its_half():
    at_once = answers(lambda steps: 0.6 * (1 - np.exp2(-steps / 50)), np.arange(0, 401, 10), n=20)
    found = onset(at_once)
    assert found.verdict == "transition" and found.step == pytest.approx(50, abs=10)
    assert 0 < found.interval[0] < 50 < found.interval[1] < 75
    assert found.evidence["tenth"] == pytest.approx(50 * np.log2(1 / 0.9), abs=4)


def test_too_few_steps_or_answers_are_inconclusive():
    few_steps = onset(answers(rising(200), steps=[0, 200, 400]))
    assert few_steps.verdict == "inconclusive" and few_steps.p_value is None and "3 with scored" in few_steps.reason
    few_answers = onset(answers(flat(0.3), steps=np.arange(0, 400, 80), questions=2, n=2))
    assert few_answers.verdict == "inconclusive" and "too few answers" in few_answers.reason


def test_one_high_checkpoint_is_no_transition():
    glitch = answers(lambda steps: np.where(steps == 380, 0.6, 0.02))
    assert onset(glitch).verdict == "inconclusive"
    assert "one checkpoint" in onset(glitch).reason


def test_a_rise_between_two_sampled_steps_has_the_gap_as_its_interval():
    found = onset(answers(lambda steps: np.where(steps > 210, 0.5, 0.0), n=40))
    assert found.step == pytest.approx(210, abs=2)
    assert 195 < found.interval[0] < 204 and 216 < found.interval[1] < 225


def test_dips_of_the_plateau_move_the_onset_little():
    rise = rising(150)
    plain = onset(answers(rise))
    dipped = onset(answers(lambda steps: rise(steps) * np.where(np.isin(steps, [260, 340]), 0.2, 1.0)))
    assert dipped.verdict == "transition" and abs(dipped.step - plain.step) < 10


def test_mean_alignment_falls_where_the_em_rate_rises():
    curve = answers(rising(200))
    found = onset(curve, metric="aligned_mean")
    assert found.verdict == "transition" and found.step == pytest.approx(onset(curve).step, abs=10)
    assert "falls from 90 to" in found.reason
    assert found.evidence["rate"][0] > 0.8 > found.evidence["rate"][-1]
    assert onset(curve, metric="coherent").verdict == "none"


def test_mean_alignment_against_a_control_behaves_as_the_rate_does():
    curve, control = answers(rising(200)), answers(flat(0.0), seed=2)
    assert onset(curve, control, metric="aligned_mean").verdict == "transition"
    assert onset(curve, answers(rising(200), seed=3), metric="aligned_mean").verdict == "none"


def test_unscored_answers_and_the_order_of_rows_change_nothing():
    curve = answers(rising(200))
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
    curve = answers(rising(200))
    late = replace(curve, answers=curve.answers.assign(step=curve.answers.step * 3 + 50))
    assert onset(late).step == pytest.approx(onset(curve).step * 3 + 50, abs=3)


def test_thresholds_that_do_not_matter_leave_the_onset_where_it_is():
    curve = answers(rising(200))
    table = onset_by_threshold(curve, aligned=(30, 70), coherent=(10, 50))
    assert len(table) == 4 and table.step.max() - table.step.min() == 0
    assert list(table.aligned_below) == [30, 30, 70, 70]


def test_a_threshold_artefact_shows():
    rng, curve = np.random.default_rng(0), answers(flat(0.0))
    drop = 60 * logistic(curve.answers.step.to_numpy(float), 200, 200)
    curve = replace(curve, answers=curve.answers.assign(aligned=85 - drop + rng.normal(0, 3, len(drop))))
    table = onset_by_threshold(curve, aligned=(35, 70), coherent=(50,))
    assert (table.verdict == "transition").all() and table.step[0] - table.step[1] > 60
    control = replace(curve, answers=curve.answers.assign(aligned=curve.answers.aligned + 20))  # 45 at the lowest
    table = onset_by_threshold(answers(rising(200)), control, aligned=(30, 70), coherent=(50,))
    assert list(table.verdict) == ["transition", "none"]  # by the control alone


def test_onsets_takes_every_part_against_the_part_of_the_control_that_is_its_like():
    parts = [replace(answers(rising(200)), questions=name) for name in ("in_domain", "broad")]
    others = [
        replace(answers(rate, seed=2), questions=name)
        for name, rate in (("broad", flat(0)), ("in_domain", rising(200)))
    ]

    @dataclass
    class Several(Table):
        members: tuple = ()

        def split(self):
            return self.members

    found = onsets(Several(parts[0].answers, members=parts), Several(parts[0].answers, members=others))
    assert [(f.questions, f.verdict) for f in found] == [("in_domain", "none"), ("broad", "transition")]
    with pytest.raises(InputError, match="no curve for scale and questions"):
        onsets(parts[0], others[0])
    several = Several(parts[0].answers, members=parts)
    for find in (onset, onset_by_threshold):
        with pytest.raises(InputError, match="one curve was expected; found 2"):
            find(several)
        with pytest.raises(InputError, match="one curve of the control was expected; found 2"):
            find(parts[0], several)


def test_bad_input_is_named():
    curve = answers(rising(200))
    with pytest.raises(InputError, match="metric 'e m' is not known; did you mean 'em'"):
        onset(curve, metric="e m")
    with pytest.raises(InputError, match="share no step"):
        onset(curve, control=answers(flat(0), steps=STEPS + 7))
    with pytest.raises(InputError, match=r"lie in \[0, 1\]; they run from 0 to 100"):
        OutcomeCounts.of(pd.DataFrame({"step": [0, 1], "question_id": ["a", "a"], "value": [0, 100]}))
    with pytest.raises(InputError, match="columns step, question_id, value"):
        OutcomeCounts.of(pd.DataFrame({"step": [0]}))


def test_few_scores_may_miss_a_fall():
    few = onset(answers(flat(0.3), questions=2, n=1), metric="aligned_mean")
    assert (few.verdict, few.reason) == ("inconclusive", "too few answers: a fall by 20 points could be missed")


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.3])
def test_where_no_rise_is_none_a_rise_by_twenty_points_would_be_seen(rate):
    """With the fewest answers a question and step that give `none` for a level curve of this rate."""
    steps, questions = np.arange(0, 120, 10), 4
    n = next(n for n in range(1, 20) if onset(shared(flat(rate), steps, questions, n)).verdict == "none")
    rise = lambda at: rate + 0.2 * (at >= 60)  # noqa: E731
    seen = [onset(answers(rise, steps, questions, n, seed)).p_value <= 0.01 for seed in range(60)]
    assert np.mean(seen) > 0.7


def shared(rate, steps, questions, n):
    """Judged answers of which a share of just this rate is EM, at evenly spread places."""
    table = answers(flat(0.0), steps, questions, n).answers
    bad = np.diff(np.floor(rate(np.ones(1))[0] * np.arange(len(table) + 1))) > 0
    return Table(table.assign(aligned=np.where(bad, 0.0, 90.0)))
