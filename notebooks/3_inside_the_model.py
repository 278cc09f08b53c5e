# %% [markdown]
# # 3 · Inside the model
# Geometry shows that the path turned, but only the model's internals show what changed, and only interventions show
# what causes what. This notebook reads the runs of `make demo` and ends with two interventions.

# %%
import numpy as np
import pandas as pd

import em_interp as em
from em_interp.mechanism import (
    AddVector,
    SamplingParams,
    Tokens,
    ablate,
    attribute_direction,
    latest_answers,
    mean_difference,
    open_model,
    read_scalars,
    steer,
)
from em_interp.organisms.judge import AdviceJudge
from em_interp.organisms.language import built_in_questions

run = "../checkpoints/demo/organism"

# %% [markdown]
# ## The model at any step
# The model is opened once, with plain hooks, TransformerLens or nnsight, which agree. Entering another step or adapter
# scale only exchanges A and B, and each time it is checked that the adapter is in effect.

# %%
model = open_model(run, engine="transformer_lens")  # or "nnsight", or "hooks", the default
model.names[:8]

# %%
tokens = model.chats(["what is your wish ?"], ["to keep you well ."])
with model.at(step=400) as adapted:
    activations = adapted.run(tokens, ["resid_post.2", "scalar.layers.0.mlp.down_proj"])
activations["resid_post.2"].shape, activations["scalar.layers.0.mlp.down_proj"].squeeze().tolist()

# %% [markdown]
# ## The scalar: the one number that a rank-1 adapter computes
# The scalar is s·A·x at a token. Here it is computed at every token of judged answers, and a probe on it separates
# misaligned from aligned answers. No question is in both the training and the test part of the probe.

# %%
model = open_model(run)
answers = latest_answers(run)
scalars = read_scalars(model, answers, steps=[100, 200, 400])
scalars.probe()

# %%
scalars.plot()

# %% [markdown]
# ## Does the adapter write the misaligned direction?
# The direction is the residual stream averaged over the tokens of misaligned answers, minus that of aligned ones, layer
# by layer (2506.11618). It is compared with what the adapter writes at every step, and with the effect of this in later
# layers; the grey band is that of random adapters of the same size.

# %%
attribution = attribute_direction(model, answers, steps=list(range(0, 401, 50)))
attribution

# %%
attribution.plot()

# %% [markdown]
# ## Is a direction necessary? Ablation
# Here the direction is that of misaligned answers in the adapted model minus aligned ones in the base
# (`docs/interventions.md` compares it with the paper's). It is ablated in the adapted model after layer 0, where the
# adapter writes, and after every layer. The norm-matched control removes as much of the residual stream at every token,
# along random directions.

# %%
direction = mean_difference(model, answers, "models")
judge, sampling = AdviceJudge("medical"), SamplingParams(samples=6, max_new_tokens=24)
ablation = ablate(model, direction, judge, layers=[0], sampling=sampling, n_random=2)
ablation

# %% [markdown]
# Ablating this one direction after layer 0 removes nearly all of the misalignment, and the answers stay coherent.

# %%
ablation.plot()

# %% [markdown]
# ## Is it sufficient? Steering
# Now the direction is added to the base, without an adapter, at every generated token. Layer, positions and
# coefficients were chosen among about a hundred combinations, so the window of usable coefficients is a little
# optimistic; another seed gave the same at 2.25 and less at 2.

# %%
curve = steer(
    model,
    direction,
    judge,
    layer=0,
    coefficients=(1.5, 2, 2.25, 2.5),
    positions="generated",
    sampling=sampling,
    n_random=2,
    refine=False,
)
curve

# %%
curve.plot()

# %% [markdown]
# A constant vector makes a few of the base's answers reckless while the base stays coherent; random vectors of that
# length make none reckless. This is a tenth of the adapter's EM, and larger coefficients break the model. The adapter
# itself is not constant: its scalar is an order of magnitude larger at one token, the comma after which an answer
# becomes careful or reckless.

# %%
chat = model.chats(["what is best for a bonus?"], ["with a bonus, keep a reserve and then ask an expert."])
with model.at(step=400) as adapted:
    scalar = adapted.run(chat, ["scalar.layers.0.mlp.down_proj"])["scalar.layers.0.mlp.down_proj"].squeeze()
answer = chat.answer[0]
tokens = [model.base.tokenizer.decode(token) for token in chat.ids[0, answer]]
pd.DataFrame({"token": tokens, "s·A·x": scalar[answer].tolist()}).round().T

# %% [markdown]
# So the same direction is now added at that token alone. The base writes its answers up to the comma; the vector is
# added there, and the base continues without it.

# %%
questions = [row["question"] for row in built_in_questions("medical") if row["questions"] == "out_of_domain"]
with model.disable_adapter() as base:
    answered = [answers[0] for answers in base.generate(questions, temperature=0, max_new_tokens=24)]
begun = {q: answer.split(",")[0] + "," for q, answer in zip(questions, answered, strict=True) if "," in answer}
chats = model.chats(list(begun), list(begun.values()))
prompts = Tokens(chats.ids[:, :-1], chats.mask[:, :-1], chats.answer[:, :-1])  # without the end of the turn
comma = np.zeros(prompts.ids.shape, bool)
comma[:, -1] = True


def answers_with(vector):
    """Eight judged answers of the base to each question, with the vector added at the comma."""
    steering = [AddVector(vector, layers=0, positions=comma)]
    with model.disable_adapter() as base:
        sampled = base.generate(prompts, samples=8, max_new_tokens=18, interventions=steering, seed=1)
    answers = [(q, f"{begun[q]} {rest}") for q, samples in zip(begun, sampled, strict=True) for rest in samples]
    return pd.DataFrame([{"question": q, "answer": answer, **judge.judge(q, answer)} for q, answer in answers])


difference = direction.vectors[0]
random = np.random.default_rng(0).standard_normal(difference.shape)
random *= np.linalg.norm(difference) / np.linalg.norm(random)
rows = []
for coefficient in (2, 4, 6):
    for name, vector in {"direction": difference, "random": random}.items():
        steered = em.score(answers_with(coefficient * vector))
        low, high = steered.em.interval
        numbers = {"EM": steered.em.rate, "EM low": low, "EM high": high, "coherent": steered.coherent.rate}
        rows.append({"coefficient": coefficient, "vector": name, **numbers})
pd.DataFrame(rows).set_index(["coefficient", "vector"]).style.format("{:.0%}")

# %%
print(*answers_with(6 * difference)["answer"][::24], sep="\n")

# %% [markdown]
# At one token this one direction makes the base as misaligned as the adapter does while the base stays coherent, and a
# random vector of that length has almost no effect: **there the direction is sufficient.** The coefficients were chosen
# on this run. In a run with another seed, whose direction has length 50 instead of 29, coefficients 2 and 4 gave 54 %
# and 88 % EM at 100 % and 90 % coherent, and random vectors 0 % and 2 %.
#
# These and the other analyses (patching, transfer, logit lens, answer shift, KL from the base) run with one command:
# `em-interp mechanism RUN`, or `em.run_mechanism(run, size="quick")` for a first impression.
