"""Predict labels from spectra with any number of pixels."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from stellarperceptron.data.flags import Flag, warn_of_flags
from stellarperceptron.data.wavelengths import off_pixels, resampling_onto
from stellarperceptron.network.interface.base import one_of
from stellarperceptron.network.interface.judge import Judge
from stellarperceptron.network.interface.other_instruments import OtherInstrument
from stellarperceptron.network.interface.spectra import SpectraModel, too_noisy
from stellarperceptron.network.patches import predict_patches, split_into_patches
from stellarperceptron.utils.arrays import as_array, as_spectra, sentinels_to_nan

__all__ = ["PredictingModel"]

_COMBINATIONS = ("mean", "inverse_variance")


class PredictingModel(SpectraModel):
    """A model that predicts labels with errors."""

    def predict(
        self,
        spectra: Any,
        wavelengths: Any = None,
        labels: Sequence[str] | str | None = None,
        *,
        errors: Any = None,
        snr: Any = None,
        resolving_power: Any = None,
        names: Sequence[str] | np.ndarray | None = None,
        combine: str = "mean",
        batch_size: int | None = None,
        precision: str = "float32",
        compile: bool = False,
        seed: int = 0,
        progress: bool = True,
    ) -> pd.DataFrame:
        """Predict labels from spectra with any number of pixels.

        A spectrum that fits into the context is perceived as a whole. A longer one is split at
        random, in the same way for all stars, into as few patches of equal size as possible. Each
        patch is perceived on its own, and the answers are combined (Koblischke & Bovy 2024,
        section 3).

        A model with a `regression` averages its answers with those of the network, for spectra with
        the pixels that the regression knows. Flagged spectra, those with many bad pixels, and
        labels in which the two disagree are left to the network. ``model.regression = None``
        leaves everything to it.

        Parameters
        ----------
        spectra
            (N, n) fluxes over the pseudo-continuum, or (n,) of one star, NaN for bad pixels: an
            array, a tensor, a Quantity, or anything that can be sliced like an array (HDF5 data
            set, memory map), which is read batch by batch. Or a `Spectrum` of specutils.
        wavelengths
            (n,) vacuum [Angstrom], in any order, or any unit of length; None: those of a
            `Spectrum`. Spectra on another grid than the instrument's are interpolated onto it,
            with a warning, if they are sampled finely enough. A model that was trained on many
            instruments reads other grids as they are, and needs `resolving_power` for it.
        labels
            Names of Q labels; None: all.
        errors
            (N, n) standard deviations of the fluxes, in any container of `spectra`. Pixels whose
            error is not above zero, or above 0.05 and three times the median error of some 300
            neighbouring columns, count as bad. A model that takes conditions is told the
            signal-to-noise ratio of each token. The flag UNLIKE_TRAINING allows for known noise.
        snr
            (N,) signal-to-noise ratio a pixel, or one number for all stars, instead of that by
            `errors`. Only for models that take conditions, which answer without it, too.
        resolving_power
            Wavelength over the full width at half maximum of the line-spread function: one number
            or (n,). None: that of the model's instrument. Only for models that take conditions.
        names
            (n,) names (or tokens) of the pixels. None: find the instrument's by wavelength.
        combine
            "mean": values and uncertainties are averaged over the patches, as published.
            "inverse_variance": values are weighted by the inverse predicted variances. The
            predicted variance is the harmonic mean of those of the patches, since all of them see
            the same star.
        batch_size
            Stars at a time; None chooses by device.
        precision
            "float32", or "bfloat16" or "float16" arithmetic where matrices are multiplied.
        compile
            Compile the network first, for batches and patches of one shape. This takes half a
            minute and pays off on a GPU from about ten thousand stars.
        seed
            Seed of the shuffle before a spectrum is split into patches.
        progress
            Show a progress bar when the output is a terminal.

        Returns
        -------
        DataFrame
            See `request`; and a column `flags`, the sum of bits of
            `stellarperceptron.data.flags.Flag`: 0 where nothing speaks against the answer. Bits
            that need a description of the training spectra are only set by models that have one
            (see `calibrate`).

        Raises
        ------
        ValueError
            Shapes that do not match, unknown names or labels, wavelengths that are not finite.
        """
        one_of("combine", combine, _COMBINATIONS)
        labels, label_tokens = self._label_tokens(self._all_labels() if labels is None else labels)
        spectra, wavelengths = as_spectra(spectra, wavelengths)
        stars, n = np.shape(spectra)
        if not n:
            raise ValueError("the spectra have no pixels")
        if errors is not None:
            errors, _ = as_spectra(errors, wavelengths)
            if np.shape(errors) != (stars, n):
                raise ValueError(f"errors {np.shape(errors)} do not match spectra {(stars, n)}")
        wavelengths = self._check_wavelengths(wavelengths, [(n,)])
        if (wavelengths <= 0).any():
            raise ValueError("every pixel needs a wavelength above 0")
        snr = self._condition("snr", snr, stars)
        power = self._condition("resolving_power", resolving_power, n)
        if power is None:
            power = self.resolving_power_at(wavelengths)
        resampling, other, unseen = None, None, False
        own_wavelengths = wavelengths  # of the spectra, whatever they are brought to
        if names is None:
            if self.instrument is None:
                raise ValueError(
                    "the model has no instrument to find pixels by wavelength: give their names "
                    "(names=...)"
                )
            if self.drawn is not None and off_pixels(self.instrument, wavelengths).any():
                self._refuse_air(spectra, wavelengths)
                given = None if resolving_power is None else power
                other = OtherInstrument(self.instrument, self.drawn, wavelengths, given)
                wavelengths, power = self.instrument.wavelength[other.pixels], other.resolving_power
                n, rows = len(wavelengths), self.tokenize(self.instrument.pixel_names())
            elif self.drawn is not None:
                unseen = self._seen_by_another(
                    wavelengths, None if resolving_power is None else power
                )
            else:
                resampling = resampling_onto(self.instrument, wavelengths)
            if resampling is not None:
                self._refuse_air(spectra, wavelengths)
                warnings.warn(
                    f"the wavelengths are not those of {self.instrument.name} pixels: the spectra "
                    f"are interpolated onto {len(resampling.pixels)} of them",
                    stacklevel=2,
                )
                wavelengths = self.instrument.wavelength[resampling.pixels]
                power = None if power is None else power[resampling.left]
                n = len(wavelengths)
            names = self.instrument.pixel_names(wavelengths)
        tokens = self.tokenize(names)
        if tokens.shape != (n,):
            raise ValueError(f"{tokens.shape} names do not match spectra of {n} pixels")
        self._refuse_names_in_air(tokens, wavelengths)
        if not tokens.all():
            raise ValueError("padding among the pixels: leave it out, or make bad pixels NaN")
        self.require_standardization(tokens)

        batch_size = self.stars_at_once(batch_size)
        answers = [torch.empty(2, 0, len(labels), dtype=torch.float64)]
        valid, flags = [np.zeros(0, dtype=int)], [np.zeros(0, dtype=int)]
        told = [np.zeros(0)]  # the signal-to-noise ratio of each star
        dropped, regressed = 0, []
        columns = None  # of the regression's pixels
        if self.regression is not None and other is None and resampling is None:
            columns = self.regression.columns(tokens)
        judge = Judge(
            self.standardizer,
            tokens,
            self.detokenize(tokens),
            self.instrument,
            self.references if other is None else {},
        )
        bar = tqdm(
            total=stars,
            desc="predict",
            unit="star",
            smoothing=0.05,
            disable=None if progress else True,
        )
        network = torch.compile(self.torch_model, dynamic=False) if compile else self.torch_model
        with bar, self._evaluation(), self._autocast(precision):
            patches = split_into_patches(
                tokens,
                wavelengths,
                self.positions[tokens],
                self.torch_model.embedding_layer,
                self.config.context_length,
                seed,
                fill=compile,
                resolving_power=power,
            )
            request_ids = torch.as_tensor(label_tokens, device=self.device)
            like = torch.zeros(1, device=self.device)
            for start in range(0, stars, batch_size):
                flux = as_array(spectra[start : start + batch_size], dtype=np.float32)
                flux, ratio, sigma = sentinels_to_nan(flux), None, None
                if resampling is not None or other is not None:
                    flux = self._measured_at(flux, own_wavelengths)
                if errors is not None:
                    part = as_array(errors[start : start + batch_size], dtype=np.float32)
                    noisy = too_noisy(part)
                    dropped += int((noisy & np.isfinite(flux)).sum())
                    flux, sigma = np.where(noisy, np.nan, flux), np.where(noisy, np.nan, part)
                    if self.config.conditions:
                        ratio = flux / np.where(noisy, 1, part)
                elif snr is not None:
                    sigma = np.broadcast_to(1 / snr[start : start + batch_size, None], flux.shape)
                if resampling is not None:
                    flux = resampling(flux)
                    sigma = None if sigma is None else resampling.of_errors(sigma)
                    ratio = None if ratio is None else resampling(ratio)
                given, number, weights = flux, len(flux), None
                if other is not None:
                    given, sigma = other.on_pixels(flux), None  # there is no reference for it
                    ratio = None if ratio is None else other.on_pixels(ratio)
                    flux, weights = other.spread(flux, self.standardizer, rows, like)
                else:
                    flux = self.measured(torch.from_numpy(flux).to(self.device), tokens)
                    flux = self.standardizer.standardize(flux, tokens)
                if columns is not None:
                    regressed.append(self.regression.answers(given, columns))
                if snr is not None:
                    ratio = np.broadcast_to(snr[start : start + batch_size, None], flux.shape)
                if ratio is not None:
                    known = torch.from_numpy(ratio.astype(np.float32))
                    if snr is None:
                        told.append(known.nanmedian(dim=1).values.numpy())
                    ratio = known.to(self.device)
                if compile:  # keep the shape
                    again = torch.arange(min(batch_size, stars), device=self.device) % number
                    flux, ratio, weights = (
                        None if part is None else part[again] for part in (flux, ratio, weights)
                    )
                value, error = predict_patches(
                    network,
                    flux,
                    patches,
                    request_ids,
                    combine,
                    self.nan_policy,
                    compile,
                    ratio,
                    weights,
                )
                answers.append(torch.stack([value, error])[:, :number].cpu().double())
                seen = torch.isfinite(flux) if weights is None else weights
                valid.append(seen[:number].sum(dim=1).round().long().cpu().numpy())
                flags.append(judge(given, valid[-1], sigma))
                bar.update(number)
        if dropped:
            warnings.warn(
                f"{dropped} of {stars * np.shape(spectra)[1]} pixels count as bad, by their errors",
                stacklevel=2,
            )
        pixels = np.concatenate(valid)
        self._warn_of_empty_stars(pixels == 0)
        value, error = torch.cat(answers, dim=1).numpy()
        if snr is None and len(told) > 1:
            snr = np.concatenate(told)
        found = np.concatenate(flags)
        if regressed:
            also = np.where(found[:, None] == 0, np.concatenate(regressed), np.nan)
            value, error = self.regression.average(value, error, also, label_tokens, snr)
        seen = self._instruments_of(tokens)
        frame = self._frame(value, error, labels, label_tokens, pixels, snr, seen)
        frame["flags"] = found
        if other is not None or unseen:
            frame["flags"] |= int(Flag.OTHER_INSTRUMENT)
        for reference in judge.references or self.references.values():
            frame["flags"] |= reference.edge_flags(
                frame[labels].to_numpy(),
                frame[[f"{label}_error" for label in labels]].to_numpy(),
                label_tokens,
            )
        warn_of_flags(frame["flags"].to_numpy())
        return frame

    def _seen_by_another(self, wavelengths: np.ndarray, power: np.ndarray | None) -> bool:
        """Whether training has not shown the model's own pixels at this resolving power.

        `power` (n,) at the wavelengths (n,) is what the user says; None: nothing.

        Raises
        ------
        ValueError
            It is unlike all that training has drawn.
        """
        own = self.resolving_power_at(wavelengths)
        same = power is None or (own is not None and np.allclose(power, own, rtol=0.1))
        if same and self.drawn.share < 1:
            return False
        power = own if power is None else power
        if power is not None and np.isfinite(power).all() and len(wavelengths) > 1:
            self.drawn.refuse(wavelengths, power)
        return True

    def _condition(self, name: str, values: Any, number: int) -> np.ndarray | None:
        """A condition as the user gives it, for `number` stars or pixels; None if it is not given.

        Raises
        ------
        ValueError
            The model takes no conditions, or the values are not above zero or too many or too few.
        """
        if values is None:
            return None
        if not self.config.conditions:
            raise ValueError(f"the model takes no conditions: leave {name} out")
        values = as_array(values, name=name)
        if values.shape not in ((), (number,)):
            raise ValueError(f"{name} has shape {values.shape}: give one number, or {number}")
        if (values <= 0).any():
            raise ValueError(f"{name} must be above zero; NaN says that it is unknown")
        return np.broadcast_to(values, number)
