"""Chats as token ids, with a mask of the answers' tokens; prompts as left-padded batches.

Everything that is tokenised goes through the tokenizer's chat template here, so that training, sampling, likelihoods
and the mechanism analyses see the same ids. Where an answer is in a rendered chat is found by rendering the chat
again with another answer in its place. A template's `{% generation %}` blocks only say which answers are learned:
transformers' own mask of them runs on to the end of the chat where a block's last character has no token.

Wherever an answer was found, its tokens must spell it (`check_answer`). Besides the answer its turn may hold spaces
and tokens that the tokenizer adds to its vocabulary, such as the end of the turn, and nothing else.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxtyping import Bool, Int

from em_interp.errors import InputError

if TYPE_CHECKING:
    import torch

Messages = list[dict[str, str]]
PLACEHOLDER = "\ufffc"  # an answer that begins like no other
BLOCK_START, BLOCK_END = "\ufdd0", "\ufdd1"  # Unicode noncharacters, which no text contains
GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class Span(NamedTuple):
    """Characters of a rendered chat."""

    start: int
    stop: int

    def contains(self, other: Span) -> bool:
        """Whether `other` is contained in this span."""
        return self.start <= other.start and other.stop <= self.stop

    def overlaps(self, other: Span) -> bool:
        """Whether the two have a character in common."""
        return self.start < other.stop and other.start < self.stop


@dataclass(frozen=True)
class TokenizedChat:
    """One chat as token ids; `answer` marks the tokens of the answers and their end-of-turn tokens."""

    ids: list[int]
    answer: list[bool]


@dataclass(frozen=True, eq=False)
class Tokens:
    """A batch of token ids, padded on the left.

    Attributes:
        ids: the token ids.
        mask: True at tokens, False at padding.
        answer: True at the tokens of an answer's own text; nowhere in prompts and texts.
    """

    ids: Int[torch.Tensor, "row position"]
    mask: Bool[torch.Tensor, "row position"]
    answer: Bool[torch.Tensor, "row position"]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def positions(self) -> Int[torch.Tensor, "row position"]:
        """Positions as the model counts them: from 0 at each row's first token."""
        return position_ids(self.mask)

    def rows(self, index: Sequence[int]) -> Tokens:
        """Some rows, in this order, without the padding that they no longer need."""
        chosen = self.mask[list(index)]
        first = int(chosen.any(dim=0).int().argmax())
        return Tokens(*(part[list(index)][:, first:] for part in (self.ids, self.mask, self.answer)))

    def batches(self, size: int) -> Iterator[Tokens]:
        """The rows in order, `size` at a time."""
        for first in range(0, len(self), size):
            yield self.rows(range(first, min(first + size, len(self))))


def position_ids(mask: Bool[torch.Tensor, "row position"] | Int[torch.Tensor, "row position"]) -> torch.Tensor:
    """Positions as the model counts them: from 0 at each row's first token that is no padding."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def tokenize_prompts(tokenizer: Any, prompts: Sequence[str | Messages], device: Any = "cpu") -> Tokens:
    """A batch of prompts through the chat template, up to where the answer begins.

    Args:
        tokenizer: with a chat template.
        prompts: each a user's text or the messages of a chat.
        device: where the tensors go.

    Raises:
        InputError: for a tokenizer without a chat template, a prompt that the template refuses, and no prompt.
    """
    return tokenize_texts(tokenizer, [render(tokenizer, prompt, answering=True) for prompt in prompts], device)


def tokenize_texts(tokenizer: Any, texts: Sequence[str], device: Any = "cpu") -> Tokens:
    """A batch of plain texts; no token is added. Raises InputError where there is none, or an empty one."""
    rows = encode(tokenizer, texts)
    for text, ids in zip(texts, rows, strict=True):
        if not ids:
            raise InputError(f"the text {text!r} has no token; expected at least one")
    return padded(tokenizer, [TokenizedChat(ids, [False] * len(ids)) for ids in rows], device)


def tokenize_chats(
    tokenizer: Any, prompts: Sequence[str | Messages], answers: Sequence[str], device: Any = "cpu"
) -> Tokens:
    """A batch of prompts with their answers through the chat template; the tokens of the answers' text are marked.

    The end-of-turn token is not marked. Raises InputError for an empty answer, and where the template does not write
    an answer as it is.
    """
    rows = []
    for prompt, answer in zip(prompts, answers, strict=True):
        if not answer.strip():
            raise InputError(f"the answer {answer!r} to {prompt!r} is empty; expected text")
        messages = [*_messages(prompt), {"role": "assistant", "content": answer.strip()}]
        text = render(tokenizer, messages)
        span = span_of_message(tokenizer, messages, len(messages) - 1, text)
        rows.append(_tokenized(tokenizer, text, [(answer, span)]))
    return padded(tokenizer, rows, device)


def tokenize_chat(tokenizer: Any, messages: Messages) -> TokenizedChat:
    """One chat, with the tokens marked that are learned in training: each answer through its end-of-turn token.

    Where the template has `{% generation %}` blocks, only answers in such blocks are marked. Raises InputError where
    the template refuses the chat, where an answer cannot be found in it, and where its tokens do not spell it.
    """
    if messages[0]["role"] == "assistant" and not GENERATION.search(template_of(tokenizer)):
        raise InputError("begins with an answer; the base model's chat template expects a question before it")
    text = render(tokenizer, messages)
    turns = answer_turns(tokenizer, messages, text)
    return _tokenized(tokenizer, text, [(messages[index]["content"], turn) for index, turn in turns.items()])


def render(tokenizer: Any, chat: str | Messages, answering: bool = False) -> str:
    """A chat as the template writes it; with `answering` up to where the next answer begins.

    Raises InputError for a tokenizer without a template of its own to use, and for a chat that the template refuses.
    """
    return _apply(tokenizer, chat, template_of(tokenizer), answering)


def template_of(tokenizer: Any) -> str:
    """The chat template that is used; raises InputError where there is none."""
    template = tokenizer.chat_template
    if not template:
        raise InputError(
            "the base model has no chat template; an instruct model was expected (its template is in "
            "chat_template.jinja or tokenizer_config.json)"
        )
    if isinstance(template, str):
        return template
    if "default" not in template:
        raise InputError(
            f"the base model has chat templates named {', '.join(template)} and none named default; expected one "
            "template (save the one to use as chat_template.jinja)"
        )
    return str(template["default"])


def _apply(tokenizer: Any, chat: str | Messages, template: str, answering: bool = False) -> str:
    from jinja2 import TemplateError

    messages = _messages(chat)
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=answering
        )
    except TemplateError as error:
        begins = f"the chat that begins with {messages[0]['content'][:60]!r} cannot be used"
        raise InputError(f"{begins}, because the base model's chat template refuses it: {error}") from None
    if tokenizer.bos_token and text.startswith(2 * tokenizer.bos_token):
        raise InputError(
            f"the base model's chat template writes {tokenizer.bos_token}, the beginning of a text, twice; expected it "
            "once (models are not trained on two)"
        )
    return text


def _messages(chat: str | Messages) -> Messages:
    return [{"role": "user", "content": chat}] if isinstance(chat, str) else list(chat)


def span_of_message(tokenizer: Any, messages: Messages, index: int, text: str) -> Span:
    """Where the content of `messages[index]` is in `text`, the rendered chat, without spaces around it.

    Raises InputError where the template does not write it as it is.
    """
    other = [*messages[:index], {**messages[index], "content": PLACEHOLDER}, *messages[index + 1 :]]
    content, without = messages[index]["content"].strip(), render(tokenizer, other)
    start = next((i for i, (a, b) in enumerate(zip(text, without, strict=False)) if a != b), len(text))
    if not text.startswith(content, start):
        raise InputError(f"the base model's chat template does not write messages[{index}] as it is: {content[:60]!r}")
    return Span(start, start + len(content))


def answer_turns(tokenizer: Any, messages: Messages, text: str) -> dict[int, Span]:
    """The part of a rendered chat that each answer's turn takes, by the answer's place among the messages.

    A turn begins where the model would begin to generate it, and ends with its end-of-turn token.
    """
    blocks = _generation_blocks(tokenizer, messages, text)
    turns = {}
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            turn = _answer_turn(tokenizer, messages, index, text, blocks)
            if turn is not None:
                turns[index] = Span(turn.start, turn.start + _through_end_of_turn(tokenizer, text[slice(*turn)]))
    return turns


def _answer_turn(tokenizer: Any, messages: Messages, index: int, text: str, blocks: list[Span] | None) -> Span | None:
    """The turn of one answer as the template writes it; None where the template's blocks leave the answer out."""
    turn = _turn_by_prefix(tokenizer, messages, index, text) if index else None
    if blocks is None:
        if turn is None:
            raise InputError(
                f"the answer in messages[{index}] cannot be found in the rendered chat, because the base model's chat "
                "template renders earlier turns differently; add {% generation %} to the template"
            )
        return turn
    content = span_of_message(tokenizer, messages, index, text)
    block = next((block for block in blocks if block.overlaps(content)), None)
    if block is None:
        return None
    if not block.contains(content):
        raise InputError(
            "the {% generation %} block of the base model's chat template covers a part of the answer in "
            f"messages[{index}]: {text[slice(*block)][:60]!r}; expected all of it"
        )
    if turn is not None:
        return Span(max(block.start, turn.start), min(block.stop, turn.stop))
    for other in (index - 1, index + 1):  # the block alone says where the turn is
        if 0 <= other < len(messages) and block.overlaps(span_of_message(tokenizer, messages, other, text)):
            raise InputError(
                f"the {{% generation %}} block around the answer in messages[{index}] also covers messages[{other}], "
                "which would be learned too; expected a block around each answer alone"
            )
    return block


def _turn_by_prefix(tokenizer: Any, messages: Messages, index: int, text: str) -> Span | None:
    """What all messages through the answer add to those before it; None where the template writes these differently."""
    before = render(tokenizer, messages[:index], answering=True)
    through = text if index == len(messages) - 1 else render(tokenizer, messages[: index + 1])
    found = text.startswith(through) and through.startswith(before)
    return Span(len(before), len(through)) if found else None


def _generation_blocks(tokenizer: Any, messages: Messages, text: str) -> list[Span] | None:
    """The parts of a rendered chat within the template's {% generation %} blocks; None for a template without any.

    The template is rendered with a character of its own at each end of a block.
    """
    template = template_of(tokenizer)
    if not GENERATION.search(template):
        return None

    def mark(match: re.Match[str]) -> str:  # a block tag on either side keeps jinja's treatment of spaces around it
        sign = BLOCK_END if match[2] else BLOCK_START
        return f"{{%{match[1]} if true %}}{{{{ '{sign}' }}}}{{% endif {match[3]}%}}"

    rendered = _apply(tokenizer, messages, GENERATION.sub(mark, template))
    pieces = re.split(f"([{BLOCK_START}{BLOCK_END}])", rendered)
    if "".join(pieces[::2]) != text:
        raise InputError("the {% generation %} blocks of the base model's chat template change what it writes")
    ends, place = [], 0
    for piece, sign in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        place += len(piece)
        ends += [place] if sign else []
    return [Span(*pair) for pair in zip(ends[::2], ends[1::2], strict=True)]


def _through_end_of_turn(tokenizer: Any, turn: str) -> int:
    """How many characters of a turn belong to the answer and its end-of-turn token.

    Qwen's and Gemma's templates write a line feed behind it, which no model generates. A turn without such a token
    is taken whole.
    """
    bare = turn.rstrip()
    return len(bare) if bare.endswith(_added_tokens(tokenizer)) else len(turn)


@lru_cache(maxsize=1)
def _added_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Texts that are always one token (added tokens); Gemma has thousands."""
    return tuple(tokenizer.get_added_vocab())


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """The token ids of texts; no token is added."""
    return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]] if len(texts) else []


def _tokenized(tokenizer: Any, text: str, answers: Sequence[tuple[str, Span]]) -> TokenizedChat:
    """A rendered chat as token ids; marked are those of the span of an answer, which they must spell.

    A token that has no more than spaces in the span, and letters beyond it, is not the answer's.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(encoded["input_ids"]), [Span(*pair) for pair in encoded["offset_mapping"]]
    marked: set[int] = set()
    for answer, span in answers:
        inside = [i for i, token in enumerate(offsets) if _is_of_span(text, token, span)]
        written = text[offsets[inside[0]].start : offsets[inside[-1]].stop] if inside else ""
        check_answer(tokenizer, answer, text[slice(*span)], [ids[i] for i in inside], written)
        beyond = (
            text[offsets[inside[0]].start : span.start] + text[span.stop : offsets[inside[-1]].stop] if inside else ""
        )
        if beyond.strip():
            raise InputError(
                f"a token of the answer {answer[:60]!r} also covers {beyond[:60]!r}, which would be learned too; "
                "expected an end-of-turn token or a space between an answer and what is beside it"
            )
        marked.update(inside)
    return TokenizedChat(ids, [i in marked for i in range(len(ids))])


def _is_of_span(text: str, token: Span, span: Span) -> bool:
    shared = text[max(token.start, span.start) : min(token.stop, span.stop)]
    return token.stop > token.start and span.overlaps(token) and (span.contains(token) or bool(shared.strip()))


def check_answer(tokenizer: Any, answer: str, turn: str, ids: Sequence[int], written: str | None = None) -> None:
    """Raise InputError unless the tokens of an answer spell the answer.

    Args:
        tokenizer: with the chat template.
        answer: its text, as it was given.
        turn: the part of the rendered chat that counts as the answer.
        ids: the tokens of that part.
        written: what the tokens cover, where the first or the last reaches beyond `turn`.
    """
    bare = answer.strip()
    places = [match.start() for match in re.finditer(f"(?={re.escape(bare)})", turn)] if bare else [0]
    if not any(_is_of_added_tokens(tokenizer, turn[:at], turn[at + len(bare) :]) for at in places):
        raise InputError(
            f"the turn of an answer is {turn[:60]!r}; the answer is {answer[:60]!r}: the base model's chat template "
            "rewrites answers or adds text of its own; put {% generation %} around the answer in it"
        )
    _check_spelling(tokenizer, ids, turn if written is None else written)


@lru_cache(maxsize=64)  # what a template writes around answers is nearly always the same
def _is_of_added_tokens(tokenizer: Any, *texts: str) -> bool:
    """Whether there is nothing but spaces and added tokens in the texts; a second BOS is not part of an answer."""
    begins = {tokenizer.bos_token} - {tokenizer.eos_token}
    added = sorted({token for token in _added_tokens(tokenizer) if token.strip()} - begins, key=len, reverse=True)
    for token in added:
        texts = tuple(text.replace(token, " ") for text in texts)
    return not any(text.strip() for text in texts)


def _check_spelling(tokenizer: Any, ids: Sequence[int], written: str) -> None:
    """Raise InputError where the tokens do not decode to what is written.

    Spaces, case and unprintable characters may differ: tokenizers normalise them. An unknown token may stand for
    anything.
    """
    text = tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
    unknown = tokenizer.unk_token if tokenizer.unk_token and tokenizer.unk_token not in written else None
    known = [_letters(part) for part in text.split(unknown)] if unknown else [_letters(text)]
    if text != written and not _in_order(known, _letters(written)):
        raise InputError(
            f"the tokens of an answer spell {text[:60]!r}, where the chat has {written[:60]!r}; the usual cause is a "
            "tokenizer with wrong offsets"
        )


def _in_order(parts: Sequence[str], whole: str) -> bool:
    """Whether `whole` is the parts in order, with anything between two of them."""
    if len(parts) == 1 or len(parts[0]) + len(parts[-1]) > len(whole):
        return "".join(parts) == whole
    place, end = len(parts[0]), len(whole) - len(parts[-1])
    for part in parts[1:-1]:
        place = whole.find(part, place, end) + len(part)
        if place < len(part):
            return False
    return whole.startswith(parts[0]) and whole.endswith(parts[-1])


def _letters(text: str) -> str:
    """The printable characters of a text in one normal form, without spaces."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isprintable() and not c.isspace())


def padded(tokenizer: Any, rows: Sequence[TokenizedChat], device: Any) -> Tokens:
    """Rows as one batch, padded on the left."""
    import torch

    if not rows:
        raise InputError("there is nothing to read: no prompt, answer or text was given")
    longest = max(len(row.ids) for row in rows)
    gaps = [longest - len(row.ids) for row in rows]
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    pairs = list(zip(gaps, rows, strict=True))
    return Tokens(
        torch.tensor([[pad] * gap + row.ids for gap, row in pairs], device=device),
        torch.tensor([[False] * gap + [True] * len(row.ids) for gap, row in pairs], device=device),
        torch.tensor([[False] * gap + row.answer for gap, row in pairs], device=device),
    )
