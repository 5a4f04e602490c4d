"""Which linear layers a config names, and how they map to our arrays."""

import jax.numpy as jnp
import numpy as np
import pytest

from ift_jax.errors import InputError
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.sites import padded, replaced, taken
from ift_jax.pretrained import load_pretrained


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load_pretrained(tiny_llama)


def chosen(base, **fields):
    adapter = base.adapter_for(PeftConfig(method="lora", **fields))
    return {site.module.split(".")[1]: site.layers for site in adapter.sites}


def test_all_linear_layers_are_targets_unless_named(base):
    everything = chosen(base)
    assert list(everything) == [
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    ]  # fmt: skip
    assert set(everything.values()) == {(0, 1, 2)}


def test_targets_are_names_or_patterns_of_whole_names(base):
    assert chosen(base, targets=("q_proj", "mlp.up_proj")) == {
        "q_proj": (0, 1, 2), "up_proj": (0, 1, 2),
    }  # fmt: skip
    assert chosen(base, targets=(r"model\.layers\.[12]\.mlp\.(gate|up)_proj", "v_proj")) == {
        "v_proj": (0, 1, 2), "gate_proj": (1, 2), "up_proj": (1, 2),
    }  # fmt: skip
    assert chosen(base, targets=("model.layers.1.self_attn.o_proj",)) == {"o_proj": (1,)}
    assert chosen(base, targets=("k_proj",), layers=(2, 0)) == {"k_proj": (0, 2)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"targets": ("q_proj", "w_proj")},
            "'w_proj' names nothing that can be adapted.*self_attn.q_proj",
        ),
        ({"targets": ("proj",)}, "'proj' names nothing that can be adapted"),
        ({"targets": ("(",)}, r"'\(' is no regular expression"),
        ({"layers": (1, 3)}, "layers: 3 is not a layer; 0 to 2"),
    ],
)
def test_what_names_nothing_is_refused(base, fields, message):
    with pytest.raises(InputError, match=message):
        base.adapter_for(PeftConfig(method="lora", **fields))


def test_a_site_takes_its_part_of_the_shared_array_and_puts_it_back(base):
    sites = {s.module: s for s in base.adapter_for(PeftConfig(method="lora")).sites}
    y = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2, 4, 8)), jnp.float32)
    q, k = sites["self_attn.q_proj"], sites["self_attn.k_proj"]
    np.testing.assert_array_equal(taken(y, q.cuts), y[:, :, :2])
    np.testing.assert_array_equal(taken(y, k.cuts), y[:, :, 2])
    assert (q.out_shape, k.out_shape) == ((2, 2, 8), (2, 8))
    assert k.out_axes == ("kv_heads", "head_size")
    parts = [padded(taken(y, sites[f"self_attn.{n}_proj"].cuts), sites[f"self_attn.{n}_proj"].cuts,
                    (2, 4, 8)) for n in "qkv"]  # fmt: skip
    np.testing.assert_array_equal(sum(parts), y)
    changed = replaced(y, taken(y, k.cuts) + 1, k.cuts)
    np.testing.assert_array_equal(changed - y, jnp.zeros_like(y).at[:, :, 2].set(1) * (changed - y))
    np.testing.assert_allclose((changed - y)[:, :, 2], 1, rtol=1e-5)
    assert sites["mlp.down_proj"].cuts == ()
