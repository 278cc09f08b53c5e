"""How large the adapter is along the run: the norms of B, A and ΔW."""

from __future__ import annotations

import plotly.graph_objects as go

from em_interp.figures.template import PART_COLOUR, PART_NAME, STEP, new_figure, place
from em_interp.trajectory import geometry
from em_interp.trajectory.adapter import AdapterTrajectory, Part

PARTS: tuple[Part, ...] = ("B", "A", "delta")


def plot_norms(trajectory: AdapterTrajectory, site: str | None = None) -> go.Figure:
    """‖B‖, ‖A‖ and ‖ΔW‖ by step, each on its own axis; of all sites together where `site` is None."""
    figure = new_figure(
        "Size of the adapter", about(trajectory, site), 380, rows=3, shared_xaxes=True, vertical_spacing=0.1
    )
    for row, of in enumerate(PARTS, 1):
        draw_norm(figure, trajectory, of, site, row, 1)
    figure.update_xaxes(title_text=STEP, row=3)
    return figure


def draw_norm(
    figure: go.Figure,
    trajectory: AdapterTrajectory,
    of: Part,
    site: str | None = None,
    row: int | None = None,
    col: int | None = None,
) -> None:
    """One norm into a panel of a figure."""
    name = f"‖{PART_NAME[of]}‖"
    norm = geometry.norms(trajectory.gram(of, site))
    hover = f"step %{{x}}<br>{name} = %{{y:.4g}}<extra></extra>"
    line = go.Scatter(x=trajectory.steps, y=norm, mode="lines", line_color=PART_COLOUR[of], hovertemplate=hover)
    figure.add_trace(line.update(name=name, showlegend=False), **place(row, col))
    figure.update_yaxes(title_text=f"{name}<br>(weight units)", rangemode="tozero", nticks=5, **place(row, col))


def about(trajectory: AdapterTrajectory, site: str | None = None) -> str:
    """Whose path it is, for a subtitle: base, site and steps."""
    sites = site or (trajectory.sites[0] if len(trajectory.sites) == 1 else f"{len(trajectory.sites)} sites together")
    steps = f"{len(trajectory.steps)} saved steps, {trajectory.steps[0]} to {trajectory.steps[-1]}"
    return " · ".join(part for part in (trajectory.base, sites, steps) if part)
