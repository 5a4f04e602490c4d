"""New tokens: a tokenizer that knows them, and tables with rows for them."""

import copy
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ift_jax.errors import InputError

# Tables grow to a multiple of this, so that they divide over devices and fill matrix units.
MULTIPLE = 64


def check_new_tokens(tokens: Sequence[str], where: str) -> None:
    """Raises InputError, with `where`, for empty texts and repeats."""
    for token in tokens:
        if not token or token != token.strip() or tokens.count(token) > 1:
            raise InputError(
                f"{where}: expected different texts without blanks around them, got {token!r}"
            )


def extended_tokenizer(tokenizer: Any, tokens: Sequence[str]) -> Any:
    """A copy to which each of these texts is one token, wherever it stands.

    Those that are not tokens yet get the numbers behind the last one, in this order. They are not
    special: they are generated, shown and trained as any other.

    Raises:
        InputError: without a tokenizer, and for texts that cannot be tokens.
    """
    if tokenizer is None:
        raise InputError("new_tokens: this model's folder has no tokenizer")
    check_new_tokens(tokens, "new_tokens")
    from tokenizers import AddedToken

    extended = copy.deepcopy(tokenizer)
    added = unknown(tokenizer, tokens)
    extended.add_tokens([AddedToken(token, normalized=False) for token in added])
    return extended


def format_of(tokenizer: Any) -> tuple[int, str]:
    """What prompts of models of one base differ by: the number of tokens, the chat template."""
    return len(tokenizer), str(tokenizer.chat_template)


def unknown(tokenizer: Any, tokens: Sequence[str]) -> tuple[str, ...]:
    """Those of the texts that are no token."""
    known = tokenizer.get_vocab()
    return tuple(token for token in tokens if token not in known)


def grown_size(size: int, num_tokens: int) -> int:
    """Rows of a table of `size` that is to have a row for each of `num_tokens` tokens.

    Example:
        >>> grown_size(49152, 49152), grown_size(49152, 49153)
        (49152, 49216)
    """
    return size if num_tokens <= size else -(-num_tokens // MULTIPLE) * MULTIPLE


def grown_table(
    table: Float[Array, "V D"], size: int, num_known: int, ids: Sequence[int], where: Any
) -> Float[Array, "W D"]:
    """The table with rows for new tokens.

    New rows, and those behind them, are the mean of the known tokens' rows: in the output matrix
    that makes a new token about as likely as a typical one, where a random row could be anything
    (Hewitt 2021, "Initializing new word embeddings for pretrained language models").

    Args:
        size: W, rows of the result.
        num_known: how many tokens had a row that was trained.
        ids: the new tokens, which may have had spare rows.
        where: the sharding of the result.
    """
    grow = jax.jit(_grown, static_argnums=(1, 2, 3), out_shardings=where)
    return grow(table, size, num_known, tuple(ids))


def _grown(table: Array, size: int, num_known: int, ids: tuple[int, ...]) -> Array:
    mean = jnp.mean(table[:num_known].astype(jnp.float32), axis=0).astype(table.dtype)
    more = jnp.broadcast_to(mean, (size - table.shape[0], table.shape[1]))
    return jnp.concatenate([table, more]).at[jnp.array(ids)].set(mean)
