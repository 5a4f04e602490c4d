"""Hugging Face folders: bit-equal round trips, and no broken folder that loads in silence."""

import json
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from torch_reference import VARIANTS, edited, save_variant, torch_logits, torch_model
from transformers import AutoTokenizer

from ift_jax.errors import InputError
from ift_jax.hf import folder as folder_module
from ift_jax.hf.families import decoder_config
from ift_jax.hf.folder import open_tensors, plan_shards, write_folder
from ift_jax.pretrained import load_pretrained

IDS = np.random.default_rng(0).integers(0, 258, (2, 9))
DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def untied(tmp_path_factory) -> Path:
    return save_variant(tmp_path_factory.mktemp("untied") / "m", tie_word_embeddings=False)


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    return {
        name: tensor
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def with_tensors(source: Path, target: Path, change) -> Path:
    """A copy of a folder whose dictionary of tensors `change` has edited."""
    shutil.copytree(source, target)
    tensors = tensors_of(target)
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def same_bits(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and a[k].tobytes() == b[k].tobytes()
        for k in a
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_export_and_import_are_bit_equal_and_transformers_agrees(variant, tmp_path):
    source = save_variant(tmp_path / "in", **VARIANTS[variant])
    model = load_pretrained(source)
    model.save_pretrained(tmp_path / "out")
    assert same_bits(tensors_of(source), tensors_of(tmp_path / "out"))
    again = load_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    assert again.structure.config == model.structure.config
    np.testing.assert_array_equal(
        torch_logits(torch_model(tmp_path / "out"), IDS), torch_logits(torch_model(source), IDS)
    )


def test_transformers_loads_the_exported_tokenizer_and_generation_config(untied, tmp_path):
    from transformers import AutoTokenizer, GenerationConfig

    load_pretrained(untied).save_pretrained(tmp_path / "out")
    exported, source = (AutoTokenizer.from_pretrained(p) for p in (tmp_path / "out", untied))
    turns = [{"role": "user", "content": "café 12  x"}]
    rendered = [t.apply_chat_template(turns, tokenize=False) for t in (exported, source)]
    assert rendered[0] == rendered[1]
    assert exported(rendered[0]).input_ids == source(rendered[0]).input_ids
    assert exported.eos_token == source.eos_token
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_folder_keeps_its_dtype_on_saving(untied, tmp_path, dtype):
    load_pretrained(untied).save_pretrained(tmp_path / "a", dtype=dtype)
    model = load_pretrained(tmp_path / "a")
    assert model.stored_dtype == dtype
    assert {str(x.dtype) for x in jax.tree.leaves(model.params)} == {"float32"}
    model.save_pretrained(tmp_path / "b")
    assert same_bits(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b"))
    assert {str(t.dtype) for t in tensors_of(tmp_path / "b").values()} == {dtype}
    assert json.loads((tmp_path / "b" / "config.json").read_text())["dtype"] == dtype
    assert str(torch_model(tmp_path / "b").lm_head.weight.dtype) == "torch.float32"


def test_the_older_name_of_the_dtype_field_does_not_outlive_a_change(untied, tmp_path):
    older = edited(untied, tmp_path / "older", drop=("dtype",), torch_dtype="bfloat16")
    load_pretrained(older).save_pretrained(tmp_path / "out", dtype="float16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == "float16"
    assert "torch_dtype" not in config


def test_parameters_can_be_held_in_half_precision(untied, tmp_path):
    model = load_pretrained(untied, param_dtype="bfloat16", dtype="bfloat16")
    assert {str(x.dtype) for x in jax.tree.leaves(model.params)} == {"bfloat16"}
    logits = model.logits(IDS)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, load_pretrained(untied).logits(IDS), atol=1.0)


def test_rope_theta_of_older_folders_means_what_rope_parameters_mean(untied, tmp_path):
    older = edited(untied, tmp_path / "a", drop=("rope_parameters",), rope_theta=300.0)
    newer = edited(
        untied, tmp_path / "b", rope_parameters={"rope_type": "default", "rope_theta": 300.0}
    )
    logits = [load_pretrained(path).logits(IDS) for path in (older, newer)]
    np.testing.assert_array_equal(*logits)
    np.testing.assert_allclose(logits[0], torch_logits(torch_model(older), IDS), atol=1e-4)
    assert np.abs(logits[0] - load_pretrained(untied).logits(IDS)).max() > 1e-2
    load_pretrained(older).save_pretrained(tmp_path / "out")
    np.testing.assert_array_equal(load_pretrained(tmp_path / "out").logits(IDS), logits[0])
    np.testing.assert_allclose(
        logits[0], torch_logits(torch_model(tmp_path / "out"), IDS), atol=1e-4
    )


def test_fields_that_config_json_leaves_out_have_the_defaults_of_transformers(untied, tmp_path):
    short = edited(untied, tmp_path / "a", drop=("rope_parameters", "num_key_value_heads"))
    config = folder_module.read_config(short)
    assert config["num_key_value_heads"] == config["num_attention_heads"]
    assert config["rope_parameters"]["rope_theta"] == 10_000.0
    assert config["hidden_act"] == "silu"
    null = edited(short, tmp_path / "b", rope_parameters=None, num_key_value_heads=None)
    named = edited(short, tmp_path / "c", rope_parameters={"rope_type": "default"})
    older = edited(short, tmp_path / "d", rope_theta=10_000.0, rope_scaling={"type": "default"})
    for number, field in enumerate(("eos_token_id", "bos_token_id")):  # null is an answer there
        without = edited(untied, tmp_path / f"e{number}", **{field: None})
        assert folder_module.read_config(without)[field] is None
    for path in (null, named, older):
        read = decoder_config(folder_module.read_config(path), str(path))
        assert (read.rope_base, read.num_kv_heads) == (10_000.0, read.num_heads)


# Several shards.


def test_sharded_folders_are_written_and_read(untied, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 20_000)
    model = load_pretrained(untied)
    model.save_pretrained(tmp_path / "out")
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    tensors = tensors_of(tmp_path / "out")
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    assert same_bits(tensors, tensors_of(untied))
    again = load_pretrained(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)
    np.testing.assert_array_equal(
        torch_logits(torch_model(tmp_path / "out"), IDS), torch_logits(torch_model(untied), IDS)
    )


def test_shards_written_by_transformers_are_read(untied, tmp_path):
    torch_model(untied).save_pretrained(tmp_path / "m", max_shard_size="30KB")
    assert len(list((tmp_path / "m").glob("*.safetensors"))) > 2
    jax.tree.map(
        np.testing.assert_array_equal,
        load_pretrained(tmp_path / "m").params,
        load_pretrained(untied).params,
    )


def test_a_shard_holds_at_most_its_limit_and_one_tensor_at_least():
    shapes = {"a": (10,), "b": (3, 2), "c": (1,), "d": (3,)}
    assert plan_shards(shapes, 2, limit=14) == [["a"], ["b", "c"], ["d"]]
    assert plan_shards(shapes, 2, limit=1000) == [["a", "b", "c", "d"]]


@pytest.fixture
def sharded(untied, tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 20_000)
    load_pretrained(untied).save_pretrained(tmp_path / "sharded")
    return tmp_path / "sharded"


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(InputError) as caught:
        load_pretrained(path)
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(path), *parts):
        assert part in message


def test_a_shard_that_is_missing_is_named(sharded):
    file = sorted(sharded.glob("*.safetensors"))[1]
    file.unlink()
    refused(sharded, file.name, "no such file")


def test_a_tensor_that_stands_in_two_shards_is_named(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second)
    refused(sharded, name, first.name, second.name)


def test_an_index_that_disagrees_with_its_files_is_refused(sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = "model.norm.weight"
    content["weight_map"]["model.extra.weight"] = content["weight_map"][name]
    index.write_text(json.dumps(content))
    refused(sharded, index.name, "model.extra.weight")
    del content["weight_map"]["model.extra.weight"], content["weight_map"][name]
    index.write_text(json.dumps(content))
    refused(sharded, index.name, name)


@pytest.mark.parametrize("content", ["{}", '{"weight_map": [1]}', '{"weight_map": {"a": 1}}', "["])
def test_a_broken_index_is_named(sharded, content):
    (sharded / "model.safetensors.index.json").write_text(content)
    refused(sharded, "model.safetensors.index.json")


# Tensors that do not fit.


def test_a_missing_tensor_is_named(untied, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    refused(with_tensors(untied, tmp_path / "m", lambda t: t.pop(name)), name, "missing")


def test_an_unknown_tensor_is_named(untied, tmp_path):
    name = "model.layers.0.self_attn.q_proj.bias"

    def add(tensors):
        tensors[name] = np.zeros(32, np.float32)

    refused(with_tensors(untied, tmp_path / "m", add), name, "not part of this model")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.norm.weight", (31,)),
        ("model.layers.2.self_attn.k_proj.weight", (32, 16)),  # transposed
        ("model.embed_tokens.weight", (259, 32)),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both_shapes(untied, tmp_path, name, shape):
    expected = tensors_of(untied)[name].shape

    def change(tensors):
        tensors[name] = np.zeros(shape, np.float32)

    path = with_tensors(untied, tmp_path / "m", change)
    refused(path, name, str(shape), str(expected))


def test_more_or_fewer_layers_than_the_config_says_are_refused(untied, tmp_path):
    refused(edited(untied, tmp_path / "a", num_hidden_layers=2), "model.layers.2.")
    refused(edited(untied, tmp_path / "b", num_hidden_layers=4), "model.layers.3.", "missing")


def test_a_tied_model_may_store_its_embedding_twice_if_both_are_equal(tiny_llama, tmp_path):
    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    path = with_tensors(tiny_llama, tmp_path / "m", add)
    np.testing.assert_array_equal(
        load_pretrained(path).logits(IDS), load_pretrained(tiny_llama).logits(IDS)
    )


def test_a_tied_model_with_another_output_matrix_is_refused(tiny_llama, tmp_path):
    def add(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
        tensors["lm_head.weight"][7, 3] += 1e-3

    path = with_tensors(tiny_llama, tmp_path / "m", add)
    refused(path, "lm_head.weight", "tie_word_embeddings")


def test_an_untied_model_without_output_matrix_is_refused(untied, tmp_path):
    path = with_tensors(untied, tmp_path / "m", lambda t: t.pop("lm_head.weight"))
    refused(path, "lm_head.weight", "missing")


def test_a_dtype_that_we_do_not_read_is_named(untied, tmp_path):
    def change(tensors):
        tensors["model.norm.weight"] = np.ones(32, np.int8)

    refused(with_tensors(untied, tmp_path / "m", change), "model.norm.weight", "I8")


# Files that are not whole.


@pytest.mark.parametrize("share", [0, 0.00004, 0.0005, 0.01, 0.3, 0.9999])
def test_a_truncated_safetensors_file_is_named(untied, tmp_path, share):
    path = tmp_path / "m"
    shutil.copytree(untied, path)
    file = path / "model.safetensors"
    os.truncate(file, int(file.stat().st_size * share))
    refused(path, "model.safetensors", "not a complete safetensors file")


def test_a_missing_or_broken_file_is_named(untied, tmp_path):
    for number, (name, content) in enumerate(
        [
            ("model.safetensors", None),
            ("config.json", "{"),
            ("config.json", "[1]"),
            ("config.json", "\udcff"),
            ("generation_config.json", "nonsense"),
            ("tokenizer.json", "{"),
        ]
    ):
        path = tmp_path / str(number)
        shutil.copytree(untied, path)
        if content is None:
            (path / name).unlink()
        else:
            (path / name).write_bytes(content.encode(errors="surrogateescape"))
        refused(path, name)


def test_a_field_that_changes_the_logits_stops_the_loading(untied, tmp_path):
    refused(edited(untied, tmp_path / "a", hidden_act="gelu"), "config.json", "hidden_act")
    refused(edited(untied, tmp_path / "b", sliding_window=8), "config.json", "sliding_window")
    refused(edited(untied, tmp_path / "c", drop=("model_type",)), "config.json", "model_type")


# A folder without a tokenizer, and writing.


def test_a_folder_without_tokenizer_computes_and_saves_and_only_text_raises(untied, tmp_path):
    path = tmp_path / "m"
    shutil.copytree(untied, path, ignore=shutil.ignore_patterns("tokenizer*", "*.jinja"))
    model = load_pretrained(path)
    assert model.tokenizer is None
    np.testing.assert_array_equal(model.logits(IDS), load_pretrained(untied).logits(IDS))
    model.save_pretrained(tmp_path / "out")
    assert not list((tmp_path / "out").glob("tokenizer*"))
    np.testing.assert_array_equal(load_pretrained(tmp_path / "out").logits(IDS), model.logits(IDS))
    for call in (
        lambda: model.generate(["hello"], max_new_tokens=2),
        lambda: model.reply([{"role": "user", "content": "hello"}], max_new_tokens=2),
        lambda: model.chat,
    ):
        with pytest.raises(InputError, match="no tokenizer"):
            call()


def test_folders_are_named_from_home_and_from_here(untied, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    load_pretrained(untied).save_pretrained("~/out")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    load_pretrained("~/out").save_pretrained(".")
    assert same_bits(tensors_of(untied), tensors_of(Path("model.safetensors").parent))
    (tmp_path / "link").symlink_to(tmp_path / "linked")
    (tmp_path / "linked").mkdir()
    load_pretrained("~/out").save_pretrained(tmp_path / "link")
    assert same_bits(tensors_of(untied), tensors_of(tmp_path / "linked"))


def test_a_pickle_is_not_read_and_said_to_be_one(untied, tmp_path):
    shutil.copytree(untied, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    refused(tmp_path / "m", "pytorch_model.bin", "pickle")


def test_weights_in_float64_are_saved_in_float32(untied, tmp_path):
    def widen(tensors):
        tensors.update({name: tensor.astype(np.float64) for name, tensor in tensors.items()})

    model = load_pretrained(with_tensors(untied, tmp_path / "m", widen))
    model.save_pretrained(tmp_path / "out")
    assert same_bits(tensors_of(untied), tensors_of(tmp_path / "out"))


def test_ends_that_are_no_tokens_are_named(untied, tmp_path):
    path = shutil.copytree(untied, tmp_path / "m")
    (path / "generation_config.json").write_text('{"eos_token_id": "<end>"}')
    refused(path, "eos_token_id='<end>'")


def test_nothing_that_exists_is_overwritten(untied, tmp_path):
    model = load_pretrained(untied)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for path in (tmp_path / "full", tmp_path / "full" / "notes.txt"):
        with pytest.raises(InputError, match="already exists"):
            model.save_pretrained(path)
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"
    with pytest.raises(InputError, match="cannot be written"):
        model.save_pretrained(tmp_path / "full" / "notes.txt" / "below")
    (tmp_path / "empty").mkdir()
    model.save_pretrained(tmp_path / "empty")
    assert load_pretrained(tmp_path / "empty").stored_dtype == "float32"


def test_a_folder_appears_under_its_name_only_when_complete(tmp_path):
    def breaks_off():
        yield "a", np.zeros(2, np.float32)
        raise OSError("disk full")

    with pytest.raises(InputError, match="out: cannot be written: disk full"):
        write_folder(
            tmp_path / "out", {}, breaks_off(), {"a": (2,), "b": (2,)},
            dtype="float32", tokenizer=None, generation_config={},
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


def test_an_unknown_dtype_is_refused_before_anything_is_read_or_written(untied, tmp_path):
    for options in ({"dtype": "int8"}, {"param_dtype": "float64"}, {"remat": "some"}):
        with pytest.raises(InputError, match=f"{next(iter(options))}: expected one of"):
            load_pretrained(untied, **options)
    with pytest.raises(InputError, match="dtype: expected one of"):
        load_pretrained(untied).save_pretrained(tmp_path / "out", dtype="int8")
    assert not (tmp_path / "out").exists()


def test_opening_a_folder_reads_no_tensor(untied, monkeypatch):
    import safetensors

    opened = safetensors.safe_open

    class Watched:
        def __init__(self, *args):
            self.inner = opened(*args)

        def get_tensor(self, name):
            raise AssertionError(f"{name} was read")

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(safetensors, "safe_open", Watched)
    assert len(open_tensors(untied)) == 3 * 9 + 3


def test_rotary_frequencies_of_old_checkpoints_are_left_aside(untied, tmp_path):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(4, np.float32)

    old = load_pretrained(with_tensors(untied, tmp_path / "m", add))
    ids = np.arange(12)[None]
    np.testing.assert_array_equal(old.logits(ids), load_pretrained(untied).logits(ids))


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused(tiny_llama, tmp_path):
    folder = shutil.copytree(tiny_llama, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["one more"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(InputError, match="vocab_size is 258, but the tokenizer has 259"):
        load_pretrained(folder)
