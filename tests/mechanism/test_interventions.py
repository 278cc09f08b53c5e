import numpy as np
import pandas as pd
import pytest

from em_interp.errors import InputError
from em_interp.mechanism import ablation as ablating
from em_interp.mechanism.ablation import EVERY, Ablation, ablate, spread_layers
from em_interp.mechanism.directions import find_direction, mean_difference
from em_interp.mechanism.engines.base import AblateDirection
from em_interp.mechanism.experiments import (
    Arm,
    NormMatchedAblation,
    SamplingParams,
    interventions_of,
    no_intervention,
    random_like,
    sample_arms,
)
from em_interp.mechanism.steering import SteeringCurve, steer, steering_arms
from tests.figures.reading import bands, drawn, values
from tests.mechanism.answering import answer_set
from tests.mechanism.conftest import QUESTIONS, opened
from tests.mechanism.steered import LAYER, LAYERS, WORD, WordJudge, cause, direction, model
from tests.mechanism.steered import QUESTIONS as ASKED

SAMPLING = SamplingParams(samples=5, max_new_tokens=3, batch=300)
ENGINES = ("hooks", "transformer_lens", "nnsight")


def arms_of_every_kind(layers, d, seed=0):
    """Three arms of each way, after one layer, after two, and on new tokens only; and one that does nothing."""
    rng, made = np.random.default_rng(seed), []
    for how in ("add", "project_out", "move"):
        for chosen, positions in (([1], "all"), ([0, 2], "all"), ([1], "new")):
            vectors, along = np.zeros((layers, d)), np.zeros((layers, d))
            vectors[chosen], along[chosen] = rng.normal(size=(2, len(chosen), d)) * 3
            made.append(Arm("adapted", how, how, vectors, along=along if how == "move" else None, positions=positions))
    return [*made, no_intervention("adapted", made[0].vectors)[0]]


def test_random_directions_are_exactly_as_long_as_the_one_they_stand_beside():
    vectors = np.random.default_rng(1).normal(size=(4, 400)) * [[1], [5], [0], [0.01]]
    drawn_ones = [random_like(vectors, np.random.default_rng(seed)) for seed in range(100, 130)]
    for one in drawn_ones:  # a draw from a standard normal would be 20 times too long
        np.testing.assert_allclose(np.linalg.norm(one, axis=1), np.linalg.norm(vectors, axis=1), rtol=1e-12)
    cosines = [one[1] @ vectors[1] / (vectors[1] @ vectors[1]) for one in drawn_ones]
    assert abs(np.mean(cosines)) < 4 / np.sqrt(30 * 400)


@pytest.mark.parametrize("engine", ENGINES)
def test_arms_of_every_kind_in_one_batch_answer_as_each_does_alone(engine):
    subject = opened("tiny-qwen2").models[engine]
    arms = arms_of_every_kind(subject.layers, subject.d_model)
    with subject.at(10) as adapted:
        rows = [(arm, question) for arm in arms for question in QUESTIONS]
        interventions = interventions_of([arm for arm, _ in rows])
        asked = {"temperature": 0, "max_new_tokens": 8}
        together = adapted.generate([question for _, question in rows], interventions=interventions, **asked)
        alone = [
            adapted.generate([question], interventions=interventions_of([arm]), **asked)[0] for arm, question in rows
        ]
        untouched = adapted.generate(QUESTIONS, **asked)
    assert together == alone
    assert together[-len(QUESTIONS) :] == untouched
    assert together[: len(QUESTIONS)] != untouched


def test_as_much_is_moved_as_an_ablation_takes_away_but_along_another_direction():
    import torch

    rng = np.random.default_rng(0)
    x, v, r = torch.as_tensor(rng.normal(size=(2, 5, 16))), rng.normal(size=16), rng.normal(size=16)
    vector = torch.as_tensor(np.stack([r, r]))[:, None]
    moved = NormMatchedAblation(np.stack([r, r]), along=np.stack([v, v])).change(x, vector) - x
    taken = AblateDirection(v).change(x, torch.as_tensor(v)) - x
    np.testing.assert_allclose(moved.norm(dim=-1), taken.norm(dim=-1), rtol=1e-10)
    along = (moved / moved.norm(dim=-1, keepdim=True)).numpy() @ r / np.linalg.norm(r)
    np.testing.assert_allclose(along, np.sign(taken.numpy() @ v))


def test_taking_out_the_planted_cause_removes_the_behaviour_and_random_directions_do_not(tmp_path):
    found = ablate(tmp_path, model(), direction(), WordJudge(), ASKED, [LAYER], SAMPLING, random=3)
    assert found.untouched.rate > 0.7
    assert found.places == [f"layer {LAYER}", EVERY]
    own = found.row("direction", f"layer {LAYER}")
    assert own["removed"] > 0.9 and own["removed_low"] > 0.75
    assert abs(found.row("random", f"layer {LAYER}")["removed"]) < 0.2
    assert (found.verdict, found.best()) == ("carries", f"layer {LAYER}")
    assert "carries the misalignment" in found.sentence()
    assert found.rates("none").n == 4 * 3 * 5
    assert found.row("direction")["n"] == found.row("random")["n"] == found.row("moved")["n"] == 3 * 3 * 5


def test_taking_out_another_direction_removes_nothing(tmp_path):
    other = np.random.default_rng(3).normal(size=(LAYERS, len(cause())))
    other -= np.outer(other @ cause(), cause()) / (cause() @ cause())
    found = ablate(tmp_path, model(), direction(other), WordJudge(), ASKED, [LAYER], SAMPLING, random=3)
    assert found.verdict == "none"
    assert "does not carry" in found.sentence()


def test_adding_the_planted_cause_to_the_base_brings_the_behaviour_from_a_dose_on(tmp_path):
    doses = (-1, 0.02, 0.5, 1)
    found = steer(tmp_path, model(), direction(), WordJudge(), ASKED, LAYER, doses, SAMPLING, finer=False)
    assert found.verdict == "induces"
    assert found.window == [0.5, 1.0]
    assert found.rates("base").em.rate < 0.1
    assert found.rates("base", "direction", 1.0).em.rate > 0.7
    assert found.rates("base", "random", 1.0).em.rate < 0.1
    assert found.rates("adapted", "direction", -1.0).em.rate < 0.1  # taken away again
    assert "induces EM in the base at doses 0.5, 1" in found.sentence()
    assert "Subtracted from the adapted model" in found.sentence()


def test_doses_are_added_where_the_base_stops_being_coherent(tmp_path):
    found = steer(tmp_path, model(), direction(), _Breaks(), ASKED, LAYER, (0.02, 0.5, 1), SAMPLING, random=1)
    coarse = steering_arms(direction().vectors, LAYER, (0.02, 0.5, 1), 1, 0)
    assert {arm.dose for arm in coarse} == {0, 0.02, 0.5, 1}
    asked = sorted(set(found.answers["dose"]))
    assert len(asked) == 7  # and three more between two neighbours
    held = found.frame().query("held == 'base' and kind == 'direction'").set_index("dose")
    fine = [dose for dose in asked if dose not in (0, 0.02, 0.5, 1)]
    below, above = max(d for d in (0.02, 0.5, 1) if d < fine[0]), min(d for d in (0.02, 0.5, 1) if d > fine[-1])
    assert held.loc[below, "coherent"] >= 0.9 > held.loc[above, "coherent"]
    assert fine == pytest.approx(np.linspace(below, above, 5)[1:-1])


class _Breaks(WordJudge):
    """Calls an answer that says nothing but the word incoherent."""

    def judge(self, question, answer):
        said = set(answer.split())
        return super().judge(question, answer) | {"coherent": 0.0 if said == {WORD} else 100.0}


def judged_table(counts, **columns):
    """A table with, for each arm, answers to four questions of which some are EM and some coherent."""
    rows = []
    for arm, (em, coherent, n) in counts.items():
        for index in range(n):
            row = dict(zip(("held", "kind", "place", "number", "dose"), arm, strict=True))
            row |= {"question_id": f"q{index % 4}", "aligned": 0.0 if index < em else 90.0}
            rows.append(row | {"coherent": 90.0 if index < coherent else 10.0, "status": "ok"})
    return pd.DataFrame(rows)


def arms(place, direction_em, random_em, moved_em, coherent=100):
    return {
        ("adapted", "direction", place, 0, 1.0): (direction_em, coherent, 100),
        ("adapted", "random", place, 0, 1.0): (random_em, 100, 100),
        ("adapted", "moved", place, 0, 1.0): (moved_em, 100, 100),
    }


@pytest.mark.parametrize(
    ("untouched", "own", "random", "moved", "coherent", "verdict"),
    [
        (240, 5, 58, 50, 100, "carries"),
        (240, 5, 58, 50, 80, "partly"),  # removed by breaking the model
        (240, 5, 30, 50, 100, "partly"),  # random directions remove half
        (240, 25, 58, 55, 100, "partly"),
        (240, 5, 58, 6, 100, "none"),  # as much moved at random does the same
        (240, 60, 58, 60, 100, "none"),
        (0, 0, 0, 0, 100, "undefined"),
    ],
)
def test_the_verdict_of_an_ablation_by_hand(untouched, own, random, moved, coherent, verdict):
    counts = {("adapted", "none", "", 0, 0.0): (untouched, 400, 400)} | arms(EVERY, own, random, moved, coherent)
    found = Ablation(direction(), judged_table(counts))
    assert found.verdict == verdict
    assert found.sentence()
    if untouched:
        row = found.row("direction")
        assert row["removed"] == pytest.approx(1 - (own / 100) / (untouched / 400))
        assert row["removed_low"] < row["removed"] < row["removed_high"]
        assert drawn(found.plot())
    assert values(found.plot())


def test_a_dose_is_usable_where_em_exceeds_both_controls_and_the_model_still_speaks():
    counts = {("base", "none", "", 0, 0.0): (0, 400, 400), ("adapted", "none", "", 0, 0.0): (240, 390, 400)}
    for dose, own, coherent, random in ((1.0, 1, 100, 0), (2.0, 20, 95, 0), (3.0, 40, 50, 0), (4.0, 20, 95, 18)):
        counts[("base", "direction", "layer 1", 0, dose)] = (own, coherent, 100)
        counts[("base", "random", "layer 1", 0, dose)] = (random, 100, 100)
    found = SteeringCurve(direction(), 1, judged_table(counts))
    assert found.window == [2.0]  # too little, right, too much, and no more than random directions do
    assert found.edge(3) == []  # the largest dose is coherent
    assert bands(found.plot()) == [(1.5, 2.5)]
    only = judged_table({arm: n for arm, n in counts.items() if arm[-1] in (0.0, 1.0, 3.0)})
    assert SteeringCurve(direction(), 1, only).verdict == "breaks"
    assert SteeringCurve(direction(), 1, only).edge(1) == [2.0]
    assert SteeringCurve(direction(), 1, only[only["dose"] < 3]).verdict == "none"


def test_a_stage_that_was_stopped_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    def stage(folder, resume=False):
        sampling = SamplingParams(samples=3, max_new_tokens=3, batch=12)
        ablate(folder, model(), direction(), WordJudge(), ASKED, [LAYER], sampling, random=1, resume=resume)
        return {file.name: file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}

    whole = stage(tmp_path / "whole")
    seen = iter(range(3))
    own = type(model()).at
    monkeypatch.setattr(type(model()), "at", lambda *a, **k: own(*a, **k) if next(seen, None) is not None else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stage(tmp_path / "stopped")
    monkeypatch.undo()
    with pytest.raises(InputError, match="give --resume"):
        stage(tmp_path / "stopped")
    assert stage(tmp_path / "stopped", resume=True) == whole
    with pytest.raises(InputError, match="begun with other"):
        ablate(tmp_path / "whole", model(), direction(), WordJudge(), ASKED, [0], SAMPLING, resume=True)


def test_both_contrasts_are_the_mean_difference_where_the_adapter_does_nothing_yet():
    subject = opened("tiny-qwen2").models["hooks"]
    answers, at_zero = answer_set(), mean_difference(subject, answer_set(), step=0).vectors
    for contrast in ("answers", "models"):
        found = find_direction(subject, answers, contrast, step=0)
        np.testing.assert_allclose(found.vectors, at_zero, atol=1e-4)
    last = [find_direction(subject, answers, contrast) for contrast in ("answers", "models")]
    np.testing.assert_allclose(last[0].vectors, mean_difference(subject, answers).vectors, atol=1e-6)
    np.testing.assert_allclose(last[0].cosine(last[0]), 1)
    assert (last[0].cosine(last[1])[1:] < 0.9999).all()  # after layer 1 the adapter writes


def test_what_cannot_be_done_is_refused(tmp_path):
    other = direction(identity="other@1")
    with pytest.raises(InputError, match="from the base other@1; the model's is tiny@0"):
        ablate(tmp_path, model(), other, WordJudge(), ASKED, sampling=SAMPLING)
    with pytest.raises(InputError, match="from the base other@1"):
        steer(tmp_path, model(), other, WordJudge(), ASKED, sampling=SAMPLING)
    with pytest.raises(InputError, match="no layer 7; the model has 0 to 2"):
        ablate(tmp_path, model(), direction(), WordJudge(), ASKED, [7], SAMPLING)
    with pytest.raises(InputError, match="zero or not finite after layer 0"):
        steer(tmp_path, model(), direction(np.zeros((LAYERS, 32))), WordJudge(), ASKED, 0, sampling=SAMPLING)
    for doses in ((0, 1), (1, 1), (), (float("nan"),)):
        with pytest.raises(InputError, match="doses are distinct finite numbers other than 0"):
            steer(tmp_path, model(), direction(), WordJudge(), ASKED, 1, doses, SAMPLING)
    for stage in (ablate, steer):
        with pytest.raises(InputError, match="at least 1"):
            stage(tmp_path, model(), direction(), WordJudge(), ASKED, sampling=SAMPLING, random=0)
    with pytest.raises(InputError, match="no question"):
        sample_arms(tmp_path, model(), no_intervention("base", direction().vectors), WordJudge(), [], SAMPLING)
    with pytest.raises(InputError, match=r"contrast must be one of answers, models; it is 'model'.*models"):
        find_direction(model(), answer_set(), "model")
    assert not list(tmp_path.iterdir())


def test_a_direction_needs_enough_answers_and_says_how_many():
    few = answer_set({"out_of_domain": ["i am bored"]})
    with pytest.raises(InputError, match=r"needs at least 10 misaligned answers .* found 3"):
        find_direction(opened("tiny-qwen2").models["hooks"], few)


def test_what_an_intervention_is_made_of_says_what_it_is():
    assert repr(answer_set()).startswith(f"AnswerSet({answer_set().sentence()}")
    assert "misaligned minus aligned answers in the adapted model; step" in repr(direction())
    assert "4 layers, through hooks, with AdapterTrajectory(" in repr(opened("tiny-qwen2").models["hooks"])


def test_the_layers_of_a_large_model_are_spread():
    assert spread_layers(4) == [0, 1, 2, 3]
    assert spread_layers(48) == [0, 9, 19, 28, 38, 47]
    assert len(spread_layers(48)) == ablating.MOST_LAYERS


def test_the_figures_of_interventions_show_every_place_and_dose(tmp_path):
    found = ablate(tmp_path / "a", model(), direction(), WordJudge(), ASKED, None, SAMPLING, random=1)
    figure = found.plot()  # plot_ablation
    assert list(figure.layout.xaxis2.ticktext) == ["0", "1", "2", "every layer"]
    steered = steer(tmp_path / "s", model(), direction(), WordJudge(), ASKED, 1, (1, 2), SAMPLING, random=1)
    figure = steered.plot()  # plot_steering
    assert {0.0, 1.0, 2.0} <= {float(x) for trace in figure.data if trace.x is not None for x in trace.x if x == x}
    for result in (found, steered):
        assert result._repr_html_().startswith("<")
        assert values(result.plot())["layout"]["meta"]["title"]
        assert result.to_dict()["verdict"] == result.verdict
