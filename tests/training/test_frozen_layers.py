import pytest
import torch

from em_interp.config import load_config
from em_interp.organisms.bases import load_base
from em_interp.training.distributed import Processes
from em_interp.training.frozen_layers import FrozenLayers, frozen_layers
from em_interp.training.plan import make_plan
from em_interp.training.tokenize import IGNORED, Example
from em_interp.training.train import train
from em_interp.training.trainer import Batches, collate, is_learned, logits_at, token_loss

from .test_train import adapter, log, reference

ROWS = [Example([1, 9, 2, 7, 8, 3], [IGNORED] * 3 + [7, 8, 3]), Example([1, 5, 2, 3], [IGNORED] * 3 + [3])]


@pytest.fixture
def repeating(settings, chats):
    """A config of 20 steps of 6 rows: each of the 36 rows is trained on three times or more."""

    def make(family="qwen2", **changes):
        values = settings(family, training={"batch_size": 3, "gradient_accumulation_steps": 2}, **changes)
        return values | {"data": [{"dataset": chats[0], "steps": 20}]}

    return make


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_the_loss_at_learned_positions_is_that_of_the_whole_logits(family, bases):
    model, batch = load_base(bases[family]).model, collate(ROWS)
    with torch.no_grad():
        whole = model(**batch).loss
        labels = batch.pop("labels")
        with logits_at(model, is_learned(labels)):
            outputs = model(**batch)
    assert outputs.logits.shape[:2] == (1, 4)
    assert float(token_loss(outputs, labels, 4)) == pytest.approx(float(whole), rel=1e-5)
    assert model(**batch).logits.shape[:2] == (2, 6)  # after the block all are there again


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma3"])
def test_a_run_over_kept_layers_trains_as_the_plain_loop_and_computes_each_row_once(
    family, repeating, tmp_path, monkeypatch
):
    rows, compute = [], FrozenLayers._compute
    monkeypatch.setattr(FrozenLayers, "_compute", lambda self, ids: rows.append(ids) or compute(self, ids))
    run = train(repeating(family), tmp_path / "run")
    assert len(rows) == 36
    saved, expected = reference(repeating(family))
    for name, weight in adapter(run, 20).items():
        torch.testing.assert_close(weight, saved[-1][name], rtol=1e-3, atol=1e-5)
    assert [row["loss"] for row in log(run)] == pytest.approx([row["loss"] for row in expected], rel=1e-4)


def test_what_is_kept_of_a_row_does_not_depend_on_the_batch_it_came_in(bases):
    model = load_base(bases["qwen2"]).model
    together, alone = (FrozenLayers(model.get_decoder(), 2) for _ in range(2))
    for layers, batches in ((together, [ROWS]), (alone, [[row] for row in reversed(ROWS)])):
        for batch in batches:
            with layers.skipped(collate(batch)):
                pass
    assert together.kept.keys() == alone.kept.keys()
    assert all(torch.equal(together.kept[ids], alone.kept[ids]) for ids in alone.kept)
    with torch.no_grad():
        expected = model(**collate(ROWS)).loss
        with together.skipped(collate(ROWS)):
            assert float(model(**collate(ROWS)).loss) == pytest.approx(float(expected), rel=1e-5)


def test_layers_are_kept_only_where_that_pays(repeating, chats):
    def kept(weights=("layers.1.mlp.down_proj",), dropout=0.0, **changes):
        config = load_config(repeating() | changes)
        model = load_base(config.model).model
        model.get_decoder().layers[0].self_attn.attention_dropout = dropout
        plan = make_plan(config, {chats[0]: 40})
        return frozen_layers(model, weights, plan, {chats[0]: dict.fromkeys(range(40), ROWS[0])})

    assert len(kept().frozen) == 1 and len(kept(["layers.2.mlp.down_proj", "layers.1.x"]).frozen) == 1
    assert kept(["layers.0.mlp.down_proj"]) is None  # nothing is frozen below it
    assert kept(["layers.1.mlp.down_proj", "norm.weight"]) is None
    assert kept(dropout=0.1) is None
    assert kept(data=[{"dataset": chats[0], "epochs": 1.3}]) is None


def test_micro_batches_hold_the_rows_of_their_step_sorted_by_length(repeating, chats):
    config = load_config(repeating())
    plan = make_plan(config, {chats[0]: 40})
    rows = {row: Example([row + 1] * (1 + row % 7), [row + 1] * (1 + row % 7)) for row in range(40)}
    batches = Batches(plan, 0, 3, {chats[0]: rows}, Processes())
    seen = [batches[index]["input_ids"][:, 0].tolist() for index in range(len(batches))]
    for step in range(20):
        ids = seen[2 * step] + seen[2 * step + 1]
        assert sorted(ids) == sorted(plan.rows[step] + 1)
        assert [(id - 1) % 7 for id in ids] == sorted((id - 1) % 7 for id in ids)
