"""Batch: the only contract between data and model code."""

from typing import NamedTuple

from jaxtyping import Array, Float, Int


class Batch(NamedTuple):
    """Packed rows, and which positions are trained to predict which token.

    Several examples share a row. `segment_ids` keeps them apart in attention and
    `positions` restarts with each. Only the listed target positions reach the output
    projection, so their number P is fixed per batch; unused slots have weight 0.

    A row with two examples, "a b > X ." and "c > Y .", of which "X ." and "Y ." are trained:

        tokens            a  b  >  X  .  c  >  Y  .  _
        positions         0  1  2  3  4  0  1  2  3  0
        segment_ids       1  1  1  1  1  2  2  2  2  0
        target_positions  2  3  6  7  0
        targets           X  .  Y  .  0
        weights           1  1  1  1  0
    """

    tokens: Int[Array, "B S"]
    positions: Int[Array, "B S"]
    segment_ids: Int[Array, "B S"]
    target_positions: Int[Array, "B P"]
    targets: Int[Array, "B P"]
    weights: Float[Array, "B P"]
