"""Where an adapter of the PEFT library sits: its rules for naming modules, read and written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ift_jax.errors import InputError
from ift_jax.peft.adapter import Adapter
from ift_jax.peft.sites import Site, selected
from ift_jax.peft.whole import Rows, is_table

Fields = Mapping[str, Any]


class Host(NamedTuple):
    """The model that an adapter stands beside.

    Attributes:
        tensors: every weight, see `peft.sites.tensor_sites`.
        size: layers L, width D, key/value heads K and head size H.
        tied: modules that have no weight of their own but the embedding's: "lm_head".
    """

    tensors: tuple[Site, ...]
    size: tuple[int, int, int, int]
    tied: tuple[str, ...]


def places(fields: Fields, host: Host, where: str) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
    """The linear layers that have an adapter, and the tensors trained whole, by peft's rules.

    Raises:
        InputError: for names and patterns that leave nothing, or mean one layer twice.
    """
    whole = _saved(fields, host, where)
    asked = fields.get("modules_to_save") or ()
    passed = [compiled(rf"(.*\.)?{name}(\..*)?", "modules_to_save", where) for name in asked]
    left_out = fields.get("exclude_modules") or ()
    if isinstance(left_out, str):
        passed.append(compiled(left_out, "exclude_modules", where))
    else:
        passed += _ending_with(left_out)
    _check_tables(fields, host, passed, where)
    sites = []
    for site in _chosen(fields, tuple(s for s in host.tensors if s.is_linear), where):
        layers = tuple(
            layer
            for layer in site.layers
            if not any(pattern.fullmatch(site.name.format(layer)) for pattern in passed)
        )
        if layers:
            sites.append(replace(site, layers=layers))
    if not sites:
        raise InputError(
            f"{where}: modules_to_save={asked!r} and exclude_modules={left_out!r} leave no linear "
            "layer for the adapter"
        )
    both = {n for s in sites for n in s.names()} & {n for s in whole for n in s.names()}
    if both:
        raise InputError(
            f"{where}: modules_to_save={asked!r} trains {min(both)} whole, which has an adapter"
        )
    return tuple(sites), whole


def _ending_with(names: Sequence[str]) -> list[re.Pattern[str]]:
    """Patterns of modules that are named so, or whose last parts are."""
    return [re.compile(rf"(.*\.)?{re.escape(name)}") for name in names]


def _check_tables(
    fields: Fields, host: Host, passed: Sequence[re.Pattern[str]], where: str
) -> None:
    """Refuses adapters at the embedding or at the output matrix, which "all-linear" leaves out."""
    targets = fields.get("target_modules")
    patterns = []
    if isinstance(targets, list):
        patterns = _ending_with([name for name in targets if isinstance(name, str)])
    elif isinstance(targets, str) and targets != "all-linear":
        patterns = [compiled(targets, "target_modules", where)]
    for name in (*(site.name for site in host.tensors if is_table(site)), *host.tied):
        asked = any(pattern.fullmatch(name) for pattern in patterns)
        if asked and not any(pattern.fullmatch(name) for pattern in passed):
            raise InputError(
                f"{where}: target_modules={targets!r} names {name}; an adapter at embedding or "
                "output matrix is not supported: train it without, or with modules_to_save"
            )


def _saved(fields: Fields, host: Host, where: str) -> tuple[Site, ...]:
    """What modules_to_save names: tensors whose module, or one around it, ends with a name."""
    asked = fields.get("modules_to_save") or ()
    if not isinstance(asked, list | tuple) or not all(isinstance(name, str) for name in asked):
        raise InputError(f"{where}: modules_to_save={asked!r}; expected a list of names")

    def named(name: str) -> bool:
        parts = name.split(".")
        modules = (".".join(parts[: end + 1]) for end in range(len(parts)))
        return any(module.endswith(end) for module in modules for end in asked)

    found = []
    for site in host.tensors:
        layers = tuple(layer for layer in site.layers if named(site.name.format(layer)))
        if layers or (not site.layers and named(site.name)):
            found.append(replace(site, layers=layers))
    alone = [name for name in host.tied if named(name)]
    if alone and not any(site.path == "embedding" for site in found):
        raise InputError(
            f"{where}: modules_to_save={asked!r} trains {alone[0]} without the embedding, to which "
            "this model ties it"
        )
    return tuple(found)


def _chosen(fields: Fields, sites: tuple[Site, ...], where: str) -> tuple[Site, ...]:
    """The sites that target_modules and layers_to_transform name, by peft's rules."""
    targets = fields.get("target_modules")
    layers = fields.get("layers_to_transform")
    layers = (layers,) if isinstance(layers, int) else tuple(sorted(layers or ()))
    every = {layer for site in sites for layer in site.layers}
    meant = every & set(layers) or every
    names = [site.name.format(layer) for site in sites for layer in site.layers if layer in meant]
    if isinstance(targets, str) and targets != "all-linear":
        found: tuple[str, ...] = (targets,)
        layers = ()  # peft ignores them beside a pattern
    elif isinstance(targets, list):
        # A name that this model does not have is no error in peft; tensors decide below.
        found = tuple(t for t in targets if any(n == t or n.endswith(f".{t}") for n in names))
        found = tuple(re.escape(t) if t in names else t for t in found)
    else:
        found = ()
    if not found and targets != "all-linear":
        raise InputError(f"{where}: target_modules={targets!r} names no linear layer of this model")
    try:
        return selected(sites, found, layers, "targets")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def token_rows(fields: Fields, host: Host, saved: Sequence[Site], where: str) -> tuple[Rows, ...]:
    """What trainable_token_indices names: rows of the tables whose names end with a name."""
    stored = fields.get("trainable_token_indices") or {}
    tables = [site for site in host.tensors if is_table(site)]
    embedding = next(site.name for site in tables if site.path == "embedding")
    asked = stored if isinstance(stored, dict) else {embedding: stored}

    def wrong(why: str) -> InputError:
        return InputError(f"{where}: trainable_token_indices={stored!r}: {why}")

    found: list[Rows] = []
    for name, ids in asked.items():
        if any(other.endswith(name) for other in host.tied):
            if ids not in [other for n, other in asked.items() if embedding.endswith(n)]:
                raise wrong(f"{name} is tied to {embedding} here, and has the same rows")
            continue
        table = next((site for site in tables if site.name.endswith(name)), None)
        if table is None:
            raise wrong(f"{name} is no table of tokens; there are {[s.name for s in tables]}")
        if not isinstance(ids, list):
            raise wrong("expected a list of tokens")
        size, width = table.out_shape
        if not all(type(token) is int and 0 <= token < size for token in ids):
            raise wrong(
                f"expected tokens of 0 to {size - 1}; if its base has more tokens, their tokenizer "
                "must be in this folder"
            )
        if not ids or len({*ids}) < len(ids) or table.name in {row.name for row in found}:
            raise wrong("expected different tokens")
        if table.name in {site.name for site in saved}:
            raise wrong(f"modules_to_save trains all rows of {table.name}")
        found.append(Rows(table.name, table.path, tuple(ids), width))
    return tuple(found)


def patterned(fields: Fields, field: str, name: str, default: Any, where: str) -> Any:
    """peft's rule: the first pattern that is a suffix of the name, as a regular expression."""
    for pattern, value in (fields.get(field) or {}).items():
        if compiled(rf"(.*\.)?({pattern})", field, where).fullmatch(name):
            return value
    return default


def compiled(text: str, field: str, where: str) -> re.Pattern[str]:
    """A field's regular expression. Raises InputError where it is none."""
    try:
        return re.compile(text)
    except re.error as error:
        raise InputError(f"{where}: {field}: no regular expression ({error})") from None


def written_places(adapter: Adapter, host: Host, *, layered: bool) -> dict[str, Any]:
    """The fields that say where the adapter sits.

    Args:
        layered: whether the format has layers_to_transform, so that names need no numbers.
    """
    layers = {site.layers for site in adapter.sites}
    saved = [name for site in adapter.whole for name in site.names()]
    if any(site.path == "embedding" for site in adapter.whole):
        saved += host.tied
    fields: dict[str, Any] = {
        "fan_in_fan_out": False,
        "modules_to_save": saved or None,
        "target_modules": module_names(adapter.sites, adapter),
    }
    if layered and len(layers) == 1 and len(next(iter(layers))) < adapter.num_layers:
        fields["layers_to_transform"] = sorted(next(iter(layers)))
        fields["target_modules"] = [site.module for site in adapter.sites]
    return fields


def module_names(sites: Sequence[Site], adapter: Adapter) -> list[str]:
    """Names of linear layers: without numbers where the adapter sits in every layer."""
    if all(len(site.layers) == adapter.num_layers for site in adapter.sites):
        return [site.module for site in sites]
    return [name for site in sites for name in site.names()]
