"""The flag --config: a Python file, or the name of a config that ships with ift_jax."""

import ast
import re
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from ift_jax.config import RunConfig, build_run_config, field_type
from ift_jax.errors import InputError, one_line

flags.disclaim_key_flags()  # `ift VERB --help` lists --config as a flag of the verb

_HERE = Path(__file__).resolve()
# In a wheel the configs lie inside the package; in a checkout beside it.
FOLDERS = (_HERE.parents[1] / "configs", _HERE.parents[2] / "configs")

_CONFIG = re.compile(r"--?config(?:=(.*))?", re.DOTALL)
_OVERRIDE = re.compile(r"--?(no)?config\.([^=]+)(?:=(.*))?", re.DOTALL)
_PUNCTUATION = re.compile(r"[\\()\[\]{}'\"]")  # a comma beside it may be part of a pattern or text
_PARSERS: dict[Any, tuple[flags.ArgumentParser, str]] = {
    int: (flags.IntegerParser(), "a whole number"),
    float: (flags.FloatParser(), "a number"),
    bool: (flags.BooleanParser(), "true or false"),
}


def define_config_flag() -> flags.FlagHolder:
    """Declares --config and its overrides, --config.section.field=value."""
    return config_flags.DEFINE_config_file(
        "config",
        None,
        "A config file, or the name of one of: "
        + ", ".join(known_configs())
        + ". --config.section.field=value sets a field.",
    )


def known_configs() -> list[str]:
    """Names of the configs that ship with ift_jax."""
    return sorted({path.stem for folder in FOLDERS for path in folder.glob("*.py")})


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses a verb's flags, --config with its overrides among them; returns what is no flag.

    Raises:
        InputError: for what is wrong with a config.
        flags.Error: for what is wrong with other flags.
    """
    if "config" not in flags.FLAGS:
        return flags.FLAGS(argv)
    # ml_collections looks for overrides in sys.argv, not in what is parsed.
    sys.argv = arguments = config_arguments(argv)
    try:
        rest = flags.FLAGS(arguments)
    except Exception as error:
        # ml_collections lets errors of overrides and of config files through in many shapes.
        if isinstance(error, flags.Error) and not str(error).startswith("flag --config="):
            raise
        raise _config_problem(arguments, error) from error
    config = flags.FLAGS["config"].value
    given = arguments[1:] and arguments[1].startswith("--config=")
    if given and not isinstance(config, ConfigDict):
        raise _config_problem(arguments, TypeError(f"expected a ConfigDict, got {config!r}"))
    return rest


def config_arguments(argv: Sequence[str]) -> list[str]:
    """The command line as ml_collections wants it: --config=FILE first, overrides after it.

    Raises:
        InputError: for a config that does not exist, and for an override that names no field
            or whose value is not of the field's type.
    """
    config, others, overrides = None, [], False
    arguments = iter(argv[1:])
    for argument in arguments:
        if match := _CONFIG.fullmatch(argument):
            name = match.group(1) if match.group(1) is not None else next(arguments, "")
            config = f"--config={config_file(name)}"
            continue
        if match := _OVERRIDE.fullmatch(argument):
            argument = _checked_override(argument, *match.groups())
            overrides = True
        others.append(argument)
    if overrides and not config:
        raise _missing()
    return [argv[0], *([config] if config else []), *others]


def config_file(name: str) -> str:
    """The file that `--config=NAME` stands for.

    Raises:
        InputError: if there is neither such a file nor such a name.
    """
    if not name:
        raise _missing()
    file, colon, argument = name.partition(":")
    path = Path(file).expanduser()
    if "/" not in file and path.suffix != ".py":
        path = Path(f"{file}.py")
        candidates = [folder / path for folder in FOLDERS]
        wrong = f"--config={name}: no such config; there are {', '.join(known_configs())}"
    else:
        ours = str(path.parent) == "configs"  # from another working directory
        candidates = [path, *(folder / path.name for folder in FOLDERS if ours)]
        wrong = f"--config={name}: no such file"
    for candidate in candidates:
        if candidate.is_file():
            return f"{candidate}{colon}{argument}"
    raise InputError(wrong)


def run_config(flag: flags.FlagHolder) -> RunConfig:
    """The validated config of a parsed flag. Raises InputError if none was given."""
    if flag.value is None:
        raise _missing()
    return build_run_config(flag.value.to_dict())


def _config_problem(arguments: Sequence[str], error: Exception) -> InputError:
    """What a user can mend about a config that ml_collections could not load or override."""
    file, _, argument = arguments[1].removeprefix("--config=").partition(":")
    try:
        variables = runpy.run_path(file)
        if "get_config" not in variables:
            return InputError(f"{file}: defines no get_config()")
        config = variables["get_config"](*([argument] if argument else []))
    except SyntaxError as problem:
        return InputError(f"{problem.filename}, line {problem.lineno}: {problem.msg}")
    except Exception as problem:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(problem.__traceback__)
            if frame.filename == file
        ]
        where = f"{file}, line {lines[-1]}" if lines else file
        kind = "" if isinstance(problem, InputError) else f"{type(problem).__name__}: "
        return InputError(f"{where}: {kind}{one_line(problem)}")
    if not isinstance(config, ConfigDict):
        return InputError(
            f"{file}: get_config() returned {type(config).__name__}, "
            "expected what default_config() gives"
        )
    for override in arguments:
        match = re.match(r"--?(?:no)?config\.(data\.tasks|study\.runs)\[(\d+)\](\.\w+)?", override)
        if not match:
            continue
        what, number, field = match.group(1), int(match.group(2)), (match.group(3) or "")[1:]
        entries = config.data.tasks if what == "data.tasks" else config.study.runs
        where = f"config.{what}[{number}]"
        if number >= len(entries):
            return InputError(
                f"{where}: there is no such entry; the config has {len(entries)}, counted from 0"
            )
        if field == "config" or field not in entries[number]:
            return InputError(
                f"{where}.{field}: can be set in {file} alone, where this entry is written"
            )
    return InputError(f"--config: {one_line(error)}")


def required(flag: flags.FlagHolder, name: str) -> str:
    """The value of a flag that must be given. Raises InputError without it."""
    if not flag.value:
        raise InputError(f"--{name} is missing")
    return flag.value


def writable(path: str) -> Path:
    """An output file, tried out before the work begins whose result it is for.

    Raises:
        InputError: if it cannot be written.
    """
    file = Path(path).expanduser()
    existed = file.exists()
    try:
        file.open("a").close()
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None
    if not existed:
        file.unlink()
    return file


def _missing() -> InputError:
    return InputError(f"--config is missing; name a file or one of {', '.join(known_configs())}")


def _checked_override(argument: str, negated: str | None, name: str, value: str | None) -> str:
    """The override, if its value is of the field's type; a list of texts as a tuple.

    Example:
        >>> _checked_override("--config.peft.targets=a,b", None, "peft.targets", "a,b")
        "--config.peft.targets=('a', 'b')"
    """
    kind = field_type(name)
    if value is None or negated:
        return argument
    if kind == tuple[str, ...] and "," in value and not _is_literal(value):
        if _PUNCTUATION.search(value):
            raise InputError(f"""config.{name}: expected texts as in ("a","b"), got {value!r}""")
        return f"--config.{name}={tuple(part.strip() for part in value.split(','))}"
    if kind in _PARSERS:
        parser, expected = _PARSERS[kind]
        try:
            parser.parse(value)
        except (TypeError, ValueError):
            raise InputError(f"config.{name}: expected {expected}, got {value!r}") from None
    return argument


def _is_literal(value: str) -> bool:
    try:
        ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return False
    return True
