"""Every block of README and docs is run as a person would paste it, page by page, in the folder of a clone.

A block below a paragraph that says **Needs …** (a GPU, the Hub, a server, a judge) is checked without it:
the arguments of its commands parse, its Python compiles, and the names of the package that it uses are there.
"""

import ast
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import reduce
from importlib import import_module
from pathlib import Path
from shlex import split

import pandas as pd
import pytest
import yaml

from em_interp.organisms import presets
from tests.tiny import did, short_recipe

ROOT = Path(__file__).resolve().parents[1]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
SHELLS = ("sh", "bash")
DATA = ("yaml", "json", "text")  # shown, not run


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    number: int
    language: str
    text: str
    needs: str  # what the paragraph above says that it needs, or ""

    def __str__(self):
        return f"{self.page}-{self.number}-{self.language}"


def blocks_of(page):
    text = page.read_text(encoding="utf-8")
    for number, match in enumerate(FENCE.finditer(text), 1):
        above = text[: match.start()].rstrip().rsplit("\n\n", 1)[-1]
        needs = re.search(r"\*\*(Needs .+?)\*\*", above, re.DOTALL)
        lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines()]
        name = str(page.relative_to(ROOT))
        yield Block(name, number, match["language"], "\n".join(lines), needs[1] if needs else "")


PAGES = {
    str(page.relative_to(ROOT)): list(blocks_of(page))
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
BLOCKS = [block for blocks in PAGES.values() for block in blocks]
TO_RUN = {
    page: run
    for page, blocks in PAGES.items()
    if (run := [block for block in blocks if not block.needs and block.language not in DATA])
}


SMALLER = [
    ("steps: 400", "steps: 24"),
    ("epochs: 2", "steps: 24"),
    ("steps: every 20", "steps: every 8"),
    ("samples: 6", "samples: 1"),
]


@pytest.fixture(scope="module")
def clone(demo, tmp_path_factory):
    """A folder as a clone is after `make demo`, with its programs on the path once its environment is activated.

    The configs of the built-in organism have fewer steps and answers than those of the repository, and half of the
    demo's steps with answers are left out.
    """
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "notebooks"):
        shutil.copytree(ROOT / name, folder / name)
    for config in (folder / "configs").glob("*.yaml"):
        config.write_text(reduce(lambda text, change: text.replace(*change), SMALLER, config.read_text()))
    shutil.copytree(demo, folder / "checkpoints" / "demo")
    for file in (folder / "checkpoints" / "demo").glob("*/behaviour/*.parquet"):
        table = pd.read_parquet(file)
        table[table["step"] % 40 == 0].to_parquet(file, index=False)
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    commands = {
        "make": f'{shutil.which("make")} --dry-run --directory {ROOT} "$@" > /dev/null',
        "python": f'{sys.executable} "$@"',
        "em-interp": f'{sys.executable} -m em_interp "$@"',
    }
    for name, command in commands.items():
        (programs / name).write_text(f"#!/bin/sh\nexec {command}\n")
    (programs / "activate").write_text(f'export PATH="{programs}:$PATH"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.filterwarnings("default")  # those of the libraries that a block uses; em_interp's are errors elsewhere
@pytest.mark.parametrize("page", TO_RUN)
def test_the_blocks_of_the_page_run_in_their_order(page, clone, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(presets, "recipe", short_recipe)  # of `em-interp demo`
    monkeypatch.chdir(clone)
    names = {}
    for block in TO_RUN[page]:
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)
        else:
            run_shell(block, clone)


def run_shell(block, clone):
    """Run the block in its shell; its em-interp commands in this process, which has torch imported already."""
    lines = re.sub(r"\\\n", " ", block.text).splitlines()
    for command in (words[1:] for words in map(split, lines) if words[0] == "em-interp"):
        did(*command)
    own = "\n".join(line for line in lines if not line.startswith("em-interp "))
    command = [block.language, "-e", "-u", "-c", f". {clone}/.venv/bin/activate\n{own}"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, f"{block}:\n{block.text}\n{done.stderr}"


def test_the_command_is_on_the_path_once_the_environment_is_activated_as_the_readme_says(clone):
    make, activate = next(block for block in TO_RUN["README.md"] if block.language == "bash").text.splitlines()
    assert make == "make demo"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(clone)}
    for lines, code in ((f"{activate}\nem-interp --version", 0), ("em-interp --version", 127)):
        assert subprocess.run(["bash", "-c", lines], cwd=clone, env=environment, capture_output=True).returncode == code


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_the_block_says_what_it_is_in_and_can_be_pasted(block):
    assert block.language in (*SHELLS, *DATA, "python")
    if block.language in SHELLS:  # a comment is no comment in an interactive zsh, macOS's shell
        assert not re.search(r"(^|\s)#", block.text), "say it in a sentence above the block"
        assert not re.search(r"\b(RUN|CONFIG|FILE|DIR|CHECKPOINTS|TABLES)\b|…|<\w+>", block.text), "name a real one"


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.needs], ids=str)
def test_what_cannot_be_run_here_is_right_as_far_as_it_can_be_checked(block, monkeypatch):
    monkeypatch.chdir(ROOT)
    if block.language == "python":
        check_names(block.text)
    elif block.language in SHELLS:
        for line in re.sub(r"\\\n", " ", block.text).splitlines():
            check_command(line.split("#")[0].strip())


def check_command(line):
    """The arguments of an em-interp command parse, and a target of make is there."""
    from em_interp.cli.app import parse

    words = split(line)
    if words[0] == "make":
        assert set(words[1:]) <= TARGETS
    elif "em_interp" in words:
        assert not isinstance(parse(words[words.index("em_interp") + 1 :]), int)
    elif words[0] == "em-interp":
        assert not isinstance(parse(words[1:]), int)


def check_names(text):
    """What is imported from the package is there, and so is every attribute of `em`."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("em_interp"):
            module = import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "em":
            assert hasattr(import_module("em_interp"), node.attr), ast.unparse(node)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "yaml"], ids=str)
def test_yaml_is_yaml(block):
    assert yaml.safe_load(block.text)
