# %% [markdown]
# # 2 · Anatomy of a transition
# What is a turn, what is noise, and what fools the usual way of finding one? Here the truth is planted, so that every
# answer can be checked. Nothing is trained: a path is a table of vectors.

# %%
import numpy as np
import pandas as pd

import em_interp as em
from em_interp.figures import pca, turning_angle
from em_interp.transition.local_cosine import largest_local_cosine
from em_interp.transition.synthetic.paths import NOT_TURNING, planted_path

# %% [markdown]
# ## A path that turns
# Drift with a direction, which turns at one step, and the noise of an optimizer.

# %%
planted = planted_path("abrupt", seed=3)
planted.turn

# %%
turn = em.find_transition(planted.trajectory())
turn

# %%
turn.plot()

# %% [markdown]
# The interval is for the step of *this* path. It is rounded outward to whole steps.

# %% [markdown]
# ## Paths that do not
# Each of these has a hump in its second principal component, or a corner, or a peak of the local cosine, and none of
# them turns: a straight path, one that saturates, one that curves steadily, one that stalls, one whose schedule
# restarts. The published way of naming a step is the largest local cosine. It always names one.

# %%
rows = []
for kind in NOT_TURNING:
    path = planted_path(kind, seed=5)
    found = em.find_transition(path.trajectory())
    named = {f"heuristic, k = {k}": largest_local_cosine(path.gram, path.steps, k)[0] for k in (10, 20)}
    rows.append({"kind": kind, "verdict": found.verdict, "p": found.p_value, **named})
pd.DataFrame(rows).set_index("kind")

# %% [markdown]
# A random walk has no direction anywhere, so the answer is `inconclusive`, not `none`: nothing could have been seen.

# %%
restart = planted_path("restart", seed=5).trajectory()
turning_angle(restart)

# %%
pca(restart)

# %% [markdown]
# ## What an answer rests on
# Every verdict says why, and a p-value is against "no turn of more than 20°", under noise that may have momentum.

# %%
print(em.find_transition(restart).reason)

# %% [markdown]
# ## How wide is the null?
# Forty straight paths: the share of p-values below 5 % should be at most 5 %. The full count, 300 paths a kind, is in
# `docs/rotation.md`.

# %%
p = np.array([em.find_transition(planted_path("straight", seed).trajectory()).p_value for seed in range(40)], float)
print(f"{np.mean(p <= 0.05):.0%} of {np.isfinite(p).sum()} straight paths have p ≤ 0.05; {np.isnan(p).sum()} have no p")

# %% [markdown]
# ## The other signals
# A path has more than one thing that can change. Each has its own null, and no correction is made for how many are
# asked: a claim should name its signal beforehand.

# %%
pd.DataFrame([t.to_dict() for t in em.find_transitions(planted.trajectory())])[
    ["signal", "of", "verdict", "step", "interval", "p_value"]
]
