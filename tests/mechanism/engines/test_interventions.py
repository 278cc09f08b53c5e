"""Interventions: where and how they change the residual stream, and what is refused."""

import numpy as np
import pytest
import torch

from em_interp.behaviour.sampling.chat import tokenize_texts
from em_interp.errors import InputError
from em_interp.mechanism import AblateDirection, AddVector, NormMatchedAblation, open_model
from em_interp.mechanism.engines.interventions import ActiveInterventions
from tests.mechanism.conftest import ANSWERS, QUESTIONS, adapters, base_of


def test_an_unknown_layer_names_the_nearest(model):
    with model.at(5) as adapted:
        for layer, near in ((4, 3), (-1, 0)):
            with pytest.raises(InputError, match=f"no layer {layer}; the model has 0 to 3, the nearest {near}"):
                adapted.run(model.prompts(QUESTIONS), interventions=[AddVector(torch.ones(128), layer)])


@pytest.mark.parametrize(
    "intervention, message",
    [
        (AddVector(np.zeros(128)), "is zero or not finite"),
        (AblateDirection(np.full(128, np.nan)), "is zero or not finite"),
        (AddVector(np.ones(64)), r"shape \(64,\); expected \(128,\) or \(3, 128\)"),
        (AddVector(np.ones(128), positions="old"), "found 'old'"),
        (AddVector(np.ones(128), positions="generated"), "nothing is generated"),
        (AddVector(np.ones(128), positions=np.zeros((3, 2), bool)), r"\(3, 2\) with 0 of them chosen; expected \(3, "),
    ],
)
def test_an_intervention_that_would_do_nothing_or_something_else_is_refused(model, intervention, message):
    with model.at(5) as adapted, pytest.raises(InputError, match=message):
        adapted.run(model.prompts(QUESTIONS), interventions=[intervention])


def test_interventions_change_their_layers_and_positions_only(model):
    tokens = model.chats(QUESTIONS, ANSWERS)
    vector = torch.linspace(-1, 1, 128)
    with model.at(5) as adapted:
        plain = adapted.run(tokens, ["resid_post.0", "resid_post.1"])
        seen = adapted.run(tokens, ["resid_post.0", "resid_post.1"], [AddVector(vector, 1, tokens.answer.numpy())])
        gone = adapted.run(tokens, ["resid_post.1"], [AblateDirection(3 * vector, 1)])["resid_post.1"]
    assert torch.equal(plain["resid_post.0"], seen["resid_post.0"])
    moved = seen["resid_post.1"] - plain["resid_post.1"]
    assert torch.allclose(moved[tokens.answer], vector.expand(int(tokens.answer.sum()), -1), atol=1e-4)
    assert torch.equal(moved[~tokens.answer], torch.zeros_like(moved[~tokens.answer]))
    unit = vector / vector.norm()
    assert (gone @ unit).abs().max() < 1e-3 < (plain["resid_post.1"] @ unit).abs().max()
    expected = plain["resid_post.1"] - (plain["resid_post.1"] @ unit)[..., None] * unit
    assert torch.allclose(gone, expected, atol=1e-3)


def test_positions_in_a_generation_are_those_of_its_prompt_and_generated_tokens():
    tokens = tokenize_texts(base_of("tiny-qwen2").tokenizer, [" a wish", " a"])
    hook_points = open_model(adapters("tiny-qwen2"), base_of("tiny-qwen2")).engine.hook_points
    prompt, generated = torch.zeros(2, tokens.ids.shape[1], 128), torch.zeros(2, 1, 128)
    mask = np.zeros(tokens.ids.shape, bool)
    mask[0, -1] = True
    for positions, at_prompt, at_generated in (("all", 1.0, 1.0), ("generated", 0.0, 1.0), (mask, None, 0.0)):
        active = ActiveInterventions([AddVector(np.ones(128), 1, positions)], hook_points, tokens.mask, generating=True)
        changed = active(1, prompt)[..., 0]
        expected = torch.tensor(mask).float() if at_prompt is None else torch.full_like(changed, at_prompt)
        assert torch.equal(changed, expected)
        for _ in range(3):
            assert torch.equal(active(1, generated)[..., 0], torch.full((2, 1), at_generated))


def test_the_norm_matched_control_removes_as_much_as_an_ablation_but_along_another_direction():
    rng = np.random.default_rng(0)
    x, v, r = torch.as_tensor(rng.normal(size=(2, 5, 16))), rng.normal(size=16), rng.normal(size=16)
    vector = torch.as_tensor(np.stack([r, r]))[:, None]
    change = NormMatchedAblation(np.stack([r, r]), ablated=np.stack([v, v])).change(x, vector) - x
    ablated = AblateDirection(v).change(x, torch.as_tensor(v)) - x
    np.testing.assert_allclose(change.norm(dim=-1), ablated.norm(dim=-1), rtol=1e-10)
    along = (change / change.norm(dim=-1, keepdim=True)).numpy() @ r / np.linalg.norm(r)
    np.testing.assert_allclose(along, np.sign(ablated.numpy() @ v))
