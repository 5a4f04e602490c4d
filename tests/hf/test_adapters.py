"""Adapter folders: those of peft load here and ours in peft, with the same logits."""

import json
import shutil
import warnings

import jax
import numpy as np
import peft
import pytest
import torch
from torch_reference import torch_logits, torch_model

from ift_jax.errors import InputError
from ift_jax.language_model import load_pretrained
from ift_jax.peft.config import PeftConfig
from ift_jax.sharding import MeshConfig, make_mesh

IDS = np.random.default_rng(0).integers(2, 258, (2, 11))
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def made_by_peft(base_folder, config, target):
    """A folder that peft saves, with an adapter that is not at its start; and its logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(torch_model(base_folder), config).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(target)
    return torch_logits(model, IDS)


def read_by_peft(base_folder, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch_logits(
            peft.PeftModel.from_pretrained(torch_model(base_folder), folder).eval(), IDS
        )


def shaken(model):
    """The model with an adapter that is not at its start."""
    key = jax.random.key(0)
    trained = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(key, x.shape), model.params["adapter"]
    )
    return model.with_params({**model.params, "adapter": trained})


def assert_close(found, expected, base):
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)
    assert np.abs(np.asarray(found) - np.asarray(base.logits(IDS))).max() > 0.05


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load_pretrained(tiny_llama)


CONFIGS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=6, lora_dropout=0.3, target_modules="all-linear"),
    "rslora, some layers": peft.LoraConfig(
        r=4, use_rslora=True, target_modules=["q_proj", "down_proj"], layers_to_transform=[0, 2],
        init_lora_weights="gaussian",
    ),
    "a pattern": peft.LoraConfig(r=2, target_modules=r"model\.layers\.[12]\.mlp\.(up|gate)_proj"),
    "ranks and alphas of their own": peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=LINEAR,
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6}, alpha_pattern={"v_proj": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_adapters_of_peft_load_and_return(tiny_llama, base, tmp_path, name):
    expected = made_by_peft(tiny_llama, CONFIGS[name], tmp_path / "theirs")
    model = load_pretrained(tiny_llama)
    assert model.load_adapter(tmp_path / "theirs") is model
    assert_close(model.logits(IDS), expected, base)
    model.save_adapter(tmp_path / "ours")
    assert_close(read_by_peft(tiny_llama, tmp_path / "ours"), expected, base)
    again = load_pretrained(tiny_llama).load_adapter(tmp_path / "ours")
    np.testing.assert_allclose(again.logits(IDS), model.logits(IDS), atol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{"init": "pissa"}, {"rank_scaling": "sqrt", "layers": (1,), "targets": ("o_proj",)}],
    ids=str,
)
def test_adapters_made_here_load_in_peft(tiny_llama, base, tmp_path, fields):
    model = shaken(base.adapt(PeftConfig(method="lora", rank=3, **fields)))
    model.save_adapter(tmp_path / "a", base_model=str(tiny_llama))
    assert_close(read_by_peft(tiny_llama, tmp_path / "a"), model.logits(IDS), base)
    tokenizer_too = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a")
    assert_close(torch_logits(tokenizer_too.eval(), IDS), model.logits(IDS), base)


@pytest.mark.parametrize("sizes", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_adapters_load_and_are_saved_on_meshes(tiny_llama, base, tmp_path, sizes):
    expected = made_by_peft(tiny_llama, CONFIGS["lora"], tmp_path / "theirs")
    mesh = make_mesh(MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        model = load_pretrained(tiny_llama, mesh=mesh).load_adapter(tmp_path / "theirs")
        assert_close(model.logits(IDS), expected, base)
        model.save_adapter(tmp_path / "ours")
    b = model.params["adapter"]["layers"]["self_attn.q_proj"]["b"]
    assert b.sharding.is_fully_replicated == ("tensor" not in sizes)
    assert_close(read_by_peft(tiny_llama, tmp_path / "ours"), expected, base)


@pytest.fixture(scope="module")
def folder(tiny_llama, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapter") / "lora"
    made_by_peft(tiny_llama, peft.LoraConfig(r=2, target_modules=["q_proj"]), path)
    return path


def edited(folder, target, **fields):
    shutil.copytree(folder, target)
    config = json.loads((target / "adapter_config.json").read_text())
    (target / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    return target


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bias": "all"}, "bias='all' is not supported; only 'none'"),
        ({"use_qalora": True}, "use_qalora=True is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ({"lora_gamma": 3}, "unknown field lora_gamma=3; it may change the logits"),
        ({"peft_type": "LOHA"}, "peft_type='LOHA' is not supported"),
        ({"target_modules": ["query"]}, "names no linear layer of this model"),
        ({"target_modules": ["q_proj", "v_proj"]}, "v_proj.lora_A.weight is missing"),
        ({"layers_to_transform": [0, 1]}, "layers.2.self_attn.q_proj.lora_A.weight is not part"),
        ({"layers_to_transform": [5]}, "5 is not a layer; 0 to 2"),
        ({"r": 3}, r"has shape \(2, 32\), expected \(3, 32\)"),
        ({"r": 0}, "expected both above 0"),
    ],
)  # fmt: skip
def test_what_would_change_the_logits_is_refused(base, folder, tmp_path, fields, message):
    with pytest.raises(InputError, match=message):
        base.load_adapter(edited(folder, tmp_path / "a", **fields))
    assert base.structure.adapter is None


def test_a_folder_without_safetensors_is_refused(base, folder, tmp_path):
    copy = edited(folder, tmp_path / "a")
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    with pytest.raises(InputError, match="a pickle"):
        base.load_adapter(copy)
    with pytest.raises(InputError, match=r"adapter_config\.json: no such file"):
        base.load_adapter(tmp_path)


def test_a_second_adapter_and_saving_none_are_refused(tiny_llama, base, folder, tmp_path):
    model = load_pretrained(tiny_llama).load_adapter(folder)
    with pytest.raises(InputError, match="has an adapter already"):
        model.load_adapter(folder)
    with pytest.raises(InputError, match="no adapter to save"):
        base.save_adapter(tmp_path / "b")
