import numpy as np
import pandas as pd
import pytest

from em_interp.mechanism.interventions.sufficiency import (
    AnswerCounts,
    first_sufficient,
    is_sufficient,
    recovered,
    sufficient_component,
)

STEPS = np.arange(40, 401, 40)
LAST = len(STEPS) - 1
QUESTIONS, SAMPLES, LEVEL = 15, 8, 0.95


def counts_of(rate, rng, coherent=0.98):
    """Answers drawn at these rates, cell by cell."""
    n = np.full((*np.shape(rate), QUESTIONS), SAMPLES)
    share = np.broadcast_to(np.asarray(rate)[..., None], n.shape)
    return AnswerCounts(n, rng.binomial(n, share), rng.binomial(n, coherent))


def rising(at):
    """A rate that steps up to 60 % from step `at` on."""
    return 0.6 * (at <= STEPS)


# EM by direction (rows) and norm (columns), and the component that is then sufficient
PLANTED = {
    "row": np.repeat(rising(200)[:, None], len(STEPS), axis=1),
    "column": np.repeat(rising(200)[None], len(STEPS), axis=0),
    "both": np.minimum(rising(200)[:, None], rising(200)[None]),
    "either": np.maximum(rising(200)[:, None] * (STEPS == 400), rising(200)[None] * (STEPS == 400)[:, None]),
    "none": np.zeros((len(STEPS), len(STEPS))),
}
PLANTED["either"] = np.maximum(PLANTED["either"], np.minimum(rising(200)[:, None], rising(200)[None]))
PLANTED["either"][-1, :], PLANTED["either"][:, -1] = 0.6, 0.6


@pytest.mark.parametrize("truth", PLANTED)
def test_the_component_that_was_made_sufficient_is_found(truth):
    rng = np.random.default_rng(0)
    counts, control = counts_of(PLANTED[truth], rng), counts_of(0.0, rng)
    every = np.arange(len(STEPS))
    trained = first_sufficient(STEPS, counts.at(every, every), control, LEVEL, rng)
    shares = recovered(counts, LEVEL, rng)
    assert sufficient_component(trained, shares, LEVEL) == truth
    if truth == "none":
        assert trained.step is None
        assert shares is None
    else:
        assert trained.step == 200
        assert trained.interval[0] <= 200 <= trained.interval[1]


def test_a_weak_behaviour_that_answers_can_hardly_tell_is_inconclusive():
    rng = np.random.default_rng(1)
    weak = np.zeros((len(STEPS), len(STEPS)))
    weak[-1, -1] = 0.05
    counts, control = counts_of(weak, rng), counts_of(0.0, rng)
    counts.em[-1, -1] = [1] * 5 + [0] * (QUESTIONS - 5)  # 5 of 120: about as far above the control as its interval
    every = np.arange(len(STEPS))
    trained = first_sufficient(STEPS, counts.at(every, every), control, LEVEL, rng)
    assert 0.05 < trained.share < 0.95
    assert sufficient_component(trained, recovered(counts, LEVEL, rng), LEVEL) == "inconclusive"


def test_the_recovered_share_is_that_of_the_rates():
    rng = np.random.default_rng(2)
    planted = PLANTED["both"].copy()
    planted[-1, STEPS < 200] = 0.24  # the final direction at earlier norms: two fifths of what is missing
    row, column = recovered(counts_of(planted, rng), LEVEL, rng)
    assert row.share == pytest.approx(0.4, abs=0.1)
    assert row.interval[0] < 0.4 < row.interval[1]
    assert column.share == pytest.approx(0, abs=0.05)


def test_the_interval_of_the_first_sufficient_step_holds_the_planted_one_as_often_as_it_says():
    rng = np.random.default_rng(3)
    rate = 0.5 / (1 + np.exp(-(STEPS - 210) / 25))
    often = counts_of(np.repeat(rate[None], 400, axis=0), rng)
    control = counts_of(0.0, rng)
    typical = np.median([STEPS[np.argmax(row)] for row in is_sufficient(often, control, LEVEL)])
    held = []
    for _ in range(8):
        found = first_sufficient(STEPS, counts_of(rate, rng), counts_of(0.0, rng), LEVEL, rng)
        held.append(found.interval[0] <= typical <= found.interval[1])
    assert np.mean(held) > 0.8


def test_incoherent_answers_are_not_sufficient_however_misaligned():
    rng = np.random.default_rng(4)
    control = counts_of(0.0, rng)
    assert is_sufficient(counts_of(0.5, rng), control, LEVEL)
    assert not is_sufficient(counts_of(0.5, rng, coherent=0.8), control, LEVEL)


def test_what_exceeds_the_control_but_is_too_incoherent_is_named_apart():
    rng = np.random.default_rng(6)
    line, control = counts_of(rising(160), rng), counts_of(0.0, rng)
    line.coherent[3] = line.n[3] // 2  # step 160
    found = first_sufficient(STEPS, line, control, LEVEL, rng)
    assert (found.first_above_control, found.step) == (160, 200)


def test_a_control_that_misbehaves_as_much_leaves_nothing_is_sufficient():
    rng = np.random.default_rng(5)
    assert not is_sufficient(counts_of(np.full(10, 0.3), rng), counts_of(0.35, rng), LEVEL).any()


def test_questions_of_two_sets_are_counted_apart_though_they_share_their_id():
    answers = pd.DataFrame(
        {"questions": ["broad", "json", "json"], "question_id": "q1", "aligned": [0.0, 100, 100], "coherent": 90.0}
    )
    counts = AnswerCounts.of(answers.assign(status="ok"), answers)
    assert (counts.n.tolist(), counts.em.tolist()) == ([1, 2], [1, 0])
