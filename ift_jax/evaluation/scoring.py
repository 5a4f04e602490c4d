"""Rank classification: the log-likelihood of every answer choice behind a prompt."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from ift_jax.data.chat import Chat, Message, Turns
from ift_jax.data.tokenization import Encoded, Layout
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

CHARACTERS_AT_ONCE = 2**20  # of prompts with their choices, tokenized together


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


def choice_turns(messages: Sequence[Message], choices: Sequence[str]) -> list[Turns]:
    """A prompt with each of its choices."""
    return [Turns(tuple(messages), choice) for choice in choices]


def encode_questions(chat: Chat, questions: Sequence[Sequence[Turns]]) -> list[Question]:
    """Tokenizes each question's choices, turns that differ in their answer, as training does.

    Where a choice changes how the prompt's last characters are tokenized, the common
    tokens are the prompt and the rest belongs to the choices. Of plain text, which has no prompt,
    what is first is given: the token that begins every text, or its own first one.
    """
    found = []
    for some in _some_at_once(chat, questions):
        encoded = iter(chat.encode_layouts(layout for layouts, _ in some for layout in layouts))
        for layouts, plain in some:
            found.append(_question([next(encoded) for _ in layouts], plain=plain))
    return found


def _some_at_once(
    chat: Chat, questions: Iterable[Sequence[Turns]]
) -> Iterator[list[tuple[list[Layout], bool]]]:
    """The layouts of questions' choices, and whether they are plain text; in parts of bounded size.

    All of them at once would be each item's prompt once for each choice.
    """
    some: list[tuple[list[Layout], bool]] = []
    num_characters = 0
    for choices in questions:
        layouts = [chat.layout(turns) for turns in choices]
        some.append((layouts, choices[0].plain))
        num_characters += sum(len(layout.text) for layout in layouts)
        if num_characters > CHARACTERS_AT_ONCE:
            yield some
            some, num_characters = [], 0
    if some:
        yield some


def _question(choices: Sequence[Encoded], *, plain: bool) -> Question:
    shared = min(int(np.argmax(e.trained)) for e in choices)
    if plain:
        shared = max(shared, 1)
    first = choices[0].ids
    for e in choices:
        differs = np.flatnonzero(e.ids[:shared] != first[:shared])
        shared = int(differs[0]) if len(differs) else shared
    # Copies: a slice would keep the whole text's tokens, of each choice.
    return Question(first[:shared].copy(), tuple(e.ids[shared:].copy() for e in choices))


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
    prompt and themselves, and count their positions on from the prompt. More choices than a batch
    holds tokens take several rows. What many prompts begin with (instructions, exemplars) is
    computed once for all of them.

    Args:
        adapter_rows: where each question is put to an adapter of its own,
            `LanguageModel.adapter_rows`.

    Raises:
        InputError: for an empty prompt, behind which no first token can be scored.
    """
    for number, question in enumerate(questions):
        if not len(question.prompt):
            raise InputError(f"question {number}: the prompt has no tokens")
    pieces = [list(_pieces(question)) for question in questions]
    if adapter_rows is not None:
        adapter_rows = np.repeat(adapter_rows, [len(own) for own in pieces], axis=0)
    flat = [piece for own in pieces for piece in own]
    scored = iter(_score_rows(structure, params, flat, mesh, adapter_rows))
    return [
        ChoiceScores(*map(np.concatenate, zip(*(next(scored) for _ in own), strict=True)))
        for own in pieces
    ]


def _pieces(question: Question) -> Iterator[Question]:
    """The question with as many of its choices at a time as a batch has room for."""
    some: list[NDArray[np.int32]] = []
    for choice in question.choices:
        if some and sum(map(len, some)) + len(choice) > batching.BATCH_TOKENS:
            yield Question(question.prompt, tuple(some))
            some = []
        some.append(choice)
    yield Question(question.prompt, tuple(some))


def _score_rows(
    structure: Structure,
    params: Params,
    questions: Sequence[Question],
    mesh: Mesh | None,
    adapter_rows: Float[np.ndarray, "N R"] | None,
) -> list[ChoiceScores]:
    """The scores of questions that take a row each."""
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
            width = _width(max(room[m] for m in group.members), max(room))
            rows = _Rows.empty(group.rows, group.length, width)
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


def _width(own: int, most: int) -> int:
    """The number of targets in a call's rows: `most`, or that halved as far as `own` fits.

    So few programs are compiled. More than a chunk of targets are whole chunks.
    """
    while own <= (most + 1) // 2 and most > 1:
        most = (most + 1) // 2
    return most if most <= CHUNK_TARGETS else -(-most // CHUNK_TARGETS) * CHUNK_TARGETS


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

    def one_part(xs: tuple[Array, Array]) -> tuple[Array, Array]:
        return token_nll(module.logits(xs[0]), xs[1])

    # Rows, or pieces of rows: logits are large.
    size = min(targets.shape[1], CHUNK_TARGETS)
    parts = gathered.reshape(-1, size, gathered.shape[-1]), targets.reshape(-1, size)
    nll, correct = jax.lax.map(one_part, parts, batch_size=max(CHUNK_TARGETS // size, 1))
    return nll.reshape(targets.shape), correct.reshape(targets.shape)
