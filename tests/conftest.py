"""Set before anything imports torch: two threads on a busy machine make tiny models many times slower."""

import fcntl
import gc
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

gc.set_threshold(100_000)  # imports and tests make objects that stay, and looking for garbage took a quarter of theirs
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# few examples, the same at every run; `pytest --hypothesis-profile thorough` draws many others
settings.register_profile("quick", max_examples=15, derandomize=True, database=None, deadline=None)
settings.register_profile("thorough", max_examples=200, database=None, deadline=None)
settings.load_profile("quick")

# what is started in the background ignores Ctrl-C, and so would everything the tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


TESTS = Path(__file__).parent
RUNS = {"demo", "tiny"}  # fixtures that train, sample and judge
SLOW = (  # folders and files that train, sample, calibrate or start processes
    "behaviour/judging/test_client.py", "behaviour/judging/test_transformers_serve.py",
    "behaviour/sampling/test_ask.py", "behaviour/test_own_data.py", "behaviour/vllm/test_engine.py",
    "cli", "comparison", "demos", "mechanism", "pipeline/test_prefer.py", "sweeps", "training",
    "test_cli.py", "test_hostile.py", "test_install.py", "test_kills.py", "test_notebooks.py", "test_organism.py",
    "test_page.py", "test_typed.py", "transition/direction", "transition/onsets", "transition/signals",
)  # fmt: skip
BROWSER = (
    "figures/test_comparison.py", "figures/test_cross_base.py", "figures/test_every_figure.py",
    "figures/test_export_files.py", "figures/test_preferences.py", "figures/test_sweeps.py", "test_page_in_browser.py",
)  # fmt: skip
LONGEST = (  # half a minute and more; first, so that no process is alone with one at the end. The demo is made once
    "test_typed.py", "test_calibration.py", "test_page.py", "transition/direction/test_rotation.py",
    "behaviour/judging/test_client.py", "training/test_distributed.py", "figures/test_export_files.py",
    "test_notebooks.py", "sweeps/test_run.py", "cli/test_interrupts.py", "test_docs.py", "test_readme.py",
    "cli/test_bad_input.py", "mechanism/test_suite.py", "test_cli.py", "training/test_callbacks.py",
    "test_organism.py", "demos/test_tiny.py",
)  # fmt: skip
assert all((TESTS / place).exists() for place in SLOW + BROWSER + LONGEST)


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: tests wait for processes, servers and browsers."""
    return (os.cpu_count() or 1) + 1


@pytest.hookimpl(tryfirst=True)  # before pytest reads the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-fast` leaves out, and put the longest files first."""
    for item in items:
        place = item.path.relative_to(TESTS)
        if RUNS & set(getattr(item, "fixturenames", ())) or any(place.is_relative_to(slow) for slow in SLOW):
            item.add_marker(pytest.mark.slow)
        if str(place) in BROWSER:
            item.add_marker(pytest.mark.browser)
    turn = {TESTS / place: number for number, place in enumerate(LONGEST)}
    items.sort(key=lambda item: turn.get(item.path, len(turn)))
    gc.freeze()  # what is loaded and collected by now stays; nothing looks for garbage in it


@dataclass(frozen=True)
class Tiny:
    """A run of the built-in organism and its control, asked and judged, and the config of the run."""

    config: Path
    run: Path
    control: Path


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of all worker processes: the first that needs it makes it, another waits until it is there."""
    root = factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder, complete = root / name, root / f"{name}.complete"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Made once and never written to again: a test that writes takes a copy."""
    from tests.tiny import CAREFUL, CONFIG, did

    def make(folder: Path) -> None:
        config = folder / "tiny.yaml"
        config.write_text(CONFIG)
        for run, changes in ((folder / "run", []), (folder / "control", ["--set", CAREFUL])):
            did("train", config, "--out", run, *changes)
            did("ask", run)
            did("judge", run)

    folder = shared(tmp_path_factory, "tiny", make)
    gc.freeze()  # the Trainer collects garbage whenever it ends; spare it all that is loaded by now
    return Tiny(folder / "tiny.yaml", folder / "run", folder / "control")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `em-interp demo` makes, at full size; never written to again."""
    from em_interp.demos.tiny import demo

    return shared(tmp_path_factory, "whole_demo", lambda folder: demo(folder / "demo")) / "demo"
