"""Directions of several runs: against the slow obvious computation, and the invariances."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import subspace_angles

import em_interp as em
from em_interp.errors import InputError
from em_interp.trajectory.composition import (
    composition_path,
    composition_score,
    layer_of,
    no_composition,
    path_columns,
)
from tests.comparison.planting import SITE, STEPS, adapter, in_another_gauge, unit

TWO = (SITE, "layers.5.mlp.down_proj")


def compare(*paths, **options):
    return em.compare(paths, **{"permutations": 49, **options})


def delta(path, site, row=-1):
    return path.scale[site] * path.B[site][row].astype(float) @ path.A[site][row].astype(float)


def cosine(u, v):
    return np.sum(u * v) / np.linalg.norm(u) / np.linalg.norm(v)


def value(found, measure, site="all shared sites"):
    rows = found.frame()
    (only,) = rows[(rows["measure"] == measure) & (rows["site"] == site)]["value"]
    return only


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("sites", [(SITE,), TWO])
def test_identical_runs_compare_as_identical(rank, sites):
    found = compare(adapter(1, rank, sites=sites), adapter(1, rank, sites=sites))
    np.testing.assert_allclose(found.pairs["value"], 1, atol=1e-6)
    np.testing.assert_allclose(found.angles["degrees"], 0, atol=1e-6)
    onsets, steps = found.frame("direction_onset"), found.frame("steps")
    np.testing.assert_allclose(onsets.query("step > 0")["value"], 1, atol=1e-6)
    np.testing.assert_allclose(steps.query("step == other_step and step > 0")["value"], 1, atol=1e-6)
    planes = found.frame("plane")
    one, other = (planes[planes["run"] == name][["x", "y"]].to_numpy() for name in found.names)
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 4])
@pytest.mark.parametrize("sites", [(SITE,), TWO])
def test_sign_and_gauge_change_no_number(rank, sites):
    first, second = adapter(1, rank, sites=sites), adapter(2, rank, sites=sites, towards=unit(7), share=0.6)
    plain = compare(first, second)
    for other in (
        compare(in_another_gauge(first), second),
        compare(first, in_another_gauge(second, 1)),
        compare(in_another_gauge(first, 2), in_another_gauge(second, 3)),
    ):
        for table in ("pairs", "angles", "steps", "direction_onset", "plane"):
            mine, theirs = (found.frame(table).select_dtypes("number") for found in (plain, other))
            angle = table == "angles"
            np.testing.assert_allclose(mine, theirs, atol=1e-4 if angle else 3e-6, rtol=1e-6, err_msg=table)


def test_the_sign_of_a_rank_one_adapter_is_no_difference_to_the_last_bit():
    first, second = adapter(1), adapter(2)
    flipped = em.AdapterTrajectory(
        first.steps, {SITE: -first.A[SITE]}, {SITE: -first.B[SITE]}, first.scale, base="tiny", source="seed1"
    )
    assert compare(first, second).pairs.equals(compare(flipped, second).pairs)


@pytest.mark.parametrize("ranks", [(1, 1), (3, 3), (2, 4)])
def test_every_measure_is_that_of_the_matrices_themselves(ranks):
    first, second = (adapter(seed, rank, sites=TWO) for seed, rank in zip((1, 2), ranks, strict=True))
    found = compare(first, second)
    whole = [np.concatenate([delta(path, site).ravel() for site in TWO]) for path in (first, second)]
    assert value(found, "delta") == pytest.approx(cosine(*whole), abs=1e-6)
    shared = {"B": [], "A": []}
    for site in TWO:
        mine, theirs = delta(first, site), delta(second, site)
        assert value(found, "delta", site) == pytest.approx(cosine(mine, theirs), abs=1e-6)
        for of, (one, other) in {"B": (mine, theirs), "A": (mine.T, theirs.T)}.items():
            projectors = [m @ np.linalg.pinv(m, rcond=1e-5) for m in (one, other)]  # d × d, the obvious way
            overlap = np.trace(projectors[0] @ projectors[1])
            shared[of].append(overlap)
            assert value(found, of, site) == pytest.approx(np.sqrt(overlap / min(ranks)), abs=1e-6)
            left = [np.linalg.svd(m)[0][:, :rank] for m, rank in zip((one, other), ranks, strict=True)]
            degrees = found.angles.query("measure == @of and site == @site")["degrees"]
            np.testing.assert_allclose(degrees, np.sort(np.degrees(subspace_angles(*left))), atol=1e-4)
    for of in ("B", "A"):
        assert value(found, of) == pytest.approx(np.sqrt(sum(shared[of]) / (2 * min(ranks))), abs=1e-6)


def test_steps_against_steps_are_those_of_the_matrices():
    first, second = adapter(1, 2), adapter(2, 2, towards=unit(7), share=0.9, from_step=50)
    rows = compare(first, second).frame("steps").query("measure == 'delta'")
    for step, other in ((5, 95), (50, 50), (100, 20)):
        (seen,) = rows.query("step == @step and other_step == @other")["value"]
        expected = cosine(delta(first, SITE, step // 5), delta(second, SITE, other // 5))
        assert seen == pytest.approx(expected, abs=1e-6)
    assert rows.query("step == 0")["value"].isna().all()  # ΔW is zero there


def test_a_planted_shared_direction_is_found_from_the_step_at_which_it_enters():
    wanted = unit(3, 200)
    one = adapter(1, d_out=200, towards=wanted, share=0.95)
    late = adapter(2, d_out=200, towards=wanted, share=0.95, from_step=50)
    stranger = adapter(4, d_out=200)
    found = compare(one, late, stranger)
    pooled = found.pairs.query("measure == 'B'").set_index(["run", "other"])
    assert pooled.loc[("seed1", "seed2"), "value"] == pytest.approx(0.95**2, abs=0.06)
    assert pooled.loc[("seed1", "seed2"), "p_random"] < 1e-6
    assert pooled.loc[("seed1", "seed2"), "p_permutation"] == pytest.approx(1 / 50)
    assert (pooled.drop(("seed1", "seed2"))["p_random"] > 0.01).all()
    first = {(p.final_of, p.inside): p.first_step for p in found.onsets if p.of == "B"}
    assert 50 < first["seed1", "seed2"] <= 65
    assert first["seed2", "seed1"] == 5
    assert first["seed1", "seed4"] is None
    assert "|cos B| at the end" in found.sentence() and "1 of 3 pairs are beyond chance" in found.sentence()


def test_the_common_plane_keeps_distances_and_starts_all_runs_at_one_point():
    wanted = unit(3)
    found = compare(*(adapter(seed, towards=wanted, share=0.8) for seed in (1, 2)))
    plane = found.plane.query("measure == 'B'")
    np.testing.assert_allclose(*plane.query("step == 0")[["x", "y"]].to_numpy(), atol=1e-9)
    vectors = [2.0 * np.linalg.norm(p.A[SITE][-1]) * p.B[SITE][:, :, 0].astype(float) for p in found.matched.paths]
    joint = np.concatenate(vectors)
    singular = np.linalg.svd(joint - joint.mean(axis=0), compute_uv=False)
    shares = plane[["share_x", "share_y"]].iloc[0]
    np.testing.assert_allclose(shares, singular[:2] ** 2 / np.sum(singular**2), atol=1e-6)


def test_the_composition_score_of_single_adapters_is_their_cosine_and_not_one():
    X, Y = np.random.default_rng(0).normal(size=(2, 60, 1))
    assert composition_score(X, Y) == pytest.approx(abs(cosine(X - X.mean(), Y - Y.mean())))
    assert composition_score(X, Y) == pytest.approx(abs(np.corrcoef(X[:, 0], Y[:, 0])[0, 1]))
    misplaced = np.linalg.norm(X @ Y.T) / (np.linalg.norm(X) * np.linalg.norm(Y))
    assert misplaced == pytest.approx(1)  # what the transpose in the wrong place gives, whatever the directions


def test_the_composition_score_of_several_adapters():
    drawn = np.random.default_rng(0).normal(size=(60, 4))
    equal = np.linalg.qr(drawn - drawn.mean(axis=0))[0]
    assert composition_score(equal, equal) == pytest.approx(1 / 2)  # 1/√n, as published
    assert composition_score(equal, equal, normalised=True) == pytest.approx(1)
    assert composition_score(equal, equal[:, ::-1], normalised=True) == pytest.approx(1)  # whichever site writes it
    path = adapter(1, 3, sites=TWO)
    np.testing.assert_allclose(composition_path(path), composition_path(in_another_gauge(path)), atol=1e-6)
    X = path_columns(path, -1)
    updates = np.concatenate([delta(path, site) for site in TWO], axis=1)
    np.testing.assert_allclose(X @ X.T, updates @ updates.T, atol=1e-5)
    with pytest.raises(InputError, match="two stacks of columns in one space"):
        composition_score(X, X[1:])


@pytest.mark.parametrize(
    ("module", "kind", "compared"),
    [("mlp.down_proj", "lora", True), ("self_attn.q_proj", "lora", False), ("mlp.down_proj", "full", False)],
)
def test_a_composition_is_of_adapters_that_write_to_the_residual_stream(module, kind, compared):
    """The outputs of q_proj and o_proj may be of one size, but they are in other spaces."""
    sites = ("layers.1.self_attn.o_proj", f"layers.2.{module}")
    runs = [replace(adapter(seed, sites=sites), kind=kind) for seed in (1, 2)]
    assert ("composition" in set(compare(*runs).pairs["measure"])) is compared
    assert (no_composition(runs[0]) is None) is compared


def test_directions_that_are_zero_are_undefined_and_not_zero():
    silent = adapter(1)
    silent.B[SITE][:] = 0
    found = compare(silent, adapter(2))
    pooled = found.pairs.set_index("measure")
    assert pooled.loc[["B", "delta", "composition"], "value"].isna().all()
    assert pooled.loc[["B", "delta"], ["p_random", "p_permutation"]].isna().all(axis=None)
    assert "undefined, for an adapter is zero at the end" in found.sentence()
    assert found.to_dict()["pairs"][0]["value"] is None


def test_a_site_that_some_run_lacks_is_named_and_left_out():
    found = compare(adapter(1, sites=TWO), adapter(2))
    assert found.matched.sites == (SITE,)
    assert found.matched.unmatched == {"seed1": (TWO[1],)}
    assert f"not compared, for some other run lacks it: seed1 {TWO[1]}" in found.sentence()
    assert value(found, "B") == value(compare(adapter(1, sites=TWO[:1]), adapter(2)), "B")


def test_runs_saved_at_different_steps_are_compared_by_step():
    often, seldom = adapter(1), adapter(2)
    rows = np.array([0, 3, 4, 20])
    fewer = em.AdapterTrajectory(
        STEPS[rows],
        {SITE: seldom.A[SITE][rows]},
        {SITE: seldom.B[SITE][rows]},
        seldom.scale,
        base="tiny",
        source="seed2",
    )
    steps = compare(often, fewer).frame("steps")
    assert sorted(set(steps["other_step"])) == [0, 15, 20, 100]
    whole = compare(often, seldom).frame("steps")
    both = steps.merge(whole, on=["measure", "step", "other_step"])
    np.testing.assert_allclose(both["value_x"], both["value_y"])


def test_the_layer_of_a_site_is_read_from_its_name_or_refused():
    names = ("layers.24.mlp.down_proj", "model.layers.24.self_attn.o_proj", "layers.24")
    assert {layer_of(name) for name in names} == {24}
    with pytest.raises(InputError, match="'lm_head' is in no layer, such as"):
        layer_of("lm_head")
