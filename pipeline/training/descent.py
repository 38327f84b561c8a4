"""Gradient descent as configured: the optimizer, its learning-rate schedule, and clipping of the reduced gradient."""

import keras
import tensorflow as tf

import custom_optimizers
from pipeline.config import Optimizer
from pipeline.errors import USAGE, UserError


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


def optimizer_of(options: Optimizer, steps_per_epoch: int, epochs: int) -> keras.optimizers.Optimizer:
    """The optimizer named, ours before Keras'. Raises UserError for an unknown name or argument."""
    known = {}
    for module in (keras.optimizers, custom_optimizers):
        for name, value in vars(module).items():
            if isinstance(value, type) and issubclass(value, keras.optimizers.Optimizer):
                known[name.lower()] = value
    for abstract in ("optimizer", "lossscaleoptimizer"):
        known.pop(abstract, None)
    if options.name.lower().replace("_", "") not in known:
        raise UserError(f"--optimizer.name {options.name}: not known; there are {', '.join(sorted(known))}.", USAGE)
    arguments = dict(options.arguments)
    if options.weight_decay is not None:
        arguments["weight_decay"] = options.weight_decay
    try:
        return known[options.name.lower().replace("_", "")](
            learning_rate=schedule_of(options, steps_per_epoch, epochs), **arguments
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"--optimizer.arguments: {options.name} refuses them ({str(error).splitlines()[0]}).", USAGE
        ) from None


def clip(gradients: list[tf.Tensor], options: Optimizer) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Clipped gradients, and the global norm sqrt(sum |g|^2) they had before.

    Must see the gradient summed over replicas: Keras' own clipping runs before that sum, so that N replicas would not
    descend as one does.
    """
    norm = tf.linalg.global_norm(gradients)
    if options.clip == "value":
        finite = tf.math.is_finite(norm)  # what overflowed must stay visible to loss scaling
        gradients = [tf.where(finite, tf.clip_by_value(g, -options.clip_at, options.clip_at), g) for g in gradients]
    elif options.clip == "norm":
        gradients = [tf.clip_by_norm(g, options.clip_at) for g in gradients]
    elif options.clip == "global_norm":
        gradients, _ = tf.clip_by_global_norm(gradients, options.clip_at, norm)
    return gradients, norm
