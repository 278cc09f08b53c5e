"""How often the measures across bases call unrelated adapters similar.

    python benchmarks/cross_base.py [trials]

Adapters with random directions on two built-in bases of different architecture: each pair is compared with random
adapters of its norm, through the code of `em.compare_across_bases`, at the last layer. Prints a markdown table with
95 % binomial (Wilson) intervals: how many pairs lie outside the 95 % band of the null in which both are random, and how
many are beyond chance, which also needs a value outside the band with one of the two random. Each trial has 39 of 300
random adapters, so a share is off by about 1.3 points for the edge of their band alone. Turning profiles are those of
planted paths that turn at one step, two groups of three at a time. About three minutes on one core for 300 trials.
"""

import sys

import numpy as np
from table import print_row, share

from em_interp.behaviour.sampling.generate import RowAdapters
from em_interp.comparison.cross_base.activation_diff import (
    MeasuredRun,
    RunOnBase,
    activation_diff,
    depths,
    own_and_random,
)
from em_interp.comparison.cross_base.logit_lens import shared_tokens
from em_interp.comparison.cross_base.similarity import mapped_rows, similarity_rows
from em_interp.comparison.cross_base.texts import built_in_texts
from em_interp.comparison.cross_base.turning_profile import profile_test, turning_profile
from em_interp.mechanism import open_model
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.synthetic.paths import planted_path

SEED, POOL, DRAWS, TEXTS = 2031, 300, 39, 60
SITE = "layers.1.mlp.down_proj"
BASES = {"tiny-qwen2": 12.0, "tiny-gemma3": 12.0}  # and the norm of the adapters on them
SIGNED = ("logit_lens", "mapped")


def unrelated(base, norm, trials, key):
    """A run on a base, and the differences of `trials` adapters drawn here, then of the package's random ones."""
    rng = np.random.default_rng([SEED, key])
    B, A = rng.normal(size=(trials + 1, 128, 1)), rng.normal(size=(trials + 1, 1, 384))
    B *= norm / np.linalg.norm(B, axis=1, keepdims=True)
    A /= np.linalg.norm(A, axis=2, keepdims=True)
    matrices = {SITE: A.astype(np.float32)}, {SITE: B.astype(np.float32)}
    path = AdapterTrajectory(np.arange(trials + 1), *matrices, {SITE: 1.0}, base=base, source=base)
    model = open_model(path)
    drawn = [RowAdapters.of(path, [step], [1.0], "cpu") for step in range(trials)]
    null = [adapters for number, adapters in enumerate(own_and_random(model, POOL, (key,))) if number]
    diff = activation_diff(model, built_in_texts(TEXTS), depths(model.layers, 1), [*drawn, *null])
    return RunOnBase(base, path, None, base), diff, model.layers, model.base.tokenizer


def trial_rows(trials):
    """The rows of every trial."""
    runs = [unrelated(base, norm, trials, key) for key, (base, norm) in enumerate(BASES.items())]
    tokens = shared_tokens(runs[0][3], runs[1][3])
    for trial in range(trials):
        pool = trials + np.random.default_rng([SEED, 9, trial]).permutation(POOL)[:DRAWS]
        pair = [MeasuredRun(source, diff.only([trial, *pool]), *rest) for source, diff, *rest in runs]
        yield from similarity_rows(*pair, tokens, 0.95)
        yield from (row for row, _ in mapped_rows(*pair, 0.95))


def turning_p_values(trials):
    """P-values of two groups of three planted paths of one kind."""
    for trial in range(trials):
        profiles = [
            turning_profile(planted_path("abrupt", SEED + 6 * trial + k).trajectory(), "norm") for k in range(6)
        ]
        yield profile_test(profiles[:3], profiles[3:]).p_value


def main(trials):
    """Print the table."""
    rows = list(trial_rows(trials))
    print_row("measure", "trials", "outside the band %", "p ≤ 0.05 %", "beyond chance %", head=True)
    for measure in dict.fromkeys(row["measure"] for row in rows):
        of_measure = [row for row in rows if row["measure"] == measure]
        size = [abs(row["value"]) if measure.startswith(SIGNED) else row["value"] for row in of_measure]
        outside = [value > row["random_band"] for value, row in zip(size, of_measure, strict=True)]
        small, beyond = (
            [max(row[k] for k in keys) <= 0.05 for row in of_measure]
            for keys in (["p_random"], ["p_random", "p_one_random"])
        )
        print_row(measure, len(of_measure), share(outside), share(small), share(beyond))
    p_values = np.array(list(turning_p_values(trials)))
    print_row("turning profiles, p ≤ 0.1", len(p_values), "–", share(p_values <= 0.1 + 1e-9), "–")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
