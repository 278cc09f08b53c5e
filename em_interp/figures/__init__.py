"""One figure, one file; every function returns a plotly Figure, shows nothing and writes nothing.

The names are loaded on first use, and plotly with them.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "caption": "files",
    "export": "files",
    "export_all": "files",
    "numbers": "tables",
    "plot_ablation": "ablation",
    "plot_agreement": "agreement",
    "plot_alignment": "alignment",
    "plot_behaviour": "behaviour",
    "plot_carried": "carried",
    "plot_canary": "canary",
    "plot_change": "change",
    "plot_common_plane": "common_plane",
    "plot_composition": "composition",
    "plot_direction_matrix": "direction_matrix",
    "plot_dose_response": "dose_response",
    "plot_family_likeness": "family_likeness",
    "plot_direction_steps": "direction_steps",
    "plot_gradient_norm": "gradient_norm",
    "plot_lock_in": "lock_in",
    "plot_mean_difference": "mean_difference",
    "plot_norm_onset": "norm_onset",
    "plot_norms": "norms",
    "plot_onset": "onset",
    "plot_path": "path",
    "plot_presence": "presence",
    "plot_readouts": "readouts",
    "plot_probes": "probes",
    "plot_rotation": "rotation",
    "plot_scalars": "scalars",
    "plot_scores": "behaviour",
    "plot_step_cosines": "step_cosines",
    "plot_step_map": "step_map",
    "plot_sweep": "sweep",
    "plot_timeline": "timeline",
    "plot_token_readout": "token_readout",
    "plot_training_log": "training_log",
    "plot_trajectory": "trajectory",
    "plot_transition": "transition",
    "plot_turning": "turning",
    "plot_turning_profiles": "turning_profiles",
    "plot_writes": "writes",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"em_interp.figures.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'em_interp.figures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
