"""What mkdocs does beyond its own: README.md is the first page, and each notebook is a page with its outputs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import notebook_pages

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PLOTLY_JS = "assets/plotly.min.js"
INCLUDED = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md"}  # pages that are files of the root


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put a page for each notebook under "Notebooks"."""
    pages = [f"notebooks/{source.stem}.md" for source in notebook_pages.sources()]
    for entry in config.nav or ():
        if "Notebooks" in entry:
            entry["Notebooks"] = ["notebooks/index.md", *pages]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the root, the notebooks' pages and plotly's script to the files under docs/."""
    for page, source in INCLUDED.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=within_docs(text)))
    execute = config.extra["notebooks"] == "executed"
    for stem, page in notebook_pages.pages(execute).items():
        files.append(File.generated(config, f"notebooks/{stem}.md", content=page.markdown))
    if execute:
        from plotly.offline import get_plotlyjs

        files.append(File.generated(config, PLOTLY_JS, content=get_plotlyjs()))
    return files


def within_docs(text: str) -> str:
    """The text of a file of the root as a page: links into docs/ shortened, links to other files left as plain text."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)", _link, text)


def _link(match: re.Match[str]) -> str:
    words, target = match[1], match[2]
    inside = (ROOT / "docs" / target).exists() or target in INCLUDED or target.startswith("notebooks/")
    return match[0] if inside else words


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the outputs of a notebook's cells where its page has their placeholders."""
    folder, _, name = page.file.src_uri.rpartition("/")
    if folder != "notebooks" or name == "index.md" or config.extra["notebooks"] != "executed":
        return html
    outputs = notebook_pages.pages(execute=True)[name.removesuffix(".md")].outputs
    script = f'<script src="../{PLOTLY_JS}"></script>' if any("Plotly." in output for output in outputs) else ""
    for number, output in enumerate(outputs):
        html = html.replace(notebook_pages.placeholder(number), output)
    return script + html
