"""One figure, one file; every function returns a plotly Figure, shows nothing and writes nothing.

The names are loaded on first use, and plotly with them.
"""

from importlib import import_module
from typing import Any

_WHERE = {
    "caption": "export_files",
    "export": "export_files",
    "export_all": "export_files",
    "numbers": "export_files",
    "plot_ablation": "interventions",
    "plot_agreement": "compare",
    "plot_alignment": "timeline",
    "plot_behaviour": "behaviour",
    "plot_steering_transfer": "families",
    "plot_kl_from_base": "internals",
    "plot_answer_shift": "internals",
    "plot_common_plane": "compare",
    "plot_composition": "signals",
    "plot_direction_matrix": "compare",
    "plot_steering": "interventions",
    "plot_cross_base_similarity": "families",
    "plot_direction_steps": "internals",
    "plot_gradient_norm": "signals",
    "plot_lock_in": "signals",
    "plot_mean_difference": "internals",
    "plot_norm_onset": "signals",
    "plot_norms": "path",
    "plot_onset": "signals",
    "plot_path": "path",
    "plot_direction_onset": "compare",
    "plot_logit_lens_similarity": "families",
    "plot_probes": "internals",
    "plot_rotation": "path",
    "plot_scalars": "internals",
    "plot_scores": "behaviour",
    "plot_step_cosines": "path",
    "plot_patching": "interventions",
    "plot_sweep": "sweep",
    "plot_timeline": "timeline",
    "plot_logit_lens": "internals",
    "plot_training_log": "signals",
    "plot_trajectory": "path",
    "plot_transition": "signals",
    "plot_turning": "path",
    "plot_turning_profiles": "families",
    "plot_writes": "internals",
}

__all__ = list(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"em_interp.figures.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'em_interp.figures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
