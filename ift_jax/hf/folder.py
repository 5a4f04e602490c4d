"""Hugging Face model folders: config.json, safetensors, tokenizer; read lazily, written whole."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ift_jax.errors import InputError
from ift_jax.hf.weights import StoredTensor

SHARD_BYTES = 5 * 2**30

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InputError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, with the fields that it leaves out at the defaults of its `model_type`.

    Those defaults are part of the format: transformers may drop a field that equals one.
    """
    from transformers import AutoConfig

    adapter = folder / "adapter_config.json"
    if adapter.exists() and not (folder / "config.json").exists():
        base = read_json(adapter).get("base_model_name_or_path")
        raise InputError(
            f"{folder}: holds an adapter and no model; load the model that it belongs to (it names "
            f"{base}) and the adapter beside it (--adapter, LanguageModel.load_adapter)"
        )
    raw = read_json(folder / "config.json")
    try:
        defaults = AutoConfig.for_model(str(raw.get("model_type"))).to_dict()
    except ValueError:
        return raw  # an unknown model_type is refused where the family is looked up
    shaping = ("head_dim", "num_key_value_heads", "rope_parameters", "rope_theta")
    raw = {name: value for name, value in raw.items() if value is not None or name not in shaping}
    rope = defaults.pop("rope_parameters", None)
    if "rope_theta" not in raw:
        own = raw.get("rope_parameters", {})
        raw["rope_parameters"] = {**(rope or {}), **own} if isinstance(own, dict) else own
    for derived in ("head_dim", "num_key_value_heads"):
        defaults.pop(derived, None)
    complete = {**defaults, **raw}
    complete.setdefault("num_key_value_heads", complete.get("num_attention_heads"))
    return complete


def open_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a folder's safetensors files by name; nothing is read yet.

    Raises:
        InputError: for a missing, truncated or broken file, a tensor that stands twice, or
            one that the index names and no file holds.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(
            isinstance(name, str) for name in weight_map.values()
        ):
            raise InputError(f"{index}: weight_map: expected an object from tensor to file")
        files = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        weight_map = None
        files = [folder / "model.safetensors"]
        pickles = sorted(folder.glob("pytorch_model*.bin"))
        if pickles and not files[0].exists():
            raise InputError(
                f"{pickles[0]}: is a pickle, which can run code and is not read; write "
                "model.safetensors with transformers' save_pretrained"
            )
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in open_file(file).items():
            if name in tensors:
                raise InputError(f"{file}: {name} also stands in {tensors[name].origin}")
            tensors[name] = tensor
    if weight_map is not None and set(weight_map) != set(tensors):
        name = min(set(weight_map) ^ set(tensors))
        raise InputError(f"{index}: {name} stands in the index or in a file, but not in both")
    return tensors


def open_file(file: Path) -> dict[str, StoredTensor]:
    """Every tensor of one safetensors file by name; nothing is read yet. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    if not file.exists():
        raise InputError(f"{file}: no such file")
    try:
        handle = safe_open(file, "np")
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not a complete safetensors file ({error})") from error

    def stored(name: str) -> StoredTensor:
        view = handle.get_slice(name)
        if view.get_dtype() not in _DTYPES:
            raise InputError(f"{file}: {name} has dtype {view.get_dtype()}, which is not supported")
        return StoredTensor(tuple(view.get_shape()), lambda: handle.get_tensor(name), str(file))

    return {name: stored(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)


def read_tokenizer(folder: Path) -> Any | None:
    """The folder's fast tokenizer, or None where the folder has none.

    Raises:
        InputError: if there is one that transformers cannot read.
    """
    file = folder / "tokenizer.json"
    if not file.exists():
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, use_fast=True)
    except Exception as error:  # tokenizers raises bare Exceptions
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{file}: not a tokenizer that transformers reads "
            f"({reason[0] if reason else type(error).__name__})"
        ) from error


def write_folder(
    folder: Path,
    hf_config: Mapping[str, Any],
    tensors: Iterator[tuple[str, NDArray[Any]]],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: str,
    tokenizer: Any | None,
    generation_config: Mapping[str, Any],
) -> None:
    """Writes a folder that transformers loads as it is.

    Shards are planned from shapes, then filled and written one at a time. The folder
    appears under its name only when it is complete.

    Raises:
        InputError: if the folder exists and is not empty, or cannot be written.
    """
    # torch_dtype is the older name of the field; both would contradict each other.
    kept = {name: value for name, value in hf_config.items() if name != "torch_dtype"}
    with new_folder(folder) as partial:
        _write_json(partial / "config.json", {**kept, "dtype": dtype})
        _write_json(partial / "generation_config.json", generation_config)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        _write_shards(partial, tensors, shapes, np.dtype(dtype).itemsize)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which gets its name when the block has ended without an error.

    Raises:
        InputError: if the name is taken by a file or by a folder with content, or cannot be
            written.
    """
    folder = folder.expanduser().absolute()  # which "." has a name by
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: already exists; choose a new folder or remove it")
    partial = folder.with_name(folder.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from error
    try:
        yield partial
        if folder.exists():  # it stays the folder that it was, which may be the working directory
            for path in sorted(partial.iterdir()):
                os.replace(path, folder / path.name)
            partial.rmdir()
        else:
            os.replace(partial, folder)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f"{folder}: cannot be written: {error}") from error
        raise


def _write_shards(
    folder: Path,
    tensors: Iterator[tuple[str, NDArray[Any]]],
    shapes: Mapping[str, tuple[int, ...]],
    itemsize: int,
) -> None:
    plan = plan_shards(shapes, itemsize, SHARD_BYTES)
    names = (
        ["model.safetensors"]
        if len(plan) == 1
        else [f"model-{i + 1:05d}-of-{len(plan):05d}.safetensors" for i in range(len(plan))]
    )
    weight_map = {}
    for file, members in zip(names, plan, strict=True):
        shard = {}
        for expected in members:
            name, value = next(tensors)
            if name != expected or value.shape != shapes[name]:
                raise ValueError(f"planned {expected} {shapes[expected]}, got {name} {value.shape}")
            shard[name] = value
            weight_map[name] = file
        save_tensors(folder / file, shard, like=folder / "config.json")
    if len(plan) > 1:
        total = sum(int(np.prod(shape)) * itemsize for shape in shapes.values())
        _write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )


def save_tensors(file: Path, tensors: Mapping[str, NDArray[Any]], *, like: Path) -> None:
    """Writes a safetensors file that whoever may read the file `like` may read.

    safetensors makes files for their owner alone, and a folder is meant to be shared.
    """
    from safetensors.numpy import save_file

    save_file(dict(tensors), file, metadata={"format": "pt"})
    file.chmod(like.stat().st_mode & 0o777)


def plan_shards(
    shapes: Mapping[str, tuple[int, ...]], itemsize: int, limit: int
) -> list[list[str]]:
    """Cuts tensors, in order, into shards of at most `limit` bytes (one tensor at least).

    Example:
        >>> plan_shards({"a": (4,), "b": (4,), "c": (4,)}, itemsize=1, limit=8)
        [['a', 'b'], ['c']]
    """
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        needed = int(np.prod(shape)) * itemsize
        if shards[-1] and size + needed > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += needed
    return shards


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(value), indent=2, sort_keys=True) + "\n", encoding="utf-8")
