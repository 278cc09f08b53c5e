# %% [markdown]
# # 5 · A public trajectory on a laptop
# A repository of checkpoints on the Hub is a path of a few megabytes, and no model is needed to read it. With network
# access this takes one line:
# `em.load_trajectory("ModelOrganismsForEM/Qwen2.5-14B-Instruct_R1_0_1_0_extended_train", revision="<commit>")`.
#
# To run anywhere, this notebook copies the run of the first notebook (or trains it, in half a minute) into a folder
# with the layout and the steps of the public repositories, and reads that.

# %%
import shutil
from pathlib import Path

import em_interp as em

# %%
run = em.train("../configs/tiny.yaml", out="../checkpoints/tiny", resume=True)
public = Path("../checkpoints/public-layout")
saved = [*range(1, 11), *range(15, 396, 5), 400]  # as published: each of the first ten, then every fifth, then the last
for step in saved:
    folder = public / "checkpoints" / f"checkpoint-{step}"
    if not folder.exists():
        shutil.copytree(run.checkpoint(step), folder)
        shutil.copy(run.trainer_state_file, folder / "trainer_state.json")  # the Hub has the log in each folder

# %% [markdown]
# ## Read it
# No config and no manifest are needed. Steps are looked up by their number: the neighbours of step 10 are 9 and 15.

# %%
path = em.load_trajectory(public)
path

# %%
path.frame().tail(3)[["norm_B", "norm_delta", "cos_final_delta", "turning_angle_B", "loss", "grad_norm"]]

# %% [markdown]
# ## Find its transitions
# These are all signals, each with its verdict and interval. The adapter of step 0 is not published and not needed.

# %%
for found in em.find_transitions(path):
    print(found.sentence())

# %%
em.find_transition(path).plot()

# %% [markdown]
# ## The same with every step
# How does the answer change with all 401 steps of the run?

# %%
em.find_transition(em.load_trajectory(run))

# %% [markdown]
# ## Compared with the published heuristic
# This is the paper's own plot, with the step that its heuristic names and the answer of the test. In this run the
# largest local cosine is late, when about a twentieth of the cumulative learning rate is left. The test compares the
# path's direction before and after each step over longer windows, and finds the turn at step 100.

# %%
em.figures.local_cosine(path, k=[5, 10, 15])

# %% [markdown]
# The command for the same: `em-interp locate ORG/NAME --revision COMMIT --json`. Files are fetched once, checked and
# cached; with a commit as the revision, the same bytes can be read again without a network.
