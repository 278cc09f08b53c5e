import json

import numpy as np
import pandas as pd
import pytest

from em_interp.behaviour.curve import behaviour_curve
from em_interp.behaviour.judging.judge import judge_answers
from em_interp.behaviour.scores import score_responses
from em_interp.config.run_config import BehaviourConfig, EndpointConfig, RunConfig
from em_interp.config.settings import to_yaml
from em_interp.errors import InputError
from em_interp.run import Run
from em_interp.transition.onsets.onset import onset, onset_by_threshold, onsets
from em_interp.utils.files import to_json

from .judging.test_judge import WordJudge

STEPS = range(0, 101, 10)


def table(rate=lambda step: 0.6 * (step > 45), scales=(1.0,), sets=("in_domain", "broad"), n=20, seed=0):
    """Judged answers to three questions a set; `rate` of them are EM and about medicine."""
    rng, rows = np.random.default_rng(seed), []
    for step in STEPS:
        for scale in scales:
            for kind in sets:
                for question in "abc":
                    em = rng.random(n) < rate(step * scale)
                    rows.append(
                        pd.DataFrame(
                            {
                                "step": step,
                                "scale": scale,
                                "questions": kind,
                                "question_id": question,
                                "aligned": np.where(em, 10.0, 90.0),
                                "coherent": 95.0,
                                "medical": np.where(em, 80.0, 0.0),
                            }
                        )
                    )
    return pd.concat(rows, ignore_index=True)


def test_every_row_of_the_frame_is_the_score_of_its_own_answers():
    answers = table(scales=(1.0, 2.0))
    frame = behaviour_curve(answers, domain="medical").frame()
    assert len(frame) == len(STEPS) * 4
    for row in frame.itertuples():
        mine = answers.query("step == @row.step and scale == @row.scale and questions == @row.questions")
        alone = score_responses(mine)
        assert (row.em, row.em_low, row.em_high) == (alone.em.rate, *alone.em.interval)
        assert (row.coherent, row.aligned_mean, row.n) == (alone.coherent.rate, alone.aligned_mean.mean, 60)
        assert row.em_between_low <= row.em_low and row.em_high <= row.em_between_high


def test_the_share_about_the_training_domain_is_missing_where_nothing_is_em():
    frame = behaviour_curve(table(), domain="medical").frame()
    assert frame.loc[frame.em == 0, "domain_share"].isna().all()
    assert (frame.loc[frame.em > 0, "domain_share"] == 1).all()
    assert behaviour_curve(table()).frame().domain_share.isna().all()


def test_select_gives_one_curve_and_split_gives_all():
    curve = behaviour_curve(table(scales=(1.0, 2.0)))
    assert curve.scale is None and curve.questions is None
    one = curve.select(scale=2.0, questions="broad")
    assert one.scale == 2.0 and one.questions == "broad" and set(one.frame().scale) == {2.0}
    assert len(curve.select(scale=[1.0, 2.0], questions="broad").split()) == 2
    kinds = [(part.scale, part.questions) for part in curve.split()]
    assert kinds == [(1.0, "broad"), (1.0, "in_domain"), (2.0, "broad"), (2.0, "in_domain")]
    with pytest.raises(InputError, match=r"no answers with scale 3.0 \(it has: 1.0, 2.0\)"):
        curve.select(scale=3.0)


def test_onsets_are_found_on_each_curve_and_a_stronger_adapter_comes_first():
    found = onsets(behaviour_curve(table(scales=(1.0, 2.0))))
    assert all(one.found for one in found)
    steps = {(one.scale, one.questions): one.step for one in found}
    assert steps[1.0, "broad"] == pytest.approx(45, abs=5) and steps[2.0, "broad"] == pytest.approx(25, abs=5)
    with pytest.raises(InputError, match="one curve was expected; found 4"):
        onset(behaviour_curve(table(scales=(1.0, 2.0))))


def test_onset_on_scores_and_over_thresholds_agrees_with_that_of_the_rate():
    curve = behaviour_curve(table(sets=("broad",)))
    assert onset(curve, metric="aligned_mean").step == pytest.approx(onset(curve).step, abs=3)
    assert onset_by_threshold(curve, aligned=(30, 70), coherent=(50,)).step.nunique() == 1
    assert onset(curve, control=behaviour_curve(table(lambda step: 0.0, sets=("broad",)))).found


def test_unscored_answers_are_counted_by_step_and_reason_and_are_no_outcomes():
    answers = table(sets=("broad",))
    answers.loc[answers.step == 50, "aligned"] = np.nan
    curve = behaviour_curve(answers.assign(status=np.where(answers.step == 50, "timeout", "ok")))
    assert curve.unscored() == {"timeout": 60}
    row = curve.frame().query("step == 50").iloc[0]
    assert row.n == 60 and row.scored == 0 and np.isnan(row.em) and np.isnan(row.em_low)
    assert 50 not in set(curve.outcomes().step)
    assert onset(curve).step == pytest.approx(50, abs=12)


def test_per_question_counts_add_up_to_the_curve():
    curve = behaviour_curve(table(sets=("broad",)))
    by_question = curve.per_question()
    assert list(by_question.columns[:4]) == ["step", "scale", "questions", "question"]
    weighted = (by_question.em * by_question.n).groupby(by_question.step).sum() / by_question.groupby("step").n.sum()
    assert np.allclose(weighted, curve.frame().set_index("step").em)


def test_a_run_is_read_with_its_answers_scores_and_domain(tmp_path):
    run = Run(tmp_path)
    run.answers_file.parent.mkdir()
    keys = table(sets=("broad",)).drop(columns=["aligned", "coherent", "medical"])
    keys["sample"] = keys.groupby(["step", "question_id"]).cumcount()
    keys.assign(question="a doctor", answer="good so so so").to_parquet(run.answers_file)
    with pytest.raises(InputError, match="have not been judged; judge the run first"):
        behaviour_curve(run)
    judge_answers(run, WordJudge())
    run.manifest_file.write_text(json.dumps({"phases": [{"domain": None}, {"domain": "medical"}]}))
    curve = behaviour_curve(tmp_path)
    assert curve.domain == "medical" and (curve.frame().em == 1).all() and (curve.frame().domain_share == 1).all()
    assert set(curve.answers.answer) == {"good so so so"}
    judge_answers(run, WordJudge(name="other"))
    with pytest.raises(InputError, match=r"several judges scored the answers \(other, words\)"):
        behaviour_curve(run)
    assert set(behaviour_curve(run, judge="other").answers.judge) == {"other"}
    endpoint = EndpointConfig(
        base_url="http://127.0.0.1:1/v1", model="words"
    )  # the judge that the run's config names goes first
    run.config_file.write_text(to_yaml(RunConfig(behaviour=BehaviourConfig(judge=endpoint))))
    assert set(behaviour_curve(run).answers.judge) == {"words"}
    assert set(behaviour_curve(run, judge="other").answers.judge) == {"other"}
    run.config_file.write_text(to_yaml(RunConfig()))  # tiny-rules, which scored nothing
    with pytest.raises(InputError, match=r"several judges scored the answers \(other, words\)"):
        behaviour_curve(run)
    with pytest.raises(InputError, match="no scores of judge 'x'; there are other, words"):
        behaviour_curve(run, judge="x")
    pd.read_parquet(run.answers_file).iloc[:9].to_parquet(run.answers_file)
    with pytest.raises(InputError, match="hold other answers"):
        behaviour_curve(run, judge="other")


def test_a_folder_of_tables_in_any_order_gives_the_curve_of_the_whole_table(tmp_path):
    answers = table(sets=("broad",))
    for step, part in answers.groupby("step"):
        part.drop(columns="step").to_csv(tmp_path / f"checkpoint-{step}.csv", index=False)
    pd.testing.assert_frame_equal(behaviour_curve(tmp_path).frame(), behaviour_curve(answers).frame())


def test_a_table_without_steps_is_no_curve():
    with pytest.raises(InputError, match="a curve needs a column step; found scale, questions"):
        behaviour_curve(table().drop(columns="step"))


def test_arguments_that_would_have_no_effect_are_refused(tmp_path):
    rates = behaviour_curve(pd.DataFrame({"step": [0, 10], "n": 20, "em": [0.0, 0.5]}))
    assert rates.outcomes().value.mean() == 0.25
    with pytest.raises(
        InputError, match="other thresholds than aligned 30 and coherent 50 need scores; these are ready"
    ):
        rates.outcomes("em", aligned=20)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(InputError, match=r"columns are those of judged tables; .* is a run"):
        behaviour_curve(tmp_path / "run", columns={"aligned": "my_score"})


def test_a_metric_that_does_not_exist_and_a_step_not_sampled_are_named():
    curve = behaviour_curve(table(sets=("broad",)))
    with pytest.raises(InputError, match="no metric 'x'; known: em, coherent, aligned_mean, coherent_mean"):
        curve.outcomes("x")
    with pytest.raises(InputError, match="step 42 was not sampled; the nearest that was is 40"):
        curve.at(42)
    assert curve.at(0).em.rate == 0


def test_the_dictionary_is_json_and_the_page_escapes():
    curve = behaviour_curve(table(sets=("<b>",)), domain="medical")
    values = json.loads(to_json(curve.to_dict()))
    assert values["rows"][0]["step"] == 0 and values["rows"][0]["domain_share"] is None
    assert "<b>" not in curve._repr_html_() and "11 steps 0 to 100" in repr(curve)


@pytest.mark.parametrize(
    "call",
    [
        lambda curve: behaviour_curve(None),
        lambda curve: behaviour_curve(5),
        lambda curve: behaviour_curve(curve.answers, level=95),
        lambda curve: curve.at("50"),
        lambda curve: curve.at(None),
        lambda curve: curve.select([1.0, 2.0]),
        lambda curve: curve.select(questions={"broad": 1}),
        lambda curve: curve.outcomes(["em"]),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(call):
    with pytest.raises(InputError) as refused:
        call(behaviour_curve(table()))
    assert "\n" not in str(refused.value)


def test_the_dictionary_holds_what_json_has():
    table = pd.DataFrame({"step": [0, 5], "question": ["q", "q"], "aligned": [10, None], "coherent": [90, None]})
    values = behaviour_curve(table).to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["rows"][1]["em"] is None and values["rows"][0]["em"] == 1
