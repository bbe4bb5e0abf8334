"""A tanh network of 3 hidden neurons and 21 parameters, its teacher, and gradient descent, in numpy float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
INPUTS, HIDDEN = 5, 3
PARAMETERS = HIDDEN * (INPUTS + 2)


def outputs_and_jacobian(parameters: Array, x: Array) -> tuple[Array, Array]:
    weights, bias, out = np.split(parameters, [HIDDEN * INPUTS, HIDDEN * (INPUTS + 1)])
    hidden = np.tanh(x @ weights.reshape(HIDDEN, INPUTS).T + bias)
    slope = (1 - hidden**2) * out
    by_weights = (slope[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    return hidden @ out, np.concatenate([by_weights, slope, hidden], 1)


@dataclass
class Problem:
    """n examples that a teacher labels, and the parameters of a student that fits them all."""

    x: Array
    y: Array
    teacher: Array
    student: Array

    @property
    def jacobian(self) -> Array:
        return outputs_and_jacobian(self.student, self.x)[1]

    def test_error(self) -> float:
        """Share of the teacher's variance that the student misses on fresh inputs."""
        fresh = np.random.default_rng(99).normal(size=(2000, INPUTS))
        theirs, ours = (outputs_and_jacobian(p, fresh)[0] for p in (self.teacher, self.student))
        return float(((ours - theirs) ** 2).mean() / theirs.var())

    def descend(self, start: Array, learning_rate: float, steps: int) -> Array:
        """Half the mean squared error at each step of full-batch gradient descent."""
        losses = []
        for _ in range(steps):
            found, jacobian = outputs_and_jacobian(start, self.x)
            losses.append(float(((found - self.y) ** 2).mean()) / 2)
            start = start - learning_rate * jacobian.T @ (found - self.y) / len(self.x)
        return np.array(losses)


def problem(n: int, seed: int) -> Problem:
    """Draw a teacher, and find a zero of the loss near it by Levenberg and Marquardt's method."""
    draw = np.random.default_rng(seed)
    signs = draw.choice([-1.0, 1.0], HIDDEN)
    teacher = np.concatenate(
        [draw.normal(size=HIDDEN * INPUTS), 0.5 * draw.normal(size=HIDDEN), signs * draw.uniform(0.7, 1.5, HIDDEN)]
    )
    x = draw.normal(size=(n, INPUTS))
    y = outputs_and_jacobian(teacher, x)[0]
    here, damping = teacher + 0.3 * draw.normal(size=PARAMETERS), 1.0
    found, jacobian = outputs_and_jacobian(here, x)
    for _ in range(500):
        step = np.linalg.solve(jacobian.T @ jacobian + damping * np.eye(PARAMETERS), jacobian.T @ (found - y))
        tried, there = outputs_and_jacobian(here - step, x)
        if ((tried - y) ** 2).sum() < ((found - y) ** 2).sum():
            here, found, jacobian, damping = here - step, tried, there, damping / 3
        else:
            damping *= 2
        if ((found - y) ** 2).sum() < 1e-26:
            break
    return Problem(x, y, teacher, here)
