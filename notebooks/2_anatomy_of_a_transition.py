# %% [markdown]
# # 2 · Anatomy of a transition
# What is a turn, what is noise, and what misleads the published heuristic? Here the truth is planted, so that every
# answer can be checked. Nothing is trained: a path is a table of vectors.

# %%
import pandas as pd

import em_interp as em
from em_interp.figures import pca, turning_angle
from em_interp.transition.synthetic.paths import NOT_TURNING, TURNING

# %% [markdown]
# ## A path that turns
# Drift whose direction turns at one step, plus the noise of an optimizer.

# %%
planted = em.planted_path("abrupt", seed=3)
planted.turn

# %%
turn = em.find_transition(planted.trajectory())
turn

# %%
turn.plot()

# %% [markdown]
# The interval is for the step of *this* path, rounded outward to whole steps.

# %% [markdown]
# ## Paths that do not turn
# Each of these has a hump in its second principal component, a corner, or a peak of the local cosine, and none of them
# turns: a straight path, one that saturates, one that curves steadily, one that stalls, one whose schedule restarts.
# The published heuristic takes the step with the largest local cosine, so it always names one.

# %%
rows = []
for kind in NOT_TURNING:
    path = em.planted_path(kind, seed=5)
    found = em.find_transition(path.trajectory())
    heuristic = {f"heuristic, k = {k}": em.largest_local_cosine(path.gram, path.steps, k)[0] for k in (10, 20)}
    rows.append({"kind": kind, "verdict": found.verdict, "p": found.p_value, **heuristic})
pd.DataFrame(rows).set_index("kind")

# %% [markdown]
# A random walk has no direction anywhere, so the verdict is `inconclusive`, not `none`: no turn could have been
# detected.

# %%
restart = em.planted_path("restart", seed=5).trajectory()
turning_angle(restart)

# %%
pca(restart)

# %% [markdown]
# ## The reason for a verdict
# Every verdict has its reason. The null hypothesis of the p-value is "no turn of more than 20°", under noise that may
# have momentum.

# %%
print(em.find_transition(restart).reason)

# %% [markdown]
# ## The other signals
# More than the direction of a path can change. Each signal has its own null hypothesis, and no correction is made for
# their number: a claim should name its signal beforehand.

# %%
pd.DataFrame([t.to_dict() for t in em.find_transitions(planted.trajectory())])[
    ["signal", "of", "verdict", "step", "interval", "p_value"]
]

# %% [markdown]
# ## How often is each wrong?
# Five paths of every kind, counted. On a path that turns both should name a step near the turn; on the others the test
# should name none, and the heuristic always names one. The full table, 300 paths a kind, is in `docs/rotation.md`.

# %%
rows = []
for kind in (*TURNING, *NOT_TURNING):
    paths = [em.planted_path(kind, seed) for seed in range(5)]
    tested = [em.find_transition(path.trajectory()) for path in paths]
    counts = {"test: a step": sum(found.found for found in tested), "heuristic: a step": len(paths)}
    if kind in TURNING:
        argmax = [em.largest_local_cosine(path.gram, path.steps, k=10)[0] for path in paths]
        truth = [path.turn.step for path in paths]
        named = {"test": [found.step for found in tested], "heuristic": argmax}
        for name, steps in named.items():
            near = [step is not None and abs(step - true) <= 15 for step, true in zip(steps, truth, strict=True)]
            counts[f"{name}: within 15 steps"] = sum(near)
    rows.append({"kind": kind, "turns": kind in TURNING, **counts})
table = pd.DataFrame(rows).set_index("kind")
table.style.format("{:.0f}", na_rep="", subset=table.columns[1:])
