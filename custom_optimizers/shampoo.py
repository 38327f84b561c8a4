"""Shampoo with grafting and blocks, as it won AlgoPerf's external tuning track."""

from keras import ops, saving

from custom_optimizers import matrices, ranges
from custom_optimizers.moments import debias, moved
from custom_optimizers.optimizer import Optimizer, Slot

GRAFTS = ("adam", "sgd", "none")


def grafted(direction, measure):
    """The direction at the length of the measure: direction * |measure| / |direction|."""
    length = ops.sqrt(ops.sum(ops.square(direction)))
    return direction * (ops.sqrt(ops.sum(ops.square(measure))) / ops.maximum(length, 1e-30))


@saving.register_keras_serializable("minibatch")
class Shampoo(Optimizer):
    """L = average of G G', R = average of G' G;  W -= rate * graft(L^(-1/4) M^ R^(-1/4)), M^ the unbiased average of G.

    Gupta et al. (1802.09568), algorithm 1, with what made it practical: blocks and rarely computed roots (Anil et al.,
    2002.09018), averages, unbiased, instead of sums and grafting (Shi et al., 2309.06497). Kernels are folded into
    [inputs, outputs] and cut into blocks of at most block_size rows and columns, each of which is preconditioned and
    grafted as if it were a variable of its own. A side longer than max_precondition_dim (an embedding table) is not
    preconditioned, nor cut; with one side left the root is -1/2. Vectors and scalars take M^ / (sqrt(V^) + epsilon),
    Shampoo's diagonal form, where V is the average of G^2 with beta_2.

    Grafting keeps Shampoo's direction and takes the length of another rule's step: "adam" that of M^ / (sqrt(V^) +
    epsilon), "sgd" that of M^; "none" keeps Shampoo's own. Until update number precondition_frequency, when the first
    roots are there, the step is that of the other rule ("none": M^).

    eigenvalue_corrected=True replaces the eigenvalues of L and R by averages of G^2 in their eigenbases, bias corrected
    from the first basis on (2309.06497, section 2; SOAP without turning the averages).

    Args: learning_rate; beta_1, beta_2 in [0, 1); epsilon above 0; shampoo_beta in [0, 1] for L and R (1: sums, as in
    1802.09568); matrix_epsilon above 0, added to the eigenvalues of L and R as a share of the norm of
    each; precondition_frequency, updates between roots; block_size, max_precondition_dim, 1 or more; grafting.
    """

    def __init__(
        self,
        learning_rate=0.001,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
        shampoo_beta=0.999,
        matrix_epsilon=1e-6,
        precondition_frequency=50,
        block_size=1024,
        max_precondition_dim=8192,
        grafting="adam",
        eigenvalue_corrected=False,
        **options,
    ):
        super().__init__(learning_rate, **options)
        self.beta_1 = ranges.fraction("beta_1", beta_1)
        self.beta_2 = ranges.fraction("beta_2", beta_2)
        self.epsilon = ranges.positive("epsilon", epsilon)
        self.shampoo_beta = ranges.share("shampoo_beta", shampoo_beta)
        self.matrix_epsilon = ranges.positive("matrix_epsilon", matrix_epsilon)
        self.precondition_frequency = ranges.whole("precondition_frequency", precondition_frequency)
        self.block_size = ranges.whole("block_size", block_size)
        self.max_precondition_dim = ranges.whole("max_precondition_dim", max_precondition_dim)
        self.grafting = ranges.one_of("grafting", grafting, GRAFTS)
        self.eigenvalue_corrected = bool(eigenvalue_corrected)

    def _grid(self, variable) -> list[list[tuple]]:
        """[(name, rows, columns)] of the blocks of a variable, row by row."""
        shape, sides = matrices.folded(variable.shape), self._sides(variable)
        sizes = zip(("left", "right"), shape, strict=True)
        rows, columns = (
            matrices.cuts(size, self.block_size if side in sides else max(size, 1)) for side, size in sizes
        )
        return [[(f"{i}_{j}", slice(*r), slice(*c)) for j, c in enumerate(columns)] for i, r in enumerate(rows)]

    def _sides(self, variable) -> list[str]:
        return matrices.sides(variable.shape, self.max_precondition_dim)

    def slots(self, variable):
        sides = self._sides(variable)
        slots = {"m": Slot()}
        if self.grafting == "adam" or not sides:
            slots["v"] = Slot()
        for name, rows, columns in (block for row in self._grid(variable) for block in row) if sides else ():
            size = {"left": rows.stop - rows.start, "right": columns.stop - columns.start}
            for side in sides:
                square = Slot(shape=(size[side], size[side]))
                slots |= {f"{side}_{name}": square, f"{side}_factor_{name}": square}
            if self.eigenvalue_corrected:
                slots[f"corrected_{name}"] = Slot(shape=(size["left"], size["right"]))
        return slots

    def update(self, gradient, weight, slots, step):
        m = moved(slots["m"], gradient, self.beta_1)
        new, mean = {"m": m}, m / debias(self.beta_1, step.t)
        measure = mean
        if "v" in slots:
            new["v"] = moved(slots["v"], ops.square(gradient), self.beta_2)
            diagonal = mean / (ops.sqrt(new["v"] / debias(self.beta_2, step.t)) + self.epsilon)
            measure = diagonal if self.grafting == "adam" else mean
        if not self._sides(step.variable):
            direction = grafted(diagonal, mean) if self.grafting == "sgd" else diagonal
            return -step.rate * direction, new
        shape = matrices.folded(step.variable.shape)
        g, mean, measure = (ops.reshape(x, shape) for x in (gradient, mean, measure))
        blocks = self._grid(step.variable)
        grid: list[list] = []
        for row in blocks:
            grid.append([])
            for name, *at in row:
                own = self._own_slots(slots, name)
                a, b, c = (x[*at] if len(row) * len(blocks) > 1 else x for x in (g, mean, measure))
                direction, own = self._block(a, b, c, own, step.t)
                grid[-1].append(direction)
                new |= {f"{key}_{name}": value for key, value in own.items()}
        return -step.rate * ops.reshape(matrices.joined(grid), gradient.shape), new

    def _own_slots(self, slots: dict, name: str) -> dict:
        return {key.removesuffix(f"_{name}"): value for key, value in slots.items() if key.endswith(f"_{name}")}

    def _block(self, g, mean, measure, slots: dict, t):
        """(direction, new slots) of one block, all of its tensors [rows, columns]."""
        sides = [side for side in ("left", "right") if side in slots]
        statistics = {side: self._statistic(slots[side], matrices.gram(g, side)) for side in sides}
        old = {side: slots[f"{side}_factor"] for side in sides}
        due = ops.equal(t % self.precondition_frequency, 0)
        factors = ops.cond(due, lambda: self._factors(statistics, t), lambda: old)
        new = {**statistics, **{f"{side}_factor": factor for side, factor in factors.items()}}
        direction = matrices.turned(mean, factors)
        if self.eigenvalue_corrected:
            count = ops.maximum(t - self.precondition_frequency + 1, 1)
            v = moved(slots["corrected"], ops.square(matrices.turned(g, factors)), self.beta_2)
            direction = direction / (ops.sqrt(v / debias(self.beta_2, count)) + self.epsilon)
            direction, new["corrected"] = matrices.turned_back(direction, factors), v
        if self.grafting != "none":
            direction = grafted(direction, measure)
        return ops.cond(t >= self.precondition_frequency, lambda: direction, lambda: measure), new

    def _statistic(self, old, gram):
        return old + gram if self.shampoo_beta == 1 else moved(old, gram, self.shampoo_beta)

    def _factors(self, statistics: dict, t) -> dict:
        """The inverse roots, or, if their eigenvalues are corrected, the eigenbases. Roots are symmetric."""
        if self.eigenvalue_corrected:
            return {side: matrices.eigenbasis(statistic) for side, statistic in statistics.items()}
        weight = 1.0 if self.shampoo_beta == 1 else debias(self.shampoo_beta, t)
        order = 2 * len(statistics)
        return {s: matrices.inverse_root(x / weight, order, self.matrix_epsilon) for s, x in statistics.items()}
