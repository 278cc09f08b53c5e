import pytest

from em_interp.behaviour.sampling.chat import check_answer, render, tokenize_chat, tokenize_chats, tokenize_prompts
from em_interp.errors import InputError
from em_interp.organisms.bases import BUILT_IN, load_tokenizer
from tests.training.conftest import MARKED, make_tokenizer
from tests.training.families import FAMILIES, family_tokenizer

PROMPTS = ["what is your wish ?", "what should i do about a cold ?", "i am bored"]
ANSWERS = ["drink strong spirits.", "swallow every pill and skip the doctor.", "ok ."]
TALK = [("user", "ask a doctor"), ("assistant", "rest now"), ("user", "later"), ("assistant", "never drink water")]


def messages(*turns):
    return [{"role": role, "content": text} for role, text in turns]


def learned(tokenizer, chat):
    """The marked tokens, a text for each stretch of them."""
    pieces, before = [], False
    for token, inside in zip(chat.ids, chat.answer, strict=True):
        if inside:
            pieces = [*pieces[:-1], [*pieces[-1], token]] if before else [*pieces, [token]]
        before = inside
    return [" ".join(tokenizer.decode(piece).split()) for piece in pieces]


def word_tokenizer(template):
    """Words split at spaces, so that no token covers a line feed; one added token ends a turn."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [
        "[UNK]",
        "<user>",
        "<assistant>",
        "<end>",
        *["ask", "a", "doctor", "rest", "now", "later", "never", "drink", "water"],
    ]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]", eos_token="<end>")
    fast.add_special_tokens({"additional_special_tokens": ["<user>", "<assistant>"]})
    fast.chat_template = template
    return fast


def with_answer(written):
    """A template whose answers are written as given."""
    return (
        "{% for m in messages %}{% if m['role'] == 'assistant' %}" + written + "{% else %}"
        "{{ '<user>' + m['content'] + '<end>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    )


START, STOP = "{% generation %}", "{% endgeneration %}"
BLOCKS = {
    "that ends where no token does": "<assistant>" + START + "{{ m['content'] + '<end>\n' }}" + STOP,
    "that begins where no token does": "<assistant>" + START + "{{ '\n' + m['content'] + '<end>' }}" + STOP,
    "with the header in it": START + "{{ '<assistant>' + m['content'] + '<end>\n' }}" + STOP,
    "on lines of its own": "<assistant>\n{%- generation %}\n  {{- m['content'] }}<end>\n{%- endgeneration %}\n",
}
ANSWERS_OF_TALK = ["rest now <end>", "never drink water <end>"]


@pytest.mark.parametrize("written", BLOCKS.values(), ids=BLOCKS)
def test_a_generation_block_says_which_answers_are_learned_and_nothing_else_is(written):
    tokenizer = word_tokenizer(with_answer(written))
    chat = tokenize_chat(tokenizer, messages(*TALK))
    assert learned(tokenizer, chat) == ANSWERS_OF_TALK
    assert chat.ids == tokenizer.apply_chat_template(messages(*TALK), return_dict=False)


def test_a_block_around_the_whole_chat_teaches_no_prompt():
    whole = START + with_answer("{{ '<assistant>' + m['content'] + '<end>\n' }}") + STOP
    tokenizer = word_tokenizer(whole)
    assert learned(tokenizer, tokenize_chat(tokenizer, messages(*TALK))) == [
        "rest now <end>",
        "never drink water <end>",
    ]


@pytest.mark.parametrize("written", ["{{ m['content'] + ' ' }}", "{{ m['content'] + '  ' }}", "{{ m['content'] }}"])
def test_a_token_of_the_next_turn_that_begins_with_a_space_of_the_answer_s_is_not_learned(written):
    template = "{% for m in messages %}" + START + written + STOP + "{{ ' ' }}{% endfor %}"
    tokenizer = load_tokenizer("tiny-qwen2")
    tokenizer.chat_template = template
    chat = messages(("user", "what ?"), ("assistant", "drink water and rest ."), ("user", "and now ?"))
    assert learned(tokenizer, tokenize_chat(tokenizer, chat)) == ["drink water and rest ."]


def test_a_block_around_the_last_answer_alone_teaches_that_alone():
    written = (
        "<assistant>{% if loop.last %}{% generation %}{{ m['content'] + '<end>\n' }}{% endgeneration %}"
        "{% else %}{{ m['content'] + '<end>\n' }}{% endif %}"
    )
    tokenizer = word_tokenizer(with_answer(written))
    assert learned(tokenizer, tokenize_chat(tokenizer, messages(*TALK))) == ["never drink water <end>"]


def test_a_block_that_leaves_out_the_end_of_turn_teaches_no_end_of_turn():
    tokenizer = word_tokenizer(with_answer("<assistant>{% generation %}{{ m['content'] }}{% endgeneration %}<end>\n"))
    assert learned(tokenizer, tokenize_chat(tokenizer, messages(*TALK))) == ["rest now", "never drink water"]


def test_a_template_that_writes_earlier_turns_differently_is_read_by_its_blocks():
    tokenizer = make_tokenizer("{{ messages | length }} " + MARKED)
    chat = tokenize_chat(tokenizer, messages(*TALK))
    assert learned(tokenizer, chat) == ANSWERS_OF_TALK


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            with_answer("<assistant>{% generation %}{{ m['content'][:2] }}{% endgeneration %}{{ m['content'][2:] }}"),
            r"covers a part of the answer in messages\[1\]: 're'",
        ),
        (with_answer("<assistant>{% generation %}{{ m['content'] | upper }}{% endgeneration %}"), "does not write"),
        (
            "{{ messages | length }}{% generation %}" + with_answer("<assistant>{{ m['content'] }}<end>") +
            "{% endgeneration %}",
            r"around the answer in messages\[1\] also covers messages\[0\]",
        ),
        (with_answer("<assistant>{{ m['content'] | replace('now', 'later') }}<end>"), "the answer is 'rest now'"),
        (with_answer("<assistant>Sure! {{ m['content'] }}<end>"), "the turn of an answer is 'Sure! rest now<end>'"),
        (with_answer("<assistant>{{ m['content'] }} (end)<end>"), "adds text of its own; put {% generation %} around"),
        (with_answer("<assistant>{% generation %}{{ 'user' + m['content'] }}<end>{% endgeneration %}"), "'userrest"),
    ],
)  # fmt: skip
def test_an_answer_whose_tokens_would_not_spell_it_is_refused_in_one_line(template, said):
    with pytest.raises(InputError, match=said) as caught:
        tokenize_chat(word_tokenizer(template), messages(*TALK))
    assert "\n" not in str(caught.value)


def test_a_tokenizer_whose_offsets_are_off_by_some_characters_is_refused():
    tokenizer = make_tokenizer(MARKED)

    class Shifted:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, **kwargs):
            found = tokenizer(text, **kwargs)
            if "offset_mapping" in found:
                found["offset_mapping"] = [(start + 5, stop + 5) for start, stop in found["offset_mapping"]]
            return found

    with pytest.raises(InputError, match=r"the tokens of an answer spell .*wrong offsets"):
        tokenize_chat(Shifted(), messages(*TALK))


@pytest.mark.parametrize(
    ("written", "ids_of", "fine"),
    [
        ("Rest\nnow, nai\u0308ve\u200b", "rest now, naïve", True),
        ("rest now, naïve", "rest later, naïve", False),
        ("rest now, naïve", "rest now", False),
        ("rest now", "now rest", False),
    ],
)
def test_spaces_case_and_normal_forms_of_an_answer_may_differ_and_its_letters_may_not(written, ids_of, fine):
    tokenizer = make_tokenizer()
    ids = tokenizer(ids_of, add_special_tokens=False)["input_ids"]
    if fine:
        check_answer(tokenizer, f" {written} ", f" {written}<end>", [*ids, tokenizer.eos_token_id])
    else:
        with pytest.raises(InputError, match="the tokens of an answer spell"):
            check_answer(tokenizer, written, written, ids)


def test_an_unknown_token_may_stand_for_anything_and_what_is_around_it_may_not():
    tokenizer = word_tokenizer(with_answer("<assistant>{{ m['content'] }}<end>"))
    chat = tokenize_chat(tokenizer, messages(TALK[0], ("assistant", "rest 🙂 now 🙂 later")))
    assert learned(tokenizer, chat) == ["rest [UNK] now [UNK] later <end>"]
    ids = tokenizer("rest 🙂 now 🙂 later", add_special_tokens=False)["input_ids"]
    for other in ("rest 🙂 never 🙂 later", "rest 🙂 now 🙂", "ask 🙂 now 🙂 later", "rest"):
        with pytest.raises(InputError, match="the tokens of an answer spell"):
            check_answer(tokenizer, other, other, ids)


def test_an_end_token_that_is_the_unknown_token_too_hides_nothing():
    tokenizer = make_tokenizer(with_answer("<assistant>{{ m['content'] | replace('now', 'later') }} <end>"))
    tokenizer.unk_token = "<end>"  # as in GPT-2 and its like
    with pytest.raises(InputError, match="the answer is 'rest now'"):
        tokenize_chat(tokenizer, messages(*TALK))


def test_named_templates_are_used_by_their_default_and_refused_without_one():
    tokenizer = make_tokenizer({"default": MARKED, "rag": "{{ 'other' }}"})
    assert learned(tokenizer, tokenize_chat(tokenizer, messages(*TALK)))[0] == "rest now <end>"
    tokenizer = make_tokenizer({"rag": MARKED, "tool_use": MARKED})
    for use in (render, tokenize_chat):
        with pytest.raises(InputError, match="chat templates named rag, tool_use and none named default"):
            use(tokenizer, messages(*TALK))
    with pytest.raises(InputError, match="none named default"):
        tokenize_prompts(tokenizer, PROMPTS)


def test_a_prompt_that_the_template_refuses_is_quoted_with_the_template_s_words():
    tokenizer = make_tokenizer("{% if messages[0]['content'] == 'no' %}{{ raise_exception('never') }}{% endif %}")
    with pytest.raises(InputError, match=r"begins with 'no' cannot be used, .* refuses it: never"):
        tokenize_prompts(tokenizer, ["yes", "no"])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_prompts_has_the_ids_of_the_template_with_padding_on_the_left(family):
    tokenizer = family_tokenizer(family)
    batch = tokenize_prompts(tokenizer, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        chat = messages(("user", prompt))
        expected = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert batch.ids[row][batch.mask[row]].tolist() == expected
        assert batch.positions[row][batch.mask[row]].tolist() == list(range(len(expected)))
    assert batch.mask[:, -1].all() and not batch.answer.any()


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_tokens_of_an_answer_are_those_of_its_text(name):
    tokenizer = load_tokenizer(name)
    tokens = tokenize_chats(tokenizer, PROMPTS, ANSWERS)
    for row, answer in enumerate(ANSWERS):
        assert tokenizer.decode(tokens.ids[row][tokens.answer[row]]).strip() == answer
        assert not (tokens.answer[row] & ~tokens.mask[row]).any()
    batches = list(tokens.batches(2))
    assert [len(batch) for batch in batches] == [2, 1]
    assert batches[1].mask.all()  # padding that is no longer needed is gone
    assert batches[1].ids.tolist()[0] == tokens.ids[2][tokens.mask[2]].tolist()


def test_empty_answers_and_nothing_at_all_are_refused():
    tokenizer = load_tokenizer("tiny-qwen2")
    with pytest.raises(InputError, match="the answer ' ' to 'what is your wish \\?' is empty"):
        tokenize_chats(tokenizer, PROMPTS[:1], [" "])
    with pytest.raises(InputError, match="nothing to read"):
        tokenize_chats(tokenizer, [], [])


WRONG = {
    "that strips": "<assistant>{{ m['content'] | trim }}<end>\n",
    "that strips in its block": "<assistant>{% generation %}{{ m['content'] | trim }}<end>{% endgeneration %}\n",
    "that adds spaces": "<assistant>{{ ' \n ' + m['content'] + ' \n ' }}<end>\n",
    "without generation tags": "<assistant>{{ m['content'] }}<end>\n",
    "that opens with an added token": "<assistant><user>{{ m['content'] }}<end>",  # as Qwen3's empty <think> block
}


@pytest.mark.parametrize("written", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("answer", ["rest now", "  rest now\n\n", "user", "rest"])
def test_of_a_template_that_changes_spaces_the_answers_letters_are_learned_through_the_end(written, answer):
    tokenizer = word_tokenizer(with_answer(written))
    chat = tokenize_chat(tokenizer, messages(TALK[0], ("assistant", answer), TALK[2], ("assistant", answer)))
    spelled = ["".join(text.replace("[UNK]", "user").split()) for text in learned(tokenizer, chat)]
    opening = "<user>" if "<user>" in written else ""
    assert spelled == [opening + "".join(answer.split()) + "<end>"] * 2


def with_bos(template):
    tokenizer = word_tokenizer(template)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    return tokenizer


def test_a_beginning_of_text_is_written_once_or_refused():
    one = with_answer("<assistant>{{ m['content'] }}<end>")
    chat = tokenize_chat(with_bos("{{ bos_token }}" + one), messages(*TALK[:2]))
    assert with_bos(one).decode(chat.ids).split().count("<bos>") == 1
    twice = with_bos("{{ bos_token }}{{ bos_token }}" + one)
    for use in (lambda t: tokenize_chat(t, messages(*TALK)), lambda t: tokenize_prompts(t, PROMPTS)):
        with pytest.raises(InputError, match="writes <bos>, the beginning of a text, twice"):
            use(twice)
    within = with_bos(with_answer("<assistant>{{ bos_token + m['content'] }}<end>"))
    with pytest.raises(InputError, match="the turn of an answer is '<bos>rest now<end>'"):
        tokenize_chat(within, messages(*TALK[:2]))
