"""Adapters of a `LanguageModel`: made for its weights, read from files, placed beside it."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from ift_jax.errors import InputError
from ift_jax.hf import adapters, families, weights
from ift_jax.model_config import is_workdir
from ift_jax.models import decoder
from ift_jax.models.decoder import Params
from ift_jax.peft.adapter import Adapter
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.sites import tensor_sites
from ift_jax.peft.virtual import fitted
from ift_jax.sharding import param_shardings
from ift_jax.vocabulary import format_of

if TYPE_CHECKING:
    from ift_jax.language_model import LanguageModel


def host_of(model: "LanguageModel") -> adapters.Host:
    """What adapters can be put on."""
    c = model.structure.config
    family = families.family_of(model.hf_config, "config.json")
    shapes = {k: v.shape for k, v in weights.flat_paths(decoder.param_shapes(c)).items()}
    axes = weights.flat_paths(decoder.param_axes(c), lambda x: isinstance(x, tuple))
    return adapters.Host(
        tensors=tensor_sites(families.weight_rows(family, c), shapes, axes),
        size=(c.num_layers, c.width, c.num_kv_heads, c.head_size),
        tied=families.tied_modules(family, c),
    )


def adapter_for(model: "LanguageModel", config: PeftConfig) -> Adapter:
    """The static half of an adapter. Raises InputError for what the model does not have."""
    host = host_of(model)
    return Adapter.of(config, host.tensors, host.size, _token_ids(model, config.token_rows))


def _token_ids(model: "LanguageModel", tokens: Sequence[str]) -> tuple[int, ...]:
    if not tokens:
        return ()
    if model.tokenizer is None:
        raise InputError("config.peft.token_rows: this model's folder has no tokenizer")
    ids: list[int] = []
    for token in tokens:
        found = model.tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(found) != 1 or found[0] in ids:
            raise InputError(
                f"config.peft.token_rows: {token!r} is the tokens {found}; expected one token, "
                "which no other name stands for"
            )
        ids += found
    return tuple(ids)


def prompt_start(model: "LanguageModel", config: PeftConfig) -> Any:
    """The token ids of `prompt_text`, or its keys and values; None without one."""
    if not config.prompt_text:
        return None
    if model.tokenizer is None:
        raise InputError("config.peft.prompt_text: this model's folder has no tokenizer")
    ids = fitted(model.tokenizer(config.prompt_text)["input_ids"], config.num_virtual_tokens)
    if config.method == "prompt":
        return ids
    causal = jnp.tril(jnp.ones((1, ids.size, ids.size), bool))
    _, cache = model.structure.merge(model.params).score_states(
        ids[None], jnp.arange(ids.size)[None], causal
    )
    k, v = cache.of_layer()  # of all layers: [L, 1, P, K, H]
    return {"k": k[:, 0], "v": v[:, 0]}


def placed(model: "LanguageModel", adapter: Adapter, arrays: Params) -> Params:
    """An adapter's arrays where the weights lie."""
    mesh = model.mesh
    if mesh is None:
        return jax.tree.map(jnp.asarray, arrays)
    return jax.device_put(arrays, param_shardings(mesh, adapter.axes(), adapter.shapes()))


def read(model: "LanguageModel", path: str | Path, *, merged: bool = False) -> adapters.Read:
    """An adapter of a folder or workdir, for these weights.

    Args:
        merged: whether it is in the weights already.

    Raises:
        InputError: as `LanguageModel.load_adapter`.
    """
    if model.structure.adapter is not None:
        raise InputError(
            f"{path}: the model has an adapter already, which `merged()` works in, or `ift "
            "export --merge_adapter`; a run that went on from it is a model by itself"
        )
    found = Path(path).expanduser()
    if is_workdir(found):
        from ift_jax.checkpoint import load_workdir_adapter

        return adapters.Read(*load_workdir_adapter(found, model, any_base=merged), {})
    return adapters.read_adapter(found, host_of(model))


def with_loaded(model: "LanguageModel", path: str | Path) -> "LanguageModel":
    """The model with the adapter of a folder or workdir, and what came with it.

    Raises:
        InputError: as `LanguageModel.load_adapter`.
    """
    grown = model
    if model.structure.adapter is None and model.tokenizer is not None:
        new = _brought_tokens(model, path)
        grown = model.with_new_tokens(new.texts, num_rows=new.num_rows)
        if new.tokenizer is not None:
            grown = dataclasses.replace(grown, tokenizer=new.tokenizer)
    found = read(grown, path)
    if found.tables:
        tables = {
            name: jax.device_put(table.astype(own.dtype), own.sharding)
            for name, table in found.tables.items()
            for own in (grown.params[name],)
        }
        grown = grown.with_params({**grown.params, **tables})
        grown.tables = tuple(tables)
    return grown.with_adapter(found.adapter, placed(grown, found.adapter, found.arrays))


def _brought_tokens(model: "LanguageModel", path: str | Path) -> adapters.NewTokens:
    """Tokens that an adapter trained and this model does not have."""
    found = Path(path).expanduser()
    if is_workdir(found):
        from ift_jax.config import read_run_config

        return adapters.NewTokens(read_run_config(found).model.new_tokens)
    return adapters.new_tokens(found, model.tokenizer, host_of(model))


def common_tokenizer(model: "LanguageModel", paths: Sequence[str | Path]) -> Any:
    """The tokenizer of several folders if they have one chat format, else the model's own."""
    if model.tokenizer is None:
        return None
    found = [_brought_tokens(model, path).tokenizer for path in paths]
    formats = {format_of(one) for one in found if one is not None}
    if len(formats) == 1 and None not in found:
        return found[0]
    if formats - {format_of(model.tokenizer)}:
        print(
            "the adapters were not all trained in one chat format; prompts are in the model's",
            file=sys.stderr,
        )
    return model.tokenizer
