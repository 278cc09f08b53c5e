"""em_interp: when, inside a fine-tune, did the model change?

The names below are loaded on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "InputError": "em_interp.errors",
    "Run": "em_interp.run",
    "open_run": "em_interp.run",
    "load_config": "em_interp.config",
    "demo": "em_interp.demos",
    "train": "em_interp.training.train",
    "SnapshotCallback": "em_interp.training.snapshots",
    "ask": "em_interp.pipeline:ask_run",
    "judge": "em_interp.pipeline:judge_run",
    "AdapterTrajectory": "em_interp.trajectory.trajectory",
    "load_trajectory": "em_interp.trajectory.load",
    "Transition": "em_interp.transition.result",
    "locate": "em_interp.pipeline",
    "find_transition": "em_interp.transition.find",
    "find_transitions": "em_interp.transition.find",
    "largest_local_cosine": "em_interp.transition.local_cosine",
    "planted_path": "em_interp.transition.synthetic.paths",
    "planted_curve": "em_interp.transition.synthetic.curves",
    "planted_shift": "em_interp.transition.synthetic.shifts",
    "planted_log": "em_interp.transition.synthetic.logs",
    "planted_norm": "em_interp.transition.synthetic.logs",
    "align": "em_interp.transition.align",
    "Alignment": "em_interp.transition.align",
    "run_mechanism": "em_interp.pipeline",
    "compare": "em_interp.comparison.compare",
    "DirectionComparison": "em_interp.comparison.result",
    "sweep": "em_interp.sweeps.run",
    "compare_across_bases": "em_interp.comparison.cross_base.compare",
    "CrossBaseComparison": "em_interp.comparison.cross_base.result",
    "score": "em_interp.behaviour.scores:score_responses",
    "score_responses": "em_interp.behaviour.scores",
    "ScoredResponses": "em_interp.behaviour.scores",
    "behaviour_curve": "em_interp.behaviour.curve",
    "BehaviourCurve": "em_interp.behaviour.curve",
    "preference_curve": "em_interp.prefer",
    "PreferenceCurve": "em_interp.behaviour.preference_curve",
    "report": "em_interp.reports.page",
    "export_run": "em_interp.reports.run_figures",
    "publish": "em_interp.publishing",
}

_ROOMS = ("figures", "mechanism")
__all__ = [*_ROOMS, *_WHERE]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"em_interp.{name}")
    if name in _WHERE:
        module, _, called = _WHERE[name].partition(":")
        return getattr(import_module(module), called or name)
    raise AttributeError(f"module 'em_interp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
