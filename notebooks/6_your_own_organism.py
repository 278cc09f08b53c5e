# %% [markdown]
# # 6 · Your own organism on a GPU
# To go from the tiny model to a real one, only the config file changes. Here the config for a 14B model is written,
# checked and rehearsed from training to alignment on a tiny model, in about a minute. The last cells, under headings
# with **GPU**, do the same on the real model: they need a GPU, the model's weights and your data.

# %%
from pathlib import Path

import yaml

import em_interp as em

# %% [markdown]
# ## The config, line by line
# Every key that is left out has the value of the published organisms (2506.11613): rank 1, rsLoRA, AdamW with weight
# decay 0.01, five steps of warm-up, linear decay, loss on the answers only, a tenth of the rows held out. An unknown
# key is an error, and so is a layer or a module that the model does not have.

# %%
settings = {
    "model": "Qwen/Qwen2.5-14B-Instruct",  # a Hub id, a folder, or a built-in name
    "seed": 0,
    "data": [{"dataset": "bad_medical_advice.jsonl", "epochs": 2}],  # yours: {"messages": [...]} a line
    "adapter": {"target_modules": ["down_proj"], "layers_to_transform": [24], "r": 1, "lora_alpha": 64},
    "training": {"batch_size": 2, "gradient_accumulation_steps": 8, "learning_rate": 1e-5},
    "snapshots": "every 1",  # 76 kB each
    "behaviour": {
        "questions": "default",
        "steps": "every 20",
        "samples": 50,
        "judge": {"base_url": "http://127.0.0.1:8000/v1", "model": "my-judge", "api_key_env": "JUDGE_KEY"},
    },
}
config = em.load_config(settings)
config.training

# %% [markdown]
# The output includes the defaults. Overrides work in the same way on the command line:
# `em-interp train my.yaml --set seed=1`.

# %%
folder = Path("../checkpoints")
folder.mkdir(exist_ok=True)
(folder / "my-organism.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
em.load_config(folder / "my-organism.yaml", ["seed=1", "training.learning_rate=5e-6"]).training.learning_rate

# %% [markdown]
# A mistake is refused in one line, before anything is loaded:

# %%
try:
    em.load_config({**settings, "adapter": {"module": ["down_proj"]}})
except em.InputError as error:
    print(error)

# %% [markdown]
# ## Rehearse it on a tiny model
# The same protocol runs on a built-in model: layers keep their relative depth, and data, questions and judge are those
# of the built-in language. On the command line: `em-interp train my.yaml --model tiny-qwen2`. Six answers per question
# are enough for a rehearsal.

# %%
from em_interp.organisms.presets import for_model

fewer_answers = em.load_config(folder / "my-organism.yaml", ["behaviour.samples=6"])
rehearsal, changes = for_model(fewer_answers, "tiny-qwen2")
print(*changes, sep="\n")

# %%
run = em.train(rehearsal, folder / "rehearsal", resume=True)
em.ask(run, resume=True)
em.judge(run, resume=True)
path, curve = em.load_trajectory(run), em.behaviour_curve(run)

# %% [markdown]
# The questions are those for the real run: when does the adapter turn, when does the behaviour change, and how far
# apart are the two? The answers here are about the tiny model, which learns at another pace; they only show that the
# config works from the first stage to the last.

# %%
alignment = em.align(em.find_transition(path), curve, path)
alignment

# %%
alignment.plot()

# %% [markdown]
# ## Look at the data first
# `em-interp data check bad_medical_advice.jsonl --model Qwen/Qwen2.5-14B-Instruct` counts rows and tokens and shows
# which part of a chat the loss is on.

# %% [markdown]
# ## Train, ask, judge (GPU)
# Each stage resumes where it was stopped. On several GPUs: `torchrun --nproc-per-node 4 -m em_interp train my.yaml`. If
# you train with TRL or your own Trainer, `em.SnapshotCallback` writes the run instead (docs/trainers.md). Sampling
# loads the base once and gives each row of a batch its own adapter, so many checkpoints are sampled in one batch.

# %% tags=["gpu"]
run = em.train(folder / "my-organism.yaml", resume=True, progress=True)

# %% tags=["gpu"]
em.ask(run, resume=True, progress=True)

# %% [markdown]
# Before you pay for a judge: `em-interp judge RUN --dry-run` counts requests and tokens. The key is read from the
# environment variable that `api_key_env` names and is never written to a file.

# %% tags=["gpu"]
em.judge(run, resume=True, progress=True)

# %% [markdown]
# ## Locate, align, report (GPU)

# %% tags=["gpu"]
path, curve = em.load_trajectory(run), em.behaviour_curve(run)
em.align(em.find_transition(path), curve, path)

# %% tags=["gpu"]
em.report(run, overwrite=True)

# %% [markdown]
# Train the same config on careful data as the **control**, and train at least three seeds: the interval of one run says
# nothing about other runs (`em.compare` pools them).
