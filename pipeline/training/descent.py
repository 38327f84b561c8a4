"""Gradient descent as configured: the optimizer, its learning-rate schedule, and one update with clipping.

The optimizers of custom_optimizers clip the gradient of the whole batch themselves, and sum the rows of sparse ones.
Keras' own clip on each replica, before its sum; for them both is done here.
"""

import inspect

import keras
import tensorflow as tf

import custom_optimizers
from pipeline.config import Optimizer
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
    name or argument."""
    known = {}
    for module in (keras.optimizers, custom_optimizers):
        for name, value in vars(module).items():
            is_rule = isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer)
            if is_rule and "learning_rate" in inspect.signature(value).parameters:  # not those around another optimizer
                known[name.lower()] = value
    del known["optimizer"]
    rule = known.get(options.name.lower().replace("_", ""))
    if rule is None:
        raise UserError(f"--optimizer.name {options.name}: not known; there are {', '.join(sorted(known))}.", USAGE)
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
    optimizer: keras.optimizers.Optimizer, gradients: list, variables: list, options: Optimizer, asked: tf.Tensor
) -> tf.Tensor:
    """One update from this replica's gradients (of the scaled loss, where the optimizer scales it), in a replica.

    Returns the global norm sqrt(sum |g|^2) of the whole batch's gradient before clipping, or 0 where it is not asked
    for: it costs a pass over the gradients.
    """
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    rule = optimizer.inner_optimizer if scaled else optimizer
    total = custom_optimizers.sum_over_replicas(gradients)
    scale = tf.cast(optimizer.dynamic_scale, tf.float32) if scaled else 1.0
    if isinstance(rule, custom_optimizers.Optimizer):
        if scaled:
            optimizer.apply(gradients, variables)
        else:
            optimizer.apply_total(total, variables)
        return tf.cond(asked, lambda: custom_optimizers.global_norm(total) / scale, lambda: 0.0)
    # Keras sums over the replicas inside apply; each hands in the same gradient, so each hands in its share.
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    clipped, norm = clip([tf.convert_to_tensor(g) / scale for g in total], options)
    optimizer.apply([g * scale / replicas for g in clipped], variables)
    return norm


def clip(gradients: list[tf.Tensor], options: Optimizer) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Clipped gradients, and the global norm sqrt(sum |g|^2) they had before."""
    norm = tf.linalg.global_norm(gradients)
    if options.clip == "value":
        finite = tf.math.is_finite(norm)  # what overflowed must stay visible to loss scaling
        gradients = [tf.where(finite, tf.clip_by_value(g, -options.clip_at, options.clip_at), g) for g in gradients]
    elif options.clip == "norm":
        gradients = [tf.clip_by_norm(g, options.clip_at) for g in gradients]
    elif options.clip == "global_norm":
        gradients, _ = tf.clip_by_global_norm(gradients, options.clip_at, norm)
    return gradients, norm
