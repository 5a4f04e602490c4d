"""load_pretrained and LanguageModel: the same numbers as transformers, and errors for people."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch_reference import VARIANTS, save_variant, torch_greedy, torch_logits, torch_model

import ift_jax
from ift_jax.errors import InputError
from ift_jax.evaluation.generation import generate
from ift_jax.evaluation.sampling import Sampling
from ift_jax.hf.families import LLAMA, weight_rows
from ift_jax.hf.weights import write_tensors
from ift_jax.model_config import ModelConfig, is_workdir, locate
from ift_jax.pretrained import load_chat, load_pretrained

TEXT = "a table, 27 chairs and: the café's long (long) menu; who is it? Nobody knows!"
PROMPTS = [TEXT[i % 5 : i % 5 + 1 + 3 * i] for i in range(20)]


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request, tmp_path_factory):
    """A folder of each variant, loaded here and by transformers."""
    path = tmp_path_factory.mktemp("variant") / "model"
    save_variant(path, **VARIANTS[request.param])
    return load_pretrained(path), torch_model(path)


@pytest.fixture(scope="module")
def model(tiny_llama):
    return load_pretrained(tiny_llama)


def random_ids(*shape):
    return np.random.default_rng(sum(shape)).integers(0, 258, shape)


def test_logits_equal_those_of_transformers(pair):
    ours, theirs = pair
    for ids in (random_ids(2, 9), random_ids(1, 200)):
        logits = ours.logits(ids)
        assert logits.dtype == jnp.float32
        np.testing.assert_allclose(logits, torch_logits(theirs, ids), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_is_masked_on_either_side(pair, side):
    ours, theirs = pair
    ids, mask = random_ids(3, 9), np.zeros((3, 9), np.int64)
    for row, length in enumerate((9, 4, 1)):
        mask[row, :length] = 1
    mask = mask if side == "right" else mask[:, ::-1].copy()
    real = mask > 0
    logits = np.asarray(ours.logits(ids, mask))
    np.testing.assert_allclose(
        logits[real], torch_logits(theirs, ids, mask)[real], atol=1e-4, rtol=1e-4
    )
    other = np.where(real, ids, 5)  # what stands in the padding does not matter
    np.testing.assert_array_equal(np.asarray(ours.logits(other, mask))[real], logits[real])
    assert np.isfinite(logits).all()


def test_gradients_equal_those_of_torch_tensor_by_tensor(pair):
    ours, theirs = pair
    ids, targets = random_ids(2, 9), random_ids(9, 2).T.copy()

    @jax.jit
    def gradient(params):
        def loss(params):
            module = ours.structure.merge(params)
            positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
            hidden = module.hidden_states(jnp.asarray(ids), positions, jnp.ones((2, 9), jnp.int32))
            scores = jax.nn.log_softmax(module.logits(hidden))
            return -jnp.mean(jnp.take_along_axis(scores, jnp.asarray(targets)[..., None], -1))

        return jax.grad(loss)(params)

    rows = weight_rows(LLAMA, ours.structure.config)
    found = dict(write_tensors(rows, gradient(ours.params), np.float32))
    theirs.zero_grad()
    logits = theirs(torch.tensor(ids)).logits
    torch.nn.functional.cross_entropy(
        logits.reshape(-1, 258), torch.tensor(targets).reshape(-1)
    ).backward()
    expected = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = float(np.abs(value).max())
        assert scale > 0, name
        np.testing.assert_allclose(found[name], value, atol=1e-4 * scale, rtol=1e-3, err_msg=name)


def test_greedy_generation_equals_that_of_transformers(pair):
    ours, theirs = pair
    prompts = [ours.chat.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS]
    assert len({len(p) for p in prompts}) > 8
    expected = torch_greedy(theirs, prompts, 12, ours.stop_ids)
    found = generate(
        ours.structure, ours.params, prompts, Sampling(max_new_tokens=12), stop_ids=ours.stop_ids
    )
    assert [list(row) for row in found] == expected


def test_generate_and_reply_give_the_text_of_the_generated_tokens(model):
    sampling = Sampling(max_new_tokens=8, temperature=0.7, seed=3)
    ids = [model.chat.prompt_ids([{"role": "user", "content": text}]) for text in PROMPTS[:3]]
    tokens = generate(model.structure, model.params, ids, sampling, stop_ids=model.stop_ids)
    options = {"max_new_tokens": 8, "temperature": 0.7, "seed": 3}
    texts = model.generate(PROMPTS[:3], **options)
    assert texts == [model.tokenizer.decode(t, skip_special_tokens=True) for t in tokens]
    assert model.reply([{"role": "user", "content": PROMPTS[0]}], **options) == texts[0]
    assert model.generate(PROMPTS[:3], **{**options, "seed": 4}) != texts


def test_generation_stops_at_the_end_of_turn_and_at_every_end_of_the_config(model):
    import dataclasses

    assert model.stop_ids == (1,)
    for ends, expected in ((7, (1, 7)), ([9, 7], (1, 7, 9)), (None, (1,))):
        changed = dataclasses.replace(model, generation_config={"eos_token_id": ends})
        assert changed.stop_ids == expected


def test_prompt_that_leaves_no_room_is_refused(model):
    with pytest.raises(InputError, match=r"prompt 1: .* exceed the context of 1024"):
        model.generate(["a", "a" * 1000], max_new_tokens=20)


@pytest.mark.parametrize("mask_dtype", [bool, np.int64, np.float32, np.uint8])
def test_masks_of_any_numeric_type_are_taken(model, mask_dtype):
    ids = random_ids(2, 5)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_array_equal(
        model.logits(ids, mask.astype(mask_dtype)), model.logits(ids, mask)
    )


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (np.zeros(3, int), None, r"input_ids: expected integers \[B, S\], got int64 \(3,\)"),
        (np.zeros((1, 3)), None, r"input_ids: expected integers \[B, S\], got float64"),
        ([[0, 258]], None, r"input_ids: expected 0\.\.257, got 0\.\.258"),
        ([[-1, 2]], None, r"input_ids: expected 0\.\.257, got -1\.\.2"),
        ([[1, 2]], [[1]], r"attention_mask: expected shape \(1, 2\), got \(1, 1\)"),
        ([[1, 2]], [[1, 2]], "attention_mask: expected 1 on tokens and 0 on padding"),
        ([[1, 2]], [[1, 0.5]], "attention_mask: expected 1 on tokens and 0 on padding"),
        ([[1] * 4] * 2, [[0, 1, 1, 0], [1, 0, 1, 1]], "mask: row 1 has padding between its tokens"),
    ],
)
def test_ids_and_masks_that_make_no_sense_are_refused(model, ids, mask, message):
    with pytest.raises(InputError, match=message):
        model.logits(ids, mask)


def test_a_model_prints_as_one_short_line(model):
    assert repr(model) == "LanguageModel(llama, 31,520 parameters)"


def test_other_weights_keep_everything_else(model):
    halved = model.with_params(jax.tree.map(lambda x: x / 2, model.params))
    assert halved.structure == model.structure
    assert halved.tokenizer is model.tokenizer
    assert np.abs(halved.logits(random_ids(1, 4)) - model.logits(random_ids(1, 4))).max() > 1e-3


def test_the_package_offers_load_pretrained():
    assert ift_jax.load_pretrained is load_pretrained


@pytest.mark.parametrize("name", ["./nothing", "nothing", "a/b/c", "/nothing/at/all", "x.gguf"])
def test_a_model_that_is_not_there_is_named(name):
    with pytest.raises(InputError, match="no such file or folder"):
        load_pretrained(name)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "model.bin").write_text("x")
    with pytest.raises(InputError, match=r"expected a folder or a \.gguf file"):
        load_pretrained(tmp_path / "model.bin")


def test_a_hub_id_that_cannot_be_had_is_named():
    with pytest.raises(InputError, match="nobody/nothing: no such folder, and not available"):
        locate("nobody/nothing")


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json: no such file"):
        load_pretrained(tmp_path)


def test_a_workdir_is_told_from_a_model_folder(tiny_llama, tmp_path):
    assert not is_workdir(tiny_llama)
    assert not is_workdir(tmp_path)
    (tmp_path / "config.json").write_text('{"model": {}, "train": {}}')
    assert is_workdir(tmp_path)


def test_the_chat_format_can_be_had_without_the_weights(tiny_llama, model, tmp_path):
    chat = load_chat(tiny_llama)
    turns = [{"role": "user", "content": "hello"}]
    np.testing.assert_array_equal(chat.prompt_ids(turns), model.chat.prompt_ids(turns))
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        load_chat(tmp_path)


@pytest.mark.parametrize("field", ["dtype", "param_dtype", "remat"])
def test_the_model_section_refuses_values_that_it_does_not_know(field):
    with pytest.raises(InputError, match=rf"config\.model\.{field}: expected one of .*, got 'x'"):
        ModelConfig(**{field: "x"})
