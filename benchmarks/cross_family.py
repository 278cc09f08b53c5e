"""How often the measures across families call unrelated adapters alike.

    python benchmarks/cross_family.py [trials]

Adapters with random directions on two built-in bases of different architecture: each pair is held against random
adapters of its norm, through the code of `em.compare_across_bases`, at the last layer. Prints a markdown table with
95 % binomial (Wilson) intervals: how many pairs lie outside the 95 % band of the null in which both are random, and how
many are called beyond chance, which also needs a value outside the band with one of the two adapters kept. Each trial
has 39 of 300 random adapters, so a share is off by about 1.3 points for the edge of their band alone. Turning profiles
are those of planted paths that turn at one step, two groups of three at a time. About three minutes on one core for
300 trials.
"""

import sys

import numpy as np
from table import print_row, share

from em_interp.behaviour.generate import RowAdapters
from em_interp.comparison.cross_base.activation_diff import Member, Opening, changes_of, depths, own_and_random
from em_interp.comparison.cross_base.compare import carried_rows, likeness_rows
from em_interp.comparison.cross_base.similarity import shared_tokens
from em_interp.comparison.cross_base.texts import built_in_texts
from em_interp.comparison.cross_base.turning_profile import profile_test, turning_profile
from em_interp.mechanism import open_model
from em_interp.trajectory.trajectory import AdapterTrajectory
from em_interp.transition.synthetic.paths import planted_path

SEED, POOL, DRAWS, TEXTS = 2031, 300, 39, 60
SITE = "layers.1.mlp.down_proj"
BASES = {"tiny-qwen2": 12.0, "tiny-gemma3": 12.0}  # and the norm of the adapters on them
SIGNED = ("readout", "carried")


def unrelated(base, norm, trials, key):
    """The opening of a base, and the changes of `trials` adapters drawn here, then of the package's random ones."""
    rng = np.random.default_rng([SEED, key])
    B, A = rng.normal(size=(trials + 1, 128, 1)), rng.normal(size=(trials + 1, 1, 384))
    B *= norm / np.linalg.norm(B, axis=1, keepdims=True)
    A /= np.linalg.norm(A, axis=2, keepdims=True)
    parts = {SITE: A.astype(np.float32)}, {SITE: B.astype(np.float32)}
    path = AdapterTrajectory(np.arange(trials + 1), *parts, {SITE: 1.0}, base=base, source=base)
    model = open_model(path)
    drawn = [RowAdapters.of(path, [step], [1.0], "cpu") for step in range(trials)]
    null = [adapters for number, adapters in enumerate(own_and_random(model, POOL, (key,))) if number]
    changes = changes_of(model, built_in_texts(TEXTS), depths(model.layers, 1), [*drawn, *null])
    return Opening(base, path, None, base), changes, model.layers, model.base.tokenizer


def trial_rows(trials):
    """The rows of every trial."""
    held = [unrelated(base, norm, trials, key) for key, (base, norm) in enumerate(BASES.items())]
    tokens = shared_tokens(held[0][3], held[1][3])
    for trial in range(trials):
        pool = trials + np.random.default_rng([SEED, 9, trial]).permutation(POOL)[:DRAWS]
        pair = [Member(opening, changes.only([trial, *pool]), *rest) for opening, changes, *rest in held]
        yield from likeness_rows(*pair, tokens, 0.95)
        yield from (row for row, _ in carried_rows(*pair, 0.95))


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
    print_row("measure", "trials", "outside the band %", "p ≤ 0.05 %", "called beyond chance %", head=True)
    for measure in dict.fromkeys(row["measure"] for row in rows):
        mine = [row for row in rows if row["measure"] == measure]
        size = [abs(row["value"]) if measure.startswith(SIGNED) else row["value"] for row in mine]
        outside = [value > row["random_band"] for value, row in zip(size, mine, strict=True)]
        small, called = (
            [max(row[k] for k in keys) <= 0.05 for row in mine] for keys in (["p_random"], ["p_random", "p_kept"])
        )
        print_row(measure, len(mine), share(outside), share(small), share(called))
    found = np.array(list(turning_p_values(trials)))
    print_row("turning profiles, p ≤ 0.1", len(found), "–", share(found <= 0.1 + 1e-9), "–")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
