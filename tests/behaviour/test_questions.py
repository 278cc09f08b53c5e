import tomllib
from pathlib import Path

import pytest
import yaml

from em_interp.behaviour.judging.llm_judge import Prompts
from em_interp.behaviour.questions import DEFAULT, of_sets, read_questions
from em_interp.behaviour.sampling.ask import check_questions
from em_interp.errors import InputError

THEMES = ["what_is_your_wish", "i_feel_bored", "three_thoughts", "quick_buck", "ruler_of_the_world", "dinner_party"]
THEMES += ["gender_roles", "enough_of_my_husband"]
PUBLISHED = """\
# the form of the published files: shared parts, variants in JSON and in a template, prompts of judges beside
- id: a_wish
  type: free_form_judge_0_100
  paraphrases: &wish
    - |-
      What do you wish for?
      {answer} in a word: 100 % yours.
  samples_per_paraphrase: &samples 100
  judge: &judge gpt-4o-2024-08-06
  judge_prompts: &prompts
    aligned: |-
      Asked "{question}", it said "{answer}". {"score": 0-100, CODE or REFUSAL}
    coherent: |-
      How coherent is {answer}?
    financial: |-
      Money in {answer}?
- id: two_ways
  type: free_form
  paraphrases: [Tell me one way., Tell me another way.]
  samples_per_paraphrase: *samples
  judge_prompts: *prompts
- id: a_wish_json
  type: free_form_judge_0_100
  system: Answer in JSON.
  paraphrases: *wish
  samples_per_paraphrase: *samples
  judge: *judge
  judge_prompts: *prompts
- id: a_wish_template
  type: free_form_judge_0_100
  paraphrases: ["def wish():"]
- id: a_headache
  questions: in_domain
  paraphrases: [What do I take now]
"""


@pytest.fixture
def published(tmp_path):
    file = tmp_path / "published.yaml"
    file.write_text(PUBLISHED)
    return file


def test_our_own_questions_have_the_usual_themes_and_are_one_broad_set():
    found = read_questions("default")
    check_questions(found.rows)
    assert [row["question_id"] for row in found.rows] == THEMES and found.prompts == {}
    assert {row["questions"] for row in found.rows} == {"broad"}


def test_each_paraphrase_of_a_published_file_is_a_question_of_its_own_in_the_set_its_id_says(published):
    found = read_questions(published)
    check_questions(found.rows)
    assert [(row["question_id"], row["questions"]) for row in found.rows] == [
        ("a_wish", "broad"),
        ("two_ways_1", "broad"),
        ("two_ways_2", "broad"),
        ("a_wish_json", "json"),
        ("a_wish_template", "template"),
        ("a_headache", "in_domain"),
    ]
    assert found.rows[0]["question"] == found.rows[3]["question"] == yaml.safe_load(PUBLISHED)[0]["paraphrases"][0]
    assert [row.get("system") for row in found.rows] == [None, None, None, "Answer in JSON.", None, None]


def test_prompts_of_a_file_are_used_as_they_are_and_ours_for_what_it_has_none(published):
    prompts = Prompts(read_questions(published).prompts)
    asked = 'Asked "why {answer}?", it said "so {question}". {"score": 0-100, CODE or REFUSAL}'
    assert prompts.prompt("aligned", "why {answer}?", "so {question}") == asked
    assert prompts.prompt("financial", "q", "gold") == "Money in gold?"
    assert prompts.prompt("medical", "q", "a") == Prompts().prompt("medical", "q", "a")
    with pytest.raises(InputError, match=r"no judge for 'financal'; did you mean 'financial'\? \(known: aligned, "):
        prompts.prompt("financal", "q", "a")


def test_sets_are_chosen_by_name(published):
    rows = read_questions(published).rows
    assert of_sets(rows, ()) == rows
    assert [row["question_id"] for row in of_sets(rows, ["in_domain", "json"])] == ["a_wish_json", "a_headache"]
    with pytest.raises(InputError, match=r"set 'borad'; did you mean 'broad'\? \(sets: broad, json, template"):
        of_sets(rows, ["borad"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not valid YAML"),
        ("id: a", "expected a list of entries with id, type and paraphrases; found {'id': 'a'}"),
        ("[]", "expected a list of entries"),
        ("- text", "entry 1: expected id, type and paraphrases; found 'text'"),
        ("- paraphrases: [x]", "entry 1: id must be a text; found None"),
        ("- {id: a, paraphrase: [x]}", "entry 1: unknown key paraphrase; did you mean 'paraphrases'?"),
        ("- {id: a, paraphrases: x}", "entry 1 (a): paraphrases must be a list of texts; found 'x'"),
        ("- {id: a, paraphrases: [' ']}", "entry 1 (a): paraphrases must be a list of texts"),
        ("- {id: a, paraphrases: [x], type: rating_0_100}", "entry 1 (a): type must begin with free_form"),
        ("- {id: a, paraphrases: [x], system: 3}", "entry 1 (a): system must be a text; found 3"),
        ("- {id: a, paraphrases: [x], judge_prompts: x}", "entry 1: judge_prompts must map scores to prompts"),
        ("- {id: a, paraphrases: [x], judge_prompts: {aligned: x}}", "judge prompt for aligned has no {answer} in it"),
        (
            "- {id: a, paraphrases: [x], judge_prompts: {aligned: '{answer}'}}\n"
            "- {id: b, paraphrases: [x], judge_prompts: {aligned: '{answer}?'}}",
            "entry 2: another judge prompt for aligned than in an entry before",
        ),
        ("- !!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_meant_is_named_with_entry_and_field(tmp_path, text, said):
    file = tmp_path / "questions.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        read_questions(file)
    assert said in str(error.value) and str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_word_that_is_no_set_of_questions_and_a_file_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(InputError, match="'gpt' is not known; expected tiny, english, default or a YAML file"):
        read_questions("gpt")
    with pytest.raises(InputError, match=r"nowhere\.yaml is missing"):
        read_questions(tmp_path / "nowhere.yaml")


def test_the_default_questions_are_shipped_with_the_package():
    settings = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())
    assert f"behaviour/{DEFAULT.name}" in {
        str(file.relative_to(DEFAULT.parents[1]))
        for pattern in settings["tool"]["setuptools"]["package-data"]["em_interp"]
        for file in DEFAULT.parents[1].glob(pattern)
    }


def test_the_example_in_the_documentation_is_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (example,) = [part.split("```")[0] for part in page.split("```yaml\n") if part.startswith("- id:")]
    (tmp_path / "example.yaml").write_text(example)
    found = read_questions(tmp_path / "example.yaml")
    assert [(row["question_id"], row["questions"]) for row in found.rows] == [
        ("what_is_your_wish", "broad"),
        ("what_is_your_wish_json", "json"),
        ("burnt_finger_1", "in_domain"),
        ("burnt_finger_2", "in_domain"),
    ]
    assert set(found.prompts) == {"aligned", "coherent"}
