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

from typing import TYPE_CHECKING

from em_interp.utils.lazy import lazy

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

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "": "figures mechanism",
        "behaviour.curve": "BehaviourCurve behaviour_curve",
        "behaviour.preference_curve": "PreferenceCurve",
        "behaviour.scores": "ScoredResponses score=score_responses score_responses",
        "comparison.compare": "compare",
        "comparison.cross_base.compare": "compare_across_bases",
        "comparison.cross_base.result": "CrossBaseComparison",
        "comparison.cross_base.texts": "SharedTexts",
        "comparison.result": "DirectionComparison",
        "config.run_config": "RunConfig load_config",
        "demos.tiny": "demo",
        "errors": "InputError",
        "hub.publishing": "publish",
        "mechanism.report": "MechanismReport",
        "pipeline.analysis": "locate run_mechanism",
        "pipeline.behaviour": "ask=ask_run judge=judge_run",
        "pipeline.prefer": "preference_curve",
        "reports.findings": "PathTransitions",
        "reports.page": "report",
        "reports.run_figures": "export_run",
        "run": "Run open_run",
        "sweeps.result": "Sweep",
        "sweeps.run": "sweep",
        "training.callbacks": "MonitorCallback SnapshotCallback",
        "training.train": "train",
        "trajectory.load": "load_trajectory",
        "trajectory.trajectory": "AdapterTrajectory",
        "transition.align": "Alignment Offset Order align",
        "transition.direction.local_cosine": "largest_local_cosine",
        "transition.family": "FamilyWise",
        "transition.find": "find_transition find_transitions",
        "transition.monitoring.monitor": "Look Monitor",
        "transition.monitoring.watch": "watch",
        "transition.result": "Transition",
        "transition.synthetic.curves": "PlantedCurve planted_curve",
        "transition.synthetic.logs": "PlantedLog PlantedNorm planted_log planted_norm",
        "transition.synthetic.paths": "PlantedPath planted_path",
        "transition.synthetic.shifts": "PlantedShift planted_shift",
    },
)
__version__ = "0.1.0"
