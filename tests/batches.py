"""Small batches for the tests of training."""

import numpy as np
from tokenized import tokens_of

from ift_jax.batch import Batch
from ift_jax.data.loader import Batches, RowSource
from ift_jax.data.packing import Tokens


def random_examples(count: int, *, seed: int = 0, vocab: int = 258, prefix: int = 0) -> Tokens:
    """Examples of 6 to 20 tokens behind a common prefix, of which the last 2 to 4 are trained."""
    rng = np.random.default_rng(seed)
    beginning = rng.integers(2, vocab, prefix).astype(np.int32)
    parts = []
    for _ in range(count):
        length = int(rng.integers(6, 21))
        ids = np.concatenate([beginning, rng.integers(2, vocab, length).astype(np.int32)])
        trained = np.zeros(len(ids), bool)
        trained[-int(rng.integers(2, 5)) :] = True
        parts.append((ids, trained))
    return tokens_of(parts)


def packed_batch(examples: Tokens, row_length: int = 48, rows: int = 8) -> Batch:
    """The first batch of these examples, packed."""
    return Batches(RowSource(examples, row_length, seed=0), rows, 1)[0]


def unpacked_batch(examples: Tokens, row_length: int = 48) -> Batch:
    """All examples, one a row."""
    source = RowSource(examples, row_length, seed=0, packing="none", shuffle=False)
    return Batches(source, len(examples.lengths), 1)[0]
