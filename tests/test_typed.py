"""The types of the package, and the public API as type checkers see it, without anything being imported."""

import ast
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("em_interp", "em_interp.figures", "em_interp.mechanism")
EXAMPLE = """
import em_interp as em
from em_interp import mechanism

run = em.train("configs/tiny.yaml", "checkpoints/first", resume=True)
reveal_type(run)  # Run
reveal_type(em.open_run("checkpoints/first"))  # Run
reveal_type(em.load_config("configs/tiny.yaml"))  # RunConfig
em.ask(run, resume=True)
em.judge(run, resume=True)

path = em.load_trajectory(run)
reveal_type(path)  # AdapterTrajectory
turn = em.find_transition(path)
reveal_type(turn)  # Transition
reveal_type(turn.step)  # float | None
reveal_type(turn.interval)  # tuple[float, float] | None
reveal_type(em.find_transitions(path))  # list[Transition]
reveal_type(turn.to_dict())  # dict[str, Any]

curve = em.behaviour_curve(run)
reveal_type(curve)  # BehaviourCurve
reveal_type(curve.select(1.0, "out_of_domain"))  # BehaviourCurve
reveal_type(em.score_responses(curve.answers))  # ScoredResponses
together = em.align(turn, curve, path)
reveal_type(together)  # Alignment
reveal_type(together.offsets[0])  # Offset
reveal_type(together.frame())  # DataFrame

reveal_type(em.compare([run, run]))  # DirectionComparison
reveal_type(em.compare_across_bases([run, run]))  # CrossBaseComparison
reveal_type(em.report(run))  # Path
reveal_type(em.planted_path("abrupt", seed=1).trajectory())  # AdapterTrajectory
reveal_type(em.run_mechanism(run, size="quick"))  # MechanismReport
reveal_type(em.preference_curve(run))  # PreferenceCurve
reveal_type(mechanism.open_model(run))  # TrajectoryModel
reveal_type(em.mechanism.open_model(run))  # TrajectoryModel
reveal_type(em.sweep("configs/sweep.yaml"))  # Sweep
reveal_type(em.locate(run))  # PathTransitions
reveal_type(em.score(curve.answers))  # ScoredResponses
"""
EXPECTED = re.findall(r"# (.+)$", EXAMPLE, re.MULTILINE)


def typed_imports(package):
    """Name in the package -> (module, name there), from the imports under TYPE_CHECKING."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    block = next(
        node.body for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    exported, imported = {}, {}
    for node in block:
        if isinstance(node, ast.ImportFrom):
            imported |= {alias.name: (node.module, alias.name) for alias in node.names}
            exported |= {alias.asname: (node.module, alias.name) for alias in node.names if alias.asname}
        elif isinstance(node, ast.Assign):  # names that differ from those of the module
            new, old = (ast.unparse(side).strip("()").split(", ") for side in (node.targets[0], node.value))
            exported |= {name: imported[was] for name, was in zip(new, old, strict=True)}
    return exported


@pytest.mark.parametrize("package", PACKAGES)
def test_type_checkers_see_the_names_that_are_loaded_on_first_use(package):
    loaded, typed = import_module(package), typed_imports(package)
    assert sorted(typed) == sorted(loaded.__all__)
    assert package != "em_interp" or {"train", "open_run", "load_trajectory", "find_transitions", "align"} <= set(typed)
    for name, (module, there) in typed.items():
        assert getattr(loaded, name) is getattr(import_module(module), there), name


@pytest.fixture
def script(tmp_path):
    """The example in a folder of its own, with the package beside it as an installed one would be."""
    file = tmp_path / "example.py"
    file.write_text(EXAMPLE, encoding="utf-8")
    (tmp_path / "em_interp").symlink_to(ROOT / "em_interp")
    return file


def check(command, folder, pattern):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    revealed = [re.sub(r"\b(?:\w+\.)+(?=\w)", "", found) for found in re.findall(pattern, done.stdout)]
    return done, revealed


def test_mypy_finds_no_fault_in_the_package_and_knows_every_type(script):
    command = [sys.executable, "-m", "mypy", "em_interp", script]
    done, revealed = check(command, ROOT, r'example\.py:\d+: note: Revealed type is "(.+)"')
    assert done.returncode == 0, done.stdout + done.stderr
    assert [name.replace("builtins.", "") for name in revealed] == EXPECTED


def test_pyright_knows_every_type(script):
    script.with_name("pyrightconfig.json").write_text(
        '{"typeCheckingMode": "standard", "include": ["example.py"]}', encoding="utf-8"
    )
    program = shutil.which("basedpyright", path=str(Path(sys.executable).parent))
    command = [program, "--pythonpath", sys.executable, script.name]
    done, revealed = check(command, script.parent, r'information: Type of ".+" is "(.+)"')
    assert done.returncode == 0, done.stdout + done.stderr
    assert revealed == EXPECTED
