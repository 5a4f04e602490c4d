"""ift evaluate --config=C --model=M --output=F.json: scores a model on the config's tasks.

The output says which split was scored and, of a workdir (also as an adapter), which step and why
that one. Tasks without that split are left out, with a note. With
--interpolate=0.5 a workdir's weights are taken half-way between base and tuned ones (WiSE-FT).

With --adapter=A,B several adapters are scored, one after the other, beside one base.

With --predictions=P.jsonl it also keeps what the model answered to every item.
`python -m ift_jax.evaluation.comparison P.jsonl Q.jsonl` compares two models by such files.
"""

import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from ift_jax.commands.config_flag import define_config_flag, required, run_config, writable
from ift_jax.data.config import SPLITS
from ift_jax.errors import InputError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from ift_jax.language_model import LanguageModel
    from ift_jax.model_config import ModelConfig

_CONFIG = define_config_flag()
_MODEL = flags.DEFINE_string("model", "", "A folder, hub id, .gguf file or workdir.")
_ADAPTER = flags.DEFINE_list(
    "adapter",
    [],
    "Adapters beside the model, separated by commas: folders of peft, or workdirs of their runs.",
)
_SPLIT = flags.DEFINE_string("split", "test", "train, validation or test.")
_SHOTS = flags.DEFINE_list(
    "shots",
    [],
    "Numbers of examples before the question; default: 0 for a workdir or with an adapter, else "
    "the config's.",
)
_INTERPOLATE = flags.DEFINE_float(
    "interpolate",
    1.0,
    "Share of a workdir's tuned weights, 0 to 1: below 1 scores the model between base and tuned.",
)
_NAME = flags.DEFINE_string(
    "name",
    "",
    "What the rows call the model; default: base or tuned, and of several adapters their paths.",
)
_OUTPUT = flags.DEFINE_string("output", "", "File for the rows.")
_PREDICTIONS = flags.DEFINE_string(
    "predictions", "", "File for every item's prediction, JSON lines."
)


def main(_: list[str]) -> None:
    """Runs the verb."""
    config = run_config(_CONFIG)
    path, output = required(_MODEL, "model"), writable(required(_OUTPUT, "output"))
    predictions = writable(_PREDICTIONS.value) if _PREDICTIONS.value else None
    if predictions and predictions.resolve() == output.resolve():
        raise InputError(f"--predictions={_PREDICTIONS.value}: is the file of --output, too")
    if _SPLIT.value not in SPLITS:
        raise InputError(f"--split={_SPLIT.value}: expected one of {', '.join(SPLITS)}")
    shots = _shots()
    adapters = [adapter for adapter in _ADAPTER.value if adapter]
    if len(set(adapters)) < len(adapters):
        raise InputError(f"--adapter={','.join(adapters)}: names one twice")
    if _NAME.value and len(adapters) > 1:
        raise InputError(f"--name={_NAME.value}: of several adapters, each has its path as name")
    import jax

    from ift_jax.data.pipeline import Known
    from ift_jax.data.prepared import load_data
    from ift_jax.evaluation.tasks import baseline_rows, check_scoring, evaluate, having
    from ift_jax.interpolation import check_share
    from ift_jax.model_config import is_workdir, locate
    from ift_jax.report.table import results_table
    from ift_jax.sharding import make_mesh
    from ift_jax.vocabulary import format_of

    folder = locate(path)
    is_run = is_workdir(folder)
    is_tuned = is_run or bool(adapters)
    share = _INTERPOLATE.value
    check_share(share, "--interpolate")
    if share < 1 and not is_run:
        raise InputError(f"--interpolate={share}: {path} is no workdir, so it has no base")
    written = {"split": _SPLIT.value, **_chosen([path, *adapters])}
    if len(written) > 1 and _SPLIT.value == "test":
        print(
            "scoring the test split; choose between models by --split=validation", file=sys.stderr
        )
    shots = shots or ([0] if is_tuned else list(config.evaluation.shots))
    if not shots:
        raise InputError("config.evaluation.shots is empty, so nothing is scored; give --shots=0")
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        name = _NAME.value or ("tuned" if is_tuned else "base")
        models = _models(config.model, path, adapters, name, is_run=is_run, share=share, mesh=mesh)
        known: dict[tuple[int, str], Known] = {}  # by what an adapter's folder may change
        data = {
            own: having(
                load_data(
                    config.data, one.chat, known.setdefault(format_of(one.chat.tokenizer), Known())
                ),
                _SPLIT.value,
            )
            for own, one in models.items()
        }
        for own, one in models.items():  # before a file is emptied
            check_scoring(one, data[own], config.evaluation, split=_SPLIT.value, shots=shots)
        rows = baseline_rows(next(iter(data.values())), config.evaluation, split=_SPLIT.value)
        scored = []
        with predictions.open("w", encoding="utf-8") if predictions else nullcontext() as file:
            for own, one in models.items():
                scored += evaluate(
                    one,
                    data[own],
                    config.evaluation,
                    name=own,
                    split=_SPLIT.value,
                    shots=shots,
                    mesh=mesh,
                    breakdown=True,
                    keep=None if file is None else lambda line: file.write(line.to_json()),
                )
    shown = rows + scored
    if share < 1:
        scored = [{**row, "interpolation": share} for row in scored]
    written = {"rows": rows + scored, **written}
    output.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    print(results_table(shown))


def _shots() -> list[int]:
    """The numbers that --shots asks for. Raises InputError for others."""
    given = f"--shots={','.join(_SHOTS.value)}"
    try:
        shots = [int(count) for count in _SHOTS.value]
    except ValueError:
        raise InputError(f"{given}: expected numbers") from None
    if min(shots, default=0) < 0 or len(set(shots)) < len(shots):
        raise InputError(f"{given}: expected different numbers of 0 or more")
    return shots


def _chosen(paths: Sequence[str]) -> dict[str, Any]:
    """Which steps are scored of those paths that are workdirs, and why, for the output."""
    from ift_jax.model_config import is_workdir
    from ift_jax.train.selection import chosen_of

    folders = {path: Path(path).expanduser() for path in paths}
    chosen = {path: chosen_of(one).to_json() for path, one in folders.items() if is_workdir(one)}
    if len(chosen) == 1:
        return {"chosen": next(iter(chosen.values()))}
    return {"chosen_by_run": chosen} if chosen else {}


def _models(
    types: "ModelConfig",
    path: str,
    adapters: list[str],
    name: str,
    *,
    is_run: bool,
    share: float,
    mesh: "Mesh",
) -> "dict[str, LanguageModel]":
    """The models to score, by what their rows call them: one, or one an adapter."""
    import copy

    from ift_jax.checkpoint import load_workdir
    from ift_jax.config import read_run_config
    from ift_jax.model_config import locate
    from ift_jax.pretrained import load_pretrained

    quantize = types.quantize
    if is_run and quantize != "none":
        own = read_run_config(locate(path)).model
        if (own.quantize, own.quantize_group) == (quantize, types.quantize_group):
            quantize = "none"  # its base is in these codes already
    if share < 1:
        if quantize != "none":
            raise InputError(
                f"config.model.quantize={quantize!r}: --interpolate={share} scores the weights "
                "that lie between, as they are; leave it at 'none'"
            )
        model = load_workdir(
            locate(path), dtype=types.dtype, param_dtype=types.param_dtype, mesh=mesh, share=share
        )
    else:
        model = load_pretrained(
            path,
            dtype=types.dtype,
            param_dtype=types.param_dtype,
            quantize=quantize,
            quantize_group=types.quantize_group,
            mesh=mesh,
        )
    if not adapters:
        return {name: model if is_run else model.with_new_tokens(types.new_tokens)}
    names = adapters if len(adapters) > 1 else [name]
    return {
        own: copy.copy(model).load_adapter(adapter)
        for own, adapter in zip(names, adapters, strict=True)
    }
