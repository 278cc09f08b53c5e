"""Direction or size? The behaviour of every direction of the path at every size it had, and of A and B exchanged.

Multiplying one checkpoint's adapter shows what its direction does at other sizes; only the combination of every
direction with every size says which of the two behaviour waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int

from em_interp.behaviour.ask import Base
from em_interp.behaviour.judge import Judge
from em_interp.behaviour.rates import LEVEL
from em_interp.errors import InputError
from em_interp.mechanism.asked import path_of, questions_of
from em_interp.mechanism.cells import Asking, Cell, Group, judged_cells
from em_interp.mechanism.step_map import BASE, CONTROL, MAP, RANDOM, RANDOM_B, Kind, StepMap
from em_interp.runs import Run
from em_interp.trajectory import geometry
from em_interp.trajectory.adapter import AdapterTrajectory

CONTROL_CELLS = 4  # times as many answers as a cell of the map: every cell is held against them
FEWEST = 3  # steps


def direction_size_map(
    run: Run,
    base: Base,
    judge: Judge,
    control: Run | None = None,
    steps: int = 12,
    questions: Sequence[dict[str, str]] | None = None,
    asking: Asking | None = None,
    random: int = 8,
    level: float = LEVEL,
    resume: bool = False,
    progress: bool = False,
) -> StepMap:
    """Ask ΔW_i · ‖ΔW_j‖/‖ΔW_i‖ for `steps` × `steps` steps, evenly over the run and up to its last, and judge.

    ΔW is that of all sites together, with one norm (Frobenius), so a multiplied adapter keeps the shares of its
    sites. A cell shows the behaviour where the lower end of its EM rate lies above the upper end of the `control`'s
    last step (without one, of the base's), at 90 % coherent or more. Beside the map stand `random` random adapters of
    the final size, site by site, and as many with the final A and a random B.

    `questions` are by default the out-of-domain ones that the run was asked. Everything is kept in
    `run.analysis/direction_size`; with `resume` what is there is not asked or judged again. Raises InputError for
    adapters of another base, fewer than three steps with ΔW > 0, and a run that was asked no such questions.
    """
    return _step_map(
        "direction_size", run, base, judge, control, steps, questions, asking, random, level, resume, progress
    )


def exchange_map(
    run: Run,
    base: Base,
    judge: Judge,
    control: Run | None = None,
    steps: int = 12,
    questions: Sequence[dict[str, str]] | None = None,
    asking: Asking | None = None,
    random: int = 0,
    level: float = LEVEL,
    resume: bool = False,
    progress: bool = False,
) -> StepMap:
    """Ask s·B_j·A_i for `steps` × `steps` steps: what is read at one step, written as at another.

    Nothing is rescaled: B starts at zero, so it carries nearly all of the size. A and B of one run belong together
    also across steps, because neither gauge nor order of the rank's components changes while it trains. Otherwise as
    `direction_size_map`; kept in `run.analysis/exchange`.
    """
    more = (questions, asking, random, level, resume, progress)
    return _step_map("exchange", run, base, judge, control, steps, *more)


def _step_map(
    kind: Kind,
    run: Run,
    base: Base,
    judge: Judge,
    control: Run | None,
    count: int,
    questions: Sequence[dict[str, str]] | None,
    asking: Asking | None,
    random: int,
    level: float,
    resume: bool,
    progress: bool,
) -> StepMap:
    path = path_of(run, base)
    if kind == "exchange" and path.kind == "steering":
        raise InputError(f"{run.path} holds steering vectors, which have no A to exchange; LoRA adapters were expected")
    asked = list(questions_of(run, "out_of_domain") if questions is None else questions)
    asking = Asking() if asking is None else asking
    steps, sizes = spread(path, count)
    groups = [(path, map_cells(kind, steps, sizes)), beside(path, control, base), *baselines(path, random, asking.seed)]
    folder = Path(run.analysis) / kind
    answers = judged_cells(folder, base, judge, asked, groups, asking, resume, progress)
    sets = {question["questions"] for question in asked}
    only = sets.pop() if len(sets) == 1 else None
    return StepMap(kind, steps, sizes, answers, only, level, asking.seed)


def spread(path: AdapterTrajectory, count: int) -> tuple[Int[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """About `count` saved steps, evenly over the run and up to the last, with ΔW > 0, and their ‖ΔW‖."""
    size = geometry.norms(path.gram("delta"))
    there = np.flatnonzero(size > 0)
    if len(there) < FEWEST or count < FEWEST:
        found = f"{len(there)} saved steps with ΔW > 0 and {count} asked for"
        raise InputError(f"a map needs at least {FEWEST} steps; found {found}")
    wanted = path.steps[-1] * np.arange(1, count + 1) / count
    chosen = np.unique([there[np.argmin(np.abs(path.steps[there] - step))] for step in wanted])
    return path.steps[chosen].astype(int), size[chosen]


def map_cells(kind: Kind, steps: Int[np.ndarray, " step"], sizes: Float[np.ndarray, " step"]) -> list[Cell]:
    """The cells of the map, row by row."""
    pairs = [(i, j) for i in range(len(steps)) for j in range(len(steps))]
    where = [(int(steps[i]), int(steps[j])) for i, j in pairs]
    if kind == "exchange":
        return [Cell(MAP, row, column, row, column) for row, column in where]
    ratio = [float(sizes[j] / sizes[i]) for i, j in pairs]
    return [Cell(MAP, row, column, row, row, x) for (row, column), x in zip(where, ratio, strict=True)]


def beside(path: AdapterTrajectory, control: Run | None, base: Base) -> Group:
    """What the map is held against: the control's last adapter as trained, or the base."""
    if control is None:
        step = int(path.steps[-1])
        return path, [Cell(BASE, number, 0, step, step, 0.0) for number in range(CONTROL_CELLS)]
    careful = path_of(control, base)
    step = int(careful.steps[-1])
    return careful, [Cell(CONTROL, number, 0, step, step) for number in range(CONTROL_CELLS)]


def baselines(path: AdapterTrajectory, count: int, seed: int) -> list[Group]:
    """`count` random adapters of the final size, and as many with the final A and a random B."""
    if count == 0:
        return []
    kinds = ((RANDOM, random_adapters(path, count, seed)), (RANDOM_B, random_adapters(path, count, seed, keep_A=True)))
    return [(drawn, [Cell(kind, number, 0, number, number) for number in range(count)]) for kind, drawn in kinds]


def random_adapters(path: AdapterTrajectory, count: int, seed: int, keep_A: bool = False) -> AdapterTrajectory:
    """`count` adapters with Gaussian A and B (or the final A), at each site of the final rank and ‖ΔW‖.

    They stand as the steps 0 … count − 1 of a path. At rank 1 the direction of ΔW is uniform (of B, where A is kept);
    above it the singular values are those of chance, not those of training.
    """
    rng, A, B = np.random.default_rng(seed), {}, {}
    for site in path.sites:
        size = np.sqrt(path.gram("delta", site)[-1, -1])
        a = np.repeat(path.A[site][-1:], count, axis=0) if keep_A else rng.normal(size=(count, *path.A[site].shape[1:]))
        b = rng.normal(size=(count, *path.B[site].shape[1:]))
        drawn = AdapterTrajectory(
            np.arange(count), {site: a.astype(np.float32)}, {site: b.astype(np.float32)}, {site: path.scale[site]}
        )
        length = geometry.norms(drawn.gram("delta"))
        A[site], B[site] = drawn.A[site], (b * (size / length)[:, None, None]).astype(np.float32)
    return AdapterTrajectory(np.arange(count), A, B, dict(path.scale), base=path.base)
