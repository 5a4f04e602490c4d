"""The one shape that every instruction format is brought to: who says what, what is trained."""

import json
from dataclasses import dataclass
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: One of ROLES.
        content: The text, exactly as the record has it. May be "" beside tool calls.
        trained: Whether the model learns to write this turn, with its end-of-turn token.
        tool_calls: An assistant's calls, each {"name": str, "arguments": JSON value}.
        reasoning: What an assistant thought before it said this; chat templates may print it.
    """

    role: str
    content: str
    trained: bool
    tool_calls: tuple[dict[str, Any], ...] = ()
    reasoning: str = ""

    def text(self) -> str:
        """The content with the tool calls written into it, for templates that know no tools.

        Calls are written as the Hermes and Qwen templates do.

        Example:
            >>> call = {"name": "add", "arguments": {"a": 1}}
            >>> print(Message("assistant", "", True, (call,)).text())
            <tool_call>
            {"name": "add", "arguments": {"a": 1}}
            </tool_call>
        """
        calls = [
            f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"
            for call in self.tool_calls
        ]
        return "\n".join([self.content, *calls] if self.content else calls)


@dataclass(frozen=True, slots=True)
class Conversation:
    """One example, ready for a chat template.

    Attributes:
        messages: At least one; at least one of them is trained.
        references: Every answer that counts as right, the trained one first; the last trained
            turn where the format knows no others. Empty for plain text.
        choices: The answers to rank, where the record names them; they hold the reference.
        tools: Descriptions of the tools on offer, as the record has them (JSON schemas).
        plain: True for text that goes into the model without any chat template around it.
        question: What is asked about, where the format tells it from instructions and examples
            that other records share; () where the turns to the assistant say it.
    """

    messages: tuple[Message, ...]
    references: tuple[str, ...]
    choices: tuple[str, ...] | None = None
    tools: tuple[dict[str, Any], ...] = ()
    plain: bool = False
    question: tuple[str, ...] = ()
