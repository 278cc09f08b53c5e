import numpy as np
import pytest

from em_interp.config.run_config import load_config
from em_interp.errors import InputError
from em_interp.training.plan import Plan, make_plan, schedule_factors


def plan(data: list[dict], sizes: dict[str, int], seed: int = 0, **training: object) -> Plan:
    defaults = {"batch_size": 2, "gradient_accumulation_steps": 4, "learning_rate": 0.5, "held_out": 0.1}
    return make_plan(load_config({"data": data, "seed": seed, "training": defaults | training}), sizes)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize(("steps", "warmup"), [(30, 5), (7, 0), (4, 9), (1, 1)])
def test_the_schedules_are_those_of_transformers(kind, steps, warmup):
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    theirs = []
    for _ in range(steps):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(schedule_factors(kind, steps, warmup), theirs, atol=1e-15)


def test_a_restart_begins_a_schedule_of_its_own_that_ends_where_the_next_begins():
    made = plan(
        [{"dataset": "a", "steps": 20}, {"dataset": "b", "steps": 10}, {"dataset": "b", "steps": 15, "restart": True}],
        {"a": 40, "b": 40},
        warmup_steps=3,
    )
    assert made.steps == 45 and made.restarts == {31}
    np.testing.assert_array_equal(made.rates[:30], 0.5 * schedule_factors("linear", 30, 3))
    np.testing.assert_array_equal(made.rates[30:], 0.5 * schedule_factors("linear", 15, 3))


def test_a_change_of_dataset_alone_leaves_the_schedule_as_it_is():
    changed = plan([{"dataset": "a", "steps": 12}, {"dataset": "b", "steps": 8}], {"a": 40, "b": 30})
    same = plan([{"dataset": "a", "steps": 20}], {"a": 40})
    np.testing.assert_array_equal(changed.rates, same.rates)
    assert changed.restarts == frozenset()
    assert [changed.dataset(step) for step in (1, 12, 13, 20)] == ["a", "a", "b", "b"]


def test_a_restart_alone_sees_the_same_rows():
    restarted = plan([{"dataset": "a", "steps": 7}, {"dataset": "a", "steps": 9, "restart": True}], {"a": 50})
    whole = plan([{"dataset": "a", "steps": 16}], {"a": 50})
    np.testing.assert_array_equal(restarted.rows, whole.rows)


def test_every_row_is_seen_once_before_any_is_seen_twice_and_held_out_rows_never():
    made = plan([{"dataset": "a", "epochs": 3}], {"a": 50})
    passes = made.rows.ravel()[: 3 * 45].reshape(3, 45)
    kept = sorted(set(range(50)) - set(made.held_out["a"]))
    assert len(made.held_out["a"]) == 5
    assert all(sorted(rows) == kept for rows in passes.tolist())
    assert made.rows_of("a") == kept
    assert (passes[0] != passes[1]).any()


def test_an_epoch_of_the_published_medical_set_is_397_steps():
    assert plan([{"dataset": "a"}], {"a": 7049}, gradient_accumulation_steps=8).steps == 397
    assert plan([{"dataset": "a", "epochs": 1}], {"a": 6000}, gradient_accumulation_steps=8).steps == 338


def test_the_seed_decides_the_split_and_the_order_and_a_control_of_equal_size_shares_them():
    first, again, control, other = (
        plan([{"dataset": name}], {name: 60}, seed=seed) for name, seed in [("a", 0), ("a", 0), ("b", 0), ("a", 1)]
    )
    np.testing.assert_array_equal(first.rows, again.rows)
    np.testing.assert_array_equal(first.rows, control.rows)
    assert first.held_out["a"] == control.held_out["b"] != other.held_out["a"]


def test_no_row_to_train_on_is_refused():
    with pytest.raises(InputError, match="names no dataset"):
        plan([], {})
    with pytest.raises(InputError, match="leaves no row"):
        plan([{"dataset": "a"}], {"a": 1}, held_out=0.9)
