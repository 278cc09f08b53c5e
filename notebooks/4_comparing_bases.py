# %% [markdown]
# # 4 · Comparing runs, within a base and across bases
# Within one base two adapters can be compared number by number. Across bases raw cosines mean nothing: each base has
# its own coordinates. There only measures that do not depend on coordinates can be compared.
#
# Three runs are compared: that of the first notebook, the same with another seed, and the same on another base. To
# train the two new ones and to sample and judge their answers takes a minute or two, the comparison across bases half a
# minute. For real results train at least three seeds of each (`em-interp sweep configs/tiny-sweep.yaml`).

# %%
import em_interp as em


def organism(name, *overrides):
    config = em.load_config("../configs/tiny.yaml", overrides)
    run = em.train(config, out=f"../checkpoints/{name}", resume=True)
    em.ask(run, resume=True)
    em.judge(run, resume=True)
    return run


qwen = organism("tiny")
again = organism("tiny-seed1", "seed=1")
llama = organism("tiny-llama", "model=tiny-llama")

# %% [markdown]
# ## Within one base: is it the same direction, at the same step?
# Every number comes with the band of random directions of the same norms. The steps of each signal are pooled over the
# runs, and a test says whether they can be the same step (Cochran's Q; with two seeds it detects only large
# differences).

# %%
seeds = em.compare([qwen, again])
seeds

# %%
seeds.plot()

# %% [markdown]
# From which step on is one run's direction similar to the other's final direction?

# %%
seeds.plot("direction_onset")

# %% [markdown]
# Do both turn at the same step? Each run's step with its interval, and the pooled step:

# %%
seeds.plot("agreement", signal="rotation")

# %% [markdown]
# ## Across bases
# `em.compare` refuses these runs and says what to use instead.

# %%
try:
    em.compare([qwen, llama])
except em.InputError as error:
    print(error)

# %% [markdown]
# `compare_across_bases` reads the same texts with every model and compares what the adapters *change* in the residual
# stream: by CKA and Procrustes, by the tokens that the change promotes (logit lens), and by mapping one run's direction
# into the other base. The null is random adapters of the same norms, here 19 per run, so 0.05 is the smallest possible
# p.

# %%
across = em.compare_across_bases([qwen, llama], draws=19, level=0.9)
across

# %%
across.plot()

# %% [markdown]
# How much each adapter promotes or suppresses a token, one adapter against the other:

# %%
across.plot("tokens")
