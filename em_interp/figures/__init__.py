"""Figures of a path, of its transitions and of behaviour; every function returns a plotly Figure and writes nothing.

Other results draw themselves: `compare(runs).plot()`, `steer(...).plot()`. The names are loaded on first use, and
plotly with them.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "alignment": "time_axis",
    "behaviour": "rates",
    "caption": "export_files",
    "composition": "signals",
    "export": "export_files",
    "export_all": "export_files",
    "gradient_norm": "signals",
    "lock_in": "signals",
    "norm_onset": "signals",
    "norms": "path",
    "numbers": "export_files",
    "onset": "signals",
    "pca": "path",
    "rotation": "path",
    "scores": "rates",
    "timeline": "time_axis",
    "training_log": "signals",
    "trajectory": "path",
    "transition": "signals",
    "turning_angle": "path",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"em_interp.figures.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'em_interp.figures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
