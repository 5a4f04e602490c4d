"""Several adapters on one base: by row, weighted as peft weighs them, merged and unmerged."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
from torch_peft import IDS, shaken
from torch_reference import save_variant, saved_by_peft, torch_logits, torch_model

from ift_jax import adapting
from ift_jax.errors import InputError
from ift_jax.evaluation.scoring import Question, score_choices
from ift_jax.hf import adapters
from ift_jax.peft.adapter import FROZEN, TRAINED
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained
from ift_jax.sharding import MeshConfig, make_mesh

# Layers of one adapter may have alphas of their own, and sums must weigh them as peft does.
PATTERNS = {
    "uneven": peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"],
                              alpha_pattern={"v_proj": 16, r"layers\.1\..*q_proj": 1}),
    "whole": peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["model.norm"]),
    "rows": peft.LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices=[7]),
    "dora": peft.LoraConfig(r=2, target_modules=["q_proj"], use_dora=True),
    "ia3": peft.IA3Config(modules_to_save=["model.norm"]),
}  # fmt: skip
ADAPTERS = {
    "small": {"rank": 2, "alpha": 8.0, "targets": ("q_proj", "down_proj")},
    "root": {"rank": 3, "rank_scaling": "sqrt", "alpha": 2.0, "layers": (0, 2)},
    "pissa": {"rank": 2, "alpha": 4.0, "init": "pissa", "targets": ("q_proj",)},
    "equal": {"rank": 2, "alpha": 3.0, "targets": ("q_proj", "up_proj")},
}


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def folders(base, tiny_llama, tmp_path_factory):
    """A folder per adapter."""
    folder = tmp_path_factory.mktemp("adapters")
    for number, (name, fields) in enumerate(ADAPTERS.items()):
        model = shaken(base.adapt(PeftConfig(method="lora", **fields)), seed=number)
        model.save_adapter(folder / name)
    for name, config in PATTERNS.items():
        saved_by_peft(tiny_llama, config, folder / name)
    return {name: folder / name for name in (*ADAPTERS, *PATTERNS)}


@pytest.fixture(scope="module")
def several(tiny_llama, folders):
    return load_pretrained(tiny_llama).load_adapters({name: folders[name] for name in ADAPTERS})


def alone(tiny_llama, folders, name):
    model = load_pretrained(tiny_llama)
    return model.load_adapter(folders[name]) if name else model


NAMES = ["root", "", "small", "pissa", "equal", "small"]


def test_each_row_uses_its_own_adapter(tiny_llama, folders, several):
    ids = np.random.default_rng(1).integers(2, 258, (len(NAMES), 9))
    logits = np.asarray(several.logits(ids, adapters=NAMES))
    for row, name in enumerate(NAMES):
        model = alone(tiny_llama, folders, name)
        np.testing.assert_allclose(logits[row], model.logits(ids)[row], atol=3e-4, err_msg=name)


def test_rows_generate_and_score_under_their_adapters_whatever_is_in_the_batch(
    tiny_llama, folders, several
):
    """In groups by length, so that prompts change places; what is shared begins all of them."""
    begin = "Hello there, what is this"
    prompts = [begin + "?" + " And more" * (5 * n % 6) for n in range(len(NAMES))]
    texts = several.generate(prompts, max_new_tokens=6, adapters=NAMES)
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    choices = (np.array([40, 41]), np.array([50]))
    questions = [Question(several.chat.prompt_ids(turn), choices) for turn in turns]
    rows = several.adapter_rows(NAMES, len(NAMES))
    scores = score_choices(several.structure, several.params, questions, adapter_rows=rows)
    sizes = [len(question.prompt) for question in questions]
    assert sizes != sorted(sizes)
    assert len(set(texts)) > 2
    for row in (0, 1, 2, 5):
        name = NAMES[row]
        model = alone(tiny_llama, folders, name)
        assert [texts[row]] == model.generate([prompts[row]], max_new_tokens=6), name
        pieces = several.stream(turns[row], adapter=name, max_new_tokens=6)
        assert "".join(pieces) == texts[row]
        own = score_choices(model.structure, model.params, [questions[row]])[0]
        np.testing.assert_allclose(scores[row].log_likelihoods, own.log_likelihoods, rtol=1e-4)


def test_rows_use_their_adapters_on_a_mesh(tiny_llama, folders, several):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    ids = np.random.default_rng(1).integers(2, 258, (4, 9))
    with jax.set_mesh(mesh):
        model = load_pretrained(tiny_llama, mesh=mesh)
        model.load_adapters({name: folders[name] for name in ADAPTERS})
        logits = model.logits(ids, adapters=NAMES[:4])
    np.testing.assert_allclose(logits, several.logits(ids, adapters=NAMES[:4]), atol=1e-4)


def test_names_are_checked(base, several, tmp_path, folders):
    with pytest.raises(InputError, match="expected a name for each of 2 rows, of 'small', 'root'"):
        several.logits(IDS)
    questions = [Question(IDS[0], (np.array([40]),))]
    with pytest.raises(InputError, match="of which each row uses one by name"):
        score_choices(several.structure, several.params, questions)
    with pytest.raises(InputError, match="'smal' is not loaded"):
        several.logits(IDS, adapters=["smal", ""])
    with pytest.raises(InputError, match="only after `load_adapters`"):
        base.logits(IDS, adapters=["small", ""])
    with pytest.raises(InputError, match="cannot be merged"):
        several.save_pretrained(tmp_path / "m")
    with pytest.raises(InputError, match="names that are not empty"):
        dataclasses.replace(base).load_adapters({"": folders["small"]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("whole", r"model\.norm is trained beside the adapter"),
        ("rows", r"embed_tokens is trained beside the adapter"),
        ("dora", "method 'dora' cannot be combined; only lora"),
        ("ia3", r"model\.norm is trained beside the adapter"),
    ],
)
def test_what_a_combination_would_drop_is_refused(base, folders, name, message):
    def model():
        return dataclasses.replace(base)

    with pytest.raises(InputError, match=message):
        model().load_adapters({"a": folders["small"], "b": folders[name]})
    with pytest.raises(InputError, match=message):
        model().load_weighted_adapters([folders["small"], folders[name]], [0.5, 0.5])
    with pytest.raises(InputError, match=message):
        model().load_weighted_adapters([folders[name], folders[name]], [0.5, 0.5])


@pytest.mark.parametrize(
    ("names", "weights", "combination"),
    [
        (("small", "pissa", "equal"), (0.7, -0.4, 1.5), "cat"),
        (("small", "equal"), (0.7, -0.4), "linear"),
        (("small", "uneven"), (0.7, 0.5), "linear"),
        (("small", "uneven"), (0.7, 0.5), "cat"),
    ],
    ids=["cat", "linear", "linear of patterns", "cat of patterns"],
)
def test_weighted_sums_equal_those_of_peft(
    tiny_llama, folders, tmp_path, names, weights, combination
):
    model = load_pretrained(tiny_llama)
    model.load_weighted_adapters([folders[n] for n in names], weights, combination)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(
            torch_model(tiny_llama), folders[names[0]], adapter_name=names[0]
        )
        for name in names[1:]:
            theirs.load_adapter(folders[name], adapter_name=name)
        theirs.add_weighted_adapter(list(names), list(weights), "sum", combination_type=combination)
        theirs.set_adapter("sum")
    logits = np.asarray(model.logits(IDS))
    np.testing.assert_allclose(logits, torch_logits(theirs.eval(), IDS), rtol=1e-3, atol=3e-4)
    assert np.abs(logits - alone(tiny_llama, folders, "small").logits(IDS)).max() > 0.05
    model.save_adapter(tmp_path / "sum")
    again = load_pretrained(tiny_llama).load_adapter(tmp_path / "sum")
    np.testing.assert_allclose(again.logits(IDS), logits, atol=1e-5)


def test_weighted_sums_of_ia3_equal_those_of_peft(tiny_llama, base, tmp_path):
    places = [("k_proj", "down_proj"), ("k_proj", "v_proj")]
    for name, targets in zip("ab", places, strict=True):
        config = PeftConfig(method="ia3", targets=targets, layers=() if name == "a" else (0, 2))
        shaken(base.adapt(config), seed=ord(name)).save_adapter(tmp_path / name)
    model = load_pretrained(tiny_llama)
    model.load_weighted_adapters([tmp_path / "a", tmp_path / "b"], [0.7, 0.6])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(
            torch_model(tiny_llama), tmp_path / "a", adapter_name="a"
        )
        theirs.load_adapter(tmp_path / "b", adapter_name="b")
        theirs.base_model.add_weighted_adapter(["a", "b"], [0.7, 0.6], "sum")
        theirs.set_adapter("sum")
    logits = np.asarray(model.logits(IDS))
    np.testing.assert_allclose(logits, torch_logits(theirs.eval(), IDS), rtol=1e-3, atol=3e-4)
    assert np.abs(logits - base.logits(IDS)).max() > 0.05


def test_sums_that_cannot_be_made_are_refused(tiny_llama, folders):
    model = load_pretrained(tiny_llama)
    two = [folders["small"], folders["root"]]
    with pytest.raises(InputError, match=r"one rank, got \[2, 3\]; use 'cat'"):
        model.load_weighted_adapters(two, [1, 1], "linear")
    with pytest.raises(InputError, match="a weight per adapter: 2, got 1"):
        model.load_weighted_adapters(two, [1])
    with pytest.raises(InputError, match="expected weights that are numbers, got"):
        model.load_weighted_adapters(two, [float("nan"), 1])
    with pytest.raises(InputError, match="combination: expected one of cat, linear"):
        model.load_weighted_adapters(two, [1, 1], "svd")


def test_pissa_as_a_run_leaves_it_is_combined_and_taken_out(base, monkeypatch):
    """With its start still beside it, which folders do not have."""
    model = shaken(base.adapt(PeftConfig(method="lora", rank=2, alpha=4.0, init="pissa")))
    arrays = {name: model.params[name] for name in (TRAINED, FROZEN)}
    read = adapters.Read(model.structure.adapter, arrays, {})
    monkeypatch.setattr(adapting, "read", lambda *_, **__: read)
    expected, plain = np.asarray(model.logits(IDS)), np.asarray(base.logits(IDS))
    assert np.abs(expected - plain).max() > 0.05
    summed = dataclasses.replace(base).load_weighted_adapters(["w"], [1.0])
    np.testing.assert_allclose(summed.logits(IDS), expected, atol=3e-4)
    rows = dataclasses.replace(base).load_adapters({"w": "w"}).logits(IDS, adapters=["w", ""])
    np.testing.assert_allclose(rows, [expected[0], plain[1]], atol=3e-4)
    np.testing.assert_allclose(model.merged().unmerged("w").logits(IDS), plain, atol=5e-4)


@pytest.mark.parametrize("name", ["root", "pissa"])
def test_unmerging_gives_the_base_back(tiny_llama, base, folders, name):
    merged = alone(tiny_llama, folders, name).merged()
    assert float(jnp.abs(merged.logits(IDS) - base.logits(IDS)).max()) > 0.05
    np.testing.assert_allclose(
        merged.unmerged(folders[name]).logits(IDS), base.logits(IDS), atol=5e-4
    )


@pytest.mark.parametrize("method", ["vera", "ia3"])
def test_other_methods_are_taken_out_too(base, tmp_path, method):
    adapted = shaken(base.adapt(PeftConfig(method=method, layers=(0, 2))))
    adapted.save_adapter(tmp_path / "a")
    merged = adapted.merged()
    assert float(jnp.abs(merged.logits(IDS) - base.logits(IDS)).max()) > 0.05
    found = merged.unmerged(tmp_path / "a").logits(IDS)
    np.testing.assert_allclose(found, base.logits(IDS), atol=5e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "dora"}, "'dora' cannot be taken out"),
        ({"method": "lora", "modules_to_save": ("model.norm",)}, "model.norm was trained whole"),
        ({"method": "lora", "token_rows": ("a",)}, "embed_tokens was trained whole"),
    ],
    ids=str,
)
def test_what_the_merged_weights_do_not_tell_is_not_taken_out(base, tmp_path, fields, message):
    adapted = base.adapt(PeftConfig(**fields))
    adapted.save_adapter(tmp_path / "a")
    with pytest.raises(InputError, match=message):
        adapted.merged().unmerged(tmp_path / "a")


def test_what_was_scaled_by_nothing_is_not_taken_out(base, tmp_path):
    adapted = base.adapt(PeftConfig(method="ia3"))
    layers = adapted.params[TRAINED]["layers"]
    module = next(iter(layers))
    layers[module]["scale"] = layers[module]["scale"].at[0].set(0.0)
    adapted.save_adapter(tmp_path / "a")
    with pytest.raises(InputError, match=f"{module} was scaled by 0"):
        adapted.merged().unmerged(tmp_path / "a")


def test_one_folder_is_not_taken_for_a_list_of_them(base, tmp_path):
    with pytest.raises(InputError, match="paths: expected a list of folders"):
        base.load_weighted_adapters(str(tmp_path), [1.0])


def test_a_merge_that_changes_the_logits_is_refused(tiny_llama, base, tmp_path, monkeypatch):
    model = shaken(base.adapt(PeftConfig(method="lora", rank=2)))
    model.save_pretrained(tmp_path / "right", dtype="bfloat16")  # rounding is no such change
    right = type(model).merged
    wrong = lambda self: right(self).with_params(self.without_adapter().params)  # noqa: E731
    monkeypatch.setattr(type(model), "merged", wrong)
    with pytest.raises(InputError, match=r"changes logits by up to .*, more than the"):
        model.save_pretrained(tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


@pytest.mark.parametrize("method", ["lora", "dora", "vera", "ia3"])
def test_a_merge_that_is_wrong_by_a_tenth_of_the_adapter_is_refused(base, monkeypatch, method):
    model = shaken(base.adapt(PeftConfig(method=method)))
    model.checked_merge()
    right = type(model).merged

    def wrong(self):
        merged = right(self)
        further = lambda x, y: y + 0.1 * (y - x)  # noqa: E731
        return merged.with_params(jax.tree.map(further, base.params, merged.params))

    monkeypatch.setattr(type(model), "merged", wrong)
    with pytest.raises(InputError, match=r"changes logits by up to .*, more than the"):
        model.checked_merge()


def test_a_merge_that_forgets_trained_rows_is_refused(tmp_path, monkeypatch):
    """Of 30,000 tokens hardly one that a check draws has a row that is trained."""
    folder = save_variant(tmp_path / "m", tie_word_embeddings=False, vocab_size=30_000)
    base = load_pretrained(folder)
    model = base.adapt(PeftConfig(method="lora", rank=2, token_rows=("a", "b")))
    trained = model.params[TRAINED]
    moved = {**trained, "rows": jax.tree.map(lambda x: x + 0.5, trained["rows"])}
    model = model.with_params({**model.params, TRAINED: moved})
    right = type(model).merged

    def wrong(self):
        merged = right(self)
        return merged.with_params({**merged.params, "embedding": base.params["embedding"]})

    model.checked_merge()
    monkeypatch.setattr(type(model), "merged", wrong)
    with pytest.raises(InputError, match=r"changes logits by up to .*, more than the"):
        model.checked_merge()


def test_a_merge_whose_rounding_swallows_the_adapter_is_refused(base):
    """The base's weights are bfloat16 already, and the adapter less than their last place."""
    rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype(x.dtype), base.params)
    model = base.with_params(rounded).adapt(PeftConfig(method="lora", rank=2, alpha=2.0))
    model.checked_merge("bfloat16")  # at its start it changes nothing
    arrays = model.params["adapter"]
    for pair in arrays["layers"].values():
        pair["b"] = pair["b"] + 1e-4
    small = model.with_params({**model.params, "adapter": arrays})
    with pytest.raises(InputError, match=r"changes logits by .* would lose .*--dtype=float32"):
        small.checked_merge("bfloat16")
    small.checked_merge("float32")
