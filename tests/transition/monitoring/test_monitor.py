"""The live monitor on planted runs: it is silent on every null, prompt on a turn, and bounded in memory."""

import numpy as np
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.transition.monitoring.monitor import LOOKS, MAX_COORDINATES, MAX_POSITIONS, Monitor, _folded
from em_interp.transition.synthetic.logs import NO_HUMPS, planted_log
from em_interp.transition.synthetic.paths import NOT_TURNING, TURNING, planted_path


@pytest.fixture(scope="module")
def turned():
    """A run that turns, and its monitor."""
    run = planted_path("abrupt", 602, last=400).trajectory()
    return run, em.watch(run)


def follow_log(kind, seed, **settings):
    log = planted_log(kind, seed)
    monitor = Monitor(int(log.steps[-1]), **settings)
    for step, norm in zip(log.steps.tolist(), log.grad_norm.tolist(), strict=True):
        monitor.update(step, grad_norm=norm)
    return log, monitor


@pytest.mark.parametrize("kind", NOT_TURNING)
def test_a_path_without_a_turn_raises_no_alarm(kind):
    options = ({}, {"noise_ratio": 1.5}, {"storage": "bfloat16"})[NOT_TURNING.index(kind) % 3]
    monitor = em.watch(planted_path(kind, 611, last=240, **options).trajectory())
    assert monitor.finished
    assert monitor.alarms == []


@pytest.mark.parametrize("kind", TURNING)
def test_a_turn_is_reported_within_a_third_of_the_run_and_never_before_it_begins(kind):
    path = planted_path(kind, 602, last=400)
    alarm = em.watch(path.trajectory()).alarms[0]
    assert path.turn.step - path.turn.width < alarm.step <= path.turn.step + 0.34 * 400
    assert abs(alarm.transition.step - path.turn.step) <= max(8, path.turn.width / 2)
    assert alarm.run_p <= 0.05
    assert alarm.transition.of == "B"


@pytest.mark.parametrize("kind", NO_HUMPS[1::3])
def test_a_gradient_norm_without_a_hump_raises_no_alarm(kind):
    assert follow_log(kind, 600)[1].alarms == []


def test_a_hump_of_the_gradient_norm_is_reported_after_its_top():
    log, monitor = follow_log("gaussian", 601)
    alarm = monitor.alarms[0]
    assert alarm.signal == "gradient_norm"
    assert log.peak < alarm.step <= log.peak + 0.4 * log.steps[-1]


def test_looks_are_fixed_shares_of_the_run_and_share_the_level():
    path = planted_path("straight", 3, last=200).trajectory()
    monitor = em.watch(path, signals=["rotation"])
    wanted = [min(step for step in path.steps if 100 * step >= share * 200) for share in LOOKS]
    assert monitor.frame()["step"].tolist() == wanted
    assert all(look.run_p == 1.0 for look in monitor.looks)


@pytest.mark.parametrize("signal", ["rotation", "gradient_norm"])
def test_looks_that_are_significant_alone_are_suspicious_before_an_alarm(signal):
    if signal == "rotation":
        monitor = em.watch(planted_path("gradual", 602, last=400, noise_ratio=1.5).trajectory())
    else:
        monitor = follow_log("lopsided", 601)[1]
    early = [look for look in monitor.looks if look.suspicious and not look.alarm]
    assert early and all(look.signal == signal and look.step < monitor.alarms[0].step for look in early)
    assert all(look.transition.found and 0.05 / 34 < look.transition.p_value <= 0.05 for look in early)


def test_memory_does_not_grow_with_the_length_of_the_run():
    monitor = Monitor(5000, signals=["rotation"])
    rng = np.random.default_rng(0)
    position = np.zeros(16)
    for step in range(900):  # before the first look
        position = position + rng.normal(size=16)
        monitor.update(step, position)
        assert len(monitor._path.steps) <= MAX_POSITIONS
    kept = monitor._path.steps[:-1]
    assert monitor._path.every == 8
    assert kept == list(range(0, 899, 8))
    count = len(monitor._path.steps)
    vectors = monitor._path.vectors[:count]
    assert np.allclose(monitor._path.gram[:count, :count], vectors @ vectors.T)


def test_a_large_position_is_folded_linearly_and_keeps_its_inner_products():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 5 * MAX_COORDINATES + 7))
    second += first
    folded = _folded(first), _folded(second)
    assert len(folded[0]) == MAX_COORDINATES
    assert np.allclose(_folded(2 * first - second), 2 * folded[0] - folded[1])
    assert folded[0] @ folded[1] == pytest.approx(first @ second, rel=0.05)


def test_steps_seen_late_cost_looks_and_not_the_bound():
    path = planted_path("abrupt", 602, last=400)
    monitor = Monitor(400, signals=["rotation"])
    for step, vector in zip(path.steps, path.vectors, strict=True):
        if step > 200:
            monitor.update(int(step), vector)
    assert monitor.looks[0].step == min(step for step in path.steps if step > 200)
    assert len(monitor.looks) < len(LOOKS)


def test_a_control_that_turns_as_clearly_silences_the_alarm_and_its_smallest_p_is_said(turned):
    run = turned[0]
    quiet = em.watch(run, controls=[planted_path("straight", 602, last=400).trajectory()])
    assert quiet.alarms
    assert quiet.reference_p("rotation") == 0.5
    assert "clearer than in 1 control run, which alone can give no p-value below 0.5" in quiet.sentence()
    as_clear = em.watch(run, controls=[turned[1]])
    assert as_clear.alarms == []
    assert as_clear.reference_p("rotation") == 1.0
    assert "for the run), for it is as clear in 1 of 1 controls;" in as_clear.sentence()


def test_one_signal_alone_gets_the_whole_level(turned):
    run, both = turned
    alone = em.watch(run, signals=["rotation"])
    assert alone.run_p("rotation") <= both.run_p("rotation")


def test_what_a_monitor_returns_is_a_result(turned):
    monitor = turned[1]
    values = monitor.to_dict()
    assert values["signals"]["rotation"]["alarm"]["signal"] == "rotation"
    assert values["signals"]["gradient_norm"] == {"looks": 0, "run_p": None, "reference_p": None, "alarm": None}
    assert "ALARM at step" in monitor.sentence()
    assert "ALARM" in monitor._repr_html_()
    assert monitor.frame()["alarm"].sum() == 1
    figure = em.figures.monitor(monitor)
    assert [trace.name for trace in figure.data] == ["rotation", "gradient norm"]
    assert monitor.plot() == figure


def finished(**settings):
    monitor = Monitor(10, **settings)
    monitor.update(10, grad_norm=1.0)
    return monitor


def test_at_the_least_level_that_is_not_refused_a_hump_raises_an_alarm():
    assert follow_log("gaussian", 601, level=0.034)[1].alarms
    assert Monitor(100, level=0.001, signals=["rotation"]).level == 0.001  # its p-values are not those of draws


def test_a_control_without_looks_at_a_signal_is_not_compared_and_the_sentence_says_so():
    silent = Monitor(int(planted_log("gaussian", 601).steps[-1]))
    silent.update(silent.last, position=np.zeros(3))
    monitor = follow_log("gaussian", 601, controls=[silent])[1]
    assert silent.run_p("gradient_norm") is None and monitor.reference_p("gradient_norm") is None
    assert monitor.alarms and "with no look at it in 1 control run;" in monitor.sentence()
    assert monitor.run_p("rotation") is None and monitor.reference_p("rotation") is None


def test_the_step_of_a_look_and_that_of_its_transition_have_names_of_their_own(turned):
    alarm = turned[1].alarms[0]
    told = turned[1].to_dict()["signals"]["rotation"]["alarm"]
    assert (told["look_step"], told["step"]) == (alarm.step, alarm.transition.step)
    row = turned[1].frame().query("alarm").iloc[0]
    assert (row["step"], row["transition_step"]) == (alarm.step, alarm.transition.step)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"last": 0}, "number of steps"),
        ({"last": 10, "signals": ["loss"]}, "signals must be among rotation, gradient_norm"),
        ({"last": 10, "level": 5}, "level must lie between"),
        ({"last": 10, "level": 0.03}, r"level 0.03 is below 0.034, .* give signals=\['rotation'\]"),
        ({"last": 10, "level": 0.016, "signals": ["gradient_norm"]}, "level 0.016 is below 0.017"),
        ({"last": 10, "controls": [Monitor(10)]}, "followed to its end"),
        ({"last": 10, "controls": [finished(signals=["rotation"])]}, r"it has level=0.05 and signals=\['rotation'\]"),
        ({"last": 10, "level": 0.1, "controls": [finished()]}, "followed with level=0.1 and .* it has level=0.05"),
        (
            {"last": 10, "controls": [em.watch(planted_path("straight", 3, last=40).trajectory())]},
            "10 steps; it has 40",
        ),
    ],
)
def test_a_monitor_that_cannot_be_is_refused_in_one_line(values, message):
    with pytest.raises(InputError, match=message):
        Monitor(**values)


def test_positions_out_of_order_or_of_another_size_are_refused():
    monitor = Monitor(100)
    monitor.update(3, np.zeros(4))
    with pytest.raises(InputError, match="steps must increase"):
        monitor.update(3, np.zeros(4))
    with pytest.raises(InputError, match="another size"):
        monitor.update(4, np.zeros(5))
