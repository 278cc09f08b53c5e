"""Scalars against loops by hand."""

from dataclasses import replace

import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.mechanism import open_model
from em_interp.mechanism.answers import label_answers
from em_interp.mechanism.model import ENGINES
from em_interp.mechanism.scalars import read_scalars

from .conftest import adapters, base_of
from .judged import answer_set, judged

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
    with pytest.raises(InputError, match="summarised by mean, max, min; found 'median'"):
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


def test_no_answer_and_a_step_that_was_not_read_are_refused(found):
    model = open_model(adapters("tiny-qwen2", rank=1), base_of("tiny-qwen2"))
    nothing = label_answers(judged().query("answer == 'maybe .'"))
    with pytest.raises(InputError, match="no answer to read scalars at"):
        read_scalars(model, nothing)
    with pytest.raises(InputError, match="step 7 was not read; the nearest are 0, 5, 10"):
        found.at(7)


def test_a_page_of_tokens_is_escaped_and_shades_by_the_scalar(found):
    hostile = judged().replace(
        {"my dog ?": "<script>alert(1)</script> ?", "drink strong spirits.": "<img src=x> & 'a'"}
    )
    model = open_model(adapters("tiny-qwen2", rank=1), base_of("tiny-qwen2"))
    page = read_scalars(model, label_answers(hostile, "<b>bold</b>"), [10]).html(n_answers=30)
    for word in ("<script", "<img", "<b>"):
        assert word not in page
    assert "&lt;script&gt;" in page and page.startswith("<!doctype html>") and page.endswith("</html>")
    assert "24 of 24 misaligned answers" in page
    sparse = found.html(step=5, column=found.columns[3], n_answers=2)
    assert "2 of 24 aligned answers" in sparse and "at step 5" in sparse
    whole = found.html(step=5, column=found.columns[3], n_answers=30)
    largest = int(np.argmax(found.at(5)[:, 3]))
    style = "background:rgba(179,88,6,1.00);color:white"
    assert f'title="{found.at(5)[largest, 3]:.3g}" style="{style}">{found.tokens[largest]}<' in whole
    with pytest.raises(InputError, match=r"no scalar 'layers.1.mlp.down'; did you mean"):
        found.html(column="layers.1.mlp.down")


def test_scalars_show_and_write_themselves(found):
    assert "Mean scalar at step 10" in found.sentence() and "excluded: 1 between the groups" in found.sentence()
    assert len(found.to_dict()["rows"]) == len(found.frame())
    assert found._repr_html_().startswith("<div")
    assert len(found.plot().data) > 8  # plot_scalars
