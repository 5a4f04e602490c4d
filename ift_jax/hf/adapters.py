"""Adapter folders of the PEFT library (adapter_config.json, adapter_model.safetensors), both ways.

Names and shapes of tensors follow from the sites of an adapter, which come from the family's
weight table, so that a new family needs nothing here.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ift_jax.errors import InputError
from ift_jax.hf import folder
from ift_jax.hf.weights import StoredTensor
from ift_jax.peft.adapter import TRAINED, Adapter
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.mixing import plain_lora
from ift_jax.peft.sites import Site, selected

Tree = dict[str, Any]

# Fields that change no logits of a trained adapter.
_INERT = {
    *("auto_mapping", "base_model_name_or_path", "fan_in_fan_out", "inference_mode"),
    *("megatron_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size"),
    *("revision",),
}

# Fields that we do not implement, at the values with which they do nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "alora_invocation_tokens": (None,),
    "arrow_config": (None,),
    "bias": ("none",),
    "corda_config": (None,),
    "ensure_weight_tying": (False,),
    "eva_config": (None,),
    "exclude_modules": (None, [], ""),
    # The others take the start out of the base's weights, which then are not the model's own.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "kasa_config": (None,),
    "layer_replication": (None, []),
    "layers_pattern": (None, [], "", "layers", ["layers"]),
    "loftq_config": ({}, None),
    "lora_bias": (False,),
    "lora_ga_config": (None,),
    "modules_to_save": (None, []),
    "monteclora_config": (None,),
    "target_parameters": (None, []),
    "task_type": ("CAUSAL_LM", None),
    "trainable_token_indices": (None, [], {}),
    "use_bdlora": (None, False),
    "use_dora": (False,),
    "use_qalora": (False,),
    "velora_config": (None,),
}

_LORA_FIELDS = {
    *("alpha_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "r", "rank_pattern"),
    *("target_modules", "use_rslora"),
}

# Our array of a site -> its name in the folder, behind the linear layer's.
_LORA_TENSORS = {"a": "lora_A.weight", "b": "lora_B.weight"}

_PREFIX = "base_model.model."
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def is_adapter_folder(path: Path) -> bool:
    """Whether a folder holds an adapter of peft, and no model."""
    return (path / _CONFIG).exists() and not (path / "config.json").exists()


def base_model_of(path: Path) -> str:
    """The model that the folder says it adapts. Raises InputError where it does not say."""
    name = folder.read_json(path / _CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(
            f"{path / _CONFIG}: base_model_name_or_path is empty; load the base model and give it "
            "this folder with load_adapter, or with --model and --adapter"
        )
    return name


def read_adapter(path: Path, adapter_for: Callable[[PeftConfig], Adapter]) -> tuple[Adapter, Tree]:
    """The adapter of a folder that peft, or `write_adapter`, wrote, and its arrays on the host.

    Args:
        adapter_for: the model's own method of that name.

    Raises:
        InputError: for a missing or broken file; a field of adapter_config.json that we
            neither read nor find at a value where it does nothing; a tensor that is missing,
            mis-shaped, or that nothing reads.
    """
    where = path / _CONFIG
    fields = folder.read_json(where)
    _check_fields(fields, where)
    if not (path / _WEIGHTS).exists() and (path / "adapter_model.bin").exists():
        raise InputError(
            f"{path}: holds adapter_model.bin, a pickle; save it again with peft's "
            "save_pretrained, which writes safetensors"
        )
    tensors = folder.open_file(path / _WEIGHTS)
    everywhere = adapter_for(PeftConfig(method="lora"))
    config, chosen, ranks, scalings = _lora_plan(fields, everywhere.sites, where)
    adapter = replace(everywhere, config=config, sites=chosen)
    trained: Tree = {}
    used: set[str] = set()
    for site in chosen:
        shapes = adapter.method.trained(site, config)
        arrays = {
            name: np.zeros((len(site.layers), *shape), np.float32)
            for name, (shape, _) in shapes.items()
        }
        for row, layer in enumerate(site.layers):
            module = site.name.format(layer)
            rank = ranks[module]
            for array, suffix in _LORA_TENSORS.items():
                name = f"{_PREFIX}{module}.{suffix}"
                target = arrays[array][row]
                target = target[..., :rank] if array == "a" else target[:rank]
                target[...] = _read_linear(tensors, name, target, 1 if array == "b" else -1)
                used.add(name)
            arrays["b"][row] *= np.float32(scalings[module] / config.scaling)
        trained[site.module] = arrays
    for name in sorted(set(tensors) - used):
        raise InputError(f"{path / _WEIGHTS}: the tensor {name} is not part of this adapter")
    return adapter, {TRAINED: {"layers": trained}}


def write_adapter(
    path: Path, adapter: Adapter, arrays: Tree, *, dtype: str, base_model: str, tokenizer: Any
) -> None:
    """Writes a folder that peft loads: `PeftModel.from_pretrained(base, path)`.

    PiSSA's part that was taken out of the weights becomes another `rank` columns, so that the
    folder fits the unchanged base model.

    Args:
        arrays: the adapter's branches, as `Adapter.init` gives them; others are left aside.
        dtype: of the saved arrays.
        base_model: what the folder says it adapts, a hub id or a path.
        tokenizer: saved beside it, if not None.

    Raises:
        InputError: if the folder exists and is not empty, or cannot be written.
    """
    from safetensors.numpy import save_file

    adapter, arrays = plain_lora(adapter, arrays)
    tensors = {}
    for site in adapter.sites:
        pair = {k: np.asarray(v) for k, v in arrays[TRAINED]["layers"][site.module].items()}
        for row, layer in enumerate(site.layers):
            for array, suffix in _LORA_TENSORS.items():
                value = pair[array][row]
                inputs = len(site.in_shape) if array == "a" else 1
                flat = value.reshape(int(np.prod(value.shape[:inputs])), -1).T
                tensors[f"{_PREFIX}{site.name.format(layer)}.{suffix}"] = np.ascontiguousarray(
                    flat.astype(jnp.dtype(dtype))
                )
    with folder.new_folder(path) as partial:
        config = _lora_config(adapter)
        config["base_model_name_or_path"] = base_model or None
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (partial / _CONFIG).write_text(text, encoding="utf-8")
        save_file(tensors, partial / _WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)


def _check_fields(fields: Mapping[str, Any], where: Path) -> None:
    kind = fields.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{where}: peft_type={kind!r} is not supported; known: LORA")
    for name, value in fields.items():
        if name in _NEUTRAL:
            if not any(value == neutral for neutral in _NEUTRAL[name]):
                raise InputError(
                    f"{where}: {name}={value!r} is not supported; only {_NEUTRAL[name][0]!r}"
                )
        elif name not in _INERT and name not in _LORA_FIELDS:
            raise InputError(f"{where}: unknown field {name}={value!r}; it may change the logits")


def _lora_plan(
    fields: Mapping[str, Any], sites: tuple[Site, ...], where: Path
) -> tuple[PeftConfig, tuple[Site, ...], dict[str, int], dict[str, float]]:
    """The config, the sites it means, and each linear layer's own rank and scaling.

    peft may give layers ranks and alphas of their own. We hold one rank, the largest, filled up
    with zeros, and one scaling; what differs goes into B.
    """
    chosen = _chosen(fields, sites, where)
    root = fields.get("use_rslora", False)
    ranks, scalings = {}, {}
    for site in chosen:
        for layer in site.layers:
            name = site.name.format(layer)
            rank = _patterned(fields, "rank_pattern", name, fields.get("r", 8))
            alpha = _patterned(fields, "alpha_pattern", name, fields.get("lora_alpha", 8))
            if type(rank) is not int or type(alpha) not in (int, float) or not min(rank, alpha) > 0:
                raise InputError(
                    f"{where}: {name} has rank {rank!r} and alpha {alpha!r}; expected both above 0"
                )
            ranks[name], scalings[name] = rank, alpha / (rank**0.5 if root else rank)
    first = next(iter(ranks))
    rank = max(ranks.values())
    config = PeftConfig(
        method="lora",
        rank=rank,
        alpha=scalings[first] * (rank**0.5 if root else rank),
        dropout=float(fields.get("lora_dropout", 0.0)),
        targets=tuple(site.module for site in chosen),
        rank_scaling="sqrt" if root else "linear",
    )
    return config, chosen, ranks, scalings


def _chosen(fields: Mapping[str, Any], sites: tuple[Site, ...], where: Path) -> tuple[Site, ...]:
    """The sites that target_modules and layers_to_transform name, by peft's rules."""
    targets = fields.get("target_modules")
    layers = fields.get("layers_to_transform")
    layers = (layers,) if isinstance(layers, int) else tuple(sorted(layers or ()))
    names = [site.name.format(layer) for site in sites for layer in site.layers]
    if isinstance(targets, str) and targets != "all-linear":
        found: tuple[str, ...] = (targets,)
        layers = ()  # peft ignores them beside a pattern
    elif isinstance(targets, list):
        # A name that this model does not have is no error in peft; tensors decide below.
        found = tuple(t for t in targets if any(n == t or n.endswith(f".{t}") for n in names))
        found = tuple(re.escape(t) if t in names else t for t in found)
    else:
        found = ()
    if not found and targets != "all-linear":
        raise InputError(f"{where}: target_modules={targets!r} names no linear layer of this model")
    try:
        return selected(sites, found, layers, "targets")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _patterned(fields: Mapping[str, Any], field: str, name: str, default: Any) -> Any:
    """peft's rule: the first pattern that is a suffix of the name, as a regular expression."""
    for pattern, value in (fields.get(field) or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _read_linear(
    tensors: Mapping[str, StoredTensor], name: str, target: NDArray[Any], inputs: int
) -> NDArray[Any]:
    """A stored [out, in] matrix in the layout of our array, whose first `inputs` axes are in."""
    if name not in tensors:
        origin = next((t.origin for t in tensors.values()), _WEIGHTS)
        raise InputError(f"{origin}: the tensor {name} is missing")
    size = int(np.prod(target.shape[:inputs]))
    expected = (target.size // size, size)
    stored = tensors[name]
    if tuple(stored.shape) != expected:
        raise InputError(f"{stored.origin}: {name} has shape {stored.shape}, expected {expected}")
    return stored.load().astype(np.float32).T.reshape(target.shape)


def _lora_config(adapter: Adapter) -> dict[str, Any]:
    config = adapter.config
    layers = {site.layers for site in adapter.sites}
    if len(layers) == 1:
        some = sorted(next(iter(layers)))
        targets = [site.module for site in adapter.sites]
    else:
        some = list(range(adapter.num_layers))
        targets = [site.name.format(layer) for site in adapter.sites for layer in site.layers]
    return {
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_to_transform": None if len(some) == adapter.num_layers else some,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": config.rank_scaling == "sqrt",
    }
