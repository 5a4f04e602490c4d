"""The study on real data: does prompting help, how many examples suffice, what is forgotten?

    IFT_JAX_DATA=data ift study --config=study --workdir=runs/study
    IFT_JAX_DATA=data ift study --config=study:peft --workdir=runs/study
    IFT_JAX_DATA=data ift study --config=study:remedies --workdir=runs/study
    IFT_JAX_DATA=data ift study --config=study:full --workdir=runs/study
    ift report --workdirs=runs/study --output=study.html

SmolLM2-135M-Instruct learns to predict the rating of Amazon reviews. So that it has something to
lose, it first learns eight other tasks (stage 1): questions about names, names in posts, topics,
inference, intents, kinds of questions, translation, summaries. From there it learns the rating
alone (stage 2), plainly, and with each remedy: replayed probes, all tasks at once, the weights
half-way back to stage 1, and LoRA. The learning curve starts from the model as it is, as prompting
does.

The sets are those of configs/data_sets.py. On two CPU cores a run takes some ten minutes with its
scores, so the first command, with one seed and a curve over 50 to 1,000 examples, takes one and a
half to two hours. Each further command goes on from the one before, in the same folder, and adds to
it: DoRA, IA3 and QLoRA beside LoRA; KL and L2-SP to stage 1; three seeds, 4,000 examples and more
points on the way back to stage 1, which is a night's work (with --config.study.seeds=0 the first
seed of it alone). Names choose some runs of the last, or sizes of its curve, with one seed:

    IFT_JAX_DATA=data ift study --config=study:stage1,single,lora,dora --workdir=runs/adapters
    IFT_JAX_DATA=data ift study --config=study:curve-2000,curve-4000 --workdir=runs/curve

A seed decides the order of examples and what an adapter starts from; examples
and items are the same for all. configs/methods.py compares all PEFT methods on fewer tasks.

Items: 250 ratings (a score of 50 % has an interval of 44 to 56), 100 of each probe (40 to 60), but
60 translations and 30 summaries, whose scores are not shares of items. Differences between models
are paired by item, so their intervals are narrower.
"""

import os
from pathlib import Path

from ift_jax.config import default_config, task_config
from ift_jax.errors import InputError

_FOLDER = os.environ.get("IFT_JAX_DATA") or "../shared/data"
_PROBES = (
    "names", "entities", "topic", "nli", "intent", "question_type", "translation", "summary",
)  # fmt: skip


def _task(name, source, **fields):
    if "test_source" in fields:
        fields["test_source"] = f"{_FOLDER}/{fields['test_source']}"
    source = tuple(f"{_FOLDER}/{one}" for one in ([source] if isinstance(source, str) else source))
    sizes = {"train_size": 100, "validation_size": 20, "test_size": 100}
    return task_config(name=name, source=source, **{**sizes, **fields})


def _tasks():
    exact = {"metrics": ("exact_match",)}
    return (
        _task(
            "rating",
            "amazon_reviews/*.jsonl.gz",
            templates="reviews",
            template_names=("Predict the rating",),
            split_by=("review_body",),
            balance_by="star_rating",
            balance_fill=True,  # only 4,000 reviews are more than 2 stars have
            validation_fraction=0.05,
            train_size=1000,
            validation_size=60,
            test_size=250,
            metrics=("accuracy",),
        ),
        task_config(
            name="names",
            source="embedded:names",
            templates="names",
            template_names=("Question about a name",),
            split_by=("text",),
            train_size=100,
            validation_size=20,
            test_size=100,
            metrics=("exact_match", "accuracy"),
        ),
        _task(
            "entities",
            "wnut17/wnut17train.conll.gz",
            test_source="wnut17/emerging.test.annotated*",
            file_format="conll",
            templates="ner",
            template_names=("Names in a text",),
            split_by=("tokens",),
            metrics=("entity_f1",),
        ),
        _task(
            "topic",
            "ag_news/train.json.gz",
            templates="topic",
            template_names=("Topic of a news item",),
            split_by=("sentence",),
            balance_by="label",
            **exact,
        ),
        _task(
            "nli",
            "rte/train.json.gz",
            test_source="rte/dev.json",
            templates="nli",
            template_names=("Does sentence 2 follow",),
            split_by=("sentence",),
            **exact,
        ),
        _task(
            "intent",
            "banking77/train.csv.gz",
            test_source="banking77/test.csv",
            templates=str(Path(__file__).with_name("study_intents.yaml")),
            split_by=("text",),
            balance_by="category",
            balance_fill=True,
            **exact,
        ),
        _task(
            "question_type",
            "trec/TREC.train.gz",
            line_pattern=r"(?P<coarse>[A-Z]+):(?P<fine>\w+) (?P<question>.+)",
            encoding="latin-1",
            templates="question_type",
            template_names=("Kind of answer",),
            split_by=("question",),
            test_source="trec/TREC.test",
            **exact,
        ),
        _task(
            "translation",
            ("tatoeba/tatoeba.deu-eng.deu", "tatoeba/tatoeba.deu-eng.eng"),
            file_format="parallel",
            columns=("german", "english"),
            templates="translation",
            template_names=("German to English",),
            split_by=("english",),
            test_size=60,
            metrics=("chrf",),
        ),
        _task(
            "summary",
            "dialogsum/dialogsum.dev.jsonl.gz",
            templates="dialogue_summary",
            template_names=("Summary of a dialogue",),
            split_by=("dialogue",),
            test_size=30,
            metrics=("rougeL",),
        ),
    )


def _remedy(name, changes, **fields):
    return {"name": name, "after": "stage1", "config": changes, **fields}


def _adapter(method, peak_lr):
    return _remedy(method, {"peft.method": method, "optimizer.peak_lr": peak_lr})


def _qlora():
    lora = _adapter("lora", 1e-3)
    return {**lora, "name": "qlora", "config": {**lora["config"], "model.quantize": "nf4"}}


_PEFT = (_adapter("dora", 1e-3), _adapter("ia3", 1e-2), _qlora())
_REMEDIES = (
    _remedy("kl", {"remedies.text_kl_weight": 1.0, "remedies.text_rows": 2}),
    _remedy("l2sp", {"remedies.l2sp_weight": 0.01}),
)
_MORE = {
    "short": (),
    "peft": _PEFT,
    "remedies": (*_PEFT, *_REMEDIES),
    "full": (*_PEFT, *_REMEDIES),
}


def _runs(extent):
    sizes = (50, 100, 250, 500, 1000)
    return (
        {"name": "stage1", "tasks": _PROBES},
        {
            "name": "single",
            "after": "stage1",
            "interpolations": (0.25, 0.5, 0.75) if extent == "full" else (0.5,),
        },
        _remedy("replay", {"data.mixture.replay_share": 0.1}, replay=_PROBES),
        _remedy("multitask", {"data.mixture.size": 1000}, tasks=("rating", *_PROBES)),
        _adapter("lora", 1e-3),
        {
            "name": "curve",
            "train_sizes": (*sizes, 2000, 4000) if extent == "full" else sizes,
            "scores": ("rating",),
            # Smaller batches, so that 50 examples make more than a few steps.
            "config": {"train.batch_size": 4},
        },
        *_MORE[extent],
    )


def _chosen(names):
    chosen, known = [], []
    for run in _runs("full"):
        sizes = {f"{run['name']}-{size}": size for size in run.get("train_sizes", ())}
        known += [run["name"], *sizes]
        some = tuple(size for name, size in sizes.items() if name in names)
        if run["name"] in names:
            chosen.append(run)
        elif some:
            chosen.append({**run, "train_sizes": some})
    if set(names) - set(known):
        raise InputError(
            f"--config=study:{','.join(names)}: expected study, study:peft, study:remedies, "
            f"study:full, or names of runs: {', '.join(known)}"
        )
    return tuple(chosen)


def get_config(extent="short"):
    config = default_config()
    config.data.tasks = _tasks()
    config.data.max_length = 160
    config.data.on_too_long = "truncate"
    config.data.max_rejected = 0.9  # 67 of 77 intents
    config.train.batch_size = 8
    config.train.eval_metrics = ("loss",)
    config.train.eval_every = 50
    config.optimizer.peak_lr = 2e-4
    config.evaluation.shots = (0, 1, 5)
    # Text of other kinds than what is learned: it tells how far a model has moved.
    config.neutral.source = f"{_FOLDER}/dolly_short/dolly_short_6400.jsonl.gz"
    config.neutral.column = "response"
    config.study.runs = _runs(extent) if extent in _MORE else _chosen(extent.split(","))
    if extent == "full":
        config.study.seeds = (0, 1, 2)
    return config
