"""adapter_config.json of the PEFT library: what its fields mean for a model, and how to write it.

What a method needs is data here: the fields that are read, those that change no logits of a
trained adapter, and those that we do not implement with the values at which they do nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ift_jax.errors import InputError
from ift_jax.hf.adapter_places import (
    Fields,
    Host,
    compiled,
    module_names,
    patterned,
    places,
    token_rows,
    written_places,
)
from ift_jax.peft import ia3, vera
from ift_jax.peft.adapter import Adapter
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.sites import Site


class Plan(NamedTuple):
    """An adapter whose arrays are still to be read.

    Attributes:
        ranks, scalings: those of each linear layer, by name, where peft lets them differ.
        projection_seed: what VeRA's random matrices are drawn from; -1 where they are stored.
    """

    adapter: Adapter
    ranks: Mapping[str, int] = {}
    scalings: Mapping[str, float] = {}
    projection_seed: int = -1


class _Format(NamedTuple):
    """A peft_type: fields that are read, that are inert, and the neutral values of others."""

    read: set[str]
    inert: set[str]
    neutral: Mapping[str, tuple[Any, ...]]


_EVERY = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version"),
    "revision",
}
_PLACES = {"exclude_modules", "modules_to_save", "target_modules"}
_LAYERS: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "layers_pattern": (None, [], "", "layers", ["layers"]),
}
_ON_LAYERS: Mapping[str, tuple[Any, ...]] = {
    "task_type": ("CAUSAL_LM", None),
}
# peft puts nothing in front of the tokens of a model of another task type.
_VIRTUAL: Mapping[str, tuple[Any, ...]] = {
    "modules_to_save": (None, []),
    "task_type": ("CAUSAL_LM",),
}

_FORMATS = {
    "LORA": _Format(
        {
            *_PLACES,
            *("alpha_pattern", "layers_to_transform", "lora_alpha", "lora_dropout", "r"),
            *("rank_pattern", "trainable_token_indices", "use_dora", "use_rslora"),
        },
        {
            *("ensure_weight_tying", "fan_in_fan_out", "megatron_config", "megatron_core"),
            *("eva_config", "qalora_group_size"),  # EVA's A and B are stored as LoRA's are
        },
        {
            **_LAYERS,
            **_ON_LAYERS,
            "alora_invocation_tokens": (None,),
            "arrow_config": (None,),
            "corda_config": (None,),
            # The others take the start out of the base's weights, which then are not the model's.
            "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
            "kasa_config": (None,),
            "layer_replication": (None, []),
            "loftq_config": ({}, None),
            "lora_bias": (False,),
            "lora_ga_config": (None,),
            "monteclora_config": (None,),
            "target_parameters": (None, []),
            "use_bdlora": (None, False),
            "use_qalora": (False,),
            "velora_config": (None,),
        },
    ),
    "VERA": _Format(
        {
            *_PLACES,
            *("layers_to_transform", "projection_prng_key", "r", "save_projection"),
            "vera_dropout",
        },
        {"d_initial", "fan_in_fan_out", "init_weights"},
        {**_LAYERS, **_ON_LAYERS},
    ),
    "IA3": _Format(
        {*_PLACES, "feedforward_modules"}, {"fan_in_fan_out", "init_ia3_weights"}, _ON_LAYERS
    ),
    "PROMPT_TUNING": _Format(
        {"num_transformer_submodules", "num_virtual_tokens", "token_dim"},
        {
            *("num_attention_heads", "num_layers", "prompt_tuning_init"),
            *("prompt_tuning_init_text", "tokenizer_kwargs", "tokenizer_name_or_path"),
        },
        _VIRTUAL,
    ),
    # What the network of prefix_projection made is stored, and no more of the network.
    "PREFIX_TUNING": _Format(
        {
            *("num_attention_heads", "num_layers", "num_transformer_submodules"),
            *("num_virtual_tokens", "token_dim"),
        },
        {"encoder_hidden_size", "init_weights", "prefix_projection"},
        _VIRTUAL,
    ),
}  # fmt: skip


_LARGEST_RANK = 2**16  # no layer is wider; more would only fill the memory


def _are_names(value: Any) -> bool:
    return value is None or isinstance(value, str) or _are_all(value, str)


def _are_all(value: Any, kind: type) -> bool:
    return isinstance(value, list) and all(type(one) is kind for one in value)


def _are_layers(value: Any) -> bool:
    return value is None or type(value) is int or _are_all(value, int)


def _are_numbers(value: Any) -> bool:
    """Whether it is a number by pattern."""
    return value is None or (
        isinstance(value, dict) and all(type(one) in (int, float) for one in value.values())
    )


def _is_rate(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1


# What a field must be, where what reads it takes that for granted.
_SHAPES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ("exclude_modules", "feedforward_modules", "target_modules"),
        (_are_names, "a list of names, or a pattern"),
    ),
    **dict.fromkeys(("alpha_pattern", "rank_pattern"), (_are_numbers, "numbers by pattern")),
    **dict.fromkeys(("lora_dropout", "vera_dropout"), (_is_rate, "0 to below 1")),
    **dict.fromkeys(
        ("save_projection", "use_dora", "use_rslora"),
        (lambda value: isinstance(value, bool), "true or false"),
    ),
    "layers_to_transform": (_are_layers, "numbers of layers"),
}


def _check_shapes(fields: Fields, host: Host, where: str) -> None:
    for name, (fits, words) in _SHAPES.items():
        if name in fields and not fits(fields[name]):
            raise InputError(f"{where}: {name}={fields[name]!r}; expected {words}")
    asked = fields.get("layers_to_transform") or ()
    for number in asked if isinstance(asked, list) else (asked or 0,):
        if not 0 <= number < host.size[0]:
            raise InputError(
                f"{where}: layers_to_transform: {number} is not a layer; 0 to {host.size[0] - 1}"
            )


def read_plan(fields: Fields, host: Host, where: str) -> Plan:
    """The adapter that the fields describe for this model.

    Args:
        where: names the file in errors.

    Raises:
        InputError: for a field that we neither read nor find at a value where it does nothing,
            and for one that means what this model or our method does not have.
    """
    kind = fields.get("peft_type")
    if not isinstance(kind, str) or kind not in _FORMATS:
        raise InputError(f"{where}: peft_type={kind!r} is not supported; known: {_known()}")
    form = _FORMATS[kind]
    for name, value in fields.items():
        if name in form.neutral:
            if not any(value == neutral for neutral in form.neutral[name]):
                raise InputError(
                    f"{where}: {name}={value!r} is not supported; only {form.neutral[name][0]!r}"
                )
        elif name not in form.read | form.inert | _EVERY:
            raise InputError(f"{where}: unknown field {name}={value!r}; it may change the logits")
    _check_shapes(fields, host, where)
    readers: dict[str, Callable[[Fields, Host, str], Plan]] = {
        "LORA": _read_lora,
        "VERA": _read_vera,
        "IA3": _read_ia3,
        "PROMPT_TUNING": _read_virtual,
        "PREFIX_TUNING": _read_virtual,
    }
    return readers[kind](fields, host, where)


def written_fields(adapter: Adapter, host: Host) -> dict[str, Any]:
    """What adapter_config.json says of an adapter.

    Raises:
        InputError: for a method that peft has no format for.
    """
    config = adapter.config
    method = config.method
    fields: dict[str, Any] = {"inference_mode": True, "task_type": "CAUSAL_LM"}
    if method in ("lora", "dora"):
        fields |= {
            **written_places(adapter, host, layered=True),
            "bias": "none",
            "init_lora_weights": True,
            "lora_alpha": config.alpha,
            "lora_dropout": config.dropout,
            "peft_type": "LORA",
            "r": config.rank,
            "trainable_token_indices": {r.name: list(r.ids) for r in adapter.rows} or None,
            "use_dora": method == "dora",
            "use_rslora": config.rank_scaling == "sqrt",
        }
    elif method == "vera":
        fields |= {
            **written_places(adapter, host, layered=True),
            "bias": "none",
            "d_initial": vera.START,
            "peft_type": "VERA",
            "projection_prng_key": 0,
            "r": config.rank,
            "save_projection": True,
            "vera_dropout": config.dropout,
        }
    elif method == "ia3":
        names = module_names([site for site in adapter.sites if ia3.scales_input(site)], adapter)
        fields |= {
            **written_places(adapter, host, layered=False),
            "feedforward_modules": names,
            "peft_type": "IA3",
        }
    elif adapter.num_virtual:
        layers, width, kv_heads, head_size = host.size
        fields |= {
            "num_layers": layers,
            "num_transformer_submodules": 1,
            "num_virtual_tokens": adapter.num_virtual,
            "peft_type": "PROMPT_TUNING",
            "token_dim": width,
        }
        if method == "prefix":
            fields |= {
                "num_attention_heads": kv_heads,
                "peft_type": "PREFIX_TUNING",
                "prefix_projection": False,
                "token_dim": kv_heads * head_size,
            }
    else:
        raise InputError(
            f"peft has no folder format for an adapter of method {method!r}; known: {_known()}. "
            + (
                "Write the merged model instead (--merge_adapter, save_pretrained)"
                if adapter.can_merge
                else "Use the run's workdir, which --adapter and load_adapter take"
            )
        )
    return fields


def _known() -> str:
    return ", ".join(_FORMATS)


def _read_lora(fields: Fields, host: Host, where: str) -> Plan:
    """LoRA or DoRA.

    peft may give layers ranks and alphas of their own. We hold one rank, the largest, filled up
    with zeros, and one scaling; the root of what differs goes into A and into B, so that
    `mixing.weighted` adds up what peft adds up.
    """
    sites, whole = places(fields, host, where)
    root = fields.get("use_rslora", False)
    ranks, scalings = {}, {}
    for site in sites:
        for name in site.names():
            rank = patterned(fields, "rank_pattern", name, fields.get("r", 8), where)
            alpha = patterned(fields, "alpha_pattern", name, fields.get("lora_alpha", 8), where)
            known = type(rank) is int and type(alpha) in (int, float)
            if not (known and 0 < rank <= _LARGEST_RANK and 0 < alpha < 1e9):
                raise InputError(
                    f"{where}: {name} has rank {rank!r} and alpha {alpha!r}; expected both above "
                    f"0, and a whole rank of at most {_LARGEST_RANK}"
                )
            ranks[name], scalings[name] = rank, alpha / (rank**0.5 if root else rank)
    rank = max(ranks.values())
    config = PeftConfig(
        method="dora" if fields.get("use_dora") else "lora",
        rank=rank,
        alpha=next(iter(scalings.values())) * (rank**0.5 if root else rank),
        dropout=float(fields.get("lora_dropout", 0.0)),
        rank_scaling="sqrt" if root else "linear",
        **_named(sites, whole),
    )
    rows = token_rows(fields, host, whole, where)
    return Plan(Adapter(config, sites, whole, host.size, rows=rows), ranks, scalings)


def _read_vera(fields: Fields, host: Host, where: str) -> Plan:
    sites, whole = places(fields, host, where)
    config = PeftConfig(
        method="vera",
        rank=_count(fields, "r", 256, where),
        dropout=float(fields.get("vera_dropout", 0.0)),
        **_named(sites, whole),
    )
    seed = -1
    if not fields.get("save_projection", True):
        seed = fields.get("projection_prng_key", 0)
        if type(seed) is not int or not 0 <= seed < 2**32:
            raise InputError(f"{where}: projection_prng_key={seed!r}; expected 0 to {2**32 - 1}")
    return Plan(Adapter(config, sites, whole, host.size), projection_seed=seed)


def _read_ia3(fields: Fields, host: Host, where: str) -> Plan:
    sites, whole = places(fields, host, where)
    named = fields.get("feedforward_modules")
    for site in sites:
        for name in site.names():
            inputs = (
                compiled(named, "feedforward_modules", where).fullmatch(name) is not None
                if isinstance(named, str)
                else any(name.endswith(end) for end in named or ())
            )
            if inputs != ia3.scales_input(site):
                asked, ours = ("inputs", "outputs") if inputs else ("outputs", "inputs")
                raise InputError(
                    f"{where}: feedforward_modules={named!r} has IA3 scale the {asked} of {name}; "
                    f"only its {ours} can be scaled"
                )
    config = PeftConfig(method="ia3", **_named(sites, whole))
    return Plan(Adapter(config, sites, whole, host.size))


def _read_virtual(fields: Fields, host: Host, where: str) -> Plan:
    """Prompt or prefix tuning, whose sizes must be those of the model."""
    layers, width, kv_heads, head_size = host.size
    prefix = fields["peft_type"] == "PREFIX_TUNING"
    expected = {"num_transformer_submodules": 1, "token_dim": width}
    if prefix:
        expected |= {
            "num_layers": layers,
            "num_attention_heads": kv_heads,
            "token_dim": kv_heads * head_size,
        }
    for name, value in expected.items():
        if fields.get(name) not in (None, value):
            raise InputError(
                f"{where}: {name}={fields[name]!r} does not fit this model; expected {value}"
            )
    config = PeftConfig(
        method="prefix" if prefix else "prompt",
        num_virtual_tokens=_count(fields, "num_virtual_tokens", None, where),
    )
    return Plan(Adapter(config, (), (), host.size))


def _count(fields: Fields, name: str, default: Any, where: str) -> int:
    value = fields.get(name, default)
    if type(value) is not int or not 0 < value <= _LARGEST_RANK:
        raise InputError(f"{where}: {name}={value!r}; expected an integer of 1 to {_LARGEST_RANK}")
    return value


def _named(sites: Sequence[Site], whole: Sequence[Site]) -> dict[str, Any]:
    """Fields of `PeftConfig` that name these tensors."""
    return {
        "targets": tuple(site.module for site in sites),
        "modules_to_save": tuple(site.module for site in whole),
    }
