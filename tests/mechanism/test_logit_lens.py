import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from em_interp.errors import InputError
from em_interp.mechanism.attribution import attribute_direction
from em_interp.mechanism.logit_lens import final_rms, jaccard, read_logit_lens, unembed
from tests.behaviour.conftest import SHAPE
from tests.figures.reading import drawn, trace, values
from tests.mechanism.conftest import opened
from tests.mechanism.judged import answer_set

STEPS = (0, 5, 10, 20, 30)
ANSWERS = answer_set()


def subject(name="tiny-qwen2"):
    return opened(name).models["hooks"]


def row_of(model, text):
    """The token's own direction, before the final norm's gains."""
    inner = model.base.model
    token = model.base.tokenizer(text, add_special_tokens=False)["input_ids"]
    gain = inner.get_decoder().norm.weight
    gain = 1 + gain if "Gemma" in type(inner).__name__ else gain
    return (inner.get_output_embeddings().weight[token[0]] / gain).detach().double().numpy()


def path_to(model, text, other, turn):
    """Writes that point at one token up to a step, and at another from there on, ever larger; nothing at step 0."""
    rows = [row_of(model, other if step < turn else text) * step for step in STEPS]
    return {"layers.1.mlp.down_proj": np.stack(rows)}


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-llama", "tiny-gemma3"])
def test_the_planted_token_is_promoted_most_and_settles_where_it_was_planted(name):
    model = subject(name)
    (found,) = read_logit_lens(model, ANSWERS, path_to(model, " skip", " rest", 10), STEPS, k=5)
    assert found.last("promoted")[0].strip() == "skip"
    assert found.frame().query("step == 5 and side == 'promoted' and rank == 1")["token"].item().strip() == "rest"
    assert found.settled("promoted") == found.settled("suppressed") == 10
    assert np.isnan(found.jaccard("promoted")[0])  # nothing is written at step 0
    np.testing.assert_array_equal(found.jaccard("promoted")[2:], 1)
    effect = next(found.followed[text] for text in found.followed if text.strip() == "skip")
    np.testing.assert_allclose(effect[3:] / effect[2], [2, 3], rtol=1e-5)  # effects are as large as the write
    assert "settled from step 10 on" in found.sentence()


def test_a_write_that_turns_at_the_last_step_has_not_settled():
    (found,) = read_logit_lens(subject(), ANSWERS, path_to(subject(), " skip", " rest", 30), STEPS, k=5)
    assert found.settled("promoted") is None
    assert "settled at the last step only" in found.sentence()


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-gemma3"])
def test_the_effect_is_what_the_write_adds_to_the_logits_with_the_norm_held_fixed(name):
    model = subject(name)
    write = np.random.default_rng(0).normal(size=(2, model.d_model))
    rms = final_rms(model, ANSWERS)
    fast = unembed(model.base.model, write / rms, unit=False)
    norm, head = model.base.model.get_decoder().norm, model.base.model.get_output_embeddings()
    x = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    x = x * rms / x.pow(2).mean().sqrt()
    with torch.no_grad():
        for index, one in enumerate(write):
            small = 1e-3  # so small that the norm of the stream hardly changes
            across = torch.as_tensor(one) - x * (x.double() @ torch.as_tensor(one)) / (x @ x)  # and not along it
            moved = head(norm(x + small * across.float())) - head(norm(x))
            slow = moved.double().numpy() / small
            along = unembed(model.base.model, (one - across.numpy())[None] / rms, unit=False)[0]
            np.testing.assert_allclose(slow - slow.mean() + along, fast[index], atol=0.02 * np.abs(fast).max())


def test_the_bias_of_a_norm_is_no_effect_of_a_write():
    config = AutoConfig.for_model("stablelm", **SHAPE, vocab_size=120)  # whose norm has a bias
    model = AutoModelForCausalLM.from_config(config)
    model.get_decoder().norm.bias.data.normal_()
    write = np.random.default_rng(0).normal(size=(2, config.hidden_size))
    np.testing.assert_array_equal(unembed(model, 0 * write), 0)
    np.testing.assert_allclose(unembed(model, -write), -unembed(model, write), atol=1e-5)


def test_tokens_do_not_depend_on_how_large_the_write_is_and_turn_round_with_its_sign():
    writes = path_to(subject(), " skip", " rest", 10)
    (one,) = read_logit_lens(subject(), ANSWERS, writes, STEPS)
    (larger,) = read_logit_lens(subject(), ANSWERS, {site: 7 * write for site, write in writes.items()}, STEPS)
    (turned,) = read_logit_lens(subject(), ANSWERS, {site: -write for site, write in writes.items()}, STEPS)
    np.testing.assert_array_equal(one.top["promoted"][1:], larger.top["promoted"][1:])
    np.testing.assert_array_equal(one.top["promoted"][1:], turned.top["suppressed"][1:])
    np.testing.assert_allclose(larger.effects["promoted"][1:], 7 * one.effects["promoted"][1:], rtol=1e-6)
    assert one.settled("promoted") == larger.settled("promoted") == turned.settled("suppressed")


def test_jaccard_by_hand_and_its_null():
    tokens = np.array([[0, 1, 2, 3], [3, 2, 1, 0], [3, 4, 5, 6], [7, 8, 9, 10], [0, 1, 2, 9]])
    np.testing.assert_allclose(jaccard(tokens, np.array([0, 1, 2, 3])), [1, 1, 1 / 7, 0, 3 / 5])
    (found,) = read_logit_lens(subject(), ANSWERS, path_to(subject(), " skip", " rest", 10), STEPS, n_random=500)
    random = np.random.default_rng(1).normal(size=(500, subject().d_model))
    tops = np.argsort(-unembed(subject().base.model, random), axis=1)[:, :10]
    again = jaccard(tops, found.top["promoted"][-1])
    assert np.mean(again > found.null("promoted")) <= 0.1
    assert found.null("promoted") < 0.5


def test_there_is_a_logit_lens_of_every_site_that_writes():
    model = subject()
    path = attribute_direction(model, ANSWERS, n_random=2)
    found = read_logit_lens(model, ANSWERS, path.writes, path.steps, tokens=[" skip", " rest"])
    assert [one.site for one in found] == ["layers.1.mlp.down_proj"]  # q_proj does not write
    assert [text.strip() for text in found[0].followed] == ["skip", "rest"]
    table = found[0].frame("settling")
    assert set(table["side"]) == {"promoted", "suppressed"}
    assert (table.groupby("side")["jaccard"].last() == 1).all()
    assert len(found[0].to_dict()["promoted"]["tokens"]) == found[0].k == 10
    figure = found[0].plot()  # plot_logit_lens
    assert drawn(figure) and values(figure)
    np.testing.assert_allclose(trace(figure, "skip").y, next(iter(found[0].followed.values())))
    assert found[0]._repr_html_().startswith("<")


def test_a_logit_lens_that_is_not_possible_is_refused():
    writes = path_to(subject(), " skip", " rest", 10)
    for bad, said in (
        ({"k": 0}, "1 to .* here; found 0"),
        ({"k": 10**6}, "found 1000000"),
        ({"tokens": [" skip the doctor"]}, "is 3 tokens"),
        ({"tokens": ["antidisestablishment"]}, "expected a text that is one token"),
    ):
        with pytest.raises(InputError, match=said):
            read_logit_lens(subject(), ANSWERS, writes, STEPS, **bad)
    nothing = {site: np.zeros_like(write) for site, write in writes.items()}
    with pytest.raises(InputError, match="no logit lens of it"):
        read_logit_lens(subject(), ANSWERS, nothing, STEPS)
    with pytest.raises(InputError, match="table 'words' is not known"):
        read_logit_lens(subject(), ANSWERS, writes, STEPS)[0].frame("words")
