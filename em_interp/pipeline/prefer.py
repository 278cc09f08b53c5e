"""The stage `prefer`: how a run's preference for misaligned answers changes, measured without a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.preference import read_preferences
from em_interp.behaviour.preference_curve import PreferenceCurve, as_preference_curve
from em_interp.errors import InputError
from em_interp.organisms.bases import Base, base_of, load_base
from em_interp.organisms.built_in import LANGUAGES, pairs_of
from em_interp.pipeline.serving import base_device, vllm_servers
from em_interp.run import Run, check_other
from em_interp.trajectory.load import open_checkpoints
from em_interp.utils.checks import as_list, checked

if TYPE_CHECKING:
    import pandas as pd

    from em_interp.config.run_config import VLLMConfig

DEFAULT_STEPS = 25  # of a run whose config names none


@checked
def preference_curve(
    run: Run | str | Path | pd.DataFrame,
    pairs: str | Path | pd.DataFrame | Sequence[Mapping[str, Any]] | None = None,
    steps: int | Sequence[int] | None = None,
    scales: float | Sequence[float] | None = None,
    control: Run | str | Path | PreferenceCurve | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    overrides: Sequence[str] = (),
) -> PreferenceCurve:
    """How likely misaligned answers are relative to aligned ones along a run; nothing is sampled or judged.

    What was read is kept in the run (`behaviour/preferences.parquet`). Without `pairs`, `steps` and `scales` a run
    that was read is not read again. See `em_interp.behaviour.preference` for what the number cannot tell.

    Args:
        run: a run, its folder or any folder of checkpoints; or readings, as a frame or a file.
        pairs: a table's file, rows or a frame of `question`, `aligned`, `misaligned`; judged answers; or built-in
            pairs by name, such as `english:medical`. By default those of the run's own built-in dataset.
        steps: saved steps; by default those of the config's `behaviour.steps`.
        scales: multipliers of the adapter; by default 1 alone.
        control: a run on careful data, which is read on the same pairs, steps and scales; or its curve.
        resume: continue with what exists.
        overwrite: replace what exists.
        progress: whether a bar is shown; by default in a terminal and in Jupyter.
        overrides: changes of the run's config (`key.path=value`) for this reading alone, such as
            `behaviour.engine=vllm`.

    Returns:
        The curve, by step, scale and question set, with intervals over questions.

    Raises:
        InputError: where a run on other than built-in data has no pairs, where the control lacks the first step, and
            as `read_preferences` says.
    """
    import pandas as pd

    if isinstance(run, pd.DataFrame) or (isinstance(run, (str, Path)) and Path(run).is_file()):
        return as_preference_curve(run, _as_curve(control))
    check_other(run, control)
    run = open_checkpoints(run)
    chosen = pairs is not None or steps is not None or scales is not None
    if chosen or overwrite or resume or not run.preferences_file.exists():
        pairs = _pairs(run, pairs)
        steps = _default_steps(run) if steps is None else as_list(steps)
        scales = [1.0] if scales is None else as_list(scales)
        servers = vllm_servers(run, overrides)
        settings: dict[str, Any] = {"overwrite": overwrite, "progress": progress, "servers": servers}
        if control is not None and not isinstance(control, PreferenceCurve):
            control = open_checkpoints(control)
            saved = _steps_of_control(control, run, steps)
        base = _base(run, servers)
        read_preferences(run, base, pairs, steps, scales, resume=resume, **settings)
        if isinstance(control, Run):
            base = base if base_of(control) == base_of(run) else _base(control, servers)
            read_preferences(control, base, pairs, saved, scales, resume=not overwrite, **settings)
    return as_preference_curve(run, _as_curve(control))


def _as_curve(control: Run | str | Path | PreferenceCurve | None) -> PreferenceCurve | None:
    return control if control is None or isinstance(control, PreferenceCurve) else as_preference_curve(control)


def _pairs(run: Run, pairs: Any) -> Any:
    """The pairs given; built-in ones by their name, or by the dataset of the run."""
    if pairs is None:
        phase = run.phases()[-1]
        language = str(phase.get("dataset", "")).split(":")[0]
        if language in LANGUAGES:
            return pairs_of(language, str(phase.get("domain")))
        raise InputError(
            f"{run.path} was not trained on a built-in dataset, so it has no pairs of its own; give a table "
            "of question, aligned and misaligned, judged answers, or built-in pairs such as english:medical"
        )
    language, _, domain = str(pairs).partition(":") if isinstance(pairs, str) else ("", "", "")
    return pairs_of(language, domain) if language in LANGUAGES and domain else pairs


def _steps_of_control(control: Run, run: Run, steps: Sequence[int]) -> list[int]:
    """The steps that the control has too, the first of them included, from which changes count."""
    from em_interp.behaviour.sampling.ask import steps_with_models

    shared = sorted(set(steps) & set(steps_with_models(control)))
    if not shared:
        raise InputError(f"{control.path} has none of the steps to be read of {run.path}")
    if shared[0] != min(steps):
        raise InputError(
            f"of the steps to be read {control.path} has {shared[0]} as the first, {run.path} {min(steps)}: changes "
            "since different steps are not comparable; give steps of which both have the first"
        )
    return shared


def _default_steps(run: Run) -> list[int]:
    """Those that the config names, or evenly spaced ones."""
    import numpy as np

    from em_interp.behaviour.sampling.ask import steps_with_models
    from em_interp.trajectory.geometry import evenly_spaced

    steps = steps_with_models(run)
    if run.config_file.exists():
        return run.config().behaviour.steps.nearest(steps)
    return [steps[row] for row in evenly_spaced(np.array(steps), DEFAULT_STEPS)]


def _base(run: Run, servers: VLLMConfig | None) -> Base:
    """The base of a run; beside servers it stays on the CPU."""
    return load_base(*base_of(run), base_device(servers))
