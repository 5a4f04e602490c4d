"""`ift VERB` and `python -m ift_jax VERB`: picks a command and turns user errors into one line."""

import os
import sys
from importlib import import_module
from types import ModuleType

from absl import app, flags, logging

from ift_jax.errors import InputError

VERBS = {
    "data": "builds the data set and prints its card; --preview=N shows what is trained",
    "train": "trains; run again on the same workdir, it goes on where it stopped",
    "evaluate": "scores a model on the config's tasks",
    "generate": "generates from a prompt or a file of prompts, or chats",
    "export": "writes a folder that transformers loads as it is",
}


def main() -> None:
    """Entry point of the command line."""
    # transformers and datasets import torch where they find it, which takes seconds and memory.
    os.environ.setdefault("USE_TORCH", "0")
    # Where XLA's compiler warns about the machine it runs on, users can do nothing.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb in ("", "-h", "--help", "help"):
        print(_usage())
        sys.exit(0)
    if verb not in VERBS:
        _fail(f"no command {verb!r}; there are {', '.join(VERBS)}")
    try:
        command = import_module(f"ift_jax.commands.{verb}")
        arguments = _parse(command, [f"ift {verb}", *sys.argv[2:]])
        from ift_jax.compilation import enable_compilation_cache

        enable_compilation_cache()
        logging.set_verbosity(logging.WARNING)  # orbax reports every file that it touches
        app.run(command.main, argv=arguments, flags_parser=lambda argv: argv)
    except InputError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted")


def _parse(command: ModuleType, argv: list[str]) -> list[str]:
    """Flags of one verb. Whatever a flag or a config file gets wrong becomes an InputError."""
    from ift_jax.commands.config_flag import named_config

    if any(arg in ("--help", "-h", "--helpfull") for arg in argv):
        print(f"{command.__doc__}\n{flags.FLAGS.module_help(command)}")
        sys.exit(0)
    try:
        rest = flags.FLAGS([named_config(arg) for arg in argv])
    except flags.Error as error:
        raise InputError(_one_line(error)) from error
    except (AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError) as error:
        # ml_collections lets errors of overrides and of config files through as they are.
        raise InputError(f"--config: {_one_line(error)}") from error
    if len(rest) > 1:
        raise InputError(f"{argv[0]}: unexpected argument {rest[1]!r}; flags start with --")
    return rest


def _one_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(str(text).split())


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb.ljust(width)}  {what}" for verb, what in VERBS.items())
    return f"usage: ift VERB [--flags]; `ift VERB --help` lists its flags\n\n{verbs}"


def _fail(message: str) -> None:
    print(f"ift: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
