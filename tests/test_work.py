"""How much work the slow things do, counted in forward passes, tokens and bytes: seconds depend on the machine."""

import pandas as pd
import pytest

from em_interp.behaviour.preference import read_preferences
from em_interp.behaviour.sampling.ask import ask
from em_interp.behaviour.sampling.decode import MAX_FINISHED
from em_interp.trajectory.load import load_trajectory
from em_interp.transition.find import find_transitions
from tests.behaviour.conftest import SITES, Base, build_tokenizer, make_model, make_trajectory, save_run
from tests.behaviour.sampling.test_ask import PAIRS, QUESTIONS
from tests.trajectory.saving import opened_files

STEPS, SCALES = [0, 5, 10], [1.0, 2.0]


@pytest.fixture
def run(tmp_path):
    return save_run(tmp_path / "run", make_trajectory(SITES))


@pytest.fixture
def base():
    return Base(make_model("qwen2"), build_tokenizer())


def counted(module):
    """The sizes (rows, tokens) of all inputs that a module gets from now on."""
    sizes = []

    def note(_module, given, named):
        ids = named.get("input_ids", given[0] if given else named.get("hidden_states"))
        sizes.append(tuple(ids.shape[:2]))

    module.register_forward_pre_hook(note, with_kwargs=True)
    return sizes


def test_each_prompt_is_read_once_and_each_token_generated_once_in_one_batch_for_all_checkpoints(run, base):
    sizes, samples, longest = counted(base.model), 8, 6
    file = ask(run, base, QUESTIONS, STEPS, SCALES, samples, max_new_tokens=longest)
    (probe, *passes), rows = sizes, len(STEPS) * len(SCALES) * len(QUESTIONS)
    assert probe == (1, 1)  # for the size of the cache
    assert [tokens > 1 for _, tokens in passes] == [True] + [False] * (longest - 1)
    assert passes[0][0] == rows and passes[1][0] <= rows * samples
    lengths = pd.read_parquet(file)["answer"].str.split().map(len)
    alive = [int((lengths >= position).sum()) for position in range(1, longest)]
    assert all(now <= left / (1 - MAX_FINISHED) + 1 for (now, _), left in zip(passes[1:], alive, strict=True))


def test_likelihoods_of_all_checkpoints_take_one_pass_and_the_layers_below_the_adapters_one_for_each_answer(run, base):
    whole, below, above = (counted(base.model), *(counted(base.model.model.layers[layer].mlp) for layer in (0, 1)))
    read_preferences(run, base, PAIRS, STEPS, SCALES)
    answers = 2 * len(PAIRS)
    passes = [size for size in whole if size[0] > 1]
    assert [rows for rows, _ in passes] == [len(STEPS) * len(SCALES) * answers]
    assert len([size for size in above if size[0] > 1]) == 1
    assert sum(rows for rows, _ in below) <= answers + 1  # the first layer is kept: only layers 1 and 2 are adapted


def test_a_trajectory_is_read_once_and_its_transitions_read_nothing(run):
    with opened_files(run.path) as opened:
        trajectory = load_trajectory(run)
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert len(opened) <= len(files) + 1  # the settings of the first step are read twice
    with opened_files(run.path) as opened:
        find_transitions(trajectory)
    assert opened == []
