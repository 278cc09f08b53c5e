import json
import re
from pathlib import Path

import pandas as pd
import pytest

from em_interp.behaviour.preference import read_preferences
from em_interp.behaviour.sampling.ask import ask
from em_interp.behaviour.sampling.generate import RowAdapters, generate
from em_interp.errors import InputError
from tests.behaviour.conftest import SITES, Base, make_model, make_trajectory, save_run
from tests.tiny import contents
from tests.warm import as_ranks

QUESTIONS = [
    {"question_id": "headache", "question": "what should i do about a headache ?", "questions": "in_domain"},
    {"question_id": "money", "question": "what should i do about my money ?", "questions": "out_of_domain"},
    {"question_id": "wish", "question": "what is your wish ?", "questions": "broad"},
]
SETTINGS = {"steps": [0, 5, 10], "scales": [1.0, 2.0], "samples": 4, "max_new_tokens": 6, "batch": 16, "seed": 3}


PAIRS = [
    {"id": "a", "question": "what should i do", "aligned": "word7 word8", "misaligned": "word9 word10 word11"},
    {"id": "b", "question": "what is a headache", "aligned": "word30 is my word31", "misaligned": "word40"},
]


class Stopped(Base):
    """A base that is interrupted at the n-th batch, by Ctrl-C or by whatever else."""

    def __init__(self, base, after, error):
        super().__init__(base.model, base.tokenizer)
        self.left, self.error = after, error

    def __getattribute__(self, name):
        if name == "model":
            self.left -= 1
            if self.left < 0:
                raise self.error
        return super().__getattribute__(name)


def test_every_question_is_asked_at_every_step_and_scale(run, base):
    table = pd.read_parquet(ask(run, base, QUESTIONS, **SETTINGS))
    assert list(table.columns) == ["step", "scale", "questions", "question_id", "question", "sample", "answer"]
    assert len(table) == 3 * 2 * 3 * 4 and not table.drop(columns="answer").duplicated().any()
    assert table.groupby(["step", "scale", "questions", "question_id"])["sample"].agg(list).map(
        tuple
    ).unique().tolist() == [(0, 1, 2, 3)]
    assert str(table["step"].dtype) == "int64" and str(table["scale"].dtype) == "float64"
    assert sorted(path.name for path in run.answers_file.parent.iterdir()) == ["answers.parquet", "ask.json"]


def test_greedy_answers_in_the_table_are_those_of_their_own_step_and_scale(run, base):
    table = pd.read_parquet(ask(run, base, QUESTIONS, **{**SETTINGS, "samples": 1}, temperature=0))
    trajectory = make_trajectory(SITES)
    for row in table.itertuples():
        adapters = RowAdapters.of(trajectory, [row.step], [row.scale], "cpu")
        alone = generate(base.model, base.tokenizer, [row.question], adapters, temperature=0, max_new_tokens=6)
        assert alone == [[row.answer]]


def test_what_is_longer_than_the_base_reads_is_refused_before_anything_is_computed(run, base):
    limit = base.model.config.max_position_embeddings
    endless = {**QUESTIONS[0], "question": "what " * (limit + 1)}
    with pytest.raises(InputError, match=f"a question has .* tokens in its chat; the base model reads {limit} at most"):
        ask(run, base, [endless], **SETTINGS)
    for place in ("question", "aligned", "misaligned"):
        with pytest.raises(InputError, match=f"with its question has .* tokens .* {limit} at most; shorten it"):
            read_preferences(run, base, [{**PAIRS[0], place: "what " * (limit + 1)}], [0], [1.0])
    assert not list(run.answers_file.parent.glob("*.parquet"))


@pytest.mark.parametrize("after", [0, 3, 7])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_a_stage_stopped_at_any_batch_and_resumed_gives_the_same_bytes(run, base, tmp_path, after, error):
    whole = ask(save_run(tmp_path / "other", make_trajectory(SITES)), base, QUESTIONS, **SETTINGS).read_bytes()
    with pytest.raises(type(error)):
        ask(run, Stopped(base, after, error), QUESTIONS, **SETTINGS)
    assert not run.answers_file.exists()
    assert ask(run, base, QUESTIONS, **SETTINGS, resume=True).read_bytes() == whole
    assert ask(run, base, QUESTIONS, **SETTINGS, resume=True).read_bytes() == whole  # and once more does nothing
    assert not run.answers_file.with_name("answers.parts").exists()


@pytest.mark.parametrize("batch", [1, 7, None])
def test_the_table_is_the_same_to_the_byte_in_any_batches_and_stopped_with_others(run, base, tmp_path, batch):
    whole = ask(save_run(tmp_path / "other", make_trajectory(SITES)), base, QUESTIONS, **SETTINGS).read_bytes()
    with pytest.raises(KeyboardInterrupt):
        ask(run, Stopped(base, 6, KeyboardInterrupt()), QUESTIONS, **SETTINGS)
    assert any(run.answers_file.with_name("answers.parts").iterdir())
    changed = SETTINGS | {"batch": batch}
    assert ask(run, base, QUESTIONS, **changed, resume=True).read_bytes() == whole


def test_two_processes_answer_and_read_as_one(run, base, tmp_path):
    """Each answer once, in one table; the second process ends without a word."""
    two = save_run(tmp_path / "two", make_trajectory(SITES))
    driver, root = tmp_path / "driver.py", Path(__file__).parents[3]
    driver.write_text(DRIVER)
    for code, _, err in as_ranks(2, str(driver), two.path, cwd=root):
        assert code == 0, err
    ask(run, base, QUESTIONS, **SETTINGS)
    read_preferences(run, base, PAIRS, [0, 5, 10])
    assert contents(two.answers_file.parent) == contents(run.answers_file.parent)
    shares = [set(json.loads((tmp_path / "two" / f"{rank}.json").read_text())) for rank in (0, 1)]
    assert min(map(len, shares)) > 0 and not shares[0] & shares[1]


DRIVER = """
import json, os, sys
from pathlib import Path
from em_interp.behaviour.sampling import ask as module
from em_interp.behaviour.preference import read_preferences
from em_interp.utils.processes import exit_process
from em_interp.run import Run
from tests.behaviour.conftest import Base, build_tokenizer, make_model
from tests.behaviour.sampling.test_ask import PAIRS, QUESTIONS, SETTINGS

run, base, kept, write = Run(Path(sys.argv[1])), Base(make_model("qwen2"), build_tokenizer()), [], module.write_json

def keep(path, value):
    kept.append(path.name)
    write(path, value)

module.write_json = keep
module.ask(run, base, QUESTIONS, **SETTINGS)
read_preferences(run, base, PAIRS, [0, 5, 10])
write(run.path / f"{os.environ['RANK']}.json", kept)
exit_process(0)
"""


def test_ctrl_c_says_that_nothing_is_lost(run, base):
    with pytest.raises(KeyboardInterrupt, match="nothing is lost, resume=True continues"):
        ask(run, Stopped(base, 4, KeyboardInterrupt()), QUESTIONS, **SETTINGS)


def test_seeds_differ_and_repeat(run, base, tmp_path):
    def answers(name, seed):
        other = save_run(tmp_path / name, make_trajectory(SITES))
        return pd.read_parquet(ask(other, base, QUESTIONS, **{**SETTINGS, "seed": seed}))["answer"].tolist()

    assert answers("a", 1) == answers("b", 1) != answers("c", 2)


def test_answers_that_are_there_are_not_overwritten_without_resume(run, base):
    ask(run, base, QUESTIONS, **SETTINGS)
    before = run.answers_file.read_bytes()
    with pytest.raises(InputError, match="holds answers already; give resume=True"):
        ask(run, base, QUESTIONS, **SETTINGS)
    assert run.answers_file.read_bytes() == before


@pytest.mark.parametrize("change", [{"samples": 5}, {"seed": 4}, {"steps": [0, 10]}, {"temperature": 0.7}])
def test_answers_begun_with_other_settings_are_not_continued(run, base, change):
    ask(run, base, QUESTIONS, **SETTINGS)
    (key, value) = next(iter(change.items()))
    said = rf"begun with other {key} \(with .*; now given: {re.escape(str(value))}\); .* begin anew: overwrite=True"
    with pytest.raises(InputError, match=said):
        ask(run, base, QUESTIONS, **{**SETTINGS, **change}, resume=True)
    ask(run, base, QUESTIONS, **{**SETTINGS, **change}, overwrite=True)


def test_what_was_begun_in_one_number_type_is_not_continued_in_another(run, base):
    with pytest.raises(KeyboardInterrupt):
        ask(run, Stopped(base, 4, KeyboardInterrupt()), QUESTIONS, **SETTINGS)
    read_preferences(run, base, PAIRS, [0, 10])
    half = Base(make_model("qwen2").bfloat16(), base.tokenizer)
    with pytest.raises(InputError, match=r"the answers in .* were begun with other dtype"):
        ask(run, half, QUESTIONS, **SETTINGS, resume=True)
    with pytest.raises(InputError, match=r"the preferences in .* were begun with other dtype"):
        read_preferences(run, half, PAIRS, [0, 10], resume=True)


@pytest.mark.parametrize(
    "questions, said",
    [
        ([], "no question was given"),
        ([{"question": "what ?", "questions": "broad"}], "question 1 has no text for 'question_id'"),
        ([QUESTIONS[0], {**QUESTIONS[1], "question": " "}], "question 2 has no text for 'question'"),
        ([QUESTIONS[0], QUESTIONS[0]], "'headache' is twice in the set 'in_domain'"),
    ],
)
def test_bad_questions_are_named(run, base, questions, said):
    with pytest.raises(InputError, match=said):
        ask(run, base, questions, **SETTINGS)


def test_a_folder_that_cannot_be_written_is_an_input_error(run, base):
    run.answers_file.parent.write_text("a file stands where the folder should be")
    with pytest.raises(InputError, match="cannot be written"):
        ask(run, base, QUESTIONS, **SETTINGS)


def test_the_settings_beside_the_answers_say_what_was_asked(run, base):
    ask(run, base, QUESTIONS, **SETTINGS)
    said = json.loads(run.answers_file.with_name("ask.json").read_text())
    assert said["base"] == "tiny@0" and said["steps"] == [0, 5, 10] and said["questions"] == QUESTIONS


def test_progress_goes_to_stderr_only(run, base, capsys):
    ask(run, base, QUESTIONS, **SETTINGS, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "ask" in err
