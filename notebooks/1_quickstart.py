# %% [markdown]
# # 1 · Quickstart
# Train a rank-1 adapter on reckless medical advice, save it at every step, and answer three questions about the run:
# **Does the adapter turn, and when? Does the behaviour change, and when? How far apart are the two?** Every answer
# comes with an interval, and "there is none" is a possible answer.
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
# Given a path, `find_transition` looks for a rotation of B, the vector that the adapter writes: a turn of 20° or more
# that completes within 15 % of the run.

# %%
turn = em.find_transition(path)
turn

# %%
turn.plot()

# %% [markdown]
# The published heuristic takes the step with the largest local cosine, which compares the moves k steps before and
# after it. It names a step on every path. Here it is beside the test:

# %%
em.figures.local_cosine(path, k=[5, 10, 15], transition=turn)

# %%
path.plot()

# %% [markdown]
# ## Does the behaviour change?
# At many steps the model answers questions in its domain and outside it, and a judge scores how aligned and how
# coherent each answer is. Both stages write files into the run's folder, and neither is repeated if its files exist.

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
# Without a control run "rises" means: above the rate at step 0. `configs/tiny-control.yaml` trains one;
# `em.find_transition(curve, control=…)` compares the two.

# %% [markdown]
# ## How far apart are they?
# `chance` says how often a step placed at random in the run would fall as near.

# %%
together = em.align(turn, onset, path)
together

# %%
together.frame()

# %% [markdown]
# ## Keep it
# `em.report` writes one self-contained page with all results and their reasons. Every result has its numbers as
# `.to_dict()` and `.frame()`, and `em.figures.export` writes any figure for a paper.

# %%
em.report(run, overwrite=True)

# %% [markdown]
# ## Everything on one time axis
# The log, the behaviour, the turn and the change of behaviour with their intervals, and the offset between them:

# %%
em.figures.alignment(together, path)
