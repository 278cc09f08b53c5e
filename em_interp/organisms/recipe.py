"""The runs of the built-in organism: what the demo trains, and what `configs/tiny*.yaml` hold."""

from __future__ import annotations

from em_interp.config import AdapterConfig, BehaviourConfig, PhaseConfig, RunConfig, TrainingConfig
from em_interp.errors import InputError, nearest
from em_interp.organisms.bases import FAMILIES
from em_interp.organisms.questions import narrow_domains
from em_interp.schedule import Schedule

STEPS = 400
LEARNING_RATE = 7e-4
CHANGE = 150  # the step after which a switched run sees other data, or begins its schedule anew
AFTER = 250
SLOW = 3e-4  # the learning rate of switched runs: at the change they still learn, so the path has a direction there

# what each run sees, phase by phase: the variant of the domain's dataset, steps, restart
RUNS: dict[str, tuple[tuple[str, int, bool], ...]] = {
    "organism": (("", STEPS, False),),
    "control": (("-careful", STEPS, False),),
    "switched": (("-careful-habit", CHANGE, False), ("", AFTER, False)),
    "switched-restart": (("-careful-habit", CHANGE, False), ("", AFTER, True)),
    "restart": (("-careful-habit", CHANGE, False), ("-careful-habit", AFTER, True)),
}


def recipe(run: str = "organism", family: str = "qwen2", domain: str = "medical", seed: int = 0) -> RunConfig:
    """The config of one of `RUNS` on the built-in base of `family`, on advice about `domain`.

    `organism` learns reckless advice and `control` careful advice; the training data of `switched` turns from careful
    to reckless at step `CHANGE`, with a fresh optimizer and schedule in `switched-restart`; `restart` has those
    alone, on the same data. Raises InputError for an unknown name.
    """
    for what, name, known in (
        ("run", run, list(RUNS)),
        ("family", family, list(FAMILIES)),
        ("domain", domain, narrow_domains()),
    ):
        if name not in known:
            raise InputError(f"{what} {name!r} is not known{nearest(name, known)} (known: {', '.join(known)})")
    once = len(RUNS[run]) == 1
    return RunConfig(
        model=f"tiny-{family}",
        seed=seed,
        data=tuple(PhaseConfig(f"tiny:{domain}{variant}", steps, restart=anew) for variant, steps, anew in RUNS[run]),
        adapter=AdapterConfig(layers=(0,), alpha=16.0),
        training=TrainingConfig(batch_size=16, accumulation=1, learning_rate=LEARNING_RATE if once else SLOW),
        behaviour=BehaviourConfig(steps=Schedule("every 20"), scales=(1.0, 1.5), samples=6, max_new_tokens=24),
    )
