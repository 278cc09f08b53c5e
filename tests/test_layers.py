"""The shape of the house: imports go down only, rooms on one floor leave each other alone, light work stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "em_interp"
FLOORS = [
    {"errors", "results"},
    {"utils"},
    {"config", "layouts"},
    {"run"},
    {"hub"},
    {"trajectory"},
    {"organisms", "behaviour", "transition"},
    {"mechanism", "training", "figures"},
    {"reports"},
    {"comparison"},
    {"pipeline"},
    {"demos", "sweeps"},
    {"cli"},
    {"__main__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}


def imports(file):
    """Rooms that a file imports from, each with whether the import is not at the top level."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "em_interp" and len(parts) > 1:
                yield parts[1], node not in tree.body


def room_of(file):
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_arrows_point_down(file):
    room = room_of(file)
    if room == "__init__":
        return
    assert room in FLOOR, f"{room} has no floor in the house"
    for other, late in imports(file):
        if other == room or (other == "figures" and late):
            continue  # a result's plot() imports its figure when called
        assert FLOOR[other] < FLOOR[room], f"{file.relative_to(PACKAGE)} imports from {other}, which is not below"


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_paths_and_transitions_do_without_torch():
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'transformers', 'peft', 'plotly'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import em_interp.trajectory.load, em_interp.transition.find, em_interp.transition.align;"
        "from em_interp.transition.synthetic.paths import planted_path;"
        "print(em_interp.transition.find.find_transition(planted_path('abrupt', 1).trajectory()).verdict)"
    )
    assert run(code).strip() == "transition"


def test_importing_the_package_and_asking_for_help_load_nothing_heavy():
    heavy = "{'numpy', 'pandas', 'torch', 'plotly', 'transformers', 'scipy', 'yaml'}"
    said = f"print({heavy} & set(sys.modules))\n"
    code = f"import em_interp, sys\n{said}import em_interp.cli\ntry: em_interp.cli.main(['--help'])\n"
    first, *_, last = run(f"{code}except SystemExit: pass\n{said}").splitlines()
    assert first == last == "set()"


def test_no_public_name_is_hidden_by_a_module_of_the_same_name():
    """Importing a submodule sets it as an attribute of its package, over whatever is loaded on first use."""
    code = "import em_interp as em\nfor room in (em, em.figures, em.mechanism): print(room.__name__, *room.__all__)"
    for line in run(code).splitlines():
        room, *names = line.split()
        folder = PACKAGE.parent / room.replace(".", "/")
        modules = {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or entry.is_dir()}
        assert (set(names) - {"figures", "mechanism"}) & modules == set(), room
