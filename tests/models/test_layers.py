"""The arithmetic of one layer, against definitions written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ift_jax.models.layers import apply_rope, attend, packing_mask, rms_norm, rope_tables


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def test_rms_norm_divides_by_the_root_mean_square_and_scales():
    x, scale = normal(0, 3, 8), normal(1, 8)
    expected = x / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True) + 0.1) * scale
    np.testing.assert_allclose(rms_norm(x, scale, 0.1), expected, rtol=1e-6)


def test_rms_norm_reduces_in_float32_and_returns_the_dtype_that_came():
    x = jnp.full((1, 1024), 300.0, jnp.float16)  # the square overflows float16
    normed = rms_norm(x, jnp.ones(1024, jnp.float32), 1e-5)
    assert normed.dtype == jnp.float16
    np.testing.assert_allclose(normed, np.ones((1, 1024)), rtol=1e-3)


def test_rope_equals_that_of_transformers():
    torch = pytest.importorskip("torch")
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    q, k = normal(0, 2, 5, 3, 8), normal(1, 2, 5, 3, 8)
    positions = jnp.array([[0, 1, 2, 3, 4], [7, 8, 0, 1, 2]])
    cos, sin = rope_tables(positions, 8, 500.0)
    both = [torch.tensor(np.concatenate([table, table], -1)) for table in (cos, sin)]
    expected = apply_rotary_pos_emb(
        torch.tensor(np.asarray(q)), torch.tensor(np.asarray(k)), *both, unsqueeze_dim=2
    )
    np.testing.assert_allclose(apply_rope(q, cos, sin), expected[0].numpy(), atol=1e-6)
    np.testing.assert_allclose(apply_rope(k, cos, sin), expected[1].numpy(), atol=1e-6)


def test_rope_takes_any_number_of_head_axes():
    q = normal(0, 2, 5, 2, 3, 8)
    tables = rope_tables(jnp.broadcast_to(jnp.arange(5), (2, 5)), 8, 100.0)
    flat = apply_rope(q.reshape(2, 5, 6, 8), *tables)
    np.testing.assert_array_equal(apply_rope(q, *tables), flat.reshape(q.shape))


def test_rotated_products_depend_on_the_distance_alone():
    q, k = normal(0, 1, 1, 8), normal(1, 1, 1, 8)

    def product(query_at, key_at):
        rotated = [
            apply_rope(x, *rope_tables(jnp.array([[at]]), 8, 1000.0))
            for x, at in ((q, query_at), (k, key_at))
        ]
        return float(jnp.vdot(*rotated))

    assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
    assert abs(product(9, 4) - product(9, 5)) > 1e-3


def test_rope_tables_stay_in_float32_far_from_the_start():
    cos, _ = rope_tables(jnp.array([[100_003]]), 4, 1.0)
    np.testing.assert_allclose(cos[0, 0, 0], np.cos(100_003), atol=1e-4)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_equals_its_definition_with_keys_repeated(kv_heads):
    q = normal(0, 2, 3, kv_heads, 4 // kv_heads, 8)
    k, v = normal(1, 2, 5, kv_heads, 8), normal(2, 2, 5, kv_heads, 8)
    mask = jax.random.bernoulli(jax.random.key(3), 0.7, (2, 3, 5)).at[..., 0].set(True)
    expected = np.zeros(q.shape)
    for b, s, head, member in np.ndindex(*q.shape[:4]):
        scores = np.asarray(k[b, :, head] @ q[b, s, head, member]) / np.sqrt(8)
        weights = np.where(mask[b, s], np.exp(scores), 0)
        expected[b, s, head, member] = weights / weights.sum() @ np.asarray(v[b, :, head])
    np.testing.assert_allclose(attend(q, k, v, mask), expected, atol=1e-5)


def test_a_shared_prefix_is_like_keys_written_into_each_row():
    q, k, v = normal(0, 2, 3, 2, 2, 8), normal(1, 2, 3, 2, 8), normal(2, 2, 3, 2, 8)
    prefix_k, prefix_v = normal(3, 4, 2, 8), normal(4, 4, 2, 8)
    valid = jnp.array([True, True, True, False])
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((3, 3), bool)), (2, 3, 3))
    rows = [jnp.broadcast_to(x[:3], (2, 3, 2, 8)) for x in (prefix_k, prefix_v)]
    written = attend(
        q,
        jnp.concatenate([rows[0], k], 1),
        jnp.concatenate([rows[1], v], 1),
        jnp.concatenate([jnp.ones((2, 3, 3), bool), mask], 2),
    )
    shared = attend(q, k, v, mask, (prefix_k, prefix_v, valid))
    np.testing.assert_allclose(shared, written, atol=1e-6)
    assert float(jnp.abs(shared - attend(q, k, v, mask)).max()) > 1e-2


def test_a_query_that_sees_nothing_gives_finite_values_and_gradients():
    q, k, v = normal(0, 1, 2, 1, 1, 4), normal(1, 1, 2, 1, 4), normal(2, 1, 2, 1, 4)
    mask = jnp.zeros((1, 2, 2), bool)
    out, pull = jax.vjp(lambda q: attend(q, k, v, mask), q)
    assert np.isfinite(out).all()
    assert np.isfinite(pull(out)[0]).all()


def test_attention_softmax_is_in_float32_for_half_precision_inputs():
    q = jnp.full((1, 1, 1, 1, 4), 200.0, jnp.float16)  # q . k = 160,000 overflows float16
    k = jnp.stack([jnp.full(4, 200.0), jnp.full(4, -200.0)])[None, :, None].astype(jnp.float16)
    v = jnp.array([1.0, 2.0], jnp.float16)[None, :, None, None] * jnp.ones(
        (1, 2, 1, 4), jnp.float16
    )
    out = attend(q, k, v, jnp.ones((1, 1, 2), bool))
    assert out.dtype == jnp.float16
    np.testing.assert_array_equal(out, np.ones((1, 1, 1, 1, 4)))


def test_packing_mask_keeps_examples_apart_and_looks_only_back():
    segments = np.array([[1, 1, 1, 2, 2, 0], [3, 1, 1, 1, 0, 0]])
    mask = np.asarray(packing_mask(jnp.asarray(segments)))
    for b, s, t in np.ndindex(2, 6, 6):
        same = segments[b, s] == segments[b, t] and segments[b, s] > 0
        assert mask[b, s, t] == (same and t <= s)


def test_attention_behind_a_prefix_and_its_gradients_in_bfloat16_are_those_of_float32():
    """Keys and values in the layout of a cache, of which XLA on CPUs refuses some products."""
    shapes = ((1, 5, 2, 2, 8), (1, 2, 5, 8), (1, 2, 5, 8), (2, 40, 8), (2, 40, 8))
    rng = np.random.default_rng(0)
    rounded = [jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes]
    target = jnp.asarray(rng.standard_normal(shapes[0]), jnp.float32)
    causal, valid = jnp.tril(jnp.ones((1, 5, 5), bool)), jnp.arange(40) < 33

    def loss(q, *cached):
        k, v, prefix_k, prefix_v = (jnp.moveaxis(x, -3, -2) for x in cached)
        out = attend(q, k, v, causal, (prefix_k, prefix_v, valid))
        return jnp.sum(out.astype(jnp.float32) * target), out

    grads = jax.jit(jax.grad(loss, argnums=range(5), has_aux=True))
    found, out = grads(*rounded)
    expected, exact = grads(*(x.astype(jnp.float32) for x in rounded))
    for x, y in zip((out, *found), (exact, *expected), strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_allclose(x.astype(jnp.float32), y, atol=0.03 * float(jnp.abs(y).max()))
