"""The mechanistic and the behavioural transitions on one time axis, with their offsets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from em_interp.figures.timeline import plot_timeline
from em_interp.transition.align import Alignment
from em_interp.transition.result import Transition

if TYPE_CHECKING:
    from em_interp.trajectory.adapter import AdapterTrajectory


def plot_alignment(
    alignment: Alignment,
    trajectory: AdapterTrajectory | None = None,
    others: Sequence[Transition] = (),
    planted: Mapping[float, str] | None = None,
) -> go.Figure:
    """The transitions of an alignment, each with its interval, and their offsets as arrows.

    `trajectory` adds the log and the axis of cumulative learning rate; `others` are transitions to show as well, such
    as other rotations; `planted` says what is known to have happened at a step.
    """
    beside = [t for t in others if t != alignment.mechanistic]
    transitions = [alignment.mechanistic, *beside, *alignment.behavioural]
    first = 1 + len(beside)
    offsets = {first + offset.behavioural: offset for offset in alignment.offsets}
    subtitle = f"{alignment.words[0].upper()}{alignment.words[1:]}."
    return plot_timeline(transitions, trajectory, alignment.mechanistic, offsets, planted, subtitle)
