"""The benchmarks, which take too long to be run here, import what exists."""

import ast
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = sorted((ROOT / "benchmarks").glob("*.py"))


def names_of(module):
    """The names that a module or package of this repository has, without importing it."""
    place = ROOT.joinpath(*module.split("."))
    file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    names = {entry.stem for entry in place.iterdir()} if place.is_dir() else set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("file", BENCHMARKS, ids=lambda file: file.stem)
def test_every_name_that_is_imported_exists(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("em_interp", "tests"):
            assert {name.name for name in node.names} <= names_of(node.module), node.module


def test_the_published_models_add_up_to_their_parameters():
    """The linear modules and one embedding account for a model, to a tenth: a wrong width would not."""
    modules = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    architectures = runpy.run_path(str(ROOT / "benchmarks" / "hardware.py"))["ARCHITECTURES"]
    words = {"Qwen": 152_000, "meta": 128_000, "goog": 262_000, "smol": 49_152}
    for name, shape in architectures.items():
        linear = shape.layers * sum(a * b for a, b in map(shape.linear, modules))
        embedding = words[name[:4]] * shape.width
        untied = 2 if name.startswith(("Qwen", "meta")) and shape.parameters > 4e9 else 1
        assert linear + untied * embedding == pytest.approx(shape.parameters, rel=0.05), name
