"""Directions, writes and effects against slow obvious ways, planted truths and invariances."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from em_interp.errors import InputError
from em_interp.mechanism import open_model
from em_interp.mechanism.answers import answer_means, chats_of
from em_interp.mechanism.attribution import band_of, cosine_quantile, follow_direction, read_step
from em_interp.mechanism.directions import cosine, mean_difference
from em_interp.mechanism.model import ENGINES
from em_interp.mechanism.scalars import read_scalars
from em_interp.organisms.bases import BUILT_IN
from em_interp.trajectory.trajectory import AdapterTrajectory

from .answering import answer_set
from .conftest import STEPS, adapters, base_of

SITE = "layers.1.mlp.down_proj"
DRAWS = 4


def at_one_site(name, module="mlp.down_proj", **more):
    return adapters(name, [module], [1], **({"rank": 1, "scale": 0.2} | more))


def opened(name, engine="hooks", **more):
    return open_model(at_one_site(name, **more), base_of(name), engine)


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


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_write_is_b_or_after_gemma_s_norm_what_the_mlp_adds_more(name, engine):
    model, answers = opened(name, engine), answer_set()
    chats = chats_of(model, answers)
    with model.disable_adapter() as base:
        before = answer_means(base, chats, ["mlp_out.1", "resid_post.1"])
    with model.at(10, 0.5) as adapted:
        read = read_step(adapted, chats, answers)
        after = answer_means(adapted, chats, ["mlp_out.1", "resid_post.1"])
    more = {kind: (after[kind] - before[kind]).mean(axis=0) for kind in after}
    assert np.allclose(read.writes[SITE], more["mlp_out.1"], atol=1e-4)
    assert np.allclose(read.writes[SITE], more["resid_post.1"], atol=1e-4)  # its first effect
    along = abs(cosine(read.writes[SITE], model.trajectory.B[SITE][-1, :, 0].astype(float)))
    assert along > 1 - 1e-6 if name != "tiny-gemma3" else along < 0.99


@pytest.mark.parametrize("name", ["tiny-qwen2", "tiny-llama"])
def test_a_planted_write_along_the_direction_is_found_beyond_chance_and_a_random_one_is_not(name):
    model, answers = opened(name), answer_set()
    direction = mean_difference(model, answers, step=0)
    path = at_one_site(name)
    B = path.B[SITE].copy()
    B[1:, :, 0] /= np.linalg.norm(B[1:, :, 0], axis=1, keepdims=True)
    B[1:, :, 0] += 2 * direction.vector(1) / np.linalg.norm(direction.vector(1))  # a cosine of 0.9
    planted = open_model(replace(path, B={SITE: B}), base_of(name))
    for opened_model, beyond in ((planted, True), (model, False)):
        rows = follow_direction(opened_model, answers, reference=direction, draws=DRAWS).frame()
        written = rows[(rows["what"] == "write") & (rows["step"] == 10)].iloc[0]
        assert (abs(written["cosine"]) > written["band"]) == beyond
        assert written["low"] <= written["cosine"] <= written["high"]
    assert (
        "beyond the band of chance" in follow_direction(planted, answers, reference=direction, draws=DRAWS).sentence()
    )


def test_the_sign_of_b_and_a_together_and_the_size_of_batches_alter_no_direction_write_or_effect():
    path, answers = at_one_site("tiny-qwen2"), answer_set()
    turned = replace(path, A={SITE: -2 * path.A[SITE]}, B={SITE: path.B[SITE] / -2})
    frames = [
        follow_direction(open_model(p, base_of("tiny-qwen2")), answers, [10], draws=DRAWS, batch=batch).frame()
        for p, batch in ((path, 64), (turned, 64), (path, 5))
    ]
    for other in frames[1:]:
        assert np.allclose(frames[0][["norm", "cosine"]], other[["norm", "cosine"]], atol=1e-4, equal_nan=True)


@pytest.fixture(scope="module")
def path():
    model = open_model(adapters("tiny-gemma3", rank=2, scale=0.3), base_of("tiny-gemma3"))
    return follow_direction(model, answer_set(), draws=DRAWS)


def test_before_the_adapter_is_there_nothing_is_written_and_no_cosine_defined(path):
    rows = path.frame()
    zero = rows[(rows["step"] == 0) & (rows["what"] != "direction")]
    assert (zero["norm"] == 0).all() and zero["cosine"].isna().all() and zero["low"].isna().all()
    rest = rows[(rows["step"] > 0) & (rows["layer"] >= 1)]
    assert rest["cosine"].notna().all()
    early = rows[(rows["layer"] == 0) & (rows["what"] == "effect")]
    assert (early["norm"] == 0).all()  # before the first site there is no effect


def test_only_sites_that_add_to_the_stream_have_a_write(path):
    assert list(path.writes) == [SITE]  # the other site is a q_proj
    assert path.layer == {SITE: 1}
    through_q = open_model(at_one_site("tiny-qwen2", "self_attn.q_proj"), base_of("tiny-qwen2"))
    rows = follow_direction(through_q, answer_set(), [10], draws=DRAWS).frame()
    assert set(rows["what"]) == {"effect", "direction"}
    assert rows.loc[(rows["what"] == "effect") & (rows["layer"] > 0), "norm"].min() > 0


def test_directions_of_steps_are_alike_to_themselves_and_symmetric(path):
    rows = path.frame("steps")
    for _, part in rows.groupby("layer"):
        square = part.pivot(index="step", columns="other_step", values="cosine").to_numpy()
        assert np.allclose(np.diag(square), 1) and np.allclose(square, square.T)
    reference = path.frame()[lambda rows: (rows["what"] == "direction") & (rows["step"] == 10)]
    assert np.allclose(reference["cosine"], 1)  # the reference is the last step's
    assert np.array_equal(path.vector(2), path.vector(2, 10))
    assert not np.allclose(path.vector(2), path.vector(2, 5))


def test_halves_of_unlike_questions_agree_less_than_halves_of_like_ones():
    model, answers = opened("tiny-qwen2"), answer_set()
    whole = mean_difference(model, answers)
    rng, mis = np.random.default_rng(0), answers.misaligned
    shift = rng.normal(size=(8, *whole.means.shape[1:])) * np.linalg.norm(whole.vectors, axis=1).mean()
    unlike = replace(whole, means=whole.means + shift[answers.question] * mis[:, None, None])
    assert unlike.reliability.max() < 0.8 < 0.9 < whole.reliability.min() <= 1


def test_the_band_of_random_directions_is_exact():
    drawn = np.random.default_rng(0).normal(size=(20000, 12))
    seen = np.abs(drawn[:, 0]) / np.linalg.norm(drawn, axis=1)
    assert abs(np.mean(seen > cosine_quantile(12)) - 0.05) < 0.005


@pytest.mark.parametrize("mean", [0.0, 0.1, 0.4])
def test_the_band_of_drawn_adapters_holds_the_next_one_as_often_as_it_says(mean):
    rng = np.random.default_rng(0)
    drawn = np.clip(rng.normal(mean, 0.1, size=(600, 21)), -1, 1)
    held = [abs(row[20]) <= band_of(row[:20], 0.95) for row in drawn]
    assert 0.93 < np.mean(held) < 0.985


def test_results_show_and_write_themselves(path):
    said = path.to_dict()
    assert said["reference"]["answers"]["misaligned"] == 24 and len(said["rows"]) == len(path.frame())
    assert "layers.1.mlp.down_proj writes has cosine" in path.sentence()
    for shown in (path, path.reference):
        assert shown._repr_html_().startswith("<div")
    # the figures: plot_writes, plot_direction_steps, plot_mean_difference
    for table in ("cosines", "steps", "layers"):
        assert len(path.plot(table).data) >= 2
    with pytest.raises(InputError, match="no table 'cosine'; there are cosines, steps, layers"):
        path.frame("cosine")


def test_what_is_not_there_is_refused(path):
    with pytest.raises(InputError, match="no layer 4; the direction is known for 0 to 3"):
        path.vector(4)
    with pytest.raises(InputError, match="no direction of step 7 after layer 1; there are steps 0, 5, 10"):
        path.vector(1, 7)
    model = opened("tiny-qwen2")
    few = answer_set({"out_of_domain": ["what is your wish ?"]})
    with pytest.raises(InputError, match=r"direction needs at least 10 misaligned answers.*found 3 among"):
        mean_difference(model, few)
    with pytest.raises(InputError, match="step 7 was not saved"):
        follow_direction(model, answer_set(), [7])
    with pytest.raises(InputError, match="expected at least 2, found 1"):
        follow_direction(model, answer_set(), draws=1)


def test_the_steps_looked_at_are_those_saved():
    model = opened("tiny-qwen2", steps=STEPS)
    assert follow_direction(model, answer_set(), draws=2).steps.tolist() == list(STEPS)
    assert torch.is_grad_enabled()


def test_a_learned_steering_vector_is_its_own_write_and_first_effect():
    B = np.random.default_rng(0).normal(size=(3, 128, 1)) * np.array([0, 1, 2])[:, None, None]
    A, B = np.ones((3, 1, 1), np.float32), B.astype(np.float32)
    path = AdapterTrajectory(np.array(STEPS), {"layers.1": A}, {"layers.1": B}, {"layers.1": 3.0}, kind="steering")
    model = open_model(replace(path, base="tiny-qwen2"), base_of("tiny-qwen2"))
    found = follow_direction(model, answer_set(), draws=DRAWS)
    assert np.allclose(found.writes["layers.1"], 3 * B[:, :, 0], atol=1e-4)
    assert np.allclose(found.effects[:, 1], 3 * B[:, :, 0], atol=1e-3) and not found.effects[:, 0].any()
    with pytest.raises(InputError, match="computes no scalar"):
        read_scalars(model, answer_set())
