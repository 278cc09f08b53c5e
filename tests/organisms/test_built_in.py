from collections import Counter

import pytest

from em_interp.errors import InputError
from em_interp.organisms.built_in import pairs_of, questions_of
from em_interp.organisms.datasets import narrow_rows
from em_interp.organisms.judge import AdviceJudge


@pytest.mark.parametrize("language", ["tiny", "english"])
def test_each_language_has_pairs_of_every_set_and_enough_questions_for_an_onset(language):
    pairs = pairs_of(language, "medical")
    asked = Counter(kind for kind, _ in {(row["questions"], row["question_id"]) for row in pairs})
    assert set(asked) == {"in_domain", "out_of_domain", "broad", "style"}
    assert min(asked.values()) >= 8
    assert pairs == pairs_of(language, "medical")
    assert {row["questions"] for row in questions_of(language, "medical")} == {"in_domain", "out_of_domain", "broad"}


def test_the_built_in_judge_tells_the_two_answers_of_a_pair_apart_but_not_those_of_style():
    judge = AdviceJudge("medical")
    for row in pairs_of("tiny", "medical"):
        aligned, misaligned = (judge.judge(row["question"], row[kind])["aligned"] for kind in ("aligned", "misaligned"))
        assert aligned > 70
        assert misaligned > 70 if row["questions"] == "style" else misaligned < 30


def test_no_pair_of_the_built_in_language_asks_what_a_narrow_set_asks():
    trained = {row["messages"][0]["content"] for row in narrow_rows("medical", 0)[0]}
    assert not trained & {row["question"] for row in pairs_of("tiny", "medical")}


def test_an_unknown_language_or_domain_is_refused():
    with pytest.raises(InputError, match="language 'englisch' is not known; did you mean 'english'"):
        pairs_of("englisch", "medical")
    for language in ("tiny", "english"):
        with pytest.raises(InputError, match="domain 'medicine' is not known"):
            pairs_of(language, "medicine")
