"""Adapter folders of the PEFT library (adapter_config.json, adapter_model.safetensors), both ways.

`adapter_fields` reads and writes the fields, `adapter_places` those that name modules, and
`adapter_tensors` names the tensors.
"""

import copy
import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ift_jax.errors import InputError
from ift_jax.hf import folder
from ift_jax.hf.adapter_fields import read_plan, written_fields
from ift_jax.hf.adapter_places import Host
from ift_jax.hf.adapter_tensors import (
    GAINS,
    PREFIX,
    PREFIX_OF_VIRTUAL,
    Entry,
    entries,
    joined,
    projections,
)
from ift_jax.hf.weights import StoredTensor
from ift_jax.peft.adapter import FROZEN, TRAINED, Adapter
from ift_jax.peft.mixing import without_start
from ift_jax.peft.whole import is_table

Tree = dict[str, Any]

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Read(NamedTuple):
    """What a folder holds, on the host.

    Attributes:
        adapter, arrays: as `LanguageModel.with_adapter` takes them.
        tables: embedding and output matrix of the base itself, by our paths, where peft saved
            them beside the adapter (save_embedding_layers, its default after a resize).
    """

    adapter: Adapter
    arrays: Tree
    tables: dict[str, NDArray[np.float32]]

    def alone(self, path: str | Path) -> tuple[Adapter, Tree]:
        """The adapter; it is refused if it brings tables, which others beside it do not have."""
        if self.tables:
            raise InputError(
                f"{path}: holds the base's own {' and '.join(self.tables)} (peft's "
                "save_embedding_layers), which other adapters do not share; load it by itself, or "
                "save it with save_embedding_layers=False"
            )
        return self.adapter, self.arrays


def read_adapter(path: Path, host: Host) -> Read:
    """The adapter of a folder that peft, or `write_adapter`, wrote.

    Args:
        host: the model that it is for.

    Raises:
        InputError: for a missing or broken file; a field of adapter_config.json that we
            neither read nor find at a value where it does nothing; a tensor that is missing,
            mis-shaped, or that nothing reads.
    """
    where = path / _CONFIG
    plan = read_plan(folder.read_json(where), host, str(where))
    if not (path / _WEIGHTS).exists() and (path / "adapter_model.bin").exists():
        raise InputError(
            f"{path}: holds adapter_model.bin, a pickle; save it again with peft's "
            "save_pretrained, which writes safetensors"
        )
    tensors = folder.open_file(path / _WEIGHTS)
    adapter = plan.adapter
    arrays = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), adapter.shapes())
    stored = arrays
    if adapter.config.method == "prefix":
        one, views = joined(arrays[TRAINED]["virtual"])
        stored, arrays = {TRAINED: {"virtual": one}}, {TRAINED: {"virtual": views}}
    elif plan.projection_seed >= 0:
        shared = arrays[FROZEN]["shared"]
        sizes = (*shared["a"].shape, shared["b"].shape[1])
        shared["a"][...], shared["b"][...] = projections(plan.projection_seed, *sizes)
        stored = {TRAINED: arrays[TRAINED]}
    wanted = list(entries(adapter, stored, host.tied, plan.ranks))
    tables, beside, unused = _tables(adapter, arrays, host, tensors)
    _fill([*wanted, *beside], tensors, path / _WEIGHTS, unused)
    for site in adapter.sites:
        for row, name in enumerate(site.names()):
            if name in plan.scalings:
                root = math.sqrt(plan.scalings[name] / adapter.config.scaling)
                for array in ("a", "b"):
                    arrays[TRAINED]["layers"][site.module][array][row] *= np.float32(root)
    return Read(adapter, arrays, tables)


def _tables(
    adapter: Adapter, arrays: Tree, host: Host, tensors: Mapping[str, StoredTensor]
) -> tuple[dict[str, NDArray[np.float32]], list[Entry], set[str]]:
    """Room for the base's own tables that a folder holds, their entries, and names to leave.

    Where the adapter trained a table whole, peft saves it a second time, and what the base had in
    its place, which nothing reads. Trained rows of a tied table it saves for each module.
    """
    trained = {site.name for site in adapter.whole}
    trained |= set(host.tied) if any(s.path == "embedding" for s in adapter.whole) else set()
    made: dict[str, NDArray[np.float32]] = {}
    found: list[Entry] = []
    prefix = _prefix(adapter)
    for path, names in _table_names(host).items():
        own = [
            _table_name(name, beside_rows, prefix)
            for name in names
            for beside_rows in (False, True)
            if name not in trained and _table_name(name, beside_rows, prefix) in tensors
        ]
        if own:
            site = next(site for site in host.tensors if site.path == path)
            made[path] = np.zeros(site.out_shape, np.float32)
            found += _table_entries(own, made[path])
    for row in adapter.rows:
        for module in host.tied if row.path == "embedding" else ():
            name = f"{PREFIX}{module}.token_adapter.trainable_tokens_delta"
            if name in tensors:
                found.append(Entry(name, arrays[TRAINED]["rows"][row.path], row.shape, tied=True))
    again = ("original_module", "modules_to_save")
    return made, found, {f"{PREFIX}{name}.{which}.weight" for name in trained for which in again}


def _table_names(host: Host) -> dict[str, list[str]]:
    """Of embedding and output matrix, by our paths, the modules that have them."""
    return {
        site.path: [site.name, *(host.tied if site.path == "embedding" else ())]
        for site in host.tensors
        if is_table(site)
    }


def _prefix(adapter: Adapter) -> str:
    return PREFIX_OF_VIRTUAL if adapter.num_virtual else PREFIX


def _table_name(module: str, beside_rows: bool, prefix: str) -> str:
    """The tensor of a module's whole table; where some of its rows are trained, it lies deeper."""
    return f"{prefix}{module}{'.token_adapter.base_layer' if beside_rows else ''}.weight"


def _table_entries(names: Sequence[str], table: NDArray[Any]) -> list[Entry]:
    return [Entry(name, table, table.shape, tied=number > 0) for number, name in enumerate(names)]


class NewTokens(NamedTuple):
    """Tokens that an adapter was trained with and a model does not have.

    Attributes:
        texts: in the order of their numbers, which go on from those that the model has.
        num_rows: of the tables that a folder stores whole; 0 where it does not.
        tokenizer: with which, and with whose chat template, the adapter was trained; None where
            that is not known to be another than the model's.
    """

    texts: tuple[str, ...]
    num_rows: int = 0
    tokenizer: Any = None


def new_tokens(path: Path, tokenizer: Any, host: Host) -> NewTokens:
    """What a folder brings, rows of tokens and the tokenizer itself, for a model with `tokenizer`.

    Raises:
        InputError: where its tokenizer does not number new tokens on from the model's.
    """
    config = path / _CONFIG
    if not config.exists() or not (path / _WEIGHTS).exists():
        return NewTokens(())
    theirs = folder.read_tokenizer(path)
    if theirs is None:
        return NewTokens(())
    stored = folder.open_file(path / _WEIGHTS)
    tables = [site for site in host.tensors if is_table(site)]
    names = [
        _table_name(site.name, beside_rows, prefix)
        for site in tables
        for beside_rows in (False, True)
        for prefix in (PREFIX, PREFIX_OF_VIRTUAL)
    ]
    num_rows = max((stored[name].shape[0] for name in names if name in stored), default=0)
    asked = folder.read_json(config).get("trainable_token_indices") or []
    lists = asked.values() if isinstance(asked, dict) else [asked]
    ids = [i for one in lists if isinstance(one, list) for i in one if isinstance(i, int)]
    num_tokens, own_rows = len(tokenizer), tables[0].out_shape[0]
    if num_rows <= own_rows and max(ids, default=0) < num_tokens:
        # More tokens than the model's may use rows that it has to spare, as they are.
        return NewTokens((), 0, _trained_with(path, theirs, tokenizer, own_rows))
    more = sorted((number, text) for text, number in theirs.get_vocab().items()
                  if number >= num_tokens)  # fmt: skip
    if [number for number, _ in more] != [*range(num_tokens, num_tokens + len(more))]:
        raise InputError(
            f"{path}: its tokenizer has tokens {[n for n, _ in more]} beyond the model's "
            f"{num_tokens}; expected numbers without gaps"
        )
    texts = tuple(text for _, text in more)
    size = max(num_rows, own_rows, len(theirs.get_vocab()))
    return NewTokens(texts, num_rows, _trained_with(path, theirs, tokenizer, size))


def _trained_with(path: Path, theirs: Any, ours: Any, num_rows: int) -> Any:
    """The folder's tokenizer, fit for the model: tokens alike, and no more than have rows.

    One that numbers the model's tokens otherwise is not used, and stderr says so.
    """
    known, found = ours.get_vocab(), theirs.get_vocab()
    other = next((text for text, number in known.items() if found.get(text) != number), None)
    if other is not None:
        print(
            f"{path}: its tokenizer and chat template are not used, as token {other!r} has number "
            f"{found.get(other)} there and {known[other]} in the model",
            file=sys.stderr,
        )
        return None
    if theirs.chat_template is None:
        theirs.chat_template = ours.chat_template
    if max(found.values()) < num_rows:
        return theirs
    told = copy.deepcopy(ours)
    told.chat_template = theirs.chat_template
    return told


def write_adapter(
    path: Path,
    adapter: Adapter,
    arrays: Tree,
    host: Host,
    *,
    dtype: str,
    base_model: str,
    tokenizer: Any,
    tables: Mapping[str, Any],
) -> None:
    """Writes a folder that peft loads: `PeftModel.from_pretrained(base, path)`.

    PiSSA's part that was taken out of the weights becomes another `rank` columns, so that the
    folder fits the unchanged base model.

    Args:
        arrays: the adapter's branches, as `Adapter.init` gives them; others are left aside.
        host: the model that it stands beside.
        dtype: of the saved arrays, but for the few gains of DoRA and IA3: near 1, where they begin,
            bfloat16 has no room for what they learned.
        base_model: what the folder says it adapts, a hub id or a path.
        tokenizer: saved beside it, if not None.
        tables: embedding and output matrix that are not those of the base model, by path.

    Raises:
        InputError: for a method that peft has no format for, and if the folder exists and is
            not empty, or cannot be written.
    """
    adapter, arrays = without_start(adapter, arrays)
    fields = written_fields(adapter, host)
    fields["base_model_name_or_path"] = base_model or None
    own = {name: arrays[name] for name in (TRAINED, FROZEN) if name in arrays}
    stored = jax.tree.map(np.asarray, own)
    if adapter.config.method == "prefix":
        stored = {TRAINED: {"virtual": joined(stored[TRAINED]["virtual"])[0]}}
    wanted = list(entries(adapter, stored, host.tied, {}))
    trained_whole = {site.path for site in adapter.whole}
    with_rows = {row.path for row in adapter.rows}
    for table, names in _table_names(host).items():
        if table in tables and table not in trained_whole:
            named = [_table_name(name, table in with_rows, _prefix(adapter)) for name in names]
            wanted += _table_entries(named, np.asarray(tables[table]))
    tensors = {
        entry.name: np.ascontiguousarray(
            entry.stored().astype("float32" if entry.name.endswith(GAINS) else jnp.dtype(dtype))
        )
        for entry in wanted
    }
    with folder.new_folder(path) as partial:
        text = json.dumps(fields, indent=2, sort_keys=True) + "\n"
        (partial / _CONFIG).write_text(text, encoding="utf-8")
        folder.save_tensors(partial / _WEIGHTS, tensors, like=partial / _CONFIG)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)


def _fill(
    wanted: Iterable[Entry],
    tensors: Mapping[str, StoredTensor],
    file: Path,
    unused: Set[str],
) -> None:
    """Reads every entry, and refuses tensors that none of them is, but for those of no use."""
    used = set(unused)
    for entry in wanted:
        name = entry.name
        if name not in tensors:
            why = "; here it is tied to the embedding, which is trained" if entry.tied else ""
            raise InputError(f"{file}: the tensor {name} is missing{why}")
        shape = tuple(tensors[name].shape)
        if shape != entry.shape:
            why = "; if its base has more tokens, their tokenizer must be in this folder"
            why = why if entry.name.endswith((".embed_tokens.weight", "lm_head.weight")) else ""
            raise InputError(f"{file}: {name} has shape {shape}, expected {entry.shape}{why}")
        value = tensors[name].load().astype(np.float32)
        if not entry.tied:
            entry.fill(value)
        elif not np.array_equal(entry.stored(), value):
            raise InputError(f"{file}: {name} differs from the embedding, to which it is tied here")
        used.add(name)
    for name in sorted(set(tensors) - used):
        raise InputError(f"{file}: the tensor {name} is not part of this adapter")
