"""Figures as files at the size of a paper: the picture, its caption in words, and the numbers behind it.

A journal's column is 85 mm wide and its page 178 mm. The picture is laid out a third wider and printed smaller, which
brings the template's 12 px type to 6.75 pt and its smallest, 11 px, to 6.2 pt. Title and subtitle are in the caption,
where papers have them; HTML, for the screen, keeps them in the figure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from em_interp.errors import InputError, nearest
from em_interp.figures.tables import numbers
from em_interp.figures.template import without_title
from em_interp.runs import write_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

FORMATS = ("html", "pdf", "png", "svg")
COLUMN_MM = {1: 85.0, 2: 178.0}  # width of one column, and of the whole page
LAYOUT = 4 / 3  # pixels of the layout to one on paper
PIXELS_PER_MM = 96 / 25.4  # CSS's, which PDF and SVG follow
PNG_SCALE = 300 / 96  # dots to an inch
NO_BROWSER = (
    "{formats} need Chrome or Chromium, and none is installed: install one (Debian: `apt install chromium`; anywhere: "
    "`plotly_get_chrome`) or ask for html"
)
NO_KALEIDO = "{formats} need the package kaleido: `pip install 'em-interp[export]'`, or ask for html"


class Picture(NamedTuple):
    """One file to be: a figure, where it goes (the suffix is its format), and for how many columns it is laid out."""

    figure: go.Figure
    path: Path
    columns: int


def export(figure: go.Figure, path: str | Path, columns: int = 2) -> list[Path]:
    """Write the figure to `path` (.pdf, .svg, .png or .html), its caption as .txt and its numbers as .csv beside.

    `columns` is 1 (85 mm) or 2 (178 mm); PNG has 300 dots an inch. Files that are there are replaced. Returns what was
    written. Raises InputError for another suffix, where no browser is installed, and for a figure that needs two
    columns.
    """
    path = Path(path)
    check([path.suffix.removeprefix(".")], columns)
    if columns_of(figure, columns) != columns:
        least = figure.layout.meta["least_width"] / (PIXELS_PER_MM * LAYOUT)
        raise InputError(f"this figure needs {least:.0f} mm and a column has {COLUMN_MM[columns]:.0f}; give columns=2")
    _draw([Picture(figure, path, columns)])
    return [path, *_write_words(figure, path.parent, path.stem)]


def columns_of(figure: go.Figure, columns: int) -> int:
    """`columns`, or 2 where the figure is too wide for one."""
    return columns if (figure.layout.meta or {}).get("least_width", 0) <= _width(columns) else 2


def export_all(
    figures: Mapping[str, go.Figure],
    folder: str | Path,
    formats: Iterable[str] = ("pdf",),
    columns: int = 2,
    resume: bool = False,
) -> list[Path]:
    """Write every figure to `folder` as `<name>.<format>`, with `<name>.txt` and `<name>.csv`, in one browser.

    Figures too wide for one column are laid out for two. Raises InputError, before anything is written, for an unknown
    format, where no browser is installed, and where one of the files is there already (without `resume`).
    """
    folder, wanted = Path(folder), check(formats, columns)
    pictures = [
        Picture(figure, folder / f"{name}.{one}", columns_of(figure, columns))
        for name, figure in figures.items()
        for one in wanted
    ]
    there = [picture.path for picture in pictures if picture.path.exists()]
    if there and not resume:
        raise InputError(f"{there[0]} is there already; give --resume to write the figures anew or another --out")
    _draw(pictures)
    words = [file for name, figure in figures.items() for file in _write_words(figure, folder, name)]
    return [*(picture.path for picture in pictures), *words]


def caption(figure: go.Figure) -> str:
    """What stands under the figure in a paper: title, explanation and, where it is of a run, whose it is."""
    said = figure.layout.meta or {}
    parts = (str(said.get(key) or "").strip() for key in ("title", "subtitle", "setting"))
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts if part)


def with_setting(figure: go.Figure, setting: str) -> go.Figure:
    """The figure, with whose it is (base, site, alpha, seed) for its caption."""
    return figure.update_layout(meta={**(figure.layout.meta or {}), "setting": setting})


def _write_words(figure: go.Figure, folder: Path, name: str) -> list[Path]:
    """The caption and the numbers beside a picture."""
    text, table = folder / f"{name}.txt", folder / f"{name}.csv"
    write_text(text, caption(figure) + "\n")
    write_text(table, numbers(figure).to_csv(index=False, float_format="%.9g"))
    return [text, table]


def check(formats: Iterable[str], columns: int = 2) -> tuple[str, ...]:
    """The formats, each once. Raises InputError where one is not known, or nothing is installed that could draw it."""
    wanted = tuple(dict.fromkeys(formats))
    for one in wanted:
        if one not in FORMATS:
            raise InputError(f"figures are written as {', '.join(FORMATS)}; {one!r} is none{nearest(one, FORMATS)}")
    if not wanted:
        raise InputError(f"no format of figures was given; there are {', '.join(FORMATS)}")
    if columns not in COLUMN_MM:
        raise InputError(f"columns should be 1 ({COLUMN_MM[1]:.0f} mm) or 2 ({COLUMN_MM[2]:.0f} mm); it is {columns!r}")
    if drawn := ", ".join(one.upper() for one in wanted if one != "html"):
        _need_browser(drawn)
    return wanted


def _need_browser(formats: str) -> None:
    try:
        import kaleido  # noqa: F401
        from choreographer.browsers.chromium import Chromium
    except ImportError:
        raise InputError(NO_KALEIDO.format(formats=formats)) from None
    if Chromium.find_browser(skip_local=False) is None:
        raise InputError(NO_BROWSER.format(formats=formats))


def _draw(pictures: list[Picture]) -> None:
    """Write the pictures: HTML as it is, the others through one browser."""
    _show([picture for picture in pictures if picture.path.suffix == ".html"])
    _print([picture for picture in pictures if picture.path.suffix != ".html"])


def _show(shown: list[Picture]) -> None:
    """One page alone holds plotly (5 MB); several share one beside them."""
    from plotly.offline import get_plotlyjs

    if len(shown) > 1:
        write_text(shown[0].path.with_name("plotly.min.js"), get_plotlyjs())
    for picture in shown:
        write_text(picture.path, picture.figure.to_html(include_plotlyjs="directory" if len(shown) > 1 else True))


def _print(printed: list[Picture]) -> None:
    """Each picture comes to its place when all are drawn."""
    import plotly.io as pio

    if not printed:
        return
    bare = [without_title(picture.figure) for picture in printed]
    folder = printed[0].path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".drawing-", dir=folder) as drawing:
        files = [Path(drawing) / picture.path.name for picture in printed]
        pio.write_images(
            bare,
            files,
            width=[_width(picture.columns) for picture in printed],
            height=[figure.layout.height for figure in bare],
            scale=[(PNG_SCALE if picture.path.suffix == ".png" else 1) / LAYOUT for picture in printed],
        )
        for picture, file in zip(printed, files, strict=True):
            file.replace(picture.path)


def _width(columns: int) -> int:
    """Width of the layout in pixels."""
    return round(COLUMN_MM[columns] * PIXELS_PER_MM * LAYOUT)
