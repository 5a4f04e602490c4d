"""Prompt and prefix tuning: peft's logits, packing, generation, and starts from a text."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
from batches import packed_batch, random_examples, unpacked_batch
from torch_peft import IDS, assert_parity, shaken, torch_peft

from ift_jax.data.loader import Batches, RowSource
from ift_jax.evaluation.generation import Sampling, generate
from ift_jax.evaluation.scoring import Question, choice_log_likelihoods
from ift_jax.peft.adapter import separate
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained
from ift_jax.train.loss import loss_sums
from ift_jax.train.step import Constants, gradient_sums

COUNT = 5
METHODS = ["prompt", "prefix"]


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def models(base):
    configs = {m: PeftConfig(method=m, num_virtual_tokens=COUNT) for m in METHODS}
    return {m: shaken(base.adapt(config), size=0.3) for m, config in configs.items()}


def test_prompt_tuning_equals_peft(models, tiny_llama):
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=COUNT)
    name = "prompt_encoder.default.embedding.weight"
    assert_parity(
        models["prompt"], torch_peft(tiny_llama, config),
        lambda trained: {name: np.asarray(trained["virtual"]["embeddings"])}, cut=COUNT,
    )  # fmt: skip


def test_prefix_tuning_equals_peft(models, tiny_llama):
    config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=COUNT)
    name = "prompt_encoder.default.embedding.weight"

    def convert(trained):
        both = np.stack([trained["virtual"]["k"], trained["virtual"]["v"]], axis=1)
        return {name: both.transpose(2, 0, 1, 3, 4).reshape(COUNT, -1)}

    assert_parity(models["prefix"], torch_peft(tiny_llama, config), convert)


@pytest.mark.parametrize("method", METHODS)
def test_logits_have_one_position_a_token(models, base, method):
    logits = models[method].logits(IDS)
    assert logits.shape == base.logits(IDS).shape
    assert float(jnp.abs(logits - base.logits(IDS)).max()) > 0.1
    padded = np.pad(IDS, [(0, 0), (3, 0)])
    mask = (np.arange(padded.shape[1]) >= 3).astype(int)[None].repeat(2, 0)
    np.testing.assert_allclose(models[method].logits(padded, mask)[:, 3:], logits, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_packed_segment_sees_the_virtual_tokens(models, method):
    """Packed rows, single rows, and rows whose common beginning stands beside give one gradient."""
    model, examples = models[method], random_examples(12, prefix=16)
    trained, frozen = separate(model.params)

    @jax.jit
    def gradient(batch, prefix):
        return gradient_sums(model.structure, trained, Constants(frozen), batch, 1, prefix)[0]

    none = jnp.zeros(0, jnp.int32)
    single = gradient(unpacked_batch(examples), none)
    packed = gradient(packed_batch(examples, 80), none)
    without = Batches(RowSource(examples, 48, seed=0, prefix=16), 8, 1)[0]
    beside = gradient(without, jnp.asarray(examples.common_prefix()[:16]))
    for x, y, z in zip(*map(jax.tree.leaves, (single, packed, beside)), strict=True):
        scale = float(jnp.abs(x).max())
        np.testing.assert_allclose(y, x, rtol=1e-3, atol=1e-4 * scale)
        np.testing.assert_allclose(z, x, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.parametrize("method", METHODS)
def test_generation_and_scoring_see_the_virtual_tokens(models, method):
    model = models[method]
    generator = np.random.default_rng(1)
    beginning = generator.integers(2, 258, 20).astype(np.int32)
    prompts = [
        np.concatenate([beginning, generator.integers(2, 258, n).astype(np.int32)]) for n in (3, 7)
    ]
    new = generate(model.structure, model.params, prompts, Sampling(max_new_tokens=4), stop_ids=[1])
    for prompt, found in zip(prompts, new, strict=True):
        ids = list(prompt)
        for token in found:
            assert token == int(jnp.argmax(model.logits(np.array([ids]))[0, -1]))
            ids.append(int(token))
    questions = [Question(p, (p[:3], p[4:6])) for p in prompts]
    scores = choice_log_likelihoods(model.structure, model.params, questions)
    for question, found in zip(questions, scores, strict=True):
        for choice, score in zip(question.choices, found, strict=True):
            ids = np.concatenate([question.prompt, choice])
            logs = jax.nn.log_softmax(model.logits(ids[None])[0])
            rows = np.arange(len(question.prompt) - 1, len(ids) - 1)
            np.testing.assert_allclose(score, float(logs[rows, choice].sum()), atol=1e-3)


def test_a_text_is_the_start(base):
    """Both methods then compute what the base computes behind that text."""
    text = "abcde"
    ids = np.array(base.tokenizer(text)["input_ids"])
    behind = base.logits(np.concatenate([np.stack([ids, ids]), IDS], axis=1))[:, len(ids) :]
    for method in METHODS:
        config = PeftConfig(method=method, num_virtual_tokens=5, prompt_text=text)
        np.testing.assert_allclose(base.adapt(config).logits(IDS), behind, atol=1e-4)
    long = base.adapt(PeftConfig(method="prompt", num_virtual_tokens=7, prompt_text=text))
    embeddings = long.params["adapter"]["virtual"]["embeddings"]
    np.testing.assert_array_equal(embeddings[5:], embeddings[:2])


def test_a_prompt_starts_at_rows_of_the_embedding(base, tiny_llama):
    """Random ones, or those of a text, which peft repeats and cuts in the same way."""
    table = {row.tobytes() for row in np.asarray(base.params["embedding"])}
    config = PeftConfig(method="prompt", num_virtual_tokens=COUNT)
    starts = [
        np.asarray(base.adapt(config, seed=seed).params["adapter"]["virtual"]["embeddings"])
        for seed in (0, 1)
    ]
    for start in starts:
        assert {row.tobytes() for row in start} <= table
    assert not np.array_equal(*starts)
    for count in (3, 7):
        theirs = torch_peft(tiny_llama, peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=count, prompt_tuning_init="TEXT",
            prompt_tuning_init_text="abcde", tokenizer_name_or_path=str(tiny_llama),
        ))  # fmt: skip
        text = PeftConfig(method="prompt", num_virtual_tokens=count, prompt_text="abcde")
        np.testing.assert_array_equal(
            base.adapt(text).params["adapter"]["virtual"]["embeddings"],
            theirs.prompt_encoder["default"].embedding.weight.detach().numpy(),
        )


def test_virtual_positions_take_room_in_the_context(base, models):
    limit = base.structure.context_length
    assert models["prompt"].structure.context_length == limit - COUNT
    assert base.adapt(PeftConfig(method="ia3")).structure.context_length == limit


def test_remat_changes_no_gradient_of_a_prompt(models, tiny_llama):
    batch = packed_batch(random_examples(12))
    trained, frozen = separate(models["prompt"].params)
    gradients = []
    for remat in ("none", "full"):
        structure = models["prompt"].structure
        other = load_pretrained(tiny_llama, remat=remat).structure._replace(
            adapter=structure.adapter
        )
        loss = lambda t, s=other: loss_sums(s, {**frozen, "adapter": t}, batch).nll  # noqa: E731
        gradients.append(jax.grad(loss)(trained))
    for x, y in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)
