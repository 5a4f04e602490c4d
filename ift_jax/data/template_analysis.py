"""What the text of a template tells before any record is rendered.

This runs in our own process, so nothing of a template may be computed here: Jinja folds
constants while it compiles, and `{{ 10 ** 10 ** 8 }}` would hang the reader. It leaves alone
the operators that a sandbox intercepts and the filters that need a context, so here they all do.
"""

from collections.abc import Iterable
from typing import Any

import jinja2
from jinja2 import meta, nodes

from ift_jax.data.template_worker import SEPARATOR, make_environment


@jinja2.pass_context
def _not_computed(*_: Any) -> None:
    raise AssertionError("the analysis computes nothing")


def _analysis_environment() -> jinja2.Environment:
    environment = make_environment(strict=False)
    environment.intercepted_binops = frozenset(environment.default_binop_table)
    environment.intercepted_unops = frozenset(environment.default_unop_table)
    environment.filters = dict.fromkeys(environment.filters, _not_computed)
    environment.tests = dict.fromkeys(environment.tests, _not_computed)
    return environment


_ENVIRONMENT = _analysis_environment()


def undeclared_names(text: str) -> frozenset[str]:
    """The variables that a record must supply. Raises what Jinja's compiler raises.

    Example:
        >>> sorted(undeclared_names("{% for word in words %}{{ word }} {{ sep }}{% endfor %}"))
        ['sep', 'words']
    """
    return frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(text)))


def prompt_names(text: str) -> frozenset[str]:
    """The variables that a record must supply for what stands before the separator.

    A separator inside a branch or loop does not end the prompt.

    Example:
        >>> sorted(prompt_names("{% if a %}{{ b.c }}{% endif %} ||| {{ d }}"))
        ['a', 'b']
    """
    return frozenset(meta.find_undeclared_variables(_prompt(text)))


def _prompt(text: str) -> nodes.Template:
    """What stands before the separator, parsed; everything where none does."""
    template = _ENVIRONMENT.parse(text)
    before: list[nodes.Node] = []
    for statement in template.body:
        before.append(statement)
        if not isinstance(statement, nodes.Output):
            continue
        for place, node in enumerate(statement.nodes):
            if isinstance(node, nodes.TemplateData) and SEPARATOR in node.data:
                statement.nodes = statement.nodes[:place]
                template.body = before
                return template
    return template


Part = tuple[str | int, ...]


def parts_read(text: str, *, prompt: bool = False) -> frozenset[Part]:
    """The variables with what is read of each: names of attributes and numbers of elements.

    Args:
        prompt: of what stands before the separator alone.

    Example:
        >>> sorted(parts_read("{{ doc.text | trim }} {{ words[0] }} ||| {{ doc.label }}"))
        [('doc', 'label'), ('doc', 'text'), ('words', 0)]
    """
    found: set[Part] = set()

    def visit(node: nodes.Node, path: Part) -> None:
        match node:
            case nodes.Getattr():
                visit(node.node, (node.attr, *path))
            case nodes.Getitem(arg=nodes.Const(value=str() | int() as step)):
                visit(node.node, (step, *path))
            case nodes.Name():
                found.add((node.name, *path))
            case _:
                for child in node.iter_child_nodes():
                    visit(child, ())

    visit(_prompt(text) if prompt else _ENVIRONMENT.parse(text), ())
    return frozenset(found)


def most_separators(text: str) -> int:
    """The largest number of `|||` that one rendering can print; a loop counts twice.

    Example:
        >>> most_separators("{% if a %}yes ||| {{ a }}{% else %}no ||| none{% endif %}")
        1
    """
    return _most_separators(_ENVIRONMENT.parse(text).body)


def _most_separators(body: Iterable[nodes.Node]) -> int:
    total = 0
    for node in body:
        match node:
            case nodes.If():
                branches = [node.body, node.else_, *(branch.body for branch in node.elif_)]
                total += max(map(_most_separators, branches))
            case nodes.For():
                total += max(2 * _most_separators(node.body), _most_separators(node.else_))
            case nodes.TemplateData(data=str(printed)) | nodes.Const(value=str(printed)):
                total += printed.count(SEPARATOR)
            case nodes.Filter():  # what a filter's arguments hold is not printed
                total += _most_separators([node.node] if node.node else [])
            case nodes.Call() | nodes.Compare():
                pass
            case _:
                total += _most_separators(node.iter_child_nodes())
    return total


def printed_columns(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """The variables printed as they are, before and after the separator.

    The second set is empty unless the text has exactly one separator, outside of any branch
    or loop, and nothing but such variables and fixed text after it.

    Example:
        >>> before, after = printed_columns("{{ title }}: {{ body | trim }} ||| {{ title }}")
        >>> sorted(before), sorted(after)
        (['body', 'title'], ['title'])
    """
    before: set[str] = set()
    after: set[str] = set()
    num_separators = 0
    other_targets = False
    for statement in _ENVIRONMENT.parse(text).body:
        if not isinstance(statement, nodes.Output):
            printed = (node for output in statement.find_all(nodes.Output) for node in output.nodes)
            before |= {name for node in printed if (name := _printed_name(node))}
            other_targets |= num_separators > 0 or _most_separators([statement]) > 0
            continue
        for node in statement.nodes:
            if isinstance(node, nodes.TemplateData):
                num_separators += node.data.count(SEPARATOR)
            elif name := _printed_name(node):
                (after if num_separators else before).add(name)
            elif num_separators:
                other_targets = True
    usable = num_separators == 1 and not other_targets
    return frozenset(before), frozenset(after if usable else ())


def told_by(text: str) -> frozenset[str]:
    """The variables that a target is looked up by, and that the prompt tells.

    Looked up is what stands before brackets, by a variable alone: `answer_choices[label]`,
    `[a, b][label | int]`, `choices[label - 1]`. Under other arithmetic the target may be the
    answer to a question about what is printed. The prompt tells the variable if it prints it,
    or what it looks up and nothing else from there.

    Example:
        >>> sorted(told_by("{{ text }} {{ label }}? ||| {{ answer_choices[label] }}"))
        ['label']
        >>> sorted(told_by("{{ answer_choices[label] }}? ||| {{ answer_choices[label] }}"))
        ['label']
        >>> sorted(told_by("{{ answer_choices[0] }}? ||| {{ answer_choices[label] }}"))
        []
    """
    tree = _ENVIRONMENT.parse(text)
    prompt: list[nodes.Node] = []
    target: list[nodes.Node] = []
    _sort_printed(tree.body, False, prompt, target)
    told = set()
    for node in target:
        if not isinstance(node, nodes.Getitem):
            continue
        if (by := _looked_up_by(node)) and (by in prompt or _singled_out(node, prompt)):
            told.add(by.name)
    # What the template sets may be another thing in each place, and may be what it asks for.
    return frozenset(told - {n.name for n in tree.find_all(nodes.Name) if n.ctx == "store"})


def _singled_out(node: nodes.Getitem, prompt: list[nodes.Node]) -> bool:
    """Whether the prompt prints this element of a list or dict, and no other one."""
    return node in prompt and not any(
        isinstance(other, nodes.Getitem) and other.node == node.node and other != node
        for other in prompt
    )


def _sort_printed(
    body: Iterable[nodes.Node], ended: bool, prompt: list[nodes.Node], target: list[nodes.Node]
) -> bool:
    """Adds what is printed to its side; whether the prompt has ended after it."""
    for node in body:
        match node:
            case nodes.If():
                branches = [node.body, *(branch.body for branch in node.elif_), node.else_]
                ended = max([_sort_printed(b, ended, prompt, target) for b in branches])
            case nodes.For():
                ended = _sort_printed([*node.body, *node.else_], ended, prompt, target)
            case nodes.With() | nodes.Scope():
                ended = _sort_printed(node.body, ended, prompt, target)
            case nodes.Output():
                ended = _sort_printed(node.nodes, ended, prompt, target)
            case nodes.TemplateData(data=str(printed)) | nodes.Const(value=str(printed)):
                ended = ended or SEPARATOR in printed
            case nodes.Concat():
                ended = _sort_printed(node.nodes, ended, prompt, target)
            case nodes.Expr():
                (target if ended else prompt).append(_unfiltered(node))
    return ended


def _looked_up_by(node: nodes.Getitem) -> nodes.Name | None:
    by = _unfiltered(node.arg)
    if isinstance(by, nodes.Add | nodes.Sub) and isinstance(by.right, nodes.Const):
        by = _unfiltered(by.left)
    return by if isinstance(by, nodes.Name) else None


def _unfiltered(node: nodes.Node) -> nodes.Node:
    while isinstance(node, nodes.Filter) and node.node:
        node = node.node
    return node


def _printed_name(node: nodes.Node) -> str | None:
    node = _unfiltered(node)
    return node.name if isinstance(node, nodes.Name) else None
