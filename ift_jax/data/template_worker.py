"""The process that renders templates: run by path, it talks over its standard pipes.

Template files come from strangers, so no template ever runs in the process that holds the
model. This one has little to lose and little to spend. It starts with an almost empty
environment, takes away its own right to open files and start processes, bounds its memory,
and before each record sets a timer of CPU seconds. When the timer fires the kernel ends the
process, even in the middle of one long multiplication, and `template_sandbox` starts another.
Jinja's own sandbox is the inner wall: it hides the attributes that lead from data to code.

Comes in, per request: a length, then a pickle of (jinja, answer_choices, strict, records). Each
record is a pickle of its own, so that a template that changes a list inside one record cannot
reach the next. Goes out, per record: a line of JSON, [null, parts, answer_choices] or [reason,
message]. JSON, since the parent must be safe with the words of a process that was taken over.

Standard library and Jinja only: it restarts often, and must not wait for the rest of `ift_jax`.
"""

import encodings
import hashlib
import json
import pickle
import pkgutil
import random
import re
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache, wraps
from importlib import import_module
from typing import Any, NamedTuple

import jinja2
from jinja2 import nodes
from jinja2.filters import do_join, do_xmlattr
from jinja2.sandbox import SandboxedEnvironment

SEPARATOR = "|||"
MAX_CPU_SECONDS = 0.75  # for one record
MAX_MEMORY_BYTES = 128 * 2**20  # above what the process holds when it has started
MAX_OUTPUT_CHARS = 2**22  # of one rendered record
REQUEST_LENGTH = struct.Struct("<Q")
READY = b"ready\n"

# What Jinja, the methods of text and the types of columns import when they first need it.
IMPORTED_LATE = (
    *("jinja2.constants", "jinja2.debug", "html", "pprint", "textwrap", "urllib.parse"),
    *("_strptime", "datetime", "decimal", "unicodedata"),
    *(f"encodings.{module.name}" for module in pkgutil.iter_modules(encodings.__path__)),
)

# What stands for a separator inside the data until the text has been split. Compatible mode
# needs promptsource's own, because templates can see it: `{{ text | length }}` counts it.
# Strict mode takes private-use characters, as many as the separator has, that no filter changes.
COMPATIBLE_GUARD = "3ed2dface8203c4c9dfb1a5dc58e41e0"
STRICT_GUARD = "\uf8f1\uf8f2\uf8f3"


class PrintedNone(ValueError):
    """A template printed a None, or the not-a-number that stands for one in a table."""


class ReservedColumn(ValueError):
    """The record has a column of the name that the template's choices go by."""


class UndefinedColumn(jinja2.UndefinedError):
    """A template used a variable that the record does not have."""


class Strict(jinja2.StrictUndefined):
    """Raises when used, and tells a missing column from a missing element or attribute."""

    __slots__ = ()

    def __init__(self, hint: Any = None, obj: Any = jinja2.utils.missing, *args: Any, **kw: Any):
        super().__init__(hint, obj, *args, **kw)
        if hint is None and obj is jinja2.utils.missing:
            self._undefined_exception = UndefinedColumn


class Unprintable:
    """What turns into text nowhere: neither alone nor inside a list, a format or a filter."""

    __slots__ = ()
    refusal = ""

    def __str__(self) -> str:
        raise PrintedNone(self.refusal)

    __repr__ = __str__

    def __format__(self, _: str) -> str:
        raise PrintedNone(self.refusal)


class NoneType(Unprintable):
    """Stands for the None of a record: like None in all but that it cannot be printed.

    Its name and module are those that error messages show.
    """

    __slots__ = ()
    __module__ = "builtins"
    refusal = "it prints a None"

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, NoneType)

    def __hash__(self) -> int:
        return hash(None)


class NotANumber(Unprintable, float):
    """Stands for the NaN of a record."""

    __slots__ = ()
    refusal = "it prints a NaN, the mark of a missing number"


NONE = NoneType()
NAN = NotANumber("nan")
_CONTAINERS = frozenset((list, tuple, dict))
_LOOKED_INTO = _CONTAINERS | {type(None), float}


def unprintable(value: Any) -> Any:
    """The value, in which what stands for None and NaN, at any depth, cannot be printed."""
    kind = type(value)
    if kind in _CONTAINERS:
        items = value.values() if kind is dict else value
        if _LOOKED_INTO.isdisjoint(map(type, items)):
            return value  # most are such, and go by fast
        if kind is dict:
            return {
                key: unprintable(item) if type(item) in _LOOKED_INTO else item
                for key, item in value.items()
            }
        return kind(map(unprintable, value))
    if value is None:
        return NONE
    return NAN if kind is float and value != value else value


def plain(value: Any) -> Any:
    """The None that `NONE` stands for; any other value as it is."""
    return None if value is NONE else value


def printable(value: Any) -> Any:
    """The value, unless printing it would put a missing value into a training text."""
    if value is None:
        raise PrintedNone(NONE.refusal)
    if type(value) is float and value != value:
        raise PrintedNone(NAN.refusal)
    return value


@jinja2.pass_eval_context
def join_printable(
    context: Any, items: Iterable[Any], separator: str = "", attribute: Any = None
) -> str:
    """Jinja's `join`, where a None among the items counts as printed."""
    return do_join(context, map(printable, items), separator, attribute)


@jinja2.pass_context  # without it Jinja would draw from a constant list once, when it compiles
def choice(context: Any, items: Any) -> Any:
    """One of the items, by the generator that `render` seeds from the record."""
    return random.choice(items)


def most_frequent(items: Any) -> list[Any] | None:
    """All items that no other item outnumbers, in the order first seen; None for no items."""
    if not items:
        return None
    counts = Counter(items)
    most = max(counts.values())
    return [item for item, count in counts.items() if count == most]


class StrictEnvironment(SandboxedEnvironment):
    """Where what is missing in the data, or returned by a call, turns into text nowhere."""

    def __init__(self) -> None:
        super().__init__(undefined=Strict, finalize=printable)
        self.tests = {name: _of_none(test) for name, test in self.tests.items()}
        self.filters.update(join=join_printable, printable=printable, xmlattr=xmlattr)
        self.policies["json.dumps_kwargs"] = {"sort_keys": True, "default": _jsonable}

    def getattr(self, obj: Any, attribute: str) -> Any:
        found = super().getattr(obj, attribute)
        return NONE if found is None else found

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(getattr(__obj, "__self__", None), str):  # such as `split`, where None counts
            args = tuple(map(plain, args))
            kwargs = {name: plain(value) for name, value in kwargs.items()}
        result = super().call(__context, __obj, *args, **kwargs)
        return NONE if result is None else result


def _of_none(test: Any) -> Callable[..., bool]:
    """The test, for which `NONE` is None."""

    @wraps(test)
    def of_none(*args: Any, **kwargs: Any) -> bool:
        return bool(test(*map(plain, args), **kwargs))

    return of_none


@jinja2.pass_eval_context
def xmlattr(context: Any, items: Mapping[str, Any], autospace: bool = True) -> str:
    """Jinja's `xmlattr`, which leaves out what is None."""
    kept = {name: value for name, value in items.items() if value is not NONE}
    return do_xmlattr(context, kept, autospace)


def _jsonable(value: Any) -> None:
    if value is not NONE:
        raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def make_environment(strict: bool) -> SandboxedEnvironment:
    """Jinja as template files expect it: no escaping, undefined as nothing, `zip` at hand."""
    environment = StrictEnvironment() if strict else SandboxedEnvironment()
    environment.globals.update(range=range, zip=zip)  # Jinja's sandbox has a shorter range
    environment.filters.update(choice=choice, most_frequent=most_frequent)
    if strict:
        environment.filters["most_frequent"] = lambda items: most_frequent(items) or NONE
    return environment


_ENVIRONMENTS = {strict: make_environment(strict) for strict in (False, True)}


class Compiled(NamedTuple):
    """A template ready to render."""

    template: jinja2.Template
    draws: bool  # whether it uses random numbers
    constant: bool  # whether it gives the same for every record


@lru_cache(maxsize=256)
def compiled(text: str, strict: bool) -> Compiled:
    """The text compiled once; raises Jinja's syntax errors."""
    environment = _ENVIRONMENTS[strict]
    tree = environment.parse(text)
    if strict:  # `~` would turn a None into text before `finalize` sees it
        for concat in list(tree.find_all(nodes.Concat)):
            concat.nodes = [
                nodes.Filter(node, "printable", [], [], None, None, lineno=node.lineno)
                for node in concat.nodes
            ]
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    names = {node.name for node in tree.find_all(nodes.Name)}
    draws = bool(filters & {"choice", "random"}) or "lipsum" in names
    constant = not (names or draws or tree.find(nodes.Call))
    return Compiled(environment.from_string(tree), draws, constant)


@lru_cache(maxsize=256)
def constant_choices(text: str, strict: bool) -> tuple[str, ...]:
    """The parts of answer choices that are the same for every record."""
    return tuple(split(compiled(text, strict).template.render(), strict))


def split(text: str, strict: bool) -> list[str]:
    """The stripped parts of what was rendered; separators that are data stay in them."""
    if len(text) > MAX_OUTPUT_CHARS:
        raise MemoryError
    guard = STRICT_GUARD if strict else COMPATIBLE_GUARD
    return [part.replace(guard, SEPARATOR).strip() for part in text.split(SEPARATOR)]


def render(
    jinja: str, answer_choices: str | None, strict: bool, record: Mapping[str, Any]
) -> tuple[list[str], list[str] | None]:
    """The stripped parts and the answer choices; or whatever the template raises."""
    if "answer_choices" in record:
        raise ReservedColumn("the record has a column answer_choices, which templates reserve")
    template = compiled(jinja if strict else truncating(jinja), strict)
    choices_template = compiled(answer_choices or "", strict)
    if template.draws or choices_template.draws:
        random.seed(seed(jinja, record))
    guard = STRICT_GUARD if strict else COMPATIBLE_GUARD
    guarded = {
        column: value.replace(SEPARATOR, guard) if isinstance(value, str) else value
        for column, value in record.items()
    }
    if strict:
        guarded = unprintable(guarded)
    choices = None
    if answer_choices is not None and choices_template.constant:
        choices = list(constant_choices(answer_choices, strict))  # the template may change it
    elif answer_choices is not None:
        choices = split(choices_template.template.render(**guarded), strict)
    return split(template.template.render(**guarded, answer_choices=choices), strict), choices


def truncating(jinja: str) -> str:
    """The template with each printed expression cut to 2,048 characters, promptsource's default.

    The change is made to the text, blindly, because that is what files were written against.
    """
    return jinja.replace("}}", " | string | truncate(2048) }}")


def seed(jinja: str, record: Mapping[str, Any]) -> bytes:
    """The same on every machine for the same record and template."""
    columns = sorted(record.items(), key=lambda item: item[0])
    text = json.dumps([jinja, columns], default=str, skipkeys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


# Jinja's words for a list that is asked for an element by a number that is text.
_TEXT_INDEX = re.compile(r"'(list|tuple) object' has no attribute '-?\d+(\.0*)?'")
_REASONS: dict[type[Exception], str] = {
    MemoryError: "too_large",
    PrintedNone: "printed_none",
    ReservedColumn: "record_has_answer_choices",
    UndefinedColumn: "undefined_column",
}


def describe(error: Exception, record: Any) -> str:
    """One line on what went wrong."""
    text = " ".join(str(error).split())[:300]
    match error:
        case MemoryError():
            memory, chars = MAX_MEMORY_BYTES >> 20, MAX_OUTPUT_CHARS
            return f"rendering needs more than {memory} MiB or gives more than {chars:,} characters"
        case UndefinedColumn():
            return f"{text}; the record has {', '.join(sorted(record))[:300] or 'no columns'}"
        case PrintedNone() | ReservedColumn():
            return text
        case jinja2.TemplateSyntaxError():
            return f"line {error.lineno} of the template: {text}"
        case jinja2.UndefinedError() if _TEXT_INDEX.match(text):
            hint = "cells of CSV files are text; write answer_choices[label | int]"
            return f"UndefinedError: {text}: this number is text ({hint})"
    return f"{type(error).__name__}: {text}"


_TO_JSON = json.JSONEncoder(ensure_ascii=False).encode


def encode(reply: list[Any]) -> bytes:
    """A reply as one line of JSON."""
    # Lone surrogates, which JSON files can hold, must come back as they went.
    return _TO_JSON(reply).encode("utf-8", "surrogatepass") + b"\n"


def answer(jinja: str, answer_choices: str | None, strict: bool, pickled_record: bytes) -> bytes:
    """The line of the reply for one record."""
    record = None
    try:
        record = pickle.loads(pickled_record)
        return encode([None, *render(jinja, answer_choices, strict, record)])
    except Exception as error:
        return encode([_REASONS.get(type(error), "template_error"), describe(error, record)])


def confine() -> None:
    """Give up what rendering does not need.

    No module can be opened after this, so those that are imported late come first. Only Linux
    bounds the memory of a running process; elsewhere the timer must do.
    """
    for module in IMPORTED_LATE:
        with suppress(ImportError):  # of the encodings, some are another system's
            import_module(module)
    import resource
    import signal

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGPROF})
    limits = dict.fromkeys(("RLIMIT_CORE", "RLIMIT_FSIZE", "RLIMIT_NOFILE", "RLIMIT_NPROC"), 0)
    if sys.platform == "linux":
        with open("/proc/self/statm", "rb") as file:
            held_bytes = int(file.read().split()[0]) * resource.getpagesize()
        limits["RLIMIT_AS"] = held_bytes + MAX_MEMORY_BYTES
    for name, value in limits.items():
        limit = getattr(resource, name)
        hard = resource.getrlimit(limit)[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)  # only root may raise it again
        resource.setrlimit(limit, (value, value))


def main() -> None:
    """Answers requests from standard input until it closes."""
    from signal import ITIMER_PROF, setitimer

    confine()
    # Not sys.stdin, whose reads come back short under PYTHONUNBUFFERED.
    with open(0, "rb", closefd=False) as requests, open(1, "wb", closefd=False) as replies:
        replies.write(READY)
        replies.flush()
        while length := requests.read(REQUEST_LENGTH.size):
            request = requests.read(REQUEST_LENGTH.unpack(length)[0])
            jinja, answer_choices, strict, pickled_records = pickle.loads(request)
            for pickled_record in pickled_records:
                setitimer(ITIMER_PROF, MAX_CPU_SECONDS)
                reply = answer(jinja, answer_choices, strict, pickled_record)
                setitimer(ITIMER_PROF, 0)
                replies.write(reply)
                replies.flush()  # at once: if the next record ends the process, this one is safe


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # the parent is gone, or wants no more replies
        main()
