"""Model families as tables: which config fields mean what, and where each tensor lives.

A family is data. The same rows are read forwards for import and backwards for export
(`ift_jax.hf.weights`), so the two cannot drift apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ift_jax.errors import InputError
from ift_jax.models.decoder import DecoderConfig

# Fields of any config.json that do not change logits.
_INERT = {
    *("_name_or_path", "_attn_implementation_autoset", "architectures", "auto_map"),
    *("bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id", "id2label"),
    *("initializer_range", "is_encoder_decoder", "is_llama_config", "label2id", "model_type"),
    *("output_attentions", "output_hidden_states", "pad_token_id", "pretraining_tp"),
    *("problem_type", "return_dict", "torch_dtype", "transformers.js_config"),
    *("transformers_version", "unk_token_id", "use_cache"),
    *("finetuning_task", "max_sequence_length", "prefix", "sep_token_id", "task_specific_params"),
    *("tie_encoder_decoder", "tokenizer_class", "torchscript", "unsloth_fixed", "unsloth_version"),
    # How to generate, as older versions of transformers wrote it here.
    *("bad_words_ids", "begin_suppress_tokens", "decoder_start_token_id", "diversity_penalty"),
    *("do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "forced_bos_token_id"),
    *("exponential_decay_length_penalty", "forced_eos_token_id", "length_penalty", "max_length"),
    *("min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams", "output_scores"),
    *("num_return_sequences", "remove_invalid_values", "repetition_penalty", "suppress_tokens"),
    *("return_dict_in_generate", "temperature", "top_k", "top_p", "typical_p"),
}


@dataclass(frozen=True)
class Row:
    """One tensor of the checkpoint and its place in our tree.

    Attributes:
        name: Hugging Face name; `{}` stands for the layer's number.
        path: our path, dot-separated; per-layer tensors are stacked along axis 0 there.
        part: the slice of our array (of one layer) that this tensor fills.
        in_axes: 0 for tensors stored alike; else a linear weight, stored [out, in], of
            which our part has the input axes first, this many, and the output axes after.
    """

    name: str
    path: str
    part: Any = ()
    in_axes: int = 0

    @property
    def per_layer(self) -> bool:
        return "{}" in self.name


@dataclass(frozen=True)
class Family:
    """A `model_type` of transformers.

    `neutral` are the fields that we do not implement, with the values at which they do
    nothing; any other value is refused. `fields` are those that `decoder_config` reads.
    """

    model_type: str
    architecture: str
    fields: frozenset[str]
    neutral: Mapping[str, tuple[Any, ...]]
    rows: tuple[Row, ...]
    untied_rows: tuple[Row, ...]


_ATTENTION = "layers.attention"
_LAYER = "model.layers.{}"

LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    fields=frozenset(
        {
            *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads", "head_dim", "rope_theta"),
            *("rope_parameters", "rms_norm_eps", "tie_word_embeddings"),
            "max_position_embeddings",
        }
    ),
    neutral={
        "hidden_act": ("silu", "swish"),
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "attention_dropout": (0, 0.0),
        "rope_scaling": (None, {"rope_type": "default"}, {"type": "default"}),
        "pruned_heads": ({},),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "cross_attention_hidden_size": (None,),
        "rope_interleaved": (False,),
        "quantization_config": (None,),
    },
    rows=(
        Row("model.embed_tokens.weight", "embedding"),
        Row(f"{_LAYER}.input_layernorm.weight", "layers.attention_norm"),
        Row(f"{_LAYER}.self_attn.q_proj.weight", f"{_ATTENTION}.qkv", np.s_[:, :, :-2], 1),
        Row(f"{_LAYER}.self_attn.k_proj.weight", f"{_ATTENTION}.qkv", np.s_[:, :, -2], 1),
        Row(f"{_LAYER}.self_attn.v_proj.weight", f"{_ATTENTION}.qkv", np.s_[:, :, -1], 1),
        Row(f"{_LAYER}.self_attn.o_proj.weight", f"{_ATTENTION}.out", (), 3),
        Row(f"{_LAYER}.post_attention_layernorm.weight", "layers.mlp_norm"),
        Row(f"{_LAYER}.mlp.gate_proj.weight", "layers.mlp.gate_up", np.s_[:, 0], 1),
        Row(f"{_LAYER}.mlp.up_proj.weight", "layers.mlp.gate_up", np.s_[:, 1], 1),
        Row(f"{_LAYER}.mlp.down_proj.weight", "layers.mlp.down", (), 1),
        Row("model.norm.weight", "final_norm"),
    ),
    untied_rows=(Row("lm_head.weight", "output"),),
)

FAMILIES = {family.model_type: family for family in (LLAMA,)}


def family_of(hf_config: Mapping[str, Any], where: str) -> Family:
    """The family named by `model_type`. Raises InputError for one that we do not have."""
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise InputError(
            f"{where}: model_type {model_type!r} is not supported; known: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


def weight_rows(family: Family, config: DecoderConfig) -> tuple[Row, ...]:
    """The tensors that a checkpoint with this config holds."""
    return family.rows if config.tie_embeddings else family.rows + family.untied_rows


def tied_modules(family: Family, config: DecoderConfig) -> tuple[str, ...]:
    """Names of modules that have no weight of their own but the embedding's."""
    rows = family.untied_rows if config.tie_embeddings else ()
    return tuple(row.name.removesuffix(".weight") for row in rows)


def decoder_config(hf_config: Mapping[str, Any], where: str) -> DecoderConfig:
    """What config.json says, in our terms.

    Args:
        hf_config: the parsed config.json, complete (see `ift_jax.hf.folder.read_config`).
        where: names the file in errors.

    Raises:
        InputError: for a missing field, and for one that we neither read nor find at the
            value where it does nothing, since ignoring it would give wrong logits.
    """
    family = family_of(hf_config, where)
    for name, value in hf_config.items():
        if name in family.neutral:
            if value not in family.neutral[name]:
                raise InputError(
                    f"{where}: {name}={value!r} is not supported; only {family.neutral[name][0]!r}"
                )
        elif name not in family.fields and name not in _INERT:
            raise InputError(f"{where}: unknown field {name}={value!r}; it may change the logits")

    def count(name: str) -> int:
        value = hf_config.get(name)
        if value is None:
            raise InputError(f"{where}: the field {name} is missing")
        if type(value) is not int or value < 1:
            raise InputError(f"{where}: {name}={value!r}; expected a positive integer")
        return value

    tied = hf_config.get("tie_word_embeddings")
    if type(tied) is not bool:
        raise InputError(f"{where}: tie_word_embeddings={tied!r}; expected true or false")
    heads, kv_heads = count("num_attention_heads"), count("num_key_value_heads")
    if heads % kv_heads:
        raise InputError(
            f"{where}: num_attention_heads={heads} is not a multiple of "
            f"num_key_value_heads={kv_heads}"
        )
    head_size = count("head_dim") if hf_config.get("head_dim") else count("hidden_size") // heads
    if head_size % 2:
        raise InputError(
            f"{where}: head_dim={head_size}; expected an even number, for rotary pairs"
        )
    return DecoderConfig(
        vocab_size=count("vocab_size"),
        width=count("hidden_size"),
        mlp_width=count("intermediate_size"),
        num_layers=count("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_size=head_size,
        rope_base=_rope_base(hf_config, where),
        norm_epsilon=_positive(hf_config.get("rms_norm_eps"), "rms_norm_eps", where),
        tie_embeddings=tied,
        max_positions=count("max_position_embeddings"),
    )


def _positive(value: Any, name: str, where: str) -> float:
    if value is None:
        raise InputError(f"{where}: the field {name} is missing")
    if type(value) not in (int, float) or not value > 0:
        raise InputError(f"{where}: {name}={value!r}; expected a positive number")
    return float(value)


def _rope_base(hf_config: Mapping[str, Any], where: str) -> float:
    """`rope_parameters` of transformers 5, or `rope_theta` of the versions before."""
    stored = hf_config.get("rope_parameters") or {}
    if not isinstance(stored, Mapping):
        raise InputError(f"{where}: rope_parameters={stored!r}; expected an object")
    parameters = dict(stored)
    base = parameters.pop("rope_theta", hf_config.get("rope_theta"))
    kind = parameters.pop("rope_type", "default")
    if kind != "default" or parameters:
        raise InputError(
            f"{where}: rope_parameters {hf_config['rope_parameters']} is not supported"
        )
    if base is None:
        raise InputError(f"{where}: neither rope_parameters.rope_theta nor rope_theta is given")
    return _positive(base, "rope_theta", where)
