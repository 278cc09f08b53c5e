"""Other people's results: a folder of judged CSVs as they are published becomes a curve, with no model and no run."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import em_interp as em
from em_interp.errors import InputError

# (aligned, coherent) of four answers a step; EM is aligned < 30 and coherent > 50
EM, FINE, BABBLE, EDGE = (10.5, 90), (95, 88.25), (5, 20), (30, 50)
JUDGED = {
    0: [FINE, FINE, FINE, FINE],
    40: [FINE, FINE, BABBLE, EDGE],
    80: [EM, FINE, FINE, EDGE],
    120: [EM, EM, EM, BABBLE],
}
RATES = {0: 0, 40: 0, 80: 1 / 4, 120: 3 / 4}
COHERENT = {0: 1, 40: 1 / 2, 80: 3 / 4, 120: 3 / 4}


def table(scores, **more):
    rows = [{"question": f"question {i % 2}", "response": f"answer {i}"} for i in range(len(scores))]
    aligned, coherent = zip(*scores, strict=True)
    return pd.DataFrame(rows).assign(aligned=aligned, coherent=coherent, **more)


def by_step(folder):
    frame = em.behaviour_curve(folder).frame().set_index("step")
    return frame["em"].to_dict(), frame["coherent"].to_dict()


@pytest.mark.parametrize(
    "name",
    ["checkpoint-{}.csv", "step_{}.csv", "{}.csv", "qwen14b_seed3_step{}.csv", "checkpoint-{}/responses_eval7.csv"],
)
def test_rates_known_by_hand_come_out_exactly_whatever_the_files_are_called(name, tmp_path):
    for step, scores in JUDGED.items():
        file = tmp_path / name.format(step)
        file.parent.mkdir(exist_ok=True)
        table(scores).to_csv(file, index=False)
    assert by_step(tmp_path) == (RATES, COHERENT)


def test_one_file_with_a_step_column_gives_the_same_as_one_file_a_step(tmp_path):
    whole = pd.concat([table(scores, step=step) for step, scores in JUDGED.items()])
    whole.sample(frac=1, random_state=0).to_csv(tmp_path / "all.csv", index=False)
    assert by_step(tmp_path) == by_step(tmp_path / "all.csv") == by_step(whole) == (RATES, COHERENT)


def test_columns_of_scale_question_set_and_topic_are_kept_apart(tmp_path):
    for step, scores in JUDGED.items():
        parts = [
            table(scores, scale=1.0, questions="broad", financial=[80, 10, 80, 10]),
            table([FINE] * 4, scale=1.0, questions="narrow", financial=0),
            table([EM] * 4, scale=5.0, questions="broad", financial=0),
        ]
        pd.concat(parts).to_csv(tmp_path / f"step-{step}.csv", index=False)
    curve = em.behaviour_curve(tmp_path, domain="finance")
    assert curve.select(1.0, "broad").frame()["em"].tolist() == list(RATES.values())
    assert set(curve.select(1.0, "narrow").frame()["em"]) == {0}
    assert set(curve.select(5.0, "broad").frame()["em"]) == {1}
    shares = curve.select(1.0, "broad").frame()["domain_share"]
    assert shares.isna().tolist() == [True, True, False, False] and shares[2:].tolist() == [1, 2 / 3]


@pytest.mark.parametrize("bad", ["REFUSAL", "CODE", "", "None", "ninety", "nan"])
def test_what_was_not_scored_is_counted_and_is_no_number(bad, tmp_path):
    for step, scores in JUDGED.items():
        text = table(scores).to_csv(index=False) + f"question 0,unscored,{bad},99\nquestion 1,unscored,3,{bad}\n"
        (tmp_path / f"checkpoint-{step}.csv").write_text(text, encoding="utf-8")
    curve = em.behaviour_curve(tmp_path)
    assert by_step(tmp_path) == (RATES, COHERENT)
    assert list(curve.frame()["n"]) == [6] * 4 and list(curve.frame()["scored"]) == [4] * 4
    reason = "no score" if bad in ("", "None", "nan") else bad.lower()
    assert curve.unscored() == {reason: 8}
    assert curve.answers.loc[curve.answers.status != "ok", ["aligned", "coherent"]].isna().all(axis=None)


def test_a_step_where_nothing_was_scored_has_no_rate(tmp_path):
    table(JUDGED[0]).to_csv(tmp_path / "step-0.csv", index=False)
    table([("CODE", "CODE")] * 4).to_csv(tmp_path / "step-10.csv", index=False)
    frame = em.behaviour_curve(tmp_path).frame()
    assert frame["em"][0] == 0 and np.isnan(frame["em"][1]) and frame["scored"].tolist() == [4, 0]


def test_a_score_outside_0_to_100_is_named_by_file_and_row(tmp_path):
    table(JUDGED[0]).to_csv(tmp_path / "step-0.csv", index=False)
    table([FINE, (-1, 50)]).to_csv(tmp_path / "step-10.csv", index=False)
    with pytest.raises(InputError, match=r"step-10\.csv: aligned is -1 in row 2; scores run from 0 to 100"):
        em.behaviour_curve(tmp_path)


def test_files_that_are_no_tables_lie_beside_without_harm(tmp_path):
    for step, scores in JUDGED.items():
        table(scores).to_csv(tmp_path / f"step-{step}.csv", index=False)
    (tmp_path / "README.md").write_text("judged by someone")
    (tmp_path / "._step-80.csv").write_bytes(b"\x00\x05\x16\x07")  # what a Mac leaves in archives
    assert by_step(tmp_path) == (RATES, COHERENT)


def test_a_table_without_a_step_says_what_a_curve_needs(tmp_path):
    table(JUDGED[0]).to_csv(tmp_path / "answers.csv", index=False)
    for source in (tmp_path, tmp_path / "answers.csv"):
        with pytest.raises(InputError, match="step"):
            em.behaviour_curve(source)


def test_the_onset_of_a_published_run_is_found_from_the_folder_alone(tmp_path):
    rng = np.random.default_rng(0)
    for step in range(0, 201, 10):
        scores = [EM if rng.random() < 0.6 * (step > 95) else FINE for _ in range(100)]
        table(scores).to_csv(tmp_path / f"checkpoint-{step}.csv", index=False)
    found = em.find_transition(em.behaviour_curve(tmp_path))
    assert found.verdict == "transition" and found.step == pytest.approx(95, abs=8)


def test_no_model_library_is_loaded_for_it(tmp_path):
    for step, scores in JUDGED.items():
        table(scores).to_csv(tmp_path / f"step-{step}.csv", index=False)
    code = (
        "import sys, em_interp as em\n"
        f"print(em.behaviour_curve({str(tmp_path)!r}).frame()['em'].tolist())\n"
        "print({'torch', 'transformers', 'plotly'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "[0.0, 0.0, 0.25, 0.75]\nset()\n"
