"""em_interp: when, inside a fine-tune, did the model change?

    import em_interp as em

    path = em.load_trajectory("runs/mine")  # a run, a folder of checkpoint-<step>, or org/name on the Hub
    turn = em.find_transition(path)  # does the adapter's direction turn, and at which step?
    curve = em.behaviour_curve("judged.csv")  # judged answers: step, question, aligned, coherent
    found = em.align(turn, curve, path)  # how far apart, and which comes first
    em.report("runs/mine", answers="judged.csv")  # all of it on one page

Every result has `.sentence()`, `.frame()`, `.plot()` and `.to_dict()`. `em.figures` draws, `em.mechanism` looks inside
the model. The names below are loaded on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; tests/test_typed.py compares it with the table below
    from em_interp import figures as figures
    from em_interp import mechanism as mechanism
    from em_interp.behaviour.curve import BehaviourCurve as BehaviourCurve
    from em_interp.behaviour.curve import behaviour_curve as behaviour_curve
    from em_interp.behaviour.preference_curve import PreferenceCurve as PreferenceCurve
    from em_interp.behaviour.scores import ScoredResponses as ScoredResponses
    from em_interp.behaviour.scores import score_responses as score_responses
    from em_interp.comparison.compare import compare as compare
    from em_interp.comparison.cross_base.compare import compare_across_bases as compare_across_bases
    from em_interp.comparison.cross_base.result import CrossBaseComparison as CrossBaseComparison
    from em_interp.comparison.cross_base.texts import SharedTexts as SharedTexts
    from em_interp.comparison.result import DirectionComparison as DirectionComparison
    from em_interp.config.run_config import RunConfig as RunConfig
    from em_interp.config.run_config import load_config as load_config
    from em_interp.demos.tiny import demo as demo
    from em_interp.errors import InputError as InputError
    from em_interp.hub.publishing import publish as publish
    from em_interp.mechanism.report import MechanismReport as MechanismReport
    from em_interp.pipeline.analysis import locate as locate
    from em_interp.pipeline.analysis import run_mechanism as run_mechanism
    from em_interp.pipeline.behaviour import ask_run, judge_run
    from em_interp.pipeline.prefer import preference_curve as preference_curve
    from em_interp.reports.findings import PathTransitions as PathTransitions
    from em_interp.reports.page import report as report
    from em_interp.reports.run_figures import export_run as export_run
    from em_interp.run import Run as Run
    from em_interp.run import open_run as open_run
    from em_interp.sweeps.result import Sweep as Sweep
    from em_interp.sweeps.run import sweep as sweep
    from em_interp.training.callbacks import MonitorCallback as MonitorCallback
    from em_interp.training.callbacks import SnapshotCallback as SnapshotCallback
    from em_interp.training.train import train as train
    from em_interp.trajectory.load import load_trajectory as load_trajectory
    from em_interp.trajectory.trajectory import AdapterTrajectory as AdapterTrajectory
    from em_interp.transition.align import Alignment as Alignment
    from em_interp.transition.align import Offset as Offset
    from em_interp.transition.align import Order as Order
    from em_interp.transition.align import align as align
    from em_interp.transition.direction.local_cosine import largest_local_cosine as largest_local_cosine
    from em_interp.transition.family import FamilyWise as FamilyWise
    from em_interp.transition.find import find_transition as find_transition
    from em_interp.transition.find import find_transitions as find_transitions
    from em_interp.transition.monitoring.monitor import Look as Look
    from em_interp.transition.monitoring.monitor import Monitor as Monitor
    from em_interp.transition.monitoring.watch import watch as watch
    from em_interp.transition.result import Transition as Transition
    from em_interp.transition.synthetic.curves import PlantedCurve as PlantedCurve
    from em_interp.transition.synthetic.curves import planted_curve as planted_curve
    from em_interp.transition.synthetic.logs import PlantedLog as PlantedLog
    from em_interp.transition.synthetic.logs import PlantedNorm as PlantedNorm
    from em_interp.transition.synthetic.logs import planted_log as planted_log
    from em_interp.transition.synthetic.logs import planted_norm as planted_norm
    from em_interp.transition.synthetic.paths import PlantedPath as PlantedPath
    from em_interp.transition.synthetic.paths import planted_path as planted_path
    from em_interp.transition.synthetic.shifts import PlantedShift as PlantedShift
    from em_interp.transition.synthetic.shifts import planted_shift as planted_shift

    ask, judge, score = ask_run, judge_run, score_responses

_MODULE_OF = {
    "InputError": "em_interp.errors",
    "Run": "em_interp.run",
    "open_run": "em_interp.run",
    "load_config": "em_interp.config.run_config",
    "demo": "em_interp.demos.tiny",
    "train": "em_interp.training.train",
    "SnapshotCallback": "em_interp.training.callbacks",
    "MonitorCallback": "em_interp.training.callbacks",
    "ask": "em_interp.pipeline.behaviour:ask_run",
    "judge": "em_interp.pipeline.behaviour:judge_run",
    "AdapterTrajectory": "em_interp.trajectory.trajectory",
    "load_trajectory": "em_interp.trajectory.load",
    "Transition": "em_interp.transition.result",
    "locate": "em_interp.pipeline.analysis",
    "find_transition": "em_interp.transition.find",
    "find_transitions": "em_interp.transition.find",
    "Monitor": "em_interp.transition.monitoring.monitor",
    "watch": "em_interp.transition.monitoring.watch",
    "largest_local_cosine": "em_interp.transition.direction.local_cosine",
    "planted_path": "em_interp.transition.synthetic.paths",
    "planted_curve": "em_interp.transition.synthetic.curves",
    "planted_shift": "em_interp.transition.synthetic.shifts",
    "planted_log": "em_interp.transition.synthetic.logs",
    "planted_norm": "em_interp.transition.synthetic.logs",
    "align": "em_interp.transition.align",
    "Alignment": "em_interp.transition.align",
    "run_mechanism": "em_interp.pipeline.analysis",
    "compare": "em_interp.comparison.compare",
    "DirectionComparison": "em_interp.comparison.result",
    "sweep": "em_interp.sweeps.run",
    "compare_across_bases": "em_interp.comparison.cross_base.compare",
    "CrossBaseComparison": "em_interp.comparison.cross_base.result",
    "SharedTexts": "em_interp.comparison.cross_base.texts",
    "score": "em_interp.behaviour.scores:score_responses",
    "score_responses": "em_interp.behaviour.scores",
    "ScoredResponses": "em_interp.behaviour.scores",
    "behaviour_curve": "em_interp.behaviour.curve",
    "BehaviourCurve": "em_interp.behaviour.curve",
    "preference_curve": "em_interp.pipeline.prefer",
    "PreferenceCurve": "em_interp.behaviour.preference_curve",
    "report": "em_interp.reports.page",
    "export_run": "em_interp.reports.run_figures",
    "publish": "em_interp.hub.publishing",
    # what the functions above return, and what these hold
    "FamilyWise": "em_interp.transition.family",
    "Look": "em_interp.transition.monitoring.monitor",
    "MechanismReport": "em_interp.mechanism.report",
    "Offset": "em_interp.transition.align",
    "Order": "em_interp.transition.align",
    "PlantedCurve": "em_interp.transition.synthetic.curves",
    "PlantedLog": "em_interp.transition.synthetic.logs",
    "PlantedNorm": "em_interp.transition.synthetic.logs",
    "PlantedPath": "em_interp.transition.synthetic.paths",
    "PlantedShift": "em_interp.transition.synthetic.shifts",
    "PathTransitions": "em_interp.reports.findings",
    "RunConfig": "em_interp.config.run_config",
    "Sweep": "em_interp.sweeps.result",
}

_SUBPACKAGES = ("figures", "mechanism")
__all__ = [*_SUBPACKAGES, *_MODULE_OF]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _SUBPACKAGES:
        return import_module(f"em_interp.{name}")
    if name in _MODULE_OF:
        module, _, called = _MODULE_OF[name].partition(":")
        return getattr(import_module(module), called or name)
    raise AttributeError(f"module 'em_interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
