"""The gallery shows every figure there is, in small pictures, in the words of its script."""

import inspect
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def the_script():
    spec = spec_from_file_location("gallery", ROOT / "benchmarks" / "gallery.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GALLERY = the_script()
SHOWN = [name for name, exhibit in GALLERY.EXHIBITS.items() if exhibit.draw is not None]


def figure_functions():
    """Names of the functions of em_interp.figures that draw a figure."""
    files = [
        file
        for file in (ROOT / "em_interp" / "figures").rglob("[a-z]*.py")
        if file.stem not in ("style", "export_files")
    ]
    names = []
    for file in files:
        module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
        for name, found in inspect.getmembers(module, inspect.isfunction):
            if found.__module__ == module.__name__ and found.__annotations__.get("return") == "go.Figure":
                names.append(name.removeprefix("plot_"))
    return [name for name in names if not name.startswith("_")]


def test_every_figure_is_in_the_gallery():
    figures = figure_functions()
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
    assert max(sizes.values()) < GALLERY.MAX_BYTES
    assert sum(sizes.values()) < GALLERY.MAX_BYTES_IN_ALL
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in GALLERY.PICTURES.iterdir())
