"""The methods beside LoRA: their starts, what merging them gives, and the same in torch."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from batches import packed_batch, random_examples
from jaxprs import equations, made_shapes
from torch_peft import (
    IDS,
    LORA,
    assert_parity,
    in_bfloat16,
    loraplus_groups,
    per_layer,
    shaken,
    torch_peft,
    whole_tensors,
)
from torch_reference import save_variant, torch_model

from ift_jax.errors import InputError
from ift_jax.hf.weights import flat_paths
from ift_jax.models.decoder import param_shapes
from ift_jax.peft.adapter import FROZEN, combine, separate
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained
from ift_jax.train.loss import loss_sums
from ift_jax.train.optimizer import OptimizerConfig, make_optimizer
from ift_jax.train.step import Constants, gradient_sums, init_state, make_step

LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS = {
    "dora": PeftConfig(method="dora", rank=4, alpha=8.0),
    "vera": PeftConfig(method="vera", rank=8),
    "ia3": PeftConfig(method="ia3"),
    "bottleneck": PeftConfig(method="bottleneck", rank=4),
    "bitfit": PeftConfig(method="bitfit"),
    "norms": PeftConfig(method="norms"),
    "selective": PeftConfig(
        method="selective", targets=(r"model\.layers\.[12]\.mlp\..*", "k_proj", "model.norm")
    ),
}
VIRTUAL = {
    "prompt": PeftConfig(method="prompt", num_virtual_tokens=5),
    "prefix": PeftConfig(method="prefix", num_virtual_tokens=5),
}


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load_pretrained(tiny_llama)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_start_is_the_base(base, name):
    model = base.adapt(CONFIGS[name], seed=1)
    np.testing.assert_allclose(model.logits(IDS), base.logits(IDS), atol=1e-4)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), model.params["adapter"]) == jax.tree.map(
        lambda x: (x.shape, x.dtype), model.structure.adapter.shapes()["adapter"]
    )
    moved = shaken(model).logits(IDS)
    assert float(jnp.abs(moved - base.logits(IDS)).max()) > 0.05


def test_random_starts_have_the_bounds_of_the_papers_and_follow_the_seed(base):
    """VeRA's matrices are Kaiming-uniform as peft's, a bottleneck's first layer as torch's."""
    starts = [base.adapt(CONFIGS["vera"], seed=n).params[FROZEN]["shared"] for n in (0, 0, 1)]
    for name in ("a", "b"):
        matrix, same, other = (start[name] for start in starts)
        bound = (6 / matrix.shape[0]) ** 0.5
        assert 0.95 * bound < float(jnp.abs(matrix).max()) <= bound
        np.testing.assert_array_equal(matrix, same)
        assert not np.allclose(matrix, other)
    layers = [base.adapt(CONFIGS["bottleneck"], seed=n).params["adapter"]["layers"] for n in (0, 1)]
    for module, arrays in layers[0].items():
        bound = 32**-0.5
        assert 0.9 * bound < float(jnp.abs(arrays["down"]).max()) <= bound
        assert not np.allclose(arrays["down"], layers[1][module]["down"])


@pytest.mark.parametrize("name", ["dora", "vera", "ia3", "norms", "selective"])
def test_merged_weights_equal_the_adapter(base, name):
    model = shaken(base.adapt(CONFIGS[name]))
    np.testing.assert_allclose(model.merged().logits(IDS), model.logits(IDS), rtol=1e-3, atol=3e-4)


@pytest.mark.parametrize("name", ["bottleneck", "bitfit", "prompt", "prefix"])
def test_what_no_weights_express_is_not_merged(base, name, tmp_path):
    model = base.adapt({**CONFIGS, **VIRTUAL}[name])
    with pytest.raises(InputError, match=f"'{name}' cannot be merged"):
        model.save_pretrained(tmp_path / "out")


@pytest.mark.parametrize("b_lr_ratio", [1.0, 2.0])
def test_dora_equals_peft(base, tiny_llama, b_lr_ratio):
    """With LoRA+, magnitudes learn as fast as B."""
    model = shaken(base.adapt(CONFIGS["dora"]))
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=LINEAR, use_dora=True)
    name = "base_model.model.{}.lora_magnitude_vector.default.weight"
    convert = per_layer(model, {**LORA, "magnitude": (name, np.ravel)})
    groups = loraplus_groups if b_lr_ratio != 1 else None
    assert_parity(
        model, torch_peft(tiny_llama, config), convert, groups=groups, b_lr_ratio=b_lr_ratio
    )


def test_vera_equals_peft(base, tiny_llama):
    model = shaken(base.adapt(PeftConfig(method="vera", rank=8, layers=(1, 2))))
    config = peft.VeraConfig(r=8, target_modules=LINEAR, layers_to_transform=[1, 2])
    reference = torch_peft(tiny_llama, config)
    shared = model.params["adapter_frozen"]["shared"]
    assert shared["a"].shape == (48, 8)
    assert shared["b"].shape == (8, 48)
    reference.base_model.vera_A["default"].copy_(torch.tensor(np.asarray(shared["a"]).T))
    reference.base_model.vera_B["default"].copy_(torch.tensor(np.asarray(shared["b"]).T))
    convert = per_layer(model, {
        "d": ("base_model.model.{}.vera_lambda_d.default", np.ravel),
        "scale_b": ("base_model.model.{}.vera_lambda_b.default", np.ravel),
    })  # fmt: skip
    assert_parity(model, reference, convert)


def test_ia3_equals_peft(base, tiny_llama):
    model = shaken(base.adapt(CONFIGS["ia3"]))
    found = [site.module for site in model.structure.adapter.sites]
    assert found == ["self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"]
    config = peft.IA3Config(
        target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
    )
    plain = per_layer(model, {"scale": ("base_model.model.{}.ia3_l.default", np.ravel)})

    def convert(trained):
        return {name: x[None] if "down" in name else x[:, None]
                for name, x in plain(trained).items()}  # fmt: skip

    assert_parity(model, torch_peft(tiny_llama, config), convert)


def test_norm_tuning_equals_peft(base, tiny_llama):
    model = shaken(base.adapt(CONFIGS["norms"]))
    config = peft.LNTuningConfig(
        target_modules=["input_layernorm", "post_attention_layernorm", "norm"]
    )
    convert = whole_tensors(model, "base_model.model.{}.ln_tuning_layers.default.weight")
    assert_parity(model, torch_peft(tiny_llama, config), convert)


def test_selective_tuning_equals_torch_with_the_others_frozen(base, tiny_llama):
    model = shaken(base.adapt(CONFIGS["selective"]), size=0.02)
    convert = whole_tensors(model, "{}.weight")
    reference = torch_model(tiny_llama)
    for name, parameter in reference.named_parameters():
        chosen = "k_proj" in name or name == "model.norm.weight" or "mlp" in name
        parameter.requires_grad_(chosen and "layers.0.mlp" not in name)
    assert_parity(model, reference, convert)


@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("name", ["lora", *CONFIGS, *VIRTUAL])
def test_no_step_holds_a_gradient_of_a_frozen_weight(tiny_llama, name, quantize):
    """No multiply over rows gives the shape of a weight, and nothing that of all layers'."""
    base = load_pretrained(tiny_llama, quantize=quantize, quantize_group=16)
    lora = PeftConfig(method="lora", rank=4)
    model = base.adapt({"lora": lora, **CONFIGS, **VIRTUAL}[name])
    trained, frozen = separate(model.params)
    optimizer = make_optimizer(OptimizerConfig(), 10)
    step = make_step(model.structure, optimizer)
    state, batch = init_state(trained, optimizer), packed_batch(random_examples(40))
    stacked, single = made_shapes(jax.make_jaxpr(step)(state, Constants(frozen), batch))
    shapes = flat_paths(param_shapes(base.structure.config))
    arrays = {path: x.shape for path, x in shapes.items() if x.ndim > 2}
    if name == "selective":  # trains all that one array of them has, in two layers of three
        del arrays["layers.mlp.down"]
    assert len(arrays) >= 3
    assert not stacked & {*arrays.values()}
    assert not single & {shape[1:] for shape in arrays.values()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_part_of_an_array_has_no_gradient_of_the_whole(tiny_llama, remat, dtype):
    """Neither of its other outputs, nor in layers that are not trained; and no copy is kept."""
    base = load_pretrained(tiny_llama, remat=remat, dtype=dtype)
    targets = ("k_proj", r"model\.layers\.[12]\.mlp\.up_proj")
    model = base.adapt(PeftConfig(method="selective", targets=targets))
    trained, frozen = separate(model.params)
    batch = packed_batch(random_examples(10))
    gradient = lambda t: gradient_sums(model.structure, t, Constants(frozen), batch)[0]  # noqa: E731
    jaxpr = jax.make_jaxpr(gradient)(trained)
    stacked, single = made_shapes(jaxpr)
    layers = frozen["layers"]
    arrays = {layers["attention"]["qkv"].shape, layers["mlp"]["gate_up"].shape}
    assert not stacked & arrays
    assert not single & {shape[1:] for shape in arrays}
    own = {name: x.shape for name, x in trained["whole"].items()}
    assert own == {"self_attn.k_proj": (3, 32, 2, 8), "mlp.up_proj": (2, 32, 48)}
    assert {shape[1:] for shape in own.values()} <= single
    # That of up_proj is behind a condition, which the first layer does not meet.
    [branches] = [
        e.params["branches"]
        for e in equations(jaxpr)
        if e.primitive.name == "cond" and [v.aval.shape for v in e.outvars] == [(32, 48)]
    ]
    makes = [[e.primitive.name for e in equations(branch)] for branch in branches]
    assert sorted("dot_general" in names for names in makes) == [False, True]


def test_bitfit_equals_a_torch_model_whose_biases_are_trained(base, tiny_llama):
    model = shaken(base.adapt(CONFIGS["bitfit"]))
    plain = torch_model(tiny_llama)
    config = copy.deepcopy(plain.config)
    config.attention_bias = config.mlp_bias = True
    reference = type(plain)(config).eval()
    reference.load_state_dict(plain.state_dict(), strict=False)
    for name, parameter in reference.named_parameters():
        parameter.requires_grad_(name.endswith(".bias"))
    assert_parity(model, reference, per_layer(model, {"bias": ("{}.bias", np.ravel)}))


class Bottleneck(torch.nn.Module):
    """A linear layer with the adapter of Houlsby et al. behind it, as the paper draws it."""

    def __init__(self, linear, rank):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = torch.nn.Linear(linear.out_features, rank)
        self.up = torch.nn.Linear(rank, linear.out_features)

    def forward(self, x):
        y = self.linear(x)
        return y + self.up(torch.nn.functional.gelu(self.down(y), approximate="tanh"))


def test_bottlenecks_equal_torch_modules_behind_both_sublayers(base, tiny_llama):
    model = shaken(base.adapt(CONFIGS["bottleneck"]))
    reference = torch_model(tiny_llama).requires_grad_(False)
    for layer in reference.model.layers:
        layer.self_attn.o_proj = Bottleneck(layer.self_attn.o_proj, 4)
        layer.mlp.down_proj = Bottleneck(layer.mlp.down_proj, 4)
    convert = per_layer(model, {
        "down": ("{}.down.weight", np.transpose), "down_bias": ("{}.down.bias", np.ravel),
        "up": ("{}.up.weight", np.transpose), "up_bias": ("{}.up.bias", np.ravel),
    })  # fmt: skip
    assert_parity(model, reference, convert)


def test_weights_trained_beside_lora_equal_peft(tmp_path):
    folder = save_variant(tmp_path / "untied", tie_word_embeddings=False)
    fields = {"modules_to_save": ("embed_tokens", "lm_head", "model.norm"), "layers": (1,)}
    model = load_pretrained(folder).adapt(PeftConfig(method="lora", rank=4, alpha=8.0, **fields))
    model = shaken(model, size=0.05)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=LINEAR, layers_to_transform=[1],
        modules_to_save=["embed_tokens", "lm_head", "model.norm"],
    )  # fmt: skip
    beside = whole_tensors(model, "base_model.model.{}.modules_to_save.default.weight")
    pairs = per_layer(model, LORA)
    assert_parity(model, torch_peft(folder, config), lambda t: {**pairs(t), **beside(t)})
    np.testing.assert_allclose(model.merged().logits(IDS), model.logits(IDS), atol=5e-4)


def test_beside_quantized_weights_those_trained_whole_are_floats(tiny_llama, tmp_path):
    """Logits and gradients are those beside the weights that the quantized ones stand for."""
    config = PeftConfig(
        method="dora", targets=("k_proj", "up_proj"), modules_to_save=("v_proj", "norm")
    )
    quantized = load_pretrained(tiny_llama, quantize="int4", quantize_group=16)
    quantized.save_pretrained(tmp_path / "dense")
    models = [
        shaken(base.adapt(config), size=0.02)
        for base in (quantized, load_pretrained(tmp_path / "dense"))
    ]
    batch = packed_batch(random_examples(8))
    gradients = []
    for model in models:
        trained, frozen = separate(model.params)
        sums = jax.jit(lambda t, f, s=model.structure: gradient_sums(s, t, Constants(f), batch)[0])
        gradients.append(sums(trained, frozen))
    np.testing.assert_allclose(models[0].logits(IDS), models[1].logits(IDS), atol=2e-4)
    assert jax.tree.structure(gradients[0]) == jax.tree.structure(gradients[1])
    for x, y in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-4 * float(jnp.abs(y).max()))


def test_a_layer_cannot_be_adapted_and_trained_whole(base):
    config = PeftConfig(method="lora", modules_to_save=("q_proj",))
    with pytest.raises(InputError, match="q_proj has an adapter; leave it out of targets"):
        base.adapt(config)


def test_a_layer_is_trained_whole_where_only_other_layers_have_adapters(base):
    up = r"model\.layers\.0\.mlp\.up_proj"
    config = PeftConfig(method="lora", rank=2, layers=(1, 2), modules_to_save=(up,))
    start = base.adapt(config)
    np.testing.assert_allclose(start.logits(IDS), base.logits(IDS), atol=1e-4)
    model = shaken(start, size=0.05)
    np.testing.assert_allclose(model.merged().logits(IDS), model.logits(IDS), atol=5e-4)
    trained, frozen = separate(model.params)
    batch = packed_batch(random_examples(8))
    gradients, _ = gradient_sums(model.structure, trained, Constants(frozen), batch)
    for leaf in jax.tree.leaves(gradients):
        assert float(jnp.abs(leaf).max()) > 0
    assert gradients["whole"]["mlp.up_proj"].shape[0] == 1


def test_scales_and_shifts_are_not_decayed(base):
    from ift_jax.train.optimizer import is_matrix

    decayed = {
        str(path[-1].key)
        for config in (*CONFIGS.values(), *VIRTUAL.values())
        for path, on in jax.tree_util.tree_leaves_with_path(
            is_matrix(base.adapt(config).params["adapter"])
        )
        if on
    }
    matrices = {"a", "b", "down", "up", "embeddings", "k", "v"}
    assert decayed == matrices | {name for name in decayed if "_proj" in name}


def test_dora_with_dropout_drops_what_is_added_and_not_the_base(base):
    """With everything dropped but the base, the expected output is the base's own."""
    config = PeftConfig(method="dora", rank=4, alpha=8.0, dropout=0.999)
    model = base.adapt(config)  # at its start: gain 1, B = 0
    batch = packed_batch(random_examples(10))
    dropped = loss_sums(model.structure, model.params, batch, None, jax.random.key(0))
    np.testing.assert_allclose(
        dropped.nll, loss_sums(base.structure, base.params, batch).nll, rtol=1e-5
    )


@pytest.mark.parametrize("path", ["layers.mlp.gate_up", "layers.mlp.down"])
@pytest.mark.parametrize("name", ["dora", "vera"])
def test_dropout_changes_what_is_added_and_on_average_nothing(base, name, path):
    """One layer away from its start: the mean over many draws is what comes without dropout."""
    config = dataclasses.replace(CONFIGS[name], dropout=0.3)
    model = shaken(base.adapt(config), size=0.3)
    adapter, (group, array) = model.structure.adapter, path.split(".")[1:]
    weight = model.params["layers"][group][array][0]
    x = jax.random.normal(jax.random.key(5), (2, weight.shape[0]))

    def output(key):
        arrays = jax.tree.map(lambda a: a[0], adapter.layer_arrays(model.params, key))
        return adapter.linear(path, x, weight, 1, arrays, adapter.shared_arrays(model.params))

    whole, plain = output(None), jnp.tensordot(x, weight, 1)
    drawn = jax.lax.map(output, jax.random.split(jax.random.key(0), 4000), batch_size=500)
    added = float(jnp.abs(whole - plain).mean())
    assert added > 0.05 * float(jnp.abs(plain).mean())
    assert float(jnp.abs(drawn[0] - drawn[1]).mean()) > 0.1 * added
    assert float(jnp.abs(drawn.mean(axis=0) - whole).mean()) < 0.1 * added


@pytest.mark.parametrize("name", ["dora", "ia3"])
def test_bfloat16_sees_gains_that_it_would_round_to_1(base, name):
    model = in_bfloat16(base).adapt(CONFIGS[name])
    trained, frozen = separate(model.params)
    factor = {"magnitude": 1.003, "scale": 1.003}
    moved = jax.tree_util.tree_map_with_path(
        lambda path, a: a * factor.get(path[-1].key, 1.0), trained
    )
    assert jnp.bfloat16(1.003) == 1
    change = model.with_params(combine(moved, frozen)).logits(IDS) - model.logits(IDS)
    assert float(jnp.abs(change).max()) > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "norms"},
        {"method": "norms", "layers": (0, 2)},
        {"method": "selective", "targets": ("down_proj",)},
        {"method": "selective", "targets": ("embed_tokens",)},
        {"method": "lora", "rank": 2, "modules_to_save": ("model.norm",)},
    ],
    ids=str,
)
def test_what_is_trained_whole_is_not_rounded_to_the_dtype_of_the_weights(tiny_llama, fields):
    """Beside weights in bfloat16, computed in float32, it moves by less than their last place."""
    stored = load_pretrained(tiny_llama, dtype="float32", param_dtype="bfloat16")
    exact = stored.with_params(jax.tree.map(lambda x: x.astype("float32"), stored.params))
    model = stored.adapt(PeftConfig(**fields))
    trained, frozen = separate(model.params)
    moved = {**trained, "whole": jax.tree.map(lambda x: x * 1.001, trained["whole"])}
    found = model.with_params(combine(moved, frozen)).logits(IDS)
    twin = exact.adapt(PeftConfig(**fields))
    expected = twin.with_params(combine(moved, separate(twin.params)[1])).logits(IDS)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert float(jnp.abs(expected - model.logits(IDS)).max()) > 1e-4


@pytest.mark.parametrize("config", ["dora", "dora with dropout", "vera", "ia3"])
def test_nothing_keeps_a_copy_of_a_weight(tiny_llama, config):
    """Without remat, a weight that is cut or made for a product is made anew."""
    name, _, dropout = config.partition(" ")
    fields = dataclasses.replace(CONFIGS[name], dropout=0.1 if dropout else 0.0)
    model = load_pretrained(tiny_llama, remat="none").adapt(fields)
    trained, frozen = separate(model.params)
    batch = packed_batch(random_examples(10))

    def loss(trained):
        params = combine(trained, frozen)
        return loss_sums(model.structure, params, batch, None, jax.random.key(0)).nll

    stacked, _ = made_shapes(jax.make_jaxpr(jax.grad(loss))(trained))
    arrays = [x.shape for x in jax.tree.leaves(frozen["layers"]) if x.ndim > 2]
    cut = {(3, *site.in_shape, *site.out_shape) for site in model.structure.adapter.sites}
    assert len(cut) > 1
    assert not stacked & {*arrays, *cut}


def test_the_adapter_alone_can_be_exchanged(base):
    one, two = (shaken(base.adapt(CONFIGS["ia3"]), seed=n) for n in (1, 2))
    trained, _ = separate(two.params)
    _, frozen = separate(one.params)
    np.testing.assert_array_equal(
        one.with_params(combine(trained, frozen)).logits(IDS), two.logits(IDS)
    )
