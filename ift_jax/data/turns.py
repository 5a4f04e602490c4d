"""Reads chat turns: OpenAI's {role, content} and ShareGPT's {from, value}."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ift_jax.data.conversation import Message
from ift_jax.data.records import Unusable, kind_of

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
# What is thought before it is spoken, by the names that servers and data sets give it.
_REASONING = ("reasoning_content", "reasoning", "thinking")
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "tool": "tool",
}


def openai_turns(turns: Any, field: str) -> list[Message]:
    """Messages of {role, content, reasoning_content, tool_calls, weight}; assistants' are trained.

    `weight: 0` on an assistant turn means what it means in OpenAI's fine-tuning files: read,
    not trained. The developer role is the system role under its newer name. `reasoning` and
    `thinking` are other names of `reasoning_content`.
    """
    return [
        _openai_turn(turn, f"{field}.{number}")
        for number, turn in enumerate(_turn_list(turns, field), 1)
    ]


def _openai_turn(turn: Mapping[str, Any], place: str) -> Message:
    role = _role(turn, "role", _ROLES, place)
    calls = turn.get("tool_calls") or []
    if isinstance(turn.get("function_call"), Mapping):  # OpenAI's form before tool_calls
        calls = [turn["function_call"]]
    if not isinstance(calls, Sequence) or (calls and role != "assistant"):
        raise Unusable("broken_tool_call", f"{place}: tool_calls is an assistant's list of calls")
    tool_calls = tuple(_tool_call(call, place) for call in calls)
    content = _content(turn.get("content"), place)
    weight = turn.get("weight", 1)
    if weight not in (0, 1, None):
        raise Unusable("wrong_shape", f"{place}: weight is {weight!r}, and may be 0 or 1")
    trained = role == "assistant" and weight != 0
    reasoning = _reasoning(turn, role, place)
    message = Message(role, content, trained, tool_calls, reasoning)
    return _checked(message, place)


def _reasoning(turn: Mapping[str, Any], role: str, place: str) -> str:
    for name in _REASONING:
        if text := turn.get(name):
            if not isinstance(text, str):
                raise Unusable("wrong_shape", f"{place}: {name} is {kind_of(text)}, not text")
            if role != "assistant":
                raise Unusable("wrong_shape", f"{place}: {name} is an assistant's, not a {role}'s")
            return text
    return ""


def sharegpt_turns(turns: Any, field: str) -> list[Message]:
    """Messages of {from, value}; a function_call's value is the JSON of one call or several."""
    messages = []
    for number, turn in enumerate(_turn_list(turns, field), 1):
        place = f"{field}.{number}"
        role = _role(turn, "from", _SPEAKERS, place)
        content = _content(turn.get("value"), place)
        tool_calls: tuple[dict[str, Any], ...] = ()
        if turn["from"] in ("function_call", "tool_call"):
            value = _parsed(content, place)
            calls = value if isinstance(value, list) else [value]
            tool_calls, content = tuple(_tool_call(call, place) for call in calls), ""
        message = Message(role, content, role == "assistant", tool_calls)
        messages.append(_checked(message, place))
    return messages


def _turn_list(turns: Any, field: str) -> list[Mapping[str, Any]]:
    if not isinstance(turns, list | tuple):
        raise Unusable("wrong_shape", f"{field} is {kind_of(turns)}, not a list of turns")
    if not turns:
        raise Unusable("empty_conversation", f"{field} holds no turns")
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise Unusable("wrong_shape", f"{field}.{number} is {kind_of(turn)}, not an object")
    return list(turns)


def _role(turn: Mapping[str, Any], key: str, roles: Mapping[str, str], place: str) -> str:
    if key not in turn:
        raise Unusable("wrong_shape", f"{place}: no {key!r}, only {', '.join(map(str, turn))}")
    name = turn[key]
    if not isinstance(name, str) or name not in roles:
        raise Unusable("unknown_role", f"{place}: {key} is {name!r}; known: {', '.join(roles)}")
    return roles[name]


def _content(content: Any, place: str) -> str:
    """A string, or the joined text parts of OpenAI's list form; null is ""."""
    if isinstance(content, str):
        return content
    if content is None:
        return ""
    if not isinstance(content, list | tuple):
        raise Unusable("wrong_shape", f"{place}: the content is {kind_of(content)}, not text")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or part.get("type", "text") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else kind_of(part)
            raise Unusable("unsupported_content", f"{place}: a part of type {kind!r}, not text")
        texts.append(text)
    return "".join(texts)


def _checked(message: Message, place: str) -> Message:
    """Refuses turns that say nothing; a tool may answer with nothing."""
    if message.role == "tool" or message.tool_calls or message.content.strip():
        return message
    if message.trained:
        raise Unusable("empty_completion", f"{place}: the assistant says nothing")
    raise Unusable("empty_message", f"{place}: the {message.role} says nothing")


def _tool_call(call: Any, place: str) -> dict[str, Any]:
    """{"name", "arguments"} of a call as OpenAI, ShareGPT or a chat template writes it."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise Unusable("broken_tool_call", f"{place}: a tool call without a name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # OpenAI keeps them as JSON in a string
        arguments = _parsed(arguments, place) if arguments.strip() else {}
    return {"name": name, "arguments": arguments}


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unusable(
            "broken_tool_call", f"{place}: the call is not JSON: {text[:60]!r}"
        ) from None


def read_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    """The tool descriptions of a record: a list of objects, or JSON of one in a string."""
    if isinstance(tools, str):
        tools = _parsed(tools, "tools") if tools.strip() else []
    tools = tools or []
    if not isinstance(tools, list | tuple) or not all(isinstance(t, Mapping) for t in tools):
        raise Unusable("wrong_shape", "tools is not a list of objects")
    return tuple(dict(tool) for tool in tools)


def without_filling(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a columnar record; in chats and tools, members that are null are left out.

    Such files give each object in a column the members of all: a call of one tool has the
    arguments of all others, as nulls.

    Example:
        >>> turn = {"role": "assistant", "tool_calls": [{"arguments": {"a": 1, "b": None}}]}
        >>> without_filling({"messages": [turn], "note": None})
        {'messages': [{'role': 'assistant', 'tool_calls': [{'arguments': {'a': 1}}]}], 'note': None}
    """
    return {
        name: _without_nulls(value) if name == "tools" or _is_chat(value) else value
        for name, value in fields.items()
    }


def _is_chat(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and ("role" in first or "from" in first)


def _without_nulls(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nulls(one) for name, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value
