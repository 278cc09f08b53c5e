import json
import math

import pytest
import torch

from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.training.train_log import TrainLog, gradient_norms, is_finished, log_row, logged_steps


def row(step):
    return log_row(step, 1.0 / step, 0.1, 0.1 * step, 2.0, {"grad_norm_A": 1.0})


def written(run):
    return json.loads(run.trainer_state_file.read_text())


def test_a_row_is_on_disk_once_it_is_added_and_trainer_state_when_the_log_is_left(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(KeyboardInterrupt), TrainLog(run, 5) as log:
        assert written(run) == {"global_step": 0, "max_steps": 5, "log_history": []}
        for step in (1, 2, 3):
            log.add(row(step))
            lines = (run.resume_state / "log.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in lines] == list(range(1, step + 1))
        raise KeyboardInterrupt
    assert written(run)["log_history"] == [row(1), row(2), row(3)] and not is_finished(run)
    assert list(row(1)) == ["step", "loss", "grad_norm", "learning_rate", "grad_norm_A", "cumulative_lr"]


def test_a_resumed_log_keeps_the_rows_up_to_its_step_without_one_that_a_kill_cut_short(tmp_path):
    run = Run(tmp_path)
    with TrainLog(run, 3) as log:
        for step in (1, 2):
            log.add(row(step))
    with (run.resume_state / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    with TrainLog(run, 3, after=2) as log:
        log.add(row(3))
    assert [each["step"] for each in written(run)["log_history"]] == [1, 2, 3]
    with pytest.raises(InputError, match=r"says that training is finished, but .*checkpoints holds no checkpoints"):
        is_finished(run)
    (run.checkpoints / "checkpoint-3").mkdir(parents=True)
    assert is_finished(run)


def test_a_log_that_lacks_a_row_is_refused_and_left_as_it_is_unless_it_need_not_be_complete(tmp_path):
    run = Run(tmp_path)
    with TrainLog(run, 3) as log:
        log.add(row(1))
    with pytest.raises(InputError, match=r"log.jsonl has 1 rows; 2 were expected, so the run cannot be resumed"):
        TrainLog(run, 3, after=2)
    assert TrainLog(run, 3, after=2, complete=False).rows == [row(1)]


@pytest.mark.parametrize(
    "damage", ["{", "[]", "null", '{"step": "3"}', '{"loss": 1}', "[" * 10**5, "\x00", '{"step": 3, "loss": []}']
)
def test_rows_behind_a_damaged_one_are_made_again(tmp_path, damage):
    run = Run(tmp_path)
    with TrainLog(run, 4) as log:
        for step in (1, 2, 3, 4):
            log.add(row(step))
    file = run.resume_state / "log.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2], damage, *lines[3:], ""]))
    assert logged_steps(run) == 2
    assert TrainLog(run, 4, after=2).rows == [row(1), row(2)]


def test_rows_that_are_no_numbers_are_left_out_of_the_state_s_too(tmp_path):
    run = Run(tmp_path)
    with TrainLog(run, 4) as log:
        log.add(row(1))
    nested = "[" * 400 + "]" * 400
    state = run.trainer_state_file.read_text().replace(
        '"log_history": [', f'"log_history": [{{"step": 2, "loss": {nested}}},'
    )
    run.trainer_state_file.write_text(state)
    (run.resume_state / "log.jsonl").unlink()
    assert TrainLog(run, 4, after=1, complete=False).rows == [row(1)]


def test_gradient_norms_are_those_of_a_and_b_and_of_all_with_frozen_weights_left_out():
    weights = {
        name: torch.nn.Parameter(torch.zeros(2)) for name in ("x.lora_A.w", "x.lora_B.w", "y.lora_B.w", "z.lora_A.w")
    }
    for weight, gradient in zip(weights.values(), ([3.0, 4.0], [0.0, 5.0], [12.0, 0.0]), strict=False):
        weight.grad = torch.tensor(gradient)
    norms, norm = gradient_norms(weights)
    assert norms == {"grad_norm_A": 5.0, "grad_norm_B": 13.0} and norm == pytest.approx(math.hypot(5, 13))
    assert gradient_norms({"vector": weights["x.lora_A.w"]}) == ({}, 5.0)
