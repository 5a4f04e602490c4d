"""Turns records of the known instruction formats into conversations.

Assistant turns are trained, tool calls among them; system, user and tool turns are by "all_text"
only. Which assistant turns, says `train_turns`. Two assistant turns in a row are allowed (a tool
call and a remark, a long answer in pieces), and so is a conversation that ends with the user: that
end is context for nothing, and is kept as it is.
"""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ift_jax.data.conversation import Conversation as Conversation
from ift_jax.data.conversation import Message as Message
from ift_jax.data.records import Record, Rejected, Unusable, kind_of
from ift_jax.data.splits import has_words, normalise
from ift_jax.data.turns import openai_turns, read_tools, sharegpt_turns
from ift_jax.errors import InputError

FORMATS = ("prompt_completion", "messages", "sharegpt", "alpaca", "superni", "text", "columns")
TRAIN_TURNS = ("all", "last", "all_text")
# Tk-Instruct (Wang et al. 2022, table 5) did best with the definition and two positive examples.
SUPERNI_EXAMPLES = 2

Fields = Mapping[str, Any]


def detect_format(record_fields: Fields) -> str:
    """The format that these fields belong to.

    Raises:
        InputError: If none fits, or more than one; says which, and how to declare it.

    Example:
        >>> detect_format({"instruction": "Add 1 and 2.", "input": "", "output": "3"})
        'alpaca'
    """
    found = [fmt for fmt, fits in _SIGNS.items() if fits(record_fields)]
    if len(found) == 1:
        return found[0]
    names = ", ".join(map(str, record_fields)) or "none"
    if found:
        raise InputError(
            f"the columns ({names}) fit several formats; set format= to one of {', '.join(found)}"
        )
    nested = [name for name, value in record_fields.items() if _holds_objects(value)]
    if nested:
        path = nested[0] + (".*" if isinstance(record_fields[nested[0]], Mapping) else "")
        raise InputError(
            f"the columns ({names}) are of no known format; if the records stand in "
            f"{nested[0]!r}, set records_at={path!r}"
        )
    raise InputError(
        f"the columns ({names}) are of no known format; give templates for labelled columns "
        f"(format='columns'), or set format= to one of {', '.join(FORMATS)}"
    )


def _holds_objects(value: Any) -> bool:
    elements = list(value.values()) if isinstance(value, Mapping) else value
    return isinstance(elements, list) and bool(elements) and isinstance(elements[0], Mapping)


def _first_turn_has(fields: Fields, column: str, key: str) -> bool:
    turns = fields.get(column)
    if not isinstance(turns, list | tuple):
        return False
    return not turns or (isinstance(turns[0], Mapping) and key in turns[0])


_SIGNS: dict[str, Callable[[Fields], bool]] = {
    "prompt_completion": lambda fields: "prompt" in fields and "completion" in fields,
    "messages": lambda fields: (
        "messages" in fields
        or ("conversations" in fields and _first_turn_has(fields, "conversations", "role"))
    ),
    "sharegpt": lambda fields: (
        "conversations" in fields and _first_turn_has(fields, "conversations", "from")
    ),
    "alpaca": lambda fields: (
        "instruction" in fields and ("output" in fields or "response" in fields)
    ),
    "superni": lambda fields: "Definition" in fields and "Instances" in fields,
    "text": lambda fields: list(fields) == ["text"],
}


def to_conversations(
    record: Record, fmt: str, *, train_turns: str = "all"
) -> Iterator[Conversation | Rejected]:
    """The examples of one record: one, or many for a Super-NaturalInstructions file.

    Args:
        record: As read from a source.
        fmt: One of FORMATS except "columns", whose records need templates.
        train_turns: "all" trains every assistant turn, "last" the last one, "all_text" every
            turn of any role (an example ends with the assistant's last, see `examples`).
            Assistant turns inside a `prompt` are context: only "all_text" trains them.

    Raises:
        InputError: If fmt or train_turns is none of these.
    """
    if fmt == "columns":
        raise InputError(
            "format='columns': labelled columns become examples by templates; name some"
        )
    if fmt not in FORMATS:
        raise _unknown("format", fmt, FORMATS)
    if train_turns not in TRAIN_TURNS:
        raise _unknown("train_turns", train_turns, TRAIN_TURNS)
    return _converted(record, fmt, train_turns)


def _unknown(option: str, value: str, known: Sequence[str]) -> InputError:
    close = difflib.get_close_matches(value, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return InputError(f"{option}={value!r}: unknown; {hint}there are {', '.join(known)}")


def _converted(record: Record, fmt: str, train_turns: str) -> Iterator[Conversation | Rejected]:
    if fmt == "superni":
        yield from _superni(record, train_turns)
        return
    try:
        yield _with_training(_CONVERTERS[fmt](record.fields), train_turns)
    except Unusable as unusable:
        yield unusable.at(record.origin)


def _with_training(conversation: Conversation, train_turns: str) -> Conversation:
    messages = conversation.messages
    trained = [number for number, message in enumerate(messages) if message.trained]
    if not trained:
        raise Unusable("no_assistant_turn", "no assistant turn to train")
    if train_turns == "all_text":
        messages = tuple(replace(message, trained=True) for message in messages)
    elif train_turns == "last":
        messages = tuple(
            replace(message, trained=number == trained[-1])
            for number, message in enumerate(messages)
        )
    references = conversation.references
    if not references and not conversation.plain:
        references = (conversation.messages[trained[-1]].text(),)
    return replace(conversation, messages=messages, references=references)


def _prompt_completion(fields: Fields) -> Conversation:
    """TRL's prompt and completion, each a string or a list of messages."""
    prompt, completion = fields.get("prompt"), fields.get("completion")
    if isinstance(prompt, str):
        _text(fields, "prompt", "empty_prompt")
        before = [Message("user", prompt, trained=False)]
    else:
        before = [replace(m, trained=False) for m in openai_turns(prompt, "prompt")]
    if isinstance(completion, str):
        _text(fields, "completion", "empty_completion")
        after = [Message("assistant", completion, trained=True)]
    else:
        after = openai_turns(completion, "completion")
    conversation = Conversation((*before, *after), (), tools=read_tools(fields.get("tools")))
    if not fields.get("choices"):
        return conversation
    choices, answer = fields["choices"], after[-1].content
    if not isinstance(choices, list | tuple) or not all(isinstance(c, str) for c in choices):
        raise Unusable("wrong_shape", "choices is not a list of texts")
    if answer not in choices:
        raise Unusable("answer_not_in_choices", f"{answer[:60]!r} is none of the choices")
    return replace(conversation, choices=tuple(choices))


def _messages(fields: Fields) -> Conversation:
    column = "messages" if "messages" in fields else "conversations"
    messages = openai_turns(fields.get(column), column)
    if messages[0].role != "system":
        messages = _system(fields) + messages
    return Conversation(tuple(messages), (), tools=read_tools(fields.get("tools")))


def _sharegpt(fields: Fields) -> Conversation:
    messages = sharegpt_turns(fields.get("conversations"), "conversations")
    messages = _system(fields) + messages
    return Conversation(tuple(messages), (), tools=read_tools(fields.get("tools")))


def _system(fields: Fields) -> list[Message]:
    """The system turn that some files keep in a column of its own."""
    system = fields.get("system")
    if not isinstance(system, str) or not system.strip():
        return []
    return [Message("system", system, trained=False)]


def _alpaca(fields: Fields) -> Conversation:
    """instruction, input, output; Dolly's names context and response serve as well.

    `history` holds earlier pairs of an instruction and its response.
    """
    instruction = _text(fields, "instruction", "empty_prompt")
    given = "input" if "input" in fields else "context"
    answer = "output" if "output" in fields else "response"
    text, history = _text(fields, given, ""), _history(fields)
    prompt = alpaca_prompt(instruction, text)
    completion = _text(fields, answer, "empty_completion")
    user = Message("user", prompt, trained=False)
    answer_turn = Message("assistant", completion, True)
    question = (text,) if has_words(text) and not history else ()
    turns = (*_system(fields), *history, user, answer_turn)
    return Conversation(turns, (), question=question)


def _history(fields: Fields) -> list[Message]:
    pairs, turns = fields.get("history") or [], []
    if not isinstance(pairs, list | tuple):
        raise Unusable("wrong_shape", f"history is {kind_of(pairs)}, not a list")
    for number, pair in enumerate(pairs, start=1):
        place = f"history.{number}"
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise Unusable("wrong_shape", f"{place} is not an instruction and its response")
        said = dict(zip(("instruction", "response"), pair, strict=True))
        turns.append(Message("user", _text(said, "instruction", "empty_prompt"), False))
        turns.append(Message("assistant", _text(said, "response", "empty_completion"), True))
    return turns


def alpaca_prompt(instruction: str, given: str = "") -> str:
    """The user turn for an instruction and, where there is one, what it works on.

    Example:
        >>> print(alpaca_prompt("Translate to German.", "Good morning"))
        Translate to German.
        <BLANKLINE>
        Input:
        Good morning
    """
    if not given.strip():
        return instruction.strip()
    return f"{instruction.strip()}\n\nInput:\n{given.strip()}"


def _superni(record: Record, train_turns: str) -> Iterator[Conversation | Rejected]:
    """One conversation per instance; a bad instance is rejected by itself."""
    fields = record.fields
    try:
        definition = _definition(fields.get("Definition"))
        examples = _superni_examples(fields.get("Positive Examples") or [])
        instances = fields.get("Instances")
        if not isinstance(instances, list) or not instances:
            raise Unusable("wrong_shape", "Instances is not a list with instances")
        # Some files repeat an example among the instances, where it may be held out.
        asked = {_squeezed(one.get("input")) for one in instances if isinstance(one, Mapping)}
        shown = [pair for pair in examples if _squeezed(pair[0]) not in asked][:SUPERNI_EXAMPLES]
    except Unusable as unusable:
        yield unusable.at(record.origin)
        return
    for number, instance in enumerate(instances, 1):
        try:
            if not isinstance(instance, Mapping):
                raise Unusable("wrong_shape", f"{kind_of(instance)}, not an object")
            text = _text(instance, "input", "empty_prompt")
            outputs = instance.get("output")
            outputs = [outputs] if isinstance(outputs, str) else outputs
            if not isinstance(outputs, list) or not all(isinstance(o, str) for o in outputs):
                raise Unusable("wrong_shape", "output is not a list of texts")
            answers = tuple(output for output in outputs if output.strip())
            if not answers:
                raise Unusable("empty_completion", "no output that is not empty")
            prompt = superni_prompt(definition, shown, text)
            messages = (Message("user", prompt, False), Message("assistant", answers[0], True))
            yield _with_training(Conversation(messages, answers, question=(text,)), train_turns)
        except Unusable as unusable:
            yield unusable.at(f"{record.origin}.Instances.{number}")


def _squeezed(text: Any) -> str:
    return normalise(text) if isinstance(text, str) else ""


def _definition(definition: Any) -> str:
    """A list of strings; a bare string in older files."""
    parts = [definition] if isinstance(definition, str) else definition
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise Unusable("wrong_shape", "Definition is not text")
    text = "\n".join(part.strip() for part in parts).strip()
    if not text:
        raise Unusable("empty_prompt", "Definition is empty")
    return text


def _superni_examples(examples: Any) -> list[tuple[str, str]]:
    if not isinstance(examples, list):
        raise Unusable("wrong_shape", "Positive Examples is not a list")
    pairs = []
    for number, example in enumerate(examples, 1):
        given = example.get("input") if isinstance(example, Mapping) else None
        answer = example.get("output") if isinstance(example, Mapping) else None
        answer = answer[0] if isinstance(answer, list) and answer else answer
        if not isinstance(given, str) or not isinstance(answer, str):
            raise Unusable("wrong_shape", f"Positive Examples.{number}: no input and output texts")
        pairs.append((given, answer))
    return pairs


def superni_prompt(definition: str, examples: Sequence[tuple[str, str]], given: str) -> str:
    """The user turn for one instance: the definition, worked examples, then the input.

    Example:
        >>> print(superni_prompt("Give the opposite.", [("hot", "cold")], "tall"))
        Give the opposite.
        <BLANKLINE>
        Example 1
        Input: hot
        Output: cold
        <BLANKLINE>
        Now complete the following example.
        Input: tall
        Output:
    """
    parts = [definition.strip()]
    for number, (example, answer) in enumerate(examples, 1):
        parts.append(f"Example {number}\nInput: {example.strip()}\nOutput: {answer.strip()}")
    parts.append(f"Now complete the following example.\nInput: {given.strip()}\nOutput:")
    return "\n\n".join(parts)


def _plain_text(fields: Fields) -> Conversation:
    """Text to continue training on: one trained turn, and no chat template around it."""
    text = _text(fields, "text", "empty_completion")
    return Conversation((Message("assistant", text, trained=True),), (), plain=True)


def _text(fields: Fields, name: str, reason_if_empty: str) -> str:
    """A text column; "" for a missing one where `reason_if_empty` is ""."""
    value = fields.get(name)
    if value is None and not reason_if_empty:
        return ""
    if not isinstance(value, str):
        kind = "missing" if value is None else f"{kind_of(value)}, not text"
        raise Unusable("wrong_shape", f"{name} is {kind}")
    if reason_if_empty and not value.strip():
        raise Unusable(reason_if_empty, f"{name} is empty")
    return value


_CONVERTERS: dict[str, Callable[[Fields], Conversation]] = {
    "prompt_completion": _prompt_completion,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "text": _plain_text,
}
