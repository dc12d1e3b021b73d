"""Losses and learning-rate schedules."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import (
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LinearLR,
    LRScheduler,
    SequentialLR,
)

__all__ = [
    "Schedule",
    "cosine_annealing_warm_restarts",
    "linear_warmup_cosine",
    "mean_squared_error",
    "mean_squared_pull",
    "robust_mean_squared_error",
    "warmup_cosine_annealing_warm_restarts",
]


def _sum_requests_mean_stars(loss: Tensor, known: Tensor) -> Tensor:
    """Sum over the request axis where there is one, average over the stars."""
    loss = torch.where(known, loss, 0.0)
    return loss.sum(dim=-1).mean() if loss.dim() > 1 else loss.mean()


def _known(y_true: Tensor, y_pred: Tensor) -> tuple[Tensor, Tensor]:
    """Mask of the known labels, and labels with unknown ones replaced by their prediction.

    A NaN that is only masked in the loss would still reach the gradient, as 0 times NaN.
    """
    known = ~y_true.isnan()
    return known, torch.where(known, y_true, y_pred.detach())


def robust_mean_squared_error(
    y_true: Tensor, y_pred: Tensor, logvar: Tensor, labels_err: Tensor | None = None
) -> Tensor:
    """Gaussian negative log-likelihood with predicted variance and label errors.

    ``0.5 ((y - p)^2 / s + ln s)`` with ``s = exp(logvar) + err^2 + 1e-8``, the constant
    ``0.5 ln 2 pi`` left out (Leung & Bovy 2023, section 3.3, and the published implementation).

    Parameters
    ----------
    y_true, y_pred, logvar
        (N, Q) or (N,), standardized. Labels that are NaN add nothing.
    labels_err
        Standard deviations of `y_true`, same shape; None for none.

    Returns
    -------
    Tensor
        Scalar: summed over the Q requests, averaged over the N stars.
    """
    known, y_true = _known(y_true, y_pred)
    variance = logvar.exp() + 1e-8
    if labels_err is not None:
        variance = variance + torch.where(known, labels_err, 0.0).square()
    loss = 0.5 * ((y_true - y_pred).square() / variance + variance.log())
    return _sum_requests_mean_stars(loss, known)


def mean_squared_error(y_true: Tensor, y_pred: Tensor) -> Tensor:
    """Squared error, summed over the Q requests and averaged over the N stars.

    Parameters
    ----------
    y_true, y_pred
        (N, Q) or (N,), standardized. Labels that are NaN add nothing.
    """
    known, y_true = _known(y_true, y_pred)
    return _sum_requests_mean_stars((y_true - y_pred).square(), known)


def mean_squared_pull(
    y_true: Tensor, y_pred: Tensor, logvar: Tensor, labels_err: Tensor | None = None
) -> Tensor:
    """Squared error divided by predicted variance plus label variance, averaged over known labels.

    It is 1 if the predicted variances are right. Parameters are those of
    `robust_mean_squared_error`.
    """
    known, y_true = _known(y_true, y_pred)
    variance = logvar.exp() + 1e-8
    if labels_err is not None:
        variance = variance + torch.where(known, labels_err, 0.0).square()
    squared = torch.where(known, (y_true - y_pred).square() / variance, 0.0)
    return squared.sum() / known.sum().clamp(min=1)


def cosine_annealing_warm_restarts(
    optimizer: torch.optim.Optimizer, restart_steps: int, minimum_lr: float = 1e-10
) -> LRScheduler:
    """Cosine from the optimizer's learning rate to `minimum_lr`, restarted every period.

    Parameters
    ----------
    optimizer
        Its learning rate is the highest of the schedule.
    restart_steps
        Steps in a period; the published stage 1 restarts every 50 epochs.
    minimum_lr
        Lowest learning rate (published: 1e-10).
    """
    return CosineAnnealingWarmRestarts(optimizer, T_0=restart_steps, eta_min=minimum_lr)


def warmup_cosine_annealing_warm_restarts(
    optimizer: torch.optim.Optimizer,
    warmup_steps: int,
    restart_steps: int,
    minimum_lr: float = 1e-10,
) -> LRScheduler:
    """Linear warm-up from `minimum_lr`, then `cosine_annealing_warm_restarts`.

    The published stage 2 warms up over 50 epochs and restarts every 500.

    Parameters
    ----------
    optimizer
        Its learning rate is reached after the warm-up; all parameter groups must have the same.
    warmup_steps
        Steps of the warm-up, at least 1.
    restart_steps, minimum_lr
        See `cosine_annealing_warm_restarts`.
    """
    highest = optimizer.param_groups[0]["lr"]
    warmup = LinearLR(optimizer, start_factor=minimum_lr / highest, total_iters=warmup_steps)
    cosine = cosine_annealing_warm_restarts(optimizer, restart_steps, minimum_lr)
    return SequentialLR(optimizer, [warmup, cosine], milestones=[warmup_steps])


def linear_warmup_cosine(
    optimizer: torch.optim.Optimizer, warmup_steps: int, steps: int
) -> LRScheduler:
    """Linear warm-up, then one cosine to zero, updated at every optimizer step.

    Parameters
    ----------
    optimizer
        Its learning rate is reached after the warm-up.
    warmup_steps
        Optimizer steps of the warm-up; 0 for none.
    steps
        Optimizer steps of the whole training, including the warm-up.
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        share = (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    scheduler = LambdaLR(optimizer, factor)
    scheduler.every_step = True
    return scheduler


@dataclass(frozen=True)
class Schedule:
    """Learning-rate schedule.

    Parameters
    ----------
    name
        "constant"; "cosine_warm_restarts" (published stage 1); "warmup_cosine_warm_restarts"
        (published stage 2); "warmup_cosine": a linear warm-up, then one cosine over the rest of
        the training, updated at every optimizer step.
    warmup_epochs, restart_epochs
        Length of the warm-up and of the first cosine in the published schedules [epochs].
    minimum_lr
        Lowest learning rate of the published schedules.
    warmup_steps
        Length of the warm-up of "warmup_cosine" [optimizer steps].
    """

    name: str = "constant"
    warmup_epochs: int = 51
    restart_epochs: int = 50
    minimum_lr: float = 1e-10
    warmup_steps: int = 200

    @property
    def depends_on_epochs(self) -> bool:
        """Whether the learning rates of the first epochs depend on the total number of epochs."""
        return self.name == "warmup_cosine"

    def make(
        self, optimizer: torch.optim.Optimizer, steps_per_epoch: int, epochs: int
    ) -> LRScheduler | None:
        """Schedule for an optimizer; None for a constant learning rate."""
        if self.name == "cosine_warm_restarts":
            return cosine_annealing_warm_restarts(optimizer, self.restart_epochs, self.minimum_lr)
        if self.name == "warmup_cosine_warm_restarts":
            return warmup_cosine_annealing_warm_restarts(
                optimizer, self.warmup_epochs, self.restart_epochs, self.minimum_lr
            )
        if self.name == "warmup_cosine":
            return linear_warmup_cosine(optimizer, self.warmup_steps, steps_per_epoch * epochs)
        return None


def __getattr__(name: str) -> Any:
    # The published code has the generator here; ours depends on modules that import this one.
    if name == "TrainingGenerator":
        from stellarperceptron.training.batches import TrainingGenerator

        return TrainingGenerator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
