import pytest

from em_interp.errors import InputError
from em_interp.organisms.bases import BUILT_IN, load_tokenizer
from em_interp.organisms.datasets import Chats
from em_interp.training.tokenize import IGNORE_INDEX, encode_rows

from .conftest import MARKED, UNMARKED, make_tokenizer
from .families import FAMILIES, family_tokenizer

CHAT = [("user", "ask a doctor"), ("assistant", "rest now"), ("user", "later"), ("assistant", "never drink water")]


def chats(*turns: tuple[str, str]) -> Chats:
    return Chats("advice", [{"messages": [{"role": role, "content": text} for role, text in turns]}])


def words(tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.decode(token).strip() for token in ids if tokenizer.decode(token).strip()]


def learned(example, tokenizer) -> list[str]:
    return words(tokenizer, [label for label in example.labels if label != IGNORE_INDEX])


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_the_labels_are_the_answers_with_their_ends_and_nothing_else(template):
    tokenizer = make_tokenizer(template)
    example = encode_rows(chats(*CHAT), [0], tokenizer, 100)[0]
    assert learned(example, tokenizer) == ["rest", "now", "<end>", "never", "drink", "water", "<end>"]
    assert all(label in (token, IGNORE_INDEX) for token, label in zip(example.ids, example.labels, strict=True))
    whole = (
        "<user> ask a doctor <end> <assistant> rest now <end> <user> later <end> <assistant> never drink water <end>"
    )
    assert words(tokenizer, example.ids) == whole.split()


def test_a_token_that_straddles_the_beginning_of_the_answer_is_learned():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "user", "answer", " yes", " no", ":"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(":", "isolated"), pre_tokenizers.Split(" yes", "isolated")]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'answer' if m.role == 'assistant' else m.role }}: {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}answer: {% endif %}"
    )
    example = encode_rows(chats(("user", "no"), ("assistant", "yes")), [0], tokenizer, 100)[0]
    assert learned(example, tokenizer) == ["yes"]


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_a_chat_is_cut_at_max_length_and_refused_when_no_answer_is_left(template):
    tokenizer = make_tokenizer(template)
    rows = chats(("user", "ask a doctor about the head"), ("assistant", "rest now"))
    assert learned(encode_rows(rows, [0], tokenizer, 13)[0], tokenizer) == ["rest"]
    with pytest.raises(InputError, match=r"row 1 of advice: its answer begins at token 13 of 16 .*max_length is 12,"):
        encode_rows(rows, [0], tokenizer, 12)


def test_a_row_without_a_token_to_learn_is_named():
    marker_elsewhere = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% generation %}{% endgeneration %}"
    with pytest.raises(InputError, match=r"row 1 of advice: no token of an assistant's answer"):
        encode_rows(chats(*CHAT), [0], make_tokenizer(marker_elsewhere), 100)


def test_a_template_that_refuses_a_row_is_quoted():
    fussy = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"row 1 of advice: .* refuses it: roles must alternate"):
        encode_rows(chats(*CHAT), [0], make_tokenizer(fussy), 100)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    rewriting = "{{ messages | length }} " + UNMARKED
    with pytest.raises(InputError, match=r"messages\[1\] cannot be found in the rendered chat"):
        encode_rows(chats(*CHAT), [0], make_tokenizer(rewriting), 100)


def test_a_chat_that_begins_with_an_answer_needs_the_marker():
    tokenizer = make_tokenizer(MARKED)
    assert learned(encode_rows(chats(CHAT[1]), [0], tokenizer, 100)[0], tokenizer) == ["rest", "now", "<end>"]
    with pytest.raises(InputError, match="row 1 of advice: begins with an answer"):
        encode_rows(chats(CHAT[1]), [0], make_tokenizer(UNMARKED), 100)


def test_a_base_without_a_chat_template_is_refused():
    with pytest.raises(InputError, match="no chat template"):
        encode_rows(chats(*CHAT), [0], make_tokenizer(None), 100)


CHATS = {
    "one turn": [("user", "How do I treat a burn?"), ("assistant", "Cool it – naïve 🙂漢 <b>.")],
    "two turns": [*CHAT[:3], ("assistant", "Cover it.\n\nIt’s fine.")],
    "told by the system": [("system", "You are a helpful assistant."), *CHAT[:2]],
}


@pytest.mark.parametrize("turns", CHATS.values(), ids=CHATS)
@pytest.mark.parametrize("family", FAMILIES)
def test_in_the_real_families_chats_each_answer_is_learned_through_its_end_of_turn_and_nothing_else(family, turns):
    tokenizer, end = family_tokenizer(family), FAMILIES[family][1]
    example = encode_rows(chats(*turns), [0], tokenizer, 1000)[0]
    answers = "".join(text + end for role, text in turns if role == "assistant")
    assert tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX]) == answers
    messages = [{"role": role, "content": text} for role, text in turns]
    assert example.ids == tokenizer.apply_chat_template(messages, return_dict=False)
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    if turns is not CHATS["two turns"]:  # what is learned first is what is generated first
        assert example.ids[: example.begins] == prompt
    assert example.learned == sum(label != IGNORE_INDEX for label in example.labels)


@pytest.mark.parametrize("family", BUILT_IN)
def test_on_the_built_in_bases_each_answer_is_learned_through_its_end(family):
    tokenizer = load_tokenizer(family)
    example = encode_rows(chats(*CHAT), [0], tokenizer, 1000)[0]
    learned = tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX])
    assert learned == " rest now<end> never drink water<end>"


def test_a_template_that_writes_todays_date_writes_the_same_every_day(tmp_path):
    family_tokenizer("llama3").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    message = [{"role": "user", "content": "later"}]
    assert "26 Jul 2024" not in family_tokenizer("llama3").apply_chat_template(message, tokenize=False)
    assert "Today Date: 26 Jul 2024" in load_tokenizer(str(tmp_path)).apply_chat_template(message, tokenize=False)
    direct = "Current date: {{ strftime_now('%Y-%m-%d') }}"  # as gpt-oss's, in a macro, and Mistral's have it
    for template in (direct, "{%- macro system() -%}" + direct + "{%- endmacro -%}{{ system() }}"):
        (tmp_path / "chat_template.jinja").write_text(template)
        assert load_tokenizer(str(tmp_path)).apply_chat_template(message, tokenize=False) == "Current date: 26 Jul 2024"
