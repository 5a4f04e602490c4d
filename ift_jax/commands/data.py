"""ift data --config=C [--preview=N] [--lint] [--output=DIR [--part=i/n]]: builds the data set.

Prints its card. With --lint, it judges the tasks' templates by their text and by the first
records instead. The preview shows whole training examples; what is trained stands in
brackets, in colour on a terminal, or token by token with --tokens.

With --output, it writes the tokenized and packed set, for config.data.prepared. Several hosts,
or processes, that see the same folder can share the work, each with its --part=i/n, i from 0.
The preview is then of the examples that the set keeps to be read, 1,024 of each template at most.
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

from absl import flags

from ift_jax.commands.config_flag import define_config_flag, run_config
from ift_jax.data import pipeline
from ift_jax.data.preview import card_text, preview
from ift_jax.errors import InputError

_CONFIG = define_config_flag()
_PREVIEW = flags.DEFINE_integer("preview", 0, "How many training examples to show.", 0)
_TOKENS = flags.DEFINE_bool("tokens", False, "Show the preview token by token.")
_LINT = flags.DEFINE_bool(
    "lint", False, "Judge the templates instead; status 1 if any is doubtful."
)
_OUTPUT = flags.DEFINE_string("output", "", "Folder for the prepared data set and its card.")
_PART = flags.DEFINE_string("part", "0/1", "With --output: this process's part, such as 0/4.")

_PROCESSES = flags.DEFINE_integer(
    "processes", 1, "With --output: processes that share the work.", 1
)


def main(_: list[str]) -> None:
    """Runs the verb."""
    config = run_config(_CONFIG)
    if _LINT.value:
        findings = pipeline.lint_tasks(config.data)
        print("\n".join(findings) or "nothing doubtful")
        sys.exit(1 if findings else 0)
    from ift_jax.data.prepared import load_data, prepare, read_index
    from ift_jax.data.prepared_rows import prepared_summary
    from ift_jax.data.rows import pack
    from ift_jax.pretrained import load_chat

    chat = load_chat(config.model.path, config.model.new_tokens)
    part = _part(_PART.value)
    data, folder = None, Path(_OUTPUT.value).expanduser()
    if _OUTPUT.value:
        card = prepare(config.data, chat, folder, part, _PROCESSES.value)
    else:
        data = pipeline.build(config.data, chat)
        card = pipeline.card(data)
    if card:
        print(card_text(card))
    if data and card and card["mixture"]:
        print(f"training: {pack(data, 'train', config.data.seed)[0].summary()}")
    elif card and card["mixture"]:
        print(f"training: {prepared_summary(read_index(folder))}")
    if _PREVIEW.value and not card:
        print("no preview before all parts are there", file=sys.stderr)
    elif _PREVIEW.value:
        data = data or load_data(replace(config.data, prepared=str(folder)), chat)
        colour = sys.stdout.isatty()
        for text in preview(data, _PREVIEW.value, tokens=_TOKENS.value, colour=colour):
            print(f"\n{text}")


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    part = (int(match[1]), int(match[2])) if match else (0, 0)
    if not part[0] < part[1]:
        raise InputError(f"--part={text}: expected i/n with i from 0 to n - 1, such as 0/4")
    if (part[1] > 1 or _PROCESSES.value > 1) and not _OUTPUT.value:
        raise InputError("--part and --processes need --output, the folder that all write to")
    return part
