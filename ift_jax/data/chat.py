"""Chat: the one place where messages become text and text becomes token ids.

Training, ranking and generation all build their prompts here, so they cannot differ.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray

from ift_jax.data.chat_template import ChatTemplate
from ift_jax.data.chat_template import Message as Message
from ift_jax.data.tokenization import Encoded, Layout, Tokenization, whole
from ift_jax.errors import InputError, one_line

# For base models: turns on lines of their own, an answer closed by the end-of-sequence token.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
)
REASONING = "reasoning_content"  # the key under which chat templates look for it
_MARK = "\u2063content\u2063"  # invisible separators: no template treats them as markup
_THOUGHT = "\u2063thought\u2063"


class Turns(NamedTuple):
    """What one example says, and what of it is trained besides the answer.

    Attributes:
        messages: the turns before the answer; an assistant's may hold its `REASONING`.
        completion: the answer.
        earlier: numbers of the turns in `messages` that are trained too.
        whole: every token is trained.
        plain: the completion is a text that goes into the model without a chat format.
        reasoning: what the assistant thinks before it answers. It is trained as well where the
            chat template prints it.
    """

    messages: tuple[Message, ...]
    completion: str
    earlier: tuple[int, ...] = ()
    whole: bool = False
    plain: bool = False
    reasoning: str = ""

    @property
    def answer(self) -> Message:
        """The answer as a turn."""
        turn = {"role": "assistant", "content": self.completion}
        return {**turn, REASONING: self.reasoning} if self.reasoning else turn

    def texts(self) -> list[str]:
        """All that is said and thought, in its order."""
        turns = (*self.messages, self.answer)
        return [turn[key] for turn in turns for key in (REASONING, "content") if key in turn]


class UnusableTurns(ValueError):
    """A conversation that the chat template refuses or rewrites; the message says why."""


@dataclass(frozen=True)
class Chat:
    """A tokenizer with its chat template.

    Attributes:
        tokenizer: a transformers fast tokenizer.
        opening: what the template puts between the prompt for an answer and the answer: a space
            in Mistral's, an assistant's header in templates that open no turn. The model has
            to write it, so it is trained.
        trims: whether the template prints contents without the blanks around them.
        end_of_turn: the text that closes an assistant's turn, up to its special token.
        end_of_turn_id: that token.
        bos: the text of the token that the tokenizer puts before every text, or "". Chat templates
            print it themselves; plain text gets it here.
        special_tokens: pattern of every special token's text.
        known_characters: those that are known to have tokens, so that each is tried once.
    """

    tokenizer: Any
    opening: str
    trims: bool
    end_of_turn: str
    end_of_turn_id: int
    bos: str
    special_tokens: re.Pattern[str]
    known_characters: set[str] = field(default_factory=set, compare=False, repr=False)

    @staticmethod
    def of(tokenizer: Any) -> "Chat":
        """Finds out how the template opens and closes an assistant's turn.

        A tokenizer without a template gets `PLAIN_TEMPLATE`, which is saved with it.

        Raises:
            InputError: if the template puts no special token behind an answer, since
                nothing would teach the model to stop.
        """
        if tokenizer.chat_template is None:
            _set_plain_template(tokenizer)
        user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}
        blanks = {**answer, "content": f" \n{_MARK}\n "}
        try:
            text = tokenizer.apply_chat_template([user, answer], tokenize=False)
            trims = tokenizer.apply_chat_template([user, blanks], tokenize=False) == text
            prompt = tokenizer.apply_chat_template(
                [user], tokenize=False, add_generation_prompt=True
            )
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template does not work: {one_line(error)}") from error
        if text.count(_MARK) != 1:
            raise InputError("the chat template does not print an assistant's content as it is")
        before, after = text.split(_MARK)
        # A prompt that the whole text does not begin with (some add an empty thought) is complete.
        opening = before[len(prompt) :] if before.startswith(prompt) else ""
        special = {
            token.content: token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special
        }
        ends = [(after.find(token), token) for token in special if token in after]
        if not ends:
            raise InputError("the chat template puts no special token behind an assistant's turn")
        at, token = min(ends)
        pattern = re.compile("|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)))
        return Chat(
            tokenizer, opening, trims, after[: at + len(token)], special[token],
            bos=tokenizer.bos_token if _adds_bos(tokenizer) else "", special_tokens=pattern,
        )  # fmt: skip

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The text before an answer: all turns, and the opening of the assistant's."""
        if not messages:
            return self._first_opening()
        return self.template.prompt(messages)

    def prompt_ids(self, messages: Sequence[Message]) -> NDArray[np.int32]:
        """Token ids of `prompt_text`."""
        text = self.prompt_text(messages)
        return np.array(self.backend.encode(text, add_special_tokens=False).ids, np.int32)

    def layout(self, turns: Turns) -> Layout:
        """The whole text of an example, and the spans of characters that are trained.

        Raises:
            UnusableTurns: if the template refuses these turns, or prints an earlier trained
                turn otherwise than generation would have seen it.
        """
        if turns.plain:
            text = self.bos + turns.completion + self.end_of_turn
            return Layout(text, ((len(self.bos), len(text)),))
        try:
            prompt = self.prompt_text(turns.messages)
            spans = [self._span(prompt, turns.messages, number) for number in turns.earlier]
            answer = self._written(prompt, turns.messages, turns.answer)
        except jinja2.TemplateError as error:
            raise UnusableTurns(f"the chat template refuses it: {one_line(error)}") from error
        text = prompt + answer
        if turns.whole:
            return Layout(text, ((0, len(text)),))
        return Layout(text, (*spans, (len(prompt), len(text))))

    def _first_opening(self) -> str:
        """What stands before an assistant's turn that is the first: no template opens one."""
        first = {"role": "assistant", "content": _MARK}
        text = self.tokenizer.apply_chat_template([first], tokenize=False)
        if text.count(_MARK) != 1:
            raise UnusableTurns("the chat template does not print an assistant's turn as the first")
        return text.partition(_MARK)[0].removesuffix(self.opening)

    def _span(self, text: str, messages: Sequence[Message], number: int) -> tuple[int, int]:
        before = self.prompt_text(messages[:number])
        said = before + self._written(before, messages[:number], messages[number])
        if not text.startswith(said):
            raise UnusableTurns(
                f"the chat template rewrites turn {number + 1} once others follow; "
                "train_turns='last' trains only the last one"
            )
        return len(before), len(said)

    def _written(self, prompt: str, before: Sequence[Message], turn: Message) -> str:
        """What the assistant writes behind a prompt: its reasoning, if that is printed, and more.

        Only the template knows how the one goes before the other.
        """
        plain = self._said(turn["content"])
        if REASONING not in turn:
            return plain
        spoken = {key: text for key, text in turn.items() if key != REASONING}
        text, without = (
            self.tokenizer.apply_chat_template([*before, last], tokenize=False)
            for last in (turn, spoken)
        )
        if text == without:
            return plain
        written, end, _ = text.removeprefix(prompt).rpartition(self.end_of_turn)
        inside = all(turn[key].strip() in written for key in (REASONING, "content"))
        if not (text.startswith(prompt) and inside):
            raise UnusableTurns("the chat template prints reasoning that no prompt leads to")
        return written + end

    def _said(self, content: str) -> str:
        """What the assistant writes behind a prompt."""
        return self.opening + (content.strip() if self.trims else content) + self.end_of_turn

    def encode(self, pairs: Iterable[tuple[Sequence[Message], str]]) -> list[Encoded]:
        """Tokenizes prompts with their completions; see `encode_layouts`."""
        return self.encode_layouts(self.layout(Turns(tuple(m), c)) for m, c in pairs)

    def encode_layouts(self, layouts: Iterable[Layout]) -> list[Encoded]:
        """Token ids: one tokenization of each whole text.

        Trained are the tokens with a character of an answer or of its end of turn, by
        position in the text; a token that straddles the boundary is trained.

            prompt "2+2=", completion "4", end of turn "<end>"
            token    2  +  2  =  4  <end>
            trained  .  .  .  .  x  x
        """
        return self.tokenization.encode(list(layouts))

    def count_tokens(self, texts: Iterable[str]) -> dict[str, int]:
        """The number of tokens of each distinct text, tokenized by itself."""
        distinct = list(dict.fromkeys(texts))
        encodings = self.backend.encode_batch(distinct, add_special_tokens=False)
        return {text: len(e.ids) for text, e in zip(distinct, encodings, strict=True)}

    def most_characters(self, num_tokens: int) -> int:
        """How many characters so many tokens can stand for at most."""
        return num_tokens * self._longest_token

    @cached_property
    def _longest_token(self) -> int:
        return max(map(len, self.tokenizer.get_vocab()))

    def decode(self, ids: Iterable[int]) -> str:
        """Text of generated tokens, special tokens and the opening of the turn left out."""
        return self._text(ids).removeprefix(self._opening_text)

    def spoken(self, text: str) -> str:
        """What of a generated text is the answer: what follows the reasoning, if there is any.

        Example: behind `<think>Two and two.</think>` of a template that prints reasoning so.
        """
        end = self._end_of_reasoning
        _, found, answer = text.partition(end) if end else ("", "", "")
        return answer.lstrip() if found else text

    @cached_property
    def _end_of_reasoning(self) -> str:
        """What the template prints between reasoning and answer, or "" if it prints none."""
        user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}
        text = self.tokenizer.apply_chat_template(
            [user, {**answer, REASONING: _THOUGHT}], tokenize=False
        )
        _, found, behind = text.partition(_THOUGHT)
        between, also, _ = behind.partition(_MARK)
        return self.special_tokens.sub("", between).strip() if found and also else ""

    def decode_beginning(self, ids: Iterable[int]) -> str:
        """As much of `decode` as stays the same whatever tokens follow."""
        known = list(ids)
        while known and known[-1] in self._byte_tokens:
            known.pop()
        text = self._text(known).rstrip("\N{REPLACEMENT CHARACTER}")  # bytes of half a character
        opening = self._opening_text
        return "" if opening.startswith(text) else text.removeprefix(opening)

    @cached_property
    def _byte_tokens(self) -> frozenset[int]:
        """Tokens of single bytes, as Llama 2 has them: a run of them is one text, or none."""
        vocabulary = self.tokenizer.get_vocab()
        names = (f"<0x{byte:02X}>" for byte in range(256))
        return frozenset(vocabulary[name] for name in names if name in vocabulary)

    def _text(self, ids: Iterable[int]) -> str:
        # The clean-up would take away spaces that the model has written.
        return self.tokenizer.decode(
            [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    @property
    def _opening_text(self) -> str:
        return self.special_tokens.sub("", self.opening)

    def special_token_in(self, *texts: str) -> str:
        """The first special token that stands in a text as characters, or "".

        Such text would close a turn, or open one, from inside the data.
        """
        for text in texts:
            if match := self.special_tokens.search(text):
                return match.group()
        return ""

    def missing_character(self, text: str) -> str:
        """A character, blanks apart, for which the tokenizer has no token, or "".

        It would be dropped without a trace. SmolLM2 has none for U+0016 and five more.
        """
        for character in sorted(set(text) - self.known_characters):
            encoding = self.backend.encode(character, add_special_tokens=False)
            if not encoding.ids and not character.isspace():
                return character
            self.known_characters.add(character)
        return ""

    @cached_property
    def template(self) -> ChatTemplate:
        """The tokenizer's chat template."""
        return ChatTemplate(self.tokenizer)

    @cached_property
    def tokenization(self) -> Tokenization:
        """The tokenizer, with the tokens of words that it met."""
        return Tokenization(self.backend)

    @property
    def backend(self) -> Any:
        """The tokenizer of the library `tokenizers`, which gives each text all of its tokens."""
        return whole(self.tokenizer.backend_tokenizer)


def _set_plain_template(tokenizer: Any) -> None:
    if tokenizer.eos_token is None:
        raise InputError("the tokenizer has neither a chat template nor an eos_token")
    before = "{{ bos_token }}" if _adds_bos(tokenizer) else ""
    tokenizer.chat_template = before + PLAIN_TEMPLATE


def _adds_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a").input_ids[:1] == [bos]
