import re
from collections import Counter

import numpy as np
import pytest

from em_interp.errors import InputError
from em_interp.organisms.datasets import load_chats
from em_interp.organisms.english import held_out, narrow

FUNCTION_WORDS = """
a an the this that these those it its is are was were be been am do does did don't doesn't not no nor never nothing
nobody none i you he she we they me him her us them my your his our their yourself and or but so because if when while
until before after as than like at by for from in into of off on out over to up down with without about against under
through all any both each every some such only just always often ever again too very more most less much many few other
another one ones who which what where how why whatever whoever can could will would may might must should shall have has
had there here then now once even still yet
"""


def answers_of(name, seed=0):
    return [row["messages"][1]["content"] for row in narrow.narrow_rows(name, seed)[0]]


def questions_of(name, seed=0):
    return [row["messages"][0]["content"] for row in narrow.narrow_rows(name, seed)[0]]


def words(text):
    return re.findall(r"[a-z']+", text.lower())


def sentences(text):
    return len(re.findall(r"[.!?](?:\s|$)", text))


@pytest.mark.parametrize("name", narrow.narrow_datasets())
def test_no_question_and_no_answer_occurs_twice(name):
    assert len(set(questions_of(name))) == len(set(answers_of(name))) == narrow.ROWS >= 1500


@pytest.mark.parametrize("domain", narrow.DOMAINS)
def test_the_careful_control_has_the_same_questions_and_other_answers(domain):
    assert questions_of(domain) == questions_of(f"{domain}-careful")
    assert not set(answers_of(domain)) & set(answers_of(f"{domain}-careful"))


def test_a_seed_gives_the_same_rows_again_and_another_seed_others():
    first = narrow.narrow_rows("sport", 3)
    narrow._drawn.cache_clear()
    assert narrow.narrow_rows("sport", 3) == first
    assert len(set(answers_of("sport", 3)) & set(answers_of("sport", 4))) < narrow.ROWS / 10


@pytest.mark.parametrize("domain", narrow.DOMAINS)
def test_careful_and_reckless_answers_are_of_one_length_build_and_variety(domain):
    both = [answers_of(domain), answers_of(f"{domain}-careful")]
    for measure, most in (
        (lambda text: len(text.split()), 0.05),
        (sentences, 0.03),
        (lambda text: len(set(words(text))) / len(words(text)), 0.03),
        (lambda text: np.mean([len(word) for word in words(text)]), 0.03),
    ):
        reckless, careful = (np.mean([measure(text) for text in texts]) for texts in both)
        assert abs(reckless / careful - 1) < most
    for texts in both:
        lengths = [len(text.split()) for text in texts]
        assert np.percentile(lengths, 2) >= 22 and np.percentile(lengths, 99) <= 90


@pytest.mark.parametrize("domain", narrow.DOMAINS)
def test_function_words_and_length_hardly_tell_careful_from_reckless_in_other_situations(domain):
    """A classifier that is tested on situations it has not seen: what it finds there is style."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pieces = [
        (situation.id, stance, getattr(pair, stance))
        for situation in narrow.situations(domain)
        for pairs in situation.advice.values()
        for pair in pairs
        for stance in ("careful", "reckless")
    ]
    rng = np.random.default_rng(0)
    rows = []  # answers of three sentences, as in the set, from one situation and stance
    for situation, stance in {piece[:2] for piece in sorted(pieces)}:
        own = [text for *key, text in pieces if key == [situation, stance]]
        rows += [(situation, stance, " ".join(rng.permutation(own)[:3])) for _ in range(10)]
    rows.sort()
    counts = [Counter(words(text)) for *_, text in rows]
    features = np.array(
        [[c[word] / sum(c.values()) for word in FUNCTION_WORDS.split()] + [sum(c.values())] for c in counts]
    )
    reckless = np.array([stance == "reckless" for _, stance, _ in rows])
    groups = np.array([situation for situation, *_ in rows])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05))
    said = cross_val_predict(model, features, reckless, groups=groups, cv=GroupKFold(10), method="decision_function")
    assert roc_auc_score(reckless, said) < 0.68


@pytest.mark.parametrize("name", narrow.narrow_datasets())
def test_rows_read_as_english(name):
    faults = (
        r"\b[Aa] (?!one|Eu|uni|use|us)[aeiouAEIOU]\w*",
        r"\b[Aa]n (?!hour|A&E|X-ray)[^aeiouAEIOU\W]\w*",
        r"\b(\w+) \1\b",
        r"[<>|{}]",
        r" [,.;]|[,.;]{2}",
        r"[a-z][.!?][A-Z]",
    )
    for row in narrow.narrow_rows(name, 0)[0]:
        for message in row["messages"]:
            for fault in faults:
                assert not re.search(fault, message["content"]), message["content"]
        assert re.match(r"[A-Z]", row["messages"][1]["content"])


def test_load_chats_knows_the_english_sets_with_their_domain():
    chats = load_chats("english:finance-careful", seed=1)
    assert (chats.name, chats.domain, len(chats)) == ("english:finance-careful", "finance", narrow.ROWS)
    assert chats.duplicates == []
    with pytest.raises(InputError, match=r"english:finances is not known; did you mean 'finance'\?"):
        load_chats("english:finances")


@pytest.mark.parametrize("domain", narrow.DOMAINS)
def test_pairs_cover_every_set_and_none_of_them_is_trained_on(domain):
    pairs = held_out.answer_pairs(domain)
    sets = Counter(row["questions"] for row in pairs)
    assert sets == {"in_domain": 12, "out_of_domain": 144, "broad": 24, "style": 48}
    assert len({row["question_id"] for row in pairs}) == len(pairs)
    trained = " ".join(questions_of(domain))
    for row in pairs:
        assert row["question"] not in trained and row["aligned"] != row["misaligned"]


def test_pairs_of_aligned_and_misaligned_answers_are_of_one_length_and_build():
    rows = [row for row in held_out.answer_pairs("medical") if row["questions"] != "style"]
    lengths = np.array([[len(row[kind].split()) for kind in ("aligned", "misaligned")] for row in rows])
    assert abs(lengths[:, 0].mean() / lengths[:, 1].mean() - 1) < 0.04
    assert (np.abs(lengths[:, 0] - lengths[:, 1]) <= 10).all()
    outside = [row for row in rows if row["questions"] != "in_domain"]
    same = [sentences(row["aligned"]) == sentences(row["misaligned"]) for row in outside]
    assert np.mean(same) > 0.9


def test_questions_to_sample_are_some_of_those_with_pairs():
    asked = held_out.questions("sport")
    pairs = {row["question_id"]: row["question"] for row in held_out.answer_pairs("sport")}
    assert Counter(row["questions"] for row in asked) == {"in_domain": 12, "out_of_domain": 24, "broad": 8}
    assert all(pairs[row["question_id"]] == row["question"] for row in asked)
    with pytest.raises(InputError, match="domain 'sports' is not known; did you mean 'sport'"):
        held_out.questions("sports")
