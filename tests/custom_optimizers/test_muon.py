"""Muon against its rule in numpy, against Keras' and optax's pieces of it, and which variables it takes."""

import jax
import keras
import numpy as np
import pytest
from optax.contrib._muon import orthogonalize_via_newton_schulz

from custom_optimizers import AdamW, Cautious, Muon, chain, clip_by_global_norm
from custom_optimizers.muon import COEFFICIENTS, orthogonalized
from tests.custom_optimizers import problem
from tests.custom_optimizers.problem import numbers, path, stored

KERNEL = {"kernel": (4, 6)}


def newton_schulz(x, steps=5):
    """Singular value by singular value: the polynomial a s + b s^3 + c s^5, applied to s / |x|."""
    a, b, c = COEFFICIENTS
    u, s, v = np.linalg.svd(x, full_matrices=False)
    s = s / (np.sqrt(np.sum(s**2)) + 1e-7)
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ v


@pytest.mark.parametrize("nesterov", [True, False])
def test_every_step_of_a_kernel_is_the_rule_in_numpy(nesterov):
    rate, momentum, decay = np.float32(0.02), 0.9, 0.1
    gradients = stored(KERNEL)
    ours = path(Muon(0.02, momentum, nesterov, weight_decay=decay), KERNEL, gradients)
    w, m = problem.values(problem.variables(KERNEL, dtype="float64"))[0], np.zeros((4, 6))
    for (g,), (mine,) in zip(gradients, ours, strict=True):
        m = momentum * m + (1 - momentum) * g
        ahead = (1 - momentum) * g + momentum * m if nesterov else m
        w = w - rate * ((6 / 4) ** 0.5 * newton_schulz(ahead) + decay * w)
        assert np.max(np.abs(mine - w)) < 1e-10


def test_a_kernel_with_fewer_outputs_than_inputs_moves_as_with_keras():
    """Keras neither scales nor weighs the gradient by 1 - momentum; the iteration takes the latter out again."""
    shapes = {"kernel": (6, 4)}
    gradients = stored(shapes)
    mine = path(Muon(0.02, 0.95), shapes, gradients, "float32")
    theirs = path(
        keras.optimizers.Muon(0.02, momentum=0.95, weight_decay=0.0, rms_rate=None), shapes, gradients, "float32"
    )
    assert problem.far(mine, theirs) < 2e-5


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 4), (4, 1)])
def test_newton_schulz_is_optax_to_the_last_digits(shape):
    x = numbers(*shape)
    with jax.enable_x64(True):
        theirs = orthogonalize_via_newton_schulz(jax.numpy.asarray(x), jax.numpy.asarray(COEFFICIENTS), eps=1e-7)
    assert np.max(np.abs(np.asarray(orthogonalized(keras.ops.convert_to_tensor(x))) - np.asarray(theirs))) < 1e-12


def test_newton_schulz_in_bfloat16_is_near_and_keeps_the_dtype_of_its_input():
    x = keras.ops.convert_to_tensor(numbers(8, 16), "float32")
    rough, fine = orthogonalized(x, dtype="bfloat16"), orthogonalized(x)
    assert keras.backend.standardize_dtype(rough.dtype) == "float32"
    difference = problem.far([np.asarray(rough)], [np.asarray(fine)])
    assert 1e-5 < difference < 0.1


def test_singular_values_end_near_one():
    values = np.linalg.svd(np.asarray(orthogonalized(keras.ops.convert_to_tensor(numbers(20, 30)))), compute_uv=False)
    assert 0.6 < values.min() < values.max() < 1.3


def test_turning_the_weights_turns_the_path():
    """W -> U' W V with orthogonal U and V, gradients with it: Muon knows no axes."""
    u, v = np.linalg.qr(numbers(4, 4, seed=5))[0], np.linalg.qr(numbers(6, 6, seed=6))[0]
    gradients = stored(KERNEL)
    plain = path(Muon(0.02), KERNEL, gradients)
    start = problem.values(problem.variables(KERNEL, dtype="float64"))[0]
    turned = path(Muon(0.02), KERNEL, [[u.T @ g @ v] for (g,) in gradients])
    for (one,), (other,) in zip(plain, turned, strict=True):
        assert np.max(np.abs(u.T @ (one - start) @ v - (other - start))) < 1e-12


def test_the_size_of_the_gradient_does_not_matter():
    gradients = stored(KERNEL)
    large = [[1024 * g for g in row] for row in gradients]
    assert problem.far(path(Muon(0.02), KERNEL, large), path(Muon(0.02), KERNEL, gradients)) < 1e-6  # the epsilon


def test_a_convolution_moves_as_its_matrix_of_inputs_and_outputs():
    conv = {"kernel": (3, 2, 2, 5)}
    gradients = stored(conv)
    flat = [[row[0].reshape(12, 5)] for row in gradients]
    variables = problem.variables(conv, dtype="float64")
    mine = problem.descend(problem.built(Muon(0.02), variables), variables, gradients, "float64")
    folded = [
        keras.Variable(problem.values(problem.variables(conv, dtype="float64"))[0].reshape(12, 5), dtype="float64")
    ]
    assert problem.far(mine, problem.descend(problem.built(Muon(0.02), folded), folded, flat, "float64")) == 0


@pytest.mark.parametrize(
    ("shape", "matrix"), [((8, 2, 4), (8, 8)), ((2, 4, 8), (8, 8)), ((3, 16, 16), (48, 16)), ((16, 4, 2), (16, 8))]
)
def test_three_axes_are_those_of_attention_where_that_is_nearer_to_a_square(shape, matrix):
    three, two = {"kernel": shape}, {"kernel": matrix}
    gradients = stored(three, steps=3)
    flat = [[row[0].reshape(matrix)] for row in gradients]
    mine, theirs = path(Muon(0.02), three, gradients), path(Muon(0.02), two, flat)
    assert problem.far(mine, theirs) == 0


def test_rms_rate_scales_by_the_longer_side_instead():
    shapes = {"kernel": (6, 4)}
    start = problem.values(problem.variables(shapes, dtype="float64"))
    gradients = stored(shapes, steps=1)
    plain, scaled = path(Muon(0.02), shapes, gradients)[0], path(Muon(0.02, rms_rate=0.2), shapes, gradients)[0]
    assert np.allclose(scaled[0] - start[0], 0.2 * 6**0.5 * (plain[0] - start[0]), rtol=1e-6, atol=0)


OTHERS = {"bias": (3,), "scale": (), "empty": (0, 5), "head": (3, 2), "embeddings": (5, 2)}


def test_vectors_scalars_tables_and_named_variables_take_adamw_at_their_share_of_the_rate():
    gradients = stored(OTHERS)
    settings = {"beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-6, "weight_decay": 0.1}
    mine = path(Muon(0.02, adamw="head", adam_lr_ratio=0.5, **settings), OTHERS, gradients)
    assert problem.far(mine, path(AdamW(0.01, **settings), OTHERS, gradients)) < 1e-10


def test_the_tables_of_embedding_layers_take_adamw_and_hidden_kernels_do_not():
    layers = [keras.layers.Embedding(7, 4), keras.layers.Conv1D(3, 2), keras.layers.Dense(5), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    last = model.trainable_variables[-2]
    optimizer = Muon(adamw=["nothing", f"{last.path}$"])
    optimizer.build(model.trainable_variables)
    named = [(v.path.split("/")[-1], optimizer.takes_adamw(v)) for v in model.trainable_variables]
    hidden = [("kernel", False), ("bias", True)]
    assert named == [("embeddings", True), *hidden, *hidden, ("kernel", True), ("bias", True)]


def test_a_loaded_optimizer_keeps_its_groups_when_paths_change():
    with keras.name_scope("outer"):
        variables = problem.variables({"head": (3, 2), "kernel": (3, 2)})
    optimizer = problem.built(Muon(adamw="outer/head"), variables)
    renamed = problem.variables({"head": (3, 2), "kernel": (3, 2)})
    again = problem.built(Muon.from_config(optimizer.get_config()), renamed)
    assert [again.takes_adamw(variable) for variable in renamed] == [True, False]
    assert len(again.variables) == len(optimizer.variables)


@pytest.mark.parametrize("wrap", [lambda o: chain(clip_by_global_norm(1e9), o), Cautious, lambda o: Cautious(chain(o))])
def test_groups_hold_inside_wrappers(wrap):
    shapes = {**KERNEL, "head": (3, 2), "bias": (3,)}
    variables = problem.variables(shapes)
    optimizer = problem.built(wrap(Muon(adamw="head")), variables)
    bare = problem.built(Muon(adamw="head"), problem.variables(shapes))
    assert [v.shape for v in optimizer.variables][2:] == [v.shape for v in bare.variables][2:]
    problem.descend(optimizer, variables, stored(shapes, steps=2), "float32")


def test_a_schedule_moves_the_rate_of_both_groups():
    shapes = {**KERNEL, "bias": (3,)}
    start, gradients = problem.values(problem.variables(shapes, dtype="float64")), stored(shapes, steps=1)
    full = path(Muon(0.02), shapes, gradients)[0]
    half = path(Muon(keras.optimizers.schedules.PiecewiseConstantDecay([5], [0.01, 0.0])), shapes, gradients)[0]
    for before, whole, part in zip(start, full, half, strict=True):
        assert np.allclose(part - before, (whole - before) / 2, rtol=1e-6, atol=0)


def test_a_gradient_of_zero_moves_nothing():
    moved = path(Muon(0.02), KERNEL, [[np.zeros((4, 6))]] * 3)
    assert problem.far(moved, [problem.values(problem.variables(KERNEL, dtype="float64"))] * 3) == 0


def test_bfloat16_kernels_keep_float32_state_and_descend():
    variables = [keras.Variable(numbers(8, 8), dtype="bfloat16", name="kernel")]
    optimizer = problem.built(Muon(0.1, ns_dtype="bfloat16"), variables)
    assert {v.dtype for v in optimizer.variables[2:]} == {"float32"}
    before = np.sum(np.square(problem.flat(problem.values(variables))))
    for _ in range(10):
        optimizer.apply([keras.ops.convert_to_tensor(variables[0])], variables)
    assert np.sum(np.square(problem.flat(problem.values(variables)))) < 0.7 * before


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"momentum": 1.0}, "momentum"),
        ({"ns_steps": 0}, "ns_steps"),
        ({"ns_dtype": "float16"}, "ns_dtype"),
        ({"rms_rate": 0}, "rms_rate"),
        ({"adam_lr_ratio": -1}, "adam_lr_ratio"),
    ],
)
def test_an_argument_out_of_range_is_refused_by_name(arguments, name):
    with pytest.raises(ValueError, match=name):
        Muon(**arguments)
