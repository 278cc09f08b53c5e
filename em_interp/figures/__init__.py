"""Figures of a path, of its transitions and of behaviour; every function returns a plotly Figure and writes nothing.

Other results draw themselves: `compare(runs).plot()`, `steer(...).plot()`. The names are loaded on first use, and
plotly with them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for editors and type checkers; tests/test_typed.py compares it with the table below
    from em_interp.figures.export_files import caption as caption
    from em_interp.figures.export_files import export as export
    from em_interp.figures.export_files import export_all as export_all
    from em_interp.figures.export_files import numbers as numbers
    from em_interp.figures.monitoring import monitor as monitor
    from em_interp.figures.path import norms as norms
    from em_interp.figures.path import pca as pca
    from em_interp.figures.path import trajectory as trajectory
    from em_interp.figures.preferences import preference as preference
    from em_interp.figures.rates import behaviour as behaviour
    from em_interp.figures.rates import scores as scores
    from em_interp.figures.signals import composition as composition
    from em_interp.figures.signals import gradient_norm as gradient_norm
    from em_interp.figures.signals import lock_in as lock_in
    from em_interp.figures.signals import norm_onset as norm_onset
    from em_interp.figures.signals import onset as onset
    from em_interp.figures.signals import training_log as training_log
    from em_interp.figures.signals import transition as transition
    from em_interp.figures.time_axis import alignment as alignment
    from em_interp.figures.time_axis import timeline as timeline
    from em_interp.figures.turning import local_cosine as local_cosine
    from em_interp.figures.turning import rotation as rotation
    from em_interp.figures.turning import turning_angle as turning_angle

_MODULE_OF = {
    "alignment": "time_axis",
    "behaviour": "rates",
    "caption": "export_files",
    "composition": "signals",
    "export": "export_files",
    "export_all": "export_files",
    "gradient_norm": "signals",
    "local_cosine": "turning",
    "lock_in": "signals",
    "monitor": "monitoring",
    "norm_onset": "signals",
    "norms": "path",
    "numbers": "export_files",
    "onset": "signals",
    "pca": "path",
    "preference": "preferences",
    "rotation": "turning",
    "scores": "rates",
    "timeline": "time_axis",
    "training_log": "signals",
    "trajectory": "path",
    "transition": "signals",
    "turning_angle": "turning",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"em_interp.figures.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'em_interp.figures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
