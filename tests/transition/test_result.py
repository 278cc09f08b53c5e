"""Sentence and verdict of a transition come from one computation: over planted results they never contradict."""

import re

import pytest

from em_interp.errors import InputError
from em_interp.transition.find import TEST_LEVELS, find_transition
from em_interp.transition.onsets import onset
from em_interp.transition.result import Transition
from em_interp.transition.signals import gradient_norm, norm_onset, series
from em_interp.transition.synthetic.curves import planted_curve
from em_interp.transition.synthetic.logs import planted_log, planted_norm
from em_interp.transition.synthetic.paths import planted_path

LOGS = ("gaussian", "flat", "rising", "decaying", "warm_up_spike", "valley")
NORMS = ("sharp", "soft", "line", "slowing", "wandering", "gradual")
PATHS = [("abrupt", 0.3), ("straight", 0.3), ("straight", 12.0), ("arc", None), ("stall", None), ("random_walk", None)]


def percent(pattern, text):
    return float(re.search(pattern, text).group(1)) / 100


def check(found: Transition):
    """What must hold of every signal that is tested."""
    assert found.found == (found.step is not None and found.interval is not None) or found.verdict == "inconclusive"
    if found.found:
        assert found.p_value <= TEST_LEVELS[found.signal]
        assert found.interval[0] <= found.step <= found.interval[1]
        assert f"at step {found.step:.0f}" in found.sentence()
        assert not re.match("No |Too |Only |too ", found.reason)
    else:
        assert "transition" not in found.sentence() and found.reason


@pytest.mark.parametrize("kind", LOGS)
def test_a_gradient_norm_without_a_hump_has_none_above_what_it_says_noise_exceeds(kind):
    for seed in range(4):
        log = planted_log(kind, seed)
        found = gradient_norm.gradient_norm_peak(log.steps, log.grad_norm)
        check(found)
        if "noise alone" in found.reason:
            highest, noise = percent(r"highest rises (\d+)%", found.reason), percent(r"above (\d+)% in", found.reason)
            assert highest <= noise and found.p_value > series.SERIES_ALPHA
            from_on = percent(r"one above (\d+)% would be significant", found.reason)
            assert (from_on > gradient_norm.MAX_DETECTABLE) == (found.verdict == "inconclusive")
            assert from_on <= noise + 0.02  # a broad hump is smoothed more


@pytest.mark.parametrize("kind", NORMS)
def test_a_norm_without_a_bend_is_inconclusive_just_where_the_reason_calls_it_too_noisy(kind):
    for seed in range(3):
        path = planted_norm(kind, seed)
        found = norm_onset.norm_onset(path.steps, path.delta_norm, path.cumulative_lr)
        check(found)
        if "nowhere speeds up" in found.reason:
            assert ("too noisy" in found.reason) == (found.verdict == "inconclusive")
            least = percent(r"by (\d+)% of its mean", found.reason)
            assert (least > norm_onset.MAX_DETECTABLE) == (found.verdict == "inconclusive")


@pytest.mark.parametrize("kind, noise_ratio", PATHS)
def test_a_path_without_a_turn_shows_none_that_the_reason_says_would_be_seen(kind, noise_ratio):
    found = find_transition(planted_path(kind, 3, last=300, noise_ratio=noise_ratio).trajectory())
    check(found)
    if "the clearest is" in found.reason:
        assert found.p_value > TEST_LEVELS["rotation"] and not found.found
        assert ("would be seen in" in found.reason) == (found.verdict == "none")


@pytest.mark.parametrize("kind", ["plain", "flat"])
def test_an_onset_says_what_its_p_value_and_its_verdict_say(kind):
    for seed in range(2):
        planted = planted_curve(kind, seed)
        tested = onset.locate_rise(planted.counts, planted.control)
        verdict, reason = onset.verdict_of(tested, "em")
        assert (verdict == "none" and "does not rise" in reason) == (
            tested.rise is None and not tested.underpowered and tested.p_value is not None
        )
        assert (verdict == "transition") == ("a tenth of it by step" in reason)


@pytest.mark.parametrize(
    "change",
    [{"step": "190"}, {"verdict": "perhaps"}, {"interval": [1, 2, 3]}, {"interval": ["a", "b"]}, {"signal": None},
     {"reason": 3}, {"length_share": 0.5}, {"questions": ["broad"]}, {"level": True}],
    ids=str,
)  # fmt: skip
def test_a_dictionary_that_is_no_transition_s_is_refused_by_its_key(change):
    whole = Transition("rotation", "transition", "why", step=190, interval=(184, 197), level=0.95).to_dict()
    assert Transition.from_dict(whole).to_dict() == whole
    with pytest.raises(InputError, match=f"{next(iter(change))} of a transition cannot be|transition's dictionary"):
        Transition.from_dict(whole | change)


@pytest.mark.parametrize(("level", "text"), [(0.95, "95%"), (0.995, "99.5%"), (0.683, "68.3%")])
def test_the_level_is_given_in_full(level, text):
    found = Transition("rotation", "transition", "It turns.", step=5.0, interval=(4.0, 6.0), level=level)
    assert f"({text} interval 4 to 6)" in found.sentence()
