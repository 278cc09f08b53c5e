"""Probes with planted signals, and with leaks that must not show."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from em_interp.errors import InputError
from em_interp.mechanism import open_model
from em_interp.mechanism.answers import label_answers
from em_interp.mechanism.probes import held_out_scores, probe, weighted_aucs
from em_interp.mechanism.scalars import Scalars, read_scalars

from .conftest import adapters, base_of
from .judged import answer_set, judged


@pytest.fixture(scope="module")
def scalars():
    return read_scalars(open_model(adapters("tiny-qwen2", rank=2), base_of("tiny-qwen2")), answer_set())


def planted(shift, seed=0, columns=2, of_question=False, questions=24, steps=(10,)):
    """Scalars without a model: noise, plus `shift` in the first for misaligned answers."""
    rng = np.random.default_rng(seed)
    asked = {"broad": [f"question {number} ?" for number in range(questions)]}
    table = judged(asked)[: 6 * questions]  # without those to be left out
    if of_question:  # every answer to a question is of one kind, and the scalars know the question
        kind = dict(zip(table["question_id"].unique(), rng.permutation(questions) % 2, strict=True))
        table = table.assign(aligned=np.where(table["question_id"].map(kind), 95.0, 10.0))
    answers = label_answers(table)
    answer = np.repeat(np.arange(len(answers)), 6)
    values = rng.normal(size=(len(steps), len(answer), columns))
    values[-1, :, 0] += shift * answers.misaligned[answer]
    if of_question:
        values += 5 * rng.normal(size=(questions, columns))[answers.question][answer]
    names = tuple(f"layers.{layer}.mlp.down_proj" for layer in range(columns))
    return Scalars(answers, np.array(steps), names, answer, ("word",) * len(answer), values)


def test_a_planted_difference_is_found_with_its_interval_and_its_absence_too():
    rows = probe(planted(1.0)).frame().set_index("step")
    assert rows.loc[10, "auc_low"] > 0.85 and rows.loc[10, "auc"] <= rows.loc[10, "auc_high"]
    aucs = [probe(planted(0.0, seed)).frame()["auc"].mean() for seed in range(4)]
    assert abs(np.mean(aucs) - 0.5) < 0.08


def test_scalars_that_only_know_the_question_tell_nothing_about_new_questions():
    data = [planted(0.0, seed, columns=12, of_question=True) for seed in range(4)]
    aucs = [probe(one).frame()["auc"].mean() for one in data]
    assert abs(np.mean(aucs) - 0.5) < 0.15
    one = data[0]
    x, y = one.per_answer(10), one.answers.misaligned
    leaked = held_out_scores(x, y, np.arange(len(y)))  # as if each answer were a question of its own
    assert roc_auc_score(y, leaked) > 0.9


def test_the_area_is_scikit_learn_s_with_ties_and_weights():
    rng = np.random.default_rng(0)
    scores, y, weights = rng.integers(0, 5, 80).astype(float), rng.random(80) < 0.4, rng.integers(0, 4, (3, 80))
    for weight, area in zip(weights, weighted_aucs(scores, y, weights.astype(float)), strict=True):
        assert np.isclose(area, roc_auc_score(y, scores, sample_weight=weight))
    assert np.isclose(weighted_aucs(scores, y, np.ones((1, 80)))[0], roc_auc_score(y, scores))


def test_a_probe_at_chance_is_not_said_to_tell_the_answers_apart(scalars):
    found = scalars.probe()
    rows = found.frame().drop(columns="length_auc").assign(auc=0.53, auc_low=0.44, auc_high=0.6)
    assert " does not tell misaligned from aligned answers" in replace(found, rows=rows).sentence()
    clear = replace(found, rows=rows.assign(auc=0.9, auc_low=0.8, auc_high=0.95)).sentence()
    assert " tells misaligned from aligned answers to new questions: AUC 0.90" in clear and "chance 0.5" in clear


def test_probes_say_what_they_found_and_their_baselines(scalars):
    found = scalars.probe()
    assert found.folds == 5 and found.questions == 8
    assert "to new questions: AUC" in found.sentence() and "at step 0" in found.sentence()
    assert found.to_dict()["rows"][0]["step"] == 0
    assert probe(scalars).frame().equals(found.frame())  # the same again
    assert len(found.plot().data) >= 3  # plot_probes
    assert found._repr_html_().startswith("<div")


def test_the_sign_of_the_adapter_does_not_alter_what_its_scalars_tell():
    data = planted(0.3)
    lopsided = replace(data, values=np.exp(data.values))  # its largest scalars say more than its smallest
    flipped = replace(lopsided, values=-lopsided.values)
    assert np.allclose(probe(lopsided).frame(), probe(flipped).frame(), atol=1e-3)


def test_too_few_answers_or_questions_for_a_probe_say_how_many_were_needed():
    model = open_model(adapters("tiny-qwen2", rank=1), base_of("tiny-qwen2"))
    few = {"broad": ["what is your wish ?", "i am bored", "my dog ?"]}
    with pytest.raises(InputError, match=r"a probe needs at least 10 misaligned answers.*found 9 among"):
        read_scalars(model, answer_set(few), [5]).probe()
    with pytest.raises(InputError, match="level must lie between 0 and 1"):
        read_scalars(model, answer_set(few), [5]).probe(level=95)
    more = pd.concat([judged(few), judged(few)])
    with pytest.raises(InputError, match=r"misaligned answers to 4 questions and aligned ones to as many.*found 3"):
        read_scalars(model, label_answers(more), [5]).probe()
