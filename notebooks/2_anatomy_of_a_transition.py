# %% [markdown]
# # 2 · Anatomy of a transition
# What is a turn, what is noise, and what misleads the published heuristic? Here the paths are synthetic and their turns
# known, so that every answer can be checked. Nothing is trained: a path is a table of vectors. The notebook takes half
# a minute, most of it in the last cell.

# %%
import pandas as pd

import em_interp as em
from em_interp.figures import pca, turning_angle
from em_interp.transition.synthetic.paths import NOT_TURNING, TURNING

# %% [markdown]
# ## A path that turns
# The path is drift whose direction turns at one step, plus noise like an optimizer's. First the true turn, then the one
# found:

# %%
planted = em.planted_path("abrupt", seed=3)
planted.turn

# %%
turn = em.find_transition(planted.trajectory())
turn

# %%
turn.plot()

# %% [markdown]
# The upper panel shows the direction of the path around the turn, in the plane of the turn, with the fitted ramp; its
# middle is the step. The lower panel shows the test: how far the path turns at each step beyond its steady curvature.
# Grey is the null hypothesis, a turn of 20° or less. The interval is for the step of *this* path, rounded outward to
# whole steps; it says nothing about another seed.

# %% [markdown]
# ## Paths that do not turn
# None of these nine kinds turns, though each has a hump in its second principal component, a corner, or a peak of the
# local cosine:
#
# | kind | the path |
# |---|---|
# | `straight` | one direction throughout |
# | `random_walk` | noise alone |
# | `saturating` | slows down towards the bottom of a quadratic loss |
# | `arc`, `arc_growth` | curves steadily; the second grows most in the middle of the run |
# | `bend` | changes direction over 35 % of the run or more: too slowly for a turn |
# | `growth`, `stall` | one direction, with growth in the middle of the run; one direction until it almost stops |
# | `restart` | one direction, with a learning-rate schedule that starts again |
#
# The published heuristic takes the step with the largest local cosine, so it always names one.

# %%
rows = []
for kind in NOT_TURNING:
    path = em.planted_path(kind, seed=2)
    found = em.find_transition(path.trajectory())
    heuristic = {f"heuristic, k = {k}": em.largest_local_cosine(path.gram, path.steps, k)[0] for k in (10, 20)}
    rows.append({"kind": kind, "verdict": found.verdict, "p": found.p_value, **heuristic})
pd.DataFrame(rows).set_index("kind")

# %% [markdown]
# A random walk has no direction anywhere, so its verdict is `inconclusive`, not `none`: no turn could have been
# detected.
#
# The restart shows why a peak is no evidence. The learning rate falls to zero and starts again. In between the path
# hardly moves, most of each move is noise, and the angle between two moves is large. The band of a straight path with
# the same speed and noise rises there as much:

# %%
restart = em.planted_path("restart", seed=2).trajectory()
turning_angle(restart)

# %% [markdown]
# The path itself goes straight on, also in the plane of its first two principal components:

# %%
pca(restart)

# %% [markdown]
# ## The reason for a verdict
# Every verdict has a reason, and that of `none` says in how much of the run a turn of 60° would have been detected. The
# null hypothesis of the p-value is "no turn of more than 20°", under noise that may have momentum.

# %%
print(em.find_transition(restart).reason)

# %% [markdown]
# ## The other signals
# More than the direction of a path can change. Here are all signals of the first path. Only its B moves and turns; its
# A does not move, and it has no training log. Each signal has its own null hypothesis, and there is no correction for
# their number: a claim should name its signal beforehand.

# %%
for found in em.find_transitions(planted.trajectory()):
    print(f"{found.sentence()}. {found.reason}\n")

# %% [markdown]
# ## How often is each wrong?
# This counts the answers on three paths of every kind (about 12 seconds). On the kinds that turn, both methods should
# name a step near the turn; on the others the test should name none, while the heuristic always names one. The full
# table, with 300 paths of each kind, is in `docs/rotation.md`.

# %%
rows = []
for kind in (*TURNING, *NOT_TURNING):
    paths = [em.planted_path(kind, seed) for seed in range(3)]
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
