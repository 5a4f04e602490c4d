"""Generated text: whole, or piece by piece while it is made; both end before a stop text."""

from collections.abc import Iterator, Sequence

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float
from numpy.typing import NDArray

from ift_jax.data.chat import Chat
from ift_jax.errors import InputError
from ift_jax.evaluation.generation import generate, generate_one
from ift_jax.evaluation.sampling import Sampling
from ift_jax.models.decoder import Params, Structure


def generate_texts(
    structure: Structure,
    params: Params,
    chat: Chat,
    prompts: Sequence[NDArray[np.int32]],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    mesh: Mesh | None = None,
    adapter_rows: Float[np.ndarray, "N R"] | None = None,
    keys: NDArray[np.uint32] | None = None,
) -> list[str]:
    """What follows each prompt, up to an end token or a stop text.

    Args:
        keys: as for `generate`.

    Raises:
        InputError: as `generate` and `with_stop_tokens`.
    """

    def stopped(ids: NDArray[np.int32]) -> bool:
        text = chat.decode(ids)
        return before_stop(text, sampling.stop) != text

    outputs = generate(
        structure,
        params,
        prompts,
        sampling,
        stop_ids=with_stop_tokens(chat, stop_ids, sampling.stop),
        mesh=mesh,
        ended=stopped if sampling.stop else None,
        adapter_rows=adapter_rows,
        keys=keys,
    )
    return [before_stop(chat.decode(ids), sampling.stop) for ids in outputs]


def stream_text(
    structure: Structure,
    params: Params,
    chat: Chat,
    prompt: NDArray[np.int32],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    mesh: Mesh | None = None,
    adapter_rows: Float[np.ndarray, "N R"] | None = None,
) -> Iterator[str]:
    """Pieces of what follows a prompt, as they are made; joined, the text of `generate_texts`.

    What later tokens may still change waits: bytes of an unfinished character, and what may
    become a stop text.

    Raises:
        InputError: as `generate` and `with_stop_tokens`, at the first piece.
    """
    sent = 0
    ids = np.zeros(0, np.int32)
    chunks = generate_one(
        structure,
        params,
        prompt,
        sampling,
        stop_ids=with_stop_tokens(chat, stop_ids, sampling.stop),
        mesh=mesh,
        adapter_rows=adapter_rows,
    )
    for ids in chunks:
        text = chat.decode_beginning(ids)
        before = before_stop(text, sampling.stop)
        if before != text:
            break
        ready = text[: len(text) - _may_stop(text, sampling.stop)]
        if len(ready) > sent:
            yield ready[sent:]
            sent = len(ready)
    rest = before_stop(chat.decode(ids), sampling.stop)[sent:]
    if rest:
        yield rest


def with_stop_tokens(chat: Chat, stop_ids: Sequence[int], stops: Sequence[str]) -> list[int]:
    """End tokens, and the special tokens that stop texts begin with: no text shows these.

    Raises:
        InputError: for a stop text with a special token behind other characters.
    """
    found = set(stop_ids)
    for stop in stops:
        token = chat.special_tokens.search(stop)
        if token and token.start():
            raise InputError(
                f"stop text {stop!r}: holds the special token {token[0]!r} behind other text; "
                "give the token alone, which ends an answer wherever it comes"
            )
        if token:
            found.add(chat.tokenizer.convert_tokens_to_ids(token[0]))
    return sorted(found)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """A text up to the stop text that is complete first, so that what comes later is no matter.

    Example:
        >>> before_stop("4\\nQ: 5+5?", ["Q:", "\\n"])
        '4'
    """
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(found)[1]] if found else text


def _may_stop(text: str, stops: Sequence[str]) -> int:
    """How many of the last characters may be the beginning of a stop text."""
    return max(
        (
            size
            for stop in stops
            for size in range(1, min(len(stop), len(text) + 1))
            if text.endswith(stop[:size])
        ),
        default=0,
    )
