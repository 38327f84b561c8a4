"""Muon: momentum whose singular values are all set to about one."""

from keras import ops, saving

from custom_optimizers import matrices, ranges
from custom_optimizers.adam import adam
from custom_optimizers.moments import moved
from custom_optimizers.optimizer import Optimizer, Slot

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3 and x^5: the steepest start that still ends between .7 and 1.2
TABLES = "embeddings$"  # what Keras calls the variable of an Embedding


def orthogonalized(x, steps: int = 5, dtype: str | None = None, epsilon: float = 1e-7):
    """U S' V' of a matrix x = U S V', S' between about .7 and 1.2, by Newton-Schulz iteration. [rows, columns], as x.

    Iterates x <- a x + b (x x') x + c (x x')^2 x from x / |x|, in `dtype` (None: that of x).
    """
    a, b, c = COEFFICIENTS
    kind, tall = x.dtype, x.shape[0] > x.shape[1]
    x = x / (ops.sqrt(ops.sum(ops.square(x))) + epsilon)
    x = ops.cast(ops.transpose(x) if tall else x, dtype or kind)  # the shorter side first: x x' is small
    for _ in range(steps):
        gram = x @ ops.transpose(x)
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return ops.cast(ops.transpose(x) if tall else x, kind)


@saving.register_keras_serializable("minibatch")
class Muon(Optimizer):
    """m = momentum * m + (1 - momentum) * g;  W -= rate * scale * orthogonalized((1 - momentum) * g + momentum * m)

    The rule of Jordan et al., Muon (kellerjordan.github.io/posts/muon), for hidden kernels. Those of more than two axes
    are folded into [inputs, outputs]; scale = max(1, outputs / inputs)^.5, or with rms_rate (0.2 lets it take AdamW's
    learning rate) rms_rate * max(inputs, outputs)^.5 (Liu et al., 2502.16982, section 2.2). Vectors, scalars, the
    tables of Embedding layers, and variables whose path matches a pattern in `adamw` take AdamW, at adam_lr_ratio times
    the learning rate, whatever schedule or callback sets that. Name the last layer there: it should not take Muon.

    Args: learning_rate; momentum in [0, 1); nesterov: False orthogonalizes m itself; weight_decay, decoupled, with the
    learning rate of its group; ns_steps, 1 or more; ns_dtype, of the iteration: None for that of the state, or
    "bfloat16"; rms_rate above 0; adamw, patterns for re.search over variable paths; adam_lr_ratio, 0 or above;
    beta_1, beta_2 in [0, 1) and epsilon above 0, of AdamW.
    """

    decays = False  # each group decays with its own rate

    def __init__(
        self,
        learning_rate=0.02,
        momentum=0.95,
        nesterov=True,
        weight_decay=0.0,
        ns_steps=5,
        ns_dtype=None,
        rms_rate=None,
        adamw=(),
        adam_lr_ratio=0.015,
        beta_1=0.9,
        beta_2=0.95,
        epsilon=1e-10,
        **options,
    ):
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.momentum = ranges.fraction("momentum", momentum)
        self.nesterov = bool(nesterov)
        self.ns_steps = ranges.whole("ns_steps", ns_steps)
        self.ns_dtype = ranges.optional(ranges.one_of, "ns_dtype", ns_dtype, choices=("bfloat16", "float32"))
        self.rms_rate = ranges.optional(ranges.positive, "rms_rate", rms_rate)
        self.adamw = [adamw] if isinstance(adamw, str) else list(adamw)
        self.adam_lr_ratio = ranges.not_negative("adam_lr_ratio", adam_lr_ratio)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.epsilon = ranges.positive("epsilon", epsilon)

    def patterns(self):
        return [*super().patterns(), TABLES, *self.adamw]

    def takes_adamw(self, variable) -> bool:
        """Whether a variable belongs to AdamW's group, once the optimizer is built."""
        index = self._get_variable_index(variable)
        named = any(self._selection.has(pattern, index) for pattern in (TABLES, *self.adamw))
        return named or len(variable.shape) < 2 or 0 in variable.shape

    def slots(self, variable):
        return {"m": Slot(), "v": Slot()} if self.takes_adamw(variable) else {"m": Slot()}

    def update(self, gradient, weight, slots, step):
        if self.takes_adamw(step.variable):
            rate = self.adam_lr_ratio * step.rate
            direction, m, v = adam(gradient, slots["m"], slots["v"], step.t, self.beta_1, self.beta_2, self.epsilon)
            new = {"m": m, "v": v}
        else:
            rate, m = step.rate, moved(slots["m"], gradient, self.momentum)
            ahead = moved(m, gradient, self.momentum) if self.nesterov else m
            direction, new = self._direction(ahead, matrices.folded(step.variable.shape)), {"m": m}
        if self.weight_decay and self._use_weight_decay(step.variable):
            direction = direction + self.weight_decay * weight
        return -rate * direction, new

    def _direction(self, x, shape: tuple[int, ...]):
        inputs, outputs = shape
        scale = max(1, outputs / inputs) ** 0.5
        if self.rms_rate is not None:
            scale = self.rms_rate * max(inputs, outputs) ** 0.5
        return ops.reshape(scale * orthogonalized(ops.reshape(x, shape), self.ns_steps, self.ns_dtype), x.shape)
