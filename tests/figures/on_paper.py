"""Figures as printed: which of the words in a PDF are cut, reach beyond the page, or lie on other words."""

import ctypes

import numpy as np
import pypdfium2
import pypdfium2.raw as pdfium

from em_interp.figures.export_files import COLUMN_MM, columns_of, export_all
from tests.test_page_in_browser import browser

POINTS_PER_MM = 72 / 25.4
SCALE = 8  # pixels of the rendering to a point
TOUCH = 0.4  # points: a box is as tight around its ink as this, and words may share as little
KERN = 1.5  # points: letters of one word that are set apart, as T and o, lie over each other by as little
CONTRAST = 12  # of 255, between ink and what is behind it


def faults(figures, folder, columns=(1, 2)):
    """(figure, columns, words, what is wrong) for every fault in the PDFs of these figures; and how many words."""
    browser()
    found, count = [], 0
    for number in columns:
        narrow = {name: figure for name, figure in figures.items() if columns_of(figure, 1) == 1}
        figures = figures if number == columns[0] else narrow  # others are as wide as the page already
        export_all(figures, folder / str(number), ("pdf",), number)
        for name in figures:
            words, wrong = faults_of(folder / str(number) / f"{name}.pdf")
            count += words
            found += [(name, number, *fault) for fault in wrong]
    return count, found


def faults_of(file):
    """How many words a PDF has, and (words, what is wrong) for each fault."""
    with pypdfium2.PdfDocument(file) as document:
        if len(document) != 1:
            return 0, [("", f"{len(document)} pages")]
        page = document[0]
        width, height = page.get_size()
        wrong = [] if min(abs(width / POINTS_PER_MM - mm) for mm in COLUMN_MM.values()) < 0.5 else [("", "the width")]
        words = [(text, quad) for text, quad in _words(page) if text.strip()]
        picture = page.render(scale=SCALE).to_numpy()
        low, high = (np.array([end(quad, axis=0) for _, quad in words]).reshape(-1, 2) for end in (np.min, np.max))
        for index, (text, quad) in enumerate(words):
            if min(quad.min(), width - quad[:, 0].max(), height - quad[:, 1].max()) < TOUCH:
                wrong.append((text, "the edge of the page"))  # letters beyond it are not in the file at all
            elif _cut(picture, quad, height):
                wrong.append((text, "cut"))
            for before in np.flatnonzero(((low[:index] < high[index]) & (high[:index] > low[index])).all(axis=1)):
                other, another = words[before]
                if _overlap(quad, another, KERN if before == index - 1 else 2 * TOUCH):
                    wrong.append((text, other))
        return len(words), wrong


def _words(page):
    """Each run of glyphs with the corners of its box, as far as ink reaches, in points from the lower left."""
    text_page = page.get_textpage()
    for piece in page.get_objects(filter=[pdfium.FPDF_PAGEOBJ_TEXT], max_depth=8):
        length = pdfium.FPDFTextObj_GetText(piece.raw, text_page.raw, None, 0)
        letters = (ctypes.c_ushort * (length // 2))()
        pdfium.FPDFTextObj_GetText(piece.raw, text_page.raw, letters, length)
        corners = pdfium.FS_QUADPOINTSF()
        pdfium.FPDFPageObj_GetRotatedBounds(piece.raw, corners)
        quad = [[getattr(corners, f"{axis}{k}") for axis in "xy"] for k in (1, 2, 3, 4)]
        yield "".join(map(chr, letters[:-1])), np.array(quad)


def _cut(picture, quad, height):
    """Whether some edge of the box has no ink: the box is what would be drawn, the picture what was."""
    upright = np.ptp(quad, axis=0)
    if not any(abs(np.diff(quad[[0, 1]], axis=0)).min(axis=1) < 1e-3):  # at a slant the box of the ink is smaller
        return False
    left, right = quad[:, 0].min() * SCALE, quad[:, 0].max() * SCALE
    top, bottom = (height - quad[:, 1].max()) * SCALE, (height - quad[:, 1].min()) * SCALE
    rim = int(TOUCH * SCALE) + 1
    box = picture[int(top) : int(bottom) + 1, int(left) : int(right) + 1].astype(int)
    if min(upright) <= 0 or not box.size:
        return False
    ink = np.abs(box - np.median(box.reshape(-1, box.shape[2]), axis=0)).max(axis=2) > CONTRAST
    edges = (ink[:rim], ink[-rim:], ink[:, :rim], ink[:, -rim:])
    return not all(edge.any() for edge in edges)


def _overlap(one, other, shared):
    """Whether two boxes share more than so many points in every direction (separating axes)."""
    for quad in (one, other):
        for side in (quad[1] - quad[0], quad[2] - quad[1]):
            if not side.any():
                continue
            axis = side / np.linalg.norm(side)
            mine, theirs = one @ axis, other @ axis
            if min(mine.max(), theirs.max()) - max(mine.min(), theirs.min()) <= shared:
                return False
    return True
