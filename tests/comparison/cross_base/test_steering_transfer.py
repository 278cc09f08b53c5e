"""The margin of steering transfer: the log-probability of answers, whatever fits in memory."""

import numpy as np
import pytest

from em_interp.behaviour.sampling import memory
from em_interp.comparison.cross_base.activation_diff import pooled_streams
from em_interp.comparison.cross_base.steering_transfer import Margin
from em_interp.comparison.cross_base.texts import built_in_texts
from em_interp.mechanism import AddVector, open_model
from tests.comparison.cross_base.two_bases import path_on, small_base

TEXTS = built_in_texts(60)


@pytest.fixture(scope="module")
def model():
    base = small_base()
    return open_model(path_on(base), base)


def slow(adapted, tokens, interventions):
    """Every answer alone, from the logits of all its positions."""
    means = []
    for row in range(len(tokens)):
        part = tokens.rows([row])
        logits = adapted.run(part, (), interventions).logits[0].double()
        places = part.answer[0].nonzero()[:, 0]
        chosen = logits.log_softmax(dim=-1)[places - 1, part.ids[0, places]]
        means.append(float(chosen.mean()))
    return np.mean(means)


@pytest.fixture
def shapes(model, monkeypatch):
    """The shapes of all logits that are computed."""
    seen, run = [], model.engine.run
    monkeypatch.setattr(model.engine, "run", lambda *given: seen.append((made := run(*given))[0].shape) or made)
    return seen


def test_the_margin_is_that_of_each_answer_alone_and_is_read_in_parts_that_fit(model, shapes, monkeypatch):
    margin = Margin.of(model, TEXTS)
    added = [AddVector(np.random.default_rng(0).normal(size=32).astype(np.float32), 0)]
    with model.at(40) as adapted:
        expected = slow(adapted, margin.misaligned, added) - slow(adapted, margin.aligned, added)
        shapes.clear()
        whole = margin(adapted, added)
        assert len(shapes) == 2 and all(positions < margin.misaligned.ids.shape[1] for _, positions, _ in shapes)
        shapes.clear()
        monkeypatch.setattr(memory, "free_memory", lambda device: 1e6)
        parts = margin(adapted, added)
    assert len(shapes) > 4
    assert whole == pytest.approx(expected, abs=1e-5) and parts == pytest.approx(expected, abs=1e-5)


def test_streams_are_read_without_the_logits_of_a_whole_vocabulary(model, shapes):
    with model.at(40) as adapted:
        shapes.clear()  # of the check that the adapter is in effect
        pooled_streams(adapted, model.chats(TEXTS.questions, TEXTS.answers), np.array([0, 1]))
    assert shapes and {positions for _, positions, _ in shapes} == {1}
