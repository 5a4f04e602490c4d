"""Rank classification: the log-likelihood of every answer choice behind a prompt."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from ift_jax.data.chat import Chat, Message
from ift_jax.errors import InputError
from ift_jax.evaluation import batching
from ift_jax.evaluation.batching import (
    Beginning,
    beginnings,
    compute_prefix,
    groups,
    place_rows,
    real_slots,
    row_shards,
    with_adapter_rows,
)
from ift_jax.models.decoder import Params, Prefix, Structure
from ift_jax.train.loss import CHUNK_TARGETS, token_nll


class Question(NamedTuple):
    """A prompt's token ids, and those of each choice behind it, end of turn included."""

    prompt: NDArray[np.int32]
    choices: tuple[NDArray[np.int32], ...]


class ChoiceScores(NamedTuple):
    """A question's choices: an entry each.

    Attributes:
        log_likelihoods: summed over the choice's tokens, in nats.
        num_correct: tokens of the choice that were the most likely ones.
    """

    log_likelihoods: NDArray[np.float64]
    num_correct: NDArray[np.int64]


def encode_questions(
    chat: Chat, prompts: Sequence[tuple[Sequence[Message], Sequence[str]]]
) -> list[Question]:
    """Tokenizes (messages, choices), each choice with its prompt as training does.

    Where a choice changes how the prompt's last characters are tokenized, the common
    tokens are the prompt and the rest belongs to the choices.
    """
    encoded = iter(chat.encode((messages, c) for messages, cs in prompts for c in cs))
    questions = []
    for _, choices in prompts:
        group = [next(encoded) for _ in choices]
        shared = min(int(np.argmax(e.trained)) for e in group)
        for e in group:
            differs = np.flatnonzero(e.ids[:shared] != group[0].ids[:shared])
            shared = int(differs[0]) if len(differs) else shared
        questions.append(Question(group[0].ids[:shared], tuple(e.ids[shared:] for e in group)))
    return questions


def choice_log_likelihoods(
    structure: Structure, params: Params, questions: Sequence[Question], *, mesh: Mesh | None = None
) -> list[NDArray[np.float64]]:
    """Summed log-likelihood of each choice's tokens in nats, one array per question.

    Raises:
        InputError: as `score_choices`.
    """
    return [s.log_likelihoods for s in score_choices(structure, params, questions, mesh=mesh)]


def score_choices(
    structure: Structure,
    params: Params,
    questions: Sequence[Question],
    *,
    mesh: Mesh | None = None,
    adapter_rows: Float[np.ndarray, "N R"] | None = None,
) -> list[ChoiceScores]:
    """How likely each choice of each question is.

    A row holds a prompt once and its choices side by side: a choice's tokens see the
    prompt and themselves, and count their positions on from the prompt. What many prompts
    begin with (instructions, exemplars) is computed once for all of them.

    Args:
        adapter_rows: where each question is put to an adapter of its own,
            `LanguageModel.adapter_rows`.

    Raises:
        InputError: for an empty prompt, behind which no first token can be scored.
    """
    for number, question in enumerate(questions):
        if not len(question.prompt):
            raise InputError(f"question {number}: the prompt has no tokens")
    prompts = [question.prompt for question in questions]
    results = [ChoiceScores(np.zeros(0), np.zeros(0, np.int64))] * len(questions)
    room = [sum(map(len, q.choices)) for q in questions]
    shards = row_shards(mesh)
    # Under different adapters, equal beginnings are not equal.
    parts = [Beginning(list(range(len(prompts))), 0)]
    if adapter_rows is None:
        parts = beginnings(prompts, batching.BATCH_TOKENS * shards)
    for members, shared in parts:
        prefix = compute_prefix(structure, params, prompts[members[0]][:shared]) if shared else None
        lengths = {m: len(prompts[m]) - shared + room[m] for m in members}
        for group in groups(lengths, shards):
            rows = _Rows.empty(group.rows, group.length, max(room))
            owners = [rows.fill(i, questions[m], shared) for i, m in enumerate(group.members)]
            used = np.array([np.sum(branches >= 0) for branches in rows.branches], np.int32)
            real = real_slots(structure, used, group, mesh)
            placed = (place_rows(mesh, array) for array in rows)
            own = with_adapter_rows(params, adapter_rows, group, mesh)
            nll, correct = map(np.asarray, _target_nll(structure, own, prefix, real, *placed))
            for row, (member, owner) in enumerate(zip(group.members, owners, strict=True)):
                size, count = len(owner), len(questions[member].choices)
                results[member] = ChoiceScores(
                    -np.bincount(owner, nll[row, :size], count).astype(np.float64),
                    np.bincount(owner, correct[row, :size], count).astype(np.int64),
                )
    return results


class _Rows(NamedTuple):
    """Arrays of one call: tokens, positions and branches [B, S]; targets [B, P].

    branch is 0 on the prompt, c + 1 on choice c, -1 on padding.
    """

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    branches: NDArray[np.int32]
    target_positions: NDArray[np.int32]
    targets: NDArray[np.int32]

    @staticmethod
    def empty(rows: int, length: int, room: int) -> "_Rows":
        shape, targets = (rows, length), (rows, room)
        zeros = [np.zeros(s, np.int32) for s in (shape, shape, targets, targets)]
        return _Rows(zeros[0], zeros[1], np.full(shape, -1, np.int32), zeros[2], zeros[3])

    def fill(self, row: int, question: Question, shared: int) -> NDArray[np.int64]:
        """Writes a question into a row; returns which choice each target belongs to."""
        prompt = question.prompt[shared:]
        size = len(prompt)
        self.tokens[row, :size] = prompt
        self.positions[row, :size] = shared + np.arange(size)
        self.branches[row, :size] = 0
        at, used, owners = size, 0, []
        for number, choice in enumerate(question.choices):
            end, count = at + len(choice), len(choice)
            self.tokens[row, at:end] = choice
            self.positions[row, at:end] = shared + size + np.arange(count)
            self.branches[row, at:end] = number + 1
            self.target_positions[row, used : used + count] = [size - 1, *range(at, end - 1)]
            self.targets[row, used : used + count] = choice
            owners += [number] * count
            at, used = end, used + count
        return np.array(owners, np.int64)


@jax.jit(static_argnums=0)
def _target_nll(
    structure: Structure,
    params: Params,
    prefix: Prefix | None,
    real: Int[Array, "N"] | None,
    tokens: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    branches: Int[Array, "B S"],
    target_positions: Int[Array, "B P"],
    targets: Int[Array, "B P"],
) -> tuple[Float[Array, "B P"], Float[Array, "B P"]]:
    """Each target's negative log-likelihood in nats, and whether it was the most likely token."""
    module = structure.merge(params)
    query, key = branches[:, :, None], branches[:, None, :]
    causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    mask = causal & (key >= 0) & ((key == 0) | (key == query))
    hidden, _ = module.score_states(tokens, positions, mask, prefix, real)
    gathered = jnp.take_along_axis(hidden, target_positions[..., None], axis=1)

    def one_row(xs: tuple[Array, Array]) -> tuple[Array, Array]:
        return token_nll(module.logits(xs[0]), xs[1])

    together = max(CHUNK_TARGETS // targets.shape[1], 1)
    return jax.lax.map(one_row, (gathered, targets), batch_size=together)
