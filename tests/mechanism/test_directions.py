"""Mean-difference directions against slow obvious ways, planted truths and invariances."""

from dataclasses import replace

import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.mechanism import open_model
from em_interp.mechanism.directions import mean_difference
from em_interp.mechanism.model import ENGINES
from em_interp.organisms.bases import BUILT_IN

from .conftest import adapters, base_of
from .conftest import opened as opened_at_two_sites
from .judged import answer_set
from .planted import direction, model


def opened(name, engine="hooks"):
    return open_model(adapters(name, ["mlp.down_proj"], [1], rank=1, scale=0.2), base_of(name), engine)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_direction_is_the_difference_of_means_taken_one_answer_at_a_time(name):
    model, answers = opened(name), answer_set()
    found = mean_difference(model, answers, batch=7)
    means = {"misaligned": [], "aligned": []}
    with model.at(10) as adapted:
        for row in answers.table.itertuples():
            tokens = model.chats([row.question], [row.answer])
            assert tokens.mask.all()  # alone, so without padding
            stream = adapted.run(tokens, ["resid_post.2"])["resid_post.2"][0]
            inside = [i for i in range(len(stream)) if tokens.answer[0, i]]
            means[row.label].append(sum(stream[i].double() for i in inside) / len(inside))
    expected = sum(means["misaligned"]) / 24 - sum(means["aligned"]) / 24
    assert np.allclose(found.vector(2), expected.numpy(), atol=1e-4)


def test_the_direction_is_the_same_in_every_engine():
    vectors = [mean_difference(opened("tiny-gemma3", engine), answer_set()).vectors for engine in ENGINES]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-4 and np.abs(vectors[0] - vectors[2]).max() < 1e-4


def test_halves_of_unlike_questions_agree_less_than_halves_of_like_ones():
    model, answers = opened("tiny-qwen2"), answer_set()
    whole = mean_difference(model, answers)
    rng, mis = np.random.default_rng(0), answers.misaligned
    shift = rng.normal(size=(8, *whole.means.shape[1:])) * np.linalg.norm(whole.vectors, axis=1).mean()
    unlike = replace(whole, means=whole.means + shift[answers.question] * mis[:, None, None])
    assert unlike.reliability.max() < 0.8 < 0.9 < whole.reliability.min() <= 1


def test_both_contrasts_are_the_same_where_the_adapter_does_nothing_yet():
    subject, answers = opened_at_two_sites("tiny-qwen2").models["hooks"], answer_set()
    one, other = (mean_difference(subject, answers, contrast, step=0).vectors for contrast in ("answers", "models"))
    np.testing.assert_allclose(one, other, atol=1e-4)
    last = [mean_difference(subject, answers, contrast) for contrast in ("answers", "models")]
    np.testing.assert_allclose(last[0].cosine(last[0]), 1)
    assert (last[0].cosine(last[1])[1:] < 0.9999).all()  # after layer 1 the adapter writes


def test_with_the_models_contrast_aligned_answers_are_read_by_the_base():
    subject, answers = opened("tiny-qwen2"), answer_set()
    found = mean_difference(subject, answers, "models")
    adapted, base = (mean_difference(subject, answers, scale=scale).means for scale in (1.0, 0.0))
    mis = answers.misaligned
    np.testing.assert_allclose(found.vectors, adapted[mis].mean(axis=0) - base[~mis].mean(axis=0), atol=1e-6)


def test_a_direction_that_cannot_be_made_or_used_is_refused():
    with pytest.raises(InputError, match="contrast 'model' is not known; did you mean 'models'"):
        mean_difference(model(), answer_set(), "model")
    few = answer_set({"out_of_domain": ["i am bored"]})
    with pytest.raises(InputError, match=r"direction needs at least 10 misaligned answers .* found 3 among"):
        mean_difference(opened("tiny-qwen2"), few)
    with pytest.raises(InputError, match="from the base other@1; the model's is tiny@0"):
        direction(identity="other@1").check(model(), [0])
    direction(identity="renamed@0").check(model(), [0])
    with pytest.raises(InputError, match="no layer 4; the direction is known for 0 to 3"):
        mean_difference(opened("tiny-qwen2"), answer_set()).vector(4)


def test_a_direction_says_what_it_was_made_of():
    assert "misaligned minus aligned answers in the adapted model, from step 10 of planted" in repr(direction())
    assert np.isnan(direction().reliability).all()  # of a direction without its answers
    found = mean_difference(opened("tiny-qwen2"), answer_set())
    assert "24 misaligned and 24 aligned answers" in found.sentence() and "two halves" in found.sentence()
    assert found.to_dict()["answers"]["misaligned"] == 24 and len(found.to_dict()["layers"]) == len(found.frame()) == 4
    assert found._repr_html_().startswith("<div")
    assert len(found.plot().data) == 2  # plot_mean_difference
    assert repr(answer_set()).startswith(f"AnswerSet({answer_set().sentence()}")
