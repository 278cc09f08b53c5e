"""A whole path at a glance: norms, the path in two components, and turning angles."""

from __future__ import annotations

import plotly.graph_objects as go

from em_interp.figures.norms import PARTS, about, draw_norm
from em_interp.figures.path import draw_path
from em_interp.figures.template import PART_NAME, STEP, new_figure
from em_interp.figures.turning import draw_turning
from em_interp.trajectory.adapter import AdapterTrajectory, Part


def plot_trajectory(trajectory: AdapterTrajectory, of: Part = "B", site: str | None = None) -> go.Figure:
    """Norms of B, A and ΔW; the path of `of` in two components, coloured by step; its turning angles with their nulls.

    For each panel alone see `plot_norms`, `plot_path` and `plot_turning`.
    """
    figure = new_figure(
        "Path of the adapter",
        about(trajectory, site),
        800,
        least_width=560,
        rows=3,
        cols=3,
        specs=[[{}, {}, {}], [{"colspan": 3}, None, None], [{"colspan": 3}, None, None]],
        row_heights=[0.24, 0.42, 0.34],
        vertical_spacing=0.13,
        horizontal_spacing=0.13,
        subplot_titles=["", "", "", f"Path of {PART_NAME[of]}", f"Turning of {PART_NAME[of]}"],
    )
    for column, part in enumerate(PARTS, 1):
        draw_norm(figure, trajectory, part, site, 1, column)
    draw_path(figure, trajectory, of, site, row=2, col=1)
    draw_turning(figure, trajectory, of, site, row=3, col=1)
    figure.update_xaxes(title_text=STEP, row=1)
    figure.update_xaxes(title_text=STEP, row=3)
    return figure
