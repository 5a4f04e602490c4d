"""Rows of a few tokens trained beside an adapter: as peft trains them, and nothing else of V."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
from batches import packed_batch, random_examples
from torch_peft import IDS, assert_parity, lora_tensors, shaken, torch_peft
from torch_reference import save_variant

from ift_jax.errors import InputError
from ift_jax.peft.adapter import separate
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained
from ift_jax.train.step import Constants, gradient_sums

# Two tokens that the examples of `assert_parity` have.
CONFIG = PeftConfig(method="lora", rank=4, alpha=8.0, targets=("q_proj",), token_rows=("v", "N"))


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "model"
    return save_variant(path, tie_word_embeddings=request.param)


@pytest.fixture(scope="module")
def base(folder):
    return load_pretrained(folder)


def test_rows_are_trained_as_peft_trains_them(base, folder):
    model = base.adapt(CONFIG)
    np.testing.assert_allclose(model.logits(IDS), base.logits(IDS), atol=1e-4)
    model = shaken(model)
    ids = base.tokenizer("vN", add_special_tokens=False)["input_ids"]
    tables = (
        ["embed_tokens"] if base.structure.config.tie_embeddings else ["embed_tokens", "lm_head"]
    )
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj"],
        trainable_token_indices=dict.fromkeys(tables, ids),
    )  # fmt: skip
    pairs, end = lora_tensors(model), "token_adapter.trainable_tokens_delta.default"

    def convert(trained):
        names = {"embedding": f"base_model.model.model.embed_tokens.{end}",
                 "output": f"base_model.model.lm_head.{end}"}  # fmt: skip
        rows = {names[path]: np.asarray(value) for path, value in trained["rows"].items()}
        assert len(rows) == len(tables)
        return {**pairs(trained), **rows}

    assert_parity(model, torch_peft(folder, config), convert)


def test_merged_rows_are_those_of_the_weights(base):
    model = shaken(base.adapt(CONFIG))
    merged = model.merged()
    np.testing.assert_allclose(merged.logits(IDS), model.logits(IDS), atol=3e-4)
    changed = jnp.any(merged.params["embedding"] != base.params["embedding"], axis=1)
    ids = base.tokenizer("vN", add_special_tokens=False)["input_ids"]
    assert np.flatnonzero(changed).tolist() == sorted(ids)


def test_no_gradient_of_a_whole_table_is_computed(base):
    """No multiply has a result of a table's size, which training a tied table whole needs."""
    model = base.adapt(CONFIG)
    trained, frozen = separate(model.params)
    batch = packed_batch(random_examples(10))

    def multiplies(model, trained):
        gradient = lambda t: gradient_sums(model.structure, t, Constants(frozen), batch)[0]  # noqa: E731
        text = jax.jit(gradient).lower(trained).as_text()
        sizes = model.params["embedding"].shape
        ends = tuple(f"tensor<{a}x{b}xf32>" for a, b in (sizes, sizes[::-1]))
        return sum("dot_general" in line and line.endswith(ends) for line in text.splitlines())

    assert multiplies(model, trained) == 0
    everything = base.adapt(PeftConfig(method="selective", targets=("embed_tokens",)))
    whole, _ = separate(everything.params)
    assert multiplies(everything, whole) == base.structure.config.tie_embeddings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_rows": ("ab",)}, r"'ab' is the tokens \[\d+, \d+\]; expected one token"),
        ({"token_rows": ("a", "a")}, "'a' is the tokens"),
        ({"modules_to_save": ("embed_tokens",)}, r"trains all rows of model\.embed_tokens already"),
    ],
    ids=str,
)
def test_rows_that_cannot_be_trained_are_refused(base, fields, message):
    with pytest.raises(InputError, match=message):
        base.adapt(PeftConfig(**{"method": "lora", "token_rows": ("a",), **fields}))
