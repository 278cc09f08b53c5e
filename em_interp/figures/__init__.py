"""Figures of a path, of its transitions and of behaviour; every function returns a plotly Figure and writes nothing.

Other results draw themselves: `compare(runs).plot()`, `steer(...).plot()`. The names are loaded on first use, and
plotly with them.
"""

from typing import TYPE_CHECKING

from em_interp.utils.lazy import lazy

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

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "export_files": "caption export export_all numbers",
        "monitoring": "monitor",
        "path": "norms pca trajectory",
        "preferences": "preference",
        "rates": "behaviour scores",
        "signals": "composition gradient_norm lock_in norm_onset onset training_log transition",
        "time_axis": "alignment timeline",
        "turning": "local_cosine rotation turning_angle",
    },
)
