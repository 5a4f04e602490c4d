"""What transformers says of the folders that our tests load: the reference for parity."""

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conftest import save_tiny_llama
from transformers import AutoModelForCausalLM

# Names of tiny Llamas, and how they differ from the one of conftest (tied, 4 heads on 2).
VARIANTS: dict[str, dict[str, Any]] = {
    "tied grouped": {},
    "untied grouped": {"tie_word_embeddings": False},
    "tied, a key per head": {"num_key_value_heads": 4},
    "untied, one key": {"num_key_value_heads": 1, "tie_word_embeddings": False},
    "wide heads": {"head_dim": 16, "rms_norm_eps": 1e-2},
}


def save_variant(folder: Path, **changes: Any) -> Path:
    """A tiny Llama whose norms are not all ones, so that a norm left out is noticed."""
    save_tiny_llama(folder, **{"pad_token_id": None, **changes})
    model = torch_model(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def torch_model(folder: Path | str, **options: Any) -> Any:
    """The folder's model in torch, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()


def torch_logits(model: Any, ids: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """Logits of transformers, [B, S, V]."""
    with torch.no_grad():
        out = model(
            torch.tensor(ids, dtype=torch.long),
            attention_mask=None if mask is None else torch.tensor(mask, dtype=torch.long),
        )
        return out.logits.float().numpy()


def torch_greedy(
    model: Any, prompts: list[np.ndarray], max_new_tokens: int, stop_ids: tuple[int, ...]
) -> list[list[int]]:
    """What transformers.generate appends to each prompt, up to the first stop token.

    All prompts run in one batch, padded on the left.
    """
    size = max(map(len, prompts))
    ids = np.zeros((len(prompts), size), np.int64)
    mask = np.zeros((len(prompts), size), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, size - len(prompt) :] = prompt
        mask[row, size - len(prompt) :] = 1
    out = model.generate(
        torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False,
        max_new_tokens=max_new_tokens, eos_token_id=list(stop_ids), pad_token_id=0,
    )[:, size:].tolist()  # fmt: skip
    ends = [next((i for i, token in enumerate(row) if token in stop_ids), len(row)) for row in out]
    return [row[:end] for row, end in zip(out, ends, strict=True)]


def saved_by_peft(base: Path, config: Any, target: Path) -> Any:
    """A model with an adapter of peft that is not at its start, after peft saved that."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(torch_model(base), copy.deepcopy(config)).eval()
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(target)
    return model


def edited(folder: Path, target: Path, *, drop: tuple[str, ...] = (), **fields: Any) -> Path:
    """A copy of a model folder with other fields in its config.json."""
    shutil.copytree(folder, target)
    config = {**json.loads((target / "config.json").read_text()), **fields}
    kept = {name: value for name, value in config.items() if name not in drop}
    (target / "config.json").write_text(json.dumps(kept))
    return target
