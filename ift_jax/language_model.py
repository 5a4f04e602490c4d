"""LanguageModel: a checkpoint's config, parameters and tokenizer in one value, for people."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from ift_jax import adapting
from ift_jax.data.chat import Chat, Message
from ift_jax.errors import InputError
from ift_jax.hf import adapters, families, folder, weights
from ift_jax.model_config import DTYPES, check_choice
from ift_jax.models import decoder
from ift_jax.models.decoder import Params, Structure
from ift_jax.peft import merging, mixing
from ift_jax.peft.adapter import ROWS, Adapter, own_weights
from ift_jax.peft.config import PeftConfig
from ift_jax.sharding import param_shardings
from ift_jax.vocabulary import extended_tokenizer, grown_size, grown_table, unknown

if TYPE_CHECKING:
    from ift_jax.evaluation.sampling import Sampling

PROMPTS_AT_ONCE = 1024  # enough that prompts of one length fill their batches


@dataclass(repr=False)
class LanguageModel:
    """A model ready to score, generate and be saved. Made by `pretrained.load_pretrained`.

    Attributes:
        structure: static part; `structure.merge(params)` is the Flax module.
        params: nested dict of arrays.
        tokenizer: a transformers fast tokenizer, or None if the folder had none.
        hf_config: the config.json it came from (or its equivalent).
        generation_config: generation_config.json or its equivalent.
        stored_dtype: the dtype of the weights on disk, and of what is saved.
        source: the file or folder whose weights these are; "" where they were changed since.
        tables: embedding and output matrix, by path, that came with an adapter's folder instead of
            the base's own; `save_adapter` writes them beside the adapter.
    """

    structure: Structure
    params: Params
    tokenizer: Any | None
    hf_config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    stored_dtype: str
    source: str = ""
    tables: tuple[str, ...] = ()
    # Factors [R] by name, where several adapters are loaded; see `load_adapters`.
    _rows: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __repr__(self) -> str:
        shapes = jax.tree.leaves(decoder.param_shapes(self.structure.config))
        sizes = [int(np.prod(leaf.shape)) for leaf in shapes]
        return f"LanguageModel({self.hf_config['model_type']}, {sum(sizes):,} parameters)"

    @cached_property
    def chat(self) -> Chat:
        """How prompts become token ids. Raises InputError for a model without a tokenizer."""
        if self.tokenizer is None:
            raise InputError("this model's folder has no tokenizer; text cannot be used with it")
        return Chat.of(self.tokenizer)

    def logits(
        self,
        input_ids: Int[Array, "B S"],
        attention_mask: Int[Array, "B S"] | None = None,
        *,
        adapters: Sequence[str] | None = None,
    ) -> Float[Array, "B S V"]:
        """Next-token scores in float32.

        Args:
            attention_mask: 1 on tokens, 0 on padding (left or right); default all 1.
            adapters: after `load_adapters`, which of them each row uses; "" is the base.

        Raises:
            InputError: for ids of the wrong rank or outside the vocabulary, and for a mask of
                another shape or with other values.
        """
        ids = np.asarray(input_ids)
        vocab = self.structure.config.vocab_size
        if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
            raise InputError(f"input_ids: expected integers [B, S], got {ids.dtype} {ids.shape}")
        if ids.size and not (ids.min() >= 0 and ids.max() < vocab):
            raise InputError(f"input_ids: expected 0..{vocab - 1}, got {ids.min()}..{ids.max()}")
        mask = (
            np.ones(ids.shape, np.int32) if attention_mask is None else np.asarray(attention_mask)
        )
        if mask.shape != ids.shape:
            raise InputError(f"attention_mask: expected shape {ids.shape}, got {mask.shape}")
        if not np.isin(mask, (0, 1)).all():
            raise InputError("attention_mask: expected 1 on tokens and 0 on padding, nothing else")
        begins = (np.diff(mask, axis=1, prepend=0) == 1).sum(axis=1)
        if (begins > 1).any():
            raise InputError(
                f"attention_mask: row {int(np.argmax(begins > 1))} has padding between its tokens; "
                "it may stand left and right of them"
            )
        params = self.params
        rows = self.adapter_rows(adapters, len(ids))
        if rows is not None:
            params = {**params, ROWS: jnp.asarray(rows)}
        return decoder.logits(
            self.structure, params, jnp.asarray(ids), jnp.asarray(mask.astype(np.int32))
        )

    def generate(
        self, prompts: Sequence[str], *, adapters: Sequence[str] | None = None, **options: Any
    ) -> list[str]:
        """One completion per prompt, each prompt a user's turn in the model's chat format.

        Args:
            adapters: after `load_adapters`, which of them each prompt uses; "" is the base.
            options: any fields of `evaluation.sampling.Sampling`: max_new_tokens=128,
                temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0, stop=(), seed=0.

        Raises:
            InputError: for options that make no sense, and a prompt that leaves no room.
        """
        return list(
            chain.from_iterable(self.generate_in_parts(prompts, adapters=adapters, **options))
        )

    def generate_in_parts(
        self, prompts: Sequence[str], *, adapters: Sequence[str] | None = None, **options: Any
    ) -> Iterator[list[str]]:
        """The completions of `generate`, `PROMPTS_AT_ONCE` at a time, in the order of the prompts.

        Raises:
            InputError: as `generate`; for any of the prompts before the first are answered.
        """
        if isinstance(prompts, str):
            raise InputError("generate: expected a list of prompts, got one text; put it into []")
        return self._answers([_user(text) for text in prompts], adapters, options)

    def reply(
        self, messages: Sequence[Message], *, adapter: str | None = None, **options: Any
    ) -> str:
        """The assistant's next turn of a conversation; options as for `generate`."""
        [[text]] = self._answers([messages], None if adapter is None else [adapter], options)
        return text

    def stream(
        self, messages: Sequence[Message], *, adapter: str | None = None, **options: Any
    ) -> Iterator[str]:
        """The text of `reply` in pieces, while it is made."""
        from ift_jax.evaluation.texts import stream_text

        pieces = stream_text(
            self.structure,
            self.params,
            self.chat,
            self.chat.prompt_ids(messages),
            _sampling(options),
            stop_ids=self.stop_ids,
            mesh=self.mesh,
            adapter_rows=self.adapter_rows(None if adapter is None else [adapter], 1),
        )
        return pieces if self.mesh is None else _made_over(self.mesh, pieces)

    def _answers(
        self,
        conversations: Sequence[Sequence[Message]],
        adapters: Sequence[str] | None,
        options: Mapping[str, Any],
    ) -> Iterator[list[str]]:
        from ift_jax.evaluation.generation import check_prompts, sample_keys
        from ift_jax.evaluation.texts import generate_texts, with_stop_tokens

        sampling = _sampling(options)
        prompts = [self.chat.prompt_ids(messages) for messages in conversations]
        check_prompts(self.structure, prompts, sampling)
        with_stop_tokens(self.chat, self.stop_ids, sampling.stop)  # refuses what cannot stop
        rows, keys = self.adapter_rows(adapters, len(prompts)), sample_keys(prompts)

        def answered(some: slice) -> list[str]:
            with nullcontext() if self.mesh is None else jax.set_mesh(self.mesh):
                return generate_texts(
                    self.structure,
                    self.params,
                    self.chat,
                    prompts[some],
                    sampling,
                    stop_ids=self.stop_ids,
                    mesh=self.mesh,
                    adapter_rows=None if rows is None else rows[some],
                    keys=keys[some],
                )

        starts = range(0, len(prompts), PROMPTS_AT_ONCE)
        return (answered(slice(start, start + PROMPTS_AT_ONCE)) for start in starts)

    @property
    def mesh(self) -> Mesh | None:
        """What the weights lie on; None for one device."""
        return getattr(self.params["embedding"].sharding, "mesh", None)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation: the chat format's end of turn and the config's ends."""
        return tuple(sorted({*self._listed_ends(), self.chat.end_of_turn_id}))

    def _listed_ends(self) -> list[int]:
        ends = self.generation_config.get("eos_token_id")
        return ends if isinstance(ends, list) else [] if ends is None else [ends]

    def _saved_generation(self) -> Mapping[str, Any]:
        """`generation_config`, the token that closes a turn of the chat format among its ends:
        `stop_ids` has it too, and others would not stop there."""
        if self.tokenizer is None or self.tokenizer.chat_template is None:
            return self.generation_config
        try:
            ends = list(self.stop_ids)
        except InputError:  # a template that nobody can have asked by
            return self.generation_config
        if set(ends) == set(self._listed_ends()):
            return self.generation_config
        return {**self.generation_config, "eos_token_id": ends[0] if len(ends) == 1 else ends}

    def adapt(self, config: PeftConfig, *, seed: int = 0) -> "LanguageModel":
        """The same weights, frozen, with a fresh adapter beside them; itself for "none".

        Args:
            seed: of the adapter's random start. Its arrays lie where the weights do.

        Raises:
            InputError: if the config names what the model does not have, or the model has an
                adapter already.
        """
        if config.method == "none":
            return self
        if self.structure.adapter is not None:
            raise InputError("the model has an adapter already; `merged()` works it in")
        adapter = self.adapter_for(config)
        arrays = adapter.init(self.params, seed, adapting.prompt_start(self, config))
        return self.with_adapter(adapter, adapting.placed(self, adapter, arrays))

    def adapter_for(self, config: PeftConfig) -> Adapter:
        """The static half of an adapter for this model. Raises InputError as `adapt`."""
        return adapting.adapter_for(self, config)

    def with_adapter(self, adapter: Adapter, arrays: Params) -> "LanguageModel":
        """The model with an adapter's arrays, as `Adapter.init` gives them, beside its weights."""
        structure = self.structure._replace(adapter=adapter)
        return dataclasses.replace(self, structure=structure, params={**self.params, **arrays})

    def without_adapter(self) -> "LanguageModel":
        """The base model that an adapter stands beside; itself without one."""
        return dataclasses.replace(
            self,
            structure=self.structure._replace(adapter=None),
            params=own_weights(self.params),
        )

    def load_adapter(self, path: str | Path) -> "LanguageModel":
        """Puts an adapter beside the weights: a folder of peft or `save_adapter`, or a workdir.

        In place, and the model is returned. Where the weights are on a mesh, so is the adapter.
        New tokens that it was trained with, and that the model does not have, are added; a
        tokenizer in the folder, with its chat template, takes the place of the model's, if it
        numbers the same tokens alike; and where peft saved the base's own embedding beside it,
        that stands in the model's place.

        Raises:
            InputError: for an adapter that does not fit this model, see
                `hf.adapters.read_adapter`, and if the model has one already.
        """
        loaded = adapting.with_loaded(self, path)
        self.__dict__.pop("chat", None)  # which was made with the tokenizer
        self.__dict__.update(loaded.__dict__)
        return self

    def with_new_tokens(self, tokens: Sequence[str], *, num_rows: int = 0) -> "LanguageModel":
        """The model with more tokens; itself where it has them all.

        Embedding and output matrix get rows for them, or they take rows that no token had; see
        `vocabulary`.

        Args:
            num_rows: of the tables then; default: see `vocabulary.grown_size`.

        Raises:
            InputError: for texts that cannot be tokens, if the model has an adapter, and for
                tables that would shrink, or not divide over the mesh.
        """
        if not tokens:
            return self
        tokenizer = extended_tokenizer(self.tokenizer, tokens)
        added = unknown(self.tokenizer, tokens)
        if not added:
            return self
        if self.structure.adapter is not None:
            raise InputError("new_tokens: the model has an adapter; they come before it")
        config = self.structure.config
        ids = tokenizer.convert_tokens_to_ids(list(added))
        size = num_rows or grown_size(config.vocab_size, max(ids) + 1)
        if size < config.vocab_size:
            raise InputError(
                f"new_tokens: tables of {size} rows are asked for, and the model has "
                f"{config.vocab_size}"
            )
        grown = dataclasses.replace(config, vocab_size=size)
        names: list[str] = [name for name in ("embedding", "output") if name in self.params]
        mesh = self.mesh
        where = {name: self.params[name].sharding for name in names}
        if mesh is not None:
            axes, shapes = decoder.param_axes(grown), decoder.param_shapes(grown)
            where = param_shardings(
                mesh, *({name: tree[name] for name in names} for tree in (axes, shapes))
            )
        num_known = len(self.tokenizer)  # type: ignore[arg-type]
        tables = {
            name: grown_table(self.params[name], size, num_known, ids, where[name])
            for name in names
        }
        return dataclasses.replace(
            self,
            structure=decoder.build(grown, self.structure.compute),
            params={**self.params, **tables},
            tokenizer=tokenizer,
            hf_config={**self.hf_config, "vocab_size": size},
        )

    def load_adapters(self, paths: Mapping[str, str | Path]) -> "LanguageModel":
        """Puts several LoRA adapters beside the weights, by names; each row uses its own.

        In place, and the model is returned. `logits` and `generate` then take a name per row.

        Raises:
            InputError: as `load_adapter`, and for other methods than LoRA.
        """
        if not paths or "" in paths:
            raise InputError(f"adapters: expected names that are not empty, got {list(paths)}")
        parts = [adapting.read(self, path).alone(path) for path in paths.values()]
        adapter, arrays, blocks = mixing.side_by_side(parts)
        self._use(adapter, arrays, list(paths.values()))
        self._rows = dict(zip(paths, blocks, strict=True)) | {"": np.zeros_like(blocks[0])}
        return self

    def load_weighted_adapters(
        self,
        paths: Sequence[str | Path],
        weights: Sequence[float],
        combination: mixing.Combination = "cat",
    ) -> "LanguageModel":
        """Puts the weighted sum of adapters beside the weights; see `mixing.weighted`.

        In place, and the model is returned.
        """
        if isinstance(paths, str | Path):
            raise InputError(f"paths: expected a list of folders, got the one {paths}")
        check_choice("combination", combination, get_args(mixing.Combination))
        parts = [adapting.read(self, path).alone(path) for path in paths]
        adapter, arrays = mixing.weighted(parts, weights, combination)
        return self._use(adapter, arrays, paths)

    def adapter_rows(
        self, adapters: Sequence[str] | None, count: int
    ) -> Float[np.ndarray, "B R"] | None:
        """What makes each of `count` rows use the adapter of this name; None for one adapter.

        Raises:
            InputError: if several adapters are loaded and not each row names one, or names are
                given without them.
        """
        by_row = self.structure.adapter is not None and self.structure.adapter.by_row
        if not by_row and adapters is None:
            return None
        if not by_row:
            raise InputError("adapters: only after `load_adapters`, which gives them names")
        known = ", ".join(map(repr, self._rows))
        if adapters is None or len(adapters) != count:
            raise InputError(
                f"adapters: expected a name for each of {count} rows, of {known}; got {adapters}"
            )
        for name in adapters:
            if name not in self._rows:
                raise InputError(f"adapters: {name!r} is not loaded; there are {known}")
        return np.stack([self._rows[name] for name in adapters])

    def _use(
        self, adapter: Adapter, arrays: Params, paths: Sequence[str | Path]
    ) -> "LanguageModel":
        """Takes the adapter that several folders make, and their chat format."""
        self.tokenizer = adapting.common_tokenizer(self, paths)
        self.__dict__.pop("chat", None)  # which was made with the tokenizer
        adapted = self.with_adapter(adapter, adapting.placed(self, adapter, arrays))
        self.structure, self.params = adapted.structure, adapted.params
        return self

    def save_adapter(
        self, path: str | Path, *, base_model: str = "", dtype: str = "float32"
    ) -> None:
        """Writes the adapter as a folder that peft, and `load_adapter`, load.

        Args:
            base_model: what the folder says it adapts: a hub id, or a path.
            dtype: of the saved arrays, but gains of DoRA and IA3, which stay float32.

        Raises:
            InputError: for a model without adapter or with one of a method that peft has no
                format for, and if the folder cannot be written.
        """
        adapter, dtype = self.structure.adapter, dtype or "float32"
        check_choice("dtype", dtype, DTYPES)
        if adapter is None:
            raise InputError("the model has no adapter to save")
        if adapter.by_row:
            raise InputError("several adapters are loaded by name; they stand in their own folders")
        adapters.write_adapter(
            Path(path), adapter, self.params, adapting.host_of(self), dtype=dtype,
            base_model=base_model, tokenizer=self.tokenizer,
            tables={name: self.params[name] for name in self.tables},
        )  # fmt: skip

    def merged(self) -> "LanguageModel":
        """The model with its adapter worked into the weights; itself without one."""
        adapter = self.structure.adapter
        if adapter is None:
            return self
        if adapter.by_row:
            raise InputError("several adapters of which each row uses its own cannot be merged")
        return self.without_adapter().with_params(adapter.merged(self.params))

    def checked_merge(self, dtype: str = "") -> "LanguageModel":
        """`merged`, refused where it would change logits or lose the adapter; see `peft.merging`.

        Args:
            dtype: to which the merged weights will be rounded; default: as they are.

        Raises:
            InputError: if more changes, or is lost; the message says how much.
        """
        merged = self.merged()
        if self.structure.adapter is not None:
            base = self.without_adapter()
            merging.check(
                (base.structure, base.params),
                (self.structure, self.params),
                (merged.structure, merged.params),
                dtype,
            )
        return merged

    def unmerged(self, path: str | Path) -> "LanguageModel":
        """The model with an adapter, which was merged in, taken out of its weights again.

        Nothing tells from weights whether it was; the result is the base as far as the dtype
        of the weights kept what the merge added.

        Args:
            path: as for `load_adapter`.

        Raises:
            InputError: as `Adapter.unmerged`.
        """
        adapter, arrays, _ = adapting.read(self, path, merged=True)
        arrays = adapting.placed(self, adapter, arrays)
        return self.with_params(adapter.unmerged({**self.params, **arrays}))

    def save_pretrained(self, path: str | Path, *, dtype: str = "") -> None:
        """Writes a Hugging Face folder that transformers loads as it is, an adapter merged in.

        Quantized weights are written as the floats that they compute with. The token that closes
        a turn of the chat template is among the ends in generation_config.json.

        Args:
            dtype: of the saved weights; default is `stored_dtype`.
        """
        dtype = dtype or self.stored_dtype
        check_choice("dtype", dtype, DTYPES)
        family = families.family_of(self.hf_config, str(path))
        rows = families.weight_rows(family, self.structure.config)
        folder.write_folder(
            Path(path),
            {**self.hf_config, "architectures": [family.architecture]},
            weights.write_tensors(rows, self.checked_merge(dtype).params, jnp.dtype(dtype)),
            weights.tensor_shapes(rows, decoder.param_shapes(self.structure.config)),
            dtype=dtype,
            tokenizer=self.tokenizer,
            generation_config=self._saved_generation(),
        )

    def with_params(self, params: Params) -> "LanguageModel":
        """The same model with other weights."""
        return dataclasses.replace(self, params=params, source="")


def _user(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _made_over(mesh: Mesh, pieces: Iterator[str]) -> Iterator[str]:
    """The same, each made with the mesh set, which whoever takes them does not see."""
    while True:
        with jax.set_mesh(mesh):
            piece = next(pieces, None)
        if piece is None:
            return
        yield piece


def _sampling(options: Mapping[str, Any]) -> "Sampling":
    from ift_jax.evaluation.sampling import Sampling

    known = [field.name for field in dataclasses.fields(Sampling)]
    for name in options:
        if name not in known:
            raise InputError(f"{name}: no option of generation; there are {', '.join(known)}")
    return Sampling(**options)
