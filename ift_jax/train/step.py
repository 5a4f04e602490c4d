"""The train step: a pure function of state, constants and batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from ift_jax.batch import Batch
from ift_jax.models.decoder import Params, Structure
from ift_jax.peft.adapter import FROZEN, combine
from ift_jax.train.loss import LossSums, Reference, loss_sums
from ift_jax.train.remedies import RemediesConfig, weight_penalty


class TrainState(NamedTuple):
    """Everything that changes from step to step, and all that a checkpoint needs to hold.

    Attributes:
        step: finished steps.
        params: what is trained: all weights, or the adapter's arrays.
        opt_state: the optimizer's moments of `params`.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: Any


class Constants(NamedTuple):
    """Arrays that the step reads, and neither changes nor donates.

    Attributes:
        base: the frozen weights beside which an adapter is trained; {} where all are trained.
        anchor: a copy of the base's weights where all are trained and a remedy needs them;
            else {}.
        fisher: as the anchor, how much each weight matters; see `RemediesConfig.ewc_weight`.
    """

    base: Params
    anchor: Params = {}  # noqa: RUF012  # never changed
    fisher: Params = {}  # noqa: RUF012


class StepMetrics(NamedTuple):
    """What a step says of its batch.

    Attributes:
        sums: of the batch.
        gradient_norm: global, before clipping, remedies included.
        remedies: "kl" and "text_kl" in nats per target; "l2sp" and "ewc" as they stand in the
            loss. Those that are in use.
    """

    sums: LossSums
    gradient_norm: Float[Array, ""]
    remedies: dict[str, Float[Array, ""]]


Objective = Callable[[LossSums], Float[Array, ""]]


def reference_of(structure: Structure, constants: Constants) -> Reference:
    """The base model: what an adapter stands beside, or the copy that was kept."""
    if structure.adapter is None:
        return Reference(structure, constants.anchor)
    base = {name: tree for name, tree in constants.base.items() if name != FROZEN}
    return Reference(structure._replace(adapter=None), base)


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def place_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The first state, on the mesh: optimizer moments lie where their parameters do."""
    replicated = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    like_params = jax.tree.map(lambda p: (p.sharding, p.shape), params)
    moments = optax.tree_map_params(
        optimizer,
        lambda leaf, placed: placed[0] if leaf.shape == placed[1] else replicated,
        shapes.opt_state,
        like_params,
        transform_non_params=lambda _: replicated,
        is_leaf=lambda x: isinstance(x, jax.ShapeDtypeStruct),
    )
    shardings = shapes._replace(
        step=replicated, params=jax.tree.map(lambda p: p.sharding, params), opt_state=moments
    )
    create = jax.jit(lambda p: init_state(p, optimizer), out_shardings=shardings, donate_argnums=0)
    return create(params)


def gradient_sums(
    structure: Structure,
    params: Params,
    constants: Constants,
    batch: Batch,
    micro_batches: int = 1,
    prefix: Int[Array, "T0"] | None = None,
    key: Array | None = None,
    objective: Objective = lambda sums: sums.nll,
    reference: Reference | None = None,
) -> tuple[Params, LossSums]:
    """The gradient of the summed objective with respect to `params`, in float32, and the sums.

    Rows are cut into `micro_batches` equal parts, one after the other; sums of gradients
    are added up, so k micro-batches give what one batch gives, to rounding.

    Args:
        params: what is trained; `constants.base` gets no gradient.
        key: of dropout, folded with the number of the micro-batch.
        objective: what of the sums the gradient is of; linear in them.
        reference: what KL is measured from.
    """

    def loss(params: Params, batch: Batch, key: Array | None) -> tuple[Array, LossSums]:
        whole = combine(params, constants.base)
        sums = loss_sums(structure, whole, batch, prefix, key, reference)
        return objective(sums), sums

    def gradient(batch: Batch, number: Array | int) -> tuple[Params, LossSums]:
        own = None if key is None else jax.random.fold_in(key, number)
        return jax.grad(loss, has_aux=True)(params, batch, own)

    if micro_batches == 1:
        return gradient(batch, 0)
    rows = batch.tokens.shape[0]
    # Row i goes to part i % k: each device keeps its rows through all parts.
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(rows // micro_batches, micro_batches, *x.shape[1:]), 1, 0),
        batch,
    )

    def body(total: tuple[Params, LossSums], part: Any) -> tuple[tuple[Params, LossSums], None]:
        gradients, sums = gradient(*part)
        added = jax.tree.map(lambda a, g: a + g.astype(jnp.float32), total[0], gradients)
        return (added, total[1] + sums), None

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    start = (zeros, LossSums(*(jnp.zeros(()),) * len(LossSums._fields)))
    total, _ = jax.lax.scan(body, start, (parts, jnp.arange(micro_batches)))
    return total


def make_step(
    structure: Structure,
    optimizer: optax.GradientTransformation,
    micro_batches: int = 1,
    prefix: Int[Array, "T0"] | None = None,
    seed: int = 0,
    remedies: RemediesConfig | None = None,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The step for `jax.jit(..., donate_argnums=0)`; it works on abstract arrays too.

    It takes (state, constants, batch), and a batch of neutral text behind them where
    `remedies.text_kl_weight` is above 0.

    Args:
        prefix: the run's shared beginning of all examples, a constant of the program.
        seed: with the step's number, decides what dropout drops; so the step stays pure, and a
            resumed run drops what one that never stopped would have dropped.
    """
    remedies = remedies or RemediesConfig()

    def step(
        state: TrainState, constants: Constants, batch: Batch, text: Batch | None = None
    ) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, sums, said = _loss_gradient(state.params, constants, batch, text, key)
        if remedies.holds_weights:
            values, held = weight_penalty(
                remedies, state.params, constants.anchor, constants.fisher
            )
            gradients, said = _added(gradients, held, 1.0), {**said, **values}
        gradients = jax.tree.map(lambda g, p: g.astype(p.dtype), gradients, state.params)
        norm = optax.tree.norm(gradients)
        with jax.numpy_dtype_promotion("standard"):  # optax 0.2.8 mixes dtypes in its updates
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), StepMetrics(sums, norm, said)

    def _loss_gradient(
        params: Params, constants: Constants, batch: Batch, text: Batch | None, key: Array
    ) -> tuple[Params, LossSums, dict[str, Array]]:
        """The gradient of the mean loss with its KL terms, each divided by its own targets."""
        weight, reference = remedies.kl_weight, None
        if remedies.kl_weight or remedies.text_kl_weight:
            reference = reference_of(structure, constants)
        gradients, sums = gradient_sums(
            structure, params, constants, batch, micro_batches, prefix, key,
            (lambda s: s.nll + weight * s.kl) if weight else (lambda s: s.nll),
            reference if weight else None,
        )  # fmt: skip
        gradients, said = _mean(gradients, sums), {}
        if weight:
            said["kl"] = sums.kl / jnp.maximum(sums.weight, 1.0)
        if remedies.text_kl_weight:
            if text is None:
                raise ValueError("remedies.text_kl_weight needs a batch of neutral text")
            own = jax.random.fold_in(key, micro_batches)
            more, text_sums = gradient_sums(
                structure, params, constants, text, micro_batches, None, own,
                lambda s: s.kl, reference,
            )  # fmt: skip
            gradients = _added(gradients, _mean(more, text_sums), remedies.text_kl_weight)
            said["text_kl"] = text_sums.kl / jnp.maximum(text_sums.weight, 1.0)
        return gradients, sums, said

    return step


def _mean(gradients: Params, sums: LossSums) -> Params:
    divisor = jnp.maximum(sums.weight, 1.0)  # a batch of padding has no targets
    return jax.tree.map(lambda g: g / divisor.astype(g.dtype), gradients)


def _added(gradients: Params, more: Params, weight: float) -> Params:
    """Both in float32, the second times a weight."""
    return jax.tree.map(
        lambda g, m: g.astype(jnp.float32) + weight * m.astype(jnp.float32), gradients, more
    )
