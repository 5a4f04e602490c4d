"""Prompt templates of the promptsource format: records in, prompts and completions out.

A template is a Jinja text in which `|||` stands between the prompt and the completion; its
answer choices are a second Jinja text. Files written for promptsource work unchanged.
Rendering happens in a worker process that is bounded in time and memory, see
`template_worker`, so a template file may come from anywhere.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from typing import Any

import jinja2

from ift_jax.data import template_analysis
from ift_jax.data.template_sandbox import (
    Failure,
    Reply,
    Shorten,
    Success,
    Timeouts,
    render_records,
)
from ift_jax.data.template_yaml import TemplateFields, read_template_file
from ift_jax.errors import InputError

METADATA_KEYS = ("choices_in_prompt", "languages", "metrics", "original_task")
REQUIRED_KEYS = ("name", "jinja", "answer_choices")
MAX_NAME_CHARS = 100  # that messages show of a name
MIN_TOLD = 0.95  # of the prompts, if these tell the targets
MIN_LEAK_CHARS = 8  # a shorter target may stand in a prompt by chance


@dataclass(frozen=True, slots=True)
class Rendered:
    """One training example as text, or one question for evaluation."""

    prompt: str
    completion: str
    answer_choices: tuple[str, ...] | None  # strictly rendered, they hold the completion


class TemplateRejection(ValueError):
    """Why a record and a template do not make a training example.

    Attributes:
        reason: A slug to count by:
            `blank` (nothing was rendered), `no_separator`, `three_parts` (or more),
            `empty_prompt`, `empty_target`, `target_not_in_choices`: the text is no example;
            `undefined_column`, `printed_none`, `record_has_answer_choices`: the record does
            not suit the template;
            `template_error`, `timeout`, `too_large`: rendering failed or was stopped.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Template:
    """A prompt template; usually one of a file's, see `load_templates`.

    Example:
        >>> template = Template(
        ...     name="Predict the stars",
        ...     jinja="{{ text }} Stars: ||| {{ stars }}",
        ...     answer_choices="1 ||| 2 ||| 3",
        ... )
        >>> template.render({"text": "Works well.", "stars": 3})
        Rendered(prompt='Works well. Stars:', completion='3', answer_choices=('1', '2', '3'))
        >>> template.apply({"text": "Works well.", "stars": 7})
        ['Works well. Stars:', '7']
        >>> template.render({"text": "Works well.", "stars": 7})
        Traceback (most recent call last):
            ...
        ift_jax.data.templates.TemplateRejection: ...: the target '7' is none of the choices ...
    """

    name: str
    jinja: str
    answer_choices: str | None = None
    id: str = ""
    reference: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    file: str = "<no file>"
    line: int = 0
    key: str = ""  # under which the file has it; equals the id in a tidy file

    def apply(self, record: Mapping[str, Any]) -> list[str]:
        """The parts between separators, exactly as promptsource 0.2.3 gives them.

        That includes its truncation: each printed value is cut to 2,048 characters.

        Raises:
            TemplateRejection: Where promptsource raises, or where rendering was stopped.
        """
        (reply,) = self._replies([record], strict=False)
        if isinstance(reply, Failure):
            raise self._rejection(reply.reason, reply.message)
        return reply.parts

    def render(self, record: Mapping[str, Any]) -> Rendered:
        """The record as a training example, whole: nothing is cut.

        Raises:
            TemplateRejection: Unless that gives a prompt and a completion, both non-empty and
                made of values that the record has, and the completion is one of the answer
                choices if there are any.
        """
        (result,) = self.render_batch([record])
        if isinstance(result, TemplateRejection):
            raise result
        return result

    def render_batch(
        self,
        records: Iterable[Mapping[str, Any]],
        max_chars: int = 0,
        *,
        compatible: bool = False,
        timeouts: Timeouts | None = None,
    ) -> list[Rendered | TemplateRejection]:
        """`render` for many records; a rejection stands where `render` would have raised it.

        After three records in a row that ran out of time, or ten in all, those that follow are
        rejected untried.

        Args:
            compatible: takes what `apply` gives wherever that is a prompt and a completion, so
                a missing column prints nothing, a None prints "None", long values are cut, and
                the completion may be none of the choices.
            max_chars: a prompt or completion that is longer loses its middle, so that it is
                just longer still, and choices that are longer by far are a rejection:
                memory is bounded whatever a template prints. 0 keeps all.
            timeouts: of earlier calls, which count among the ten; this call adds its own.
        """

        def shorten(reply: Success) -> Reply:
            return _shortened(reply, max_chars) if max_chars else reply

        replies = self._replies(list(records), not compatible, shorten, timeouts)
        return [self._judge(reply, strict=not compatible) for reply in replies]

    @cached_property
    def columns(self) -> frozenset[str]:
        """The columns of a record that the template or its answer choices may read.

        Raises:
            InputError: If the template is not valid Jinja.
        """
        names = _undeclared(self, "jinja", self.jinja)
        if self.answer_choices is not None:
            names |= _undeclared(self, "answer_choices", self.answer_choices)
        return names - {"answer_choices"}

    @cached_property
    def prompt_columns(self) -> frozenset[str]:
        """Those that stand before the separator; all of them where none does."""
        return (template_analysis.prompt_names(self.jinja) & self.columns) or self.columns

    @cached_property
    def parts(self) -> frozenset[template_analysis.Part]:
        """Columns with what is read of each, see `parts_read`."""
        texts = (self.jinja, self.answer_choices or "")
        return frozenset[template_analysis.Part]().union(*map(template_analysis.parts_read, texts))

    @cached_property
    def prompt_parts(self) -> frozenset[template_analysis.Part]:
        """Those that stand before the separator; all of them where none does."""
        found = template_analysis.parts_read(self.jinja, prompt=True)
        return found if any(part[0] in self.columns for part in found) else self.parts

    @property
    def where(self) -> str:
        """Where a person finds the template."""
        line = f", line {self.line}" if self.line else ""
        return f"{self.file}{line}: template {self.name[:MAX_NAME_CHARS]!r}"

    def _replies(
        self,
        records: Sequence[Mapping[str, Any]],
        strict: bool,
        shorten: Shorten = lambda reply: reply,
        timeouts: Timeouts | None = None,
    ) -> list[Reply]:
        return render_records(self.jinja, self.answer_choices, strict, records, shorten, timeouts)

    def _rejection(self, reason: str, message: str) -> TemplateRejection:
        return TemplateRejection(reason, f"{self.where}: {message}")

    def _judge(self, reply: Reply, *, strict: bool) -> Rendered | TemplateRejection:
        if isinstance(reply, Failure):
            return self._rejection(reply.reason, reply.message)
        match reply.parts:
            case [""]:
                return self._rejection("blank", "nothing is left of it for this record")
            case [_]:
                return self._rejection("no_separator", "no ||| was rendered, so there is no target")
            case ["", _]:
                return self._rejection("empty_prompt", "nothing stands before the |||")
            case [_, ""]:
                return self._rejection("empty_target", "nothing stands after the |||")
            case [prompt, target]:
                choices = reply.answer_choices
                if choices is None:
                    return Rendered(prompt, target, None)
                if target in choices or not strict:
                    return Rendered(prompt, target, tuple(choices))
                listed = ", ".join(repr(choice) for choice in choices)
                message = f"the target {target[:80]!r} is none of the choices {listed[:300]}"
                return self._rejection("target_not_in_choices", message)
        num_parts = len(reply.parts)
        message = f"{num_parts} parts instead of two: {num_parts - 1} ||| were rendered"
        return self._rejection("three_parts", message)


def _shortened(reply: Success, max_chars: int) -> Reply:
    size = sum(map(len, reply.answer_choices or ()))
    if size > 4 * max_chars:
        return Failure("too_large", f"its answer choices have {size:,} characters")
    half = max_chars // 2 + 1
    parts = [p if len(p) <= max_chars else p[:half] + p[-half:] for p in reply.parts]
    return reply._replace(parts=parts)


def load_templates(path: str | PathLike[str]) -> dict[str, Template]:
    """The templates of a promptsource YAML file by name, in file order.

    Raises:
        InputError: If the file is missing or is not such a file, two templates share a name, or
            a template is not valid Jinja. Doubtful but working templates are for `lint`.
    """
    templates: dict[str, Template] = {}
    for template in read_templates(path):
        if template.name in templates:
            first = templates[template.name].line
            raise InputError(f"{template.where}: line {first} has one of this name: rename one")
        _ = template.columns  # parses it
        templates[template.name] = template
    return templates


def read_templates(path: str | PathLike[str]) -> list[Template]:
    """All templates of a promptsource YAML file, also those that `load_templates` refuses.

    Raises:
        InputError: If the file is missing or is not such a file.
    """
    return [_template(str(path), key, fields) for key, fields in read_template_file(path).items()]


def _template(file: str, key: str, fields: TemplateFields) -> Template:
    values, line = fields
    name = values.get("name")
    called = name if isinstance(name, str) else key
    where = f"{file}, line {line}: template {called[:MAX_NAME_CHARS]!r}"
    for required in REQUIRED_KEYS:
        if required not in values:
            hint = (
                ' (write "answer_choices: null" for none)' if required == "answer_choices" else ""
            )
            raise InputError(f"{where}: the key {required!r} is missing{hint}")
    metadata = values.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise InputError(
            f"{where}: metadata is {_kind(metadata)}, not `!TemplateMetadata` and keys"
        )
    texts = {name: values.get(name) for name in (*REQUIRED_KEYS, "id", "reference")}
    for name, value in texts.items():
        optional = name not in ("name", "jinja") and value is None
        if not (isinstance(value, str) or optional):
            raise InputError(f"{where}: {name} is {_kind(value)}, not text: put it in quotes")
    return Template(
        name=values["name"],
        jinja=values["jinja"],
        answer_choices=values["answer_choices"],
        id=texts["id"] or "",
        reference=texts["reference"] or "",
        metadata={name: metadata.get(name) for name in METADATA_KEYS},
        file=file,
        line=line,
        key=key,
    )


def _kind(value: Any) -> str:
    return "empty" if value is None else f"of type {type(value).__name__}"


def lint(
    templates: Mapping[str, Template],
    columns: Collection[str] | None = None,
    records: Sequence[Mapping[str, Any]] = (),
    *,
    compatible: bool = False,
) -> list[str]:
    """What is doubtful or wrong about templates, a line each: file, line, template, problem.

    Args:
        templates: By names or keys that tell them apart.
        columns: Those of the data set; without them, unknown columns are not looked for.
        records: Samples of the data set. With them, templates are also judged by what they
            render: which records are rejected, whether the target can be read in the prompt
            (as it rightly can where answers are quoted from a passage), which choices never
            come up.
        compatible: How the samples are rendered, see `Template.render_batch`.

    Example:
        >>> doubtful = Template(name="Headline", jinja="{{ body }} {{ title }} ||| {{ title }}")
        >>> for finding in lint({"Headline": doubtful}, columns=["body"]):
        ...     print(finding)
        <no file>: template 'Headline': metadata lacks choices_in_prompt, languages, ...
        <no file>: template 'Headline': the data has no column title
        <no file>: template 'Headline': the target is title, which the prompt prints
    """
    findings = []
    first_with: dict[tuple[str, str, str], Template] = {}
    for template in templates.values():
        try:
            _ = template.columns
        except InputError as error:
            findings.append(str(error))
            continue
        problems = [
            *_problems_of_form(template, columns),
            *_problems_of_samples(template, records, compatible),
        ]
        for kind, text in (("name", template.name), ("text", template.jinja.strip())):
            first = first_with.setdefault((template.file, kind, text), template)
            if first is not template:
                line = f" of line {first.line}" if first.line else ""
                problems.append(
                    f"the same {kind} as template {first.name[:MAX_NAME_CHARS]!r}{line}"
                )
        findings += [f"{template.where}: {problem}" for problem in problems]
    return findings


def _problems_of_form(template: Template, columns: Collection[str] | None) -> Iterator[str]:
    """What can be said of a template without a record."""
    if template.key != template.id:
        yield f"its key {template.key} is not its id {template.id}"
    if lacking := [name for name in METADATA_KEYS if template.metadata.get(name) is None]:
        yield f"metadata lacks {', '.join(lacking)}"
    if columns is not None and (unknown := template.columns - set(columns)):
        yield f"the data has no column {', '.join(sorted(unknown))}"
    most = template_analysis.most_separators(template.jinja)
    if most == 0:
        yield "no ||| separates a target from the prompt"
    elif most > 1:
        yield "more than one ||| can be rendered"
    if template.answer_choices is not None and "answer_choices" not in (
        template_analysis.undeclared_names(template.jinja)
    ):
        yield "answer_choices are given, and never used in the text"
    prompt, target = template_analysis.printed_columns(template.jinja)
    if target and target <= prompt:
        yield f"the target is {', '.join(sorted(target))}, which the prompt prints"
    if told := template_analysis.told_by(template.jinja):
        yield f"the target is chosen by {', '.join(sorted(told))}, which the prompt tells"


def _problems_of_samples(
    template: Template, records: Sequence[Mapping[str, Any]], compatible: bool
) -> Iterator[str]:
    """What rendering some records shows."""
    results = template.render_batch(records, compatible=compatible)
    examples = [result for result in results if isinstance(result, Rendered)]
    rejections = [result for result in results if isinstance(result, TemplateRejection)]
    if rejections:
        counts = Counter(rejection.reason for rejection in rejections)
        listed = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        yield f"{len(rejections)} of {len(results)} samples are rejected: {listed}"
    leaks = sum(
        len(example.completion) >= MIN_LEAK_CHARS and example.completion in example.prompt
        for example in examples
        if example.answer_choices is None
    )
    if leaks:
        yield f"the target can be read in the prompt in {leaks} of {len(examples)} samples"
    choices = {example.answer_choices for example in examples}
    if len(choices) == 1 and (told := _num_told(examples)):
        yield f"the prompt tells which choice is the target in {told} of {len(examples)} samples"
    if len(choices) == 1 and (fixed := choices.pop()) and len(examples) >= 4 * len(fixed):
        targets = {example.completion for example in examples}
        if unused := [choice for choice in fixed if choice not in targets]:
            yield f"the choice {', '.join(map(repr, unused))} is no sample's target"


def _num_told(examples: Sequence[Rendered]) -> int:
    """How many prompts hold their target but not all others, if that is hardly chance; else 0.

    The examples share their choices. The choices of one record may well stand in it.
    """
    folded = {choice.casefold() for choice in examples[0].answer_choices or () if choice}
    totals = Counter(example.completion.casefold() for example in examples)
    if not folded or not 2 <= len(totals) <= len(examples) / 4:
        return 0
    words = "|".join(map(re.escape, sorted(folded, key=len, reverse=True)))  # "not good" first
    pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)")
    told: Counter[str] = Counter()
    for example in examples:
        target = example.completion.casefold()
        shown = set(pattern.findall(example.prompt.casefold()))
        told[target] += target in shown and not totals.keys() <= shown
    # A choice that the question names, as in "Is it spam?", tells nothing of the others.
    enough = all(told[target] >= MIN_TOLD * total / 2 for target, total in totals.items())
    return told.total() if enough and told.total() >= MIN_TOLD * len(examples) else 0


def _undeclared(template: Template, part: str, text: str) -> frozenset[str]:
    try:
        return template_analysis.undeclared_names(text)
    except jinja2.TemplateSyntaxError as error:
        message = f"{template.where}: line {error.lineno} of {part}: {error.message}"
        raise InputError(" ".join(message.split())) from error
    except RecursionError as error:
        raise InputError(f"{template.where}: {part} is nested too deeply") from error
