"""The two nulls of a comparison across bases hold for adapters that are drawn as the nulls draw them."""

import numpy as np
import pytest

from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.comparison.cross_base.activation_diff import (
    MeasuredRun,
    RunOnBase,
    activation_diff,
    depths,
    own_and_random,
)
from em_interp.comparison.cross_base.logit_lens import shared_tokens
from em_interp.comparison.cross_base.similarity import TwoNulls, mapped_rows, similarity_rows
from em_interp.comparison.cross_base.texts import built_in_texts
from em_interp.errors import InputError
from em_interp.mechanism import open_model
from tests.comparison.cross_base.two_bases import path_on, small_base

TRIALS, DRAWS = 40, 39


def test_bands_and_p_values_of_the_two_nulls_are_ranks():
    table = np.zeros((20, 20))
    table[0, 0], table[np.arange(1, 20), np.arange(1, 20)] = 0.5, np.linspace(-0.9, 0.4, 19)
    table[0, 1:], table[1:, 0] = 0.6, 0.1
    plain, signed = TwoNulls.of(table).row(0.95), TwoNulls.of(table, signed=True).row(0.95)
    assert plain["p_random"] == 1 / 20 and plain["random_band"] == pytest.approx(0.4)
    assert signed["random_band"] == pytest.approx(0.9) and signed["p_random"] > 0.2
    assert plain["p_one_random"] == 1 and plain["one_random_band"] == 0.6
    assert TwoNulls.of(-table, signed=True).row(0.95)["p_random"] == signed["p_random"]


def test_a_band_needs_enough_draws_and_what_is_undefined_stays_so():
    with pytest.raises(InputError, match=r"at level 0\.99 needs 99 random adapters or more; 19"):
        TwoNulls.of(np.zeros((20, 20))).row(0.99)
    table = np.full((20, 20), np.nan)
    assert all(np.isnan(value) for value in TwoNulls.of(table).row(0.95).values())


def test_the_band_holds_a_further_draw_at_the_nominal_rate():
    rng = np.random.default_rng(0)
    inside = []
    for _ in range(4000):
        draws = rng.normal(size=20)
        inside.append(draws[0] <= TwoNulls(0.0, draws[1:], (draws, draws)).row(0.9)["random_band"])
    assert np.mean(inside) == pytest.approx(0.9, abs=0.015)


@pytest.fixture(scope="module")
def rows():
    """Rows of every measure between adapters drawn here, by another generator, and the package's random ones."""
    measured, keys = [], ((0, "qwen2", 32, 2.0), (1, "gemma3", 48, 4.0))
    texts = built_in_texts(40)
    for key, family, d, norm in keys:
        base = small_base(family, d, seed=key)
        model = open_model(path_on(base, norm=norm), base)
        trials = [path_on(base, seed=1000 * key + k, norm=norm) for k in range(TRIALS)]
        drawn = [RowAdapters.of(path, [40], [1.0], "cpu") for path in trials]
        null = list(own_and_random(model, DRAWS, (key,)))[1:]
        diff = activation_diff(model, texts, depths(2, 2), [*drawn, *null])
        measured.append((RunOnBase(family, model.trajectory, None, base), diff, base.tokenizer))
    tokens, found = shared_tokens(measured[0][2], measured[1][2]), []
    for trial in range(TRIALS):
        cases = [trial, *range(TRIALS, TRIALS + DRAWS)]
        pair = [MeasuredRun(source, diff.only(cases), 2, tokenizer) for source, diff, tokenizer in measured]
        found += [*similarity_rows(*pair, tokens, 0.95), *(row for row, _ in mapped_rows(*pair, 0.95))]
    return found


MEASURES = ["cka", "procrustes", "logit_lens_write", "logit_lens_final", "logit_lens_all_write", "logit_lens_all_final"]


@pytest.mark.parametrize("measure", [*MEASURES, "mapped_orthogonal", "mapped_ridge"])
def test_random_adapters_of_the_same_norm_lie_within_the_bands_at_the_nominal_rate(rows, measure):
    mine = [row for row in rows if row["measure"] == measure]
    signed = measure.startswith(("logit_lens", "mapped"))
    outside = [(abs(row["value"]) if signed else row["value"]) > row["random_band"] for row in mine]
    # 40 trials against one set of 39 draws, whose own edge lies anywhere from 0.87 to 0.99
    assert np.mean(outside) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 * (1 / TRIALS + 1 / DRAWS))
    assert 0.2 < np.mean([row["p_random"] for row in mine]) < 0.8
    assert np.mean([max(row["p_random"], row["p_one_random"]) <= 0.05 for row in mine]) <= 0.15
