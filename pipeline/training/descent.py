"""Gradient descent as configured: the optimizer, its learning-rate schedule, and one update with clipping.

The optimizers of custom_optimizers clip the gradient of the whole batch themselves, and sum the rows of sparse ones.
Keras' own clip on each replica, before its sum; for them both is done here.
"""

import inspect

import keras
import tensorflow as tf

import custom_optimizers
from pipeline.config import Config, Optimizer
from pipeline.errors import USAGE, UserError

_CLIPS = {"value": "clipvalue", "norm": "clipnorm", "global_norm": "global_clipnorm"}


def schedule_of(options: Optimizer, steps_per_epoch: int, epochs: int):
    """The learning rate as a function of the number of updates, or a number if it is constant."""
    rate, warmup = options.learning_rate, round(options.warmup_epochs * steps_per_epoch)
    period = max(1, round(options.decay_epochs * steps_per_epoch))
    schedules = keras.optimizers.schedules
    if options.schedule == "exponential":
        schedule = schedules.ExponentialDecay(rate, period, options.decay_rate)
    elif options.schedule == "cosine":
        decay = max(1, epochs * steps_per_epoch - warmup)
        schedule = schedules.CosineDecay(rate, decay, alpha=options.final_fraction)
    elif options.schedule == "cyclical":
        schedule = custom_optimizers.Triangular(options.final_fraction * rate, rate, period)
    else:
        schedule = rate
    return custom_optimizers.WarmUp(schedule, warmup) if warmup else schedule


def optimizer_of(
    options: Optimizer, steps_per_epoch: int, epochs: int, precision: str = "float32"
) -> keras.optimizers.Optimizer:
    """The optimizer named, ours before Keras', with loss scaling under mixed_float16. Raises UserError for an unknown
    name or argument, and for an optimizer that needs more than gradients."""
    known = {}
    for module in (keras.optimizers, custom_optimizers):
        for name, value in vars(module).items():
            is_rule = isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
            if is_rule and "learning_rate" in inspect.signature(value).parameters:  # not those around another optimizer
                known[name.lower()] = value
    del known["optimizer"]
    rule = known.get(options.name.lower().replace("_", ""))
    if rule is None:
        there = ", ".join(sorted(n for n, each in known.items() if not getattr(each, "needs_estimates", False)))
        raise UserError(f"--optimizer.name {options.name}: not known; there are {there}.", USAGE)
    if getattr(rule, "needs_estimates", False):
        reason = "needs calls of its estimate method, which the training loop does not make"
        raise UserError(f"--optimizer.name {options.name}: {reason}.", USAGE)
    arguments = dict(options.arguments)
    if options.weight_decay is not None:
        arguments["weight_decay"] = options.weight_decay
    if options.clip != "none" and issubclass(rule, custom_optimizers.Optimizer):
        arguments[_CLIPS[options.clip]] = options.clip_at
    try:
        optimizer = rule(learning_rate=schedule_of(options, steps_per_epoch, epochs), **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--optimizer.arguments: {options.name} refuses them ({str(error).splitlines()[0]}).", USAGE
        ) from None
    return custom_optimizers.LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer


def averages(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether the weights to evaluate are others than those that gradients are taken at."""
    rule = getattr(optimizer, "inner_optimizer", optimizer)
    return rule.averages if isinstance(rule, custom_optimizers.Optimizer) else bool(rule.use_ema)


def update(
    optimizer: keras.optimizers.Optimizer,
    gradients: list,
    variables: list,
    config: Config,
    asked: tf.Tensor | bool,
    finite: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """One update from this replica's gradients (of the scaled loss, where the optimizer scales it), in a replica.

    Returns the global norm sqrt(sum |g|^2) of the gradient of the whole batch before clipping, or 0 where it is not
    asked for, and whether that gradient is finite, too, where the loss is (`finite`). Under the policy to skip, the
    update is made only then. A scaled gradient may overflow: loss scaling leaves that update out by itself,
    and only once the scale is below 1 does it count as not finite.
    """
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    total = custom_optimizers.sum_over_replicas(gradients)
    scale = tf.cast(optimizer.dynamic_scale, tf.float32) if scaled else 1.0

    def norm():
        return custom_optimizers.global_norm(total) / scale

    def apply(gradients: list, total: list) -> None:
        _apply(optimizer, gradients, total, variables, config.optimizer, scale)

    whole = all_finite(total, config.train.jit)
    finite &= (whole | (scale >= 1)) if scaled else whole
    if config.train.non_finite == "skip":
        _where(finite, apply, gradients, total)
    else:
        apply(gradients, total)
    none = tf.zeros([], "float64" if total[0].dtype == tf.float64 else "float32")
    if isinstance(asked, bool):
        return norm() if asked else none, finite
    return tf.cond(asked, norm, lambda: none), finite


def all_finite(gradients: list, by_halves: bool = False) -> tf.Tensor:
    """Whether every entry is finite: whether their sum is. `by_halves`: one half is added to the other as long as that
    goes, since XLA adds up one by one what it is told to sum: of the smallest updates a third."""
    sums = []
    for gradient in gradients:
        values = gradient.values if isinstance(gradient, tf.IndexedSlices) else tf.convert_to_tensor(gradient)
        while by_halves and values.shape[:1].is_fully_defined() and values.shape[0] and values.shape[0] % 2 == 0:
            values = values[: values.shape[0] // 2] + values[values.shape[0] // 2 :]
        sums.append(tf.reduce_sum(values))
    return tf.math.is_finite(tf.add_n(sums))


def _apply(optimizer, gradients: list, total: list, variables: list, options: Optimizer, scale) -> None:
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    rule = optimizer.inner_optimizer if scaled else optimizer
    if isinstance(rule, custom_optimizers.Optimizer):
        if scaled:
            optimizer.apply(gradients, variables)
        else:
            optimizer.apply_total(total, variables)
        return
    # Keras sums over the replicas inside apply; each hands in the same gradient, so each hands in its share.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    clipped = clip([tf.convert_to_tensor(g) / scale for g in total], options)
    optimizer.apply([g * scale / replicas for g in clipped], variables)


def _where(condition: tf.Tensor, apply, gradients: list, total: list) -> None:
    """apply(gradients, total) on every replica, if the condition holds. The branch must be outside the replicas: inside
    one, tf.distribute cannot merge them."""

    def merged(strategy, condition, gradients, total):
        def run():
            strategy.extended.call_for_each_replica(apply, args=(gradients, total))
            return True

        tf.cond(strategy.experimental_local_results(condition)[0], run, lambda: False)

    interim = tf.__internal__.distribute.interim
    interim.maybe_merge_call(merged, tf.distribute.get_strategy(), condition, gradients, total)


def clip(gradients: list[tf.Tensor], options: Optimizer) -> list[tf.Tensor]:
    """Each entry (value), each gradient (norm) or all together (global_norm: sqrt(sum |g|^2)) cut to `clip_at`."""
    if options.clip == "value":
        finite = tf.math.is_finite(tf.linalg.global_norm(gradients))  # loss scaling must still see what overflowed
        gradients = [tf.where(finite, tf.clip_by_value(g, -options.clip_at, options.clip_at), g) for g in gradients]
    elif options.clip == "norm":
        gradients = [tf.clip_by_norm(g, options.clip_at) for g in gradients]
    elif options.clip == "global_norm":
        gradients, _ = tf.clip_by_global_norm(gradients, options.clip_at)
    return gradients
