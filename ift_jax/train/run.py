"""A run from config to results: claim the workdir, load, prepare, train, score."""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from ift_jax.config import RunConfig, differences, read_run_config, to_json
from ift_jax.data import pipeline
from ift_jax.data.files import LOCK, locked, replace_text
from ift_jax.data.neutral import NeutralTexts
from ift_jax.data.prepared import load_data
from ift_jax.data.preview import write_preview
from ift_jax.errors import InputError
from ift_jax.evaluation.drift import drift_entries
from ift_jax.evaluation.tasks import Row, baseline_rows, check_scoring, evaluate, having
from ift_jax.hf.folder import read_json
from ift_jax.interpolation import interpolated
from ift_jax.language_model import LanguageModel
from ift_jax.peft.config import PeftConfig
from ift_jax.pretrained import load_chat, load_configured
from ift_jax.report.page import leave_report
from ift_jax.report.table import results_table
from ift_jax.sharding import make_mesh, num_row_shards
from ift_jax.train.fisher import fisher_examples
from ift_jax.train.loop import fit
from ift_jax.train.selection import Chosen
from ift_jax.train.validation import Plan, plan_validation
from ift_jax.vocabulary import unknown


def train(config: RunConfig, workdir: str | Path) -> list[Row]:
    """Trains, scores base and tuned model on the test split, and writes the workdir.

    The test split is scored once, at the end, on the checkpoint that the validation split
    chose; results.json says which that was, by what, and why.

    Run again on the same workdir, it goes on exactly where it stopped; a finished run only
    shows its results.

    Returns:
        The rows of results.json.

    Raises:
        InputError: for a config, file or workdir that cannot be used.
    """
    workdir = Path(workdir)
    check_frozen(config)
    claim_workdir(with_full_path(config), workdir)
    results = workdir / "results.json"
    if results.exists():
        rows = json.loads(results.read_text(encoding="utf-8"))["rows"]
        _show(rows)
        if not (workdir / "report.html").exists():  # stopped between the two files
            leave_report(workdir)
        return rows
    mesh = make_mesh(config.mesh)
    with alone_in(workdir), jax.set_mesh(mesh):
        tuned = tune(config, workdir, mesh)
        base = base_of(config, mesh, tuned.model)
        rows = final_scores(config, mesh, base, tuned.model, tuned.data)
        drift = drift_entries("tuned", base, tuned.model, tuned.texts, mesh)
    written = {"rows": rows, "chosen": tuned.chosen.to_json(), "drift": drift}
    replace_text(results, json.dumps(written, indent=2) + "\n")
    _show(rows)
    leave_report(workdir)
    return rows


def _show(rows: Sequence[Row]) -> None:
    if rows:
        print(results_table(rows))


class Tuned(NamedTuple):
    """A run without its final scores: the model at the chosen step, data, and neutral text."""

    model: LanguageModel
    data: pipeline.DataSet
    chosen: Chosen
    texts: NeutralTexts | None


def tune(
    config: RunConfig,
    workdir: Path,
    mesh: Mesh,
    known: pipeline.Known | None = None,
    *,
    shots: Sequence[int] | None = None,
) -> Tuned:
    """The first half of `train`, without final scores.

    Args:
        known: data that was read before, for several runs in one process.
        shots: at which something will be scored on this data; default: evaluation.shots.

    Raises:
        InputError: as `train`.
    """
    stored = with_full_path(config)
    claim_workdir(stored, workdir)
    check_batch(config, mesh)
    base = load_configured(config.model, mesh)
    model = base.adapt(config.peft, seed=config.train.seed)
    del base
    data = load_data(config.data, model.chat, known)
    plan = check_run(config, model, data, shots)
    _check_same_data(data, workdir)
    # Only now, so that a run that could not begin leaves the folder free for another.
    replace_text(workdir / "config.json", to_json(stored))
    card = pipeline.write_card(data, workdir / "data")
    write_preview(data, workdir / "data" / "preview.jsonl")
    _say_what_is_left_out(card)
    tuned, chosen = fit(config, workdir, mesh, model, data, plan)
    return Tuned(tuned, data, chosen, plan.texts)


def _check_same_data(data: pipeline.DataSet, workdir: Path) -> None:
    """Refuses to go on from a checkpoint with other examples than those before it."""
    path, checkpoints = workdir / "data" / "card.json", workdir / "checkpoints"
    if not path.exists() or not any(p.name.isdigit() for p in checkpoints.glob("*")):
        return
    refuse_other_data(_hashes(read_json(path)), _hashes(pipeline.card(data)), workdir, "run")


def _hashes(card: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Of all splits that a card tells of."""
    return {
        task: {split: told["content_hash"] for split, told in counted["splits"].items()}
        for task, counted in card["tasks"].items()
    }


def refuse_other_data(
    before: Mapping[str, Any], now: Mapping[str, Any], workdir: Path, what: str
) -> None:
    """Refuses, by the hashes of each task's splits, other data than what something began with.

    Args:
        what: "run" or "study".
    """
    changed = [task for task in now if now[task] != before.get(task)]
    if changed:
        raise InputError(
            f"{workdir}: the data of task {changed[0]} is not what the {what} began with, so what "
            "came of it cannot go with what would come; give it the former files, or choose "
            "another --workdir"
        )


def _say_what_is_left_out(card: Mapping[str, Any]) -> None:
    """Names the tasks of which the mixture takes nothing."""
    mixed = card["mixture"].get("tasks", {})
    names = [name for name, counted in mixed.items() if not counted["drawn"]]
    if names:
        print(
            f"not trained, their share of the mixture being less than one example: "
            f"{', '.join(names)}",
            file=sys.stderr,
        )


def with_full_path(config: RunConfig) -> RunConfig:
    """The config with a local model's path made absolute: a workdir can be used from anywhere."""
    path = Path(config.model.path).expanduser()
    if not path.exists():
        return config
    model = dataclasses.replace(config.model, path=str(path.resolve()))
    return dataclasses.replace(config, model=model)


def check_run(
    config: RunConfig,
    base: LanguageModel,
    data: pipeline.DataSet,
    shots: Sequence[int] | None = None,
) -> Plan:
    """What validation will look at; refuses what would otherwise fail only after training.

    Args:
        shots: as for `tune`.

    Raises:
        InputError: naming the field.
    """
    limit = base.structure.context_length
    if config.data.max_length > limit:
        adapter = base.structure.adapter
        virtual = 0 if adapter is None else adapter.num_virtual
        taken = f", of which config.peft.num_virtual_tokens={virtual} are taken; lower either"
        raise InputError(
            f"config.data.max_length={config.data.max_length}: the model's context is "
            f"{limit + virtual}{taken if virtual else ''}"
        )
    _check_new_tokens(config, base)
    if config.evaluation.interpolation:
        check_mergeable(config.peft, base, "config.evaluation.interpolation")
    shots = config.evaluation.shots if shots is None else shots
    check_scoring(base, data, config.evaluation, split="test", shots=shots)
    if config.remedies.ewc_weight:
        fisher_examples(data, config.remedies.fisher_tasks, config.remedies.fisher_examples)
    return plan_validation(config, base, data)


def check_mergeable(peft: PeftConfig, base: LanguageModel, what: str) -> None:
    """Refuses, before a run, a method whose result no weights express where they are needed.

    Args:
        base: with the run's adapter, or without one.
        what: needs them.
    """
    if peft.method != "none" and not (base.structure.adapter or base.adapter_for(peft)).can_merge:
        raise InputError(
            f"{what}: an adapter of method {peft.method!r} cannot be merged into the weights, "
            "which this needs"
        )


def claim_workdir(config: RunConfig, workdir: Path) -> None:
    """Makes the workdir, or checks that it belongs to this very config.

    Raises:
        InputError: if it cannot be written, is no workdir, or holds another config.
    """
    if (workdir / "config.json").exists():
        found = differences(read_run_config(workdir), config)
        if found:
            raise InputError(
                f"{workdir}: holds a run with another config; {found[0]}"
                + (f" (and {len(found) - 1} more)" if found[1:] else "")
                + "; choose another --workdir"
            )
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # A kill may leave the file that was to become config.json.
        if any(path.name not in (LOCK, "config.partial") for path in workdir.iterdir()):
            raise InputError(f"{workdir}: is not empty and holds no run; choose another --workdir")
        probe = workdir / "writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"{workdir}: cannot be written ({error.strerror})") from error


@contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Keeps other processes out of a workdir; of several hosts the first one does.

    Raises:
        InputError: if another process works in it.
    """
    if jax.process_index():
        yield
        return
    with locked(workdir) as is_mine:
        if not is_mine:
            raise InputError(f"{workdir}: another process works in it; wait until it has ended")
        yield


def base_of(config: RunConfig, mesh: Mesh, tuned: LanguageModel) -> LanguageModel:
    """The base model: what an adapter stands beside, else loaded again."""
    if tuned.structure.adapter is not None:
        return tuned.without_adapter()
    return load_configured(config.model, mesh)


def final_scores(
    config: RunConfig,
    mesh: Mesh,
    base: LanguageModel,
    tuned: LanguageModel,
    data: pipeline.DataSet,
) -> list[Row]:
    """Scores of all models on the same test items.

    These are the baselines, the base model at each of evaluation.shots, the tuned model at 0
    shots, and those between the two at each share of evaluation.interpolation.
    """
    if not any(task.splits["test"] for task in data.tasks):
        print("nothing is scored: no task has a test split", file=sys.stderr)
        return []
    data = having(data, "test")

    def scored(model: LanguageModel, name: str, shots: Sequence[int], what: str = "") -> list[Row]:
        print(f"scoring {what or name} model on the test split", file=sys.stderr)
        return evaluate(
            model, data, config.evaluation, name=name, split="test", shots=shots, mesh=mesh,
            breakdown=True,
        )  # fmt: skip

    tuned_rows = scored(tuned, "tuned", (0,))
    base_rows = scored(base, "base", config.evaluation.shots)
    between = []
    for share in config.evaluation.interpolation:
        rows = tuned_rows
        if share < 1:
            model = interpolated(base, tuned, share)
            rows = scored(model, "tuned", (0,), f"interpolated ({share:g})")
        between += [{**row, "interpolation": share} for row in rows]
    baselines = baseline_rows(data, config.evaluation, split="test")
    return baselines + base_rows + tuned_rows + between


def check_batch(config: RunConfig, mesh: Mesh) -> None:
    """Refuses batches that do not divide over the mesh and the micro-batches.

    Raises:
        InputError: naming the field.
    """
    parts = num_row_shards(mesh) * config.train.micro_batches
    sizes = {"train.batch_size": config.train.batch_size}
    if config.remedies.text_kl_weight:
        sizes["remedies.text_rows"] = config.remedies.text_rows
    for name, size in sizes.items():
        if size % parts:
            raise InputError(
                f"config.{name}={size} does not divide over {num_row_shards(mesh)} row shards and "
                f"{config.train.micro_batches} micro-batches"
            )


def _check_new_tokens(config: RunConfig, model: LanguageModel) -> None:
    """Raises InputError where an adapter leaves rows of new tokens at their start."""
    if config.peft.method == "none" or not config.model.new_tokens:
        return
    adapter = model.structure.adapter or model.adapter_for(config.peft)
    whole = {site.path for site in adapter.whole}
    rows = {row.path: {*row.ids} for row in adapter.rows}
    tokenizer = load_chat(config.model.path).tokenizer
    for table in {"embedding", "output"} & {*model.params} - whole:
        for token in unknown(tokenizer, config.model.new_tokens):
            number = model.tokenizer.convert_tokens_to_ids(token)  # type: ignore[union-attr]
            if number not in rows.get(table, ()):
                raise InputError(
                    f"config.model.new_tokens: config.peft does not train {token!r} in the "
                    f"model's {table}; name it in config.peft.token_rows (lora, dora), or the "
                    "tables in config.peft.modules_to_save (embed_tokens, lm_head)"
                )


def check_frozen(config: RunConfig) -> None:
    """Refuses full tuning of weights that cannot take small updates: quantized, or float16.

    Raises:
        InputError: naming the field.
    """
    if config.model.param_dtype == "float16" and config.peft.method == "none":
        raise InputError(
            "config.model.param_dtype=float16: full tuning would keep squares of gradients and "
            "AdamW's epsilon in it, which it has no numbers for; use float32 or bfloat16"
        )
    if config.model.quantize != "none" and config.peft.method == "none":
        raise InputError(
            f"config.model.quantize={config.model.quantize}: full tuning changes all weights, and "
            "codes of a few bits cannot be trained; set config.peft.method, or quantize to none"
        )
