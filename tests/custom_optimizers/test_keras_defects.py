"""Defects of Keras 3.15 that this package does not have.

Each test shows the defect in Keras first: when one fails there, Keras has fixed it, and what we do about it may go.
"""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import custom_optimizers as suite
from tests.custom_optimizers import problem
from tests.custom_optimizers.test_replicas import shared_out, two_replicas

NEAR = 1e-6
WRONG = 1e-3


def weights(optimizer, stored, dtype="float32", shapes=problem.SMALL):
    variables = problem.variables(shapes, dtype)
    return problem.descend(problem.built(optimizer, variables), variables, stored, dtype)[-1]


def sparse_error(make):
    """How far repeated rows lead from where the same dense gradient leads."""
    stored = problem.gradients(4, problem.SMALL)
    whole = [[problem.dense(gradient) for gradient in row] for row in stored]
    return problem.far(weights(make(), stored), weights(make(), whole))


@pytest.mark.parametrize("name", ["Adam", "Adagrad", "RMSprop", "Adadelta", "Ftrl", "Nadam"])
def test_1_keras_squares_each_slice_of_a_repeated_row_by_itself(name):
    assert sparse_error(lambda: getattr(keras.optimizers, name)(1.0)) > WRONG / 10


def test_1_we_square_the_sum():
    assert sparse_error(lambda: suite.Adam(0.1)) < NEAR
    assert sparse_error(lambda: suite.Adagrad(0.1)) < NEAR


def test_3_keras_clips_each_slice_of_a_repeated_row_by_itself_and_we_the_sum():
    for options in ({"clipvalue": 0.7}, {"clipnorm": 0.7}):
        assert sparse_error(lambda: keras.optimizers.SGD(0.1, **options)) > WRONG  # noqa: B023
        assert sparse_error(lambda: suite.chain(suite.Adam(0.1), **options)) < NEAR  # noqa: B023


def replica_error(make, batches, whole=False):
    """How far two replicas lead from where one leads that has the joined batch (whole: with dense gradients)."""
    ends = []
    for strategy in (two_replicas(), tf.distribute.get_strategy()):
        with strategy.scope():
            variables = problem.variables(problem.TRAINED)
            optimizer = problem.built(make(), variables)
        for batch in batches:
            if strategy is two_replicas():
                step = functools.partial(problem.train_step, optimizer, variables)
                strategy.run(step, args=shared_out(strategy, batch))
            else:
                problem.train_step(optimizer, variables, *batch, whole=whole)
        ends.append(problem.values(variables))
    return problem.far(*ends)


def test_2_keras_squares_the_slices_of_a_row_of_two_replicas_apart_and_we_their_sum():
    batches = problem.batches(2, "float32")
    assert replica_error(lambda: keras.optimizers.Adam(0.1), batches, whole=True) > WRONG
    assert replica_error(lambda: suite.Adam(0.1), batches, whole=True) < NEAR * 10


@pytest.mark.parametrize("name", ["clipnorm", "global_clipnorm", "clipvalue"])
def test_4_keras_clips_before_the_sum_over_replicas_and_we_after_it(name):
    batches, options = problem.batches(1, "float32"), {name: 0.01}
    assert replica_error(lambda: keras.optimizers.SGD(1.0, **options), batches) > WRONG / 10
    assert replica_error(lambda: suite.chain(suite.Adam(0.1, epsilon=0.1), **options), batches) < NEAR


def test_5_keras_does_not_see_an_overflow_on_the_second_replica_and_we_do():
    ends = []
    for inner, scaled in (
        (keras.optimizers.SGD, keras.optimizers.LossScaleOptimizer),
        (keras.optimizers.SGD, suite.LossScaleOptimizer),
        (suite.Adam, suite.LossScaleOptimizer),
    ):
        with two_replicas().scope():
            variable = keras.Variable(np.ones(2, "float32"), name="w")
            optimizer = problem.built(scaled(inner(1.0), initial_scale=4.0), [variable])

        def step(optimizer=optimizer, variable=variable):
            second = tf.distribute.get_replica_context().replica_id_in_sync_group == 1
            optimizer.apply([tf.where(second, [np.inf, 0.0], [0.0, 0.0])], [variable])

        two_replicas().run(step)
        ends.append((problem.values([variable])[0].tolist(), float(optimizer.dynamic_scale.numpy())))
    assert ends[0] == ([-np.inf, 1.0], 4.0)
    assert ends[1:] == [([1.0, 1.0], 2.0)] * 2


@pytest.mark.parametrize(
    "options",
    [{"gradient_accumulation_steps": 2}, {"use_ema": True, "ema_overwrite_frequency": 2}],
    ids=["accumulation", "overwriting with the average"],
)
def test_6_keras_cannot_trace_on_replicas_what_we_can(options):
    def run(make):
        with two_replicas().scope():
            variables = problem.variables(problem.TRAINED)
            optimizer = problem.built(make(0.1, **options), variables)
        step = functools.partial(problem.train_step, optimizer, variables)
        traced = tf.function(lambda batch: two_replicas().run(step, args=batch), autograph=False)
        traced(shared_out(two_replicas(), problem.batches(1, "float32")[0]))

    with pytest.raises(RuntimeError, match="merge_call"):
        run(keras.optimizers.SGD)
    run(suite.Adam)


def schedule_free(gradients, start, rate, beta_1, beta_2, epsilon):
    """Schedule-Free AdamW as its paper's algorithm 1 reads, with no decay and no warm-up: (y, x) at the end."""
    z, x, y, v, total = start.copy(), start.copy(), start.copy(), np.zeros_like(start), 0.0
    for t, g in enumerate(gradients, 1):
        v = beta_2 * v + (1 - beta_2) * g**2
        z = z - rate * g / (np.sqrt(v / (1 - beta_2**t)) + epsilon)
        total += rate**2
        c = rate**2 / total
        x = (1 - c) * x + c * z
        y = (1 - beta_1) * z + beta_1 * x
    return y, x


def test_7_schedule_free_of_keras_is_not_the_papers_and_ours_is():
    source, rate = np.random.default_rng(0), float(np.float32(0.1))
    start, gradients = source.normal(size=4), source.normal(size=(20, 4))
    y, x = schedule_free(gradients, start, rate, 0.9, 0.999, 1e-8)
    ends = []
    for make in (keras.optimizers.ScheduleFreeAdamW, suite.ScheduleFreeAdamW):
        variable = keras.Variable(start, dtype="float64", name="w")
        optimizer = problem.built(make(0.1, beta_1=0.9, beta_2=0.999, epsilon=1e-8), [variable])
        for gradient in gradients:
            optimizer.apply([tf.constant(gradient)], [variable])
        trained = np.array(variable)
        optimizer.finalize_variable_values([variable])
        ends.append((trained, np.array(variable)))
    (keras_y, keras_x), (our_y, our_x) = ends
    assert problem.far(keras_y, y) > WRONG
    assert np.array_equal(keras_x, keras_y)  # it does not tell where to evaluate
    assert problem.far(our_y, y) < 1e-10
    assert problem.far(our_x, x) < 1e-10


def operations(layer) -> list[str]:
    """The types of the operations that a traced forward pass runs."""
    layer.build((None, 3))
    traced = tf.function(layer, autograph=False).get_concrete_function(tf.TensorSpec((None, 3), "int32"))
    return [operation.type for operation in traced.graph.get_operations()]


def test_8_an_embedding_of_keras_reads_its_whole_table_and_ours_gathers_rows():
    keras_operations = operations(keras.layers.Embedding(6, 2))
    assert "ReadVariableOp" in keras_operations
    assert "ResourceGather" not in keras_operations
    ours = operations(suite.SparseEmbedding(6, 2))
    assert "ReadVariableOp" not in ours
    assert ours.count("ResourceGather") == 1


def test_9_multi_optimizer_of_keras_is_not_in_a_checkpoint_and_our_chain_is(tmp_path):
    stored = problem.gradients(4, problem.SMALL)

    def resumed(make):
        """How far a run that was restored from a checkpoint ends from one that went on."""
        variables = problem.variables(problem.SMALL)
        optimizer = problem.built(make(), variables)
        problem.descend(optimizer, variables, stored[:2])
        natives = [variable.value for variable in variables]
        tf.train.Checkpoint(optimizer=optimizer, weights=natives).write(str(tmp_path / "checkpoint"))
        expected = problem.descend(optimizer, variables, stored[2:])
        again = problem.variables(problem.SMALL, seed=9)
        other = problem.built(make(), again)
        natives = [variable.value for variable in again]
        tf.train.Checkpoint(optimizer=other, weights=natives).read(str(tmp_path / "checkpoint")).expect_partial()
        return problem.far(problem.descend(other, again, stored[2:]), expected)

    def multi():
        momentum = keras.optimizers.SGD(0.1, momentum=0.9)
        return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(momentum))

    assert resumed(multi) > WRONG
    factors = suite.multiply_learning_rate({"bias": 0.1})
    assert resumed(lambda: suite.chain(suite.clip_by_value(1.0), suite.Adam(0.1), factors)) == 0
    assert resumed(lambda: suite.Cautious(suite.Adam(0.1))) == 0


def test_9_a_loaded_model_has_other_paths_and_our_groups_stay(tmp_path):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(2, name="a"), keras.layers.Dense(1, name="b")], name="whole")
    model.build((None, 2))
    pattern = "^whole/a/"
    factors = suite.multiply_learning_rate({pattern: 0.0})
    model.compile(suite.chain(suite.AdamW(0.1), factors, suite.decay_weights(0.1, exclude=pattern)), loss="mse")
    inputs = np.random.default_rng(0).normal(size=(8, 2)), np.ones((8, 1))

    def frozen(model):
        before = problem.values(model.trainable_variables)
        model.train_on_batch(*inputs)
        after = problem.values(model.trainable_variables)
        return [np.array_equal(old, new) for old, new in zip(before, after, strict=True)]

    assert frozen(model) == [True, True, False, False]
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.trainable_variables[0].path != model.trainable_variables[0].path, "Keras keeps paths now"
    assert frozen(loaded) == [True, True, False, False]


# The smaller ones.


def test_keras_accepts_sparing_variables_from_decay_too_late_and_we_refuse():
    for make in (keras.optimizers.AdamW, suite.AdamW):
        optimizer = problem.built(make(0.1), problem.variables(problem.SMALL))
        if make is suite.AdamW:
            with pytest.raises(ValueError, match="before"):
                optimizer.exclude_from_weight_decay(var_names=["bias"])
        else:
            optimizer.exclude_from_weight_decay(var_names=["bias"])


def test_keras_averages_once_a_mini_batch_and_we_once_an_update():
    stored = problem.gradients(6, problem.SMALL)
    stored = [[problem.dense(gradient) for gradient in row] for row in stored]
    joined = [[(x + y) / 2 for x, y in zip(*pair, strict=True)] for pair in zip(stored[::2], stored[1::2], strict=True)]
    errors = []
    for make in (keras.optimizers.Adam, suite.Adam):
        averages = []
        for gradients, every in ((joined, None), (stored, 2)):
            variables = problem.variables(problem.SMALL)
            optimizer = make(0.1, use_ema=True, ema_momentum=0.5, gradient_accumulation_steps=every)
            problem.descend(problem.built(optimizer, variables), variables, gradients)
            optimizer.finalize_variable_values(variables)
            averages.append(problem.values(variables))
        errors.append(problem.far(*averages))
    assert errors[0] > WRONG
    assert errors[1] < NEAR


def test_keras_refuses_a_learning_rate_of_1_and_we_take_it():
    with pytest.raises(ValueError, match="learning_rate"):
        keras.optimizers.Adam(1)
    assert float(suite.Adam(1).learning_rate) == 1


def test_keras_rounds_betas_to_float32_and_we_do_not():
    """With all gradients 1, v^ is 1 and the first step is the rate."""
    steps = []
    for make in (keras.optimizers.Adam, suite.Adam):
        variable = keras.Variable([0.0], dtype="float64", name="w")
        problem.built(make(0.5, epsilon=1e-30), [variable]).apply([tf.ones(1, "float64")], [variable])
        steps.append(-float(variable[0]))
    assert abs(steps[0] - 0.5) > 1e-7
    assert abs(steps[1] - 0.5) < 1e-13
