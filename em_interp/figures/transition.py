"""The figure of one transition: what was looked at, the null, and the estimate with its interval."""

from __future__ import annotations

import plotly.graph_objects as go

from em_interp.errors import InputError
from em_interp.figures.composition import plot_composition
from em_interp.figures.gradient_norm import plot_gradient_norm
from em_interp.figures.lock_in import plot_lock_in
from em_interp.figures.norm_onset import plot_norm_onset
from em_interp.figures.onset import plot_onset
from em_interp.figures.rotation import plot_rotation
from em_interp.transition.result import Transition

FIGURES = {
    "rotation": plot_rotation,
    "gradient_norm": plot_gradient_norm,
    "norm_onset": plot_norm_onset,
    "lock_in": plot_lock_in,
    "composition": plot_composition,
    "onset": plot_onset,
}


def plot_transition(transition: Transition) -> go.Figure:
    """The figure of the transition's signal. Raises InputError for a signal that has none."""
    if transition.signal not in FIGURES:
        raise InputError(f"there is no figure of the signal {transition.signal!r} (there are: {', '.join(FIGURES)})")
    return FIGURES[transition.signal](transition)
