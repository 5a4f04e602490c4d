"""One engine that reads and writes a family's weight table."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ift_jax.errors import InputError
from ift_jax.hf.families import Row
from ift_jax.models.decoder import Params
from ift_jax.models.quantization import Quantized, dense


class StoredTensor(NamedTuple):
    """A tensor in a file, not read yet."""

    shape: tuple[int, ...]
    load: Callable[[], NDArray[Any]]
    origin: str


def read_params(
    rows: tuple[Row, ...],
    shapes: Params,
    tensors: Mapping[str, StoredTensor],
    *,
    place: Callable[[str, NDArray[Any]], jax.Array | Quantized] | None = None,
) -> Params:
    """Builds the parameter tree from stored tensors, one of our arrays at a time.

    Args:
        rows: the family's table.
        shapes: our tree of jax.ShapeDtypeStruct; tensors are converted to its dtypes.
        tensors: what the checkpoint holds, by Hugging Face name.
        place: puts a finished array (named by path) on devices, quantized or as it is;
            default: as it is on the default device.

    Raises:
        InputError: for a tensor that is missing, of the wrong shape, or that no row reads.
    """
    place = place or (lambda _, array: jnp.asarray(array))
    by_path: dict[str, list[Row]] = {}
    for row in rows:
        by_path.setdefault(row.path, []).append(row)
    params: Params = {}
    used: set[str] = set()
    for path, struct in flat_paths(shapes).items():
        out = np.empty(struct.shape, struct.dtype)
        for row in by_path[path]:
            for name, target in _targets(row, out):
                if name not in tensors:
                    raise InputError(f"{_origin(tensors)}: the tensor {name} is missing")
                used.add(name)
                _fill(target, tensors[name], name, row)
        set_path(params, path, place(path, out))
    _refuse_unused(tensors, used, params)
    return params


def write_tensors(
    rows: tuple[Row, ...], params: Params, dtype: Any
) -> Iterator[tuple[str, NDArray[Any]]]:
    """The checkpoint's tensors in the table's order, converted to `dtype`, layer by layer.

    Quantized weights are written as what they compute with.
    """
    arrays = flat_paths(params)
    for path in arrays:
        if path not in {row.path for row in rows}:
            raise ValueError(f"no row of the weight table writes {path}")
    for row in rows:
        array = arrays[row.path]
        layers = range(_num_layers(array)) if row.per_layer else [None]
        for layer in layers:
            part = np.asarray(array if layer is None else _layer(array, layer))[row.part]
            if row.in_axes:
                part = part.reshape(int(np.prod(part.shape[: row.in_axes])), -1).T
            yield row.name.format(layer), np.ascontiguousarray(part.astype(dtype))


def _num_layers(array: Any) -> int:
    return jax.tree.leaves(array)[0].shape[0]


def _layer(array: Any, layer: int) -> Any:
    part = jax.tree.map(lambda x: x[layer], array)
    return dense(part, jnp.float32) if isinstance(part, Quantized) else part


def tensor_shapes(rows: tuple[Row, ...], shapes: Params) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that `write_tensors` yields, without reading any."""
    found = {}
    for row in rows:
        struct = flat_paths(shapes)[row.path]
        strides_only = np.broadcast_to(np.zeros((), np.int8), struct.shape)
        for name, target in _targets(row, strides_only):
            found[name] = _stored_shape(target, row)
    return found


def flat_paths(tree: Params, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Leaves by dotted path.

    Example:
        >>> flat_paths({"a": {"b": 1}, "c": 2})
        {'a.b': 1, 'c': 2}
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf or (lambda x: isinstance(x, Quantized))
    )
    return {".".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def set_path(tree: Params, path: str, value: Any) -> None:
    """Puts a leaf at a dotted path, making the nodes on the way."""
    *parents, last = path.split(".")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


def _targets(row: Row, out: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensor names of a row, each with the view of our array that it fills."""
    if not row.per_layer:
        yield row.name, out[row.part]
        return
    for layer in range(out.shape[0]):
        yield row.name.format(layer), out[layer][row.part]


def _stored_shape(target: NDArray[Any], row: Row) -> tuple[int, ...]:
    if not row.in_axes:
        return target.shape
    inputs, outputs = target.shape[: row.in_axes], target.shape[row.in_axes :]
    return int(np.prod(outputs)), int(np.prod(inputs))


def _fill(target: NDArray[Any], stored: StoredTensor, name: str, row: Row) -> None:
    expected = _stored_shape(target, row)
    if tuple(stored.shape) != expected:
        raise InputError(
            f"{stored.origin}: {name} has shape {tuple(stored.shape)}, expected {expected}"
        )
    value = stored.load()
    target[...] = value.T.reshape(target.shape) if row.in_axes else value


def _refuse_unused(tensors: Mapping[str, StoredTensor], used: set[str], params: Params) -> None:
    for name in sorted(set(tensors) - used):
        if name.endswith(".rotary_emb.inv_freq"):
            continue  # transformers of old stored what follows from rope_theta
        if name == "lm_head.weight" and "output" not in params:
            embedding = np.asarray(params["embedding"])
            if np.array_equal(tensors[name].load().astype(embedding.dtype), embedding):
                continue  # some writers store the tied embedding twice
            raise InputError(
                f"{tensors[name].origin}: {name} differs from the embedding, to which the config "
                "ties it; set tie_word_embeddings to false if it is meant"
            )
        raise InputError(f"{tensors[name].origin}: the tensor {name} is not part of this model")


def _origin(tensors: Mapping[str, StoredTensor]) -> str:
    return next((tensor.origin for tensor in tensors.values()), "checkpoint")
