"""The tensors of the PEFT library's adapter folders: their names, and their places in our arrays.

The same entries are read for import and written for export. They follow from the sites of the
adapter, which come from the family's weight table, so that a new family needs nothing here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from ift_jax.peft import ia3
from ift_jax.peft.adapter import FROZEN, TRAINED, Adapter
from ift_jax.peft.sites import Site

Tree = dict[str, Any]

PREFIX = "base_model.model."
PREFIX_OF_VIRTUAL = "base_model."  # virtual tokens need no wrapper around the model's layers
GAINS = ("lora_magnitude_vector", "ia3_l")


class Entry(NamedTuple):
    """A tensor of the folder, and the part of our arrays that it is.

    Attributes:
        part: a view of our array.
        shape: that in the file.
        inputs: how many first axes of the part are a matrix's inputs: the file has them last.
        tied: whether an earlier entry is the same part, so that both must be equal.
    """

    name: str
    part: NDArray[Any]
    shape: tuple[int, ...]
    inputs: int = 0
    tied: bool = False

    def stored(self) -> NDArray[Any]:
        """The part as the file holds it."""
        return self.part.reshape(self._size, -1).T.reshape(self.shape)

    def fill(self, stored: NDArray[Any]) -> None:
        """Sets the part to what the file holds."""
        self.part[...] = stored.reshape(-1, self._size).T.reshape(self.part.shape)

    @property
    def _size(self) -> int:
        return math.prod(self.part.shape[: self.inputs])


def entries(
    adapter: Adapter, arrays: Tree, tied: Sequence[str], ranks: Mapping[str, int]
) -> Iterator[Entry]:
    """Every tensor of an adapter.

    Args:
        arrays: the adapter's branches, as NumPy arrays; see `joined` for prefix tuning.
        tied: modules whose weight is the embedding. peft trains a copy for each module, so
            where the embedding is trained whole, so are they.
        ranks: of linear layers whose A and B are smaller than ours.
    """
    trained, shared = arrays[TRAINED], arrays.get(FROZEN, {}).get("shared", {})
    for site in adapter.sites:
        for array, (suffix, inputs) in _layouts(adapter, site).items():
            for part, name in zip(trained["layers"][site.module][array], site.names(), strict=True):
                rank = slice(ranks.get(name))
                part = part[..., rank] if array == "a" else part[rank] if array == "b" else part
                full = f"{PREFIX}{name}.{suffix}"
                if inputs is None:
                    yield Entry(full, part, (part.size,))
                else:
                    yield _matrix(full, part, inputs)
    for array, matrix in shared.items():
        yield _matrix(f"base_model.vera_{array.upper()}", matrix, 1)
    for site in adapter.whole:
        stored = trained["whole"][site.module]
        for part, name in zip(stored if site.layers else [stored], site.names(), strict=True):
            full = f"{PREFIX}{name}.weight"
            if site.in_shape:
                yield _matrix(full, part, len(site.in_shape))
            else:
                yield Entry(full, part, part.shape)
            if site.path == "embedding":
                for other in tied:
                    yield Entry(f"{PREFIX}{other}.weight", part, part.shape, tied=True)
    for row in adapter.rows:
        full = f"{PREFIX}{row.name}.token_adapter.trainable_tokens_delta"
        yield Entry(full, trained["rows"][row.path], row.shape)
    for part in trained.get("virtual", {}).values():
        yield Entry("prompt_embeddings", part, part.shape)


def _matrix(name: str, part: NDArray[Any], inputs: int) -> Entry:
    size = math.prod(part.shape[:inputs])
    return Entry(name, part, (part.size // size, size), inputs)


def _layouts(adapter: Adapter, site: Site) -> dict[str, tuple[str, int | None]]:
    """Of our arrays at a site: the name behind the layer's, and input axes; None of a vector."""
    inputs = len(site.in_shape)
    pair: dict[str, tuple[str, int | None]] = {
        "a": ("lora_A.weight", inputs),
        "b": ("lora_B.weight", 1),
    }
    layouts: dict[str, dict[str, tuple[str, int | None]]] = {
        "lora": pair,
        "dora": {**pair, "magnitude": ("lora_magnitude_vector", None)},
        "vera": {"d": ("vera_lambda_d", None), "scale_b": ("vera_lambda_b", None)},
        "ia3": {"scale": ("ia3_l", inputs if ia3.scales_input(site) else 0)},
    }
    return layouts[adapter.config.method]


def joined(virtual: Tree) -> tuple[Tree, Tree]:
    """Keys and values [L, P, K, H] of prefix tuning as peft stores them: [P, L * 2 * K * H].

    Returns:
        A branch "virtual" with the one array, and one whose arrays are views of it.

    Example:
        >>> k = np.array([1, 2]).reshape(2, 1, 1, 1)  # two layers, one position
        >>> joined({"k": k, "v": 10 * k})[0]["both"].tolist()
        [[1, 10, 2, 20]]
    """
    layers, count, *heads = virtual["k"].shape
    both = np.stack([virtual["k"], virtual["v"]], axis=1).transpose(2, 0, 1, 3, 4)
    flat = np.ascontiguousarray(both).reshape(count, -1)
    parts = flat.reshape(count, layers, 2, *heads)
    return {"both": flat}, {"k": parts[:, :, 0].swapaxes(0, 1), "v": parts[:, :, 1].swapaxes(0, 1)}


def projections(
    seed: int, inputs: int, rank: int, outputs: int
) -> tuple[Float[np.ndarray, "I R"], Float[np.ndarray, "R O"]]:
    """VeRA's A and B as peft draws them where a folder does not hold them.

    peft fills both from one torch generator on the CPU: a Mersenne twister, of whose 32 bits a
    uniform float takes the lower 24. The bound is that of He et al. (2015) for a matrix's inputs.
    """
    draws = np.random.RandomState(seed).bytes(4 * rank * (inputs + outputs))
    unit = (np.frombuffer(draws, "<u4") & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)
    made = []
    for part, shape in (
        (unit[: rank * inputs], (rank, inputs)),
        (unit[rank * inputs :], (outputs, rank)),
    ):
        bound = math.sqrt(3) * (math.sqrt(2) / math.sqrt(shape[1]))
        low, span = np.float32(-bound), np.float32(bound) - np.float32(-bound)
        made.append((part * span + low).reshape(shape).T)
    return made[0], made[1]
