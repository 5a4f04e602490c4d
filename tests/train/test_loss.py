import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from batches import packed_batch, random_examples, unpacked_batch
from conftest import make_tokenizer
from tokenized import tokens_of

from ift_jax.data.chat import Chat, Turns
from ift_jax.data.config import DataConfig
from ift_jax.data.examples import Example
from ift_jax.data.fitting import fit_examples
from ift_jax.data.loader import Batches, RowSource
from ift_jax.pretrained import load_pretrained
from ift_jax.train import loss
from ift_jax.train.loss import loss_sums, token_nll


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load_pretrained(tiny_llama)


def test_nll_and_hits_equal_torch():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(5, 7, 11)).astype(np.float32), rng.integers(0, 11, (5, 7))
    nll, correct = token_nll(jnp.asarray(logits), jnp.asarray(targets))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits).reshape(-1, 11), torch.tensor(targets).reshape(-1), reduction="none"
    )
    np.testing.assert_allclose(np.asarray(nll).reshape(-1), expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(np.asarray(correct), logits.argmax(-1) == targets)


def test_nll_of_bfloat16_logits_is_reduced_in_float32():
    logits = jnp.full((1, 4096), 3.0, jnp.bfloat16)
    nll, _ = token_nll(logits, jnp.array([7]))
    assert nll.dtype == jnp.float32
    np.testing.assert_allclose(nll, np.log(4096), rtol=1e-5)


def gradients(model, batch, prefix=None):
    return jax.grad(lambda p: loss_sums(model.structure, p, batch, prefix).nll)(model.params)


def assert_trees_close(a, b, rtol=1e-4):
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(a))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=rtol * scale)


def test_packed_rows_give_the_sums_and_gradients_of_unpacked_rows(model):
    examples = random_examples(20)
    packed, unpacked = packed_batch(examples), unpacked_batch(examples)
    assert packed.tokens.shape[0] < unpacked.tokens.shape[0]
    for a, b in zip(
        loss_sums(model.structure, model.params, packed),
        loss_sums(model.structure, model.params, unpacked),
        strict=True,
    ):
        np.testing.assert_allclose(float(a), float(b), rtol=1e-5)
    assert_trees_close(gradients(model, packed), gradients(model, unpacked))


def test_a_shared_prefix_beside_the_rows_changes_neither_sums_nor_gradients(model):
    examples = random_examples(20, prefix=13)
    prefix = examples.common_prefix()
    assert len(prefix) >= 13
    source = RowSource(examples, 40, seed=0, prefix=len(prefix))
    beside = Batches(source, source.rows_per_epoch, 1)[0]
    written_out = unpacked_batch(examples, 64)
    shared = jnp.asarray(prefix)
    a = loss_sums(model.structure, model.params, beside, shared)
    b = loss_sums(model.structure, model.params, written_out)
    np.testing.assert_allclose(float(a.nll), float(b.nll), rtol=1e-5)
    assert float(a.weight) == float(b.weight)
    assert float(a.tokens) < float(b.tokens)
    assert_trees_close(gradients(model, beside, shared), gradients(model, written_out))


LONG = "a long story " * 20
SYSTEM = {"role": "system", "content": "Be brief."}


def chat_examples():
    """Chats of one to three trained turns, some with a prompt that was cut."""

    def turns(*contents):
        roles = ("user", "assistant")
        said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents[:-1])]
        return Turns((SYSTEM, *said), contents[-1], earlier=tuple(range(2, len(contents), 2)))

    found = [
        turns("1+1?", "2"),
        turns("Hi.", "Hello, 漢!", "Again?", "Yes."),
        turns("a", "b", "c", "d", "e", "f"),
        turns(f"Sum up: {LONG}", "Long."),
        turns("Hi.", "Hello.", f"And {LONG}?", "No."),
    ]
    examples = [Example("t", "chat", one, (), "", "", "", "", "", "", "") for one in found]
    config = DataConfig(max_length=150, on_too_long="truncate")
    fitted = fit_examples(examples, config, Chat.of(make_tokenizer()), [])
    assert [one.truncated for one in fitted] == [False, False, False, True, True]
    return tokens_of([(one.tokens.ids, one.tokens.trained) for one in fitted])


def token_losses(model, source, prefix=None):
    """The loss of each target of each example, from all rows of an epoch, and the gradient.

    The derivative of the summed loss by the weight of a target is that target's loss.
    """
    batch = Batches(source, source.rows_per_epoch, 1)[0]

    def nll(weights, params):
        return loss_sums(model.structure, params, batch._replace(weights=weights), prefix).nll

    by_weight, by_params = jax.jit(jax.grad(nll, (0, 1)))(jnp.asarray(batch.weights), model.params)
    found = {}
    for row in range(source.rows_per_epoch):
        used = batch.weights[row] > 0
        segments = batch.segment_ids[row][batch.target_positions[row][used]]
        members = source.members(row)[segments - 1]
        for member in np.unique(members).tolist():
            found[member] = np.asarray(by_weight[row])[used][members == member]
    return found, by_params


def test_every_token_of_a_chat_has_the_loss_that_it_has_alone_in_torch(model, tiny_llama):
    """Packed, in a row of its own, or behind a shared prefix: chats of several turns, some cut."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(tiny_llama)
    examples = chat_examples()
    expected = {}
    for number in range(len(examples.lengths)):
        ids, trained = examples.get(number)
        ids = torch.tensor(ids.astype(np.int64))
        with torch.no_grad():
            logits = reference(ids[None]).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        expected[number] = nll.numpy()[trained[1:]]
    prefix = examples.common_prefix()
    assert len(prefix) > 20
    packed = RowSource(examples, 400, seed=0)
    alone = RowSource(examples, 150, seed=0, packing="none")
    behind = RowSource(examples, 300, seed=0, prefix=len(prefix))
    assert packed.rows_per_epoch == behind.rows_per_epoch == 2
    parts = []
    for source, shared in ((packed, None), (alone, None), (behind, jnp.asarray(prefix))):
        found, by_params = token_losses(model, source, shared)
        assert sorted(found) == sorted(expected)
        for number, losses in found.items():
            np.testing.assert_allclose(losses, expected[number], atol=2e-4)
        parts.append(by_params)
    assert_trees_close(parts[0], parts[1])
    assert_trees_close(parts[0], parts[2])


def test_chunks_of_targets_give_the_sums_of_one_piece(model, monkeypatch):
    batch = packed_batch(random_examples(20))
    whole = loss_sums(model.structure, model.params, batch)
    whole_gradients = gradients(model, batch)
    monkeypatch.setattr(loss, "CHUNK_TARGETS", 24)
    assert batch.targets.size > 24
    for a, b in zip(whole, loss_sums(model.structure, model.params, batch), strict=True):
        np.testing.assert_allclose(float(a), float(b), rtol=1e-5)
    assert_trees_close(whole_gradients, gradients(model, batch))


def test_only_weighted_positions_count(model):
    batch = packed_batch(random_examples(20))
    first = np.zeros_like(batch.weights)
    first[0, 0] = 1.0
    sums = loss_sums(model.structure, model.params, batch._replace(weights=first))
    assert float(sums.weight) == 1.0
    other = batch._replace(weights=first, targets=np.where(first > 0, batch.targets, 5))
    assert float(loss_sums(model.structure, model.params, other).nll) == float(sums.nll)


def test_logits_of_all_positions_never_exist(model):
    examples = random_examples(40)
    batch = packed_batch(examples, row_length=64)
    rows, length = batch.tokens.shape
    vocab = model.structure.config.vocab_size
    text = str(jax.make_jaxpr(lambda p: gradients(model.with_params(p), batch))(model.params))
    assert f"[{rows},{length},{vocab}]" not in text
    assert f"{batch.targets.shape[1]},{vocab}]" in text
