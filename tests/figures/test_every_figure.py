from pathlib import Path

import pytest

import em_interp as em
from em_interp.transition.result import Transition
from tests.figures.reading import drawn, has_axis_title


def calls(found):
    """How each figure is asked for, by its name; those that need what the run does not have are left out."""
    draw, path = em.figures, found.trajectory
    by_signal = {t.signal: t for t in reversed(found.transitions)}
    rotations = [t for t in found.transitions if t.signal == "rotation" and t.of == "B"]
    figures = {
        "gradient_norm": lambda: draw.gradient_norm(by_signal["gradient_norm"]),
        "local_cosine": lambda: draw.local_cosine(path, transition=rotations[0]),
        "lock_in": lambda: draw.lock_in(by_signal["lock_in"]),
        "norm_onset": lambda: draw.norm_onset(by_signal["norm_onset"]),
        "norms": lambda: draw.norms(path),
        "pca": lambda: draw.pca(path, transitions=found.transitions),
        "rotation": lambda: draw.rotation(rotations),
        "timeline": lambda: draw.timeline(found.transitions, path),
        "training_log": lambda: draw.training_log(path, found.transitions),
        "trajectory": lambda: draw.trajectory(path),
        "transition": lambda: draw.transition(rotations[0]),
        "turning_angle": lambda: draw.turning_angle(path, transitions=found.transitions),
    }
    if found.curve is not None:
        figures |= {
            "alignment": lambda: draw.alignment(found.alignment, path, found.transitions),
            "behaviour": lambda: draw.behaviour(found.curve, found.control, found.onsets),
            "onset": lambda: draw.onset(found.onsets[0]),
            "scores": lambda: draw.scores(found.curve.at(int(found.curve.steps[-1]))),
        }
    return figures


def test_every_figure_is_tried_somewhere():
    tests = "".join(file.read_text(encoding="utf-8") for file in Path(__file__).parents[1].rglob("test_*.py"))
    for name in em.figures.__all__:
        assert name in tests, f"no test draws {name}"


@pytest.mark.parametrize("kind", ["organism", "control", "bare"])
def test_every_figure_can_be_drawn_and_sent_to_a_browser(kind, request):
    for name, call in calls(request.getfixturevalue(kind)).items():
        figure = call()
        assert drawn(figure), name
        for side in "x" if name == "timeline" else "xy":  # lanes have no y
            assert has_axis_title(figure, side), f"{name} does not say what its {side} is"


def test_the_results_own_plots_are_these_figures(organism):
    curve = organism.curve
    for result in (*organism.transitions, organism.trajectory, organism.alignment, curve, curve.at(0)):
        assert drawn(result.plot())
        assert result._repr_html_().startswith("<")


def test_a_result_shown_in_a_notebook_is_escaped(organism):
    nasty = Transition("rotation", "none", "<script>alert(1)</script>")
    assert "<script>" not in nasty._repr_html_()
    answers = organism.curve.answers.assign(question_id="<img src=x onerror=alert(1)>")
    assert "<img" not in em.score_responses(answers)._repr_html_()


def test_names_of_the_data_cannot_pass_for_markup(organism):
    hostile = "<b onclick=alert(1)>bold</b>"
    curve = em.behaviour_curve(organism.curve.answers.assign(questions=hostile, question_id=hostile))
    for figure in (curve.plot(), curve.at(0).plot(), em.find_transition(curve.select(1.0)).plot()):
        figure.update_layout(meta=None).update_traces(legendgroup=None)  # what is not shown
        assert "<b onclick" not in figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")
