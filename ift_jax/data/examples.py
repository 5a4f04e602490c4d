"""Example: one prompt with its completion; made from templates or from conversations."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ift_jax.data.chat import REASONING, Message, Turns
from ift_jax.data.config import TaskConfig
from ift_jax.data.conversation import Conversation
from ift_jax.data.formats import detect_format, to_conversations
from ift_jax.data.leaks import Marks, mark_shown, record_digest, record_marks, turn_marks
from ift_jax.data.records import Record, Rejected
from ift_jax.data.splits import content_key, has_words, split_key
from ift_jax.data.template_analysis import Part
from ift_jax.data.template_sandbox import Timeouts
from ift_jax.data.templates import Rendered, Template, load_templates, read_templates
from ift_jax.data.turns import without_filling
from ift_jax.errors import InputError

LIBRARY = Path(__file__).parent.parent / "templates"


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt with its completion.

    Attributes:
        task: the task's name.
        template: the template's name; of conversations what the config's `template_column`
            says, or the format's name. Kept so that scores can be read per template.
        turns: what is said, and what of it is trained.
        choices: what the answer is chosen from; () for free text.
        label: the value that subsets are balanced or stratified by.
        text: what decides the split, without template.
        key: digest of the text that must not stand in two splits.
        group: digest of what decides the split; the key itself, unless records are grouped.
        content: digest of all that the example is made from, case and spacing apart.
        exact: the same digest of it as it is, character by character.
        origin: file and line of the record.
        texts: what the prompts show of the record, without template: the columns that they read,
            or what is said to the assistant. Near-duplicates are found by it.
        asked: digest of `texts`; equal for examples with one question.
        whole: digest of the record with the columns that nothing reads.
        shots: solved examples that stand before the question, among the messages.
        own_turns: where the example's own turns begin among the messages, behind the shots; its own
            system turn stands before them.
        references: all answers that count as right, the completion among them; () for it alone.
    """

    task: str
    template: str
    turns: Turns
    choices: tuple[str, ...]
    label: str
    text: str
    key: str
    group: str
    content: str
    exact: str
    origin: str
    texts: tuple[str, ...] = ()
    asked: str = ""
    whole: int = 0
    shots: int = 0
    own_turns: int = 0
    references: tuple[str, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The turns before the answer."""
        return self.turns.messages

    @property
    def completion(self) -> str:
        """The answer."""
        return self.turns.completion

    def said(self) -> list[str]:
        """What decides the split, what the prompts show without template, and all answers."""
        answers = tuple(m for m in self.messages if m["role"] == "assistant")
        asked = dict.fromkeys([self.text, "\n".join(self.texts)])
        return [*asked, *self.turns._replace(messages=answers).texts()]

    def with_messages(self, messages: tuple[Message, ...]) -> "Example":
        """The same with other turns before the answer."""
        return replace(self, turns=self.turns._replace(messages=messages))


def load_task_templates(task: TaskConfig) -> list[Template]:
    """The templates that a task names; none for a task of conversations.

    Raises:
        InputError: If there is no such template, or it cannot be used.
    """
    path = _template_file(task)
    return _named(task, path, list(load_templates(path).values())) if path else []


def templates_to_lint(task: TaskConfig) -> list[Template]:
    """The same, also where they cannot be used: two of a name, or one that is not valid Jinja."""
    path = _template_file(task)
    return _named(task, path, read_templates(path)) if path else []


def _named(task: TaskConfig, path: Path, found: list[Template]) -> list[Template]:
    """Those of a file's templates that the task asks for, in its order."""
    names = [template.name for template in found]
    for name in task.template_names:
        if name not in names:
            where = f"config.data.tasks: {task.name}.templates"
            raise InputError(f"{where}: {path} has no template {name!r}; it has {names}")
    wanted = task.template_names or dict.fromkeys(names)
    return [template for name in wanted for template in found if template.name == name]


def _template_file(task: TaskConfig) -> Path | None:
    where = f"config.data.tasks: {task.name}.templates"
    if task.format not in ("", "columns"):
        if task.templates:
            raise InputError(f"{where}: records of format {task.format!r} take no templates")
        return None
    if not task.templates:
        if task.format:
            raise InputError(f"{where}: labelled columns need templates; name a file")
        return None
    path = Path(task.templates).expanduser()
    if task.template_column:
        raise InputError(
            f"config.data.tasks: {task.name}.template_column: names the templates of records that "
            "were rendered elsewhere; this task has templates of its own, so leave it out"
        )
    if not path.suffix and (LIBRARY / f"{task.templates}.yaml").exists():
        path = LIBRARY / f"{task.templates}.yaml"
    return path


def from_templates(
    task: TaskConfig,
    templates: Sequence[Template],
    records: Sequence[Record],
    seed: int,
    rejected: list[Rejected],
    marks: dict[str, Marks],
    max_chars: int = 0,
    timeouts: Timeouts | None = None,
) -> list[Example]:
    """Applies the templates; a record that does not render is rejected, with the reason.

    Args:
        marks: gets those of each record, by its origin.
        max_chars, timeouts: see `Template.render_batch`.
    """
    chosen: list[list[int]] = [[] for _ in templates]
    for number, record in enumerate(records):
        for t in _chosen_templates(task, len(templates), record, seed):
            chosen[t].append(number)
    results: list[list[Example]] = [[] for _ in records]
    # An inverted template asks with the label and answers with the text.
    asking = [t for t in templates if t.metadata.get("original_task") is not False] or templates
    prompt_columns = sorted({c for t in asking for c in t.prompt_columns})
    all_columns = sorted({c for t in templates for c in t.columns})
    prompt_parts = _parts(part for t in asking for part in t.prompt_parts)
    all_parts = _parts(part for t in templates for part in t.parts)
    digests = []
    for record in records:
        prompted = tuple(_texts(record.fields, prompt_columns, prompt_parts))
        asked = _split_texts(task, record.fields, prompt_parts, prompted)
        shown = _texts(record.fields, all_columns, all_parts)
        whole = record_digest(record.fields)
        digests.append(_digests(task, record, asked, prompted, shown, whole))
        prompts = prompted if task.split_by else ()
        marks[record.origin] = record_marks(asked, prompts, shown, whole)
    for template, numbers in zip(templates, chosen, strict=True):
        outcomes = template.render_batch(
            [records[n].fields for n in numbers],
            max_chars,
            compatible=task.template_mode == "compatible",
            timeouts=timeouts,
        )
        for number, outcome in zip(numbers, outcomes, strict=True):
            record = records[number]
            if not isinstance(outcome, Rendered):
                rejected.append(Rejected(record.origin, outcome.reason, str(outcome)))
                continue
            if outcome.completion not in (outcome.answer_choices or ()):
                mark_shown(marks[record.origin], outcome.completion)
            results[number].append(
                Example(
                    task=task.name,
                    template=template.name,
                    turns=Turns(({"role": "user", "content": outcome.prompt},), outcome.completion),
                    choices=outcome.answer_choices or (),
                    label=str(record.fields.get(task.subset_by, "")),
                    origin=record.origin,
                    **digests[number]._asdict(),
                )
            )
    return [example for examples in results for example in examples]


class _Digests(NamedTuple):
    text: str
    key: str
    group: str
    content: str
    exact: str
    texts: tuple[str, ...]
    asked: str
    whole: int


def _digests(
    task: TaskConfig,
    record: Record,
    asked: Sequence[str],
    prompted: tuple[str, ...],
    said: Sequence[str],
    whole: int,
) -> _Digests:
    key = split_key(*asked)
    return _Digests(
        text="\n".join(asked),
        key=key,
        group=_group(task, record, key),
        content=content_key(*said),
        exact=_exact(said),
        texts=prompted,
        asked=split_key(*prompted) if task.split_by else key,
        whole=whole,
    )


def _exact(texts: Sequence[str]) -> str:
    return hashlib.blake2b(repr(list(texts)).encode(), digest_size=16).hexdigest()


def _group(task: TaskConfig, record: Record, key: str) -> str:
    """What decides the split; a record without a value belongs to no group but its own."""
    values = [record.fields.get(column) for column in task.group_by]
    return key if all(map(_is_missing, values)) else split_key(*map(str, values))


def _is_missing(value: Any) -> bool:
    return value is None or value == "" or value != value  # NaN is not NaN


def of_a_class(
    task: TaskConfig, records: Sequence[Record], rejected: list[Rejected]
) -> list[Record]:
    """The records that have a value to be balanced by; no value is no class of its own."""
    if not task.balance_by:
        return list(records)
    detail = f"no value in {task.balance_by!r}, which the task's balance_by names"
    missing = [_is_missing(record.fields.get(task.balance_by)) for record in records]
    rejected += [
        Rejected(record.origin, "no_class", detail)
        for record, is_missing in zip(records, missing, strict=True)
        if is_missing
    ]
    return [r for r, is_missing in zip(records, missing, strict=True) if not is_missing]


Parts = Mapping[str, Sequence[Part]]


def _parts(found: Iterable[Part]) -> Parts:
    """What is read of each column that is not read as a whole."""
    parts: dict[str, set[Part]] = {}
    for column, *path in found:
        parts.setdefault(str(column), set()).add(tuple(path))
    return {column: sorted(paths, key=repr) for column, paths in parts.items() if () not in paths}


def _texts(fields: Mapping[str, Any], columns: Iterable[str], parts: Parts) -> list[str]:
    """The columns as texts; of a nested one the parts that are read."""
    texts: list[str] = []
    for column in columns:
        value = fields.get(column, "")
        if column in parts and isinstance(value, Mapping | list | tuple):
            texts += dict.fromkeys(str(_part(value, path)) for path in parts[column])
        else:
            texts.append(str(value))
    return texts


def _split_texts(
    task: TaskConfig, fields: Mapping[str, Any], parts: Parts, otherwise: Sequence[str]
) -> list[str]:
    """What must not stand in two splits: the columns of `split_by`, or `otherwise` where it
    names none or the record has no value there."""
    if all(_is_missing(fields.get(column)) for column in task.split_by):
        return list(otherwise)
    return _texts(fields, task.split_by, parts)


def _part(value: Any, path: Part) -> Any:
    """As far as the path leads: where it ends in a method, what has the method."""
    for step in path:
        if isinstance(value, Mapping):
            is_there = step in value
        else:
            is_there = isinstance(value, list | tuple) and step in range(len(value))
        if not is_there:
            break
        value = value[step]
    return value


def _chosen_templates(task: TaskConfig, count: int, record: Record, seed: int) -> Iterator[int]:
    if task.template_choice == "all" or count == 1:
        yield from range(count)
        return
    text = json.dumps([seed, record.fields], sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    yield int.from_bytes(digest, "big") % count


def conversation_format(task: TaskConfig, record: Record) -> str:
    """The format of a task's records, told from one of them if the config does not say it.

    Raises:
        InputError: if the record leaves it open.
    """
    try:
        return task.format or detect_format(record.fields)
    except InputError as error:
        where = f"config.data.tasks: {task.name}: {record.origin}"
        lacking = [old for old, new in task.renamed.items() if new not in record.fields]
        hint = f"; rename names {lacking}, and the record has no such column" if lacking else ""
        raise InputError(f"{where}: {error}{hint}") from error


def from_conversations(
    task: TaskConfig,
    fmt: str,
    records: Sequence[Record],
    rejected: list[Rejected],
    marks: dict[str, Marks],
) -> list[Example]:
    """Examples of records that are conversations, instructions or plain text.

    The answer of an example is the last of the assistant's turns that are trained; what comes
    after it is context for nothing and is left out, also where all text is trained.

    Args:
        marks: gets those of each example, by its origin.
    """
    examples = []
    for record in records:
        if record.columnar:
            record = replace(record, fields=without_filling(record.fields))
        for number, outcome in enumerate(
            to_conversations(record, fmt, train_turns=task.train_turns), start=1
        ):
            if isinstance(outcome, Rejected):
                rejected.append(outcome)
                continue
            template = record.fields.get(task.template_column) if task.template_column else fmt
            if not (template and isinstance(template, str)):
                detail = f"the column {task.template_column!r} names no template"
                rejected.append(Rejected(record.origin, "no_template", detail))
                continue
            # A file of Super-NaturalInstructions is one record with many examples.
            origin = f"{record.origin}#{number}" if fmt == "superni" else record.origin
            turns = _turns(outcome, whole=task.train_turns == "all_text")
            said = turns.texts()
            to_assistant = _to_assistant(turns)
            texts = list(outcome.question) or to_assistant or said[-1:]
            asked = _split_texts(task, record.fields, {}, texts)
            prompts = texts if task.split_by else ()
            whole = 0 if fmt == "superni" else record_digest(record.fields)
            marks[origin] = record_marks(asked, prompts, [*said, *outcome.question], whole)
            if not task.split_by:
                marks[origin] |= turn_marks(to_assistant)
            examples.append(
                Example(
                    task=task.name,
                    template=template,
                    turns=turns,
                    choices=outcome.choices or (),
                    references=outcome.references if outcome.references[1:] else (),
                    label=str(record.fields.get(task.subset_by, "")),
                    origin=origin,
                    **_digests(task, record, asked, tuple(texts), said, whole)._asdict(),
                )
            )
    return examples


def _to_assistant(turns: Turns) -> list[str]:
    """What is said to the assistant; a system turn only where the rest is too short to be told."""
    others = [m for m in turns.messages if m["role"] != "assistant"]
    asked = [m["content"] for m in others if m["role"] != "system"]
    return asked if has_words(" ".join(asked)) else [m["content"] for m in others]


def _turns(conversation: Conversation, *, whole: bool) -> Turns:
    if conversation.plain:
        return Turns((), conversation.messages[0].text(), plain=True)
    messages = [
        {"role": m.role, "content": m.text()} | ({REASONING: m.reasoning} if m.reasoning else {})
        for m in conversation.messages
    ]
    trained = [i for i, m in enumerate(conversation.messages) if m.trained]
    last = max(i for i in trained if conversation.messages[i].role == "assistant")
    if conversation.tools:
        offer = "You can call these tools:\n" + "\n".join(
            json.dumps(tool, ensure_ascii=False) for tool in conversation.tools
        )
        if messages[0]["role"] == "system":
            messages[0]["content"] = f"{messages[0]['content']}\n\n{offer}"
        else:
            messages.insert(0, {"role": "system", "content": offer})
            trained = [i + 1 for i in trained]
            last += 1
    earlier = () if whole else tuple(trained[:-1])
    answer = messages[last]
    return Turns(
        tuple(messages[:last]), answer["content"], earlier, whole,
        reasoning=answer.get(REASONING, ""),
    )  # fmt: skip
