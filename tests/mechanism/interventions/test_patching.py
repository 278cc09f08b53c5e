import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from em_interp.behaviour.sampling.ask import ask
from em_interp.behaviour.sampling.generate import RowAdapters, generate
from em_interp.errors import InputError
from em_interp.mechanism.interventions.experiments import SamplingParams
from em_interp.mechanism.interventions.patched_adapters import PatchingExperiment, control_adapters
from em_interp.mechanism.interventions.patching import patch
from em_interp.mechanism.interventions.sufficiency import rate_intervals
from em_interp.mechanism.model import open_model
from em_interp.utils.stages import Storage
from tests.behaviour.conftest import SITES, Base, build_tokenizer, make_model, make_trajectory, save_run
from tests.figures.reading import drawn, values
from tests.interrupting import interrupt_call

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
def model(base, tmp_path):
    return open_model(save_run(tmp_path / "run", make_trajectory(SITES, STEPS)), base)


@pytest.fixture
def control(tmp_path):
    return save_run(tmp_path / "control", make_trajectory(SITES, STEPS, seed=7))


def test_the_diagonal_is_the_adapter_as_trained(base, model):
    greedy = SamplingParams(samples=1, temperature=0.0, max_new_tokens=6)
    found = patch(model, OddJudge(), None, 4, QUESTIONS, greedy, n_random=0)
    path = make_trajectory(SITES, STEPS)
    for step in found.steps:
        rows = RowAdapters.of(path, [int(step)] * 2, [1.0] * 2, "cpu")
        expected = generate(base.model, base.tokenizer, [q["question"] for q in QUESTIONS], rows, 1, 0.0, 6)
        cell = found.rates("grid", int(step), int(step)).answers.sort_values("question_id")
        assert cell["answer"].tolist() == [answers[0] for answers in expected]


@pytest.mark.parametrize("components", ["direction_norm", "A_B"])
def test_a_grid_counts_what_was_judged_and_can_be_shown(model, control, components):
    found = patch(model, OddJudge(), control, 4, QUESTIONS, SAMPLING, 2, components)
    frame = found.frame()
    cells = frame[frame["kind"] == "grid"]
    assert len(cells) == 9
    assert (cells["n"] == 6).all()
    assert found.control == "control"
    assert set(frame["kind"]) == {"grid", "control", "random", "random_B"}
    lost = (found.answers["status"] == "unparsed").sum()
    assert found.to_dict()["unscored"] == {"unparsed": lost}
    assert (frame["n"] - frame["scored"]).sum() == lost > 0
    for _, cell in cells.iterrows():
        answers = found.rates("grid", cell["row"], cell["column"]).scored
        assert cell["em"] == pytest.approx((answers["aligned"] < 30).mean())
        i, j = (int(np.searchsorted(found.steps, cell[name])) for name in ("row", "column"))
        assert found._counts.rate[i, j] == pytest.approx(cell["em"])
        low, high = rate_intervals(found._counts.em[i, j], found._counts.n[i, j], found.level)
        assert (low, high) == pytest.approx((cell["em_low"], cell["em_high"]))
    json.dumps(found.to_dict(), default=float)
    first, second = found.names
    assert found.verdict == "none" and "there is no behaviour to recover" in found.sentence()
    assert (
        f"the behaviour is shown with the final {second} at no tested step, with the final {first} " in found.sentence()
    )
    assert found._repr_html_().startswith("<div")
    assert [t.signal for t in found.transitions()][2] == "sufficient_as_trained"
    figure = found.plot()  # plot_patching
    assert drawn(figure)
    assert len(values(figure)["data"][0]["customdata"]["shape"].split(",")) == 3 == len(found.steps)


def test_without_a_control_the_cells_are_compared_with_the_base(model):
    found = patch(model, OddJudge(), None, 4, QUESTIONS, SAMPLING, n_random=0)
    assert found.control == "base"
    assert "base's" in found.transitions()[0].reason


def test_a_grid_that_was_interrupted_continues_to_the_same_bytes(model, tmp_path, monkeypatch):
    def patched(storage):
        return patch(model, OddJudge(), None, 4, QUESTIONS, SAMPLING, 2, storage=storage)

    whole = patched(tmp_path / "whole")
    calls = interrupt_call(monkeypatch, PatchingExperiment, "open_batch", 3)
    with pytest.raises(KeyboardInterrupt, match="resume=True"):
        patched(tmp_path / "stopped")
    with pytest.raises(InputError, match="holds answers already"):
        patched(tmp_path / "stopped")
    again = patched(Storage(tmp_path / "stopped", resume=True))
    total = len(calls)
    assert again.frame().equals(whole.frame())
    for name in ("answers.parquet", "scores.parquet"):
        mine, other = (tmp_path / folder / "behaviour" / name for folder in ("stopped", "whole"))
        assert mine.read_bytes() == other.read_bytes()
    patched(Storage(tmp_path / "stopped", resume=True))
    assert len(calls) == total  # nothing is sampled twice


def test_answers_begun_with_other_settings_are_never_taken_for_these(model, tmp_path):
    storage = Storage(tmp_path / "kept", resume=True)
    patch(model, OddJudge(), None, 4, QUESTIONS, SAMPLING, 0, storage=storage)
    with pytest.raises(InputError, match="begun with other samples"):
        fewer = SamplingParams(samples=2, max_new_tokens=5, batch=24)
        patch(model, OddJudge(), None, 4, QUESTIONS, fewer, 0, storage=storage)
    with pytest.raises(InputError, match="begun with other questions"):
        patch(model, OddJudge(), None, 4, QUESTIONS[:1], SAMPLING, 0, storage=storage)


def test_by_default_the_run_s_own_questions_outside_the_training_domain_are_asked(base, model):
    with pytest.raises(InputError, match="ask the run first, or give some"):
        patch(model, OddJudge())
    inside = {"question_id": "word9", "question": "what is your word9 ?", "questions": "in_domain"}
    ask(model.run, base, [*QUESTIONS, inside], [0, 40], samples=1, max_new_tokens=3)
    found = patch(model, OddJudge(), steps=4, sampling=SAMPLING, n_random=0)
    assert set(found.answers["question_id"]) == {"money", "wish"}
    assert found.transitions()[0].questions == "out_of_domain"


def test_other_components_and_a_level_that_is_none_are_refused_before_anything_is_sampled(model):
    with pytest.raises(InputError, match="components 'A_b' is not known; did you mean 'A_B'"):
        patch(model, OddJudge(), questions=QUESTIONS, components="A_b")
    with pytest.raises(InputError, match="level must lie between 0 and 1"):
        patch(model, OddJudge(), questions=QUESTIONS, level=95)


def test_too_few_steps_for_a_grid_are_counted(base, tmp_path):
    model = open_model(save_run(tmp_path / "short", make_trajectory(SITES, (0, 5, 10))), base)
    with pytest.raises(InputError, match="at least 3 steps; found 2 saved steps with ΔW > 0"):
        patch(model, OddJudge(), questions=QUESTIONS)


def test_a_control_of_another_base_is_refused(base, model, tmp_path):
    other = save_run(tmp_path / "other", make_trajectory(SITES, STEPS), "other@1")
    with pytest.raises(InputError, match="trained on other@1"):
        patch(model, OddJudge(), other, questions=QUESTIONS)
    of_other_base = open_model(other, Base(base.model, base.tokenizer, identity="other@1"))
    with pytest.raises(InputError, match="the control is of the base other@1; the model's is tiny@0"):
        patch(model, OddJudge(), of_other_base, questions=QUESTIONS)
    renamed = open_model(model.run, Base(base.model, base.tokenizer, identity="renamed@0"))
    assert control_adapters(model, renamed)[0] is renamed.trajectory


def test_a_model_of_another_base_is_refused(model):
    other = Base(torch.nn.Identity(), build_tokenizer(), identity="other@1")
    with pytest.raises(InputError, match="trained on tiny@0"):
        open_model(model.run, other)
