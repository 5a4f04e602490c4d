"""The class that lm_eval knows as "ift_jax"; importing this registers it, and needs lm_eval.

`ift_jax.evaluation.lm_eval` is its command line.
"""

import json
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jinja2
import lm_eval.models  # noqa: F401  # else it believes that ours is the only model
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, warning_once

from ift_jax.errors import InputError, one_line
from ift_jax.evaluation.sampling import Sampling
from ift_jax.evaluation.scoring import Question, score_choices
from ift_jax.evaluation.texts import generate_texts
from ift_jax.pretrained import load_pretrained
from ift_jax.sharding import MeshConfig, make_mesh

NAME = "ift_jax"
_logger = logging.getLogger(__name__)
_MAX_NEW_TOKENS = 256  # of a task that says nothing, as lm_eval's own models have it
_TOP_K = 50  # of such a task, if it samples: the default of transformers


@register_model(NAME)
class JaxModel(TemplateLM):
    """A `LanguageModel` behind lm_eval's interface."""

    tokenizer_name = ""  # the base class has a property without a setter

    def __init__(
        self,
        path: str = "",
        dtype: str = "float32",
        param_dtype: str = "float32",
        max_length: int | None = None,
        fsdp: int = 1,
        tensor: int = 1,
        seed: int = 0,
        **others: Any,
    ):
        super().__init__()
        _check_arguments(path, others)

        self.mesh = make_mesh(MeshConfig(fsdp=fsdp, tensor=tensor))
        self.language_model = load_pretrained(
            path, dtype=dtype, param_dtype=param_dtype, mesh=self.mesh
        )
        # Texts are the harness's own: what it gets back is all that was generated.
        self.chat = replace(self.language_model.chat, opening="")
        self.tokenizer: Any = self.language_model.tokenizer
        self.tokenizer_name = path
        self.seed = seed
        context = self.language_model.structure.context_length
        if max_length and max_length > context:
            raise InputError(f"max_length={max_length}: the model reads {context} tokens at most")
        self.max_length = max_length or context

    @property
    def eot_token_id(self) -> int:
        ends = (self.tokenizer.eos_token_id, self.chat.end_of_turn_id)
        return next(token for token in ends if token is not None)

    @property
    def prefix_token_id(self) -> int:
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else start

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: Any
    ) -> list[int]:
        if add_special_tokens is None:  # a text that has its first token gets no second
            add_special_tokens = not string.startswith(
                self.tokenizer.decode([self.prefix_token_id])
            )
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        def applied(turns: list[dict[str, str]]) -> str:
            return self.tokenizer.apply_chat_template(
                turns,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        without = [turn for turn in chat_history if turn["role"] != "system"]
        if len(without) < len(chat_history):
            try:
                return applied(chat_history)
            except jinja2.TemplateError:
                warning_once(_logger, "The chat template refuses a system turn; it is left out.")
        try:
            return applied(without)
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template refuses a prompt: {one_line(error)}") from error

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        scored = self._score([(context, behind) for _, context, behind in requests])
        for request, score in zip(requests, scored, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], score)
        return scored

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        windows: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append(make_disjoint_window(window))
                owners.append(number)
        found = [score for score, _ in self._score(windows)]
        sums: list[float] = np.bincount(owners, found, len(requests)).tolist()
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _score(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
    ) -> list[tuple[float, bool]]:
        """Log-likelihood of each continuation, and whether greedy decoding would give it.

        Continuations of one context, such as a task's answer choices, share a row.
        """
        _tell_of_cuts(
            [len(context) + len(behind) - 1 for context, behind in pairs], self.max_length
        )
        questions, places = _questions(pairs, self.max_length)
        with jax.set_mesh(self.mesh):
            scores = score_choices(
                self.language_model.structure,
                self.language_model.params,
                questions,
                mesh=self.mesh,
            )
        return [
            (
                float(scores[question].log_likelihoods[choice]),
                bool(scores[question].num_correct[choice] == len(behind)),
            )
            for (question, choice), (_, behind) in zip(places, pairs, strict=True)
        ]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        groups: defaultdict[str, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            groups[json.dumps(request.args[1], sort_keys=True)].append(number)
        # Before anything is computed, so that a setting that we do not have costs nothing.
        own = self.language_model.generation_config
        samplings = {one: _sampling(json.loads(one), self.seed, own) for one in groups}
        texts: dict[int, str] = {}
        for settings, members in groups.items():
            found = self._generate([requests[n].args[0] for n in members], samplings[settings])
            texts |= dict(zip(members, found, strict=True))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, texts[number])
        return [texts[number] for number in range(len(requests))]

    def _generate(self, contexts: Sequence[str], sampling: Sampling) -> list[str]:
        room = self.max_length - sampling.max_new_tokens
        if room < 1:
            raise InputError(
                f"a task generates {sampling.max_new_tokens} tokens, the model's context is "
                f"{self.max_length}; lower it with --gen_kwargs max_gen_toks=N"
            )
        encoded = [self.tok_encode(text) for text in contexts]
        _tell_of_cuts([len(ids) for ids in encoded], room)
        prompts = [np.array(ids[-room:], np.int32) for ids in encoded]
        with jax.set_mesh(self.mesh):
            return generate_texts(
                self.language_model.structure,
                self.language_model.params,
                self.chat,
                prompts,
                sampling,
                stop_ids=sorted({*self.language_model.stop_ids, self.eot_token_id}),
                mesh=self.mesh,
            )


def _check_arguments(path: str, others: Mapping[str, Any]) -> None:
    """Refuses all but what lm_eval adds from its own flags, which have defaults for torch."""
    unknown = sorted(others.keys() - {"batch_size", "max_batch_size", "device"})
    if unknown:
        raise InputError(
            f"--model_args: {NAME} has no argument {unknown[0]!r}; there are path, dtype, "
            "param_dtype, max_length, fsdp, tensor, seed"
        )
    if not path:
        raise InputError("--model_args: path is missing; expected path=FOLDER")


def _tell_of_cuts(lengths: Sequence[int], room: int) -> None:
    """Warns where requests are longer than the model reads, as lm_eval's own models do."""
    cut = [length for length in lengths if length > room]
    if cut:
        _logger.warning(
            "%d of %d requests are longer than the %d tokens that there is room for, the longest "
            "has %d; their beginnings are cut off",
            len(cut), len(lengths), room, max(cut),
        )  # fmt: skip


def _questions(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], max_length: int
) -> tuple[list[Any], list[tuple[int, int]]]:
    """Continuations grouped by context, cut on the left to what the model can see.

    Returns:
        questions, and each pair's question and place among its choices. The last token is
        only predicted, never read, so there is room for one more than `max_length`.
    """
    groups: dict[tuple[int, ...], list[Sequence[int]]] = defaultdict(list)
    places = []
    for number, (context, behind) in enumerate(pairs):
        if not behind or len(behind) > max_length:
            raise InputError(
                f"request {number}: a continuation of {len(behind)} tokens cannot be scored in a "
                f"context of {max_length}"
            )
        seen = tuple(context[-(max_length + 1 - len(behind)) :])
        groups[seen].append(behind)
        places.append((seen, len(groups[seen]) - 1))
    numbers = {seen: number for number, seen in enumerate(groups)}
    questions = [
        Question(np.array(seen, np.int32), tuple(np.array(b, np.int32) for b in behind))
        for seen, behind in groups.items()
    ]
    return questions, [(numbers[seen], choice) for seen, choice in places]


def _sampling(settings: Mapping[str, Any], seed: int, own: Mapping[str, Any]) -> Sampling:
    """A task's generation settings as ours.

    What a task leaves open is as with lm_eval's own model: as the model's generation_config.json
    has it, and samples are of the 50 most likely tokens where that says nothing. Filters are left
    out where a task does not sample, as they would say nothing.

    Args:
        own: that file.

    Raises:
        InputError: for a setting that our generation does not have.
    """
    known = dict(normalize_gen_kwargs(dict(settings), _MAX_NEW_TOKENS))

    def take(name: str, default: float) -> float:
        asked = known.pop(name, None)
        value = own.get(name) if asked is None else asked
        return default if value is None else value

    stops = tuple(stop for stop in known.pop("until") if stop)
    sampled = known.pop("do_sample")
    fields: dict[str, Any] = {
        "max_new_tokens": known.pop("max_gen_toks"),
        "temperature": float(take("temperature", 1.0)),
        "repetition_penalty": float(take("repetition_penalty", 1.0)),
    }
    if not sampled:
        fields["temperature"] = 0.0
    filters: dict[str, Any] = {
        "top_k": int(take("top_k", _TOP_K)),
        "top_p": float(take("top_p", 1.0)),
    }
    if known.get("num_beams") == 1:  # greedy decoding, or sampling, as it is
        del known["num_beams"]
    if known:
        raise InputError(f"a task asks to generate with {sorted(known)[0]!r}, which we do not have")
    return Sampling(**fields, **(filters if fields["temperature"] else {}), stop=stops, seed=seed)
