from pathlib import Path

import numpy as np
import pytest

import em_interp as em
from em_interp.errors import InputError
from em_interp.transition.result import Transition
from tests.figures.reading import drawn, texts, values


def calls(found):
    """How each figure is asked for, by its name; those that need what the run does not have are left out."""
    draw, path = em.figures, found.trajectory
    by_signal = {t.signal: t for t in reversed(found.transitions)}
    rotations = [t for t in found.transitions if t.signal == "rotation" and t.of == "B"]
    figures = {
        "gradient_norm": lambda: draw.gradient_norm(by_signal["gradient_norm"]),
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
        layout = values(figure)["layout"]
        for side in "x" if name == "timeline" else "xy":  # lanes have no y
            axes = [axis for key, axis in layout.items() if key.startswith(f"{side}axis")]
            assert any(axis.get("title", {}).get("text") for axis in axes), f"{name} does not say what its {side} is"


def test_a_figure_without_its_title_is_as_much_lower_and_has_the_same_panels(organism):
    from em_interp.figures.style import without_title

    whole = em.figures.norms(organism.trajectory)
    bare = without_title(whole)
    assert bare.layout.title.text is None
    assert whole.layout.title.text == "<b>Size of the adapter</b>"
    panels = [figure.layout.height - figure.layout.margin.t for figure in (whole, bare)]
    assert panels[0] == panels[1]
    assert bare.layout.height < whole.layout.height


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


def test_a_signal_without_a_figure_is_refused():
    with pytest.raises(InputError, match="no figure of the signal 'hum'"):
        em.figures.transition(Transition("hum", "none", ""))


def test_rotations_of_different_parts_are_not_drawn_into_one_figure(organism):
    turns = [t for t in organism.transitions if t.signal == "rotation"]
    with pytest.raises(InputError, match="rotations of one part"):
        em.figures.rotation(turns)


def test_a_transition_read_from_a_file_has_no_evidence_and_says_what_it_can(organism):
    for transition in (*organism.transitions, *organism.onsets):
        kept = Transition.from_dict(transition.to_dict())
        if kept.signal == "lock_in":
            continue  # a description of a curve, which the file does not hold
        assert kept.reason[:20] in texts(kept.plot()).replace("<br>", " ").replace("&#x27;", "'"), kept.signal


def test_names_of_the_data_cannot_pass_for_markup(organism):
    hostile = "<b onclick=alert(1)>bold</b>"
    curve = em.behaviour_curve(organism.curve.answers.assign(questions=hostile, question_id=hostile))
    for figure in (curve.plot(), curve.at(0).plot(), em.find_transition(curve.select(1.0)).plot()):
        figure.update_layout(meta=None).update_traces(legendgroup=None)  # what is not shown
        assert "<b onclick" not in figure.to_json().replace("\\u003c", "<").replace("\\u003e", ">")


def test_a_step_without_a_scored_answer_is_a_gap(organism):
    answers = organism.curve.answers.copy()
    lost = answers["step"] == 160
    answers.loc[lost, ["aligned", "coherent"]] = np.nan
    answers.loc[lost, "status"] = "unparsed"
    figure = em.behaviour_curve(answers).plot()
    line = next(t for t in figure.data if t.name == "out of domain")
    assert np.isnan(line.y[list(line.x).index(160)])
    assert np.isfinite(line.y[list(line.x).index(176)])
    band = next(t for t in figure.data if t.name == "interval")
    assert 160 not in band.x
    assert 176 in band.x
    assert drawn(em.behaviour_curve(answers[lost]).at(160).plot())
