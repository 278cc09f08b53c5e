"""Self-contained HTML pages from the templates: everything a model or a file says is escaped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go


def render(template: str, **contents: Any) -> str:
    """The page of `templates/<template>.html.j2`, with the code that draws its figures. A name missing is an error."""
    import jinja2
    from plotly.offline import get_plotlyjs

    from em_interp.figures import words

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("em_interp"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("name_of", "result_of", "offset_of", "said", "p_value", "number"):
        environment.filters[name] = getattr(words, name)
    return environment.get_template(f"{template}.html.j2").render(contents, plotly_js=get_plotlyjs())


def embedded(figure: go.Figure) -> dict[str, Any]:
    """A figure for a template: title and subtitle in words, the rest as JSON that cannot end a script element."""
    from em_interp.figures.template import without_title

    said, bare = figure.layout.meta, without_title(figure)
    return {**said, "json": bare.to_json().replace("<", "\\u003c")}  # plotly leaves "<" in where orjson is installed
