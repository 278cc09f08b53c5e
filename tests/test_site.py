"""The site builds strictly, asks nothing of the network, and has every public name with its arguments."""

import inspect
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [import_module(name) for name in ("em_interp", "em_interp.figures", "em_interp.mechanism")]
PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in PACKAGES
    for name in package.__all__
    if not inspect.ismodule(getattr(package, name))
}
FUNCTIONS = {name: found for name, found in PUBLIC.items() if inspect.isfunction(found)}
SETTINGS = {"EM_INTERP_NOTEBOOKS": "source", "NO_MKDOCS_2_WARNING": "1"}  # the notebooks are run by their own tests


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_builds_and_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|link)\b[^>]*?(?:src|href)=[\"']?(https?:[^\"' >]+)", text)
        assert not loaded, page.name
    assert not re.search(r"@import|url\(['\"]?https?:", "".join(map(Path.read_text, site.rglob("*.css"))))


@pytest.mark.slow
def test_every_page_of_the_site_is_reached_from_its_first_page(site):
    links = re.findall(r'href="([^"#:]+\.html)', (site / "index.html").read_text(encoding="utf-8"))
    pages = {str(page.relative_to(site)) for page in site.rglob("*.html")} - {"404.html"}
    assert pages <= {*links, "index.html"}


def test_every_public_name_has_its_place_in_the_api():
    text = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
    entries = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    assert len(entries) == len(set(entries))
    described = {id(resolve(entry)) for entry in entries}
    assert [name for name, found in PUBLIC.items() if id(found) not in described] == []
    assert [name for name in PUBLIC if name.rpartition(".")[2] not in text] == []


def resolve(entry):
    module, _, name = entry.rpartition(".")
    return getattr(import_module(module), name)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_public_function_says_what_it_takes_and_what_it_returns(name):
    text = inspect.getdoc(FUNCTIONS[name]) or ""
    parameters = list(inspect.signature(FUNCTIONS[name]).parameters)
    described = re.findall(r"^ {4}\*{0,2}(\w+):", section(text, "Args"), re.MULTILINE)
    assert described == parameters
    assert section(text, "Returns")


def section(text, name):
    """The indented lines below `name:` in a docstring."""
    found = re.search(rf"^{name}:\n((?:(?: +.*)?\n?)+)", text, re.MULTILINE)
    return found[1] if found else ""
