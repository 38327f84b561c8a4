"""Claims about each link of a chain alone, against optax or a plain reference written from the paper."""

import jax
import keras
import numpy as np
import optax
import pytest
import tensorflow as tf

import custom_optimizers as suite
from custom_optimizers import Adam, LazyAdam, Optimizer, chain, transforms

SOURCE = np.random.default_rng(0)
SHAPES = {"dense_kernel": (4, 3), "conv_kernel": (3, 3, 2, 5), "dense_bias": (3,), "scale": ()}
WEIGHTS = {name: SOURCE.normal(size=shape) for name, shape in SHAPES.items()}
GRADIENTS = {name: 3.0 * SOURCE.normal(size=shape) for name, shape in SHAPES.items()}


class Descent(Optimizer):
    """w -= rate * g."""

    def update(self, gradient, weight, slots, step):
        return -step.rate * gradient, {}


def variables(dtype="float64") -> list:
    return [keras.Variable(value, dtype=dtype, name=name) for name, value in WEIGHTS.items()]


def moved(optimizer, gradients=None, updates=1) -> dict[str, np.ndarray]:
    """How far the optimizer moves each variable, from the same weights, with the same gradient each time."""
    held = variables()
    for _ in range(updates):
        optimizer.apply([tf.constant(g) for g in (gradients or GRADIENTS).values()], held)
    return {name: np.asarray(v) - WEIGHTS[name] for name, v in zip(SHAPES, held, strict=True)}


def seen(link, gradients=None) -> dict[str, np.ndarray]:
    """The gradients that a rule gets behind this link."""
    return {name: -delta for name, delta in moved(chain(link, Descent(1.0)), gradients).items()}


def near(left: dict, right: dict, tolerance=1e-10) -> bool:
    return all(np.allclose(left[name], right[name], rtol=tolerance, atol=tolerance) for name in SHAPES)


def by_optax(transform, names=tuple(SHAPES), gradients=GRADIENTS) -> dict[str, np.ndarray]:
    with jax.enable_x64(True):
        weights = {name: jax.numpy.asarray(WEIGHTS[name]) for name in names}
        grads = {name: jax.numpy.asarray(gradients[name]) for name in names}
        changed, _ = transform.update(grads, transform.init(weights), weights)
        return {name: np.asarray(value) for name, value in changed.items()}


@pytest.mark.parametrize("limit", [0.5, 1000.0], ids=["beyond the limit", "within the limit"])
def test_clipping_by_the_global_norm_is_that_of_optax(limit):
    assert near(seen(suite.clip_by_global_norm(limit)), by_optax(optax.clip_by_global_norm(limit)))


def test_clipping_by_value_is_that_of_optax():
    clipped = seen(suite.clip_by_value(0.7))
    assert near(clipped, by_optax(optax.clip(0.7)))
    assert not near(clipped, GRADIENTS)


@pytest.mark.parametrize("limit", [0.01, 0.5, 100.0])
@pytest.mark.parametrize(("name", "axes"), [("dense_kernel", 0), ("conv_kernel", (0, 1, 2))])
def test_adaptive_clipping_of_kernels_is_that_of_optax_one_unit_an_output(name, axes, limit):
    expected = by_optax(optax.adaptive_grad_clip(limit, axis=axes), [name])[name]
    assert seen(suite.adaptive_gradient_clipping(limit))[name] == pytest.approx(expected, rel=1e-10)


def test_adaptive_clipping_measures_units_with_small_weights_by_epsilon(monkeypatch):
    monkeypatch.setitem(WEIGHTS, "dense_kernel", np.full((4, 3), 1e-6))
    lengths = np.linalg.norm(seen(suite.adaptive_gradient_clipping(0.1, epsilon=0.5))["dense_kernel"], axis=0)
    assert lengths == pytest.approx([0.05] * 3)


@pytest.mark.parametrize("name", ["dense_bias", "scale"])
def test_adaptive_clipping_takes_a_vector_or_a_scalar_for_one_unit_as_optax_does(name):
    expected = by_optax(optax.adaptive_grad_clip(0.02), [name])[name]
    assert seen(suite.adaptive_gradient_clipping(0.02))[name] == pytest.approx(expected, rel=1e-10)
    assert expected != pytest.approx(GRADIENTS[name])


def test_adaptive_clipping_spares_what_is_excluded():
    clipped = seen(suite.adaptive_gradient_clipping(0.01, exclude="dense"))
    everywhere = seen(suite.adaptive_gradient_clipping(0.01))
    for name in SHAPES:
        assert np.allclose(clipped[name], GRADIENTS[name] if "dense" in name else everywhere[name])


def test_centralizing_is_that_of_optax_on_the_transposed_kernel():
    centred = seen(suite.centralize_gradients())
    for name in ("dense_kernel", "conv_kernel"):
        turned = {name: np.moveaxis(GRADIENTS[name], -1, 0)}  # optax takes outputs to be the first axis
        expected = np.moveaxis(by_optax(optax.centralize(), [name], turned)[name], 0, -1)
        assert np.allclose(centred[name], expected, rtol=1e-10)
        assert np.allclose(centred[name].sum(axis=tuple(range(expected.ndim - 1))), 0, atol=1e-12)


def test_centralizing_leaves_vectors_and_scalars_alone():
    centred = seen(suite.centralize_gradients())
    for name in ("dense_bias", "scale"):
        assert np.array_equal(centred[name], GRADIENTS[name])


def test_centralizing_leaves_the_rows_of_a_lazy_table_alone():
    table = keras.Variable(np.ones((5, 2)), dtype="float64")
    optimizer, alone = chain(suite.centralize_gradients(), LazyAdam(0.1)), LazyAdam(0.1)
    other = keras.Variable(np.ones((5, 2)), dtype="float64")
    gradient = tf.IndexedSlices(tf.constant([[1.0, 2.0], [3.0, 4.0]], tf.float64), tf.constant([1, 3]), (5, 2))
    for _ in range(2):
        optimizer.apply([gradient], [table])
        alone.apply([gradient], [other])
    assert np.array_equal(table, other)


def cautious(delta, gradient):
    """Algorithm 1 of 2411.16085: the step where it goes down the gradient, scaled to size / (count + 1)."""
    mask = (delta * gradient < 0).astype("float64")
    return delta * mask * mask.size / (mask.sum() + 1)


def test_a_cautious_step_is_that_of_the_paper_for_each_variable():
    plain, wrapped, linked = Adam(0.1), suite.Cautious(Adam(0.1)), chain(Adam(0.1), suite.cautious())
    held = {optimizer: variables() for optimizer in (plain, wrapped, linked)}
    for step in range(6):
        gradients = [value * np.cos(step * (1 + value)) for value in GRADIENTS.values()]
        before = {optimizer: [np.asarray(v).copy() for v in held[optimizer]] for optimizer in held}
        for optimizer in held:
            optimizer.apply([tf.constant(g) for g in gradients], held[optimizer])
        for place, gradient in enumerate(gradients):
            steps = {o: np.asarray(held[o][place]) - before[o][place] for o in held}
            expected = cautious(steps[plain], gradient)
            assert np.allclose(steps[wrapped], expected, rtol=1e-8, atol=1e-12)
            assert np.allclose(steps[linked], expected, rtol=1e-8, atol=1e-12)
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in zip(held[plain], held[wrapped], strict=True))


def test_decay_takes_its_share_of_the_weights_times_the_rate():
    with_decay, without = moved(chain(Descent(0.5), suite.decay_weights(0.1))), moved(Descent(0.5))
    assert near(with_decay, {name: without[name] - 0.5 * 0.1 * WEIGHTS[name] for name in SHAPES})


@pytest.mark.parametrize(
    ("mask", "decayed"),
    [
        ({"only": "kernel"}, {"dense_kernel", "conv_kernel"}),
        ({"exclude": "bias|scale"}, {"dense_kernel", "conv_kernel"}),
        ({"only": "dense", "exclude": "bias"}, {"dense_kernel"}),
        ({"only": "^scale$"}, {"scale"}),
    ],
)
def test_decay_reaches_what_its_patterns_name(mask, decayed):
    extra, without = moved(chain(Descent(0.5), suite.decay_weights(0.1, **mask))), moved(Descent(0.5))
    assert {name for name in SHAPES if not np.allclose(extra[name], without[name])} == decayed


@pytest.mark.parametrize("front", [True, False], ids=["before the rule", "after the rule"])
def test_multipliers_scale_the_learning_rate_and_not_the_gradient(front):
    link = suite.multiply_learning_rate({"bias": 10.0, "conv": 0.25, "dense": 3.0})
    scaled = moved(chain(link, Adam(0.01)) if front else chain(Adam(0.01), link), updates=3)
    plain = moved(Adam(0.01), updates=3)
    factors = {"dense_kernel": 3.0, "conv_kernel": 0.25, "dense_bias": 10.0, "scale": 1.0}  # the first that matches
    assert near(scaled, {name: factors[name] * plain[name] for name in SHAPES}, 1e-8)
    multiplied = {name: 10.0 * g for name, g in GRADIENTS.items()}
    assert near(moved(Adam(0.01), multiplied, updates=3), plain, 1e-6)  # Adam would not notice a larger gradient


def test_a_multiplier_of_zero_freezes():
    frozen = moved(chain(suite.multiply_learning_rate({"kernel": 0.0}), Adam(0.1), suite.decay_weights(0.1)))
    assert not frozen["dense_kernel"].any()
    assert not frozen["conv_kernel"].any()
    assert frozen["dense_bias"].all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: suite.clip_by_global_norm(0), "clip_norm must be a number above 0, got 0"),
        (lambda: suite.clip_by_value(-1), "clip_value must be a number above 0, got -1"),
        (lambda: suite.adaptive_gradient_clipping(0), "clipping must be a number above 0, got 0"),
        (lambda: suite.adaptive_gradient_clipping(epsilon=0), "epsilon must be a number above 0, got 0"),
        (lambda: suite.decay_weights(-0.1), "weight_decay must be a number of 0 or above, got -0.1"),
        (lambda: suite.multiply_learning_rate({"a": -1}), r"factors\['a'\] must be a number of 0 or above, got -1"),
        (lambda: transforms.from_config({"name": "clip_by_norm"}), "'clip_by_norm' is not a transform; there are clip"),
        (lambda: transforms.from_config({}), "None is not a transform"),
        (lambda: moved(chain(Adam(), suite.decay_weights(0.1, only="("))), r"'\(' is not a pattern of variable paths"),
    ],
)
def test_what_is_not_a_transform_or_out_of_range_is_refused_by_name(make, message):
    with pytest.raises(ValueError, match=message):
        make()
