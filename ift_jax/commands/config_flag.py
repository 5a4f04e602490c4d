"""The flag --config: a Python file, or the name of a config that ships with ift_jax."""

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from ift_jax.config import RunConfig, build_run_config
from ift_jax.errors import InputError

_HERE = Path(__file__).resolve()
# In a wheel the configs lie inside the package; in a checkout beside it.
FOLDERS = (_HERE.parents[1] / "configs", _HERE.parents[2] / "configs")


def define_config_flag() -> flags.FlagHolder:
    """Declares --config and its overrides, --config.section.field=value."""
    return config_flags.DEFINE_config_file(
        "config", None, "A config file, or the name of one of: " + ", ".join(known_configs())
    )


def known_configs() -> list[str]:
    """Names of the configs that ship with ift_jax."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.py")})


def named_config(argument: str) -> str:
    """`--config=NAME` with the file that NAME stands for; any other argument as it is.

    Raises:
        InputError: if there is neither such a file nor such a name.
    """
    if not argument.startswith(("--config=", "-config=")):
        return argument
    flag, name = argument.split("=", 1)
    file = name.split(":")[0]
    if "/" not in file and not file.endswith(".py"):
        for folder in FOLDERS:
            if (folder / f"{file}.py").exists():
                return f"{flag}={folder / file}.py{name[len(file) :]}"
        raise InputError(f"--config={name}: no such config; there are {', '.join(known_configs())}")
    if not Path(file).exists():
        shipped = next((f / Path(file).name for f in FOLDERS if (f / Path(file).name).exists()), None)
        if file.startswith("configs/") and shipped:
            return f"{flag}={shipped}{name[len(file) :]}"
        raise InputError(f"--config={name}: no such file")
    return argument


def run_config(flag: flags.FlagHolder) -> RunConfig:
    """The validated config of a parsed flag. Raises InputError if none was given."""
    if flag.value is None:
        raise InputError(f"--config is missing; name a file or one of {', '.join(known_configs())}")
    return build_run_config(flag.value.to_dict())


def required(flag: flags.FlagHolder, name: str) -> str:
    """The value of a flag that must be given. Raises InputError without it."""
    if not flag.value:
        raise InputError(f"--{name} is missing")
    return flag.value
