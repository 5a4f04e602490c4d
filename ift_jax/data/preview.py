"""The card and training examples as text for a terminal, and the latter as a file for a report."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ift_jax.data.files import replace_text
from ift_jax.data.fitting import encode_examples
from ift_jax.data.pipeline import DataSet
from ift_jax.data.tokenization import Encoded

EXAMPLES_A_TASK = 2  # in the file of a run
ANSWERS_SHOWN = 20  # of a split

_OTHERS = {
    "near_duplicates": "near-duplicates",
    "in_other_split": "with text of another split",
    "contaminated": "with text of an evaluation set",
    "reasoning_left_out": "with reasoning that the chat template does not print",
}
_COLOUR, _PLAIN = "\033[1;32m", "\033[0m"


def card_text(card: Mapping[str, Any]) -> str:
    """The card as a few lines per task."""
    lines = []
    for name, task in card["tasks"].items():
        rejected = sum(task["rejected"].values())
        reasons = ", ".join(f"{reason} {count}" for reason, count in task["rejected"].items())
        others = [f"{task[reason]} {words}" for reason, words in _OTHERS.items() if task[reason]]
        lines.append(
            f"task {name}: {task['records']} records, {rejected} rejected"
            + (f" ({reasons})" if reasons else "")
            + f", {task['duplicates']} duplicates, {task['truncated']} truncated"
            + "".join(f", {text}" for text in others)
        )
        for split, s in task["splits"].items():
            answers = _answers(s["answers"])
            lines.append(
                f"  {split:<10} {s['examples']:>6} examples, {s['tokens']:>8} tokens, "
                f"{s['trained_tokens']:>7} trained, longest {s['longest']:>4}"
                + (f"; answers {answers}" if answers else "")
            )
        for template, count in task["splits"]["train"]["templates"].items():
            lines.append(f"  template {template!r}: {count} training examples")
        if task["missing_shots"]:
            lacking = sum(n for lack, n in task["missing_shots"].items() if int(lack))
            drew = sum(task["missing_shots"].values())
            lines.append(f"  {drew} training examples drew shots, {lacking} got fewer than that")
    mixture = card["mixture"]
    if len(mixture.get("tasks", {})) > 1:
        lines.append(f"an epoch takes {mixture['examples']} examples:")
        width = max(map(len, mixture["tasks"]))
        for name, t in mixture["tasks"].items():
            lines.append(
                f"  {name:<{width}} {t['drawn']:>7} of {t['examples']:>7}, "
                f"{t['epochs']:6.2f} epochs, "
                f"{t['share']:6.1%} of examples, {t['share_of_tokens']:6.1%} of tokens, "
                f"{t['share_of_trained_tokens']:6.1%} of trained tokens"
            )
    return "\n".join(lines)


def _answers(counts: Mapping[str, int]) -> str:
    """All of a few; of many the most frequent ones."""
    shown = dict(counts)
    if len(counts) > ANSWERS_SHOWN:
        shown = dict(Counter(counts).most_common(ANSWERS_SHOWN))
    text = ", ".join(f"{answer}: {count}" for answer, count in shown.items())
    more = len(counts) - len(shown)
    return f"{text} and {more} others" if more else text


def preview(data: DataSet, count: int, *, tokens: bool, colour: bool) -> Iterator[str]:
    """The first training examples with what is trained marked as ⟦...⟧.

    Args:
        tokens: one token a line instead of running text.
        colour: trained text in green too.
    """
    examples = data.examples("train")[:count]
    encoded = encode_examples(data.chat, examples)
    for example, one in zip(examples, encoded, strict=True):
        head = (
            f"--- {example.origin}, template {example.template!r}, {len(one.ids)} tokens, "
            f"{int(one.trained.sum())} trained"
        )
        body = _token_lines(data, one) if tokens else _marked(one)
        if colour:
            body = body.replace("⟦", f"{_COLOUR}⟦").replace("⟧", f"⟧{_PLAIN}")
        yield f"{head}\n{body}"


def write_preview(data: DataSet, path: Path) -> None:
    """Writes a few training examples of each task, a line each, token by token.

        {"task", "template", "origin", "tokens": [{"text", "trained"}, ...]}

    The texts of an example's tokens, one behind the other, are the text that was tokenized. A
    character that takes several tokens stands with the first of them.
    """
    lines = []
    for task in data.tasks:
        examples = task.splits["train"][:EXAMPLES_A_TASK]
        for example, one in zip(examples, encode_examples(data.chat, examples), strict=True):
            line = {
                "task": task.config.name,
                "template": example.template,
                "origin": example.origin,
                "tokens": [{"text": text, "trained": trained} for text, trained in _pieces(one)],
            }
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
    replace_text(path, "".join(lines))


def _pieces(one: Encoded) -> Iterator[tuple[str, bool]]:
    """Each token's part of the text, and whether it is trained; joined, the parts are the text."""
    at, last = 0, len(one.ids) - 1
    for number, (_, end) in enumerate(one.spans.tolist()):
        end = len(one.text) if number == last else max(at, end)
        yield one.text[at:end], bool(one.trained[number])
        at = end


def _marked(one: Encoded) -> str:
    pieces, inside = [], False
    for text, trained in _pieces(one):
        if trained != inside:
            pieces.append("⟦" if trained else "⟧")
            inside = trained
        pieces.append(text)
    return "".join(pieces) + ("⟧" if inside else "")


def _token_lines(data: DataSet, one: Encoded) -> str:
    names = data.chat.tokenizer.convert_ids_to_tokens(one.ids.tolist())
    return "\n".join(
        f"{number:>5} {int(token_id):>6} {'⟦' + name + '⟧' if trained else ' ' + name}"
        for number, (token_id, name, trained) in enumerate(
            zip(one.ids, names, one.trained, strict=True)
        )
    )
