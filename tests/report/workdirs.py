"""Workdirs and a study as `ift train` and `ift study` leave them, made by hand, small and whole.

Every text that comes from users holds markup, so that a test sees what is not escaped.
"""

import json
import math
import random
from pathlib import Path

from ift_jax.config import default_config, task_config

EVIL = "<script>document.title = 'broken'</script>"


def dump(value) -> str:
    return json.dumps(value, default=lambda config: config.to_dict())


def lines(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def row(model, task, metric, value, *, shots=0, count=200, split="test", **more):
    half = 0 if model == "random" else 1.96 * math.sqrt(abs(value * (1 - value)) / count)
    return {
        "model": model, "task": task, "split": split, "shots": shots, "metric": metric,
        "value": value, "count": count, "low": value - half, "high": value + half, **more,
    }  # fmt: skip


def write(folder: Path, files) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def config(**changes):
    made = default_config()
    made.model.path = "SmolLM2-135M-Instruct.Q4_1.gguf"
    made.data.tasks = (task_config(name="rating", source="embedded:reviews"),)
    for name, value in changes.items():
        made.update_from_flattened_dict({name.replace("__", "."): value})
    return dump(made)


def metrics(num_steps=120, floor=0.9, seed=0, peak=5e-5):
    noise = random.Random(seed)
    for step in range(1, num_steps + 1):
        loss = floor + 1.6 * math.exp(-step / 25) + noise.gauss(0, 0.12)
        yield {
            "step": step, "loss": loss, "token_accuracy": 1 - loss / 3, "tokens": 1120.0,
            "trained_tokens": 66.0, "learning_rate": peak * min(step / 10, 1 - step / 130),
            "gradient_norm": 3 * math.exp(-step / 50) + 0.5, "tokens_per_s": 400.0 + step % 7,
        }  # fmt: skip
        if step % 30 == 0:
            clean = floor + 0.1 + 1.6 * math.exp(-step / 25)
            yield {
                "step": step, "validation_loss": clean, "validation_token_accuracy": 1 - clean / 3,
                "validation/rating/accuracy": 0.62 - clean / 8,
            }  # fmt: skip


def results(tuned=0.6):
    costs = {"prompt_tokens": 119.2, "shots_given": 0.0}
    rows = []
    for metric in ("accuracy", "exact_match"):
        rows += [
            row("majority", "rating", metric, 0.2),
            *([row("random", "rating", metric, 0.2)] if metric == "accuracy" else []),
            row("base", "rating", metric, 0.18, **costs),
            row("base", "rating", metric, 0.2, shots=5, prompt_tokens=597.0, shots_given=4.5),
            row("tuned", "rating", metric, tuned, **costs),
        ]
    for name, value in (("Predict the rating", 0.6), (f"Say {EVIL}", 0.5)):
        rows.append(row("tuned", "rating", "accuracy", value, count=100, template=name))
    for name in "12345":
        rows.append(row("tuned", "rating", "accuracy", 0.5, count=40, **{"class": name}))
    return {"rows": rows, "chosen": {"step": 90, "by": "accuracy", "value": 0.55}}


CARD = {
    "max_length": 192,
    "tasks": {
        "rating": {
            "config": {}, "records": 4800, "rejected": {"broken_json": 2, "special_token": 1},
            "duplicates": 3, "near_duplicates": 0, "in_other_split": 5, "contaminated": 0,
            "truncated": 7, "missing_shots": {},
            "splits": {
                split: {
                    "records": size, "examples": size, "tokens": 120 * size,
                    "trained_tokens": 2 * size, "longest": 190,
                    "templates": {"Predict the rating": size}, "shots": {"0": size},
                    "answers": {str(n): size // 5 for n in range(1, 6)}, "content_hash": "ab",
                }
                for split, size in (("train", 800), ("validation", 60), ("test", 200))
            },
        }
    },
    "mixture": {
        "examples": 800,
        "tasks": {
            "rating": {
                "examples": 800, "drawn": 800, "epochs": 1.0, "share": 1.0, "tokens": 96000,
                "trained_tokens": 1600, "share_of_tokens": 1.0, "share_of_trained_tokens": 1.0,
            }
        },
    },
}  # fmt: skip

REJECTED = [
    {"task": "rating", "origin": "reviews.jsonl:12", "reason": "broken_json", "detail": EVIL},
    {"task": "rating", "origin": "reviews.jsonl:80", "reason": "broken_json", "detail": "line 1"},
    {
        "task": "rating", "origin": "reviews.jsonl:97", "reason": "special_token",
        "detail": "the text holds the special token '<|im_end|>'",
    },
]  # fmt: skip


def preview():
    prompt = [
        "<|im_start|>",
        "user",
        "\n",
        "How",
        " many",
        " stars",
        "?",
        " ",
        EVIL,
        " It",
        " shines",
    ]
    for number, answer in enumerate("51"):
        tokens = [*prompt, ".", "<|im_end|>", "\n", "<|im_start|>", "assistant", "\n"]
        yield {
            "task": "rating", "template": "Predict the rating",
            "origin": f"embedded:reviews:{number}",
            "tokens": [
                *({"text": text, "trained": False} for text in tokens),
                {"text": answer, "trained": True}, {"text": "<|im_end|>", "trained": True},
            ],
        }  # fmt: skip


def samples(word="good"):
    for step in (0, 30, 60, 90, 120):
        for number in range(2):
            yield {
                "step": step, "task": "rating", "template": "Predict the rating",
                "prompt": f"How many stars does this review give? {EVIL} Lamp {number} shines.",
                "reference": str(5 - number),
                "completion": "" if step == 30 else f"{word} {step} {EVIL}",
            }  # fmt: skip


def training_run(folder: Path, *, tuned=0.6, floor=0.9, **changes) -> Path:
    """A finished workdir of `ift train`."""
    return write(
        folder,
        {
            "config.json": config(**changes),
            "results.json": dump(results(tuned)),
            "metrics.jsonl": lines(
                metrics(
                    floor=floor, seed=len(folder.name), peak=changes.get("optimizer__peak_lr", 5e-5)
                )
            ),
            "samples.jsonl": lines(samples(folder.name)),
            "data/card.json": dump(CARD),
            "data/rejected.jsonl": lines(REJECTED),
            "data/preview.jsonl": lines(preview()),
        },
    )


PROBES = {"names": "entity_f1", "topic": "accuracy", "nli": "accuracy", "summary": "rougeL"}
METHODS = {"single": 0.15, "multi": 0.55, "replay": 0.62, "l2_sp": 0.5}


def study_rows():
    sizes = (50, 100, 250, 500, 1000)
    yield row("majority", "rating", "accuracy", 0.2)
    yield row("random", "rating", "accuracy", 0.2)
    for shots, value in ((0, 0.18), (1, 0.22), (5, 0.27)):
        yield row("base", "rating", "accuracy", value, shots=shots,
                  prompt_tokens=119 + 96 * shots, shots_given=float(shots))  # fmt: skip
    for number, method in enumerate(METHODS):
        for seed in range(3):
            for size in sizes:
                value = 0.2 + 0.4 * (1 - math.exp(-size / 300)) - 0.02 * number + 0.01 * seed
                yield row(method, "rating", "accuracy", value, stage=2, seed=seed, train_size=size)
    yield row("lora", "rating", "accuracy", 0.5, stage=2, seed=0)
    for task, metric in PROBES.items():
        yield row("majority", task, metric, 0.1)
        for shots, value in ((0, 0.12), (1, 0.2), (5, 0.3)):
            yield row("base", task, metric, value, shots=shots)
        for method, kept in METHODS.items():
            yield row(method, task, metric, 0.7, stage=1, seed=0, train_size=1000)
            yield row(method, task, metric, kept, stage=2, seed=0, train_size=1000)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        more = {"interpolation": share, "stage": 2, "seed": 0, "train_size": 1000}
        yield row("single", "rating", "accuracy", 0.2 + 0.35 * share, **more)
        for task, metric in PROBES.items():
            yield row("single", task, metric, 0.7 - 0.5 * share**2, **more)


def matrix(method, kept):
    tasks, metric_names = ["rating", *PROBES], ["accuracy", *PROBES.values()]
    values = [[0.18, 0.12, 0.3, 0.35, 0.2], [0.2, 0.7, 0.8, 0.6, 0.35], [0.58, *[kept] * 4]]
    return {
        "model": method, "seed": 0, "stages": ["base", "probes", "rating"], "tasks": tasks,
        "metrics": metric_names, "values": values,
        "low": [[v - 0.05 for v in r] for r in values],
        "high": [[v + 0.05 for v in r] for r in values],
        "backward_transfer": {"value": kept - 0.61, "low": kept - 0.65, "high": kept - 0.57},
        "forgetting": [
            {"value": best - last, "low": best - last - 0.06, "high": best - last + 0.06}
            for best, last in zip([0.2, 0.7, 0.8, 0.6, 0.35], values[2], strict=True)
        ],
        "average_forgetting": {"value": 0.61 - kept, "low": 0.57 - kept, "high": 0.65 - kept},
    }  # fmt: skip


def study(folder: Path) -> Path:
    """A study's folder with one run whose curves are shown."""
    training_run(folder / "runs" / "single")
    changes = [
        {
            "model": method, "task": task, "metric": metric, "before": "probes", "after": "rating",
            "value": kept - 0.7, "low": kept - 0.76, "high": kept - 0.64, "count": 200, "p": 1e-4,
            "counted": task != "summary",
        }
        for method, kept in METHODS.items()
        for task, metric in PROBES.items()
    ]  # fmt: skip
    found = {
        "rows": list(study_rows()),
        "target": "rating",
        "retained": ["names", "topic", "nli"],
        "runs": ["runs/single"],
        "matrices": [matrix(method, kept) for method, kept in METHODS.items()],
        "changes": changes,
        "findings": [
            {"question": "Does prompting help?", "answer": f"At 5 shots it scores 27. {EVIL}"},
            {"question": "What was forgotten?", "answer": "names, topic and nli."},
        ],
        "probes": [
            {
                "task": task,
                "metric": metric,
                "before": "probes",
                "counted": task != "summary",
                "why": "70 [64–76] against 10 [6–14]",
            }
            for task, metric in PROBES.items()
        ],
        "costs": [
            {
                "model": "single",
                "seed": 0,
                "train_size": 50,
                "steps": 12,
                "tokens": 6000,
                "trained_tokens": 100,
                "training_s": 93.0,
                "scoring_s": 41.5,
            }
        ],
        "drift": [
            {"model": method, "measure": measure, "value": value}
            for method, value in (("single", 0.021), ("l2_sp", 0.008))
            for measure in (
                "distance of the weights, relative",
                "distance of layers.attention_norm_and_more, relative",
                "KL on neutral text, nats",
            )
        ],
    }
    return write(folder, {"config.json": config(), "results.json": dump(found)})
