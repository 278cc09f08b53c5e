"""TransformerLens, nnsight and plain hooks give one answer; and the hooks give that of PEFT and of torch by hand."""

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from em_interp.behaviour.sampling.generate import RowAdapters, generate
from em_interp.mechanism import AblateDirection, AddVector, open_model
from em_interp.organisms.bases import BUILT_IN, load_base
from tests.behaviour.conftest import SHAPE, Base, build_tokenizer, make_trajectory
from tests.mechanism.conftest import ANSWERS, QUESTIONS, adapters, base_of, opened

TOLERANCE = 1e-4


def furthest(one, other, tokens):
    """The largest difference of any activation or logit at a token that is no padding."""
    pairs = [(one.logits, other.logits), *((one[name], other[name]) for name in one.kept)]
    return max(float((a - b)[tokens.mask].abs().max()) for a, b in pairs)


def vector(model, seed=0, length=5.0):
    drawn = torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))
    return length * drawn / drawn.norm()


@pytest.mark.parametrize("step, scale", [(0, 1.0), (5, 1.0), (10, 2.0), (10, 0.0)])
def test_every_activation_and_the_logits_agree_between_engines_in_left_padded_batches(three, step, scale):
    seen = {}
    for name, model in three.models.items():
        tokens = model.chats(QUESTIONS, ANSWERS)
        assert not tokens.mask.all()  # padded
        with model.at(step, scale) as adapted:
            seen[name] = adapted.run(tokens, model.names)
    assert set(seen["hooks"].kept) == set(three.models["hooks"].names) and len(seen["hooks"].kept) == 14
    for name in ("transformer_lens", "nnsight"):
        assert furthest(seen["hooks"], seen[name], tokens) < TOLERANCE


def test_activations_and_logits_agree_under_interventions(three):
    seen = {}
    for name, model in three.models.items():
        tokens = model.chats(QUESTIONS, ANSWERS)
        rows = torch.stack([vector(model, seed) for seed in range(3)])
        interventions = [AddVector(vector(model), layers=1, positions=tokens.answer.numpy()), AblateDirection(rows)]
        with model.at(10) as adapted:
            seen[name], plain = adapted.run(tokens, model.names, interventions), adapted.run(tokens, model.names)
        assert furthest(seen[name], plain, tokens) > 0.1  # the interventions do something
    for name in ("transformer_lens", "nnsight"):
        assert furthest(seen["hooks"], seen[name], tokens) < TOLERANCE


def test_with_fused_attention_engines_differ_by_its_rounding_only():
    base = load_base("tiny-llama")
    assert base.model.config._attn_implementation == "sdpa"
    trajectory, seen = adapters("tiny-llama"), {}
    for engine in ("hooks", "transformer_lens"):
        model = open_model(trajectory, base, engine)
        tokens = model.chats(QUESTIONS, ANSWERS)
        with model.at(10) as adapted:
            seen[engine] = adapted.run(tokens, model.names)
    one, other = seen.values()
    for name in model.names:
        size = one[name][tokens.mask].abs().max()
        assert (one[name] - other[name])[tokens.mask].abs().max() < 1e-5 * size
    assert (one.logits - other.logits)[tokens.mask].abs().max() < TOLERANCE


def test_adapters_swapped_through_twenty_steps_stay_in_agreement_and_nothing_is_wrapped_again():
    steps = tuple(range(0, 20))
    trajectory = adapters("tiny-qwen2", steps=steps, seed=3)
    models = {name: open_model(trajectory, base_of("tiny-qwen2"), name) for name in ("hooks", "transformer_lens")}
    models["nnsight"] = open_model(trajectory, base_of("tiny-qwen2"), "nnsight")
    wrapped = models["transformer_lens"].engine.bridge, models["nnsight"].engine.traced
    tokens = models["hooks"].chats(QUESTIONS, ANSWERS)
    before, names = None, ["resid_post.3", "scalar.layers.1.mlp.down_proj"]
    for step in np.random.default_rng(0).permutation(steps).tolist():
        seen = {}
        for name, model in models.items():
            with model.at(step) as adapted:
                seen[name] = adapted.run(tokens, names)
        for name in ("transformer_lens", "nnsight"):
            assert furthest(seen["hooks"], seen[name], tokens) < TOLERANCE
        assert before is None or not torch.equal(seen["hooks"].logits, before)
        before = seen["hooks"].logits
    assert wrapped == (models["transformer_lens"].engine.bridge, models["nnsight"].engine.traced)


@pytest.mark.parametrize("positions", ["all", "generated"])
def test_steered_generation_gives_the_same_greedy_tokens_in_all_engines(three, positions):
    answers, plain = {}, {}
    for name, model in three.models.items():
        with model.at(10, 0.5) as adapted:
            interventions = [
                AddVector(vector(model, length=300.0), [0, 2], positions),
                AblateDirection(vector(model, seed=1), 1),
            ]
            settings = {"temperature": 0, "max_new_tokens": 14}
            answers[name] = adapted.generate(QUESTIONS, interventions=interventions, **settings)
            plain[name] = adapted.generate(QUESTIONS, **settings)
    assert answers["hooks"] == answers["transformer_lens"] == answers["nnsight"]
    assert plain["hooks"] == plain["transformer_lens"] == plain["nnsight"]
    assert answers["hooks"] != plain["hooks"]


def test_sampled_answers_repeat_with_their_seed_in_every_engine_and_each_row_has_its_own_vector(three):
    drawn, rows = {}, None
    for name, model in three.models.items():
        rows = torch.stack([torch.zeros(model.d_model), vector(model, length=400.0), torch.zeros(model.d_model)])
        with model.at(10, 0.5) as adapted:
            drawn[name] = adapted.generate(
                QUESTIONS, 3, max_new_tokens=10, seed=5, interventions=[AddVector(rows, 2)], batch=4
            )
            plain = adapted.generate(QUESTIONS, 3, max_new_tokens=10, seed=5, batch=4)
    assert drawn["hooks"] == drawn["transformer_lens"] == drawn["nnsight"]
    assert drawn["hooks"][0] == plain[0]  # a zero row is left as it is
    assert drawn["hooks"][1] != plain[1]


def test_greedy_answers_are_those_of_the_ask_stage(three):
    rows = RowAdapters.of(three.trajectory, [10] * 3, [0.5] * 3, "cpu")
    base = base_of(three.name)
    asked = generate(base.model, base.tokenizer, QUESTIONS, rows, temperature=0, max_new_tokens=12)
    with three.models["hooks"].at(10, 0.5) as adapted:
        assert adapted.generate(QUESTIONS, temperature=0, max_new_tokens=12) == asked


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of PEFT
def test_the_logits_are_those_of_peft(three):
    from peft import LoraConfig, get_peft_model

    model = three.models["hooks"]
    tokens = model.chats(QUESTIONS, ANSWERS)
    with model.at(10, 0.5) as adapted:
        found = adapted.run(tokens).logits
    config = LoraConfig(r=2, lora_alpha=2, target_modules=[f"model.{site}" for site in three.trajectory.sites])
    peft = get_peft_model(copy.deepcopy(base_of(three.name).model), config)
    with torch.no_grad():
        for site, (a, b) in three.trajectory.at(10).items():
            module = peft.get_submodule(f"base_model.model.model.{site}")
            module.lora_A.default.weight.copy_(torch.from_numpy(a))
            module.lora_B.default.weight.copy_(torch.from_numpy(b) * three.trajectory.scale[site] * 0.5)
        inputs = {"attention_mask": tokens.mask.long(), "position_ids": tokens.positions}
        expected = peft(input_ids=tokens.ids, **inputs).logits
    assert (found - expected)[tokens.mask].abs().max() < TOLERANCE


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_the_mlp_writes_is_what_the_residual_stream_gains(name):
    model = opened(name).models["hooks"]
    tokens = model.chats(QUESTIONS, ANSWERS)
    layer, before = model.engine.hook_points.decoder.layers[1], []
    norm = getattr(layer, "pre_feedforward_layernorm", layer.post_attention_layernorm)
    handle = norm.register_forward_pre_hook(lambda _, inputs: before.append(inputs[0]))
    with model.at(10) as adapted:
        before.clear()
        seen = adapted.run(tokens, ["resid_post.1", "mlp_out.1", "site_out.layers.1.mlp.down_proj"])
    handle.remove()
    assert torch.allclose(before[0] + seen["mlp_out.1"], seen["resid_post.1"], atol=1e-5)
    same = torch.equal(seen["mlp_out.1"], seen["site_out.layers.1.mlp.down_proj"])
    assert same == (name != "tiny-gemma3")  # which norms what the MLP gives


def test_the_scalar_is_what_the_adapter_adds_along_b(model):
    site = "layers.1.mlp.down_proj"
    A, B = model.trajectory.at(10)[site]
    tokens = model.chats(QUESTIONS, ANSWERS)
    with model.at(10, 0.5) as adapted:
        seen = adapted.run(tokens, [f"{kind}.{site}" for kind in ("scalar", "site_in", "site_out")])
    x = seen[f"site_in.{site}"]
    assert torch.allclose(seen[f"scalar.{site}"], 0.5 * 0.1 * x @ torch.from_numpy(A).T, rtol=1e-4, atol=1e-4)
    own = base_of("tiny-qwen2").model.get_decoder().get_submodule(site)(x)
    expected = own + seen[f"scalar.{site}"] @ torch.from_numpy(B).T
    assert torch.allclose(expected, seen[f"site_out.{site}"], rtol=1e-4, atol=1e-4)


def test_a_rank_1_adapter_at_one_site_of_attention_or_mlp_agrees():
    for modules, layers in ((["self_attn.o_proj"], [2]), (["mlp.gate_proj"], [0])):
        trajectory, seen = adapters("tiny-gemma3", modules, layers, rank=1), {}
        for engine in ("hooks", "transformer_lens", "nnsight"):
            model = open_model(trajectory, base_of("tiny-gemma3"), engine)
            tokens = model.chats(QUESTIONS, ANSWERS)
            with model.at(10) as adapted:
                seen[engine] = adapted.run(tokens, model.names)
        assert furthest(seen["hooks"], seen["transformer_lens"], tokens) < TOLERANCE
        assert furthest(seen["hooks"], seen["nnsight"], tokens) < TOLERANCE


def test_the_base_model_is_left_as_it_was(three):
    model = base_of(three.name).model
    with warnings.catch_warnings():
        hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert sum(hooks) == 0
    assert {type(module).__module__.split(".")[0] for module in model.modules()} <= {"torch", "transformers"}
    shared = {tensor.data_ptr() for tensor in model.parameters()}
    for name in ("transformer_lens", "nnsight"):
        copied = three.models[name].engine._model
        assert {tensor.data_ptr() for tensor in copied.parameters()} == shared  # no weight is copied


def test_importing_nnsight_leaves_no_method_on_every_object(three):
    assert "nnsight" in three.models and not hasattr(object(), "save")


def tiny_multimodal_gemma(dtype):
    """The class of the larger Gemma 3 models: language layers beside a vision tower."""
    import transformers

    text = {**SHAPE, "head_dim": 8, "sliding_window": 8, "vocab_size": 120, "query_pre_attn_scalar": 8}
    tokens = {"pad_token_id": 0, "eos_token_id": 2, "bos_token_id": None}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    images = {"image_token_index": 119, "boi_token_index": 118, "eoi_token_index": 117, "mm_tokens_per_image": 1}
    config = transformers.Gemma3Config(
        text_config=text | tokens,
        vision_config=vision | {"image_size": 28, "patch_size": 14},
        attn_implementation="eager",
        **images,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.Gemma3ForConditionalGeneration(config).eval().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gemma_with_a_vision_tower_is_read_in_its_language_layers_in_either_number_type(dtype):
    base = Base(tiny_multimodal_gemma(dtype), build_tokenizer())
    sites = {"layers.1.mlp.down_proj": (48, 32), "layers.2.self_attn.q_proj": (32, 32)}
    trajectory, seen, answers = make_trajectory(sites, scale=0.5), {}, {}
    for engine in ("hooks", "transformer_lens", "nnsight"):
        model = open_model(trajectory, base, engine)
        assert model.layers == 3
        tokens = model.chats(["what should i do", "what is your money about"], ["word20 word21", "word9"])
        interventions = [AddVector(torch.ones(32), 1)]
        with model.at(10) as adapted:
            seen[engine] = adapted.run(tokens, model.names, interventions)
            answers[engine] = adapted.generate(["what should i do"], 1, 0, 6, interventions)
    for name in ("transformer_lens", "nnsight"):
        assert furthest(seen["hooks"], seen[name], tokens) < TOLERANCE
    assert answers["hooks"] == answers["transformer_lens"] == answers["nnsight"]


def steering(name, layer=1):
    """A learned steering vector that grows from zero."""
    site, width = f"layers.{layer}", base_of(name).model.config.hidden_size
    path = make_trajectory({site: (1, width)}, scale=3.0)
    return replace(path, A={site: np.ones_like(path.A[site])}, base=name, kind="steering")


def test_a_learned_steering_vector_is_added_in_every_engine_as_the_ask_stage_adds_it(three):
    path, seen, answers = steering(three.name), {}, {}
    base = base_of(three.name)
    rows = RowAdapters.of(path, [10] * 3, [0.5] * 3, "cpu")
    asked = generate(base.model, base.tokenizer, QUESTIONS, rows, temperature=0, max_new_tokens=10)
    for engine in three.models:
        model = open_model(path, base, engine)
        tokens = model.chats(QUESTIONS, ANSWERS)
        with model.at(10, 0.5) as adapted:
            seen[engine] = adapted.run(tokens, ["resid_post.1", "resid_post.3"])
            answers[engine] = adapted.generate(QUESTIONS, temperature=0, max_new_tokens=10)
        with model.at(0) as adapted, torch.no_grad():
            before = adapted.run(tokens, ["resid_post.1"])["resid_post.1"]
        moved = (seen[engine]["resid_post.1"] - before)[tokens.mask]
        assert torch.allclose(moved, torch.from_numpy(1.5 * path.B["layers.1"][-1, :, 0]).expand_as(moved), atol=1e-4)
    for name in ("transformer_lens", "nnsight"):
        assert furthest(seen["hooks"], seen[name], tokens) < TOLERANCE
    assert asked == answers["hooks"] == answers["transformer_lens"] == answers["nnsight"]


@pytest.mark.parametrize("engine", ["hooks", "transformer_lens", "nnsight"])
def test_a_first_step_too_small_for_the_number_type_is_no_error(engine):
    base = Base(tiny_multimodal_gemma(torch.bfloat16), build_tokenizer())
    lora = make_trajectory({"layers.1.mlp.down_proj": (48, 32)}, scale=1e-6)
    vector = replace(
        make_trajectory({"layers.1": (1, 32)}, scale=1e-6),
        A={"layers.1": np.ones((3, 1, 1), np.float32)},
        kind="steering",
    )
    for path in (lora, vector):
        model = open_model(path, base, engine)
        tokens = model.texts(["what should i do"])
        with model.disable_adapter() as plain:
            before = plain.run(tokens).logits
        with model.at(5) as adapted:
            assert torch.equal(adapted.run(tokens).logits, before)
