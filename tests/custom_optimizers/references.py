"""What optimizers are compared with: optax, and slow rules in numpy, written from the papers for one array.

A reference is a function of the first weights and the stored gradients (as problem.gradients makes them), all float64,
to the weights after each step and, if it has others to evaluate, those too.

A plain rule is a function rule(w, g, state, t) -> w: `state` is a dict of its own for each array, empty at first, and
t counts from 1. `by_array` gives it whole variables, `by_row` the rows that a gradient names, each with its own state.
"""

import functools

import jax
import numpy as np
import optax

from tests.custom_optimizers import problem

RATE = float(np.float32(0.05))  # what a learning rate is after the float32 variable that holds it


def by_optax(make, evaluate=None):
    """make() returns a transformation; evaluate(state, weights) the weights to evaluate."""

    def follow(start, stored):
        with jax.enable_x64(True):
            transformation = make()
            weights = [jax.numpy.asarray(weight) for weight in start]
            state, path, evaluated = transformation.init(weights), [], []
            step = jax.jit(functools.partial(_step, transformation))
            seen = jax.jit(evaluate) if evaluate else None
            for row in stored:
                weights, state = step(weights, state, [jax.numpy.asarray(problem.dense(g)) for g in row])
                path.append([np.asarray(weight) for weight in weights])
                if seen:
                    evaluated.append([np.asarray(weight) for weight in seen(state, weights)])
        return path, evaluated

    return follow


def _step(transformation, weights, state, gradients):
    updates, state = transformation.update(gradients, state, weights)
    return optax.apply_updates(weights, updates), state


def by_array(rule):
    def follow(start, stored):
        weights, states, path = list(start), [{} for _ in start], []
        for t, row in enumerate(stored, start=1):
            each = zip(weights, map(problem.dense, row), states, strict=True)
            weights = [rule(w, g, state, t) for w, g, state in each]
            path.append(weights)
        return path, []

    return follow


def by_row(rule):
    def follow(start, stored):
        weights, states, path = [np.array(w) for w in start], [{} for _ in start], []
        for t, row in enumerate(stored, start=1):
            for weight, gradient, state in zip(weights, row, states, strict=True):
                total, named = problem.dense(gradient), gradient[0] if isinstance(gradient, tuple) else None
                for place in [()] if weight.ndim == 0 else sorted(set(range(len(weight)) if named is None else named)):
                    weight[place] = rule(weight[place], total[place], state.setdefault(place, {}), t)
            path.append([weight.copy() for weight in weights])
        return path, []

    return follow


def average(state, name, value, beta):
    """The moving average `name` after one more value, from zero."""
    state[name] = beta * state.get(name, 0.0) + (1 - beta) * value
    return state[name]


def adam(beta_1=0.9, beta_2=0.999, epsilon=1e-8, weight_decay=0.0, cautious=False):
    def rule(w, g, state, t):
        m = average(state, "m", g, beta_1) / (1 - beta_1**t)
        v = average(state, "v", g**2, beta_2) / (1 - beta_2**t)
        u = m / (np.sqrt(v) + epsilon)
        if cautious:
            mask = u * g > 0
            u = u * mask * (np.size(u) / (np.sum(mask) + 1))
        return w - RATE * u - RATE * weight_decay * w

    return rule


def adan(beta_1=0.98, beta_2=0.92, beta_3=0.99, epsilon=1e-8, weight_decay=0.0):
    def rule(w, g, state, t):
        difference = g - state.get("previous", g)
        state["previous"] = g
        m = average(state, "m", g, beta_1) / (1 - beta_1**t)
        v = average(state, "v", difference, beta_2) / (1 - beta_2**t)
        n = average(state, "n", (g + beta_2 * difference) ** 2, beta_3) / (1 - beta_3**t)
        eta = RATE / (np.sqrt(n) + epsilon)
        return (w - eta * (m + beta_2 * v)) / (1 + RATE * weight_decay)

    return rule


def ftrl(l1=0.0, lambda_2=0.0, beta=0.0, power=0.5, initial=0.1, shrinkage=0.0):
    """Algorithm 1 for one row, alpha the learning rate; only this order of the lines has w of before in z."""

    def rule(w, g, state, t):
        n, z = state.get("n", initial), state.get("z", 0.0)
        sigma = ((n + g**2) ** power - n**power) / RATE
        z = z + g + 2 * shrinkage * w - sigma * w
        n = n + g**2
        state["n"], state["z"] = n, z
        kept = -(z - np.sign(z) * l1) / ((beta + n**power) / RATE + lambda_2)
        return np.where(np.abs(z) <= l1, 0.0, kept)

    return rule


def lars(momentum=0.9, weight_decay=0.0005, coefficient=0.001, vectors=False):
    def rule(w, g, state, t):
        rate = RATE
        if w.ndim > 1 or vectors:
            rate = RATE * coefficient * np.sqrt(np.sum(w**2))
            rate = rate / (np.sqrt(np.sum(g**2)) + weight_decay * np.sqrt(np.sum(w**2)))
            g = g + weight_decay * w
        state["v"] = momentum * state.get("v", 0.0) + rate * g
        return w - state["v"]

    return rule


def mars(beta_1=0.95, beta_2=0.99, gamma=0.025, epsilon=1e-8, weight_decay=0.01):
    inner = adam(beta_1, beta_2, epsilon, weight_decay)

    def rule(w, g, state, t):
        c = g + gamma * beta_1 / (1 - beta_1) * (g - state.get("previous", g))
        state["previous"] = g
        length = np.sqrt(np.sum(c**2))
        return inner(w, c / length if length > 1 else c, state, t)

    return rule


def momentum(rates, momenta, nesterov=False):
    """rates and momenta: those of update t at place t - 1."""

    def rule(w, g, state, t):
        rate, mu = rates[t - 1], momenta[t - 1]
        before = state.get("v", 0.0)
        state["v"] = mu * before - rate * g
        # Sutskever et al.'s look-ahead, written for the weights that it looks ahead to.
        return w + (1 + mu) * state["v"] - mu * before if nesterov else w + state["v"]

    return rule


def row_wise_adagrad(epsilon=1e-8):
    def rule(w, g, state, t):
        state["s"] = state.get("s", 0.0) + np.mean(g**2)
        return w - RATE * g / (np.sqrt(state["s"]) + epsilon)

    return rule
