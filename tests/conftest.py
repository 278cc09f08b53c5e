"""Set before anything imports torch: two threads on a busy machine make tiny models many times slower."""

import gc
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

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
    "behaviour/judging/test_transformers_serve.py", "cli", "comparison", "mechanism", "sweeps", "training",
    "test_cli.py", "test_demos.py", "test_install.py", "test_notebooks.py", "test_organism.py", "test_page.py",
    "test_prefer.py", "test_typed.py", "figures/test_comparison.py", "figures/test_cross_base.py",
    "transition/test_gradient_norm.py", "transition/test_mean_shift.py", "transition/test_noisy_turn.py",
    "transition/test_norm_onset.py", "transition/test_onset.py",
    "transition/test_rotation.py", "transition/test_series.py",
)  # fmt: skip
BROWSER = ("test_page_in_browser.py", "figures/test_export_files.py")


@pytest.hookimpl(tryfirst=True)  # before pytest reads the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test-fast` leaves out."""
    for item in items:
        place = item.path.relative_to(TESTS)
        if RUNS & set(getattr(item, "fixturenames", ())) or any(place.is_relative_to(slow) for slow in SLOW):
            item.add_marker(pytest.mark.slow)
        if str(place) in BROWSER:
            item.add_marker(pytest.mark.browser)


@dataclass(frozen=True)
class Tiny:
    """A run of the built-in organism and its control, asked and judged, and the config of the run."""

    config: Path
    run: Path
    control: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Made once and never written to again: a test that writes takes a copy."""
    from tests.tiny import CAREFUL, CONFIG, did

    folder = tmp_path_factory.mktemp("tiny")
    made = Tiny(folder / "tiny.yaml", folder / "run", folder / "control")
    made.config.write_text(CONFIG)
    for run, changes in ((made.run, []), (made.control, ["--set", CAREFUL])):
        did("train", made.config, "--out", run, *changes)
        did("ask", run)
        did("judge", run)
    gc.freeze()  # the Trainer collects garbage whenever it ends; spare it all that is loaded by now
    return made


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `em-interp demo` makes, at full size; never written to again."""
    from em_interp.demos import demo

    folder = tmp_path_factory.mktemp("demo") / "demo"
    demo(folder)
    return folder
