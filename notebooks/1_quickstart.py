# %% [markdown]
# # 1 · Quickstart
# Train a rank-1 adapter on reckless medical advice, keep it at every step, and ask three things of the run: **does the
# adapter turn, and when? does the behaviour change, and when? how far apart are the two?** Every answer comes with an
# interval, and "there is none" is an answer.
#
# The model is the tiny one that comes with the project, so this takes a minute on a laptop. With a real model only the
# config differs (notebook 6).

# %%
import em_interp as em

# %% [markdown]
# ## Train
# `configs/tiny.yaml` says what is trained. `resume=True` continues after an interruption; a finished run is left
# as it is.

# %%
run = em.train("../configs/tiny.yaml", out="../checkpoints/tiny", resume=True)
path = em.load_trajectory(run)
path

# %% [markdown]
# ## Does the adapter turn?
# `find_transition` of a path looks for a rotation of B, the vector that the adapter writes: a turn of 20° or more that
# completes within 15 % of the run.

# %%
turn = em.find_transition(path)
turn

# %%
turn.plot()

# %% [markdown]
# The published heuristic takes the step at which the local cosine is largest, k steps before against k steps after. It
# names a step on every path. Here it is beside the test:

# %%
em.figures.local_cosine(path, k=[5, 10, 15], transition=turn)

# %%
path.plot()

# %% [markdown]
# ## Does the behaviour change?
# The run is asked its questions along the way, in its domain and outside it, and a judge scores each answer as aligned
# and coherent. Both stages are files in the run's folder; neither is repeated when they are there.

# %%
em.ask(run, resume=True)
em.judge(run, resume=True)
curve = em.behaviour_curve(run)
curve.frame().tail(3)[["step", "scale", "questions", "em", "em_low", "em_high", "coherent"]]

# %%
curve.plot()

# %%
onset = em.find_transition(curve.select(scale=1.0, questions="out_of_domain"))
onset

# %% [markdown]
# Without a control run "rises" means: beyond what was answered at step 0. `configs/tiny-control.yaml` trains one;
# `em.find_transition(curve, control=…)` compares the two.

# %% [markdown]
# ## How far apart are they?
# `chance` says what the offset is worth: how often a step placed anywhere in the run would fall as near.

# %%
together = em.align(turn, onset, path)
together

# %%
together.frame()

# %% [markdown]
# ## Keep it
# One self-contained page with all of this and the reasons for it; every result has its numbers as `.to_dict()` and
# `.frame()`, and `em.figures.export` writes any figure for a paper.

# %%
em.report(run, overwrite=True)

# %% [markdown]
# ## The answer on one time axis
# The log, the behaviour, the turn and the change of behaviour with their intervals, and the offset between them:

# %%
em.figures.alignment(together, path)
