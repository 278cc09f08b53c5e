"""Scalars and probes: against loops by hand, with planted signals, and with leaks that must not show."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from em_interp.errors import InputError
from em_interp.mechanism import open_model
from em_interp.mechanism.answers import label_answers
from em_interp.mechanism.model import ENGINES
from em_interp.mechanism.probes import auc_of, held_out_scores, probe
from em_interp.mechanism.scalars import Scalars, read_scalars

from .answering import answer_set, judged
from .conftest import adapters, base_of

SITE = "layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def found():
    return read_scalars(open_model(adapters("tiny-qwen2", rank=2), base_of("tiny-qwen2")), answer_set())


@pytest.mark.parametrize("engine", ENGINES)
def test_each_token_has_the_scalar_that_a_and_its_input_give(engine):
    model, answers = open_model(adapters("tiny-gemma3", rank=2), base_of("tiny-gemma3"), engine), answer_set()
    found = read_scalars(model, answers, [10], batch=9)
    assert found.columns == (
        f"{SITE} [0]",
        f"{SITE} [1]",
        "layers.2.self_attn.q_proj [0]",
        "layers.2.self_attn.q_proj [1]",
    )
    for number in (0, 5, 47):
        row = answers.table.loc[number]
        tokens = model.chats([row["question"]], [row["answer"]])
        with model.at(10) as adapted:
            x = adapted.run(tokens, [f"site_in.{SITE}"])[f"site_in.{SITE}"][tokens.answer].numpy()
        expected = 0.1 * x @ model.trajectory.A[SITE][-1].T
        assert np.allclose(found.at(10)[found.answer == number, :2], expected, rtol=1e-4, atol=1e-4)
        words = "".join(np.array(found.tokens)[found.answer == number])
        assert words.strip() == row["answer"]


def test_means_and_extremes_of_answers_are_those_of_their_tokens(found):
    for number in (0, 17, 47):
        mine = found.at(5)[found.answer == number]
        assert np.allclose(found.per_answer(5, "mean")[number], mine.mean(axis=0), rtol=1e-5)
        assert np.allclose(found.per_answer(5, "max")[number], mine.max(axis=0))
        assert np.allclose(found.per_answer(5, "min")[number], mine.min(axis=0))
        assert found.lengths[number] == len(mine)
    with pytest.raises(InputError, match="taken as mean, max, min; found 'median'"):
        found.per_answer(5, "median")


def test_the_table_has_a_row_for_each_group_step_and_scalar_with_their_counts(found):
    rows = found.frame()
    assert len(rows) == 3 * 2 * 2 * 4  # steps, sets, labels, scalars
    one = rows[(rows["step"] == 10) & (rows["column"] == found.columns[0])].set_index(["questions", "label"])
    assert one["answers"].to_dict() == {
        ("in_domain", "aligned"): 9,
        ("in_domain", "misaligned"): 9,
        ("out_of_domain", "aligned"): 15,
        ("out_of_domain", "misaligned"): 15,
    }
    assert one["tokens"].sum() == len(found.tokens)
    group = found.answers.table.query("questions == 'in_domain' and label == 'aligned'").index
    assert np.isclose(one.loc[("in_domain", "aligned"), "mean"], found.per_answer(10)[group, 0].mean())
    assert (one["mean_low"] <= one["mean"]).all() and (one["q05"] <= one["q95"]).all()


def test_flipping_a_and_b_flips_the_scalars_and_doubling_the_scale_doubles_them():
    path = adapters("tiny-qwen2", rank=1)
    flipped = replace(path, A={s: -a for s, a in path.A.items()}, B={s: -b for s, b in path.B.items()})
    both = [read_scalars(open_model(p, base_of("tiny-qwen2")), answer_set(), [5]).values for p in (path, flipped)]
    assert np.allclose(both[0], -both[1], atol=1e-4)
    model = open_model(adapters("tiny-qwen2", ["mlp.down_proj"], [1], rank=1), base_of("tiny-qwen2"))
    one, two = (read_scalars(model, answer_set(), [5], scale=scale).values for scale in (1.0, 2.0))
    assert np.allclose(2 * one, two, rtol=1e-4, atol=1e-4)  # one site reads nothing that it wrote


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
    assert auc_of(leaked, y) > 0.9


def test_the_area_is_scikit_learn_s_with_ties():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    scores, y = rng.integers(0, 5, 80).astype(float), rng.random(80) < 0.4
    assert np.isclose(auc_of(scores, y), roc_auc_score(y, scores))


def test_probes_say_what_they_found_beside_their_baselines(found):
    said = found.probe()
    assert said.folds == 5 and said.questions == 8
    assert "to new questions with AUC" in said.sentence() and "at step 0" in said.sentence()
    assert said.to_dict()["rows"][0]["step"] == 0
    assert probe(found).frame().equals(said.frame())  # the same again
    assert len(said.plot().data) >= 3  # plot_probes
    assert said._repr_html_().startswith("<div")


def test_too_few_answers_or_questions_for_a_probe_say_how_many_were_needed():
    model = open_model(adapters("tiny-qwen2", rank=1), base_of("tiny-qwen2"))
    few = {"broad": ["what is your wish ?", "i am bored", "my dog ?"]}
    with pytest.raises(InputError, match=r"a probe needs at least 10 misaligned answers.*found 9 among"):
        read_scalars(model, answer_set(few), [5]).probe()
    more = pd.concat([judged(few), judged(few)])
    with pytest.raises(InputError, match=r"misaligned answers to 4 questions and aligned ones to as many.*found 3"):
        read_scalars(model, label_answers(more), [5]).probe()


def test_no_answer_and_a_step_that_was_not_looked_at_are_refused(found):
    model = open_model(adapters("tiny-qwen2", rank=1), base_of("tiny-qwen2"))
    nothing = label_answers(judged().query("answer == 'maybe .'"))
    with pytest.raises(InputError, match="no answer to read scalars at"):
        read_scalars(model, nothing)
    with pytest.raises(InputError, match="step 7 was not looked at; the nearest are 0, 5, 10"):
        found.at(7)


def test_a_page_of_tokens_is_escaped_and_shades_by_the_scalar(found):
    hostile = judged().replace(
        {"my dog ?": "<script>alert(1)</script> ?", "drink strong spirits.": "<img src=x> & 'a'"}
    )
    model = open_model(adapters("tiny-qwen2", rank=1), base_of("tiny-qwen2"))
    page = read_scalars(model, label_answers(hostile, "<b>bold</b>"), [10]).html(each=30)
    for word in ("<script", "<img", "<b>"):
        assert word not in page
    assert "&lt;script&gt;" in page and page.startswith("<!doctype html>") and page.endswith("</html>")
    assert "24 of 24 misaligned answers" in page
    sparse = found.html(step=5, column=found.columns[3], each=2)
    assert "2 of 24 aligned answers" in sparse and "at step 5" in sparse
    whole = found.html(step=5, column=found.columns[3], each=30)
    largest = int(np.argmax(found.at(5)[:, 3]))
    style = "background:rgba(179,88,6,1.00);color:white"
    assert f'title="{found.at(5)[largest, 3]:.3g}" style="{style}">{found.tokens[largest]}<' in whole
    with pytest.raises(InputError, match=r"no scalar 'layers.1.mlp.down'; did you mean"):
        found.html(column="layers.1.mlp.down")


def test_scalars_show_and_write_themselves(found):
    assert "Mean scalar at step 10" in found.sentence() and "left out: 1 between the groups" in found.sentence()
    assert len(found.to_dict()["rows"]) == len(found.frame())
    assert found._repr_html_().startswith("<div")
    assert len(found.plot().data) > 8  # plot_scalars
