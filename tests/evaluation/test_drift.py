"""Distance of the weights and KL on neutral text, against NumPy and torch."""

import jax
import numpy as np
import pytest
import torch
from torch_reference import torch_model

from ift_jax.data.neutral import NeutralConfig, neutral_texts
from ift_jax.evaluation.drift import drift_entries, drift_values, kl_from_base, weight_drift
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_pretrained
from ift_jax.report.inputs import DRIFT, check

TEXTS = [f"{'some ' * (n % 4)}neutral text, number {n}" for n in range(11)]


@pytest.fixture(scope="module")
def base(tiny_llama):
    return load_pretrained(tiny_llama)


@pytest.fixture(scope="module")
def tuned(base):
    leaves, tree = jax.tree.flatten(base.params)
    rng = np.random.default_rng(0)
    moved = [x + 0.05 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return base.with_params(jax.tree.unflatten(tree, moved))


@pytest.fixture(scope="module")
def texts(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("neutral") / "a.txt"
    path.write_text("".join(f"{text}\n" for text in TEXTS))
    return neutral_texts(NeutralConfig(source=str(path), num_texts=11), base.chat)


def test_weight_drift_is_relative_by_array_and_in_all(base, tuned):
    found = weight_drift(base.params, tuned.params)
    norm = np.linalg.norm
    pairs = list(zip(jax.tree.leaves(base.params), jax.tree.leaves(tuned.params), strict=True))
    whole = [np.concatenate([np.ravel(p[i]) for p in pairs]) for i in (0, 1)]
    assert found["all"] == pytest.approx(norm(whole[1] - whole[0]) / norm(whole[0]), rel=1e-5)
    before, after = (np.asarray(m.params["layers"]["mlp"]["down"]) for m in (base, tuned))
    expected = norm(after - before) / norm(before)
    assert found["layers.mlp.down"] == pytest.approx(expected, rel=1e-5)
    assert set(weight_drift(base.params, base.params).values()) == {0.0}


def test_kl_on_neutral_text_is_that_of_torch(base, tuned, texts, tiny_llama, tmp_path):
    tuned.save_pretrained(tmp_path / "tuned", dtype="float32")
    models = torch_model(tiny_llama), torch_model(tmp_path / "tuned")
    total = count = 0
    for text in TEXTS:
        ids = torch.tensor([base.tokenizer(text).input_ids])
        with torch.no_grad():
            before, after = (torch.log_softmax(m(ids).logits[0, :-1], -1) for m in models)
        total += float((before.exp() * (before - after)).sum())
        count += ids.shape[1] - 1
    found = kl_from_base(base, tuned, texts)
    assert found.value == pytest.approx(total / count, rel=1e-4)
    assert found.low < found.value < found.high
    assert kl_from_base(base, base, texts) == pytest.approx((0, 0, 0), abs=1e-6)


def test_an_adapter_at_its_start_has_not_drifted(base, texts):
    adapted = base.adapt(PeftConfig(method="lora", rank=2))
    values = drift_values(base, adapted, texts, None)
    assert values == pytest.approx({"weight_drift": 0.0, "kl_from_base": 0.0}, abs=1e-6)


@pytest.mark.parametrize("method", ["prompt", "bottleneck"])
def test_an_adapter_that_no_weights_express_drifts_on_text_alone(base, texts, method):
    adapted = base.adapt(PeftConfig(method=method))
    assert set(drift_values(base, adapted, texts, None)) == {"kl_from_base"}
    [entry] = drift_entries("tuned", base, adapted, texts, None)
    assert entry["measure"] == "KL divergence on neutral text, nats/token"
    assert not drift_entries("tuned", base, adapted, None, None)


def test_entries_are_what_a_report_reads(base, tuned, texts):
    entries = drift_entries("tuned", base, tuned, texts, None)
    for entry in entries:
        check(entry, DRIFT, "drift")
    assert entries[0]["measure"] == "KL divergence on neutral text, nats/token"
    assert entries[0]["low"] < entries[0]["value"] < entries[0]["high"]
    assert entries[1]["measure"] == "relative L2 distance of all weights"
    assert "relative L2 distance of embedding" in {entry["measure"] for entry in entries}
    assert len(drift_entries("tuned", base, tuned, None, None)) == len(entries) - 1
