"""The gallery shows every figure there is, in small pictures, in the words of its script."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import em_interp as em

ROOT = Path(__file__).resolve().parents[1]


def the_script():
    spec = spec_from_file_location("gallery", ROOT / "benchmarks" / "gallery.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GALLERY = the_script()
SHOWN = [name for name, exhibit in GALLERY.EXHIBITS.items() if exhibit.draw is not None]


def test_every_figure_is_in_the_gallery():
    figures = [name for name in em.figures.__all__ if name.startswith("plot_")]
    missing = [name for name in figures if name not in GALLERY.EXHIBITS]
    assert not missing, (
        f"add {missing} to EXHIBITS in benchmarks/gallery.py, then run it with --only {' '.join(missing)}"
    )
    assert set(SHOWN) <= set(figures)


def test_the_page_is_what_the_script_writes():
    text = GALLERY.PAGE.read_text(encoding="utf-8")
    captions = GALLERY.captions_of(text)
    assert list(captions) == SHOWN
    assert all(caption.endswith(".") and len(caption) > 40 for caption in captions.values())
    assert text == GALLERY.page(captions)


def test_every_picture_is_there_and_small():
    sizes = {file.name: file.stat().st_size for file in GALLERY.PICTURES.iterdir()}
    assert set(sizes) == {f"{name}.png" for name in SHOWN}
    assert max(sizes.values()) < GALLERY.MOST_BYTES
    assert sum(sizes.values()) < GALLERY.MOST_BYTES_IN_ALL
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in GALLERY.PICTURES.iterdir())
