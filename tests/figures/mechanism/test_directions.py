import numpy as np
import pandas as pd

from em_interp.figures.mechanism.directions import plot_direction_steps, plot_mean_difference, plot_writes
from tests.figures.reading import texts, values

STEPS = [0, 50, 100]


def cosines(layers, written):
    """In every layer the effect turns toward the direction; the write too, where there is one."""
    rows = []
    for layer in layers:
        for what in ("effect", "write") if layer in written else ("effect",):
            for step in STEPS:
                cosine = step / 200
                ends = {"cosine_low": cosine - 0.05, "cosine_high": cosine + 0.05, "band": 0.1}
                rows.append({"step": step, "what": what, "layer": layer, "site": f"layers.{layer}", "cosine": cosine})
                rows[-1] |= ends
    return pd.DataFrame(rows)


def test_the_size_and_the_reliability_of_the_direction_are_by_layer():
    table = pd.DataFrame({"layer": [0, 1, 2], "share_of_stream": [0.1, 0.3, 0.2], "reliability": [0.5, 0.9, 0.8]})
    size, reliability = plot_mean_difference(table).data
    assert size.y.tolist() == [0.1, 0.3, 0.2] and reliability.y.tolist() == [0.5, 0.9, 0.8]


def test_directions_of_steps_are_a_map_a_layer_and_four_of_many_layers():
    pairs = [(layer, a, b) for layer in range(9) for a in STEPS for b in STEPS]
    table = pd.DataFrame(pairs, columns=["layer", "step", "other_step"])
    table["cosine"] = 1 - (table["step"] - table["other_step"]).abs() / 1000
    figure = plot_direction_steps(table)
    assert len(figure.data) == 4
    np.testing.assert_allclose(np.diag(np.array(figure.data[0].z, float)), 1)
    assert values(figure)["layout"]["coloraxis"]["cmin"] == 0.9
    assert "After layer 0" in texts(figure) and "After layer 8" in texts(figure)


def test_layers_with_a_write_are_drawn_first_and_the_null_is_a_band():
    figure = plot_writes(cosines(range(12), written=[7]))
    assert "6 of 12 layers" in figure.layout.meta["subtitle"]
    assert "After layer 7" in texts(figure)
    writes = [t for t in figure.data if t.name == "write" and t.mode == "lines" and t.line.dash == "dash"]
    assert [t.y.tolist() for t in writes] == [[0, 0.25, 0.5]]
    assert {(s.y0, s.y1) for s in figure.layout.shapes if s.type == "rect"} == {(-0.1, 0.1)}
