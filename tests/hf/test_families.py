"""config.json in our terms: what is read, what is refused, and that nothing is ignored."""

import dataclasses
import math

import jax
import pytest

from ift_jax.errors import InputError
from ift_jax.hf.families import FAMILIES, LLAMA, decoder_config, weight_rows
from ift_jax.hf.weights import tensor_shapes
from ift_jax.models.decoder import DecoderConfig, param_shapes

WHERE = "folder/config.json"
CONFIG = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "max_position_embeddings": 512,
    "rope_theta": 5000.0,
}


def test_every_field_is_read():
    assert decoder_config(CONFIG, WHERE) == DecoderConfig(
        vocab_size=100,
        width=32,
        mlp_width=48,
        num_layers=3,
        num_heads=4,
        num_kv_heads=2,
        head_size=16,
        rope_base=5000.0,
        norm_epsilon=1e-5,
        tie_embeddings=False,
        max_positions=512,
    )


CHANGES = {
    "vocab_size": 101,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": 513,
    "rope_theta": 1e6,
    "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
}


@pytest.mark.parametrize("field", sorted(LLAMA.fields))
def test_every_field_that_the_table_lists_changes_our_config(field):
    changed = decoder_config({**CONFIG, field: CHANGES[field]}, WHERE)
    assert changed != decoder_config(CONFIG, WHERE)


def test_without_head_dim_the_width_is_split_over_the_heads():
    for absent in ({"head_dim": None}, {}):
        fields = {k: v for k, v in CONFIG.items() if k != "head_dim"} | absent
        assert decoder_config(fields, WHERE).head_size == 8


def test_rope_parameters_of_transformers_5_win_over_rope_theta():
    parameters = {"rope_type": "default", "rope_theta": 7.0}
    assert decoder_config({**CONFIG, "rope_parameters": parameters}, WHERE).rope_base == 7.0
    without = {k: v for k, v in CONFIG.items() if k != "rope_theta"}
    assert decoder_config({**without, "rope_parameters": parameters}, WHERE).rope_base == 7.0


def refused(config, *parts):
    with pytest.raises(InputError) as caught:
        decoder_config(config, WHERE)
    message = str(caught.value)
    assert "\n" not in message
    for part in (WHERE, *parts):
        assert part in message


@pytest.mark.parametrize("field", sorted(set(CONFIG) - {"model_type", "head_dim"}))
def test_a_missing_field_is_named(field):
    refused({k: v for k, v in CONFIG.items() if k != field}, field)


NOT_NEUTRAL = {
    "hidden_act": "gelu",
    "attention_bias": True,
    "mlp_bias": True,
    "attention_dropout": 0.1,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    "rope_interleaved": True,
    "quantization_config": {"quant_method": "gptq"},
    "pruned_heads": {"0": [1]},
    "is_decoder": True,
    "add_cross_attention": True,
    "cross_attention_hidden_size": 64,
}


@pytest.mark.parametrize("field", sorted(LLAMA.neutral))
def test_a_field_that_we_do_not_implement_passes_only_where_it_does_nothing(field):
    for value in LLAMA.neutral[field]:
        assert decoder_config({**CONFIG, field: value}, WHERE) == decoder_config(CONFIG, WHERE)
    refused({**CONFIG, field: NOT_NEUTRAL[field]}, field, repr(NOT_NEUTRAL[field]))


@pytest.mark.parametrize(
    "field", ["sliding_window", "logit_scale", "num_experts", "head_dims", "partial_rotary_factor"]
)
def test_an_unknown_field_is_refused_whatever_its_value(field):
    for value in (None, 0, 1.0, "x"):
        refused({**CONFIG, field: value}, f"unknown field {field}")


@pytest.mark.parametrize(
    "parameters",
    [
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0},
        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        {"rope_type": "yarn", "rope_theta": 1e4},
        [1e4],
    ],
)
def test_scaled_or_unknown_rope_parameters_are_refused(parameters):
    refused({**CONFIG, "rope_parameters": parameters}, "rope_parameters")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hidden_size", "32"),
        ("hidden_size", 32.0),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -1),
        ("vocab_size", True),
        ("head_dim", 7),
        ("head_dim", -8),
        ("rms_norm_eps", "1e-5"),
        ("rms_norm_eps", 0.0),
        ("rope_theta", "1e4"),
        ("rope_theta", float("nan")),
        ("tie_word_embeddings", "no"),
        ("tie_word_embeddings", None),
        ("num_key_value_heads", 3),
        ("max_position_embeddings", [512]),
    ],
)
def test_an_impossible_value_is_refused_with_its_field(field, value):
    refused({**CONFIG, field: value}, field, str(value))


@pytest.mark.parametrize("model_type", ["gpt2", "", None, ["llama"]])
def test_another_model_type_is_refused_and_the_known_ones_listed(model_type):
    refused({**CONFIG, "model_type": model_type}, repr(model_type), "llama")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_the_table_covers_every_element_of_every_parameter_once(family, tied):
    config = dataclasses.replace(decoder_config(CONFIG, WHERE), tie_embeddings=tied)
    shapes = param_shapes(config)
    stored = tensor_shapes(weight_rows(FAMILIES[family], config), shapes)
    assert ("lm_head.weight" in stored) is not tied

    count = sum(math.prod(x.shape) for x in jax.tree.leaves(shapes))
    assert sum(map(math.prod, stored.values())) == count


def test_the_table_names_the_tensors_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = {k: v for k, v in CONFIG.items() if k != "model_type"}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**fields))
    config = decoder_config(CONFIG, WHERE)
    stored = tensor_shapes(weight_rows(LLAMA, config), param_shapes(config))
    assert stored == {name: tuple(t.shape) for name, t in model.state_dict().items()}


@pytest.mark.parametrize(
    "field", [{"unsloth_version": "2025.1"}, {"tokenizer_class": "LlamaTokenizer"},
              {"max_length": 4096, "do_sample": True}, {"is_decoder": False}, {"pruned_heads": {}}],
    ids=str,
)  # fmt: skip
def test_fields_that_other_programs_leave_and_that_change_no_logits_are_taken(field):
    assert decoder_config({**CONFIG, **field}, WHERE) == decoder_config(CONFIG, WHERE)
