"""The stage `prefer`: how a run's preference for misaligned answers changes, measured without a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em_interp.behaviour.preference import read_preferences
from em_interp.behaviour.preference_curve import PreferenceCurve, as_preference_curve
from em_interp.errors import InputError
from em_interp.organisms.bases import base_of, load_base
from em_interp.organisms.built_in import LANGUAGES, pairs_of
from em_interp.pipeline.serving import base_device, check_overrides, config_of, overridden, vllm_servers
from em_interp.run import Run, check_other
from em_interp.trajectory.load import open_checkpoints
from em_interp.utils.checks import as_list, checked

if TYPE_CHECKING:
    import pandas as pd

    from em_interp.config.run_config import RunConfig

DEFAULT_STEPS = 25  # of a run whose config names none
USED = ("model", "dtype", "behaviour.engine", "behaviour.steps")  # settings of the config that a reading depends on


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

    What was read is kept in the run (`behaviour/preferences.parquet`). Without `pairs`, `steps`, `scales` and
    `overrides` a run that was read is not read again; a control that was not is then read as the run was. See
    `em_interp.behaviour.preference` for what the number cannot tell.

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
        overrides: changes of the config (`key.path=value`) for this reading alone, of `model`, `dtype`,
            `behaviour.engine` or `behaviour.steps`, such as `behaviour.engine=vllm`.

    Returns:
        The curve, by step, scale and question set, with intervals over questions.

    Raises:
        InputError: where a run on other than built-in data has no pairs, where the control lacks the first step, for
            an override of another setting, and as `read_preferences` says.
    """
    import pandas as pd

    if isinstance(run, pd.DataFrame) or (isinstance(run, (str, Path)) and Path(run).is_file()):
        return as_preference_curve(run, _as_curve(control))
    check_other(run, control)
    run = open_checkpoints(run)
    if overrides:
        config_of(run, overrides)  # refuses what is no setting at all
    check_overrides(overrides, USED, "preferences are read", "scales are given with scales=…, answers with pairs=…")
    chosen = pairs is not None or steps is not None or scales is not None or bool(overrides)
    if run.preferences_file.exists() and not overwrite and not _is_read(control):
        chosen = resume = True
        steps, scales = _as_read(run, steps, scales, overrides)
    if chosen or overwrite or resume or not run.preferences_file.exists():
        settings = {"resume": resume, "overwrite": overwrite, "progress": progress}
        _read(run, control, _pairs(run, pairs), steps, scales, overrides, settings)
    return as_preference_curve(run, _as_curve(control))


def _read(
    run: Run,
    control: Run | str | Path | PreferenceCurve | None,
    pairs: Any,
    steps: Any,
    scales: Any,
    overrides: Sequence[str],
    settings: dict[str, Any],
) -> None:
    """Read the preferences of a run, and of a control that is a run."""
    config, servers = config_of(run, overrides), vllm_servers(run, overrides)
    steps = _default_steps(run, config) if steps is None else as_list(steps)
    scales = [1.0] if scales is None else as_list(scales)
    if control is not None and not isinstance(control, PreferenceCurve):
        control = open_checkpoints(control)
        saved = _steps_of_control(control, run, steps)
    named = _base_of(run, config)
    base = load_base(*named, base_device(servers))
    read_preferences(run, base, pairs, steps, scales, servers=servers, **settings)
    if isinstance(control, Run):
        of_control = _base_of(control, config_of(control, overrides))
        base = base if of_control == named else load_base(*of_control, base_device(servers))
        settings = settings | {"resume": not settings["overwrite"]}
        read_preferences(control, base, pairs, saved, scales, servers=servers, **settings)


def _is_read(control: Run | str | Path | PreferenceCurve | None) -> bool:
    """Whether there is nothing to be read of a control."""
    if control is None or isinstance(control, PreferenceCurve):
        return True
    run = control if isinstance(control, Run) else Run(Path(control))
    return run.path.is_file() or run.preferences_file.exists()


def _as_read(run: Run, steps: Any, scales: Any, overrides: Sequence[str]) -> tuple[Any, Any]:
    """The steps and scales that are given; where none are, those with which the run was read."""
    read = as_preference_curve(run).readings
    if steps is None and "behaviour.steps" not in map(overridden, overrides):
        steps = read["step"].unique().tolist()
    return steps, read["scale"].unique().tolist() if scales is None else scales


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
    from em_interp.behaviour.sampling.checkpoint_models import steps_with_models

    shared = sorted(set(steps) & set(steps_with_models(control)))
    if not shared:
        raise InputError(f"{control.path} has none of the steps to be read of {run.path}")
    if shared[0] != min(steps):
        raise InputError(
            f"of the steps to be read {control.path} has {shared[0]} as the first, {run.path} {min(steps)}: changes "
            "since different steps are not comparable; give steps of which both have the first"
        )
    return shared


def _default_steps(run: Run, config: RunConfig) -> list[int]:
    """Those that the config names, or evenly spaced ones."""
    import numpy as np

    from em_interp.behaviour.sampling.checkpoint_models import steps_with_models
    from em_interp.trajectory.geometry import evenly_spaced

    steps = steps_with_models(run)
    if run.config_file.exists() or "steps" in config.behaviour.model_fields_set:
        return config.behaviour.steps.nearest(steps)
    return [steps[row] for row in evenly_spaced(np.array(steps), DEFAULT_STEPS)]


def _base_of(run: Run, config: RunConfig) -> tuple[str, str]:
    """The base of a run, as `load_base` takes it: that of the config with its overrides, else that of the adapters."""
    named = run.config_file.exists() or "model" in config.model_fields_set
    return config.model if named else base_of(run)[0], config.base_dtype
