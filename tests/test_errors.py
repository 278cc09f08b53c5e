"""Texts of others in messages: one line that no file and no server can steer a terminal with, not endless."""

import ast
import pickle
import re
import sys
from pathlib import Path

import pytest

from em_interp.behaviour.judging.client import Endpoint
from em_interp.cli import _in_shell
from em_interp.errors import MAX_LINE, InputError, extra_for, printable, shortened
from em_interp.figures.export_files import check
from em_interp.hub.download import fetch

STEERING = {
    "a line end": "a\nb", "a return": "a\rb", "an escape": "a\x1b[31mb", "a bell": "a\x07b", "a null byte": "a\0b",
    "delete": "a\x7fb", "of the second set": "a\x9bb", "from right to left": "a\u202eb", "a half": "a\ud800b",
    "a line separator": "a\u2028b",
}  # fmt: skip


@pytest.mark.parametrize("text", STEERING.values(), ids=STEERING)
def test_what_could_steer_a_terminal_is_a_space_in_every_message(text):
    message = str(InputError(f"{text} was found"))
    assert message == f"a {text[2:]} was found" and message.isprintable()
    assert printable("plain ‖ΔW‖ – “text” 日本") == "plain ‖ΔW‖ – “text” 日本"


def texts_of(file):
    """The strings of a module that are not docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in docs and type(n.value) is str
    ]


def test_a_message_names_the_python_argument_and_on_the_command_line_the_option():
    package = Path(__file__).parents[1] / "em_interp"
    found = [
        (file.name, text)
        for file in package.rglob("*.py")
        if file.parent.name != "cli"
        for text in texts_of(file)
        if re.search(r"--(resume|overwrite) (goes|to|and)|(give|another) --", text)
    ]
    assert not found, "a message of Python names its argument, as resume=True or out=…; the command line turns it round"
    assert _in_shell("give same_base=True, or another out=…; k=3") == "give --same-base, or another --out; k=3"
    assert _in_shell("--set judge.base_url=… of /data/resume=True") == "--set judge.base_url=… of /data/resume=True"


def test_of_a_long_message_the_beginning_and_the_end_are_left():
    message = str(InputError(f"FILE is wrong: {'x' * 10**6}; give --out"))
    assert len(message) <= MAX_LINE and message.startswith("FILE is wrong: xxx") and message.endswith("xxx; give --out")
    assert shortened("short") == "short"
    assert str(pickle.loads(pickle.dumps(InputError("from a worker")))) == "from a worker"


USES = {  # a package of an extra, what needs it, and what is said where it is not there
    "huggingface_hub": (lambda: fetch("a/b"), "'em-interp[hub]', or clone https://huggingface.co/a/b and give the"),
    "openai": (lambda: Endpoint("http://127.0.0.1:1/v1", None, 1.0), "'em-interp[judge]'"),
    "kaleido": (lambda: check(["png"]), "'em-interp[export]', or ask for html"),
}


@pytest.mark.parametrize("package", USES)
def test_a_package_that_is_there_and_broken_is_not_called_missing(package, tmp_path, monkeypatch):
    use, said = USES[package]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, package, None)
        with pytest.raises(InputError, match=re.escape(f"needs {package}, which is not installed: pip install {said}")):
            use()
    (tmp_path / f"{package}.py").write_text("raise ImportError('libfoo.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"libfoo\.so\.1"):
        use()
    (tmp_path / f"{package}.py").write_text(f"import {package}.gone")
    with pytest.raises(ModuleNotFoundError, match=rf"{package}\.gone"):
        use()


def test_a_missing_part_of_an_extra_is_no_missing_extra():
    with pytest.raises(ModuleNotFoundError, match=r"json\.gone"), extra_for("this"):
        import json.gone  # noqa: F401
