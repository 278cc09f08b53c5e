"""What the documentation says can be done: every recipe runs, every page that is pointed to is there."""

import re
from pathlib import Path

import pytest

import em_interp as em
from em_interp.config.run_config import RunConfig

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_an_empty_line_comes_before_every_list(page):
    """Without it GitHub shows a list and the site does not."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    item = r"(?:- |\d+\. )"
    assert not re.findall(rf"^(?!\s|#|{item})(.+)\n{item}", text, re.MULTILINE)


SETTING = re.compile(
    r"--set (?:'(?P<quoted>[^']+)'|(?P<bare>[^\s`'\"]+))"
    rf"|`(?P<named>(?:{'|'.join(RunConfig.model_fields)})[\w.\[\]]*=[^`]+)`"
)


def test_every_override_that_is_given_as_an_example_is_one():
    """In the docs, in docstrings (which are also the help of commands), in messages and beside configs."""
    files = [*PAGES, *(ROOT / "em_interp").rglob("*.py"), *(ROOT / "configs").glob("*.yaml")]
    given = [match for file in files for match in SETTING.finditer(file.read_text(encoding="utf-8"))]
    settings = sorted({match[match.lastgroup].rstrip(".") for match in given if "…" not in match[0]})
    assert len(settings) > 6
    judge = {"base_url": "http://127.0.0.1:8000/v1", "model": "m"}
    for setting in settings:
        em.load_config({"data": [{"dataset": "tiny:medical"}], "behaviour": {"judge": judge}}, [setting])


def table_rows(text, first):
    """The cells of the rows of a table, by the first cell; the table is the one whose head begins with `first`."""
    lines = text[text.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]
    return {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)}


def interval(cell):
    """A share with the ends of its interval: three numbers of a cell such as `99.6 [97.7, 99.9]`."""
    return map(float, re.findall(r"[\d.]+", cell))


def test_the_files_of_the_project_that_pages_name_are_there():
    named = re.compile(r"`((?:em_interp|tests|benchmarks|configs|notebooks)/[\w./-]+)`")
    pages = [*PAGES, ROOT / "CONTRIBUTING.md"]
    found = {name for page in pages for name in named.findall(page.read_text(encoding="utf-8"))}
    assert len(found) > 20
    assert [
        name for name in sorted(found - {"em_interp/a/b.py", "tests/a/test_b.py"}) if not (ROOT / name).exists()
    ] == []


def test_the_error_rates_of_the_readme_are_those_that_were_measured():
    """Its table is that of the baselines in docs/calibration.md, with fewer digits and the nine kinds in one row."""
    page = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8").split("## Baselines")[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.split("\n## ")[0].split("\n")]
    rows = [row for row in rows if row and row[0].startswith("rotation of B")]
    turns = [row for row in rows if row[2] == "within 15 steps"]
    *nulls, noisy = (row for row in rows if row[2] == "answers")
    assert len(turns) == 5 and len(nulls) == 9
    readme = list(table_rows((ROOT / "README.md").read_text(encoding="utf-8"), "planted path").values())
    for shown, row in zip(readme, [*turns, None, noisy], strict=True):
        if row is not None:
            share, low, high = interval(row[3])
            ruptures, _, *heuristic = (f"{float(cell.split()[0]):.0f}" for cell in row[4:])
            assert shown == [f"{share} % ({low} to {high})", f"{ruptures} %", ", ".join(heuristic) + " %"]
    named, _, highs = zip(*(interval(row[3]) for row in nulls), strict=True)
    ruptures = [round(float(row[4].split()[0])) for row in nulls]
    assert readme[5][0] == f"{min(named)} to {max(named)} % (intervals up to {max(highs)})"
    assert readme[5][1:] == [f"{min(ruptures)} to {max(ruptures)} %", "100, 100, 100 %"]


def test_what_the_readme_says_of_its_picture_is_what_the_demo_finds(kitchen):
    path, turn, curve = kitchen["path"], kitchen["turn"], kitchen["curve"].select(1.0, "out_of_domain")
    onset = em.find_transition(curve, control=em.behaviour_curve(kitchen["control"]).select(1.0, "out_of_domain"))
    offset = em.align(turn, onset, path).offsets[0]
    as_near = f"a step placed at random would be as near in {offset.chance:.0%} of cases".replace("%", " %")
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    spans = [f"{low:.0f} to {high:.0f}" for low, high in (turn.interval, offset.interval)]
    assert f"turns at step {turn.step:.0f} (95 % interval {spans[0]})" in readme
    assert f"is done {offset.steps:.0f} steps later ({spans[1]}; {as_near})" in readme
    assert f"names step {em.largest_local_cosine(path.gram('B'), path.steps, k=10)[0]}." in readme
    assert f"turns by {turn.angle_deg:.0f}° at step {turn.step:.0f}" in readme  # in words for the picture
    assert f"onset at step {onset.step:.0f}, {offset.steps:.0f} steps later" in readme
