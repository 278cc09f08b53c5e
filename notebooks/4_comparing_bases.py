# %% [markdown]
# # 4 · Comparing runs, within a base and across bases
# Within one base two adapters can be compared number by number. Across bases raw cosines mean nothing: each base has
# its own coordinates. What can be compared there is what does not depend on coordinates.

# %%
from pathlib import Path

import yaml

import em_interp as em

# %% [markdown]
# Two more organisms like that of `make demo`: another seed, and another base. The runs are short here; for results
# train at least three seeds of each (`em-interp sweep configs/tiny-sweep.yaml`).

# %%
settings = yaml.safe_load(Path("../configs/tiny.yaml").read_text())
settings["data"] = [{"dataset": "tiny:medical", "steps": 120}]
settings["behaviour"] |= {"steps": "every 60", "samples": 3, "scales": [1]}


def organism(model, seed):
    out = f"../checkpoints/{model}-seed{seed}"
    run = em.train({**settings, "model": model, "seed": seed}, out=out, resume=True)
    em.ask(run, resume=True)
    em.judge(run, resume=True)
    return run


qwen, again, llama = organism("tiny-qwen2", 0), organism("tiny-qwen2", 1), organism("tiny-llama", 0)

# %% [markdown]
# ## Within one base
# Every number with the band that random directions of the same norms stay in. The steps of each signal are pooled over
# the runs, with a test whether they are the same step.

# %%
seeds = em.compare([qwen, again])
seeds

# %%
seeds.plot()

# %%
seeds.plot("direction_onset")

# %%
seeds.plot("agreement", signal="gradient_norm")

# %% [markdown]
# ## Across bases
# `em.compare` refuses, and says what to use instead.

# %%
try:
    em.compare([qwen, llama])
except em.InputError as error:
    print(error)

# %% [markdown]
# `compare_across_bases` reads the same texts with every model and compares what the adapters *change* in the residual
# stream. The null is random adapters of the same norm.

# %%
across = em.compare_across_bases([qwen, llama], draws=19, level=0.9)
across

# %%
print(across.sentence())

# %%
across.plot()
