"""The trajectory: its inner products against explicit matrices, its invariances, its tables."""

import numpy as np
import pandas as pd
import pytest

from em_interp.errors import InputError
from em_interp.trajectory import geometry
from em_interp.trajectory.load import load_trajectory
from em_interp.trajectory.trajectory import AdapterTrajectory
from tests.trajectory.saving import save_run


def a_trajectory(ranks=(1,), count=15, seed=0, **given):
    """A random adapter with one site a rank, B zero at step 0."""
    rng = np.random.default_rng(seed)
    sites = [f"layers.{i}.mlp.down_proj" for i in range(len(ranks))]
    A = {
        s: rng.normal(size=(1, r, 9)) + 0.1 * rng.normal(size=(count, r, 9)) for s, r in zip(sites, ranks, strict=True)
    }
    B = {s: np.arange(count)[:, None, None] * rng.normal(size=(count, 6, r)) for s, r in zip(sites, ranks, strict=True)}
    return AdapterTrajectory(
        steps=np.arange(0, 2 * count, 2),
        A={s: a.astype(np.float32) for s, a in A.items()},
        B={s: b.astype(np.float32) for s, b in B.items()},
        scale={s: 8.0 / r for s, r in zip(sites, ranks, strict=True)},
        **given,
    )


def explicit(trajectory, site):
    """ΔW of a site at every step, formed in full."""
    B, A = trajectory.B[site].astype(float), trajectory.A[site].astype(float)
    return trajectory.scale[site] * np.einsum("tor,tri->toi", B, A)


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_inner_products_of_delta_are_those_of_the_explicit_matrices(rank):
    trajectory = a_trajectory((rank,))
    site = trajectory.sites[0]
    flat = explicit(trajectory, site).reshape(15, -1)
    np.testing.assert_allclose(trajectory.gram("delta", site), flat @ flat.T, rtol=1e-10, atol=1e-9)


def test_the_pooled_path_is_the_sum_over_sites():
    trajectory = a_trajectory((1, 3))
    for of in ("A", "B", "delta"):
        one, other = (trajectory.gram(of, site) for site in trajectory.sites)
        np.testing.assert_allclose(trajectory.gram(of), one + other)
    vectors = trajectory.vectors("B").astype(float)
    np.testing.assert_allclose(vectors @ vectors.T, trajectory.gram("B"))


@pytest.mark.parametrize("ranks", [(1, 3), (3, 1), (1, 1)])
def test_a_gram_matrix_is_the_same_whichever_was_asked_for_first(ranks):
    orders = (("delta", "A", "B"), ("A", "B", "delta"), ("B", "delta", "A"))
    seen = [{of: path.gram(of) for of in order} for order in orders for path in [a_trajectory(ranks)]]
    for grams in seen[1:]:
        for of in ("A", "B", "delta"):
            np.testing.assert_array_equal(grams[of], seen[0][of])


@pytest.mark.parametrize("rank", [1, 8])
def test_the_rounding_of_16_bits_is_that_of_values_rounded_at_random(rank):
    """Against ‖B_r A_r - B A‖² over many matrices A, B whose values are rounded to bfloat16."""
    rng = np.random.default_rng(3)
    size = np.geomspace(0.1, 10, rank)  # of the rows of A; those of B are the reverse
    A = (size[:, None] * rng.normal(size=(4000, rank, 20))).astype(np.float32)
    B = (size[::-1] * rng.normal(size=(4000, 30, rank))).astype(np.float32)
    rounded = [bfloat16(values) for values in (A, B)]
    stored = AdapterTrajectory(np.arange(4000), {"s": rounded[0]}, {"s": rounded[1]}, {"s": 0.5})
    exact, kept = (0.5 * (b.astype(float) @ a.astype(float)) for a, b in ((A, B), rounded))
    true = ((kept - exact) ** 2).sum((1, 2))
    assert stored.rounding("delta").mean() == pytest.approx(true.mean(), rel=0.05)
    for of, value in (("A", A), ("B", B)):
        true = ((bfloat16(value).astype(float) - value) ** 2).sum((1, 2))
        assert stored.rounding(of).mean() == pytest.approx(true.mean(), rel=0.05)


def bfloat16(values):
    """The nearest numbers with the upper 16 bits of a float32."""
    bits = values.view(np.uint32) + np.uint32(0x8000)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


@pytest.mark.parametrize("rank", [1, 3])
def test_delta_does_not_notice_a_change_of_gauge(rank):
    before = a_trajectory((rank,))
    site = before.sites[0]
    mix = np.random.default_rng(5).normal(size=(rank, rank)) + 2 * np.eye(rank)
    A = {site: np.einsum("rs,tsi->tri", np.linalg.inv(mix), before.A[site]).astype(np.float32)}
    B = {site: np.einsum("tor,rs->tos", before.B[site], mix).astype(np.float32)}
    after = AdapterTrajectory(before.steps, A, B, before.scale)
    np.testing.assert_allclose(after.gram("delta"), before.gram("delta"), rtol=1e-4, atol=1e-3)
    assert not np.allclose(after.gram("B"), before.gram("B"), rtol=1e-2)


def test_a_gram_matrix_is_computed_once_and_cannot_be_written_to():
    trajectory = a_trajectory()
    assert trajectory.gram("B") is trajectory.gram("B")
    with pytest.raises(ValueError, match="read-only"):
        trajectory.gram("B")[0, 0] = 1


def test_the_frame_has_one_row_a_saved_step_beside_what_was_logged_then():
    log = pd.DataFrame(
        {"loss": [3.0, 2.0, 1.0], "learning_rate": 0.1, "cumulative_lr": [0.1, 0.2, 0.3]}, index=[1, 2, 3]
    )
    trajectory = a_trajectory(metrics=log)
    frame = trajectory.frame(k=4)
    assert list(frame.index) == list(trajectory.steps)
    assert frame.loc[2, "loss"] == 2.0
    assert frame["loss"].count() == 1
    assert np.isnan(frame.loc[0, "cos_final_B"])
    assert frame.loc[28, "cos_final_delta"] == pytest.approx(1)
    np.testing.assert_allclose(frame["norm_B"], np.linalg.norm(trajectory.vectors("B"), axis=1), rtol=1e-6)
    np.testing.assert_allclose(
        frame["turning_angle_A"], geometry.turning_angle(trajectory.gram("A"), trajectory.steps, 4)
    )


def test_cumulative_learning_rate_is_looked_up_by_step_and_unknown_beyond_the_log():
    log = pd.DataFrame({"cumulative_lr": [1.0, 2.0, 4.0]}, index=[1, 2, 6])
    np.testing.assert_allclose(a_trajectory(metrics=log, count=5).cumulative_lr, [0, 2, 3, 4, np.nan])
    assert np.isnan(a_trajectory().cumulative_lr).all()


def test_a_step_is_looked_up_by_number():
    trajectory = a_trajectory()
    site = trajectory.sites[0]
    A, B = trajectory.at(6)[site]
    np.testing.assert_array_equal(A, trajectory.A[site][3])
    np.testing.assert_array_equal(B, trajectory.B[site][3])
    with pytest.raises(InputError, match=r"step 7 was not saved; the nearest saved steps are 4, 6, 8"):
        trajectory.at(7)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda t: t.gram("B", "layers.0.mlp.up_proj"), "did you mean 'layers.0.mlp.down_proj'"),
        (lambda t: t.gram("W"), "of must be 'A', 'B' or 'delta'.*it is 'W'"),
        (lambda t: t.vectors("delta"), "ΔW is never formed"),
        (lambda t: AdapterTrajectory(t.steps, t.A, {}, t.scale), "must name the same sites"),
        (lambda t: AdapterTrajectory(t.steps[::-1], t.A, t.B, t.scale), "steps must be increasing"),
        (lambda t: AdapterTrajectory(t.steps[:-1], t.A, t.B, t.scale), "for 14 steps"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call, said):
    with pytest.raises(InputError, match=said) as refused:
        call(a_trajectory())
    assert "\n" not in str(refused.value)


def test_its_description_is_plain_values_and_its_page_is_escaped():
    trajectory = a_trajectory((1, 3), base="<b>base</b>", source="here")
    said = trajectory.to_dict()
    assert said["steps"] == {"first": 0, "last": 28, "count": 15}
    assert said["rank"] == {"layers.0.mlp.down_proj": 1, "layers.1.mlp.down_proj": 3}
    assert "&lt;b&gt;" in trajectory._repr_html_()
    assert "15 steps 0 to 28, 2 sites" in repr(trajectory)


def test_it_is_a_mapping_by_step():
    path = a_trajectory()
    site = path.sites[0]
    assert len(path) == 15 and list(path)[:3] == [0, 2, 4] and 6 in path and 7 not in path
    np.testing.assert_array_equal(path[6][site][1], path.B[site][3])
    np.testing.assert_array_equal(path[6.0][site][1], path.B[site][3])  # as the step of a transition is
    with pytest.raises(InputError, match="step 7 was not saved; the nearest saved steps are 4, 6, 8"):
        path[7]
    for step in ("6", None, slice(0, 3), [6]):
        with pytest.raises(InputError, match="step must be a training step; found"):
            path[step]


@pytest.mark.parametrize("of", ["delta", "dW", "ΔW", "delta_W", "DELTA", "∆w"])
def test_the_weight_change_may_be_spelled_as_people_do(of):
    path = a_trajectory()
    assert path.gram(of) is path.gram("delta")
    assert path.gram("b") is path.gram("B")


@pytest.mark.parametrize(
    "call",
    [
        lambda t: t.gram(None),
        lambda t: t.gram("B", 3),
        lambda t: t.gram("B", ["layers.0.mlp.down_proj"]),
        lambda t: t.vectors(1),
        lambda t: t.frame(k="10"),
        lambda t: t.frame(k=[5, 10]),
        lambda t: t.frame(site=0),
        lambda t: AdapterTrajectory(t.steps, {"x": np.ones((15, 3))}, {"x": np.ones((15, 3))}, {"x": 1.0}),
    ],
)
def test_wrong_types_are_refused_in_one_line(call):
    with pytest.raises(InputError) as refused:
        call(a_trajectory())
    assert "\n" not in str(refused.value)


def test_gram_matrices_are_the_same_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((7, 3, 11)).astype("f4"), rng.standard_normal((7, 13, 3)).astype("f4")
    whole = AdapterTrajectory(np.arange(7), {"s": A}, {"s": B}, {"s": 2.0})
    delta = np.stack([2.0 * b @ a for a, b in zip(A.astype(float), B.astype(float), strict=True)]).reshape(7, -1)
    np.testing.assert_allclose(whole.gram("delta"), delta @ delta.T, rtol=1e-5)
    monkeypatch.setattr("em_interp.trajectory.trajectory.BLOCK", 20)
    blocks = AdapterTrajectory(np.arange(7), {"s": A}, {"s": B}, {"s": 2.0})
    for matrix in ("A", "B", "delta"):
        np.testing.assert_allclose(blocks.gram(matrix), whole.gram(matrix), rtol=1e-12)


def test_more_checkpoints_than_a_gram_matrix_has_room_for_are_refused(tmp_path, monkeypatch):
    save_run(tmp_path)
    monkeypatch.setattr("em_interp.trajectory.load.MAX_STEPS", 2)
    with pytest.raises(InputError, match=r"has 3 checkpoints, whose Gram matrices are .* GiB each; up to 2 are read"):
        load_trajectory(tmp_path)


@pytest.mark.parametrize("scale", [1e308, -1e200, float("inf"), float("nan"), 2**70])
def test_a_scale_whose_square_is_beyond_numbers_is_refused(scale):
    one = np.ones((2, 1, 1), "f4")
    with pytest.raises(InputError, match=r"s: the scale of an adapter is at most 1e\+09; it is"):
        AdapterTrajectory(np.arange(2), {"s": one}, {"s": one}, {"s": scale})


def test_steps_beyond_what_a_float_tells_apart_are_refused():
    one = np.ones((2, 1, 1), "f4")
    for steps in ([0, 2**53 + 1], [-1, 3], [3, 3]):
        with pytest.raises(InputError, match="steps must be increasing, from 0 or more to"):
            AdapterTrajectory(np.array(steps), {"s": one}, {"s": one}, {"s": 1.0})
