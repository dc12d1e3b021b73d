"""Alternatives to a foundation model, trained on the same stars and pixels.

A quadratic regression in principal components, a plain network on all pixels (The Payne's kind,
Ting et al. 2019, in reverse: from fluxes to labels), and a small convolutional network (astroNN's
kind, Leung & Bovy 2019, MNRAS 483, 3255). All have one interface and measure their CPU time.
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from stellarperceptron.network.baselines.quadratic import SIZES, STRENGTHS, fit_quadratic
from stellarperceptron.nn_utils import linear_warmup_cosine, robust_mean_squared_error
from stellarperceptron.utils.arrays import as_array, is_constant, sentinels_to_nan

__all__ = [
    "BASELINES",
    "Baseline",
    "ConvolutionalNetwork",
    "PixelNetwork",
    "QuadraticRegression",
]


class Baseline:
    """The interface that all baselines share.

    Attributes
    ----------
    fit_seconds, predict_seconds : float
        CPU time of the last `fit` and `predict`, all threads together [s].
    """

    fit_seconds = predict_seconds = math.nan

    def fit(
        self,
        flux: np.ndarray,
        labels: np.ndarray,
        label_errors: np.ndarray | None,
        label_names: Sequence[str],
        seed: int = 0,
    ) -> "Baseline":
        """Learn labels from spectra.

        Parameters
        ----------
        flux
            (N, P) normalized fluxes, NaN for bad pixels.
        labels
            (N, L), NaN where missing. Stars without any label or any good pixel are left out.
        label_errors
            (N, L) standard deviations of the labels; None, or NaN, for none.
        label_names
            Names of the L labels.
        seed
            Of the held-out stars, of initial weights and of batches.

        Raises
        ------
        ValueError
            Shapes that do not match; a label that fewer than ten stars have.
        """
        begin = time.process_time()
        flux, labels = _measured(flux), as_array(labels, unit=None, name="labels").copy()
        errors = np.zeros_like(labels)
        if label_errors is not None:
            errors = np.nan_to_num(as_array(label_errors, unit=None, name="label_errors"))
        if flux.ndim != 2 or not labels.shape == errors.shape == (len(flux), len(label_names)):
            raise ValueError(
                f"flux {flux.shape}, labels {labels.shape}, their errors {errors.shape} and "
                f"{len(label_names)} names do not match"
            )
        labels[~np.isfinite(labels)] = np.nan
        usable = np.isfinite(labels).any(axis=1) & np.isfinite(flux).any(axis=1)
        if not usable.all():
            flux, labels, errors = flux[usable], labels[usable], errors[usable]
        for name, number in zip(label_names, np.isfinite(labels).sum(axis=0), strict=True):
            if number < 10:
                raise ValueError(f"{number} stars with a good pixel have {name}: 10 are needed")
        self.label_names = list(label_names)
        self._pixel_mean = _mean(flux)
        self._pixel_scale = np.sqrt(_mean(np.square(flux - self._pixel_mean))).clip(1e-6)
        self._label_mean = np.nanmean(labels, axis=0)
        self._label_scale = np.nanstd(labels, axis=0).clip(1e-6)
        labels = (labels - self._label_mean) / self._label_scale
        self._fit(self._centred(flux), labels, errors / self._label_scale, seed)
        self.fit_seconds = time.process_time() - begin
        return self

    def predict(self, flux: np.ndarray) -> pd.DataFrame:
        """Predict labels.

        Parameters
        ----------
        flux
            (N, P) as in `fit`.

        Returns
        -------
        DataFrame
            (N, 2 L) columns `<LABEL>` and, after all of them, `<LABEL>_error`, as
            `StellarPerceptron.predict` gives them. NaN for stars without any good pixel.

        Raises
        ------
        ValueError
            The number of pixels is not that of `fit`.
        """
        begin = time.process_time()
        flux = _measured(flux)
        if flux.ndim != 2 or flux.shape[1] != len(self._pixel_mean):
            raise ValueError(f"flux {flux.shape} needs {len(self._pixel_mean)} pixels, as in fit")
        blocks = [flux[i : i + 1000] for i in range(0, max(1, len(flux)), 1000)]
        answers = [self._predict(self._centred(block)) for block in blocks]
        value, error = np.concatenate(answers, axis=1) * self._label_scale
        result = np.hstack([value + self._label_mean, error])
        result[~np.isfinite(flux).any(axis=1)] = np.nan
        self.predict_seconds = time.process_time() - begin
        errors = [f"{name}_error" for name in self.label_names]
        return pd.DataFrame(result, columns=[*self.label_names, *errors])

    def _centred(self, flux: np.ndarray) -> np.ndarray:
        """Fluxes less each pixel's mean; a bad pixel is given its mean."""
        centred = flux - self._pixel_mean
        centred[~np.isfinite(centred)] = 0.0
        return centred

    def _fit(self, flux: np.ndarray, labels: np.ndarray, errors: np.ndarray, seed: int) -> None:
        """Learn standardized labels from centred fluxes."""
        raise NotImplementedError

    def _predict(self, flux: np.ndarray) -> np.ndarray:
        """Standardized labels and errors (2, N, L) from centred fluxes."""
        raise NotImplementedError


def _measured(flux: Any) -> np.ndarray:
    """Fluxes (N, P) float32, NaN in what is no measurement."""
    flux = sentinels_to_nan(as_array(flux, dtype=np.float32))
    constant = is_constant(torch.from_numpy(flux)).numpy() if flux.ndim == 2 else np.zeros(0, bool)
    return np.where(constant[:, None], np.float32(np.nan), flux) if constant.any() else flux


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean (P,) float32 of the finite values in each column, 0 where there are none."""
    good = np.isfinite(values)
    total = np.where(good, values, 0).sum(axis=0, dtype=float)
    return (total / good.sum(axis=0).clip(1)).astype(np.float32)


@dataclass(eq=False)
class QuadraticRegression(Baseline):
    """Ridge regression on principal components of the fluxes and on the products of the first.

    How many components and products are used, and the strength of the ridge, are chosen for each
    label on held-out stars; see `fit_quadratic`. The RMSE of these serves as predicted error. After
    `fit`, `chosen` has size and strength by label.

    Parameters
    ----------
    sizes
        Pairs to choose from: number of components, and of those whose products are used. Of few
        stars, fewer are used.
    strengths
        Of the ridge, with components of variance 1.
    """

    sizes: Sequence[tuple[int, int]] = SIZES
    strengths: Sequence[float] = STRENGTHS

    def _fit(self, flux: np.ndarray, labels: np.ndarray, errors: np.ndarray, seed: int) -> None:
        form, rmse, chosen = fit_quadratic(flux, labels, self.sizes, self.strengths, seed)
        self.form, self._errors = form, rmse
        self.chosen = dict(zip(self.label_names, chosen, strict=True))

    def _predict(self, flux: np.ndarray) -> np.ndarray:
        value = self.form(flux)
        return np.stack([value, np.broadcast_to(self._errors, value.shape)])


@dataclass(eq=False)
class _Network(Baseline):
    """A network that gives value and log-variance of all labels, and how it is trained.

    AdamW with warm-up and one cosine, the robust loss of `nn_utils`; a tenth of the stars (at least
    ten) is held out, the weights of the epoch with the least loss on these are kept, and training
    ends when they have not improved for a while. Each label's predicted errors are then scaled so
    that the held-out stars, with their labels' errors, are most likely.

    Parameters
    ----------
    epochs, least_steps
        Passes over the stars; more of few stars, until there are so many steps.
    batch_size, learning_rate, weight_decay
        Of AdamW.
    patience
        Share of the epochs after which training ends without an improvement.
    progress
        Show a progress bar when the output is a terminal.
    """

    epochs: int = 30
    least_steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    patience: float = 0.25
    progress: bool = True

    def _network(self, pixels: int, outputs: int) -> nn.Module:
        raise NotImplementedError

    def _fit(self, flux: np.ndarray, labels: np.ndarray, errors: np.ndarray, seed: int) -> None:
        order = np.random.RandomState(seed).permutation(len(flux))
        held = order[: min(max(10, len(flux) // 10), len(flux) // 3)]
        rows = torch.from_numpy(order[len(held) :])
        y, e = (torch.from_numpy(a.astype(np.float32)) for a in (labels, errors))
        x = self._scaled(flux)
        batch = min(self.batch_size, max(8, len(rows) // 8))
        steps = math.ceil(len(rows) / batch)
        epochs = max(self.epochs, math.ceil(self.least_steps / steps))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = self._network(x.shape[1], 2 * y.shape[1])
            parameters, decay = self.network.parameters(), self.weight_decay
            optimizer = torch.optim.AdamW(parameters, self.learning_rate, weight_decay=decay)
            schedule = linear_warmup_cosine(optimizer, min(200, steps), steps * epochs)
            best, best_epoch, best_state = math.inf, 0, None
            hidden = None if self.progress else True
            bar = tqdm(range(epochs), type(self).__name__, unit="epoch", disable=hidden)
            for epoch in bar:
                self.network.train()
                for some in rows[torch.randperm(len(rows))].split(batch):
                    optimizer.zero_grad()
                    value, logvar = self.network(x[some]).chunk(2, dim=1)
                    robust_mean_squared_error(y[some], value, logvar, e[some]).backward()
                    nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                value, logvar = self._outputs(x[held])
                loss = robust_mean_squared_error(y[held], value, logvar, e[held]).item()
                bar.set_postfix_str(f"validation loss {loss:.3f}", refresh=False)
                if loss < best:
                    best, best_epoch = loss, epoch
                    best_state = copy.deepcopy(self.network.state_dict())
                elif epoch - best_epoch > self.patience * epochs:
                    break
            bar.close()
        if best_state is None:
            raise ValueError(
                f"{type(self).__name__} did not learn: its validation loss was never finite"
            )
        self.network.load_state_dict(best_state)
        self.epochs_trained, self.validation_loss = epoch + 1, best
        value, logvar = self._outputs(x[held])
        known, error = y[held].isfinite(), (0.5 * logvar).exp()
        scales = torch.logspace(-1, 2, 91)[:, None, None]
        variance = (scales * error).square() + e[held].square()
        likelihood = (value - y[held]).square() / variance + variance.log()
        self._error_scale = scales[
            torch.where(known, likelihood, 0.0).sum(dim=1).argmin(dim=0), 0, 0
        ]

    def _scaled(self, flux: np.ndarray) -> Tensor:
        return torch.from_numpy(flux / self._pixel_scale)

    def _outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Values and log-variances (N, L) without gradients and dropout."""
        self.network.eval()
        with torch.inference_mode():
            return torch.cat([self.network(part) for part in x.split(256)]).chunk(2, dim=1)

    def _predict(self, flux: np.ndarray) -> np.ndarray:
        value, logvar = self._outputs(self._scaled(flux))
        return torch.stack([value, (0.5 * logvar).exp() * self._error_scale]).double().numpy()


@dataclass(eq=False)
class PixelNetwork(_Network):
    """A plain network on all pixels: fully connected layers with GELU.

    Parameters
    ----------
    widths, dropout_rate
        Of the hidden layers, and behind each of them. All others: see `_Network`.
    """

    widths: Sequence[int] = (256, 256)
    dropout_rate: float = 0.0

    def _network(self, pixels: int, outputs: int) -> nn.Module:
        layers: list[nn.Module] = []
        for before, width in zip((pixels, *self.widths), self.widths, strict=False):
            layers += [nn.Linear(before, width), nn.GELU(), nn.Dropout(self.dropout_rate)]
        return nn.Sequential(*layers, nn.Linear(self.widths[-1], outputs))


@dataclass(eq=False)
class ConvolutionalNetwork(_Network):
    """Two convolutions, max pooling, two dense layers, as astroNN has them.

    Parameters
    ----------
    filters, kernel
        Of the two convolutions: how many, and how many pixels long.
    pooling
        Of so many neighbours the largest output is kept.
    widths
        Of the two dense layers. All others: see `_Network`.
    """

    epochs: int = 12
    filters: tuple[int, int] = (4, 16)
    kernel: int = 8
    pooling: int = 4
    widths: tuple[int, int] = (196, 96)

    def _network(self, pixels: int, outputs: int) -> nn.Module:
        one, two = self.filters
        first, second = self.widths
        kept = (pixels - 2 * (self.kernel - 1)) // self.pooling
        if kept < 1:
            raise ValueError(f"{pixels} pixels are too few for two convolutions and pooling")
        return nn.Sequential(
            nn.Unflatten(1, (1, pixels)),
            nn.Conv1d(1, one, self.kernel),
            nn.GELU(),
            nn.Conv1d(one, two, self.kernel),
            nn.GELU(),
            nn.MaxPool1d(self.pooling),
            nn.Flatten(),
            nn.Linear(two * kept, first),
            nn.GELU(),
            nn.Linear(first, second),
            nn.GELU(),
            nn.Linear(second, outputs),
        )


BASELINES: dict[str, type[Baseline]] = {
    "quadratic_regression": QuadraticRegression,
    "pixel_network": PixelNetwork,
    "convolutional_network": ConvolutionalNetwork,
}
"""All of them, by the names of their files."""
