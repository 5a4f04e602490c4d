"""ift data --config=C [--preview=N] [--lint]: builds the data set and prints its card.

With --lint, it judges the tasks' templates by their text and by the first records instead.
The preview shows whole training examples; what is trained stands in brackets, in colour on
a terminal, or token by token with --tokens.
"""

import sys
from pathlib import Path

from absl import flags

from ift_jax.commands.config_flag import define_config_flag, run_config
from ift_jax.data import pipeline
from ift_jax.data.preview import card_text, preview

_CONFIG = define_config_flag()
_PREVIEW = flags.DEFINE_integer("preview", 0, "How many training examples to show.", 0)
_TOKENS = flags.DEFINE_bool("tokens", False, "Show the preview token by token.")
_LINT = flags.DEFINE_bool(
    "lint", False, "Judge the templates instead; status 1 if any is doubtful."
)
_OUTPUT = flags.DEFINE_string("output", "", "Folder for card.json and rejected.jsonl.")


def main(_: list[str]) -> None:
    """Runs the verb."""
    config = run_config(_CONFIG)
    if _LINT.value:
        findings = pipeline.lint_tasks(config.data)
        print("\n".join(findings) or "nothing doubtful")
        sys.exit(1 if findings else 0)
    from ift_jax.language_model import load_chat

    data = pipeline.build(config.data, load_chat(config.model.path))
    card = pipeline.write_card(data, Path(_OUTPUT.value)) if _OUTPUT.value else pipeline.card(data)
    print(card_text(card))
    for text in preview(data, _PREVIEW.value, tokens=_TOKENS.value, colour=sys.stdout.isatty()):
        print(f"\n{text}")
