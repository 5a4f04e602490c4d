"""`ift VERB` and `python -m ift_jax VERB`: picks a command and turns user errors into one line."""

import difflib
import os
import sys
from importlib import import_module
from types import ModuleType

from absl import app, flags, logging

from ift_jax.errors import InputError, one_line

VERBS = {
    "data": "builds the data set and prints its card; --preview=N shows what is trained",
    "train": "trains; run again on the same workdir, it goes on where it stopped",
    "evaluate": "scores a model on the config's tasks",
    "study": "compares prompting, tunings and remedies against forgetting, from one config",
    "generate": "generates from a prompt or a file of prompts, or chats",
    "export": "writes a folder that transformers loads as it is",
    "report": "writes one self-contained page about runs or a study",
}

_PARSER_MESSAGES = {
    "invalid literal for int() with base 10:": "expected a whole number, got",
    "could not convert string to float:": "expected a number, got",
}


def main() -> None:
    """Entry point of the command line."""
    # Where XLA's compiler warns about the machine it runs on, users can do nothing.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb in ("", "-h", "--help", "help"):
        print(_usage())
        sys.exit(0)
    if verb not in VERBS:
        _fail(f"no command {verb!r}; there are {', '.join(VERBS)}")
    try:
        _run(verb)
    except InputError as error:
        _fail(one_line(error))
    except KeyboardInterrupt:
        _fail("interrupted")
    except BrokenPipeError:
        # The reader of our output, such as `head`, has had enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")


def _run(verb: str) -> None:
    command = import_module(f"ift_jax.commands.{verb}")
    logging.set_verbosity(logging.ERROR)  # ml_collections warns of what we say ourselves
    arguments = _parse(command, [f"ift {verb}", *sys.argv[2:]])
    from ift_jax.compilation import enable_compilation_cache

    enable_compilation_cache()
    logging.set_verbosity(logging.WARNING)  # orbax reports every file that it touches
    hide_torch()
    try:
        app.run(command.main, argv=arguments, flags_parser=lambda argv: argv)
    finally:
        sys.stdout.flush()  # here, where a closed pipe is still caught


def hide_torch() -> None:
    """Lets transformers and datasets believe that there is no torch.

    They import it where they find it, which takes seconds and memory. Only for a process that
    is ours: in a notebook others may need it.
    """
    os.environ.setdefault("USE_TORCH", "0")  # read by datasets
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # or it reports that torch is missing
    if "torch" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes it look not installed
    try:
        from transformers.utils.import_utils import is_torch_available

        is_torch_available()  # remembers its first answer
    finally:
        del sys.modules["torch"]


def _parse(command: ModuleType, argv: list[str]) -> list[str]:
    """Flags of one verb. Whatever a flag or a config file gets wrong becomes an InputError."""
    from ift_jax.commands.config_flag import parse_flags

    if any(arg in ("--help", "-h", "--helpfull") for arg in argv):
        print(f"{command.__doc__}\n{flags.FLAGS.module_help(command)}")
        sys.exit(0)
    try:
        rest = parse_flags(argv)
    except flags.UnrecognizedFlagError as error:
        known = [flag.name for flag in flags.FLAGS.get_key_flags_for_module(command)]
        close = difflib.get_close_matches(error.flagname, known, 1)
        hint = f"did you mean --{close[0]}?" if close else f"`{argv[0]} --help` lists them"
        raise InputError(f"--{error.flagname}: {argv[0]} has no such flag; {hint}") from error
    except flags.Error as error:
        text = one_line(error).removeprefix("flag ")
        for python_words, words in _PARSER_MESSAGES.items():
            text = text.replace(python_words, words)
        raise InputError(text) from error
    if len(rest) > 1:
        raise InputError(f"{argv[0]}: unexpected argument {rest[1]!r}; flags start with --")
    return rest


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb.ljust(width)}  {what}" for verb, what in VERBS.items())
    return f"usage: ift VERB [--flags]; `ift VERB --help` lists its flags\n\n{verbs}"


def _fail(message: str) -> None:
    print(f"ift: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
