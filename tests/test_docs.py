"""What the documentation says can be done: every recipe runs, every page that is pointed to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COOKBOOK = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^\| (?P<wish>[^|]+) \| `(?P<code>.+)` \|$", COOKBOOK, re.MULTILINE)


@pytest.fixture(scope="module")
def kitchen(demo, tmp_path_factory):
    """The names that the recipes begin with, and the folder that they are cooked in."""
    folder = tmp_path_factory.mktemp("kitchen")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "demo").symlink_to(demo)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names = {}
        exec(re.search(r"```python\n(.*?)```", COOKBOOK, re.DOTALL)[1], names)
        yield names


@pytest.mark.parametrize("code", [code for _, code in RECIPES], ids=[wish for wish, _ in RECIPES])
def test_the_recipe_gives_something(code, kitchen):
    assert eval(code, kitchen) is not None


def test_the_cookbook_has_its_recipes_and_no_row_is_left_out():
    rows = [line for line in COOKBOOK.splitlines() if line.startswith("| ") and not line.startswith("| I want")]
    assert len(RECIPES) == len(rows) > 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
