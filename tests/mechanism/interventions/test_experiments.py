"""The experiment behind ablation and steering: conditions share batches and answer as they do alone."""

import numpy as np
import pytest

from em_interp.behaviour.sampling.ask import ask
from em_interp.errors import InputError
from em_interp.mechanism.interventions.ablation import ablate
from em_interp.mechanism.interventions.experiments import (
    InterventionCondition,
    InterventionExperiment,
    SamplingParams,
    interventions_of,
    main_questions,
    no_intervention,
    run_experiment,
)
from em_interp.mechanism.interventions.patching import patch
from em_interp.mechanism.interventions.steering import steer
from em_interp.mechanism.model import ENGINES, open_model
from em_interp.utils.stages import Storage
from tests.behaviour.conftest import SITES, make_trajectory, save_run
from tests.mechanism.conftest import QUESTIONS, opened
from tests.mechanism.planted import LAYER, WordJudge, base, direction, model
from tests.mechanism.planted import QUESTIONS as PLANTED_QUESTIONS

SAMPLING = SamplingParams(samples=5, max_new_tokens=3, batch=300)


def conditions_of_every_kind(layers, d, seed=0):
    """Three conditions of each method: after one layer, after two, and on generated tokens only; and none."""
    rng, conditions = np.random.default_rng(seed), []
    for method in ("add", "ablate", "ablate_norm_matched"):
        for chosen, positions in (([1], "all"), ([0, 2], "all"), ([1], "generated")):
            vectors, ablated = np.zeros((layers, d)), np.zeros((layers, d))
            vectors[chosen], ablated[chosen] = rng.normal(size=(2, len(chosen), d)) * 3
            ablated = ablated if method == "ablate_norm_matched" else None
            conditions.append(
                InterventionCondition("adapted", method, method, vectors, ablated=ablated, positions=positions)
            )
    return [*conditions, no_intervention("adapted", conditions[0].vectors)[0]]


@pytest.mark.parametrize("engine", ENGINES)
def test_conditions_of_every_kind_in_one_batch_answer_as_each_does_alone(engine):
    subject = opened("tiny-qwen2").models[engine]
    conditions = conditions_of_every_kind(subject.layers, subject.d_model)
    with subject.at(10) as adapted:
        rows = [(condition, question) for condition in conditions for question in QUESTIONS]
        interventions = interventions_of([condition for condition, _ in rows])
        greedy = {"temperature": 0, "max_new_tokens": 8}
        together = adapted.generate([question for _, question in rows], interventions=interventions, **greedy)
        alone = [
            adapted.generate([question], interventions=interventions_of([condition]), **greedy)[0]
            for condition, question in rows
        ]
        without = adapted.generate(QUESTIONS, **greedy)
    assert together == alone
    assert together[-len(QUESTIONS) :] == without
    assert together[: len(QUESTIONS)] != without


def test_the_table_has_a_row_an_answer_with_the_columns_of_its_condition():
    conditions = [*no_intervention("base", direction().vectors), *no_intervention("adapted", direction().vectors)]
    experiment = InterventionExperiment(model(), conditions)
    table = run_experiment(experiment, WordJudge(), PLANTED_QUESTIONS, SAMPLING, Storage())
    assert len(table) == 8 * 3 * 5
    assert table.groupby("model").size().to_dict() == {"base": 60, "adapted": 60}
    assert set(table["number"]) == {0, 1, 2, 3} and set(table["coefficient"]) == {0.0}
    assert table["step"].tolist() == sorted(table["step"]) and table["step"].nunique() == 8


def test_an_experiment_that_was_stopped_continues_to_the_same_bytes(tmp_path, monkeypatch):
    def stage(folder, resume=False):
        sampling = SamplingParams(samples=3, max_new_tokens=3, batch=12)
        storage = Storage(folder, resume)
        ablate(model(), direction(), WordJudge(), PLANTED_QUESTIONS, [LAYER], sampling, n_random=1, storage=storage)
        return {file.name: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}

    whole = stage(tmp_path / "whole")
    entered = iter(range(3))
    at = type(model()).at
    monkeypatch.setattr(type(model()), "at", lambda *a, **k: at(*a, **k) if next(entered, None) is not None else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage(tmp_path / "stopped")
    monkeypatch.undo()
    with pytest.raises(InputError, match="give resume=True"):
        stage(tmp_path / "stopped")
    assert stage(tmp_path / "stopped", resume=True) == whole
    with pytest.raises(InputError, match="begun with other"):
        storage = Storage(tmp_path / "whole", resume=True)
        ablate(model(), direction(), WordJudge(), PLANTED_QUESTIONS, [0], SAMPLING, storage=storage)


def test_an_experiment_without_questions_is_refused_before_anything_is_written(tmp_path):
    experiment = InterventionExperiment(model(), no_intervention("base", direction().vectors))
    with pytest.raises(InputError, match="no question"):
        run_experiment(experiment, WordJudge(), [], SAMPLING, Storage(tmp_path / "kept"))
    assert not list(tmp_path.iterdir())


def asked(folder, *sets):
    """A run that was asked one question of each of these sets, with its model."""
    run = save_run(folder / "run", make_trajectory(SITES, (0, 5, 10, 20)))
    questions = [{"question_id": name, "question": "what is your word9 ?", "questions": name} for name in sets]
    ask(run, base(), questions, [0, 20], samples=1, max_new_tokens=2)
    return open_model(run, base())


@pytest.mark.parametrize(
    ("sets", "main"),
    [
        (("in_domain", "broad", "out_of_domain"), ["out_of_domain"]),
        (("json", "broad"), ["broad"]),
        (("all", "json"), ["all"]),
        (("in_domain", "json"), ["in_domain", "json"]),
    ],
)
def test_the_main_questions_are_of_the_first_set_outside_the_training_domain(sets, main, tmp_path):
    assert [question["questions"] for question in main_questions(asked(tmp_path, *sets).run)] == main


def test_every_experiment_asks_the_main_questions_of_a_run_without_the_set_out_of_domain(tmp_path):
    """Such as one of `questions: default`, which has only the set broad."""
    subject, judge, few = asked(tmp_path, "json", "broad"), WordJudge(), SamplingParams(samples=1, max_new_tokens=2)
    found = [
        ablate(subject, direction(), judge, layers=[0], sampling=few, n_random=1),
        steer(subject, direction(), judge, coefficients=1.0, sampling=few, n_random=1, refine=False),
        *(
            patch(subject, judge, steps=3, sampling=few, n_random=0, components=components)
            for components in ("direction_norm", "A_B")
        ),
    ]
    assert [set(result.answers["questions"]) for result in found] == [{"broad"}] * 4
