import numpy as np
import pandas as pd

from em_interp.figures.mechanism.interventions import plot_ablation, plot_patching, plot_steering
from em_interp.transition.result import Transition
from tests.figures.reading import bands, trace, values


def rates(em, coherent=0.95):
    ends = {"em": em, "em_low": em - 0.02, "em_high": em + 0.02}
    return ends | {"coherent": coherent, "coherent_low": coherent - 0.02, "coherent_high": coherent + 0.02}


def test_ablation_shows_the_direction_beside_both_controls_and_no_intervention():
    rows = [{"kind": "none", "layers": "", **rates(0.4)}]
    em = {"direction": 0.1, "random": 0.38, "norm_matched": 0.35}
    rows += [{"kind": kind, "layers": layers, **rates(em[kind])} for kind in em for layers in ("layer 0", "all")]
    figure = plot_ablation(pd.DataFrame(rows))
    shown = {t.name: t.y.tolist() for t in figure.data if t.yaxis == "y"}
    assert shown["the direction ablated"] == [10, 10] and shown["random directions ablated"] == [38, 38]
    assert values(figure)["layout"]["xaxis2"]["ticktext"] == ["0", "all"]
    (band,) = [s for s in figure.layout.shapes if s.type == "rect" and s.yref == "y"]
    np.testing.assert_allclose((band.y0, band.y1), (38, 42))


def test_steering_shades_the_usable_coefficients_to_half_way_to_their_neighbours():
    rows = []
    for model in ("base", "adapted"):
        for coefficient in (0.0, 1.0, 2.0, 4.0):
            kind = {"kind": "none"} if coefficient == 0 else {"kind": "direction"}
            own = {"model": model, "coefficient": coefficient, **rates(0.1 * coefficient)}
            usable = model == "base" and coefficient == 2
            rows.append({**own, **kind, "usable": usable, "em_min": np.nan, "em_max": np.nan})
            if coefficient:
                rows.append({**own, "kind": "random", "usable": False, "em_min": 0.0, "em_max": 0.05})
    figure = plot_steering(pd.DataFrame(rows), layer=2)
    assert bands(figure) == [(1.5, 3.0)]
    assert trace_of(figure, "EM", "x").y.tolist() == [0, 10, 20, 40]


def trace_of(figure, name, axis):
    """The line of this name in one panel, not its band."""
    (found,) = [t for t in figure.data if t.name == name and t.xaxis == axis and t.mode == "lines+markers"]
    return found


def test_patching_shows_which_component_suffices():
    """EM follows the direction whatever the norm."""
    steps = [10, 20, 30]
    rows = [
        {"row": row, "column": column, "norm": column / 10, "sufficient": row == 30, **rates(row / 100)}
        for row in steps
        for column in steps
    ]
    first = Transition("onset", "transition", "the first sufficient step", step=30.0, interval=(20.0, 30.0))
    figure = plot_patching(pd.DataFrame(rows), first_steps=[first])
    np.testing.assert_allclose(trace(figure, "EM rate").z, [[10] * 3, [20] * 3, [30] * 3])
    assert trace_of(figure, "every direction, final norm", "x3").y.tolist() == [10, 20, 30]
    assert trace_of(figure, "final direction, every norm", "x3").y.tolist() == [30, 30, 30]
    diamond = trace(figure, "the first sufficient step")
    assert (diamond.x, diamond.y) == ((30,), (30,))
