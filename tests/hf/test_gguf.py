"""GGUF files against transformers' reader, which needs torch; and files that must not load."""

import gzip
import json
import os
import re
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
import torch
from torch_reference import save_variant, torch_greedy, torch_logits, torch_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from ift_jax.errors import InputError
from ift_jax.evaluation.generation import generate
from ift_jax.evaluation.sampling import Sampling
from ift_jax.hf.gguf import read_gguf
from ift_jax.pretrained import load_chat, load_pretrained

# A tiny file, written here.

FIELDS = {
    "llama.embedding_length": 32,
    "llama.feed_forward_length": 64,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 8,
    "llama.rope.freq_base": 5000.0,
    "llama.context_length": 128,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.eos_token_id": 1,
}
MERGES = ["t h", "th e", "Ġ the"]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.": "blk.",
    ".input_layernorm": ".attn_norm",
    ".self_attn.q_proj": ".attn_q",
    ".self_attn.k_proj": ".attn_k",
    ".self_attn.v_proj": ".attn_v",
    ".self_attn.o_proj": ".attn_output",
    ".post_attention_layernorm": ".ffn_norm",
    ".mlp.gate_proj": ".ffn_gate",
    ".mlp.up_proj": ".ffn_up",
    ".mlp.down_proj": ".ffn_down",
}


def vocabulary() -> list[str]:
    from tokenizers import pre_tokenizers

    specials = ["<|im_start|>", "<|im_end|>"]
    return [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe"]


def llama_cpp_order(weight: np.ndarray, heads: int) -> np.ndarray:
    """The permutation of llama.cpp's convert_hf_to_gguf.py: halves become pairs side by side."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path: Path, model, *, kind="F32", drop=(), fields=(), tensors=()) -> Path:
    """A torch model as a GGUF file, with `fields` and `tensors` changed or added."""
    writer = gguf.GGUFWriter(path, dict(fields).get("general.architecture", "llama"))
    for name, value in {**FIELDS, **dict(fields)}.items():
        if name in drop or name == "general.architecture":
            continue
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_string)(name, value)
    tokens = vocabulary()
    if "tokenizer.ggml.tokens" not in drop:
        writer.add_token_list(tokens)
    if "tokenizer.ggml.token_type" not in drop:
        writer.add_token_types([3, 3, *[1] * (len(tokens) - 2)])
    if "tokenizer.ggml.merges" not in drop:
        writer.add_token_merges(MERGES)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    quantized = gguf.GGMLQuantizationType[kind]
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        for theirs, short in NAMES.items():
            name = name.replace(theirs, short)
        if name.endswith(("attn_q.weight", "attn_k.weight")):
            value = llama_cpp_order(value, 4 if "attn_q" in name else 2)
        if name in drop or (name == "output.weight" and model.config.tie_word_embeddings):
            continue
        value = dict(tensors).get(name, value)
        if value.ndim > 1:
            writer.add_tensor(name, gguf.quants.quantize(value, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, value)
    for name in set(dict(tensors)) - set(writer.tensors[0]):
        writer.add_tensor(name, dict(tensors)[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The torch model that the tiny files hold."""
    path = tmp_path_factory.mktemp("tiny") / "model"
    sizes = {"num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": len(vocabulary())}
    return torch_model(save_variant(path, **sizes))


@pytest.fixture(scope="module")
def tiny_file(tiny, tmp_path_factory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", tiny)


IDS = np.random.default_rng(0).integers(0, 258, (2, 9))


def test_a_float32_file_holds_the_very_model_that_was_written(tiny, tiny_file, tmp_path):
    model = load_pretrained(tiny_file)
    np.testing.assert_allclose(model.logits(IDS), torch_logits(tiny, IDS), atol=1e-4)
    assert model.stored_dtype == "float32"
    model.save_pretrained(tmp_path / "out")
    exported = torch_model(tmp_path / "out").state_dict()
    for name, tensor in tiny.state_dict().items():
        assert torch.equal(exported[name], tensor), name


def test_an_untied_file_has_its_own_output_matrix(tiny, tmp_path):
    output = np.random.default_rng(1).normal(size=(len(vocabulary()), 32)).astype(np.float32)
    path = write_gguf(tmp_path / "m.gguf", tiny, tensors={"output.weight": output})
    model = load_pretrained(path)
    assert not model.structure.config.tie_embeddings
    np.testing.assert_array_equal(model.params["output"], output)


@pytest.mark.parametrize(
    ("kind", "stored", "error"),
    [("F16", "float16", 1e-3), ("BF16", "bfloat16", 1e-2), ("Q8_0", "float32", 2e-2)],
)
def test_weights_in_other_formats_are_dequantized(tiny, tmp_path, kind, stored, error):
    model = load_pretrained(write_gguf(tmp_path / "m.gguf", tiny, kind=kind))
    assert model.stored_dtype == stored
    weight = tiny.state_dict()["model.layers.1.mlp.down_proj.weight"].numpy().T
    found = np.asarray(model.params["layers"]["mlp"]["down"][1])
    assert 0 < np.abs(found - weight).max() < error
    model.save_pretrained(tmp_path / "out")
    again = load_pretrained(tmp_path / "out")
    assert again.stored_dtype == stored
    for part in ("attention", "mlp"):  # norms are float32 in every GGUF file
        jax.tree.map(
            np.testing.assert_array_equal,
            again.params["layers"][part],
            model.params["layers"][part],
        )


def test_what_nobody_dequantizes_and_a_broken_tokenizer_are_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "MERGES", ["t nowhere"])
    refused(write_gguf(tmp_path / "m.gguf", tiny), "its tokenizer cannot be built")
    monkeypatch.undo()

    def unknown(*_):
        raise NotImplementedError("Dequantization for Q8_K is not yet implemented")

    path = write_gguf(tmp_path / "n.gguf", tiny)
    monkeypatch.setattr(gguf.quants, "dequantize", unknown)
    refused(path, "token_embd.weight cannot be read: Dequantization for Q8_K")


def test_merges_special_tokens_and_digits_of_the_tokenizer_are_rebuilt(tiny_file):
    tokenizer = load_pretrained(tiny_file).tokenizer
    ids = tokenizer("the the<|im_end|>th").input_ids
    assert tokenizer.convert_ids_to_tokens(ids) == ["the", "Ġthe", "<|im_end|>", "th"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "the theth"
    assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<|im_end|>", 128)


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        load_pretrained(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


def test_a_truncated_file_is_named_wherever_it_was_cut(tiny_file, tmp_path):
    whole = tiny_file.read_bytes()
    data = gguf.GGUFReader(tiny_file).data_offset
    header = [0, 2, 4, 6, 8, 12, 16, 20, 24]
    metadata = list(range(25, data, 97))
    tensors = [data, data + 1, (data + len(whole)) // 2, len(whole) - 33, len(whole) - 4]
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole)
    for size in [*tensors[::-1], *metadata[::-1], *header[::-1]]:
        os.truncate(path, size)
        with pytest.raises(InputError, match="not a complete GGUF file") as caught:
            read_gguf(path)
        assert str(path) in str(caught.value)


def test_a_file_that_is_no_gguf_or_not_there_is_named(tmp_path):
    (tmp_path / "text.gguf").write_text("once upon a time " * 10)
    refused(tmp_path / "text.gguf", "not a complete GGUF file")
    with pytest.raises(InputError, match=r"nothing\.gguf: no such file"):
        read_gguf(tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in FIELDS if name.startswith("llama.")),
        *(f"tokenizer.ggml.{name}" for name in ("model", "token_type", "merges")),
    ],
)
def test_a_missing_field_is_named(tiny, tmp_path, name):
    shown = "tokenizer None" if name.endswith("ggml.model") else name
    refused(write_gguf(tmp_path / "m.gguf", tiny, drop=(name,)), shown)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("general.architecture", "qwen2"),
        ("llama.rope.scaling.type", "linear"),
        ("llama.expert_count", 8),
        ("llama.attention.key_length", 16),
        ("tokenizer.ggml.pre", "llama-bpe"),
        ("tokenizer.ggml.model", "llama"),
        ("tokenizer.ggml.add_bos_token", True),
        ("llama.attention.head_count", 3),
        ("tokenizer.ggml.eos_token_id", 70_000),
        ("llama.rope.freq_base", "much"),
    ],
)
def test_what_would_change_logits_or_tokens_is_refused(tiny, tmp_path, name, value):
    shown = {
        "general.architecture": "qwen2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.model": "tokenizer 'llama'",
        "tokenizer.ggml.add_bos_token": "BOS",
        "llama.attention.head_count": "num_attention_heads=3",
    }.get(name, name)
    refused(write_gguf(tmp_path / "m.gguf", tiny, fields={name: value}), shown)


def test_the_lengths_of_keys_and_values_pass_where_they_are_the_head_size(tiny, tmp_path):
    fields = {"llama.attention.key_length": 8, "llama.attention.value_length": 8}
    path = write_gguf(tmp_path / "m.gguf", tiny, fields=fields)
    np.testing.assert_allclose(
        load_pretrained(path).logits(IDS), torch_logits(tiny, IDS), atol=1e-4
    )


def test_tensors_that_are_missing_unknown_or_of_another_shape_are_named(tiny, tmp_path):
    path = write_gguf(tmp_path / "a.gguf", tiny, drop=("blk.1.ffn_up.weight",))
    refused(path, "model.layers.1.mlp.up_proj.weight", "missing")
    path = write_gguf(tmp_path / "b.gguf", tiny, tensors={"rope_freqs.weight": np.ones(4, "f4")})
    refused(path, "rope_freqs.weight")
    path = write_gguf(tmp_path / "c.gguf", tiny, tensors={"output_norm.weight": np.ones(33, "f4")})
    refused(path, "model.norm.weight", "(33,)", "(32,)")


# The real one, SmolLM2-135M-Instruct.


@pytest.fixture(scope="module")
def smol(smollm2):
    return load_pretrained(smollm2)


@pytest.fixture(scope="module")
def exported(smol, tmp_path_factory):
    """A folder that save_pretrained wrote, opened by transformers."""
    path = tmp_path_factory.mktemp("smollm2") / "out"
    smol.save_pretrained(path)
    return path, torch_model(path)


@pytest.fixture(scope="module")
def theirs(smollm2):
    """Model and tokenizer by transformers' own route from GGUF."""
    folder, file = os.path.split(smollm2)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder, gguf_file=file)


@pytest.fixture(scope="module")
def reviews(shared_data) -> list[str]:
    with gzip.open(shared_data / "amazon_reviews" / "microwave.jsonl.gz", "rt") as lines:
        return [json.loads(line)["review_body"] for line in lines][:500]


def prompts_of(chat, reviews) -> list[np.ndarray]:
    """20 prompts of quite different lengths."""
    texts = [f"Summarize: {text[: 12 * i + 5]}" for i, text in enumerate(reviews[:20])]
    return [chat.prompt_ids([{"role": "user", "content": text}]) for text in texts]


def padded(prompts: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    size = max(map(len, prompts))
    ids, mask = np.zeros((2, len(prompts), size), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = prompt, 1
    return ids, mask


def test_every_weight_equals_the_one_that_transformers_dequantizes(theirs, exported):
    ours = exported[1].state_dict()
    for name, tensor in theirs[0].state_dict().items():
        assert torch.equal(ours[name], tensor), name


def test_logits_equal_those_of_both_routes_through_transformers(smol, exported, theirs, reviews):
    ids, mask = padded(prompts_of(smol.chat, reviews)[::5])
    real = mask > 0
    logits = np.asarray(smol.logits(ids, mask))[real]
    np.testing.assert_allclose(logits, torch_logits(exported[1], ids, mask)[real], atol=1e-3)
    np.testing.assert_allclose(logits, torch_logits(theirs[0], ids, mask)[real], atol=1e-3)


def test_greedy_generation_equals_that_of_the_exported_model(smol, exported, reviews):
    prompts = prompts_of(smol.chat, reviews)
    assert len({len(p) for p in prompts}) > 10
    expected = torch_greedy(exported[1], prompts, 8, smol.stop_ids)
    sampling = Sampling(max_new_tokens=8)
    found = generate(smol.structure, smol.params, prompts, sampling, stop_ids=smol.stop_ids)
    assert [row.tolist() for row in found] == expected


def test_the_exported_folder_has_the_same_tokenizer_and_ends(smol, exported, reviews):
    tokenizer = AutoTokenizer.from_pretrained(exported[0])
    for text in reviews[:100]:
        assert tokenizer(text).input_ids == smol.tokenizer(text).input_ids
    assert tokenizer.chat_template == smol.tokenizer.chat_template
    assert exported[1].generation_config.eos_token_id == 2
    assert load_pretrained(exported[0]).stop_ids == smol.stop_ids


@pytest.fixture(scope="module")
def tokenizers(smollm2, theirs):
    return load_chat(smollm2).tokenizer, theirs[1]


# The tokenizer's own file cuts out digits first, as llama.cpp's "smollm" does; transformers'
# GGUF reader leaves that step out, which shows where several spaces stand before a digit, and
# where one stands before a numeral that is not a digit, such as ½.
GLUED = re.compile(r"\s{2,}\d|\s[\u00b2\u00b3\u00b9\u00bc-\u00be\u2150-\u218b\u2460-\u24ff]")


def test_reviews_are_tokenized_as_by_transformers(tokenizers, reviews):
    ours, theirs = tokenizers
    ordinary = [text for text in reviews if not GLUED.search(text)]
    assert len(ordinary) > 400
    assert sum(any(c.isdigit() for c in text) for text in ordinary) > 100
    for text in ordinary:
        assert ours(text).input_ids == theirs(text).input_ids, text


def test_digits_are_cut_out_first(tokenizers):
    ours, _ = tokenizers
    assert ours.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]
    assert ours.tokenize("in ½")[:2] == ["in", "Ġ"]


UNICODE = [
    "naïve café — “quotes” … €",
    "日本語のテキスト、한국어 그리고 العربية",
    "👩‍👩‍👧‍👦 family 🇩🇪 \U0001f9d1🏽‍🚀",
    "tabs\tand\nnew lines\r\n\n  indented",
    "a\u0000b\u200bc\ufeffd e\u0301",
    "don't we'll I'VE O'Neil",
    " leading and trailing  ",
    "",
]


@pytest.mark.parametrize("text", UNICODE)
def test_any_unicode_text_comes_back_and_has_the_tokens_of_transformers(tokenizers, text):
    ours, theirs = tokenizers
    ids = ours(text).input_ids
    assert ids == theirs(text).input_ids
    assert ours.decode(ids) == text


def test_special_tokens_are_those_of_transformers(tokenizers):
    ours, theirs = tokenizers
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert len(ours) == len(theirs) == 49_152
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id"):
        assert getattr(ours, name) == getattr(theirs, name)
    text = "<|im_start|>user\nhi<|im_end|><|endoftext|> <|im_end|>x <repo_name>"
    ids = ours(text).input_ids
    assert ids == theirs(text).input_ids
    assert ids.count(2) == 2
    assert ours.decode(ids) == text
    assert ours.decode(ids, skip_special_tokens=True) == "user\nhi x "


CONVERSATIONS = [
    [{"role": "user", "content": "What is 2 + 2?"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ],
]


@pytest.mark.parametrize("opening", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_the_chat_template_renders_as_by_transformers(tokenizers, messages, opening):
    ours, theirs = tokenizers
    rendered = [
        t.apply_chat_template(messages, tokenize=False, add_generation_prompt=opening)
        for t in tokenizers
    ]
    assert rendered[0] == rendered[1]
    assert messages[0]["content"] in rendered[0]
    assert ours(rendered[0]).input_ids == theirs(rendered[1]).input_ids
