# %% [markdown]
# # 4 · Comparing families
# Within one base two adapters can be held against each other number by number. Across bases raw cosines mean nothing:
# the spaces have nothing to do with each other. What can be compared is what does not depend on coordinates.

# %%
from pathlib import Path

import yaml

import em_interp as em

# %% [markdown]
# Two more organisms like that of `make demo`: another seed, and another family. The runs are short here; in earnest
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
# Every number beside what random directions of the same norms would give.

# %%
seeds = em.compare([qwen, again])
seeds

# %%
seeds.plot()

# %%
seeds.plot("presence")

# %% [markdown]
# ## Across bases
# `em.compare` refuses, and says what to use instead.

# %%
try:
    em.compare([qwen, llama])
except em.InputError as error:
    print(error)

# %% [markdown]
# `compare_across_bases` reads the same texts with every model and compares what the adapters *change*: two adapters on
# one base are alike in everything they leave alone, so the null is random adapters of the same norm.

# %%
families = em.compare_across_bases([qwen, llama], draws=19, level=0.9)
families

# %%
print(families.sentence())

# %%
families.plot()
