"""The core that every optimizer here shares: what happens to a gradient between the tape and the weights.

One update, in this order:

    sum over replicas -> sum repeated rows of sparse gradients -> clip -> rule -> weight decay -> constraint -> average

A rule is a pure function from tensors to tensors; only the core reads and writes variables.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from custom_optimizers import clipping, ranges, replicas, sparse
from custom_optimizers.moments import moved
from custom_optimizers.selection import Selection
from custom_optimizers.state import Slot, State, Step, arithmetic, constant, dtype_of, path

LIMITS: dict[str, Callable] = {
    "weight_decay": ranges.not_negative,
    "clipnorm": ranges.limit,
    "clipvalue": ranges.limit,
    "global_clipnorm": ranges.limit,
    "loss_scale_factor": ranges.positive,
    "ema_momentum": ranges.share,
    "ema_overwrite_frequency": ranges.whole,
    "gradient_accumulation_steps": functools.partial(ranges.whole, least=2),
}
"""What Keras' options but use_ema may be."""


class Optimizer(keras.optimizers.Optimizer):
    """Base of every optimizer here. A subclass says what state it keeps and how one update changes it.

    It takes what Keras' optimizers take (weight_decay, clipnorm, clipvalue, global_clipnorm, use_ema, ema_momentum,
    ema_overwrite_frequency, loss_scale_factor, gradient_accumulation_steps, name), with these meanings:

    - clipping sees the gradient of the whole batch: summed over replicas and over repeated rows;
    - weight decay is decoupled: w -= learning_rate * weight_decay * w (lazy optimizers: in touched rows);
    - schedules, the moving average and `iterations` count updates, not accumulated mini-batches;
    - state of bfloat16 and float16 variables is kept, and arithmetic done, in float32.

    Raises ValueError for an argument out of range, naming it.
    """

    lazy = False  # True: a sparse gradient reads and writes its own rows only
    decays = True  # False: the rule does its own weight decay
    additive = False  # True: the delta is a multiple of the gradient, so that slices of a row may be added one by one
    two_points = False  # True: gradients are taken at other weights than those to evaluate
    needs_estimates = False  # True: the loop has to call `estimate` too, which Keras' fit never does
    outermost = False  # True: it has a part outside of `update_all`, which a wrapper around it would leave out
    follows = False  # True: its state follows where the weights go, so that nothing else may change its deltas

    def __init__(self, learning_rate=0.001, **options):
        if not callable(learning_rate) and not isinstance(learning_rate, dict):
            learning_rate = ranges.not_negative("learning_rate", learning_rate)
        for name, check in LIMITS.items():
            if options.get(name) is not None:
                options[name] = check(name, options[name])
        super().__init__(learning_rate, **options)
        self._selection = Selection()

    # What a rule says.

    def slots(self, variable) -> dict[str, Slot]:
        """The state kept beside one variable, by name."""
        return {}

    def shared(self) -> dict[str, float]:
        """The scalars kept once for all variables, by name, with their first values."""
        return {}

    def update(self, gradient, weight, slots: dict, step: Step) -> tuple[Any, dict]:
        """(what to add to the weights, the new slots), for one variable or some rows of it."""
        raise NotImplementedError

    def update_all(self, gradients: list, weights: list, slots: list[dict], steps: list[Step], shared: dict):
        """(deltas, slots, shared) of one update of all variables; for rules whose variables need each other."""
        pairs = [self.update(*each) for each in zip(gradients, weights, slots, steps, strict=True)]
        return [delta for delta, _ in pairs], [new for _, new in pairs], shared

    def paced(self, steps: list[Step]) -> list[Step]:
        """The steps with the learning rate of each variable, for optimizers that give some another one."""
        return steps

    def evaluation(self, weight, slots: dict):
        """The weights to evaluate and export, from the weights that training left and the slots."""
        return weight

    def training(self, weight, slots: dict):
        """The inverse of `evaluation`, for rules with two_points: where to take the next gradient."""
        return weight

    def fused(self, variable, gradient, slots: dict, step: Step) -> bool:
        """Updates the backend's own variables in place with a kernel made for this rule; False if there is none."""
        return False

    def patterns(self) -> list[str]:
        """The patterns of variable paths that this optimizer treats apart."""
        return self._selection.excluded

    # Building.

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self._selection.build(self.patterns(), variables, self._var_key)
        if not variables:  # a model that is frozen whole
            self._state = State([], {}, [])
            return
        state = []
        for variable in variables:
            own = self._overwrite_variable_with_gradient(variable)  # float8 scales: assigned, never descended
            state.append({} if own else {n: self._slot(variable, n, s) for n, s in self.slots(variable).items()})
        wide = any(arithmetic(variable) == "float64" for variable in variables)
        with self._beside(variables[0]):
            firsts = {**self.shared(), **({"evaluating": 0.0} if self.two_points else {})}
            shared = {
                name: self.add_variable((), constant(first), dtype="float64" if wide else "float32", name=name)
                for name, first in firsts.items()
            }
        touched = []
        for variable in variables:
            flagged = self.lazy and self.gradient_accumulation_steps and len(variable.shape) > 0
            touched.append(self._slot(variable, "touched", Slot(shape=tuple(variable.shape[:1]))) if flagged else None)
        self._state = State(state, shared, touched)

    def _slot(self, variable, name: str, slot: Slot):
        shape = tuple(variable.shape) if slot.shape is None else slot.shape
        first = "zeros" if slot.initial == "weights" else slot.initial
        with self._beside(variable):
            return self.add_variable(
                shape,
                constant(first),
                dtype=arithmetic(variable),
                layout=getattr(variable, "_layout", None) if slot.shape is None else None,
                name=f"{path(variable).replace('/', '_')}_{name}",
            )

    def add_variable_from_reference(self, reference_variable, name="var", initializer="zeros"):
        """Averages and accumulators, too, are float32 beside a bfloat16 variable, which Keras' are not."""
        return self._slot(reference_variable, name, Slot(initializer))

    def _beside(self, variable):
        if not replicas.on_tensorflow():
            return contextlib.nullcontext()
        return self._distribution_strategy.extended.colocate_vars_with(sparse.native(variable))

    # Applying.

    def apply(self, grads, trainable_variables=None):
        grads = list(grads)
        if not grads:
            return
        variables = self._known(grads, trainable_variables)
        grads, variables = self._filter_empty_gradients(grads, variables)
        grads, variables = self._overwrite_variables_directly_with_gradients(grads, variables)
        if not grads:
            self._iterations.assign_add(1)
            return
        if self.loss_scale_factor is not None:
            grads = [ops.divide(g, self.loss_scale_factor) for g in grads]  # sparse ones have no /
        self.apply_total(replicas.sum_over_replicas(grads), variables)

    def apply_total(self, gradients: list, variables: list) -> None:
        """`apply` for gradients that are summed over replicas already, one for each variable, none of them None."""
        replicas.everywhere(lambda total: self._descend(total, variables), variables, gradients)

    def _known(self, grads: list, variables) -> list:
        if variables is None:
            if not self.built:
                raise ValueError("the optimizer is not built: pass the variables, or call build(variables) first.")
            variables = self._trainable_variables
        variables = list(variables)
        if not self.built:
            self.build(variables)
        self._check_variables_are_known(variables)
        if len(grads) != len(variables):
            raise ValueError(f"there are {len(grads)} gradients for {len(variables)} variables; each needs one.")
        return variables

    def _descend(self, gradients: list, variables: list) -> None:
        """One mini-batch: an update, or a share of one if gradients are accumulated. Runs on each replica alike."""
        indices = [self._get_variable_index(variable) for variable in variables]
        every = self.gradient_accumulation_steps
        if every:
            for index, gradient in zip(indices, gradients, strict=True):
                sparse.accumulate(self._accumulated_gradients[index], gradient)
                if self._state.touched[index] is not None:
                    sparse.mark(self._state.touched[index], gradient)
            written = [*self._trainable_variables, *self.variables]
            window_ends = ops.equal((self._iterations + 1) % every, 0)
            replicas.when(window_ends, lambda: self._close_window(indices, every), written)
        else:
            self._update(indices, [self._summed(g, v) for g, v in zip(gradients, variables, strict=True)])
        self._iterations.assign(self._iterations + 1)

    def _summed(self, gradient, variable) -> tuple:
        """(rows, gradient): each row once, unless it is as well to add every slice of it to the weights."""
        plain = not clipping.clips(self.clipnorm, self.global_clipnorm, self.clipvalue) and not self.weight_decay
        if self.additive and plain and sparse.is_sparse(gradient) and arithmetic(variable) == dtype_of(variable):
            return gradient.indices, gradient.values
        return sparse.summed(gradient, self.lazy, tuple(variable.shape))

    def _close_window(self, indices: list[int], every: int) -> None:
        pairs = []
        for index in indices:
            total, touched = self._accumulated_gradients[index], self._state.touched[index]
            rows = None if touched is None or not replicas.on_tensorflow() else sparse.marked(touched)
            pairs.append((rows, sparse.read(total, rows) / every))
        self._update(indices, pairs)
        for index, (rows, gradient) in zip(indices, pairs, strict=True):
            sparse.write(self._accumulated_gradients[index], rows, ops.zeros_like(gradient))
            if rows is not None:
                sparse.write(self._state.touched[index], rows, ops.zeros_like(rows))

    def _update(self, indices: list[int], pairs: list) -> None:
        """One update from (rows, gradient) pairs: gradients of the whole batch, each row once."""
        variables = [self._trainable_variables[index] for index in indices]
        kinds = [arithmetic(variable) for variable in variables]
        rows = [row for row, _ in pairs]
        gradients = [ops.cast(gradient, kind) for (_, gradient), kind in zip(pairs, kinds, strict=True)]
        gradients = clipping.clipped(gradients, self.clipnorm, self.global_clipnorm, self.clipvalue)
        count = self.iterations + 1
        rates = [ops.cast(self.learning_rate, kind) for kind in kinds]
        steps = [
            Step(ops.cast(count, kind), rate, rate, variable, row)
            for kind, rate, variable, row in zip(kinds, rates, variables, rows, strict=True)
        ]
        steps, left = self.paced(steps), []
        for place, index in enumerate(indices):
            if not self._fused(index, gradients[place], steps[place]):
                left.append(place)
        if left:
            self._by_rule([indices[p] for p in left], [gradients[p] for p in left], [steps[p] for p in left])
        self._remember(set(range(len(self._trainable_variables))) - set(indices), ops.equal(count, 1))
        for variable in variables:
            if variable.constraint is not None:
                variable.assign(variable.constraint(sparse.read(variable)))
        if self.use_ema:
            self._average(ops.equal(count, 1), count)

    def _fused(self, index: int, gradient, step: Step) -> bool:
        variable = step.variable
        if not replicas.on_tensorflow() or step.rows is not None or arithmetic(variable) != dtype_of(variable):
            return False
        slots = {name: sparse.native(slot) for name, slot in self._state.slots[index].items()}
        return self.fused(sparse.native(variable), gradient, slots, step)

    def _by_rule(self, indices: list[int], gradients: list, steps: list[Step]) -> None:
        shared = {name: sparse.read(variable) for name, variable in self._state.shared.items()}
        weights, slots = [], []
        for index, step in zip(indices, steps, strict=True):
            weight = ops.cast(sparse.read(step.variable, step.rows), step.rate.dtype)
            slots.append(self._read_slots(index, weight, step))
            if self.two_points:
                weight = self._at_training(weight, slots[-1], shared["evaluating"])
            weights.append(weight)
        deltas, new_slots, new_shared = self.update_all(gradients, weights, slots, steps, shared)
        for index, step, weight, delta, new in zip(indices, steps, weights, deltas, new_slots, strict=True):
            if self.decays and self.weight_decay and self._use_weight_decay(step.variable):
                delta = delta - step.rate * self.weight_decay * weight
            if self.additive and step.rows is not None:
                sparse.add(step.variable, step.rows, delta)
            else:
                sparse.write(step.variable, step.rows, weight + delta)
            for name, variable in self._state.slots[index].items():
                sparse.write(variable, self._rows_of(variable, step), new[name])
        for name, variable in self._state.shared.items():
            variable.assign(ops.zeros_like(shared[name]) if name == "evaluating" else new_shared[name])

    def _at_training(self, weight, slots, evaluating):
        return ops.cond(evaluating > 0, lambda: self.training(weight, slots), lambda: weight)

    def _read_slots(self, index: int, weight, step: Step) -> dict:
        """The slots as tensors; a copy of the weights is taken at the first update, not when the slot is made."""
        read = {}
        for name, variable in self._state.slots[index].items():
            value = sparse.read(variable, self._rows_of(variable, step))
            copies = self.slots(step.variable)[name].initial == "weights"
            read[name] = ops.cond(ops.equal(step.t, 1), lambda w=weight: w, lambda v=value: v) if copies else value
        return read

    def _remember(self, absent: set[int], first) -> None:
        """Copies the weights of variables without a gradient as well, at the first update: later it would be late."""
        for index in absent:
            variable = self._trainable_variables[index]
            for name, slot in self._state.slots[index].items():
                if self.slots(variable)[name].initial == "weights":
                    weight = ops.cast(sparse.read(variable), slot.dtype)
                    slot.assign(ops.where(first, weight, sparse.read(slot)))

    def _rows_of(self, slot, step: Step):
        """The rows of a slot that belong to the rows of its variable; a scalar slot has none of its own."""
        return step.rows if tuple(slot.shape[:1]) == tuple(step.variable.shape[:1]) else None

    def _average(self, first, count) -> None:
        """average = momentum * average + (1 - momentum) * w of every variable; the first one is a copy."""
        every = zip(self._trainable_variables, self._model_variables_moving_average, strict=True)
        pairs = [(variable, average) for variable, average in every if average is not None]
        for variable, average in pairs:
            value = ops.cast(sparse.read(variable), average.dtype)
            average.assign(ops.where(first, value, moved(sparse.read(average), value, self.ema_momentum)))
        if self.ema_overwrite_frequency:

            def overwrite():
                for variable, average in pairs:
                    sparse.write(variable, None, sparse.read(average))

            replicas.when(ops.equal(count % self.ema_overwrite_frequency, 0), overwrite, self._trainable_variables)

    def _get_current_learning_rate(self):
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    # The weights to evaluate.

    @property
    def averages(self) -> bool:
        """Whether the weights to evaluate are others than those that gradients are taken at."""
        return self.use_ema or type(self).evaluation is not Optimizer.evaluation

    def evaluation_values(self, variables: list) -> list:
        """The weights to evaluate, one tensor for each variable: averaged ones if the rule or use_ema averages."""
        if not self.built:
            return [sparse.read(variable) for variable in variables]
        self._check_variables_are_known(variables)
        return [self._evaluation_value(variable) for variable in variables]

    def _evaluation_value(self, variable):
        index, weight = self._get_variable_index(variable), sparse.read(variable)
        if self.use_ema and self._model_variables_moving_average[index] is not None:
            average = ops.cast(sparse.read(self._model_variables_moving_average[index]), weight.dtype)
            return ops.cond(self.iterations > 0, lambda: average, lambda: weight)
        slots = {name: sparse.read(slot) for name, slot in self._state.slots[index].items()}
        stays = ops.equal(self.iterations, 0)  # nothing is averaged before the first update
        if self.two_points:
            stays = ops.logical_or(stays, sparse.read(self._state.shared["evaluating"]) > 0)
        wide = ops.cast(weight, arithmetic(variable))
        return ops.cond(stays, lambda: weight, lambda: ops.cast(self.evaluation(wide, slots), weight.dtype))

    def finalize_variable_values(self, var_list):
        """Leaves the weights to evaluate in the model, as Keras' fit asks at its end. Training may go on from there."""
        for variable, value in zip(var_list, self.evaluation_values(list(var_list)), strict=True):
            variable.assign(value)
        if self.built and int(sparse.read(self.iterations)):
            for mark in self.marks:
                mark.assign(1.0)

    @property
    def marks(self) -> list:
        """The variables that are 1 while the model holds evaluation weights that `training` leads back from."""
        leads_back = self.two_points and self.built and not self.use_ema
        return [self._state.shared["evaluating"]] if leads_back and self._state.slots else []

    # Which variables decay.

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Spares variables from weight decay: those in var_list, and those whose path has one of var_names in it.

        Is kept in the config. Raises ValueError once the optimizer is built, when it could come too late to matter.
        """
        if self.built:
            raise ValueError("exclude_from_weight_decay must be called before the optimizer is built.")
        self._selection.exclude([self._var_key(v) for v in var_list or ()], list(var_names or ()))

    def _use_weight_decay(self, variable) -> bool:
        return not self._selection.spares(self._get_variable_index(variable))

    # Config.

    def get_config(self):
        config = super().get_config()
        for name in self._own_arguments():
            config[name] = getattr(self, name)
        return {**config, **self._selection.config()}

    @classmethod
    def _own_arguments(cls) -> list[str]:
        known = {"self", "learning_rate", "weight_decay", "inner"}
        passed_on = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = inspect.signature(cls.__init__).parameters.items()
        return [name for name, each in parameters if name not in known and each.kind not in passed_on]

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        selection = Selection.from_config(config)
        optimizer = super().from_config(config, custom_objects)
        optimizer._selection = selection
        return optimizer
