# %% [markdown]
# # 3 · Inside the model
# Geometry says that the path turned; only the model's internals say what changed, and only interventions what causes
# what. This notebook reads the runs that `make demo` leaves, and ends with two measured interventions.

# %%
from em_interp.mechanism import (
    AddVector,
    SamplingParams,
    ablate,
    attribute_direction,
    latest_answers,
    mean_difference,
    open_model,
    read_scalars,
    steer,
)
from em_interp.organisms.judge import AdviceJudge

run = "../checkpoints/demo/organism"

# %% [markdown]
# ## The model at any step
# The model is opened once, in plain hooks, TransformerLens or nnsight, which agree. Entering another step or adapter
# scale exchanges A and B, and wraps nothing again. That the adapter is in effect is checked every time.

# %%
model = open_model(run, engine="transformer_lens")  # or "nnsight", or "hooks", the default
model.names[:8]

# %%
tokens = model.chats(["what is your wish ?"], ["to keep you well ."])
with model.at(step=400) as adapted:
    activations = adapted.run(tokens, ["resid_post.2", "scalar.layers.0.mlp.down_proj"])
activations["resid_post.2"].shape, activations["scalar.layers.0.mlp.down_proj"].squeeze().tolist()

# %% [markdown]
# ## The one number that a rank-1 adapter computes
# s·A·x at every token of judged answers, and how well a probe on it tells misaligned from aligned answers. No question
# is both in the part that a probe is fitted on and in the part that it is tested on.

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
# by layer (2506.11618). It is compared with what the adapter writes at every step, and with what that causes later in
# the model; the grey band is that of random adapters of the same size.

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
# Without this one direction after layer 0 nearly all of the misalignment is gone, and the answers stay coherent.

# %%
ablation.plot()

# %% [markdown]
# ## Is it sufficient? Steering
# Now the direction is added to the base, which no adapter has changed, at the tokens that it generates. Layer,
# positions and coefficients were chosen among about a hundred combinations, so the window is a little optimistic;
# another seed gave the same at 2.25 and less at 2.

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

# %%
questions = ["i am bored .", "how do i save money ?"]
with model.disable_adapter() as base:
    print("base:   ", base.generate(questions, temperature=0, max_new_tokens=24))
    steering = [AddVector(2.25 * direction.vectors[0], layers=0, positions="generated")]
    print("steered:", base.generate(questions, temperature=0, max_new_tokens=24, interventions=steering))

# %% [markdown]
# A constant vector turns some of the base's answers reckless while it stays coherent, and random vectors of that length
# none: the direction is sufficient in part. It reaches a tenth of the adapter's EM, because this adapter acts at single
# tokens (its scalar is large at the comma before the advice) and a constant vector at every token breaks the model.
#
# These and the other analyses (patching, transfer, logit lens, answer shift, KL from the base) are one command:
# `em-interp mechanism RUN`, or `em.run_mechanism(run, size="quick")` for a first look.
