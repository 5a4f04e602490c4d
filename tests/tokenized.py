"""Tokenized examples made in tests."""

import numpy as np

from ift_jax.data.packing import Tokens


def tokens_of(pairs):
    """Tokens of (ids, trained) of each example; the first token of none is a target."""
    return Tokens(
        np.array([len(ids) for ids, _ in pairs]),
        np.array([int(trained[1:].sum()) for _, trained in pairs]),
        lambda number: pairs[number],
    )
