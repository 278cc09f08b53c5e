"""Logit lenses of directions: which tokens are shared, what a direction promotes, and their rank correlation."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from em_interp.comparison.cross_base.logit_lens import rank_correlation, shared_tokens
from em_interp.errors import InputError
from em_interp.mechanism.logit_lens import unembed
from em_interp.organisms.bases import load_base


@pytest.fixture(scope="module")
def base():
    return load_base("tiny-gemma3")


class Vocabulary:
    """A tokenizer of whole words, with what `shared_tokens` needs of one."""

    def __init__(self, words, special=()):
        self.words, self.all_special_ids = words, list(special)

    def __len__(self):
        return len(self.words)

    def batch_decode(self, ids, clean_up_tokenization_spaces):
        assert clean_up_tokenization_spaces is False
        return ["".join(self.words[i] for i in row) for row in ids]


def test_tokens_are_shared_by_their_text_and_the_rest_is_counted():
    words = [f" w{k}" for k in range(12)]
    one = Vocabulary(["<end>", *words, "only here", "twice", "twice"], special=[0])
    other = Vocabulary([*words[::-1], "twice", "<end>"], special=[13])
    found = shared_tokens(one, other)
    assert found.texts == tuple(sorted(words))
    assert [one.words[i] for i in found.first] == [other.words[i] for i in found.second] == list(found.texts)
    assert found.sizes == (16, 14)
    assert found.left_out == (3, 1)
    with pytest.raises(InputError, match="have 0 tokens of equal text"):
        shared_tokens(Vocabulary(words), Vocabulary(["other"] * 9))


def test_the_built_in_bases_share_their_words(base):
    found = shared_tokens(base.tokenizer, load_base("tiny-llama").tokenizer)
    assert " doctor" in found.texts and "<end>" not in found.texts
    assert len(found.texts) > 200


def test_a_direction_along_a_tokens_unembedding_promotes_that_token(base):
    head, gains = base.model.get_output_embeddings().weight, 1 + base.model.model.norm.weight
    number = base.tokenizer.encode(" doctor")[0]
    direction = (head[number] / gains).detach().numpy().astype(float)
    values = unembed(base.model, np.stack([direction, -direction]))
    assert np.argmax(values[0]) == number
    np.testing.assert_allclose(values[1], -values[0], atol=1e-5)


def test_length_does_not_change_the_logits_and_zero_has_no_correlation(base):
    w = np.random.default_rng(0).normal(size=(1, 128))
    np.testing.assert_allclose(unembed(base.model, w), unembed(base.model, 1e-6 * w), atol=1e-4)
    nothing = unembed(base.model, 0 * w)
    assert np.isnan(rank_correlation(nothing, nothing)).all()


def test_correlation_is_spearmans_of_every_pair():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 50)), rng.integers(0, 9, size=(3, 50)).astype(float)
    found = rank_correlation(one, other)
    assert found.shape == (2, 3)
    assert found[1, 2] == pytest.approx(spearmanr(one[1], other[2]).statistic)
    assert rank_correlation(one, one)[0, 0] == pytest.approx(1)
    np.testing.assert_allclose(rank_correlation(-one, other), -found)
