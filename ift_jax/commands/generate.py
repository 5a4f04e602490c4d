"""ift generate --model=M --prompt=T, or --prompts=F.jsonl --output=G.jsonl, or neither: a chat.

Each line of F is an object with "prompt"; each line of G is that object with "completion", written
1,024 at a time. The prompts of a file are divided among all devices, and with --fsdp and --tensor
the weights, too.
"""

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
_TOP_K = flags.DEFINE_integer(
    "top_k", 0, "Samples from this many most likely tokens only; 0: from all.", 0
)
_TOP_P = flags.DEFINE_float(
    "top_p", 1.0, "Samples from the fewest tokens of this probability together; 1: from all.", 0, 1
)
_REPETITION_PENALTY = flags.DEFINE_float(
    "repetition_penalty", 1.0, "Above 1: tokens that stood before become less likely.", 0
)
_STOP = flags.DEFINE_multi_string(
    "stop", [], "A text that ends an answer and is left out of it; may be given several times."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.")
_FSDP = flags.DEFINE_integer("fsdp", 1, "Devices over which the weights are cut, as mesh.fsdp.", 1)
_TENSOR = flags.DEFINE_integer(
    "tensor", 1, "Devices over which layers and vocabulary are cut, as mesh.tensor.", 1
)


def main(_: list[str]) -> None:
    """Runs the verb."""
    path = required(_MODEL, "model")
    for holder in (_PROMPT, _PROMPTS):
        if holder.present and not holder.value:
            raise InputError(f"--{holder.name}: is empty; leave it out for a chat")
    if not _is_text(_PROMPT.value):
        raise InputError("--prompt: is not UTF-8")
    if _PROMPT.value and _PROMPTS.value:
        raise InputError("--prompt and --prompts exclude each other")
    if _OUTPUT.value and not _PROMPTS.value:
        raise InputError("--output is for the completions of --prompts; others are printed")
    output = writable(required(_OUTPUT, "output")) if _PROMPTS.value else None
    if output and output.resolve() == Path(_PROMPTS.value).expanduser().resolve():
        raise InputError(f"--output={_OUTPUT.value}: is the file of --prompts, too")
    records = _read_prompts(_PROMPTS.value) if _PROMPTS.value else []
    from ift_jax.evaluation.sampling import Sampling

    options: dict[str, Any] = {
        "max_new_tokens": _MAX_NEW_TOKENS.value,
        "temperature": _TEMPERATURE.value,
        "top_k": _TOP_K.value,
        "top_p": _TOP_P.value,
        "repetition_penalty": _REPETITION_PENALTY.value,
        "stop": _STOP.value,
        "seed": _SEED.value,
    }
    try:
        Sampling(**options)
    except InputError as error:
        raise InputError(f"--{error}") from error
    import jax

    from ift_jax.pretrained import load_pretrained
    from ift_jax.sharding import MeshConfig, make_mesh

    parts, count = _FSDP.value * _TENSOR.value, jax.device_count()
    if count % parts:
        raise InputError(
            f"--fsdp={_FSDP.value} --tensor={_TENSOR.value}: {count} devices do not divide so"
        )
    mesh = None
    if parts > 1 or (records and count > 1):
        mesh = make_mesh(MeshConfig(fsdp=_FSDP.value, tensor=_TENSOR.value))
    model = load_pretrained(path, mesh=mesh)
    if _ADAPTER.value:
        model.load_adapter(_ADAPTER.value)
    if output:
        completions = model.generate_in_parts([record["prompt"] for record in records], **options)
        rest = iter(records)
        with output.open("w", encoding="utf-8") as file:
            for part in completions:
                for record, completion in zip(islice(rest, len(part)), part, strict=True):
                    line = json.dumps({**record, "completion": completion}, ensure_ascii=False)
                    file.write(line + "\n")
                file.flush()
    elif _PROMPT.value:
        print(model.generate([_PROMPT.value], **options)[0])
    else:
        _chat(model, options)


def _read_prompts(path: str) -> list[dict]:
    records = []
    for row in read_records(path, file_format="jsonl"):
        if isinstance(row, Rejected):
            raise InputError(f"{row.origin}: {row.detail}")
        if not isinstance(row.fields.get("prompt"), str) or not row.fields["prompt"]:
            raise InputError(f"{row.origin}: expected a text under 'prompt'")
        records.append(row.fields)
    return records


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of the shell that are no characters
        return False
    return True


def _reply(
    model: "LanguageModel", messages: list[dict[str, str]], options: dict[str, Any]
) -> Iterator[str]:
    """Pieces of what is said next; leaves out, and says so, the first turns of a long chat.

    Raises:
        InputError: if the last turn has no answer even alone; all turns stay.
    """
    for first_turn in range(0, len(messages), 2):
        pieces = model.stream(messages[first_turn:], **options)
        try:
            first = next(pieces, "")
        except InputError as error:
            problem = error
            continue
        if first_turn:
            print(f"ift: {problem}; the first {first_turn} turns are left out", file=sys.stderr)
            del messages[:first_turn]
        yield first
        yield from pieces
        return
    raise problem


def _chat(model: "LanguageModel", options: dict[str, Any]) -> None:
    """Turns on the terminal until an empty line or the end of input; replies as they are made."""
    messages: list[dict[str, str]] = []
    watched = sys.stdin.isatty()
    while True:
        try:
            text = input("you> " if watched else "").strip()
        except EOFError:
            text = ""
        except UnicodeDecodeError as error:
            raise InputError(f"input that is not UTF-8: {error.reason}") from error
        if not text:
            return
        messages.append({"role": "user", "content": text})
        print("model> " if watched else "", end="", flush=True)
        pieces = []
        try:
            for piece in _reply(model, messages, options):
                print(piece, end="", flush=True)
                pieces.append(piece)
        except InputError as error:
            if not watched:  # a program waits for an answer to each line
                raise
            print(flush=True)
            print(f"ift: {error}; this message is left out", file=sys.stderr)
            messages.pop()
            continue
        print(flush=True)
        messages.append({"role": "assistant", "content": "".join(pieces)})
