import pytest

from em_interp.errors import InputError
from em_interp.organisms.data import Chats
from em_interp.training.tokens import IGNORED, encode

from .conftest import MARKED, UNMARKED, make_tokenizer

CHAT = [("user", "ask a doctor"), ("assistant", "rest now"), ("user", "later"), ("assistant", "never drink water")]


def chats(*turns: tuple[str, str]) -> Chats:
    return Chats("advice", [{"messages": [{"role": role, "content": text} for role, text in turns]}])


def words(tokenizer, ids: list[int]) -> list[str]:
    return [tokenizer.decode(token).strip() for token in ids if tokenizer.decode(token).strip()]


def learned(example, tokenizer) -> list[str]:
    return words(tokenizer, [label for label in example.labels if label != IGNORED])


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_the_labels_are_the_answers_with_their_ends_and_nothing_else(template):
    tokenizer = make_tokenizer(template)
    example = encode(chats(*CHAT), [0], tokenizer, 100)[0]
    assert learned(example, tokenizer) == ["rest", "now", "<end>", "never", "drink", "water", "<end>"]
    assert all(label in (token, IGNORED) for token, label in zip(example.ids, example.labels, strict=True))
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
    example = encode(chats(("user", "no"), ("assistant", "yes")), [0], tokenizer, 100)[0]
    assert learned(example, tokenizer) == ["yes"]


@pytest.mark.parametrize("template", [MARKED, UNMARKED])
def test_a_chat_is_cut_at_max_length_and_refused_when_no_answer_is_left(template):
    tokenizer = make_tokenizer(template)
    rows = chats(("user", "ask a doctor about the head"), ("assistant", "rest now"))
    assert learned(encode(rows, [0], tokenizer, 13)[0], tokenizer) == ["rest"]
    with pytest.raises(InputError, match=r"row 1 of advice: its answer begins at token 13 of 16 .*max_length is 12,"):
        encode(rows, [0], tokenizer, 12)


def test_a_row_without_a_token_to_learn_is_named():
    marker_elsewhere = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% generation %}{% endgeneration %}"
    with pytest.raises(InputError, match=r"row 1 of advice: no token of an assistant's answer"):
        encode(chats(*CHAT), [0], make_tokenizer(marker_elsewhere), 100)


def test_a_template_that_refuses_a_row_is_quoted():
    fussy = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match=r"row 1 of advice: .* refuses it: roles must alternate"):
        encode(chats(*CHAT), [0], make_tokenizer(fussy), 100)


def test_a_template_that_rewrites_earlier_turns_is_refused():
    rewriting = "{{ messages | length }} " + UNMARKED
    with pytest.raises(InputError, match=r"messages\[1\] cannot be found in the rendered chat"):
        encode(chats(*CHAT), [0], make_tokenizer(rewriting), 100)


def test_a_chat_that_begins_with_an_answer_needs_the_marker():
    tokenizer = make_tokenizer(MARKED)
    assert learned(encode(chats(CHAT[1]), [0], tokenizer, 100)[0], tokenizer) == ["rest", "now", "<end>"]
    with pytest.raises(InputError, match="row 1 of advice: begins with an answer"):
        encode(chats(CHAT[1]), [0], make_tokenizer(UNMARKED), 100)


def test_a_base_without_a_chat_template_is_refused():
    with pytest.raises(InputError, match="no chat template"):
        encode(chats(*CHAT), [0], make_tokenizer(None), 100)
