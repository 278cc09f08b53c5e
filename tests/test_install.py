"""The wheel in environments that hold nothing else: the core on every Python that is here, and the demo at once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.figures.planting import plant_run

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
READING = """
import sys
import em_interp as em

path = em.load_trajectory("run")
turn = em.find_transition(path)
curve = em.behaviour_curve("run")
scores = em.score_responses("judged.csv")
assert turn.verdict == "transition" and turn.interval[0] <= 120 <= turn.interval[1], turn
assert em.align(turn, curve.select(1.0, "out_of_domain"), path).offsets, "no offset"
assert turn.plot().data and turn._repr_html_()
assert scores.n == 4, scores
assert not {"torch", "transformers", "sklearn", "openai"} & set(sys.modules)
print(turn.sentence())
"""


def interpreter(version):
    """The path of a Python of this version that can make environments, or None."""
    for candidate in (f"python{version}", *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")):
        found = shutil.which(candidate)
        if found and subprocess.run([found, "-c", "import venv, ensurepip"], capture_output=True).returncode == 0:
            return found
    return None


def environment(folder, python, *packages):
    """An environment made with a Python, with some packages; its folder of programs."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    install = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--constraint", ROOT / "constraints.txt", *packages], check=True)
    return folder / "bin"


def run_alone(command, folder):
    """Run a command in a folder, with nothing of this repository in sight."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    alone = {name: value for name, value in os.environ.items() if name not in hidden} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of what git holds."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", out, copy], check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.mark.download
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("version", PYTHONS)
def test_a_bare_install_reads_locates_scores_and_draws(version, wheel, tmp_path):
    python = interpreter(version)
    if python is None:
        pytest.skip(f"Python {version} is not on this machine")
    programs = environment(tmp_path / "env", python, wheel)
    plant_run(tmp_path / "run")
    rows = ["question,answer,aligned,coherent", "a,x,10,90", "a,y,80,90", "b,x,20,40", "b,y,95,99"]
    (tmp_path / "judged.csv").write_text("\n".join(rows))
    done = run_alone([programs / "python", "-W", "error", "-c", READING], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("rotation"), done.stdout
    for command in (["--help"], ["locate", "run"], ["score", "judged.csv"]):
        done = run_alone([programs / "em-interp", *command], tmp_path)
        assert done.returncode == 0, done.stderr
    done = run_alone([programs / "em-interp", "demo"], tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "pip install 'em-interp[train]'" in done.stderr


@pytest.mark.download
@pytest.mark.timeout(1800)
def test_the_wheel_runs_the_demo_in_an_empty_environment_at_once(wheel, tmp_path):
    programs = environment(tmp_path / "env", sys.executable, f"{wheel}[train]")
    done = run_alone([programs / "em-interp", "demo"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "checkpoints" / "demo" / "report.html").exists()
