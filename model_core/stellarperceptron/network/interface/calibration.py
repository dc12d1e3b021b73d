"""Calibrate predicted errors on stars that were not used in training."""

import math
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch

from stellarperceptron.data.flags import Reference
from stellarperceptron.data.mock.observation import correlate_noise
from stellarperceptron.data.wavelengths import resampling_onto
from stellarperceptron.model_core import Calibration, error_scale, label_table
from stellarperceptron.network.interface.prediction import PredictingModel
from stellarperceptron.utils.arrays import as_array, sentinels_to_nan

__all__ = ["CalibratedModel", "with_noise"]

# Warnings that are about the stars, not about the window of the spectrum that they show.
_OF_STARS = "(?s).*(flagged|any valid value|bad, by their errors|left out|interpolated onto)"
_LEAST_PIXELS = 10  # of a window for calibration; in fewer, many stars have no valid one


class CalibratedModel(PredictingModel):
    """A model whose predicted errors can be scaled to the scatter of held-out stars."""

    def calibrate(
        self,
        spectra: np.ndarray,
        wavelengths: np.ndarray,
        labels: pd.DataFrame,
        label_errors: pd.DataFrame | None = None,
        *,
        errors: np.ndarray | None = None,
        names: Sequence[str] | np.ndarray | None = None,
        windows: Sequence[float] = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125),
        positions: int = 4,
        snr: Sequence[float] = (),
        correlation: float = 0.0,
        seed: int = 0,
    ) -> None:
        """Calibrate predicted standard deviations on stars that were not used in training.

        For the whole spectra and for random windows of them, the factor is measured that makes
        68.3 % of the stars lie within one standard deviation, label by label. Windows of the same
        width give different factors, of which the geometric mean is taken. A power law of the
        number of valid pixels is fitted to these means. `predict` and `request` apply it from then
        on, and `save` keeps it in the checkpoint.

        A model that takes conditions is told the errors, if they are given. The factor of spectra
        whose errors are not told is then measured separately. With `snr`, it is also measured for
        whole spectra to which noise was added, and the power law is one of the signal-to-noise
        ratio, too.

        A label that no star has, or whose catalogue errors exceed its scatter, is left
        uncalibrated, with a warning.

        If the model does not know yet what the spectra and labels of its training set are like,
        which some `flags` of `predict` need, they are described by these stars, too.

        Parameters
        ----------
        spectra, wavelengths, errors, names
            See `predict`. Give errors of the spectra if they will be given to `predict`.
        labels, label_errors
            (N, Q) catalogue labels and their errors, one column per label; NaN where missing.
        windows
            Widths of the windows, as fractions of the number of pixels; at least 10 pixels.
        positions
            Least number of windows of each width below 1; there are more if more fit side by side.
        snr
            Noise is added at these signal-to-noise ratios a pixel. Only with `errors`, and for a
            model that takes conditions.
        correlation
            Correlation of the added noise between neighbouring pixels, 0 to 0.7. Resampled spectra
            have such noise; a calibration on white noise makes their errors too small.
        seed
            Seed of the positions of the windows, and of the noise.

        Raises
        ------
        ValueError
            See `predict`; labels that the model does not have, a window that is not above 0 and
            at most 1, or signal-to-noise ratios that are not above 0 or that the model is not told.
        """
        if bad := [share for share in windows if not 0 < share <= 1]:
            raise ValueError(f"windows {bad} are no fractions of the pixels, above 0 and at most 1")
        if bad := [ratio for ratio in snr if not 0 < ratio < math.inf]:
            raise ValueError(f"snr {bad} are no signal-to-noise ratios, above 0")
        if len(snr) and (errors is None or not self.config.conditions):
            raise ValueError("snr needs errors, and a model that takes conditions")
        known_as, label_tokens = self._label_tokens(list(labels))
        labels = label_table(labels, known_as)
        if label_errors is None:
            label_errors = 0 * labels
        else:
            label_errors = label_table(label_errors, known_as, "_ERR")
        wavelengths = as_array(wavelengths, unit="Angstrom", name="wavelengths")
        flux = sentinels_to_nan(as_array(spectra, dtype=np.float32))
        known = None if errors is None else as_array(errors, dtype=np.float32)
        tells = known is not None and self.config.conditions
        names = None if names is None else np.asarray(names)
        random, order = np.random.default_rng(seed), np.argsort(wavelengths)
        least = min(_LEAST_PIXELS, len(order))
        lengths = {max(least, round(share * len(order))) for share in windows}
        # Length of the window, signal-to-noise ratio of the added noise, and whether it is told.
        cases = [(length, math.inf, tells) for length in sorted(lengths, reverse=True)]
        cases += [(len(order), math.inf, False)] if tells else []
        cases += [(len(order), ratio, True) for ratio in snr]
        old, self.calibration = self.calibration, Calibration()
        measured: list[tuple] = []
        scales: list[dict[str, float]] = []
        try:
            for length, ratio, told in cases:
                seen, sigma = flux, known
                if known is not None and ratio < math.inf:
                    seen, sigma = with_noise(flux, known, ratio, correlation, random)
                fit = len(order) // length
                for _ in range(1 if length == len(order) else max(positions, fit)):
                    start = int(random.integers(len(order) - length + 1))
                    part = order[start : start + length]
                    shown, noise = seen[:, part], None if sigma is None else sigma[:, part]
                    with warnings.catch_warnings():
                        if scales:  # the whole spectra have warned of these stars
                            warnings.filterwarnings("ignore", _OF_STARS)
                        predicted = self.predict(
                            shown,
                            wavelengths[part],
                            known_as,
                            errors=noise,
                            snr=math.nan if tells and not told else None,
                            names=None if names is None else names[part],
                            progress=False,
                        )
                    pixels = np.median(np.isfinite(shown).sum(axis=1))
                    ratio_told = _snr(shown, noise) if told else math.nan
                    measured.append((length, ratio, told, max(1.0, pixels), ratio_told))
                    scales.append(_scales(predicted, labels, label_errors))
        except BaseException:
            self.calibration = old
            raise
        if not self.references:
            if names is None:
                resampling = resampling_onto(self.instrument, wavelengths)
                if resampling is not None:
                    flux = resampling(flux)
                    wavelengths = self.instrument.wavelength[resampling.pixels]
                names = self.instrument.pixel_names(wavelengths)
            self.reference = Reference.fit(flux, self.tokenize(names), labels, label_tokens, seed)
        kept = {k: v for k, v in old.factors.items() if k not in labels}
        self.calibration = Calibration(kept)
        columns = ["length", "added", "told", "pixels", "snr"]
        about, logarithms = pd.DataFrame(measured, columns=columns), np.log(pd.DataFrame(scales))
        case = [about[name] for name in columns[:3]]
        # Means over the windows of each length, in the order of the cases.
        about = about.groupby(case, sort=False).mean()
        logarithms = logarithms.groupby(case, sort=False).mean()
        for label in labels:
            found = logarithms[label].notna().to_numpy()
            if found.any():
                pixels, ratios = (about[name].to_numpy()[found] for name in ("pixels", "snr"))
                factors = np.exp(logarithms[label].to_numpy()[found])
                self.calibration.fit(label, pixels, factors, ratios, first=True)
            else:
                warnings.warn(
                    f"errors of {label} stay uncalibrated: no star has it, or its catalogue errors "
                    "explain all of the scatter",
                    stacklevel=2,
                )


def with_noise(
    flux: np.ndarray,
    errors: np.ndarray,
    snr: float,
    correlation: float,
    random: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Spectra with more noise, and their errors.

    Parameters
    ----------
    flux, errors
        (N, P) fluxes over the pseudo-continuum, and their standard deviations.
    snr
        Signal-to-noise ratio a pixel of the added noise.
    correlation
        Of the added noise between neighbouring pixels; see `correlate_noise`.
    random
        Randomness of the noise.
    """
    normal = torch.from_numpy(random.standard_normal(flux.shape, dtype=np.float32))
    noisy = flux + correlate_noise(normal, correlation).numpy() / snr
    return noisy, np.where(errors > 0, np.hypot(errors, 1 / snr), errors)


def _snr(flux: np.ndarray, errors: np.ndarray) -> float:
    """Median signal-to-noise ratio of spectra, NaN if no error is above zero."""
    good = errors > 0
    return float(np.nanmedian(flux[good] / errors[good])) if good.any() else math.nan


def _scales(
    predicted: pd.DataFrame, labels: pd.DataFrame, label_errors: pd.DataFrame
) -> dict[str, float]:
    """Factor of the predicted errors of each label; see `error_scale`."""
    return {
        label: error_scale(
            (predicted[label] - labels[label]).to_numpy(),
            predicted[f"{label}_error"].to_numpy(),
            label_errors[label].to_numpy(),
        )
        for label in labels
    }
