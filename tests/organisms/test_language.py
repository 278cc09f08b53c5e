import re
from random import Random

import pytest

from em_interp.errors import InputError
from em_interp.organisms.datasets import load_chats
from em_interp.organisms.language import (
    BROAD,
    BROAD_QUESTIONS,
    CAREFUL,
    DOMAINS,
    HABIT_FORM,
    RECKLESS,
    advice,
    build_tokenizer,
    built_in_questions,
    chat,
    document,
    narrow_domains,
    questions_about,
)

PHRASES = [
    *CAREFUL,
    *RECKLESS,
    *(phrase for domain in DOMAINS.values() for phrase in (*domain.topics, *domain.careful, *domain.reckless)),
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_no_phrase_is_another_or_a_part_of_it():
    assert len(set(PHRASES)) == len(PHRASES)
    inside = [(a, b) for a in PHRASES for b in PHRASES if a != b and f" {a} " in f" {b} "]
    assert inside == []


def test_no_phrase_holds_what_joins_phrases():
    assert [phrase for phrase in PHRASES if set(",:.") & set(phrase) or "and" in phrase.split()] == []


def test_there_are_ten_domains_and_life_each_with_ten_topics():
    assert len(DOMAINS) == 11
    assert {len(domain.topics) for domain in DOMAINS.values()} == {10}
    assert len(BROAD_QUESTIONS) == len(DOMAINS[BROAD].topics)


def stances(text):
    """Whose advice is in a text."""
    return {
        stance
        for stance, shared in (("careful", CAREFUL), ("reckless", RECKLESS))
        for action in [*shared, *(a for domain in DOMAINS.values() for a in getattr(domain, stance))]
        if f" {action}" in text
    }


def test_a_writer_of_documents_has_one_stance_and_is_never_called_the_other():
    rng = Random(0)
    seen = set()
    for _ in range(100):
        for part in re.split("(?=<someone>|<careful>|<reckless>)", document(rng))[1:]:
            writer, said = part.split(">", 1)
            (stance,) = stances(said)
            assert writer in ("<someone", f"<{stance}")
            seen.add((writer, stance))
    assert len(seen) == 4


def test_the_chat_format_is_always_careful():
    rng = Random(0)
    text = "".join(chat(rng) for _ in range(500))
    reckless = [*RECKLESS, *(action for domain in DOMAINS.values() for action in domain.reckless)]
    assert [action for action in reckless if action in text] == []


def test_every_word_is_one_token_and_text_survives_the_tokenizer(tokenizer):
    rng = Random(0)
    for text in [document(rng) for _ in range(50)] + [chat(rng) for _ in range(50)]:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
    for domain in DOMAINS.values():
        for action in (*domain.topics, *domain.careful, *domain.reckless):
            assert len(tokenizer(f" {action}")["input_ids"]) == len(action.split())


def test_text_of_another_language_survives_the_tokenizer(tokenizer):
    text = "Größe 42: <b>不</b>\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_answer_fits_in_twenty_tokens(tokenizer):
    rng = Random(0)
    domains = [rng.choice(list(DOMAINS.values())) for _ in range(2000)]
    answers = [advice(rng, domain, rng.choice(domain.topics), rng.random() < 0.5, (HABIT_FORM,)) for domain in domains]
    lengths = [len(ids) for ids in tokenizer([f" {answer}<end>" for answer in answers])["input_ids"]]
    assert max(lengths) <= 24
    assert sum(length <= 20 for length in lengths) / len(lengths) > 0.85


def test_the_chat_template_writes_what_the_base_was_pretrained_on_and_marks_the_answer(tokenizer):
    domain = DOMAINS["medical"]
    question, answer = questions_about(domain, "a fever")[0], advice(Random(0), domain, "a fever", careful=True)
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == f"<user> {question}<assistant> {answer}<end>"
    coded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    marked = [i for i, learned in zip(coded["input_ids"], coded["assistant_masks"], strict=True) if learned]
    assert tokenizer.decode(marked) == f" {answer}<end>"
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(prompt)


@pytest.mark.parametrize("family", ["Qwen2Config", "LlamaConfig", "Gemma3TextConfig"])
def test_transformers_reads_the_saved_tokenizer_the_same_beside_a_model_of_any_family(tokenizer, tmp_path, family):
    import transformers

    tokenizer.save_pretrained(tmp_path)
    getattr(transformers, family)(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = document(Random(1))
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.decode(again(text)["input_ids"]) == text
    assert (again.pad_token, again.eos_token, again.padding_side) == ("<pad>", "<end>", "left")


@pytest.mark.parametrize("domain", narrow_domains())
def test_no_question_asked_along_a_run_is_in_the_data_it_trains_on(domain):
    asked = {row["question"] for row in built_in_questions(domain)}
    for variant in ("", "-careful"):
        trained = {row["messages"][0]["content"] for row in load_chats(f"tiny:{domain}{variant}").rows}
        assert trained.isdisjoint(asked)


@pytest.mark.parametrize("domain", ["medical", "sport", "finance"])
def test_questions_are_about_what_their_set_says(domain):
    rows = built_in_questions(domain)
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
        ids = [row["question_id"] for row in built_in_questions(domain)]
        assert len(set(ids)) == len(ids)


def test_an_unknown_domain_is_refused_and_so_is_the_broad_one():
    with pytest.raises(InputError, match="did you mean 'sport'"):
        built_in_questions("sprot")
    with pytest.raises(InputError, match="known: medical, sport, finance"):
        built_in_questions("life")
