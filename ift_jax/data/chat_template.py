"""Conversations as text by a tokenizer's chat template, which is run once for each row of roles.

That is possible where a template looks at nothing but the roles, and prints contents as they
are: then the text between the contents is the same for all conversations with these roles.
`prints_contents_only` tells that from the template's syntax tree. Templates that trim contents,
search in them or date their text are run for every conversation.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes

Message = Mapping[str, str]

_PLACE = "\u2063content {}\u2063"  # invisible separators: no template treats them as markup
_PLACES = re.compile("\u2063content ([0-9]+)\u2063")
_KEYS = {"role", "content"}
_LOOP = ("first", "last", "index", "index0", "revindex", "revindex0", "length")
# What takes printed text in hand again, or brings text from elsewhere.
_OPAQUE = (
    nodes.AssignBlock, nodes.FilterBlock, nodes.Macro, nodes.CallBlock, nodes.Block,
    nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport,
)  # fmt: skip


class ChatTemplate:
    """A tokenizer's chat template."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._between = lru_cache(maxsize=1024)(self._run_once)

    def __reduce__(self) -> tuple[type["ChatTemplate"], tuple[Any]]:
        return ChatTemplate, (self.tokenizer,)

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text before an answer: all turns, and the opening of the assistant's.

        Raises:
            jinja2.TemplateError: if the template refuses the turns.
        """
        template = self.tokenizer.chat_template
        known = prints_contents_only(template) if isinstance(template, str) else False
        if not (known and messages and all(map(_is_plain, messages))):
            return self.run(messages)
        pieces, places = self._between(template, tuple(message["role"] for message in messages))
        pieces = pieces.copy()
        for number, place in enumerate(places):
            pieces[2 * number + 1] = messages[place]["content"]
        return "".join(pieces)

    def run(self, messages: Sequence[Message]) -> str:
        """The same, by running the template."""
        return self.tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=True
        )

    def _run_once(self, template: str, roles: tuple[str, ...]) -> tuple[list[str], list[int]]:
        """The text, with room for contents at odd places, and whose contents come there."""
        del template  # it decides what is kept
        marked = [{"role": r, "content": _PLACE.format(i)} for i, r in enumerate(roles)]
        pieces = _PLACES.split(self.run(marked))
        return pieces, [int(place) for place in pieces[1::2]]


@lru_cache(maxsize=16)
def prints_contents_only(template: str) -> bool:
    """Whether a chat template does nothing with contents but print them as they are.

    Example:
        >>> prints_contents_only("{% for m in messages %}{{ m.role + m.content }}{% endfor %}")
        True
        >>> prints_contents_only("{% for m in messages %}{{ m.content | trim }}{% endfor %}")
        False
    """
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except (jinja2.TemplateSyntaxError, RecursionError):
        return False
    above = {child: node for node in tree.find_all(nodes.Node) for child in node.iter_child_nodes()}
    above |= dict.fromkeys(tree.iter_child_nodes(), tree)
    turns = {
        loop.target.name
        for loop in tree.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and _is_named(loop.iter, "messages")
    }
    return (
        next(tree.find_all(_OPAQUE), None) is None
        and all(_is_named(call.node, "raise_exception") for call in tree.find_all(nodes.Call))
        and all(use.name != "random" for use in tree.find_all(nodes.Filter))
        and all(_is_harmless(name, turns, above) for name in tree.find_all(nodes.Name))
    )


def _is_harmless(
    name: nodes.Name, turns: Collection[str], above: Mapping[nodes.Node, nodes.Node]
) -> bool:
    """Whether what is done with a name tells nothing of contents, or prints one."""
    use = above[name]
    if name.name == "loop":
        return isinstance(use, nodes.Getattr) and use.attr in _LOOP
    if name.name == "messages":
        if isinstance(use, nodes.For):
            return use.iter is name and isinstance(use.target, nodes.Name)
        if isinstance(use, nodes.Getitem) and isinstance(use.arg, nodes.Const):
            return use.node is name and _field(above[use], use) == "role"
        return False
    if name.name not in turns:
        return True
    if name.ctx == "store":
        return isinstance(use, nodes.For) and _is_named(use.iter, "messages")
    field = _field(use, name)
    if field != "content":
        return bool(field) and not hasattr(dict, field)
    while isinstance(use, nodes.Add | nodes.Concat | nodes.Getattr | nodes.Getitem):
        use = above[use]
        if isinstance(use, nodes.Getattr | nodes.Getitem):
            return False
    return isinstance(use, nodes.Output)


def _field(use: nodes.Node, value: nodes.Node) -> str:
    """The field of `value` that is read, or "" where something else is done with it."""
    if isinstance(use, nodes.Getattr) and use.node is value:
        return use.attr
    if isinstance(use, nodes.Getitem) and use.node is value and isinstance(use.arg, nodes.Const):
        return use.arg.value if isinstance(use.arg.value, str) else ""
    return ""


def _is_named(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.name == name


def _is_plain(message: Message) -> bool:
    return message.keys() == _KEYS and type(message["content"]) is type(message["role"]) is str
