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

import pandas as pd

from em_interp.errors import InputError, extra_for, nearest
from em_interp.figures.style import without_title
from em_interp.utils.checks import checked
from em_interp.utils.files import check_free, refuse_links, safe_name, write_csv, write_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

FORMATS = ("html", "pdf", "png", "svg")
COLUMN_MM = {1: 85.0, 2: 178.0}  # width of one column, and of the whole page
LAYOUT = 4 / 3  # pixels of the layout to one on paper
PIXELS_PER_MM = 96 / 25.4  # CSS's, which PDF and SVG follow
PNG_SCALE = 300 / 96  # dots to an inch
# nothing is loaded from anywhere; plotly draws with scripts and styles in the page itself
CONTENT_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'{beside}; style-src 'unsafe-inline'; img-src data: blob:"
)
FROM_FOLDER = " 'self' file:"  # for a page whose plotly.min.js is beside it
NO_BROWSER = (
    "{formats} need Chrome or Chromium, and none is installed: install one (Debian: `apt install chromium`; anywhere: "
    "`plotly_get_chrome`) or ask for html"
)


class Picture(NamedTuple):
    """A figure, the file to write (its suffix is the format), and the columns of a paper it is laid out for."""

    figure: go.Figure
    path: Path
    columns: int


@checked
def export(figure: go.Figure, path: str | Path, columns: int = 2) -> list[Path]:
    """Write a figure, its caption as .txt and the numbers behind it as .csv.

    Args:
        figure: a figure of this package.
        path: where to write it; the suffix (.pdf, .svg, .png or .html) is the format. Files there are replaced.
        columns: 1 (85 mm wide) or 2 (178 mm). PNG has 300 dots an inch.

    Returns:
        The files written: the picture, the caption, the numbers.

    Raises:
        InputError: for another suffix, without a browser to draw with, or for a figure too wide for one column.
    """
    path = Path(path)
    check([path.suffix.removeprefix(".")], columns)
    if columns_of(figure, columns) != columns:
        least = figure.layout.meta["least_width"] / (PIXELS_PER_MM * LAYOUT)
        raise InputError(f"this figure needs {least:.0f} mm and a column has {COLUMN_MM[columns]:.0f}; give columns=2")
    draw([Picture(figure, path, columns)])
    return [path, *_write_words(figure, path.parent, path.stem)]


@checked
def export_all(
    figures: Mapping[str, go.Figure],
    folder: str | Path,
    formats: Iterable[str] = ("pdf",),
    columns: int = 2,
    resume: bool = False,
    overwrite: bool = False,
) -> list[Path]:
    """Write several figures with captions and numbers, in one browser.

    Args:
        figures: figures by name; each becomes `<name>.<format>`, `<name>.txt` and `<name>.csv`.
        folder: where to write them.
        formats: some of pdf, svg, png and html.
        columns: 1 (85 mm) or 2 (178 mm); figures too wide for one column are laid out for two.
        resume: draw those that are missing.
        overwrite: replace files that exist.

    Returns:
        The files of all figures.

    Raises:
        InputError: before anything is written, for an unknown format, without a browser to draw with, and where a
            file exists already (without `resume` or `overwrite`).
    """
    folder, wanted = Path(folder), check(formats, columns)
    pictures = [
        Picture(figure, folder / f"{safe_name(name)}.{suffix}", columns_of(figure, columns))
        for name, figure in figures.items()
        for suffix in wanted
    ]
    for picture in pictures:
        check_free(picture.path, resume, overwrite)
    draw([picture for picture in pictures if overwrite or not picture.path.exists()])
    words = [file for name, figure in figures.items() for file in _write_words(figure, folder, name)]
    return [*(picture.path for picture in pictures), *words]


@checked
def caption(figure: go.Figure) -> str:
    """The text under the figure in a paper: title, explanation and, for a figure of a run, the run's setting.

    Args:
        figure: any figure of this package.

    Returns:
        The caption, plain text.
    """
    meta = figure.layout.meta or {}
    parts = (str(meta.get(key) or "").strip() for key in ("title", "subtitle", "setting"))
    return " ".join(part if part[-1] in ".!?" else f"{part}." for part in parts if part)


@checked
def numbers(figure: go.Figure) -> pd.DataFrame:
    """The table behind a figure of this package.

    Args:
        figure: any figure of this package.

    Returns:
        The rows of its result's `.frame()` that it shows; empty for any other figure.
    """
    return pd.DataFrame((figure.layout.meta or {}).get("numbers", {}))


def with_setting(figure: go.Figure, setting: str) -> go.Figure:
    """The figure with the setting of its run (base, site, alpha, seed) for its caption."""
    return figure.update_layout(meta={**(figure.layout.meta or {}), "setting": setting})


def check(formats: Iterable[str], columns: int = 2) -> tuple[str, ...]:
    """The formats, each once. Raises InputError for an unknown one, and where nothing is installed to draw it with."""
    wanted = tuple(dict.fromkeys(formats))
    for name in wanted:
        if name not in FORMATS:
            raise InputError(f"figures are written as {', '.join(FORMATS)}; {name!r} is none{nearest(name, FORMATS)}")
    if not wanted:
        raise InputError(f"no format of figures was given; there are {', '.join(FORMATS)}")
    if columns not in COLUMN_MM:
        raise InputError(f"columns should be 1 ({COLUMN_MM[1]:.0f} mm) or 2 ({COLUMN_MM[2]:.0f} mm); it is {columns!r}")
    if drawn := ", ".join(name.upper() for name in wanted if name != "html"):
        _need_browser(drawn)
    return wanted


def _need_browser(formats: str) -> None:
    with extra_for(f"a figure as {formats}", ", or ask for html"):
        import kaleido  # noqa: F401
    from choreographer.browsers.chromium import Chromium

    if Chromium.find_browser(skip_local=False) is None:
        raise InputError(NO_BROWSER.format(formats=formats))


def columns_of(figure: go.Figure, columns: int) -> int:
    """`columns`, or 2 for a figure that is too wide for one."""
    return columns if (figure.layout.meta or {}).get("least_width", 0) <= layout_width(columns) else 2


def layout_width(columns: int) -> int:
    """Width in pixels that a figure is laid out at."""
    return round(COLUMN_MM[columns] * PIXELS_PER_MM * LAYOUT)


def draw(pictures: list[Picture]) -> None:
    """Write the pictures: HTML directly, the others through one browser."""
    _write_html([picture for picture in pictures if picture.path.suffix == ".html"])
    _print([picture for picture in pictures if picture.path.suffix != ".html"])


def _write_html(pictures: list[Picture]) -> None:
    """One page alone holds plotly (5 MB); several share one file beside them. The same figure gives the same bytes."""
    from plotly.offline import get_plotlyjs

    shared = len(pictures) > 1
    if shared:
        write_text(pictures[0].path.with_name("plotly.min.js"), get_plotlyjs())
    policy = CONTENT_POLICY.format(beside=FROM_FOLDER if shared else "")
    head = f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">'
    for picture in pictures:
        bare = type(picture.figure)(picture.figure).update_layout(meta=None)
        page = bare.to_html(include_plotlyjs="directory" if shared else True, div_id="figure")
        write_text(picture.path, page.replace("<head>", head, 1))


class _Page:
    """Kaleido's page without its print margins, which shrink a PDF and cut its foot, and without MathJax from a CDN."""

    def generate_index(self) -> str:
        from kaleido import PageGenerator

        page: str = PageGenerator(mathjax=False).generate_index()
        return page.replace("<head>", "<head><style>@page { margin: 0 }</style>", 1)


def _print(pictures: list[Picture]) -> None:
    """Draw into a folder beside; each picture is moved to its place when all are drawn."""
    if not pictures:
        return
    import kaleido

    folder = pictures[0].path.parent
    refuse_links(pictures[0].path)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".drawing-", dir=folder) as drawing:
        files = [Path(drawing) / picture.path.name for picture in pictures]
        orders = [_order(picture, file) for picture, file in zip(pictures, files, strict=True)]
        kaleido.write_fig_from_object_sync(orders, kopts={"page_generator": _Page()}, cancel_on_error=True)
        for picture, file in zip(pictures, files, strict=True):
            file.replace(picture.path)


def _order(picture: Picture, file: Path) -> dict[str, object]:
    """What kaleido is to draw."""
    bare, kind = without_title(picture.figure), picture.path.suffix.removeprefix(".")
    size = {"width": layout_width(picture.columns), "height": bare["layout"]["height"]}
    options = {"format": kind, **size, "scale": (PNG_SCALE if kind == "png" else 1) / LAYOUT}
    return {"fig": bare, "path": file, "opts": options}


def _write_words(figure: go.Figure, folder: Path, name: str) -> list[Path]:
    """The caption and the numbers beside a picture."""
    text, table = (folder / f"{safe_name(name)}{ending}" for ending in (".txt", ".csv"))
    write_text(text, caption(figure) + "\n")
    write_csv(table, numbers(figure))
    return [text, table]
