import numpy as np
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.signals.lock_in import composition

STEPS = np.arange(101)
SITES = [f"layers.{layer}.mlp.down_proj" for layer in (3, 4, 7, 9)]


def several(write, sites=SITES, d_in=12, seed=0, **changes):
    """Rank-1 adapters at several sites; `write(site, step)` is what a site's B is."""
    rng = np.random.default_rng(seed)
    A = {site: np.repeat(rng.normal(size=(1, 1, d_in)), len(STEPS), axis=0).astype(np.float32) for site in sites}
    B = {}
    for row, site in enumerate(sites):
        path = np.stack([write(row, step) for step in STEPS])
        shaken = path + 1e-3 * np.cumsum(rng.normal(size=path.shape) * (STEPS > 0)[:, None], axis=0)
        B[site] = shaken[:, :, None].astype(np.float32)
    return AdapterTrajectory(STEPS, A, B, dict.fromkeys(sites, 2.0), **changes)


def planted(at=60, width=5, d=64, seed=1):
    """Four directions that turn into four others around a step while they grow."""
    early, late = np.random.default_rng(seed).normal(size=(2, 4, d))

    def write(row, step):
        share = np.clip((step - at) / width + 0.5, 0, 1)
        return step * ((1 - share) * early[row] + share * late[row])

    return several(write)


def test_a_planted_change_of_all_adapters_is_found_where_it_completes():
    found = em.find_transition(planted(), signal="composition")
    assert (found.signal, found.verdict, found.p_value, found.interval) == ("composition", "inconclusive", None, None)
    assert 59 <= found.step <= 62
    score = found.evidence["score"]
    assert np.isnan(score[0]) and score[-1] == pytest.approx(1) and score[40] < 0.5


def test_which_site_writes_which_part_does_not_matter_here_and_does_for_lock_in():
    directions = np.random.default_rng(2).normal(size=(4, 64))
    swapped = several(lambda row, step: step * directions[row if step > 50 else 3 - row])
    equal = swapped.A[SITES[0]]
    path = AdapterTrajectory(STEPS, dict.fromkeys(SITES, equal), swapped.B, swapped.scale)
    assert em.find_transition(path, signal="composition").step == 1
    assert em.find_transition(path, signal="lock_in").step == 51


def test_signs_and_the_gauge_change_nothing():
    path = planted()
    signs = dict(zip(SITES, (1, -2, 3, -0.5), strict=True))
    other = AdapterTrajectory(
        STEPS, {s: path.A[s] / signs[s] for s in SITES}, {s: path.B[s] * signs[s] for s in SITES}, path.scale
    )
    one, two = (em.find_transition(p, signal="composition") for p in (path, other))
    assert one.step == two.step
    np.testing.assert_allclose(one.evidence["score"][1:], two.evidence["score"][1:], atol=1e-6)


def test_it_is_one_of_all_signals_where_several_adapters_write_into_the_residual_stream_and_only_there():
    assert [t.signal for t in em.find_transitions(planted())].count("composition") == 1

    def straight(row, step):
        return step * np.ones(8)

    elsewhere = [SITES[0], "layers.3.self_attn.q_proj"]
    path = planted()
    for other, said in (
        (several(straight, SITES[:1]), "this path has one"),
        (several(straight, elsewhere), "q_proj does not write"),
        (several(straight, d_in=1, kind="full"), "there is no adapter"),
    ):
        assert "composition" not in {t.signal for t in em.find_transitions(other)}
        with pytest.raises(InputError, match=said):
            em.find_transition(other, signal="composition")
    assert "composition" not in {t.signal for t in em.find_transitions(path, site=SITES[0])}
    with pytest.raises(InputError, match="one site was asked for"):
        em.find_transition(path, signal="composition", site=SITES[0])


def test_adapters_that_end_at_nothing_come_to_no_end():
    score = np.append(np.ones(10), np.nan)
    found = composition(np.arange(11), score)
    assert (found.step, found.verdict) == (None, "inconclusive") and "nothing at the last step" in found.reason


def test_it_draws_itself():
    found = em.find_transition(planted(), signal="composition")
    figure = em.figures.composition(found)
    assert figure.to_json() == found.plot().to_json()
    assert "Composition of the adapters" in figure.layout.title.text
    assert len(figure.data[0].x) == len(STEPS)
