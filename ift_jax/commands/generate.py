"""ift generate --model=M --prompt=T, or --prompts=F.jsonl --output=G.jsonl, or neither: a chat.

Each line of F is an object with "prompt"; each line of G is that object with "completion".
"""

import json
import sys
from typing import TYPE_CHECKING

from absl import flags

from ift_jax.commands.config_flag import required, writable
from ift_jax.data.records import Rejected
from ift_jax.data.sources import read_records
from ift_jax.errors import InputError

if TYPE_CHECKING:
    from ift_jax.language_model import LanguageModel

_MODEL = flags.DEFINE_string("model", "", "A folder, hub id, .gguf file or workdir.")
_ADAPTER = flags.DEFINE_string(
    "adapter", "", "An adapter beside the model: a folder of peft, or the workdir of its run."
)
_PROMPT = flags.DEFINE_string("prompt", "", "One prompt.")
_PROMPTS = flags.DEFINE_string("prompts", "", "A file of prompts, JSON lines.")
_OUTPUT = flags.DEFINE_string("output", "", "File for the completions, JSON lines.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "The most tokens of an answer.", 1)
_TEMPERATURE = flags.DEFINE_float(
    "temperature", 0.0, "0: the most likely token; above: samples.", 0
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.")


def main(_: list[str]) -> None:
    """Runs the verb."""
    path = required(_MODEL, "model")
    if _PROMPT.value and _PROMPTS.value:
        raise InputError("--prompt and --prompts exclude each other")
    output = writable(required(_OUTPUT, "output")) if _PROMPTS.value else None
    records = _read_prompts(_PROMPTS.value) if _PROMPTS.value else []
    from ift_jax.language_model import load_pretrained

    model = load_pretrained(path)
    if _ADAPTER.value:
        model.load_adapter(_ADAPTER.value)

    def answers(prompts: list[str]) -> list[str]:
        return model.generate(
            prompts,
            max_new_tokens=_MAX_NEW_TOKENS.value,
            temperature=_TEMPERATURE.value,
            seed=_SEED.value,
        )

    if output:
        completions = answers([record["prompt"] for record in records])
        with output.open("w", encoding="utf-8") as file:
            for record, completion in zip(records, completions, strict=True):
                file.write(
                    json.dumps({**record, "completion": completion}, ensure_ascii=False) + "\n"
                )
    elif _PROMPT.value:
        print(answers([_PROMPT.value])[0])
    else:
        _chat(model)


def _read_prompts(path: str) -> list[dict]:
    records = []
    for row in read_records(path, file_format="jsonl"):
        if isinstance(row, Rejected):
            raise InputError(f"{row.origin}: {row.detail}")
        if not isinstance(row.fields.get("prompt"), str) or not row.fields["prompt"]:
            raise InputError(f"{row.origin}: expected a text under 'prompt'")
        records.append(row.fields)
    return records


def _chat(model: "LanguageModel") -> None:
    """Turns on the terminal until an empty line or the end of input."""
    messages: list[dict[str, str]] = []
    watched = sys.stdin.isatty()
    while True:
        try:
            text = input("you> " if watched else "").strip()
        except EOFError:
            text = ""
        if not text:
            return
        messages.append({"role": "user", "content": text})
        reply = model.reply(
            messages,
            max_new_tokens=_MAX_NEW_TOKENS.value,
            temperature=_TEMPERATURE.value,
            seed=_SEED.value,
        )
        messages.append({"role": "assistant", "content": reply})
        print(f"model> {reply}" if watched else reply)
