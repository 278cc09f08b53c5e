"""Inside the model: what the adapter reads, writes and causes at each step.

    from em_interp.mechanism import Add, AblateDirection, open_model

    model = open_model("checkpoints/demo/organism", engine="transformer_lens")  # or "nnsight", or "hooks"
    answers = model.chats(["what is your wish ?"], ["to keep you well ."])  # tokens, the answer's marked
    with model.at(step=180, scale=1.0) as adapted:  # only A and B change hands, the model is never wrapped again
        seen = adapted.run(answers, ["resid_post.2", "scalar.layers.0.mlp.down_proj"])
        seen.logits, seen["resid_post.2"]  # (row, position, …)
        adapted.generate(["what is your wish ?"], samples=4, interventions=[AblateDirection(direction, layers=[1, 2])])

`model.names` lists the activations (`engines.base.HookPoints` has their meanings), an `AddVector` or `AblateDirection`
says at which layers and positions it applies. `model.engine.bridge` and
`model.engine.traced` are the libraries' own objects. On these rest the measures:

    answers = latest_answers("checkpoints/demo/organism")  # judged, misaligned and aligned, outside the domain
    direction = mean_difference(model, answers)  # misaligned minus aligned: .vector(layer), .frame(), .plot()
    path = follow_direction(model, answers)  # what the adapter writes and causes, held against it at every step
    numbers = read_scalars(model, answers)  # s·A·x at every token: .plot(), .html(), .probe()

    judge, questions = AdviceJudge("medical"), questions_of(run, "out_of_domain")  # or any judge and questions
    found = find_direction(model, answers, "models")  # a direction that can be used on any run of the same base
    ablate("kept/ablation", model, found, judge, questions)  # what goes without it, beside random directions
    steer("kept/steering", model, found, judge, questions)  # what it brings to the base, dose by dose
    read_logit_lens(model, answers, path.steps, path.writes)  # the tokens that the adapter's write promotes

Three more ask a run again through its adapters, many a batch, and need no engine; each keeps its work in the run's
`analysis` folder and goes on with `resume=True`:

    patch_direction_and_norm(run, base, judge, control)  # every direction at every norm
    detect_answer_shift(run, base)  # where the answers change, without a judge, and what the change consists of
    measure_kl_from_base(run, base)  # KL(base ‖ adapted) by step

The names below are loaded on first use, and torch with them.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "Activations": "model",
    "AddVector": "engines.base",
    "Ablation": "ablation",
    "AnswerShift": "answer_shift.shift",
    "AnswerSet": "answers",
    "SamplingParams": "experiments",
    "KLFromBase": "kl_from_base",
    "Direction": "directions",
    "DirectionPath": "attribution",
    "SteeringCurve": "steering",
    "MeanDifference": "directions",
    "ModelAtStep": "model",
    "Probes": "probes",
    "AblateDirection": "engines.base",
    "Scalars": "scalars",
    "PatchingGrid": "patching",
    "TrajectoryModel": "model",
    "LogitLens": "logit_lens",
    "Tokens": "model",
    "ablate": "ablation",
    "measure_kl_from_base": "kl_from_base",
    "detect_answer_shift": "answer_shift.detect",
    "patch_direction_and_norm": "patching",
    "patch_A_and_B": "patching",
    "find_direction": "directions",
    "follow_direction": "attribution",
    "judged_answers": "answers",
    "latest_answers": "answers",
    "label_answers": "answers",
    "mean_difference": "directions",
    "open_model": "model",
    "questions_of": "experiments",
    "read_scalars": "scalars",
    "steer": "steering",
    "read_logit_lens": "logit_lens",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"em_interp.mechanism.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'em_interp.mechanism' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
