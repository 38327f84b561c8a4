"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner."""

from keras import ops, saving

from custom_optimizers import matrices, ranges
from custom_optimizers.adam import adam
from custom_optimizers.moments import moved
from custom_optimizers.optimizer import Optimizer, Slot


def power_step(statistic, basis):
    """(basis, order): one power iteration towards the eigenbasis, columns by estimated eigenvalue, largest first.

    `order` [..., size] says which old column each new one comes from; the others are [..., size, size]. 2409.11321,
    algorithm 4.
    """
    product = statistic @ basis
    order = ops.argsort(-ops.sum(basis * product, axis=-2), axis=-1)
    return ops.qr(ops.take_along_axis(product, order[..., None, :], axis=-1))[0], order


@saving.register_keras_serializable("minibatch")
class SOAP(Optimizer):
    """Vyas et al., SOAP: Improving and Stabilizing Shampoo using Adam (2409.11321), algorithms 3 and 4, for G [m, n]:

        G~ = Q_L' G Q_R;  M~, V = averages of G~, G~^2;  W -= rate * (Q_L (M^~ / (sqrt(V^) + epsilon)) Q_R' + decay)
        L, R = averages of G G', G' G;  every precondition_frequency moves: Q_L, Q_R = QR(L Q_L), QR(R Q_R)

    As in the authors' code the first update moves nothing: it only finds the first bases, by eigh. Moves, and with them
    the bias correction, count from the second. M~ is kept in the bases, and turned when they change; the columns of a
    basis stay sorted by eigenvalue, and V is permuted with them. Kernels of more axes are folded into [inputs,
    outputs]. A side longer than max_precondition_dim (an embedding table) keeps the identity for its basis; vectors and
    scalars keep it on both, which is Adam.

    Cost of a move beside Adam's: 6 products of [m, n] with a square matrix; state 2 (m^2 + n^2) + 2 m n numbers.

    Args: learning_rate; beta_1, beta_2 in [0, 1) for M and V; shampoo_beta in [0, 1) for L and R, None: beta_2;
    epsilon above 0; weight_decay, decoupled; precondition_frequency, moves between changes of bases, 1 or more;
    max_precondition_dim, 1 or more (the authors: 10000, which asks for a GPU).
    """

    decays = False  # the first update moves nothing, decay included

    def __init__(
        self,
        learning_rate=0.003,
        beta_1=0.95,
        beta_2=0.95,
        shampoo_beta=None,
        epsilon=1e-8,
        weight_decay=0.01,
        precondition_frequency=10,
        max_precondition_dim=2048,
        **options,
    ):
        super().__init__(learning_rate, weight_decay=weight_decay, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.shampoo_beta = ranges.optional(ranges.fraction, "shampoo_beta", shampoo_beta)
        self.epsilon = ranges.positive("epsilon", epsilon)
        self.precondition_frequency = ranges.whole("precondition_frequency", precondition_frequency)
        self.max_precondition_dim = ranges.whole("max_precondition_dim", max_precondition_dim)

    def slots(self, variable):
        shape = matrices.folded(variable.shape)
        slots = {"m": Slot(), "v": Slot()}
        for side in matrices.sides(shape, self.max_precondition_dim):
            square = Slot(shape=(matrices.side_size(shape, side),) * 2)
            slots |= {side: square, f"{side}_basis": square}
        return slots

    def update_all(self, gradients, weights, slots, steps, shared):
        each = zip(gradients, weights, slots, steps, strict=True)
        pairs = [self._move(*one) for one in each]
        states = self._in_new_bases([state for _, state in pairs], steps[0].t)
        shaped = zip(states, gradients, strict=True)
        states = [state | {n: ops.reshape(state[n], g.shape) for n in ("m", "v")} for state, g in shaped]
        return [delta for delta, _ in pairs], states, shared

    def _move(self, gradient, weight, slots, step):
        """(delta, slots) of one variable in the bases that it has, with m and v folded."""
        shape = matrices.folded(step.variable.shape)
        sides = matrices.sides(shape, self.max_precondition_dim)
        moves = ops.cast(step.t > 1, step.t.dtype)
        g, m, v = (ops.reshape(x, shape) for x in (gradient, slots["m"], slots["v"]))
        bases = {side: slots[f"{side}_basis"] for side in sides}
        # Gradients of zero leave averages of zero what they are, so the first update needs no branch here; the bases
        # begin as zeros.
        turned = matrices.turned(g, bases) if sides else moves * g
        count = ops.maximum(step.t - 1, 1)
        direction, m, v = adam(turned, m, v, count, self.beta_1, self.beta_2, self.epsilon)
        direction = ops.reshape(matrices.turned_back(direction, bases), gradient.shape)
        if self.weight_decay and self._use_weight_decay(step.variable):
            direction = direction + moves * self.weight_decay * weight
        beta = self.beta_2 if self.shampoo_beta is None else self.shampoo_beta
        statistics = {side: moved(slots[side], matrices.gram(g, side), beta) for side in sides}
        return -step.rate * direction, {**slots, **statistics, "m": m, "v": v}

    def _in_new_bases(self, states: list[dict], t) -> list[dict]:
        """The slots of all variables after update t: bases are found at the first, improved every so many moves."""
        at = [(state, side) for state in states for side in ("left", "right") if side in state]
        if not at:
            return states
        statistics, bases = [s[side] for s, side in at], [s[f"{side}_basis"] for s, side in at]

        def first():
            found = matrices.batched(lambda statistic: (matrices.eigenbasis(statistic),), statistics)
            return [basis for (basis,) in found], kept

        def improved():
            steps = matrices.batched(power_step, statistics, bases)
            better = iter(steps)
            averages = [_turned(state, {s: next(better) for s in ("left", "right") if s in state}) for state in states]
            return [basis for basis, _ in steps], averages

        kept = [(state["m"], state["v"]) for state in states]
        due = ops.equal((t - 1) % self.precondition_frequency, 0)
        bases, averages = ops.cond(t > 1, lambda: ops.cond(due, improved, lambda: (bases, kept)), first)
        left = iter(bases)
        renewed = [{f"{side}_basis": next(left) for side in ("left", "right") if side in state} for state in states]
        each = zip(states, renewed, averages, strict=True)
        return [state | own | {"m": m, "v": v} for state, own, (m, v) in each]


def _turned(state: dict, steps: dict):
    """(m, v) in the bases that the power steps of the sides led to."""
    m = matrices.turned_back(state["m"], {side: state[f"{side}_basis"] for side in steps})
    v = state["v"]
    for side, (_, order) in steps.items():
        v = ops.take(v, order, axis=0 if side == "left" else 1)
    return matrices.turned(m, {side: basis for side, (basis, _) in steps.items()}), v
