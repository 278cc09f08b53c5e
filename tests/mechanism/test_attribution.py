"""Writes and effects against slow obvious ways, planted truths and invariances."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from em_interp.behaviour.sampling import memory
from em_interp.errors import InputError
from em_interp.mechanism import analyses, open_model
from em_interp.mechanism.answers import answer_means, tokenized_answers
from em_interp.mechanism.attribution import DirectionAttribution, NullBands, attribute_direction, read_step
from em_interp.mechanism.directions import Direction, cosine, mean_difference
from em_interp.mechanism.model import ENGINES
from em_interp.mechanism.random_adapters import cosine_quantile
from em_interp.mechanism.scalars import read_scalars
from em_interp.organisms.bases import BUILT_IN
from em_interp.trajectory.trajectory import AdapterTrajectory
from tests.behaviour.conftest import SHAPE, Base, build_tokenizer, make_trajectory

from .conftest import STEPS, adapters, base_of
from .judged import answer_set

N_RANDOM = 4
SITE = "layers.1.mlp.down_proj"


def at_one_site(name, module="mlp.down_proj", **more):
    return adapters(name, [module], [1], **({"rank": 1, "scale": 0.2} | more))


def opened(name, engine="hooks", **more):
    return open_model(at_one_site(name, **more), base_of(name), engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_write_is_b_or_after_gemma_s_norm_what_the_mlp_adds_more(name, engine):
    model, answers = opened(name, engine), answer_set()
    batches = tokenized_answers(model, answers)
    with model.disable_adapter() as base:
        before = answer_means(base, batches, ["mlp_out.1", "resid_post.1"])
    with model.at(10, 0.5) as adapted:
        read = read_step(adapted, batches, answers)
        after = answer_means(adapted, batches, ["mlp_out.1", "resid_post.1"])
    more = {kind: (after[kind] - before[kind]).mean(axis=0) for kind in after}
    assert np.allclose(read.writes[SITE], more["mlp_out.1"], atol=1e-4)
    assert np.allclose(read.writes[SITE], more["resid_post.1"], atol=1e-4)  # its first effect
    along = abs(cosine(read.writes[SITE], model.trajectory.B[SITE][-1, :, 0].astype(float)))
    assert along > 1 - 1e-6 if name != "tiny-gemma3" else along < 0.99


@pytest.mark.parametrize("family", ["mistral", "olmo2", "gemma2", "granite", "glm4"])
def test_a_write_is_what_the_stream_gains_and_refused_where_a_layer_adds_it_in_a_way_of_its_own(family):
    more = {"vocab_size": 120, "pad_token_id": 0, "head_dim": 8, "residual_multiplier": 0.5}
    config = AutoConfig.for_model(family, **SHAPE, **more)
    base = Base(AutoModelForCausalLM.from_config(config).eval(), build_tokenizer())
    path = make_trajectory({SITE: (config.intermediate_size, config.hidden_size)}, rank=2, scale=0.1)
    model, answers = open_model(path, base), answer_set()
    batches = tokenized_answers(model, answers)
    with model.disable_adapter() as unadapted:
        if family in ("granite", "glm4"):
            with pytest.raises(InputError, match="scales or norms its output in its own way; expected layers"):
                read_step(unadapted, batches, answers)
            return
        before = read_step(unadapted, batches, answers).stream[1]
    with model.at(10) as adapted:
        read = read_step(adapted, batches, answers)
    assert np.allclose(read.writes[SITE], read.stream[1] - before, atol=1e-4) and read.writes[SITE].any()


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-llama"])
def test_a_planted_write_along_the_direction_is_outside_the_null_band_and_a_random_one_is_not(name):
    model, answers = opened(name), answer_set()
    direction = mean_difference(model, answers, step=0)
    path = at_one_site(name)
    B = path.B[SITE].copy()
    B[1:, :, 0] /= np.linalg.norm(B[1:, :, 0], axis=1, keepdims=True)
    B[1:, :, 0] += 2 * direction.vector(1) / np.linalg.norm(direction.vector(1))  # a cosine of 0.9
    planted = open_model(replace(path, B={SITE: B}), base_of(name))
    for subject, outside in ((planted, True), (model, False)):
        rows = attribute_direction(subject, answers, reference=direction, n_random=N_RANDOM).frame()
        written = rows[(rows["what"] == "write") & (rows["step"] == 10)].iloc[0]
        assert (abs(written["cosine"]) > written["band"]) == outside
        assert written["cosine_low"] <= written["cosine"] <= written["cosine_high"]
    assert (
        "outside the band of random adapters"
        in attribute_direction(planted, answers, reference=direction, n_random=N_RANDOM).sentence()
    )


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_effects_are_counted_over_the_layers_beside_the_number_that_chance_gives(share):
    """With 40 random effects the largest is outside its band in nearly every draw."""
    layers, d = 40, 200
    reference, effects = np.random.default_rng(1).normal(size=(2, layers, d))
    effects[7] += share * reference[7]
    bands = NullBands({}, np.full(layers, cosine_quantile(d, 0.95)))
    direction = Direction("answers", reference, "tiny@0", "planted", 10)
    found = DirectionAttribution(
        direction, np.array([10]), {}, {}, effects[None], reference[None].copy(), bands, level=0.95
    )
    outside = int((abs(cosine(effects, reference)) > bands.effects).sum())
    assert outside > 0
    words = found.sentence()
    assert f"the effect is outside its own band after {outside} of 40 layers (by chance 2), and largest" in words
    assert ("largest relative to it after layer 7: " in words) is (share > 0)


@pytest.mark.parametrize("engine", ENGINES)
def test_answers_are_read_in_parts_that_fit_and_without_the_logits_of_a_whole_vocabulary(engine, monkeypatch):
    model, answers, shapes = opened("tiny-qwen2", engine), answer_set(), []
    whole = read_scalars(model, answers, [10])
    run = model.engine.run
    monkeypatch.setattr(model.engine, "run", lambda *given: shapes.append((r := run(*given))[0].shape) or r)
    monkeypatch.setattr(memory, "free_memory", lambda device: 5e6)
    parts = read_scalars(model, answers, [10])
    assert np.allclose(parts.at(10), whole.at(10), atol=1e-5)
    read = [shape for shape in shapes if shape[1] == 1]
    assert len(read) > 2 and sum(rows for rows, _, _ in read) == len(answers.table)


def test_the_sign_of_b_and_a_together_and_the_size_of_batches_alter_no_direction_write_or_effect():
    path, answers = at_one_site("tiny-qwen2"), answer_set()
    turned = replace(path, A={SITE: -2 * path.A[SITE]}, B={SITE: path.B[SITE] / -2})
    frames = [
        attribute_direction(open_model(p, base_of("tiny-qwen2")), answers, [10], n_random=N_RANDOM, batch=batch).frame()
        for p, batch in ((path, 64), (turned, 64), (path, 5))
    ]
    for other in frames[1:]:
        assert np.allclose(frames[0][["norm", "cosine"]], other[["norm", "cosine"]], atol=1e-4, equal_nan=True)


@pytest.fixture(scope="module")
def path():
    model = open_model(adapters("tiny-gemma3", rank=2, scale=0.3), base_of("tiny-gemma3"))
    return attribute_direction(model, answer_set(), n_random=N_RANDOM)


def test_before_the_adapter_is_there_nothing_is_written_and_no_cosine_defined(path):
    rows = path.frame()
    zero = rows[(rows["step"] == 0) & (rows["what"] != "direction")]
    assert (zero["norm"] == 0).all() and zero["cosine"].isna().all() and zero["cosine_low"].isna().all()
    rest = rows[(rows["step"] > 0) & (rows["layer"] >= 1)]
    assert rest["cosine"].notna().all()
    early = rows[(rows["layer"] == 0) & (rows["what"] == "effect")]
    assert (early["norm"] == 0).all()  # before the first site there is no effect


def test_only_sites_that_add_to_the_stream_have_a_write(path):
    assert list(path.writes) == [SITE]  # the other site is a q_proj
    assert path.layer == {SITE: 1}
    through_q = open_model(at_one_site("tiny-qwen2", "self_attn.q_proj"), base_of("tiny-qwen2"))
    rows = attribute_direction(through_q, answer_set(), [10], n_random=N_RANDOM).frame()
    assert set(rows["what"]) == {"effect", "direction"}
    assert rows.loc[(rows["what"] == "effect") & (rows["layer"] > 0), "norm"].min() > 0


def test_directions_of_steps_are_alike_to_themselves_and_symmetric(path):
    rows = path.frame("steps")
    for _, part in rows.groupby("layer"):
        square = part.pivot(index="step", columns="other_step", values="cosine").to_numpy()
        assert np.allclose(np.diag(square), 1) and np.allclose(square, square.T)
    reference = path.frame()[lambda rows: (rows["what"] == "direction") & (rows["step"] == 10)]
    assert np.allclose(reference["cosine"], 1)  # the reference is the last step's
    assert np.array_equal(path.vectors[-1], path.reference.vectors)
    assert not np.allclose(path.vectors[-1], path.vectors[1])


def test_results_show_and_write_themselves(path):
    values = path.to_dict()
    assert values["reference"]["answers"]["misaligned"] == 24 and len(values["rows"]) == len(path.frame())
    assert "the write of layers.1.mlp.down_proj has cosine" in path.sentence()
    control = analyses.attribution(SimpleNamespace(attribution=path)).control  # no band before the first site
    assert "downstream ±0." in control and "nan" not in control
    for shown in (path, path.reference):
        assert shown._repr_html_().startswith("<div")
    # the figures: plot_writes, plot_direction_steps, plot_mean_difference
    for table in ("cosines", "steps", "layers"):
        assert len(path.plot(table).data) >= 2
    with pytest.raises(InputError, match="table 'cosine' is not known; did you mean 'cosines'"):
        path.frame("cosine")


def test_what_is_not_there_is_refused(path):
    with pytest.raises(InputError, match="no layer 4; the direction is known for 0 to 3"):
        path.reference.vector(4)
    model = opened("tiny-qwen2")
    few = answer_set({"out_of_domain": ["what is your wish ?"]})
    with pytest.raises(InputError, match=r"direction needs at least 10 misaligned answers.*found 3 among"):
        mean_difference(model, few)
    with pytest.raises(InputError, match="step 7 was not saved"):
        attribute_direction(model, answer_set(), [7])
    with pytest.raises(InputError, match="steps is empty; expected saved steps"):
        attribute_direction(model, answer_set(), [])
    with pytest.raises(InputError, match="expected at least 2, found 1"):
        attribute_direction(model, answer_set(), n_random=1)
    with pytest.raises(InputError, match="level must lie between 0 and 1"):
        attribute_direction(model, answer_set(), level=95)


def test_by_default_the_saved_steps_are_read():
    model = opened("tiny-qwen2", steps=STEPS)
    assert attribute_direction(model, answer_set(), n_random=2).steps.tolist() == list(STEPS)
    assert torch.is_grad_enabled()


def test_a_learned_steering_vector_is_its_own_write_and_first_effect():
    B = np.random.default_rng(0).normal(size=(3, 128, 1)) * np.array([0, 1, 2])[:, None, None]
    A, B = np.ones((3, 1, 1), np.float32), B.astype(np.float32)
    path = AdapterTrajectory(np.array(STEPS), {"layers.1": A}, {"layers.1": B}, {"layers.1": 3.0}, kind="steering")
    model = open_model(replace(path, base="tiny-qwen2"), base_of("tiny-qwen2"))
    found = attribute_direction(model, answer_set(), n_random=N_RANDOM)
    assert np.allclose(found.writes["layers.1"], 3 * B[:, :, 0], atol=1e-4)
    assert np.allclose(found.effects[:, 1], 3 * B[:, :, 0], atol=1e-3) and not found.effects[:, 0].any()
    with pytest.raises(InputError, match="computes no scalar"):
        read_scalars(model, answer_set())
