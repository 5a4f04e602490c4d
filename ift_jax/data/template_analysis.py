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
                return frozenset(meta.find_undeclared_variables(template))
    return frozenset(meta.find_undeclared_variables(template))


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


def _printed_name(node: nodes.Node | None) -> str | None:
    while isinstance(node, nodes.Filter):
        node = node.node
    return node.name if isinstance(node, nodes.Name) else None
