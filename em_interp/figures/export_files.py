"""Figures as files at the size of a paper: the picture, its caption in words, and the numbers behind it.

A journal's column is 85 mm wide and its page 178 mm. The picture is laid out a third wider and printed smaller, which
brings the template's 12 px type to 6.75 pt and its smallest, 11 px, to 6.2 pt. Title and subtitle are in the caption,
where papers have them; HTML, for the screen, keeps them in the figure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from em_interp.errors import InputError, nearest
from em_interp.figures.style import GRID, without_title
from em_interp.files import check_free, write_text

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
    """Write a figure, its caption as .txt and its numbers as .csv beside it.

    Args:
        figure: any figure of `em_interp`.
        path: ends in .pdf, .svg, .png (300 dots an inch) or .html; files that are there are replaced.
        columns: 1 (85 mm wide) or 2 (178 mm).

    Returns:
        The three files.

    Raises:
        InputError: for another suffix, where no browser is installed, and for a figure that needs two columns.
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
    overwrite: bool = False,
) -> list[Path]:
    """Write every figure to a folder, with `<name>.txt` and `<name>.csv` beside it, in one browser.

    Args:
        figures: by name.
        folder: made where it is missing.
        formats: pdf, svg, png (300 dots an inch) and html.
        columns: 1 (85 mm wide) or 2 (178 mm); figures too wide for one column are laid out for two.
        resume: draw the figures that are missing.
        overwrite: draw all of them again.

    Returns:
        The files.

    Raises:
        InputError: before anything is written, for an unknown format, where no browser is installed, and where one of
            the files is there already.
    """
    folder, wanted = Path(folder), check(formats, columns)
    pictures = [
        Picture(figure, folder / f"{name}.{one}", columns_of(figure, columns))
        for name, figure in figures.items()
        for one in wanted
    ]
    for picture in pictures:
        check_free(picture.path, resume, overwrite)
    _draw([picture for picture in pictures if overwrite or not picture.path.exists()])
    words = [file for name, figure in figures.items() for file in _write_words(figure, folder, name)]
    return [*(picture.path for picture in pictures), *words]


def caption(figure: go.Figure) -> str:
    """What stands under a figure in a paper: title, explanation and, where it is of a run, whose it is.

    Args:
        figure: any figure of `em_interp`.

    Returns:
        The caption, plain text.
    """
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


# --------
# The numbers behind a figure, read back from it: what is drawn and what is written beside it cannot differ.


COLUMNS = ["panel", "panel_title", "kind", "name", "group", "x_axis", "y_axis"]
COLUMNS += ["x", "x_low", "x_high", "y", "y_low", "y_high", "value"]
Place = tuple[str, str]  # what plotly calls a panel's axes, such as ("x2", "y2")


def numbers(figure: go.Figure) -> pd.DataFrame:
    """The numbers of a figure: a row for each point, step of a band, cell of a matrix, and line or shaded region.

    Args:
        figure: any figure of `em_interp`.

    Returns:
        Columns `panel` (counted from the first) and its `panel_title`, `kind` (values, band, cells, region), `name` and
        `group` (what belongs together, such as a curve and its band), what the axes are (`x_axis`, `y_axis`: title with
        unit), `x`, `y`, ends of intervals (`x_low` … `y_high`), the `value` of a cell, and `detail_1` … for what
        pointing at a mark tells (such as the step of a point on a path). Empty columns are left out.
    """
    drawn: list[tuple[Place, pd.DataFrame]] = []
    for trace in figure.data:
        rows = _of_trace(trace)
        if rows is not None and len(rows):
            place = (trace.xaxis or "x", trace.yaxis or "y")
            drawn.append((place, rows.assign(name=_words(trace.name), group=_words(trace.legendgroup))))
    for shape in figure.layout.shapes:
        if shape.line.color != GRID:
            x, y = (str(ref).removesuffix(" domain") for ref in (shape.xref, shape.yref))
            drawn.append(((x, y), _of_shape(shape)))
    axes, places = _axis_titles(figure), list(dict.fromkeys(place for place, _ in drawn))
    tables = []
    for place, rows in drawn:
        said = {"x_axis": axes.get(place[0]), "y_axis": axes.get(place[1]), "panel_title": _panel_title(figure, place)}
        tables.append(rows.assign(panel=places.index(place) + 1, **said))
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    table = pd.concat([one.dropna(axis=1, how="all") for one in tables], ignore_index=True)
    known = [column for column in COLUMNS if column in table]
    return table[[*known, *(column for column in table if column not in COLUMNS)]].replace("", np.nan)


def _panel_title(figure: go.Figure, place: Place) -> str | None:
    """The title above a panel or above its column: an annotation in the middle of its width and not below its top."""
    try:
        x, y = (figure.layout[f"{axis[0]}axis{axis[1:]}"] for axis in place)
    except (KeyError, ValueError):
        return None
    (left, right), (_, top) = x.domain or (0, 1), y.domain or (0, 1)
    above = [
        note
        for note in figure.layout.annotations
        if note.xref == note.yref == "paper" and note.yanchor == "bottom" and note.y > top - 1e-6
        if abs(note.x - (left + right) / 2) < 1e-6
    ]
    return _words(min(above, key=lambda note: note.y).text) if above else None


def _axis_titles(figure: go.Figure) -> dict[str, str]:
    """What each axis is; an axis without a title of its own has that of those it moves with."""
    axes = {key.replace("axis", ""): figure.layout[key] for key in figure.layout if re.fullmatch(r"[xy]axis\d*", key)}
    titles = {name: _words(axis.title.text) for name, axis in axes.items()}
    for name, axis in axes.items():
        leader = axis.matches or name
        group = [n for n, a in axes.items() if (n == leader or a.matches == leader) and not a.overlaying]
        titles[name] = titles[name] or next((titles[n] for n in group if titles[n]), "")
    return titles


def _words(text: str | None) -> str:
    """What a person reads: without the tags of plotly's labels."""
    return unescape(" ".join(re.sub(r"</?(?:b|br|i|sub|sup)>", " ", text or "").split()))


def _of_trace(trace: Any) -> pd.DataFrame | None:
    """The rows of one trace; None for a mark of the legend, which shows no number."""
    if trace.type in ("heatmap", "contour"):
        return _cells(trace) if trace.type == "heatmap" else None
    if trace.x is None or trace.y is None or not any(value is not None for value in trace.x):
        return None
    if trace.fill == "toself":
        return _band(np.asarray(trace.x, float), np.asarray(trace.y, float))
    rows = pd.DataFrame({"kind": "values", "x": _plain(trace.x), "y": _plain(trace.y)})
    for axis in ("x", "y"):
        bars = getattr(trace, f"error_{axis}")
        if bars is not None and bars.array is not None:
            above = np.asarray(bars.array, float)
            below = above if bars.arrayminus is None else np.asarray(bars.arrayminus, float)
            rows[f"{axis}_low"], rows[f"{axis}_high"] = rows[axis].astype(float) - below, rows[axis] + above
    return rows.assign(**_details(trace, len(rows)))


def _details(trace: Any, count: int) -> dict[str, Any]:
    """Numbers and words that pointing at the marks tells."""
    if trace.customdata is None:
        return {}
    held = np.asarray(trace.customdata, object).reshape(count, -1)
    return {f"detail_{k}": _plain(column) for k, column in enumerate(held.T, 1)}


def _plain(values: Any) -> list[Any]:
    return [_words(value) if isinstance(value, str) else value for value in values]


def _band(x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    """A ribbon's polygons, each there along its upper edge and back along its lower one, as intervals again.

    Another shape, such as the diamond of a pooled estimate, is a region.
    """
    if np.isfinite(x).all():
        ends = {"x_low": x.min(), "x_high": x.max(), "y_low": y.min(), "y_high": y.max()}
        return pd.DataFrame([{"kind": "region", **ends}])
    rows = []
    for stretch in np.split(np.arange(len(x)), np.flatnonzero(~np.isfinite(x))):
        inside = stretch[np.isfinite(x[stretch])]
        half = len(inside) // 2
        there, back = inside[:half], inside[half:][::-1]
        rows.append(pd.DataFrame({"kind": "band", "x": x[there], "y_low": y[back], "y_high": y[there]}))
    return pd.concat(rows, ignore_index=True)


def _cells(trace: Any) -> pd.DataFrame:
    z = np.asarray(trace.z, float)
    row, column = np.indices(z.shape).reshape(2, -1)
    x, y = _plain(trace.x), _plain(trace.y)
    cells = {"x": [x[j] for j in column], "y": [y[i] for i in row], "value": z.ravel()}
    return pd.DataFrame({"kind": "cells", **cells})


def _of_shape(shape: Any) -> pd.DataFrame:
    """A line or a shaded region: its ends along the axes whose numbers it is in (a whole panel has none)."""
    row: dict[str, Any] = {"kind": "region"}
    for axis in ("x", "y"):
        ref, low, high = (getattr(shape, f"{axis}{end}") for end in ("ref", "0", "1"))
        if not str(ref).endswith("domain") and ref != "paper":
            row |= {axis: low} if low == high else {f"{axis}_low": low, f"{axis}_high": high}
    return pd.DataFrame([row])
