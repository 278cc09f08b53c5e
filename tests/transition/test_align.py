import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from em_interp.errors import InputError
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.align import WORDS, align
from em_interp.transition.result import Transition


def rotation(step=100.0, low=95.0, high=105.0, verdict="transition"):
    return at("rotation", step, low, high, verdict, of="B")


def behaviour(step=150.0, low=140.0, high=165.0, verdict="transition", questions="broad"):
    return at("onset", step, low, high, verdict, of="em", questions=questions, scale=1.0)


def at(signal, step, low, high, verdict, **more):
    if verdict != "transition":
        return Transition(signal, verdict, "as planted", **more)
    evidence = {"steps": np.arange(0, 401, 10)}
    return Transition(
        signal, verdict, "as planted", step=step, interval=(low, high), level=0.95, evidence=evidence, **more
    )


def run(last=400):
    steps = np.arange(0, last + 1, 10)
    log = pd.DataFrame({"cumulative_lr": np.cumsum(np.linspace(1e-3, 0, last))}, index=np.arange(1, last + 1))
    ones = np.ones((len(steps), 1, 3), np.float32)
    return AdapterTrajectory(steps, {"s": ones}, {"s": ones.transpose(0, 2, 1)}, {"s": 1.0}, log)


def test_the_offset_combines_the_ends_of_both_intervals_in_quadrature():
    offset = align(rotation(100, 96, 103), behaviour(150, 146, 162)).offsets[0]
    assert offset.steps == 50 and offset.level == 0.95
    assert offset.interval == pytest.approx((50 - np.hypot(4, 3), 50 + np.hypot(12, 4)))


def test_the_interval_of_an_offset_covers_the_truth_as_often_as_it_says():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(1000):
        m, b = rng.normal(100, 5), rng.normal(140, 12)
        offset = align(rotation(m, m - 9.8, m + 9.8), behaviour(b, b - 23.5, b + 23.5)).offsets[0]
        hits += offset.interval[0] <= 40 <= offset.interval[1]
    assert 930 <= hits <= 970


def test_chance_is_the_share_of_the_run_as_near_as_the_mechanistic_step():
    uniform = np.random.default_rng(0).integers(0, 401, 20000)
    for m, b in ((100, 150), (10, 30), (395, 380), (200, 200)):
        chance = align(rotation(m), behaviour(b)).offsets[0].chance
        assert chance == pytest.approx(np.mean(np.abs(uniform - b) <= abs(b - m) + 0.5), abs=0.01)
    assert align(rotation(200), behaviour(200)).offsets[0].chance == pytest.approx(1 / 401)


def test_the_run_gives_the_range_and_the_offset_in_cumulative_learning_rate():
    path = run(800)
    offset = align(rotation(100), behaviour(150), path).offsets[0]
    assert offset.cumulative_lr == pytest.approx(path.metrics.cumulative_lr[150] - path.metrics.cumulative_lr[100])
    assert offset.chance == pytest.approx(101 / 801)
    assert align(rotation(100), behaviour(150)).offsets[0].cumulative_lr is None
    assert align(rotation(150), behaviour(100), path).offsets[0].cumulative_lr == pytest.approx(-offset.cumulative_lr)


NONE, UNSURE = {"verdict": "none"}, {"verdict": "inconclusive"}


@pytest.mark.parametrize(
    "mechanistic, behavioural, verdict",
    [
        ({}, [{}], "mechanistic_first"),
        ({}, [{"step": 104, "low": 98, "high": 111}], "together"),
        ({}, [{}, {"step": 104, "low": 98, "high": 111}], "together"),
        ({}, [{"step": 50, "low": 40, "high": 60}], "behavioural_first"),
        ({}, [{}, {"step": 50, "low": 40, "high": 60}], "inconclusive"),
        ({}, [{}, NONE, UNSURE], "mechanistic_first"),
        ({}, [NONE, NONE], "only_mechanistic"),
        ({}, [NONE, UNSURE], "inconclusive"),
        (NONE, [{}, NONE], "only_behavioural"),
        (NONE, [{}, UNSURE], "only_behavioural"),
        (NONE, [NONE], "neither"),
        (NONE, [UNSURE, NONE], "inconclusive"),
        (UNSURE, [{}], "inconclusive"),
        (UNSURE, [NONE], "inconclusive"),
    ],
)
def test_the_verdict_follows_from_what_was_found_and_which_side_of_zero_the_intervals_lie(
    mechanistic, behavioural, verdict
):
    found = align(rotation(**mechanistic), [behaviour(**one) for one in behavioural])
    assert found.verdict == verdict
    assert found.words in found.sentence()
    both = not mechanistic and [index for index, one in enumerate(behavioural) if "verdict" not in one]
    assert [offset.behavioural for offset in found.offsets] == (both or [])


def test_words_say_how_many_coincide_where_not_all_do():
    near, late = behaviour(102, 98, 109), behaviour()
    assert align(rotation(), [near]).words == WORDS["together"]
    assert align(rotation(), [near, late]).words.startswith("the midpoints of 1 of 2 changes of behaviour")
    assert align(rotation(), [late]).words == WORDS["mechanistic_first"]


def test_an_undecided_verdict_says_of_how_many_changes_an_order_is_known():
    early, late = behaviour(50, 40, 60), behaviour()
    found = align(rotation(), [early, late, late])
    expected = "of 3 changes of behaviour, 2 can be told to be later than the adapter's and 1 earlier"
    assert found.verdict == "inconclusive" and found.words == expected
    assert list(found.frame().order) == ["after", "before", "before"]


def test_without_a_known_start_the_midpoints_alone_give_the_order_and_the_reason_says_so():
    found = align(rotation(), behaviour())
    assert found.order.word == "before" and found.verdict == "mechanistic_first"
    assert "the starts are not known" in found.order.reason


def test_an_estimate_without_an_interval_has_an_offset_but_decides_nothing():
    bare = Transition("lock_in", "transition", "descriptive", step=120.0)
    found = align(bare, behaviour())
    assert found.verdict == "inconclusive"
    assert found.offsets[0].steps == 30 and found.offsets[0].interval is None and found.offsets[0].level is None


def test_intervals_of_two_levels_are_refused():
    loose = Transition("onset", "transition", "", step=150.0, interval=(145.0, 155.0), level=0.8)
    with pytest.raises(
        InputError, match=r"have levels 0.95 and 0.8; one level was expected: locate both .* same level="
    ):
        align(rotation(), loose)


def test_the_dictionary_has_the_keys_of_the_contract_and_the_frame_a_row_a_behaviour():
    found = align(rotation(), [behaviour(questions="in_domain"), behaviour(**NONE)], run())
    values = found.to_dict()
    keys = ["mechanistic", "behavioural", "offsets", "verdict", "order", "declared", "family_wise_p"]
    assert list(values) == keys and values["order"] is None
    assert set(align(rotation(), behaviour()).to_dict()["order"]) == {"word", "reason"}
    assert list(values["offsets"][0]) == ["behavioural", "steps", "interval", "level", "cumulative_lr", "chance"]
    assert values["offsets"][0]["behavioural"] == 0 and values["mechanistic"]["signal"] == "rotation"
    table = found.frame()
    assert list(table.questions) == ["in_domain", "broad"]
    assert table.offset[0] == 50 and table.offset_low[0] < 50 < table.offset_high[0]
    assert table[["offset", "offset_low", "offset_high", "chance", "cumulative_lr"]].loc[1].isna().all()


def test_it_reads_as_words_with_the_text_escaped():
    found = align(rotation(), behaviour(questions="<b>"))
    assert "50 steps later (95% interval" in found.sentence() and found.sentence() in repr(found)
    scaled = align(rotation(), [replace(behaviour(questions="broad"), scale=scale) for scale in (1.0, 1.5)], run())
    assert (
        "; EM onset (broad) 50 steps later" in scaled.sentence()
        and "; EM onset (broad, adapter ×1.5) 50 steps later" in scaled.sentence()
    )
    assert "<b>" not in found._repr_html_() and "&lt;b&gt;" in found._repr_html_()


def test_a_path_given_for_the_behaviour_is_refused():
    with pytest.raises(
        InputError, match="transition, several, or a behaviour curve; found a value of type AdapterTrajectory"
    ):
        align(rotation(), run())


def rise(step, low, high, tenth, tenth_low, tenth_high, last=400):
    evidence = {"steps": np.arange(0, last + 1, 10), "tenth": tenth, "tenth_interval": (tenth_low, tenth_high)}
    return replace(behaviour(step, low, high, questions="out_of_domain"), evidence=evidence, p_value=0.001)


VERDICT_OF = {
    "before": "mechanistic_first",
    "after": "behavioural_first",
    "together": "together",
    "no closer than chance": "together",
    "undecided": "inconclusive",
}
TURN = replace(rotation(100, 96, 104), width=8.0, p_value=0.001)


@pytest.mark.parametrize(
    ("curve", "word", "reason"),
    [
        (rise(200, 190, 210, 150, 140, 160), "before", r"the midpoints are \+100 steps .* the starts \+54 steps"),
        (rise(50, 45, 55, 30, 25, 35), "after", r"the midpoints are -50 steps .* the starts -66 steps"),
        (rise(104, 96, 112, 97, 90, 104), "together", "as near in 2%"),
        (rise(160, 90, 230, 98, 80, 116), "no closer than chance", "as near in 30%"),
        (rise(150, 140, 160, 90, 60, 120), "undecided", "do not agree on an order"),
    ],
)
def test_an_order_is_claimed_only_where_midpoints_and_starts_agree(curve, word, reason):
    found = align(TURN, curve)
    assert found.order.word == word and found.verdict == VERDICT_OF[word]
    assert found.frame().order[0] == word
    assert re.search(reason, found.order.reason)
    assert found.order.reason in found.headline()


def test_steps_that_coincide_are_not_told_apart_where_the_run_is_not_known():
    """Transitions read back from JSON have no steps: how near a random step would be is known with the run only."""
    read = Transition.from_dict(rise(104, 96, 112, 97, 90, 104).to_dict())
    found = align(TURN, read)
    assert found.offsets[0].chance is None and found.verdict == "together"
    assert found.order.word == "undecided" and "with run=" in found.order.reason
    assert align(TURN, read, run()).order.word == "together"
    late = Transition.from_dict(rise(200, 190, 210, 150, 140, 160).to_dict())
    assert align(TURN, late).order.word == "before"  # which rests on the intervals alone


def test_the_picture_shows_rates_of_em_alone():
    evidence = {"steps": np.arange(0, 401, 10), "rate": np.linspace(0, 1, 41)}
    drawn = replace(behaviour(), evidence=evidence)
    other = replace(drawn, of="aligned_mean")
    assert align(rotation(), [drawn, other])._picture() == align(rotation(), [drawn])._picture() != ""


def test_the_headline_keeps_to_the_declared_transitions():
    """The adapter ×2 changes long before; it was not declared and is not in the headline."""
    early = replace(rise(20, 15, 25, 10, 5, 15), scale=2.0)
    found = align(TURN, [early, rise(200, 190, 210, 150, 140, 160)])
    assert found.order.word == "before"
    assert found.headline().startswith("Rotation of B comes before EM onset (out of domain): ")


def test_the_headline_says_where_the_family_wise_level_is_not_reached():
    weak = replace(rise(200, 190, 210, 150, 140, 160), p_value=0.04)
    assert "significant at a family-wise level of 5%" not in align(TURN, weak).headline()
    weaker = align(replace(TURN, p_value=0.04), weak)
    assert "but not both are significant at a family-wise level of 5%" in weaker.headline()


def test_without_both_transitions_the_headline_says_what_there_is():
    none = replace(behaviour(verdict="none", questions="out_of_domain"), p_value=0.6)
    found = align(TURN, none)
    assert found.order is None
    assert found.claim == "The adapter changes, the behaviour does not"
    reason = "rotation of B: transition; EM onset (out of domain): none"
    assert found.headline() == f"{found.claim}: {reason}."


def test_the_claim_never_contradicts_the_verdict():
    words = set()
    for step in range(20, 381, 12):
        for width in (4.0, 60.0):
            later = replace(behaviour(float(step), step - width / 2, step + width / 2), p_value=0.001)
            tenth = {"tenth": step - width / 2, "tenth_interval": (step - width, step + width / 4)}
            found = align(TURN, replace(later, evidence={**later.evidence, **tenth}), run())
            words.add(found.order.word)
            holds_zero = found.order.word == "undecided" and found.offsets[0].coincides
            assert found.verdict == ("together" if holds_zero else VERDICT_OF[found.order.word])
            assert found.claim in found.sentence() and found.order.reason in found.headline()
    assert words >= {"before", "after", "together", "undecided"}
