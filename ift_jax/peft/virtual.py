"""Trained positions in front of every example: prompt tuning and prefix tuning.

Prompt tuning (Lester et al. 2021) trains embeddings [P, D] that run through the model as
tokens do. Prefix tuning (Li and Liang 2021) trains keys and values [L, P, K, H] of every layer,
without the network that the paper makes them with. Either way each layer sees P keys and
values more, in every packed segment, and positions count on from P.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ift_jax.peft.config import PeftConfig
from ift_jax.peft.sites import Shapes

METHODS = ("prompt", "prefix")
_SMALL = 0.02  # of random keys and values: at first they only take a share of the attention


def shapes(config: PeftConfig, size: tuple[int, int, int, int]) -> Shapes:
    """Shapes and logical axes of the trained arrays.

    Args:
        size: layers L, width D, key/value heads K and head size H of the model.
    """
    layers, width, kv_heads, head_size = size
    count = config.num_virtual_tokens
    if config.method == "prompt":
        return {"embeddings": ((count, width), (None, "embed"))}
    shape = (layers, count, kv_heads, head_size)
    axes = ("layers", None, "kv_heads", "head_size")
    return {"k": (shape, axes), "v": (shape, axes)}


def start(
    config: PeftConfig,
    size: tuple[int, int, int, int],
    key: Array,
    embedding: Float[Array, "V D"],
    text: Any,
) -> dict[str, Array]:
    """The trained arrays at the start.

    Args:
        embedding: the model's table of embeddings.
        text: of prompt_text its token ids [P] or its keys and values; None without one.
    """
    if config.method == "prompt":
        vocab, count = embedding.shape[0], config.num_virtual_tokens
        ids = jax.random.randint(key, (count,), 0, vocab) if text is None else text
        return {"embeddings": embedding[ids].astype(jnp.float32)}
    found = {}
    for name, (shape, _) in shapes(config, size).items():
        key, own = jax.random.split(key)
        drawn = _SMALL * jax.random.normal(own, shape)
        found[name] = drawn if text is None else text[name].astype(jnp.float32)
    return found


def fitted(ids: list[int], count: int) -> Int[Array, "P"]:
    """A text's tokens, repeated or cut to `count`.

    Example:
        >>> fitted([5, 6, 7], 5).tolist(), fitted([5, 6, 7], 2).tolist()
        ([5, 6, 7, 5, 6], [5, 6])
    """
    return jnp.array((ids * -(-count // len(ids)))[:count], jnp.int32)
