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
        820,
        headroom=20,
        rows=4,
        cols=2,
        specs=[[{}, {"rowspan": 3}], [{}, None], [{}, None], [{"colspan": 2}, None]],
        row_heights=[0.2, 0.2, 0.2, 0.4],
        vertical_spacing=0.07,
        horizontal_spacing=0.14,
        subplot_titles=[None, f"{PART_NAME[of]} in two components", None, None, f"Turning angle of {PART_NAME[of]}"],
    )
    for row, part in enumerate(PARTS, 1):
        draw_norm(figure, trajectory, part, site, row, 1)
    draw_path(figure, trajectory, of, site, row=1, col=2)
    draw_turning(figure, trajectory, of, site, row=4, col=1)
    figure.update_xaxes(title_text=STEP, row=3, col=1)
    figure.update_xaxes(title_text=STEP, row=4, col=1)
    return figure
