"""Estimate the error on each training example as if it had never been trained on, along the path of one training run.

Leaving example i out of training moves the parameters by D_i. To first order D_i follows from what is measured on the
way: example i's own pulls are missing, and the other examples react to the change that this makes to their outputs,

    dD_i/dt = -(1/N) P [ g_i |r_i| + sum_{k != i} w_k g_k <g_k, D_i> ],

with r_k minus the derivative of the loss of example k with respect to its outputs, g_k the gradient of its outputs
along r_k / |r_k|, w_k the curvature of its loss there, P the preconditioner of the optimizer and t the sum of its
learning rates. What example i's outputs would be without it is f_i + <g_i, D_i> r_i / |r_i|.

D_i lives in parameter space, so that it survives a change of the features g: a network forgets what its features no
longer carry, and amplifies what they carry more strongly. Carried in the space of outputs, as the tangent kernel would,
the same equation was off by a factor of 3 to 5 late in training (THEORY section 10). D and g are held as sketches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_cx.functional.inputs import as_tensor

EARLY = 4
"""Intervals at the start in which no more learning time counts than explains the fall of the residuals: the first steps
overshoot the linear picture."""
SHUFFLES = 20  # permutations of the residuals for the null of the own share
STEEPEST = 2.0
"""Largest exponent by which memory is taken to fall with the number of examples that react."""
RIDGE = 1e-8  # of the trace of a kernel, below which it is taken to be singular


@dataclass(frozen=True)
class LeaveOneOut:
    """What one check shows of each example, had it been left out of training.

    Attributes:
        shift: Change of the example's output along its residual, [n] float64, in units of the output; negative where
            the example has been pulled towards its own target.
        own_share: Share of the latest fall of the training loss that only the examples themselves support, 0 to 1; nan
            at the first check.
        own_share_null: The same with residuals permuted among the examples, mean over permutations.
        coverage: Memory of the same examples with all shown examples reacting over that with half of them, 0 to 1; nan
            where all training examples are shown. Near 1 the shown examples stand for the whole training set.
        fall_ratio: Fall of the residuals' energy since the last check over that which their kernel predicts; nan at the
            first check. Near 1, the linear picture holds from check to check; near 0, noise keeps the residuals up.
    """

    shift: Tensor
    own_share: float
    own_share_null: float
    fall_ratio: float
    coverage: float = math.nan

    def __str__(self) -> str:
        return (
            f"leave-one-out shifts of {len(self.shift)} examples, mean {float(self.shift.mean()):.4g}; "
            f"own share {self.own_share:.0%} (chance {self.own_share_null:.0%})"
        )


class LeaveOneOutPath:
    """Follows what leaving each example out would have done, from check to check of one training run.

    Where fewer examples are shown than are trained on, the reaction of all is taken from those shown. These do not
    react in directions that none of them has, so too much seems to be remembered: by how much is found from a second
    path, on half of them, and the shifts are extrapolated to N as a power of the number of examples that react.

    Args:
        training_examples: N, the size of the training set; None takes the number of examples shown.
        method: ``"implicit"`` takes one implicit step from check to check, stable for intervals of any length;
            ``"explicit"`` one explicit step, exact for linear regression where every optimizer step is a check.

    Raises:
        ValueError: If the method is unknown.

    References:
        THEORY section 10. Kin: Hara et al. 2019, "Data cleansing for models trained with SGD"; Bae et al. 2024,
        "Training data attribution via approximate unrolled differentiation".

    Example:
        Gradient descent on a line through noisy points, with every step a check:

        >>> import torch
        >>> draw = torch.Generator().manual_seed(0)
        >>> x = torch.randn(20, 3, generator=draw, dtype=torch.float64)
        >>> y = x.sum(1) + torch.randn(20, generator=draw, dtype=torch.float64)
        >>> def descend(rows):
        ...     theta = torch.zeros(3, dtype=torch.float64)
        ...     for _ in range(50):
        ...         theta = theta + 0.1 / 20 * x[rows].T @ (y[rows] - x[rows] @ theta)
        ...     return theta
        >>> path, theta = LeaveOneOutPath(method="explicit"), torch.zeros(3, dtype=torch.float64)
        >>> for step in range(51):
        ...     residual = y - x @ theta
        ...     u = residual.sign()
        ...     found = path.check(x * u[:, None], residual.abs(), torch.ones(20), u[:, None], 0.1 * (step > 0))
        ...     theta = theta + 0.1 / 20 * x.T @ residual
        >>> without_first = x[0] @ descend(list(range(1, 20)))
        >>> bool((x[0] @ descend(list(range(20))) + found.shift[0] * u[0] - without_first).abs() < 1e-12)
        True
    """

    def __init__(
        self, training_examples: int | None = None, method: Literal["implicit", "explicit"] = "implicit"
    ) -> None:
        if method not in ("implicit", "explicit"):
            raise ValueError(f'method must be "implicit" or "explicit", got {method!r}.')
        self.training_examples = training_examples
        self.method: Literal["implicit", "explicit"] = method
        self.checks = 0
        self._without: Tensor | None = None  # [n, m], the change of the parameters without each example
        self._last: tuple[Tensor, Tensor, Tensor, Tensor] | None = None
        self._half: LeaveOneOutPath | None = None
        self._is_half = False
        self._kernel: Tensor | None = None  # of the last interval, and the residuals that pulled through it
        self._pulled = torch.zeros(0)

    def check(
        self,
        gradients: Any,
        residuals: Any,
        curvature: Any,
        directions: Any,
        rates: Any,
        decay: Any = 0.0,
        known: bool = True,
    ) -> LeaveOneOut:
        """Take in one check.

        Args:
            gradients: ``[n, m]`` gradient of each example's outputs along its residual, or a sketch of it.
            residuals: ``[n]`` size of the derivative of each example's own loss with respect to its outputs.
            curvature: ``[n]`` second derivative of each example's own loss, summed over its outputs.
            directions: ``[n, c]`` direction of the residual in the space of the outputs, or a sketch of it: tells where
                a residual has turned round.
            rates: Learning time since the last check, a number or ``[m]``: learning rates times the preconditioner,
                summed over the steps.
            decay: Sum over these steps of learning rate times weight decay, a number or ``[m]``.
            known: Whether `rates` are known up to more than a factor; else as much time is taken to have passed as
                explains the fall of the residuals.

        Returns:
            LeaveOneOut; its shifts are zero at the first check.

        Raises:
            ValueError: If shapes disagree, an entry is not finite, or there are more examples than N.
        """
        g, r, w, u = (as_tensor(value).detach().cpu() for value in (gradients, residuals, curvature, directions))
        g = g if g.dtype == torch.float64 else g.float()
        r, w, u = r.double(), w.double().clamp_min(0), u.double()
        n = len(r)
        if g.ndim != 2 or u.ndim != 2 or len({n, len(g), len(w), len(u)}) != 1:
            raise ValueError(
                "gradients [n, m], residuals [n], curvature [n] and directions [n, c] of the same examples are needed, "
                f"got {list(g.shape)}, {list(r.shape)}, {list(w.shape)} and {list(u.shape)}."
            )
        total = n if self.training_examples is None else self.training_examples
        if n > total:
            raise ValueError(f"{n} examples are shown of a training set of {total}.")
        if not all(bool(part.isfinite().all()) for part in (g, r, w)):
            raise ValueError("gradients, residuals and curvature of the examples must be finite.")
        if self.checks == 0 and n < total and n >= 2 and not self._is_half:
            self._half = LeaveOneOutPath(total, self.method)
            self._half._is_half = True
        rates = as_tensor(rates).detach().cpu().to(g)
        ratio = math.nan
        if self._without is None or self._last is None:
            self._without = torch.zeros_like(g)
        else:
            if self._without.shape != g.shape:
                raise ValueError(f"gradients are {list(g.shape)}, not {list(self._without.shape)} as before.")
            self._without = self._without * torch.exp(-as_tensor(decay).detach().cpu().to(g))
            ratio = self._advance(g, r, w, u, rates, total, known)
        self._last = g, r, w, u
        self.checks += 1
        shift, coverage = (g * self._without).sum(1).double(), math.nan
        if self._is_half:
            return LeaveOneOut(shift, math.nan, math.nan, ratio)
        if self._half is not None:
            part = n // 2
            of_half = self._half.check(g[:part], r[:part], w[:part], u[:part], rates, decay, known).shift
            size = float(of_half.norm())
            coverage = min(1.0, float(shift[:part].norm()) / size) if size else 1.0
            shift = shift * (n / total) ** min(STEEPEST, math.log2(1 / max(coverage, 1e-3)) / math.log2(n / part))
        share, null = own_share(self._kernel, self._pulled) if self._kernel is not None else (math.nan, math.nan)
        return LeaveOneOut(shift, share, null, ratio, coverage)

    def _advance(self, g: Tensor, r: Tensor, w: Tensor, u: Tensor, rates: Tensor, total: int, known: bool) -> float:
        """Carry the changes over one interval; return the fall of the residuals over that expected."""
        assert self._last is not None
        assert self._without is not None
        before, r_before, w_before, u_before = self._last
        n = len(r)
        if self.method == "explicit":
            felt = (before @ self._without.T).double() * w_before[:, None] / n
            felt.fill_diagonal_(0)
            pulls = felt + torch.diag(r_before / total)
            self._without = self._without - pulls.T.to(g) @ (before * rates)
            self._kernel, self._pulled = ((before * rates) @ before.T).double(), r_before
            return 1.0
        turned = torch.where((u * u_before).sum(1) < 0, -1.0, 1.0).double()
        # The features before any training are not those that the optimizer follows.
        middle = (g + turned[:, None].to(g) * before) / 2 if self.checks > 1 else g
        r_middle, w_middle = (r + turned * r_before) / 2, (w + w_before) / 2
        kernel = ((middle * rates) @ middle.T).double()
        self._kernel, self._pulled = kernel, r_middle
        if self.checks <= EARLY or not known:
            part = needed_time(kernel / n, turned * r_before, r, w_middle)
            part = min(1.0, part) if known else part
            kernel, rates = kernel * part, rates * part
        shift = (middle @ self._without.T).double()
        resolvent = torch.linalg.inv(torch.eye(n, dtype=torch.float64) + kernel * w_middle / n)
        free = resolvent @ (shift - kernel * r_middle / total)
        # In the equation of D_i, example i itself does not react: one rank for each i.
        felt = free + (torch.eye(n, dtype=torch.float64) - resolvent) * (free.diagonal() / resolvent.diagonal())
        pulls = felt * w_middle[:, None] / n
        pulls.diagonal().copy_(r_middle / total)
        self._without = self._without - pulls.T.to(g) @ (middle * rates)
        expected = float(r_before.square().sum() - (resolvent.T @ (turned * r_before)).square().sum())
        return float(r_before.square().sum() - r.square().sum()) / expected if expected > 0 else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Return what has to survive a checkpoint."""
        own = {"checks": self.checks, "without": self._without, "last": self._last, "of": self.training_examples}
        return {**own, "half": None if self._half is None else self._half.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.checks, self._without, self._last = state["checks"], state["without"], state["last"]
        self.training_examples = state["of"]
        self._half = None
        if state["half"] is not None:
            self._half = LeaveOneOutPath(method=self.method)
            self._half._is_half = True
            self._half.load_state_dict(state["half"])


def needed_time(kernel: Tensor, before: Tensor, now: Tensor, curvature: Tensor) -> float:
    """Return the share of an interval's learning time that explains how far the residuals have fallen.

    Under ``dr/ds = -w K r`` over s from 0 to 1, in implicit form: the s at which the energy of `before` has come down
    to that of `now`; 0 where it has not fallen.
    """
    root = curvature.clamp_min(1e-12).sqrt()
    values, vectors = torch.linalg.eigh(root[:, None] * kernel * root)
    values = values.clamp_min(0)
    parts = (vectors.T @ (root * before)).square()
    target, largest = float((root * now).square().sum()), float(values.max())
    if not largest > 0 or float(parts.sum()) <= target:
        return 0.0
    low, high = 1e-12 / largest, 1e6 / largest
    for _ in range(60):
        middle = math.sqrt(low * high)
        left = float((parts / (1 + middle * values).square()).sum())
        low, high = (middle, high) if left > target else (low, middle)
    return high


def own_share(kernel: Tensor, residuals: Tensor, shuffles: int = SHUFFLES, seed: int = 0) -> tuple[float, float]:
    """Return the share of the fall of the training loss that only the examples themselves support, and its null.

    Of ``K_ii``, what the other examples explain is what they learn, too: constructive interference. The rest,
    ``d_i = 1 / (K^-1)_ii``, only example i supports. The share is ``sum_i d_i r_i^2 / r' K r``.

    Args:
        kernel: ``[n, n]`` inner products of the examples' gradients, in the metric of the optimizer.
        residuals: ``[n]``, along the same directions.
        shuffles: Permutations of the residuals for the null.
        seed: Of these.

    Returns:
        Both between 0 and 1; nan where there is no residual, no gradient, or the kernel is indefinite by rounding.
    """
    size = float(kernel.diagonal().sum()) if len(kernel) else 0.0
    if not size > 0 or not bool((residuals != 0).any()):
        return math.nan, math.nan
    ridge = RIDGE * size
    # 1 / (K^-1)_ii of the kernel with a ridge, less the ridge: what is left of K_ii.
    regular = kernel + ridge * torch.eye(len(kernel), dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(regular)
    if int(failed):
        return math.nan, math.nan
    own = (1 / torch.cholesky_inverse(factor).diagonal() - ridge).clamp_min(0)
    draw = torch.Generator().manual_seed(seed)
    orders = [torch.arange(len(residuals)), *(torch.randperm(len(residuals), generator=draw) for _ in range(shuffles))]
    shares = []
    for order in orders:
        r = residuals[order].double()
        shares.append(min(1.0, float(own @ r.square()) / max(float(r @ kernel @ r), 1e-300)))
    return shares[0], sum(shares[1:]) / max(1, shuffles)


@dataclass(frozen=True)
class LeaveOneOutCurve:
    """Leave-one-out estimates along a whole path.

    Attributes:
        shift: Change of each example's output along its residual without it, [T, n] float64.
        own_share: [T] float64.
        coverage: [T] float64; nan where all training examples are shown.
    """

    shift: Tensor
    own_share: Tensor
    coverage: Tensor


def path_leave_one_out(
    gradients: Any,
    residuals: Any,
    rates: Any,
    curvature: Any = None,
    training_examples: int | None = None,
    method: Literal["implicit", "explicit"] = "implicit",
) -> LeaveOneOutCurve:
    """Estimate, along a path of one output, what each example's output would be without it: `LeaveOneOutPath` at once.

    Args:
        gradients: ``[T, n, m]`` gradient of each example's output at each check, or ``[n, m]`` where it does not
            change (linear models).
        residuals: ``[T, n]`` minus the derivative of each example's own loss with respect to its output, signed.
        rates: ``[T]`` learning time between a check and the one before; the first is not used.
        curvature: ``[T, n]`` second derivative of the loss; None takes 1, that of half the squared error.
        training_examples: N; None takes n.
        method: As in `LeaveOneOutPath`.

    Returns:
        LeaveOneOutCurve; its shift is signed here: f + shift is the output without the example.

    Raises:
        ValueError: If shapes disagree.

    Example:
        >>> import torch
        >>> x = torch.eye(4, dtype=torch.float64)  # examples that share nothing: without one, its output stays at zero
        >>> y = torch.tensor([1.0, 2.0, -1.0, 0.5], dtype=torch.float64)
        >>> f = torch.stack([y * (1 - 0.9**t) for t in range(30)])
        >>> curve = path_leave_one_out(x, y - f, torch.full((30,), 0.4, dtype=torch.float64), method="explicit")
        >>> bool((f[-1] + curve.shift[-1]).abs().max() < 1e-9)
        True
    """
    r = as_tensor(residuals).detach().double()
    if r.ndim != 2:
        raise ValueError(f"residuals are [T, n], got {list(r.shape)}.")
    g, w = as_tensor(gradients).detach(), torch.ones_like(r) if curvature is None else as_tensor(curvature).double()
    times = as_tensor(rates).detach().double()
    g = g.expand(len(r), *g.shape) if g.ndim == 2 else g
    if g.ndim != 3 or g.shape[:2] != r.shape or w.shape != r.shape or times.shape != r.shape[:1]:
        raise ValueError(
            f"gradients [T, n, m], residuals [T, n], curvature [T, n] and rates [T] of one path are needed, got "
            f"{list(g.shape)}, {list(r.shape)}, {list(w.shape)} and {list(times.shape)}."
        )
    path = LeaveOneOutPath(training_examples, method)
    shifts, shares, covered = [], [], []
    for at_check, residual, bend, time in zip(g, r, w, times, strict=True):
        sign = torch.where(residual < 0, -1.0, 1.0).double()
        found = path.check(at_check * sign[:, None].to(at_check), residual.abs(), bend, sign[:, None], time)
        shifts.append(found.shift * sign)
        shares.append(found.own_share)
        covered.append(found.coverage)
    numbers = (torch.tensor(values, dtype=torch.float64) for values in (shares, covered))
    return LeaveOneOutCurve(torch.stack(shifts), *numbers)
