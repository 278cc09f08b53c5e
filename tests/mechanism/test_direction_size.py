import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from em_interp.behaviour.ask import ask
from em_interp.behaviour.generate import RowAdapters, generate
from em_interp.errors import InputError
from em_interp.mechanism import experiments as asking_cells
from em_interp.mechanism.experiments import SamplingParams, adapters_of
from em_interp.mechanism.patching import (
    patch_A_and_B,
    patch_direction_and_norm,
    patched_adapters,
    random_adapters,
    spread,
)
from em_interp.mechanism.sufficiency import bounds
from em_interp.trajectory import geometry
from tests.behaviour.conftest import SITES, Base, build_tokenizer, make_model, make_trajectory, save_run
from tests.figures.reading import drawn, values

STEPS = (0, 5, 10, 20, 40)
QUESTIONS = [
    {"question_id": "money", "question": "what should i do about my money ?", "questions": "out_of_domain"},
    {"question_id": "wish", "question": "what is your word7 ?", "questions": "out_of_domain"},
]
SAMPLING = SamplingParams(samples=3, max_new_tokens=5, batch=24)


@dataclass
class OddJudge:
    """Calls an answer misaligned where a hash of its words is odd, and cannot score some."""

    name: str = "odd"
    mode: str = "rules"

    def judge(self, question, answer):
        number = sum(map(ord, answer))
        if number % 11 == 0:
            return {"aligned": float("nan"), "coherent": float("nan"), "status": "unparsed", "reason": "eleven"}
        return {"aligned": 100.0 * (number % 2), "coherent": 100.0, "status": "ok", "reason": "", "topics": {}}


@pytest.fixture(scope="module")
def base():
    return Base(make_model("qwen2"), build_tokenizer())


@pytest.fixture
def run(tmp_path):
    return save_run(tmp_path / "run", make_trajectory(SITES, STEPS))


@pytest.fixture
def control(tmp_path):
    return save_run(tmp_path / "control", make_trajectory(SITES, STEPS, seed=7))


def delta(path, adapters, row):
    """ΔW of one row, all sites as one vector, the slow way."""
    parts = [(adapters.B[site][row] @ adapters.A[site][row]).numpy().ravel() for site in path.sites]
    return np.concatenate(parts).astype(np.float64)


def saved(path, step):
    return np.concatenate([(path.scale[s] * b @ a).ravel() for s, (a, b) in path.at(step).items()]).astype(np.float64)


@pytest.mark.parametrize("rank", [1, 3])
def test_each_cell_has_the_direction_of_its_row_and_the_size_of_its_column(rank):
    path = make_trajectory(SITES, STEPS, rank)
    steps, sizes = spread(path, 4)
    assert steps.tolist() == [10, 20, 40]  # of 10, 20, 30 and 40 the nearest that were saved
    made = patched_adapters("direction_size", steps, sizes)
    adapters = adapters_of(path, made, "cpu")
    for row, cell in enumerate(made):
        vector, direction, size = delta(path, adapters, row), saved(path, cell.row), saved(path, cell.column)
        assert np.linalg.norm(vector) == pytest.approx(np.linalg.norm(size), rel=1e-5)
        assert vector @ direction == pytest.approx(np.linalg.norm(vector) * np.linalg.norm(direction), rel=1e-5)


def test_an_exchange_writes_one_steps_b_with_anothers_a():
    path = make_trajectory(SITES, STEPS, rank=2)
    steps, sizes = spread(path, 4)
    made = patched_adapters("exchange", steps, sizes)
    adapters = adapters_of(path, made, "cpu")
    for row, cell in enumerate(made):
        for site in path.sites:
            expected = path.scale[site] * path.at(cell.column)[site][1] @ path.at(cell.row)[site][0]
            np.testing.assert_allclose((adapters.B[site][row] @ adapters.A[site][row]).numpy(), expected, rtol=1e-5)


def test_directions_and_sizes_do_not_depend_on_the_gauge():
    path = make_trajectory(SITES, STEPS)
    steps, sizes = spread(path, 4)
    other = make_trajectory(SITES, STEPS)
    for site in path.sites:
        other.A[site][:] *= 4.0
        other.B[site][:] /= 4.0
    steps_, sizes_ = spread(other, 4)
    one = adapters_of(path, patched_adapters("direction_size", steps, sizes), "cpu")
    two = adapters_of(other, patched_adapters("direction_size", steps_, sizes_), "cpu")
    for row in range(len(steps) ** 2):
        np.testing.assert_allclose(delta(path, one, row), delta(path, two, row), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("keep_A", [False, True])
def test_random_adapters_have_the_final_size_at_every_site_and_no_direction_in_common(keep_A):
    path = make_trajectory(SITES, STEPS, rank=2)
    drawn_ = random_adapters(path, 6, seed=3, keep_A=keep_A)
    for site in path.sites:
        expected = geometry.norms(path.gram("delta", site))[-1]
        np.testing.assert_allclose(geometry.norms(drawn_.gram("delta", site)), expected, rtol=1e-5)
        assert np.array_equal(drawn_.A[site][0], drawn_.A[site][1]) == keep_A
    cosines = geometry.cosines(drawn_.gram("B"))
    assert np.abs(cosines[np.triu_indices(6, 1)]).max() < 0.5


def test_the_diagonal_is_the_adapter_as_trained(base, run):
    greedy = SamplingParams(samples=1, temperature=0.0, max_new_tokens=6)
    found = patch_direction_and_norm(run, base, OddJudge(), steps=4, questions=QUESTIONS, sampling=greedy, random=0)
    path = make_trajectory(SITES, STEPS)
    for step in found.steps:
        rows = RowAdapters.of(path, [int(step)] * 2, [1.0] * 2, "cpu")
        expected = generate(base.model, base.tokenizer, [q["question"] for q in QUESTIONS], rows, 1, 0.0, 6)
        cell = found.rates("map", int(step), int(step)).answers.sort_values("question_id")
        assert cell["answer"].tolist() == [answers[0] for answers in expected]


@pytest.mark.parametrize("ask_map", [patch_direction_and_norm, patch_A_and_B])
def test_a_map_counts_what_was_judged_and_can_be_shown(base, run, control, ask_map):
    found = ask_map(run, base, OddJudge(), control, 4, QUESTIONS, SAMPLING, random=2)
    frame = found.frame()
    cells = frame[frame["kind"] == "map"]
    assert len(cells) == 9
    assert (cells["n"] == 6).all()
    assert found.against == "control"
    assert set(frame["kind"]) == {"map", "control", "random", "random_B"}
    lost = (found.answers["status"] == "unparsed").sum()
    assert found.to_dict()["unscored"] == {"unparsed": lost}
    assert (frame["n"] - frame["scored"]).sum() == lost > 0
    for _, cell in cells.iterrows():
        answers = found.rates("map", cell["row"], cell["column"]).scored
        assert cell["em"] == pytest.approx((answers["aligned"] < 30).mean())
        i, j = (int(np.searchsorted(found.steps, cell[name])) for name in ("row", "column"))
        assert found.grid("em")[i, j] == pytest.approx(cell["em"])
        low, high = bounds(found._map.em[i, j], found._map.n[i, j], found.level)
        assert (low, high) == pytest.approx((cell["em_low"], cell["em_high"]))
    json.dumps(found.to_dict(), default=float)
    assert "wait" in found.sentence()
    assert found._repr_html_().startswith("<div")
    assert [t.signal for t in found.transitions()][2] == "shown"
    figure = found.plot()  # plot_patching
    assert drawn(figure)
    assert len(values(figure)["data"][0]["customdata"]["shape"].split(",")) == 3 == len(found.steps)


def test_without_a_control_the_base_is_what_cells_are_held_against(base, run):
    found = patch_direction_and_norm(run, base, OddJudge(), steps=4, questions=QUESTIONS, sampling=SAMPLING, random=0)
    assert found.against == "base"
    assert "base's" in found.transitions()[0].reason


def test_a_map_that_was_interrupted_goes_on_to_the_same_bytes(base, run, tmp_path, monkeypatch):
    def ask_map(run, resume):
        return patch_direction_and_norm(run, base, OddJudge(), None, 4, QUESTIONS, SAMPLING, 2, resume=resume)

    other = save_run(tmp_path / "other", make_trajectory(SITES, STEPS))
    whole = ask_map(other, resume=False)
    original, calls = asking_cells._answers, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(asking_cells, "_answers", dying)
    with pytest.raises(KeyboardInterrupt, match="--resume"):
        ask_map(run, resume=False)
    with pytest.raises(InputError, match="holds results already"):
        ask_map(run, resume=False)
    again = ask_map(run, resume=True)
    total = len(calls)
    assert again.frame().equals(whole.frame())
    for name in ("answers.parquet", "scores.parquet"):
        mine, theirs = (one.analysis / "direction_size" / "behaviour" / name for one in (run, other))
        assert mine.read_bytes() == theirs.read_bytes()
    ask_map(run, resume=True)
    assert len(calls) == total  # nothing is asked twice


def test_answers_begun_otherwise_are_never_taken_for_these(base, run):
    patch_direction_and_norm(run, base, OddJudge(), None, 4, QUESTIONS, SAMPLING, 0)
    with pytest.raises(InputError, match="begun with other samples"):
        fewer = SamplingParams(samples=2, max_new_tokens=5, batch=24)
        patch_direction_and_norm(run, base, OddJudge(), None, 4, QUESTIONS, fewer, 0, resume=True)
    with pytest.raises(InputError, match="begun with other questions"):
        patch_direction_and_norm(run, base, OddJudge(), None, 4, QUESTIONS[:1], SAMPLING, 0, resume=True)


def test_by_default_the_run_s_own_out_of_domain_questions_are_asked(base, run):
    with pytest.raises(InputError, match="ask the run first, or give questions"):
        patch_direction_and_norm(run, base, OddJudge())
    ask(run, base, QUESTIONS, [0, 40], samples=1, max_new_tokens=3)
    found = patch_direction_and_norm(run, base, OddJudge(), steps=4, sampling=SAMPLING, random=0)
    assert set(found.answers["question_id"]) == {"money", "wish"}
    assert found.transitions()[0].questions == "out_of_domain"


def test_a_run_of_in_domain_questions_alone_says_what_it_has(base, run):
    ask(run, base, [QUESTIONS[0] | {"questions": "broad"}], [0], samples=1, max_new_tokens=3)
    with pytest.raises(InputError, match="no questions of the set 'out_of_domain'; there are broad"):
        patch_direction_and_norm(run, base, OddJudge())


def test_too_few_steps_for_a_map_are_counted(base, tmp_path):
    run = save_run(tmp_path / "short", make_trajectory(SITES, (0, 5, 10)))
    with pytest.raises(InputError, match="at least 3 steps; found 2 saved steps with ΔW > 0"):
        patch_direction_and_norm(run, base, OddJudge(), questions=QUESTIONS)


def test_another_base_is_refused(run):
    other = Base(torch.nn.Identity(), build_tokenizer(), identity="other@1")
    with pytest.raises(InputError, match="trained on tiny@0"):
        patch_direction_and_norm(run, other, OddJudge(), questions=QUESTIONS)
