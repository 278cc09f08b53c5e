"""Interpretability of a run: what its adapter reads, writes and causes in the model, at every step.

Open the base model with all adapters of a run; any step at any adapter scale is a context:

    from em_interp.mechanism import AblateDirection, open_model

    model = open_model("checkpoints/demo/organism", engine="transformer_lens")  # or "nnsight", or "hooks"
    tokens = model.chats(["what is your wish ?"], ["to keep you well ."])  # the answers' tokens are marked
    with model.at(step=180, scale=1.0) as adapted:  # A and B are exchanged; the model is not wrapped again
        activations = adapted.run(tokens, ["resid_post.2", "scalar.layers.0.mlp.down_proj"])
        activations.logits, activations["resid_post.2"]  # (row, position, …)
        ablation = AblateDirection(vector, layers=[1, 2])
        adapted.generate(["what is your wish ?"], samples=4, interventions=[ablation])

`model.names` lists the activations. `model.engine.bridge` and `model.engine.traced` are the libraries' own objects.

Every analysis takes the model first (or a run, which is opened), then what it analyses, then options. It returns a
result with `.sentence()`, `.frame()`, `.plot()` and `.to_dict()`. Some read judged answers:

    answers = latest_answers("checkpoints/demo/organism")  # misaligned and aligned ones, outside the training domain
    direction = mean_difference(model, answers, "models")  # it can be used on any run of the same base
    read_scalars(model, answers).probe()  # does s·A·x tell misaligned from aligned answers?
    attribution = attribute_direction(model, answers)  # does the adapter write the direction, or cause it?
    read_logit_lens(model, answers, attribution.writes, attribution.steps)  # which tokens does the write promote?

Some sample answers under many conditions and judge them (any judge and questions):

    judge = AdviceJudge("medical")
    ablate(model, direction, judge)  # how much EM does the ablation of the direction remove?
    steer(model, direction, judge)  # how much EM does it induce when it is added to the base?
    patch(model, judge, control)  # is the final direction sufficient, or the final norm?

And some use likelihoods, without a judge:

    detect_answer_shift(model)  # where do the answers change?
    measure_kl_from_base(model)  # KL(base ‖ adapted) by step

`storage=` keeps the work of an analysis in a folder, so that an interrupted one continues. `em.run_mechanism(run)` does
all of this on a run and keeps it with the run. The names below are loaded on first use, and torch with them.
"""

from typing import TYPE_CHECKING

from em_interp.utils.lazy import lazy

if TYPE_CHECKING:  # for editors and type checkers; tests/test_typed.py compares it with the table below
    from em_interp.mechanism.answer_shift.detect import detect_answer_shift as detect_answer_shift
    from em_interp.mechanism.answer_shift.shift import AnswerShift as AnswerShift
    from em_interp.mechanism.answers import AnswerSet as AnswerSet
    from em_interp.mechanism.answers import judged_answers as judged_answers
    from em_interp.mechanism.answers import label_answers as label_answers
    from em_interp.mechanism.answers import latest_answers as latest_answers
    from em_interp.mechanism.attribution import DirectionAttribution as DirectionAttribution
    from em_interp.mechanism.attribution import attribute_direction as attribute_direction
    from em_interp.mechanism.directions import Direction as Direction
    from em_interp.mechanism.directions import mean_difference as mean_difference
    from em_interp.mechanism.engines.interventions import AblateDirection as AblateDirection
    from em_interp.mechanism.engines.interventions import AddVector as AddVector
    from em_interp.mechanism.engines.interventions import NormMatchedAblation as NormMatchedAblation
    from em_interp.mechanism.interventions.ablation import Ablation as Ablation
    from em_interp.mechanism.interventions.ablation import ablate as ablate
    from em_interp.mechanism.interventions.experiments import SamplingParams as SamplingParams
    from em_interp.mechanism.interventions.experiments import Storage as Storage
    from em_interp.mechanism.interventions.experiments import main_questions as main_questions
    from em_interp.mechanism.interventions.experiments import run_questions as run_questions
    from em_interp.mechanism.interventions.patching import PatchingGrid as PatchingGrid
    from em_interp.mechanism.interventions.patching import patch as patch
    from em_interp.mechanism.interventions.steering import SteeringCurve as SteeringCurve
    from em_interp.mechanism.interventions.steering import steer as steer
    from em_interp.mechanism.kl_from_base import KLFromBase as KLFromBase
    from em_interp.mechanism.kl_from_base import measure_kl_from_base as measure_kl_from_base
    from em_interp.mechanism.logit_lens import LogitLens as LogitLens
    from em_interp.mechanism.logit_lens import read_logit_lens as read_logit_lens
    from em_interp.mechanism.model import Activations as Activations
    from em_interp.mechanism.model import ModelAtStep as ModelAtStep
    from em_interp.mechanism.model import Tokens as Tokens
    from em_interp.mechanism.model import TrajectoryModel as TrajectoryModel
    from em_interp.mechanism.model import open_model as open_model
    from em_interp.mechanism.probes import Probes as Probes
    from em_interp.mechanism.report import AnalysisResult as AnalysisResult
    from em_interp.mechanism.report import MechanismReport as MechanismReport
    from em_interp.mechanism.report import read_report as read_report
    from em_interp.mechanism.scalars import Scalars as Scalars
    from em_interp.mechanism.scalars import read_scalars as read_scalars
    from em_interp.mechanism.suite import SuiteSize as SuiteSize
    from em_interp.mechanism.suite import run_suite as run_suite

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "answer_shift.detect": "detect_answer_shift",
        "answer_shift.shift": "AnswerShift",
        "answers": "AnswerSet judged_answers label_answers latest_answers",
        "attribution": "DirectionAttribution attribute_direction",
        "directions": "Direction mean_difference",
        "engines.interventions": "AblateDirection AddVector NormMatchedAblation",
        "interventions.ablation": "Ablation ablate",
        "interventions.experiments": "SamplingParams Storage main_questions run_questions",
        "interventions.patching": "PatchingGrid patch",
        "interventions.steering": "SteeringCurve steer",
        "kl_from_base": "KLFromBase measure_kl_from_base",
        "logit_lens": "LogitLens read_logit_lens",
        "model": "Activations ModelAtStep Tokens TrajectoryModel open_model",
        "probes": "Probes",
        "report": "AnalysisResult MechanismReport read_report",
        "scalars": "Scalars read_scalars",
        "suite": "SuiteSize run_suite",
    },
)
