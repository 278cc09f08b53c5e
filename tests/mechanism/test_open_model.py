"""What is refused when a model is opened and used, and in what words."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from em_interp.behaviour.chat import tokenize_texts
from em_interp.behaviour.generate import RowAdapters
from em_interp.errors import InputError
from em_interp.mechanism import AblateDirection, AddVector, open_model
from em_interp.mechanism.engines.base import ActiveInterventions
from tests.behaviour.conftest import save_run

from .conftest import ANSWERS, QUESTIONS, adapters, base_of


def test_a_run_is_opened_with_the_base_that_its_manifest_names(tmp_path):
    identity = base_of("tiny-qwen2").identity
    run = save_run(tmp_path / "run", adapters("tiny-qwen2", rank=1), identity)
    manifest = run.manifest_file.read_text().replace('"name": "tiny"', '"name": "tiny-qwen2"')
    run.manifest_file.write_text(manifest)
    with open_model(run.path).at(5) as adapted:
        assert adapted.run(adapted.model.prompts(QUESTIONS)).logits.isfinite().all()


def test_adapters_of_another_base_are_refused(tmp_path):
    run = save_run(tmp_path / "run", adapters("tiny-qwen2", rank=1), "tiny-qwen2@other")
    with pytest.raises(InputError, match=r"trained on tiny-qwen2@other; the base given is tiny-qwen2@"):
        open_model(run, base_of("tiny-qwen2"))
    with pytest.raises(InputError, match="trained on tiny-qwen2; the base given is tiny-llama"):
        open_model(adapters("tiny-qwen2"), base_of("tiny-llama"))


def test_an_unknown_engine_names_the_nearest():
    with pytest.raises(InputError, match="no engine 'nnsigth'; did you mean 'nnsight'"):
        open_model(adapters("tiny-qwen2"), base_of("tiny-qwen2"), "nnsigth")


@pytest.mark.parametrize(
    "name, hint",
    [("resid_pots.1", "resid_post.1"), ("resid_post.9", "resid_post."), ("scalar.layers.1.mlp.up_proj", "scalar.")],
)
def test_an_unknown_activation_names_the_nearest_and_what_there_is(model, name, hint):
    with model.at(5) as adapted, pytest.raises(InputError, match=rf"{name}'; did you mean '{hint}.*layers 0 to 3"):
        adapted.run(model.prompts(QUESTIONS), [name])


def test_an_unknown_layer_of_an_edit_names_the_nearest(model):
    with model.at(5) as adapted:
        for layer, near in ((4, 3), (-1, 0)):
            with pytest.raises(InputError, match=f"no layer {layer}; the model has 0 to 3, the nearest {near}"):
                adapted.run(model.prompts(QUESTIONS), interventions=[AddVector(torch.ones(128), layer)])


def test_an_activation_that_was_not_kept_is_named(model):
    with model.at(5) as adapted, pytest.raises(InputError, match=r"'mlp_out.0' was not asked for; kept were resid"):
        adapted.run(model.prompts(QUESTIONS), ["resid_post.0"])["mlp_out.0"]


@pytest.mark.parametrize(
    "intervention, said",
    [
        (AddVector(np.zeros(128)), "is zero or not finite"),
        (AblateDirection(np.full(128, np.nan)), "is zero or not finite"),
        (AddVector(np.ones(64)), r"shape \(64,\); expected \(128,\) or \(3, 128\)"),
        (AddVector(np.ones(128), positions="old"), "found 'old'"),
        (AddVector(np.ones(128), positions="new"), "nothing is generated"),
        (AddVector(np.ones(128), positions=np.zeros((3, 2), bool)), r"\(3, 2\) with 0 of them chosen; expected \(3, "),
    ],
)
def test_an_edit_that_would_do_nothing_or_something_else_is_refused(model, intervention, said):
    with model.at(5) as adapted, pytest.raises(InputError, match=said):
        adapted.run(model.prompts(QUESTIONS), interventions=[intervention])


def test_edits_take_hold_at_their_layers_and_positions_only(model):
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


def test_positions_in_a_generation_are_those_of_its_prompt_and_new_tokens():
    tokens = tokenize_texts(base_of("tiny-qwen2").tokenizer, [" a wish", " a"])
    layout = open_model(adapters("tiny-qwen2"), base_of("tiny-qwen2")).engine.layout
    prompt, new = torch.zeros(2, tokens.ids.shape[1], 128), torch.zeros(2, 1, 128)
    mask = np.zeros(tokens.ids.shape, bool)
    mask[0, -1] = True
    for positions, at_prompt, at_new in (("all", 1.0, 1.0), ("new", 0.0, 1.0), (mask, None, 0.0)):
        editor = ActiveInterventions([AddVector(np.ones(128), 1, positions)], layout, tokens.mask, new=True)
        edited = editor(1, prompt)[..., 0]
        expected = torch.tensor(mask).float() if at_prompt is None else torch.full_like(edited, at_prompt)
        assert torch.equal(edited, expected)
        for _ in range(3):
            assert torch.equal(editor(1, new)[..., 0], torch.full((2, 1), at_new))


def test_a_tokenizer_without_a_chat_template_is_refused_with_what_is_missing():
    base = base_of("tiny-qwen2")
    bare = copy.deepcopy(base.tokenizer)
    bare.chat_template = None
    model = open_model(adapters("tiny-qwen2"), replace(base, tokenizer=bare))
    for read in (lambda: model.prompts(QUESTIONS), lambda: model.chats(QUESTIONS, ANSWERS)):
        with pytest.raises(InputError, match=r"no chat template.*instruct model was expected"):
            read()


def test_a_second_step_within_the_block_of_the_first_is_refused(model):
    with model.at(5), pytest.raises(InputError, match="holds the adapter of step 5 already"), model.at(10):
        pass
    with model.at(10) as adapted:  # and the block of the first is over
        assert adapted.run(model.prompts(QUESTIONS)).logits.isfinite().all()


def test_a_step_that_was_not_saved_is_refused_with_the_nearest(model):
    with pytest.raises(InputError, match="step 7 was not saved; the nearest saved steps are 0, 5, 10"), model.at(7):
        pass


def test_a_site_that_is_no_linear_module_or_of_another_size_is_refused():
    path = adapters("tiny-qwen2", ["mlp.down_proj"], [1])
    (site,) = path.sites
    with pytest.raises(InputError, match=r"'layers.1.mlp' is a Qwen2MLP; expected a linear module"):
        open_model(
            replace(
                path, A={"layers.1.mlp": path.A[site]}, B={"layers.1.mlp": path.B[site]}, scale={"layers.1.mlp": 1}
            ),
            base_of("tiny-qwen2"),
        )
    for engine in ("hooks", "transformer_lens", "nnsight"):
        with pytest.raises(InputError, match="is 383 → 128, the model's module 384 → 128"):
            open_model(replace(path, A={site: path.A[site][:, :, :-1]}), base_of("tiny-qwen2"), engine)


def test_projections_of_a_full_fine_tune_cannot_be_opened():
    with pytest.raises(
        InputError, match="cannot be put back into the base; expected LoRA adapters or steering vectors"
    ):
        open_model(replace(adapters("tiny-qwen2"), kind="full"), base_of("tiny-qwen2"))


class Deaf:
    """An engine into which no adapter goes, or only half of one."""

    def __init__(self, engine, share):
        self.engine, self.layout, self.share = engine, engine.layout, share

    def adapted(self, adapters):
        B = {site: part * self.share for site, part in adapters.B.items()}
        return self.engine.adapted(RowAdapters(adapters.A, B))

    def run(self, *args):
        return self.engine.run(*args)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_an_adapter_that_does_not_land_is_an_error_and_not_a_comparison_of_the_base_with_itself(model, share):
    from em_interp.mechanism.model import TrajectoryModel

    deaf = Deaf(model.engine, share)
    with pytest.raises(InputError, match=r"a planted adapter did not land at layers.1.mlp.down_proj.*usual cause"):
        TrajectoryModel(model.base, model.trajectory, deaf)


def test_a_small_step_that_changes_nothing_is_an_error_unless_its_change_is_zero(model):
    landing = model._landing
    adapters = RowAdapters.of(model.trajectory, [5], [1e-5], "cpu")
    deaf, engine = Deaf(model.engine, 0.0), model.engine
    with engine.adapted(adapters):
        landing.check(adapters, "the adapter of step 5")
    landing._engine = deaf
    try:
        with deaf.adapted(adapters), pytest.raises(InputError, match=r"step 5 (changes nothing|did not land)"):
            landing.check(adapters, "the adapter of step 5")
        zero = RowAdapters.of(model.trajectory, [0], [1.0], "cpu")  # step 0: B is zero
        with deaf.adapted(zero):
            landing.check(zero, "the adapter of step 0")
    finally:
        landing._engine = engine
