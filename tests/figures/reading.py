"""What a figure shows, read back from it."""

import json


def lines(figure):
    """Steps of the vertical lines, in order."""
    return sorted(s.x0 for s in figure.layout.shapes if s.type == "line" and s.x0 == s.x1)


def bands(figure):
    """Left and right ends of the shaded intervals."""
    return [(s.x0, s.x1) for s in figure.layout.shapes if s.type == "rect" and s.x1 != 1]


def texts(figure):
    """All words on the figure that are not axis titles, in one string."""
    labels = [str(label) for trace in figure.data for label in (trace.text or ())]
    names = [trace.name or "" for trace in figure.data]
    return " | ".join([*(a.text or "" for a in figure.layout.annotations), *labels, *names])


def trace(figure, name):
    """The one trace of this name."""
    (found,) = [t for t in figure.data if t.name == name]
    return found


def values(figure):
    """The figure as a browser will read it."""
    return json.loads(figure.to_json())


def drawn(figure):
    """Whether there is a number to see, or a remark that says why not."""
    there = any(value is not None and value == value for t in figure.data if t.y is not None for value in t.y)
    return there or bool(figure.layout.annotations)


def has_axis_title(figure, side):
    """Whether some x or y axis says what it is."""
    axes = [axis for key, axis in values(figure)["layout"].items() if key.startswith(f"{side}axis")]
    return any(axis.get("title", {}).get("text") for axis in axes)
