"""The tidy tables behind the figures of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from em_interp.comparison.plane import CommonPlane
from em_interp.comparison.pooled import Agreement
from em_interp.comparison.presence import Presence

if TYPE_CHECKING:
    from em_interp.comparison.result import PairGrid

Table = Literal["pairs", "angles", "steps", "presence", "plane", "transitions", "agreement"]


def steps_table(grids: Sequence[PairGrid]) -> pd.DataFrame:
    """A row for each measure, pair and two of their steps."""
    tables = []
    for grid in grids:
        first, second = np.meshgrid(grid.steps, grid.other_steps, indexing="ij")
        columns = {"step": first.ravel(), "other_step": second.ravel(), "value": grid.values.ravel()}
        who = {"measure": grid.measure, "run": grid.run, "other": grid.other}
        tables.append(pd.DataFrame({**who, **columns, "random_band": grid.random_band}))
    return pd.concat(tables, ignore_index=True)


def presence_table(found: Sequence[Presence]) -> pd.DataFrame:
    """A row for each measure, final direction, run it is looked for in, and step of that run."""
    tables = []
    for one in found:
        who = {"measure": one.of, "final_of": one.final_of, "inside": one.inside}
        first = np.nan if one.first_step is None else one.first_step
        numbers = {"step": one.steps, "value": one.cosine, "random_band": one.band, "first_step": first}
        tables.append(pd.DataFrame({**who, **numbers}))
    return pd.concat(tables, ignore_index=True)


def plane_table(planes: Sequence[CommonPlane]) -> pd.DataFrame:
    """A row for each measure, run and step, with its coordinates (weight units) and the shares of variance."""
    tables = []
    for plane in planes:
        shares = dict(zip(("share_x", "share_y"), plane.explained, strict=True))
        for name, steps, scores in zip(plane.names, plane.steps, plane.scores, strict=True):
            where = {"step": steps, "x": scores[:, 0], "y": scores[:, 1]}
            tables.append(pd.DataFrame({"measure": plane.of, "run": name, **where, **shares}))
    return pd.concat(tables, ignore_index=True)


def transitions_table(agreements: Sequence[Agreement]) -> pd.DataFrame:
    """A row for each signal and run."""
    rows = [
        {"run": name, **transition.to_dict()}
        for one in agreements
        for name, transition in zip(one.names, one.transitions, strict=True)
    ]
    return pd.DataFrame(rows)


def agreement_table(agreements: Sequence[Agreement]) -> pd.DataFrame:
    """A row for each signal: the pooled step with its interval, and the runs by verdict."""
    rows = []
    for one in agreements:
        values = one.to_dict()
        low, high = values["interval"] or (np.nan, np.nan)
        kept = {
            key: values[key] for key in ("signal", "of", "questions", "mean", "level", "between_runs_sd", "pooled_runs")
        }
        rows.append({**kept, "low": low, "high": high, **values["runs"], "sentence": values["sentence"]})
    return pd.DataFrame(rows)
