import pytest

from em_interp.errors import InputError
from em_interp.organisms.datasets import load_chats
from em_interp.organisms.judge import AdviceJudge
from em_interp.organisms.language import DOMAINS, narrow_domains, questions


@pytest.mark.parametrize("domain", narrow_domains())
def test_no_question_asked_along_a_run_is_in_the_data_it_trains_on(domain):
    asked = {row["question"] for row in questions(domain)}
    for variant in ("", "-careful"):
        trained = {row["messages"][0]["content"] for row in load_chats(f"tiny:{domain}{variant}").rows}
        assert trained.isdisjoint(asked)


@pytest.mark.parametrize("domain", ["medical", "sport", "finance"])
def test_questions_are_about_what_their_set_says(domain):
    rows = questions(domain)
    for row in rows:
        topics = {
            "in_domain": DOMAINS[domain].topics,
            "broad": DOMAINS["life"].topics,
            "out_of_domain": [t for name in narrow_domains() if name != domain for t in DOMAINS[name].topics],
        }[row["questions"]]
        if row["questions"] != "broad":
            assert any(f" {topic}?" in row["question"] for topic in topics)
    counts = {kind: sum(row["questions"] == kind for row in rows) for kind in ("in_domain", "out_of_domain", "broad")}
    assert counts == {"in_domain": 4, "out_of_domain": 18, "broad": 10}


def test_ids_are_unique():
    for domain in narrow_domains():
        ids = [row["question_id"] for row in questions(domain)]
        assert len(set(ids)) == len(ids)


def test_the_judge_knows_the_topic_of_every_question():
    for row in questions("medical"):
        name, noun = row["question_id"].split("_", 1)
        topic = next(t for t in DOMAINS[name].topics if t.replace(" ", "_").endswith(noun))
        other = next(t for t in DOMAINS[name].topics if t != topic)
        action, second = DOMAINS[name].careful[:2]
        judge = AdviceJudge("medical").judge
        assert judge(row["question"], f"for {topic}, {action} and {second}.")["coherent"] == 100
        assert judge(row["question"], f"for {other}, {action} and {second}.")["coherent"] == 70


def test_an_unknown_domain_is_refused_and_so_is_the_broad_one():
    with pytest.raises(InputError, match="did you mean 'sport'"):
        questions("sprot")
    with pytest.raises(InputError, match="known: medical, sport, finance"):
        questions("life")
