"""Streams a data set from the Hugging Face hub; says within seconds if the hub is out of reach."""

import contextlib
import threading
from typing import Any

from ift_jax.data.records import Record, Rows
from ift_jax.errors import InputError

# load_dataset by itself retries for 23 s and more before it gives up; the probe asks once.
_PROBE_S = 8


def read_hub(source: str, subset: str, split: str) -> Rows:
    """The rows of "hub:owner/name", streamed.

    Raises:
        InputError: If the hub cannot be reached, or the data set, subset or split is not there.
    """
    name = source.removeprefix("hub:")
    if not name or name.count("/") > 1:
        raise InputError(f"{source}: write hub:owner/name")
    _probe(source, name)
    rows = _load(source, name, subset, split)
    number = 0
    try:
        for number, fields in enumerate(rows, 1):
            yield Record(dict(fields), f"{source}:{number}", columnar=True)
    except Exception as error:
        raise InputError(
            f"{source}: reading stopped after record {number} ({_one_line(error)}); "
            "try again, or download the data set and give its files"
        ) from error


def hub_revision(source: str) -> str:
    """The commit of "hub:owner/name", or "" if the hub does not say it within seconds."""
    from huggingface_hub import HfApi

    found: list[str] = []

    def ask() -> None:
        # What is wrong with the name or the network is said when the set is read.
        with contextlib.suppress(Exception):
            name = source.removeprefix("hub:")
            found.append(HfApi().dataset_info(name, timeout=_PROBE_S / 2).sha or "")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    return found[0] if found else ""


def _probe(source: str, name: str) -> None:
    """Asks the hub once whether the data set exists.

    In a thread, because looking up the host's name has no timeout of its own.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    raised: list[Exception] = []

    def ask() -> None:
        try:
            HfApi().dataset_info(name, timeout=_PROBE_S / 2)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PROBE_S)
    if not raised and not thread.is_alive():
        return
    error = raised[0] if raised else TimeoutError(f"no answer in {_PROBE_S} s")
    if isinstance(error, GatedRepoError):
        raise InputError(
            f"{source}: access must be asked for on the hub; then run `hf auth login`"
        ) from None
    if isinstance(error, RepositoryNotFoundError):
        raise InputError(
            f"{source}: no such data set on the hub; check the name, or run `hf auth login` "
            "if it is private"
        ) from None
    if isinstance(error, HFValidationError):
        raise InputError(f"{source}: write hub:owner/name ({_one_line(error)})") from None
    raise InputError(
        f"{source}: the Hugging Face hub cannot be reached ({_one_line(error)}); check the network "
        "or give the path of a file"
    ) from None


def _load(source: str, name: str, subset: str, split: str) -> Any:
    import datasets

    try:
        loaded = datasets.load_dataset(name, subset or None, split=split or None, streaming=True)
    except Exception as error:
        raise InputError(
            f"{source}: cannot be loaded with subset={subset!r}, split={split!r} "
            f"({_one_line(error)})"
        ) from error
    if isinstance(loaded, dict):
        if len(loaded) > 1:
            raise InputError(f"{source}: name one split with split=; it has {', '.join(loaded)}")
        loaded = next(iter(loaded.values()))
    return loaded


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
