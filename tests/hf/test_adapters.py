"""Adapter folders: those of peft load here and ours in peft, with the same logits."""

import json
import shutil
import warnings

import jax
import numpy as np
import peft
import pytest
from torch_reference import (
    save_variant,
    saved_by_peft,
    torch_greedy,
    torch_logits,
    torch_model,
)

from ift_jax.errors import InputError
from ift_jax.evaluation.generation import Sampling, generate
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained
from ift_jax.sharding import MeshConfig, make_mesh

IDS = np.random.default_rng(0).integers(2, 258, (2, 11))
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def made_by_peft(base_folder, config, target):
    """Logits of an adapter that is not at its start, after peft saved it."""
    return own_logits(saved_by_peft(base_folder, config, target))


def loaded_by_peft(base_folder, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(torch_model(base_folder), folder).eval()


def read_by_peft(base_folder, folder):
    return own_logits(loaded_by_peft(base_folder, folder))


def own_logits(model):
    """Logits of the tokens themselves: those of virtual positions in front are cut off."""
    return torch_logits(model, IDS)[:, -IDS.shape[1] :]


def greedy(model, prompt, max_new_tokens, stop_id):
    """What peft generates, or for virtual tokens what it would by its logits.

    With their cache, transformers 5 and peft 0.21 generate other tokens behind virtual ones than
    the logits of the same model say.
    """
    if not model.active_peft_config.is_prompt_learning:
        return torch_greedy(model, [prompt], max_new_tokens, (stop_id,))[0]
    ids = list(prompt)
    while len(ids) < len(prompt) + max_new_tokens:
        token = int(torch_logits(model, np.array([ids]))[0, -1].argmax())
        if token == stop_id:
            break
        ids.append(token)
    return ids[len(prompt) :]


def shaken(model):
    """The model with an adapter that is not at its start."""
    key = jax.random.key(0)
    trained = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(key, x.shape), model.params["adapter"]
    )
    return model.with_params({**model.params, "adapter": trained})


def assert_close(found, expected, base):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
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
    "a pattern": peft.LoraConfig(
        r=2, target_modules=r"model\.layers\.[012]\.mlp\.(up|gate)_proj",
        exclude_modules=r".*\.0\.mlp.*",
    ),
    "ranks and alphas of their own": peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=LINEAR,
        rank_pattern={"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6}, alpha_pattern={"v_proj": 3},
    ),
    "with weights trained whole": peft.LoraConfig(
        r=2, target_modules="all-linear", ensure_weight_tying=True,
        modules_to_save=["embed_tokens", "layernorm", "layers.1.mlp"],
    ),
    "with rows of tokens": peft.LoraConfig(
        r=2, target_modules=["q_proj"], trainable_token_indices=[70, 7, 100],
        modules_to_save=["model.norm"],
    ),
    "dora": peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=LINEAR, use_dora=True, rank_pattern={"v_proj": 2},
        modules_to_save=["model.norm"],
    ),
    "vera": peft.VeraConfig(r=8, target_modules=LINEAR, vera_dropout=0.1),
    "vera, drawn anew, some layers": peft.VeraConfig(
        r=8, target_modules=["q_proj", "down_proj"], layers_to_transform=[1, 2],
        save_projection=False, projection_prng_key=2**32 - 5, modules_to_save=["k_proj"],
    ),
    "ia3": peft.IA3Config(),
    "ia3, other layers": peft.IA3Config(
        target_modules=r".*\.[02]\..*(q_proj|o_proj|up_proj|down_proj)",
        exclude_modules=["0.mlp.up_proj"],
        feedforward_modules=r".*\.down_proj", modules_to_save=["model.norm"],
    ),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
    "prefix, projected": peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8
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


EACH_METHOD = ("lora", "with rows of tokens", "dora", "vera", "ia3", "prompt", "prefix")


@pytest.mark.parametrize("name", EACH_METHOD)
def test_what_peft_generates_is_generated_here(tiny_llama, base, tmp_path, name):
    made_by_peft(tiny_llama, CONFIGS[name], tmp_path / "theirs")
    model = load_pretrained(tiny_llama).load_adapter(tmp_path / "theirs")
    theirs = loaded_by_peft(tiny_llama, tmp_path / "theirs")
    prompts = [np.random.default_rng(n).integers(2, 258, n).astype(np.int32) for n in (3, 9, 20)]
    sampling = Sampling(max_new_tokens=12)
    ours, plain = (
        generate(one.structure, one.params, prompts, sampling, stop_ids=[1])
        for one in (model, base)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [greedy(theirs, prompt, 12, stop_id=1) for prompt in prompts]
    assert [list(tokens) for tokens in ours] == expected
    assert [list(tokens) for tokens in plain] != expected


@pytest.mark.parametrize("name", EACH_METHOD)
def test_bfloat16_logits_are_as_near_as_those_of_peft(tiny_llama, base, tmp_path, name):
    """Against those in float32: both round, neither may be further away than rounding takes it."""
    exact = made_by_peft(tiny_llama, CONFIGS[name], tmp_path / "theirs")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = own_logits(loaded_by_peft(tiny_llama, tmp_path / "theirs").bfloat16())
    half = load_pretrained(tiny_llama, dtype="bfloat16", param_dtype="bfloat16")
    ours = np.asarray(half.load_adapter(tmp_path / "theirs").logits(IDS), np.float32)
    errors = [float(np.sqrt(np.mean((x - exact) ** 2))) for x in (ours, theirs)]
    assert 0 < errors[0] <= 1.5 * errors[1]


OURS = [
    PeftConfig(method="lora", rank=3, init="pissa", modules_to_save=("embed_tokens", "norm")),
    PeftConfig(method="lora", rank=3, rank_scaling="sqrt", layers=(1,), targets=("o_proj",)),
    PeftConfig(
        method="dora", rank=3, init="a_zero", targets=("v_proj", r".*\.[01]\.mlp\.down_proj"),
        modules_to_save=("k_proj", "input_layernorm"),
    ),
    PeftConfig(method="dora", rank=3, targets=("v_proj",), token_rows=("b", "<|im_end|>", "a")),
    PeftConfig(method="vera", rank=8, modules_to_save=("embed_tokens",)),
    PeftConfig(method="vera", rank=8, layers=(0, 2), targets=("self_attn.v_proj", "up_proj")),
    PeftConfig(method="ia3"),
    PeftConfig(
        method="ia3", layers=(1, 2), targets=("q_proj", "o_proj", "down_proj"),
        modules_to_save=("model.norm",),
    ),
    PeftConfig(method="prompt", num_virtual_tokens=5),
    PeftConfig(method="prefix", num_virtual_tokens=5),
]  # fmt: skip


@pytest.mark.parametrize("config", OURS, ids=lambda c: f"{c.method}{'-'.join(map(str, c.layers))}")
def test_adapters_made_here_load_in_peft(tiny_llama, base, tmp_path, config):
    model = shaken(base.adapt(config))
    model.save_adapter(tmp_path / "a", base_model=str(tiny_llama))
    assert_close(read_by_peft(tiny_llama, tmp_path / "a"), model.logits(IDS), base)


@pytest.mark.parametrize("method", ["dora", "ia3"])
def test_gains_near_one_outlast_an_export_in_bfloat16(tiny_llama, base, tmp_path, method):
    model = base.adapt(PeftConfig(method=method))

    def moved(path, x):
        gain = path[-1].key in ("magnitude", "scale")
        return x * (1 + 0.002 * np.sin(np.arange(x.size)).reshape(x.shape)) if gain else x

    trained = jax.tree.map_with_path(moved, model.params["adapter"])
    model = model.with_params({**model.params, "adapter": trained})
    model.save_adapter(tmp_path / "a", dtype="bfloat16", base_model=str(tiny_llama))
    start, expected = (np.asarray(one.logits(IDS)) for one in (base, model))
    ours = load_pretrained(tiny_llama).load_adapter(tmp_path / "a").logits(IDS)
    for found in (np.asarray(ours), read_by_peft(tiny_llama, tmp_path / "a")):
        lost = np.abs(found - expected).mean() / np.abs(expected - start).mean()
        assert lost < 0.05


def test_a_folder_says_what_it_adapts(tiny_llama, base, tmp_path):
    model = shaken(base.adapt(PeftConfig(method="ia3")))
    model.save_adapter(tmp_path / "a", base_model=str(tiny_llama))
    by_itself = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "a")
    assert_close(own_logits(by_itself.eval()), model.logits(IDS), base)


def test_an_output_matrix_of_its_own_is_trained(tmp_path):
    folder = save_variant(tmp_path / "untied", tie_word_embeddings=False)
    base = load_pretrained(folder)
    rows = {"embed_tokens": [70, 7], "lm_head": [8, 9, 70]}
    for name, config in (
        ("whole", peft.IA3Config(modules_to_save=["lm_head"])),
        ("rows", peft.LoraConfig(target_modules=["q_proj"], trainable_token_indices=rows)),
    ):
        expected = made_by_peft(folder, config, tmp_path / name)
        model = load_pretrained(folder).load_adapter(tmp_path / name)
        assert_close(model.logits(IDS), expected, base)
        model.save_adapter(tmp_path / f"our-{name}")
        assert_close(read_by_peft(folder, tmp_path / f"our-{name}"), expected, base)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("lora", {"data": 8}),
        *((name, {"data": 2, "fsdp": 2, "tensor": 2})
          for name in ("lora", "rslora, some layers", "with weights trained whole",
                       "with rows of tokens", "dora", "vera", "ia3", "prompt", "prefix")),
    ],
)  # fmt: skip
def test_adapters_load_and_are_saved_on_meshes(tiny_llama, base, tmp_path, name, sizes):
    expected = made_by_peft(tiny_llama, CONFIGS[name], tmp_path / "theirs")
    mesh = make_mesh(MeshConfig(**sizes))
    with jax.set_mesh(mesh):
        model = load_pretrained(tiny_llama, mesh=mesh).load_adapter(tmp_path / "theirs")
        assert_close(model.logits(IDS), expected, base)
        model.save_adapter(tmp_path / "ours")
    parts = jax.tree.leaves(model.params["adapter"])
    assert all(x.sharding.is_fully_replicated for x in parts) == ("tensor" not in sizes)
    assert_close(read_by_peft(tiny_llama, tmp_path / "ours"), expected, base)


@pytest.mark.parametrize("method", ["bottleneck", "bitfit", "norms"])
def test_methods_that_peft_has_no_format_for_are_refused(base, tmp_path, method):
    model = base.adapt(PeftConfig(method=method))
    known = "LORA, VERA, IA3, PROMPT_TUNING, PREFIX_TUNING"
    remedy = "merge_adapter" if method == "norms" else "workdir"
    with pytest.raises(
        InputError, match=f"no folder format .* '{method}'; known: {known}.*{remedy}"
    ):
        model.save_adapter(tmp_path / "a")
    assert not (tmp_path / "a").exists()


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


@pytest.fixture(scope="module")
def folders(tiny_llama, tmp_path_factory, folder):
    """A folder of every kind by name."""
    path = tmp_path_factory.mktemp("kinds")
    for name in ("vera, drawn anew, some layers", "ia3", "prompt", "prefix"):
        made_by_peft(tiny_llama, CONFIGS[name], path / name.split(",")[0])
    return {"lora": folder, **{p.name: p for p in path.iterdir()}}


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("lora", {"bias": "all"}, "bias='all' is not supported; only 'none'"),
        ("lora", {"use_qalora": True}, "use_qalora=True is not supported"),
        ("lora", {"modules_to_save": ["lm_head"]}, "modules_to_save=.*lm_head without the embed"),
        ("lora", {"modules_to_save": "norm"}, "modules_to_save='norm'; expected a list"),
        ("lora", {"modules_to_save": ["q_proj"]}, "modules_to_save=.* leave no linear layer"),
        ("lora", {"exclude_modules": ["q_proj"]}, "exclude_modules=.* leave no linear layer"),
        ("lora", {"modules_to_save": ["j"]}, "trains model.layers.0.self_attn.q_proj whole, which"),
        ("lora", {"modules_to_save": ["("]}, "modules_to_save: no regular expression"),
        ("lora", {"modules_to_save": ["norm"]}, r"layers.0.input_layernorm.weight is missing"),
        ("lora", {"trainable_token_indices": [258]}, "expected tokens of 0 to 257"),
        ("lora", {"trainable_token_indices": [3, 3]}, "expected different tokens"),
        ("lora", {"trainable_token_indices": {"lm_head": [3]}}, "lm_head is tied to .*embed"),
        ("lora", {"trainable_token_indices": {"norm": [3]}}, "norm is no table of tokens; there"),
        ("lora", {"trainable_token_indices": [3]}, "trainable_tokens_delta is missing"),
        ("lora", {"use_dora": True}, "lora_magnitude_vector is missing"),
        ("lora", {"init_lora_weights": "pissa"}, "init_lora_weights='pissa' is not supported"),
        ("lora", {"lora_gamma": 3}, "unknown field lora_gamma=3; it may change the logits"),
        ("lora", {"peft_type": "LOHA"}, "peft_type='LOHA' is not supported"),
        ("lora", {"target_modules": ["query"]}, "names no linear layer of this model"),
        ("lora", {"target_modules": ["q_proj", "lm_head"]}, "names lm_head; an adapter at embed"),
        ("lora", {"target_modules": ".*_proj|.*embed_tokens"}, "names model.embed_tokens; an ada"),
        ("lora", {"target_modules": ["q_proj", "v_proj"]}, "v_proj.lora_A.weight is missing"),
        ("lora", {"layers_to_transform": [0, 1]}, "layers.2.*q_proj.lora_A.weight is not part"),
        ("vera", {"r": 10**14}, "r=100000000000000; expected an integer of 1 to 65536"),
        ("prompt", {"num_virtual_tokens": 10**14}, "num_virtual_tokens=1000.*; expected an integ"),
        ("lora", {"layers_to_transform": [5]}, "layers_to_transform: 5 is not a layer; 0 to 2"),
        ("lora", {"layers_to_transform": ["0"]}, "layers_to_transform=.*; expected numbers"),
        ("lora", {"lora_dropout": None}, "lora_dropout=None; expected 0 to below 1"),
        ("lora", {"lora_dropout": 1.0}, "lora_dropout=1.0; expected 0 to below 1"),
        ("lora", {"rank_pattern": ["q_proj"]}, "rank_pattern=.*; expected numbers by pattern"),
        ("lora", {"alpha_pattern": {"q_proj": "2"}}, "alpha_pattern=.*; expected numbers by patt"),
        ("lora", {"exclude_modules": [3]}, "exclude_modules=.*; expected a list of names, or a p"),
        ("lora", {"target_modules": 5}, "target_modules=5; expected a list of names, or a patte"),
        ("lora", {"use_rslora": "no"}, "use_rslora='no'; expected true or false"),
        ("lora", {"peft_type": ["LORA"]}, r"peft_type=\['LORA'\] is not supported"),
        ("lora", {"rank_pattern": {"(": 2}}, "rank_pattern: no regular expression"),
        ("lora", {"r": 3}, r"has shape \(2, 32\), expected \(3, 32\)"),
        ("lora", {"r": 0}, "expected both above 0"),
        ("lora", {"r": 2.0}, "rank 2.0 .*a whole rank of at most 65536"),
        ("lora", {"r": 10**8}, "rank 100000000 .*a whole rank of at most 65536"),
        ("lora", {"lora_alpha": float("nan")}, "alpha nan; expected both above 0"),
        ("lora", {"alpha_pattern": {"q_proj": float("inf")}}, "alpha inf; expected both above 0"),
        ("vera", {"bias": "vera_only"}, "bias='vera_only' is not supported; only 'none'"),
        ("vera", {"save_projection": True}, "the tensor base_model.vera_A is missing"),
        ("vera", {"projection_prng_key": -1}, "projection_prng_key=-1; expected 0 to"),
        ("vera", {"r": 0}, "r=0; expected an integer of 1 to 65536"),
        ("vera", {"lora_alpha": 8}, "unknown field lora_alpha=8"),
        ("ia3", {"feedforward_modules": ["v_proj"]}, "modules=.* inputs of .*v_proj; only its"),
        ("ia3", {"feedforward_modules": 5}, "feedforward_modules=5; expected a list of names"),
        ("ia3", {"feedforward_modules": []}, "scale the outputs of .*down_proj; only its inputs"),
        ("prompt", {"task_type": None}, "task_type=None is not supported; only 'CAUSAL_LM'"),
        ("prompt", {"token_dim": 16}, "token_dim=16 does not fit this model; expected 32"),
        ("prompt", {"num_virtual_tokens": 4}, r"prompt_embeddings has shape \(5, 32\), expected"),
        ("prompt", {"num_virtual_tokens": None}, "num_virtual_tokens=None; expected an integer"),
        ("prompt", {"modules_to_save": ["norm"]}, "modules_to_save=.* is not supported"),
        ("prefix", {"num_attention_heads": 4}, "num_attention_heads=4 does not fit this model"),
        ("prefix", {"num_layers": 2}, "num_layers=2 does not fit this model; expected 3"),
        ("prefix", {"num_transformer_submodules": 2}, "num_transformer_submodules=2 does not fit"),
    ],
)  # fmt: skip
def test_what_would_change_the_logits_is_refused(base, folders, tmp_path, kind, fields, message):
    with pytest.raises(InputError, match=message):
        base.load_adapter(edited(folders[kind], tmp_path / "a", **fields))
    assert base.structure.adapter is None


def test_a_copy_of_the_tied_embedding_must_equal_it(tiny_llama, base, tmp_path):
    """Without ensure_weight_tying, peft trains one of the two, or each by itself."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    made_by_peft(tiny_llama, config, tmp_path / "one")
    with pytest.raises(
        InputError, match=r"lm_head\.weight is missing; here it is tied to the embed"
    ):
        base.load_adapter(tmp_path / "one")
    config.modules_to_save = ["embed_tokens", "lm_head"]
    made_by_peft(tiny_llama, config, tmp_path / "both")
    with pytest.raises(InputError, match=r"lm_head\.weight differs from the embedding, to which"):
        base.load_adapter(tmp_path / "both")


def test_a_folder_without_safetensors_is_refused(base, folder, tmp_path):
    copy = edited(folder, tmp_path / "a")
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    with pytest.raises(InputError, match="a pickle"):
        base.load_adapter(copy)
    with pytest.raises(InputError, match=r"adapter_config\.json: no such file"):
        base.load_adapter(tmp_path)


def test_how_eva_found_its_start_says_nothing_of_what_is_stored(
    tiny_llama, base, folders, tmp_path
):
    fields = {"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}}
    logits = [
        load_pretrained(tiny_llama).load_adapter(path).logits(IDS)
        for path in (folders["lora"], edited(folders["lora"], tmp_path / "eva", **fields))
    ]
    np.testing.assert_array_equal(*logits)


def test_an_adapter_s_folder_is_no_model(tiny_llama, folder):
    with pytest.raises(InputError, match=f"{folder}: holds an adapter and no model.*{tiny_llama}"):
        load_pretrained(folder)


def test_a_second_adapter_and_saving_none_are_refused(tiny_llama, base, folder, tmp_path):
    model = load_pretrained(tiny_llama).load_adapter(folder)
    with pytest.raises(InputError, match="has an adapter already"):
        model.load_adapter(folder)
    with pytest.raises(InputError, match="no adapter to save"):
        base.save_adapter(tmp_path / "b")
