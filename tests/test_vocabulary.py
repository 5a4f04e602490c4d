"""Tokens added to a model: what it says of the others stays, and adapters that train them."""

import copy
import json
import shutil
import warnings

import jax
import numpy as np
import peft
import pytest
import torch
from torch_reference import save_variant, torch_logits, torch_model
from transformers import AutoTokenizer

from ift_jax.checkpoint import load_workdir
from ift_jax.config import build_run_config
from ift_jax.errors import InputError
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_chat, load_pretrained
from ift_jax.sharding import MeshConfig, make_mesh
from ift_jax.train.run import train

TOKENS = ("<tool>", "</tool>")
IDS = np.random.default_rng(0).integers(2, 258, (2, 11))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "model"
    return save_variant(path, tie_word_embeddings=request.param)


def run_config(model, folder, **changes):
    """A short run of LoRA with two new tokens, whose data have them, before and in the answer."""
    records = [
        {"prompt": f"{TOKENS[n % 2]} {n}", "completion": f"{n}{TOKENS[1 - n % 2]}"}
        for n in range(40)
    ]
    file = folder / "records.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    task = {"name": "calls", "source": str(file), "templates": "", "metrics": ["exact_match"],
            "validation_fraction": 0.1, "test_fraction": 0.1}  # fmt: skip
    tree = {
        "model": {"path": str(model), "new_tokens": list(TOKENS)},
        "data": {"max_length": 480, "tasks": [task]},
        "train": {"num_steps": 2, "batch_size": 8},
        "optimizer": {"peak_lr": 1e-1, "warmup_steps": 0},
        "evaluation": {"shots": [0], "max_new_tokens": 2},
        "peft": {"method": "lora", "rank": 2, "token_rows": list(TOKENS)},
    }
    return build_run_config({**tree, **changes})


def test_other_tokens_keep_their_scores_and_new_ones_the_mean_row(folder):
    base = load_pretrained(folder)
    more = base.with_new_tokens(TOKENS)
    assert more.chat.tokenizer("a<tool>b</tool>", add_special_tokens=False)["input_ids"] == [
        *base.tokenizer("a", add_special_tokens=False)["input_ids"], 258,
        *base.tokenizer("b", add_special_tokens=False)["input_ids"], 259,
    ]  # fmt: skip
    assert len(base.tokenizer) == 258  # its own tokenizer stays as it was
    assert more.structure.config.vocab_size == 320
    np.testing.assert_allclose(more.logits(IDS)[..., :258], base.logits(IDS), atol=1e-5)
    assert more.with_new_tokens(TOKENS) is more
    for name in {"embedding", "output"} & set(more.params):
        mean = np.asarray(base.params[name]).mean(axis=0)
        np.testing.assert_allclose(more.params[name][258:], np.tile(mean, (62, 1)), atol=1e-6)


def test_saved_it_is_what_transformers_loads(folder, tmp_path):
    more = load_pretrained(folder).with_new_tokens(TOKENS)
    more.save_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(list(TOKENS)) == [258, 259]
    ids = np.concatenate([IDS, [[258], [259]]], axis=1)
    expected = torch_logits(torch_model(tmp_path / "out"), ids)
    np.testing.assert_allclose(more.logits(ids), expected, rtol=1e-3, atol=2e-4)
    again = load_pretrained(tmp_path / "out").with_new_tokens(("<more>",))
    assert again.structure.config.vocab_size == 320  # spare rows are used first


def test_tables_grow_where_they_lie(folder):
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    alone = load_pretrained(folder).with_new_tokens(TOKENS)
    meshed = load_pretrained(folder, mesh=mesh).with_new_tokens(TOKENS)
    shard = meshed.params["embedding"].addressable_shards[0].data
    assert shard.shape == (160, 32)
    np.testing.assert_allclose(meshed.params["embedding"], alone.params["embedding"], atol=1e-6)


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """A finished run with new tokens, and the folder that peft loads."""
    workdir = tmp_path_factory.mktemp("run") / "w"
    train(run_config(folder, workdir.parent), workdir)
    adapter = workdir.parent / "adapter"
    load_workdir(workdir).save_adapter(adapter, base_model=str(folder))
    return workdir, adapter


def test_the_rows_of_new_tokens_are_trained(folder, run):
    start = load_pretrained(folder).with_new_tokens(TOKENS).params
    rows = load_pretrained(run[0]).params["adapter"]["rows"]
    assert set(rows) == {"embedding", "output"} & set(start)
    for name, trained in rows.items():
        moved = np.abs(np.asarray(trained) - np.asarray(start[name][258:260])).max(axis=1)
        assert (moved > 1e-3).all(), name


def test_an_adapter_with_new_tokens_is_used_by_workdir_and_folder(folder, run):
    model = load_pretrained(run[0])
    ids = np.concatenate([IDS, [[258], [259]]], axis=1)
    logits = model.logits(ids)
    for path in run:
        found = load_pretrained(folder)
        assert len(found.chat.tokenizer) == 258
        found.load_adapter(path)
        np.testing.assert_allclose(found.logits(ids), logits, atol=1e-5)
        assert found.chat.tokenizer.convert_tokens_to_ids("</tool>") == 259
    assert load_chat(run[0]).tokenizer.get_vocab() == model.tokenizer.get_vocab()


def test_peft_loads_it_beside_the_resized_base(folder, run):
    workdir, adapter = run
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    reference = torch_model(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
        theirs = peft.PeftModel.from_pretrained(reference, adapter).eval()
    ids = np.concatenate([IDS, [[258], [259]]], axis=1)
    found = load_pretrained(workdir).logits(ids)
    np.testing.assert_allclose(found, torch_logits(theirs, ids), rtol=1e-3, atol=3e-4)


def test_a_whole_table_that_peft_trained_with_more_tokens_loads(folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(TOKENS))
    reference = torch_model(folder)
    tied = reference.config.tie_word_embeddings
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights=False, ensure_weight_tying=tied,
        modules_to_save=["embed_tokens"] if tied else ["embed_tokens", "lm_head"],
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.resize_token_embeddings(len(tokenizer))
        theirs = peft.get_peft_model(reference, config).eval()
        with torch.no_grad():
            for name, parameter in theirs.named_parameters():
                if "modules_to_save" in name:
                    parameter += 0.1
        theirs.save_pretrained(tmp_path / "b")
        theirs.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    for name in "ab":
        tokenizer.save_pretrained(tmp_path / name)
    ids = np.concatenate([IDS, [[258], [259]]], axis=1)
    for name in "ab":  # with what the base had in their place, and without
        model = load_pretrained(folder).load_adapter(tmp_path / name)
        assert model.structure.config.vocab_size == 260
        expected = torch_logits(theirs, ids)
        np.testing.assert_allclose(model.logits(ids), expected, rtol=1e-3, atol=3e-4)


def lora_with(rows):
    return peft.LoraConfig(
        r=2, target_modules=["q_proj"], init_lora_weights=False, trainable_token_indices=rows
    )


RESIZED = {
    "lora": lora_with(None),
    "lora and rows of the new tokens": lora_with([258, 259]),
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def behind_virtual(model, ids):
    """Logits of the tokens themselves."""
    return torch_logits(model, ids)[:, -ids.shape[1] :]


@pytest.fixture(scope="module", params=RESIZED)
def resized(request, folder, tmp_path_factory):
    """An adapter of peft on a resized base, with the base's tables beside it; and logits."""
    path = tmp_path_factory.mktemp("resized")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(TOKENS))
    reference = torch_model(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.resize_token_embeddings(len(tokenizer))
        with torch.no_grad():  # whatever became of the tables, what the folder holds counts
            for table in (reference.get_input_embeddings(), reference.get_output_embeddings()):
                table.weight += 0.05 * torch.randn(table.weight.shape)
        theirs = peft.get_peft_model(reference, copy.deepcopy(RESIZED[request.param])).eval()
        theirs.save_pretrained(path)
    tokenizer.save_pretrained(path)
    ids = np.concatenate([IDS, [[258], [259]]], axis=1)
    return path, ids, behind_virtual(theirs, ids)


def test_tables_that_peft_saved_beside_an_adapter_take_the_place_of_the_base_s(
    folder, resized, tmp_path
):
    path, ids, expected = resized
    model = load_pretrained(folder).load_adapter(path)
    np.testing.assert_allclose(model.logits(ids), expected, rtol=1e-3, atol=3e-4)
    assert not model.structure.adapter.whole  # the tables are not a part of the adapter
    # Saved again, it is as complete: for us beside the base, for peft beside the resized one.
    model.save_adapter(tmp_path / "again", base_model=str(folder))
    again = load_pretrained(folder).load_adapter(tmp_path / "again")
    np.testing.assert_allclose(again.logits(ids), expected, rtol=1e-3, atol=3e-4)
    reference = torch_model(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.resize_token_embeddings(260)
        theirs = peft.PeftModel.from_pretrained(reference, tmp_path / "again").eval()
    np.testing.assert_allclose(behind_virtual(theirs, ids), expected, rtol=1e-3, atol=3e-4)
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    with jax.set_mesh(mesh):
        meshed = load_pretrained(folder, mesh=mesh).load_adapter(path)
        np.testing.assert_allclose(meshed.logits(ids), expected, rtol=1e-3, atol=3e-4)
    more = load_pretrained(folder).with_new_tokens(TOKENS, num_rows=260)
    with pytest.raises(InputError, match="holds the base's own embedding") as caught:
        more.load_weighted_adapters([path, path], [0.5, 0.5])
    assert "load it by itself" in str(caught.value)


FORMAT = (
    "{% for m in messages %}<turn>{{ m['role'] }}: {{ m['content'] }}</turn>{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant: {% endif %}"
)


def test_the_format_that_an_adapter_was_trained_in_comes_with_it(folder, tmp_path, capsys):
    """As with TRL: new special tokens, and a chat template that has them, stand in the folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = load_pretrained(folder)
    known = {**base.tokenizer.special_tokens_map}
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>", "</turn>"]})
    tokenizer.chat_template = FORMAT
    reference = torch_model(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference.resize_token_embeddings(len(tokenizer))
        peft.get_peft_model(
            reference, peft.LoraConfig(r=2, target_modules=["q_proj"])
        ).save_pretrained(tmp_path / "a")
    tokenizer.save_pretrained(tmp_path / "a")
    model = base.load_adapter(tmp_path / "a")
    ends = model.tokenizer.convert_tokens_to_ids("</turn>")
    assert model.chat.prompt_text([{"role": "user", "content": "x"}]) == (
        "<turn>user: x</turn><turn>assistant: "
    )
    assert model.chat.end_of_turn_id == ends
    assert ends in model.stop_ids
    assert {259, ends} <= set(model.tokenizer.all_special_ids)
    assert (
        model.tokenizer.decode([*model.tokenizer.encode("a"), ends], skip_special_tokens=True)
        == "a"
    )
    model.save_adapter(tmp_path / "again")
    again = load_pretrained(folder).load_adapter(tmp_path / "again")
    assert again.tokenizer.chat_template == FORMAT
    assert again.tokenizer.all_special_ids == model.tokenizer.all_special_ids
    assert known.items() <= {**again.tokenizer.special_tokens_map}.items()
    assert "not used" not in capsys.readouterr().err


def test_new_tokens_use_rows_that_a_base_has_to_spare(tmp_path):
    """As padded tables have: no table grows, so nothing but the tokenizer tells of them."""
    folder = save_variant(tmp_path / "m", tie_word_embeddings=True, vocab_size=320)
    fields = {"method": "lora", "rank": 2, "modules_to_save": ("embed_tokens",)}
    model = load_pretrained(folder).with_new_tokens(TOKENS).adapt(PeftConfig(**fields))
    model.save_adapter(tmp_path / "a")
    found = load_pretrained(folder).load_adapter(tmp_path / "a")
    assert found.tokenizer.get_vocab() == model.tokenizer.get_vocab()
    assert found.tokenizer.encode("<tool>", add_special_tokens=False) == [258]
    ids = np.concatenate([IDS, [[258], [259]]], axis=1)
    np.testing.assert_allclose(found.logits(ids), model.logits(ids), atol=1e-5)


def test_several_adapters_bring_their_format_if_it_is_one(folder, tmp_path, capsys):
    plain = load_pretrained(folder)
    plain.adapt(PeftConfig(method="lora", rank=2)).save_adapter(tmp_path / "plain")
    for name in ("one", "two"):
        shutil.copytree(tmp_path / "plain", tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        tokenizer.chat_template = FORMAT.replace("<turn>", "").replace("</turn>", "<|im_end|>")
        tokenizer.save_pretrained(tmp_path / name)
    asked = [{"role": "user", "content": "x"}]
    expected = load_pretrained(folder).load_adapter(tmp_path / "one").chat.prompt_text(asked)
    assert expected == "user: x<|im_end|>assistant: "
    paths = {name: tmp_path / name for name in ("one", "two")}
    assert load_pretrained(folder).load_adapters(paths).chat.prompt_text(asked) == expected
    summed = load_pretrained(folder).load_weighted_adapters(list(paths.values()), [0.5, 0.5])
    assert summed.chat.prompt_text(asked) == expected
    assert "not all trained in one chat format" not in capsys.readouterr().err
    mixed = load_pretrained(folder).load_adapters({**paths, "plain": tmp_path / "plain"})
    assert mixed.chat.prompt_text(asked) == plain.chat.prompt_text(asked) != expected
    assert "not all trained in one chat format" in capsys.readouterr().err


def test_a_tokenizer_beside_an_adapter_that_numbers_tokens_otherwise_is_not_used(
    folder, tmp_path, capsys
):
    base = load_pretrained(folder)
    expected = base.tokenizer.chat_template
    base.adapt(PeftConfig(method="lora", rank=2)).save_adapter(tmp_path / "a")
    text = (tmp_path / "a" / "tokenizer.json").read_text()
    tokenizer = json.loads(text)
    vocabulary = tokenizer["model"]["vocab"]
    one, two = sorted(vocabulary)[:2]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (tmp_path / "a" / "tokenizer.json").write_text(json.dumps(tokenizer))
    model = load_pretrained(folder).load_adapter(tmp_path / "a")
    assert model.tokenizer.get_vocab() == base.tokenizer.get_vocab()
    assert model.tokenizer.chat_template == expected
    assert "its tokenizer and chat template are not used, as token" in capsys.readouterr().err


def test_tables_of_more_tokens_need_the_tokenizer_that_has_them(folder, resized, tmp_path):
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(resized[0] / name, tmp_path)
    with pytest.raises(InputError, match="; if its base has more tokens, their tokenizer must"):
        load_pretrained(folder).load_adapter(tmp_path)


def test_a_run_goes_on_from_one_that_has_them(folder, run, tmp_path):
    """The same config on the first run's result: no row is made anew."""
    config = run_config(run[0], tmp_path, peft={"method": "ia3"})
    train(config, tmp_path / "w")
    first, second = load_pretrained(run[0]).merged(), load_pretrained(tmp_path / "w")
    assert second.structure.config.vocab_size == 320
    for name in {"embedding", "output"} & set(first.params):
        np.testing.assert_array_equal(first.params[name], second.params[name])


def test_a_table_cannot_shrink(folder):
    with pytest.raises(InputError, match="tables of 64 rows are asked for, and the model has 258"):
        load_pretrained(folder).with_new_tokens(TOKENS, num_rows=64)


def test_full_tuning_trains_them_too(folder, tmp_path):
    workdir = tmp_path / "w"
    train(run_config(folder, tmp_path, peft={}), workdir)
    model = load_pretrained(workdir)
    assert model.structure.config.vocab_size == 320
    config = json.loads((workdir / "config.json").read_text())
    assert config["model"]["new_tokens"] == list(TOKENS)
    start = load_pretrained(folder).with_new_tokens(TOKENS).params
    assert jax.tree.map(np.shape, model.params) == jax.tree.map(np.shape, start)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (("<t>", "<t>"), "expected different texts"),
        (("",), "expected different texts"),
        ((" <t>",), "without blanks around them"),
    ],
    ids=str,
)
def test_what_cannot_be_a_new_token_is_refused(folder, tokens, message):
    with pytest.raises(InputError, match=message):
        load_pretrained(folder).with_new_tokens(tokens)


def test_a_run_whose_adapter_would_not_train_them_is_refused(folder, tmp_path):
    peft_config = {"method": "lora", "rank": 2, "token_rows": ["<tool>"]}
    with pytest.raises(InputError, match=r"config\.peft does not train '</tool>' in the model's"):
        train(run_config(folder, tmp_path, peft=peft_config), tmp_path / "w")
    tables = {"method": "lora", "rank": 2, "modules_to_save": ["embed_tokens"]}
    if "output" in load_pretrained(folder).params:
        with pytest.raises(InputError, match="in the model's output"):
            train(run_config(folder, tmp_path, peft=tables), tmp_path / "w")
    adapted = load_pretrained(folder).adapt(PeftConfig(method="ia3"))
    with pytest.raises(InputError, match="has an adapter; they come before it"):
        adapted.with_new_tokens(TOKENS)
