"""A model that takes spectra by their wavelengths: embeddings, labelled spectra, export."""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from astropy.table import Table
from tqdm.auto import tqdm

from stellarperceptron.data.wavelengths import air_or_vacuum, off_pixels, resampling_onto
from stellarperceptron.labels import label as label_named
from stellarperceptron.network.interface.export import FluxToLabels, write_onnx
from stellarperceptron.network.interface.other_instruments import OtherInstrument
from stellarperceptron.network.interface.perception import PerceivingModel
from stellarperceptron.network.patches import Patch, split_into_patches
from stellarperceptron.utils.arrays import as_array, as_names, as_spectra, sentinels_to_nan
from stellarperceptron.utils.data_utils import written_by

__all__ = ["SpectraModel", "holds_labels", "too_noisy"]

# A pixel is too noisy to help if its error exceeds both. Beyond about this noise the shipped model
# answers better without the pixel (measured with noise on 5 to 30 % of the pixels).
_LARGEST_ERROR = 0.05  # of the pseudo-continuum
_LARGEST_RATIO = 3.0  # to the median error of its neighbours
_NEIGHBOURS = 300  # the blue end of a spectrum may be noisier than the rest by a factor of ten


def holds_labels(values: Any) -> bool:
    """Whether values are labels of stars, and not names or tokens of columns."""
    if isinstance(values, pd.DataFrame | Table | Mapping):
        return True
    return len(np.shape(values)) == 2


def too_noisy(errors: np.ndarray) -> np.ndarray:
    """Pixels (N, n) that count as bad by their errors (N, n); see `predict`."""
    known = np.isfinite(errors) & (errors > 0)
    bad = ~known
    parts = np.array_split(np.arange(errors.shape[1]), max(1, round(errors.shape[1] / _NEIGHBOURS)))
    for part in parts:
        own = np.where(known[:, part], errors[:, part], np.nan)
        # Where there is no error, there is no median; all of these pixels are bad anyway.
        median = np.nanmedian(np.where(known[:, part].any(axis=1)[:, None], own, 0), axis=1)
        limit = np.maximum(_LARGEST_ERROR, _LARGEST_RATIO * median)
        bad[:, part] |= own > limit[:, None]
    return bad


def without_noisy_pixels(flux: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Flux (N, n) with NaN in pixels that count as bad by their errors (N, n), with a warning."""
    noisy = too_noisy(errors)
    dropped = int((noisy & np.isfinite(flux)).sum())
    if dropped:
        warnings.warn(
            f"{dropped} of {flux.size} pixels count as bad, by their errors", stacklevel=4
        )
    return np.where(noisy, np.nan, flux)


class SpectraModel(PerceivingModel):
    """A model that takes spectra on the pixels of its instrument, or near them."""

    def embed(
        self,
        spectra: Any,
        wavelengths: Any = None,
        *,
        batch_size: int | None = None,
        seed: int = 0,
        progress: bool = True,
    ) -> np.ndarray:
        """Describe spectra by what the encoder makes of them.

        This is the mean of the perception over all tokens that hold a valid pixel, and, of spectra
        that do not fit into the context, over all patches.

        Parameters
        ----------
        spectra, wavelengths
            See `StellarPerceptron.predict`; all spectra are read at once.
        batch_size
            Stars at a time; None chooses by device.
        seed
            Seed of the shuffle before a spectrum is split into patches.
        progress
            Show a progress bar when the output is a terminal.

        Returns
        -------
        ndarray
            (N, D) float32, D being the embedding dimension; NaN for stars without a valid pixel.

        Raises
        ------
        ValueError
            See `StellarPerceptron.predict`.
        """
        flux, wavelengths, names = self._on_pixels(spectra, wavelengths)
        tokens, patches = self._patches(names, wavelengths, seed)
        batch_size = self.stars_at_once(batch_size)
        embedded = [np.zeros((0, self.config.embedding_dim), dtype=np.float32)]
        bar = tqdm(total=len(flux), desc="embed", unit="star", disable=None if progress else True)
        with bar, self._evaluation():
            for start in range(0, len(flux), batch_size):
                part = torch.from_numpy(flux[start : start + batch_size]).to(self.device)
                part = self.standardizer.standardize(part, tokens)
                part = torch.nn.functional.pad(part, (0, 1), value=np.nan)
                total = count = torch.zeros(1, device=self.device)
                for patch in patches:
                    batch = patch.tokens(part)
                    present = batch.present()[..., None]
                    perception, _, _ = self.torch_model.encode(batch, self.nan_policy)
                    total = total + torch.where(present, perception, 0.0).sum(dim=1)
                    count = count + present.sum(dim=1)
                embedded.append((total / count).cpu().numpy())
                bar.update(len(part))
        result = np.concatenate(embedded)
        self._warn_of_empty_stars(np.isnan(result).any(axis=1))
        return result

    def export_onnx(
        self,
        path: str | os.PathLike,
        labels: Sequence[str] | str | None = None,
        wavelengths: Any = None,
        *,
        seed: int = 0,
    ) -> None:
        """Write the model as an ONNX file, which runs without this package.

        The file takes `flux`, float32 (stars, pixels), any number of stars, NaN for bad pixels and
        for those that were not observed. It gives `labels` and `errors` (stars, labels) in the
        labels' units, as `predict` does. Its metadata name the labels, their units, and the
        wavelengths of the pixels.

        Parameters
        ----------
        path
            File to write, usually .onnx.
        labels
            Names of labels; None: all.
        wavelengths
            (n,) vacuum [Angstrom] of the pixels of a spectrum, which must be pixels of the
            instrument. None: all its pixels.
        seed
            Seed of the shuffle before a spectrum is split into patches.

        Raises
        ------
        ValueError
            Unknown labels, or wavelengths that are not the instrument's.
        ModuleNotFoundError
            onnx or onnxscript is not installed.
        """
        names, label_tokens = self._label_tokens(self._all_labels() if labels is None else labels)
        if self.instrument is None:
            raise ValueError("the model has no instrument to find pixels by wavelength")
        if wavelengths is None:
            wavelengths = self.instrument.wavelength
        wavelengths = as_array(wavelengths, unit="Angstrom", name="wavelengths")
        if resampling_onto(self.instrument, wavelengths) is not None:
            raise ValueError(f"the wavelengths are not those of {self.instrument.name} pixels")
        device, self.device = self.device, torch.device("cpu")
        self.torch_model.cpu()
        try:
            pixel_names = self.instrument.pixel_names(wavelengths)
            tokens, patches = self._patches(pixel_names, wavelengths, seed)
            like = torch.zeros(1)
            # The file is never told the signal-to-noise ratio.
            known = self.calibration.of(self._instruments_of(tokens)).factors
            factors = [(a + d, b) for a, b, _, d in (known.get(name, (0.0,) * 4) for name in names)]
            network = FluxToLabels(
                self.torch_model,
                patches,
                self.standardizer.statistics(tokens, like),
                self.standardizer.statistics(label_tokens, like)[:2],
                torch.as_tensor(label_tokens),
                torch.tensor(factors),
            )
            about = {
                "labels": json.dumps(names),
                "units": json.dumps([label_named(name).unit for name in names]),
                "wavelengths_angstrom": json.dumps([round(float(w), 5) for w in wavelengths]),
                **written_by(),
            }
            with self._evaluation():
                write_onnx(network, path, len(tokens), about)
        finally:
            self.device = device
            self.torch_model.to(device)

    def _all_labels(self) -> list[str]:
        """Names of all labels, which only a model with an instrument can tell from pixels."""
        if self.instrument is None:
            raise ValueError("the model has no instrument to tell labels from pixels: name labels")
        return self.label_names

    def _patches(
        self, names: np.ndarray, wavelengths: np.ndarray, seed: int
    ) -> tuple[np.ndarray, list[Patch]]:
        """Tokens (n,) of pixels, and the patches that they are split into."""
        tokens = self.tokenize(names)
        self.require_standardization(tokens)
        patches = split_into_patches(
            tokens,
            wavelengths,
            self.positions[tokens],
            self.torch_model.embedding_layer,
            self.config.context_length,
            seed,
            resolving_power=self.resolving_power_at(wavelengths),
        )
        return tokens, patches

    def _on_pixels(
        self, spectra: Any, wavelengths: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Bring spectra onto pixels of the instrument: flux (N, n), wavelengths and names (n,)."""
        spectra, wavelengths = as_spectra(spectra, wavelengths)
        if self.instrument is None:
            raise ValueError("the model has no instrument to find pixels by wavelength")
        flux = sentinels_to_nan(as_array(spectra, dtype=np.float32))
        wavelengths = self._check_wavelengths(wavelengths, [flux.shape[1:]])
        if self.drawn is not None and off_pixels(self.instrument, wavelengths).any():
            raise ValueError(
                f"the wavelengths are not those of {self.instrument.name} pixels: only predict "
                "and fit read spectra of other instruments"
            )
        resampling = resampling_onto(self.instrument, wavelengths)
        if resampling is not None:
            self._refuse_air(flux, wavelengths)
            flux = resampling(self._measured_at(flux, wavelengths))
            wavelengths = self.instrument.wavelength[resampling.pixels]
        return flux, wavelengths, self.instrument.pixel_names(wavelengths)

    def _of_another_instrument(
        self, spectra: Any, wavelengths: Any, resolving_power: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Flux (N, n), wavelengths and resolving power (n,) of another instrument's spectra.

        None if they are on the model's own pixels, or if the model reads no others.

        Raises
        ------
        ValueError
            The model was not trained on instruments like this one.
        """
        if self.drawn is None or self.instrument is None:
            return None
        spectra, wavelengths = as_spectra(spectra, wavelengths)
        wavelengths = self._check_wavelengths(wavelengths, [np.shape(spectra)[1:]])
        if not off_pixels(self.instrument, wavelengths).any():
            return None
        self._refuse_air(spectra, wavelengths)
        power = resolving_power
        if power is not None:
            power = np.broadcast_to(as_array(power, name="resolving_power"), wavelengths.shape)
        OtherInstrument(self.instrument, self.drawn, wavelengths, power)  # refuses what is unknown
        flux = sentinels_to_nan(as_array(spectra, dtype=np.float32))
        return self._measured_at(flux, wavelengths), wavelengths, power

    def _refuse_air(self, spectra: np.ndarray, wavelengths: np.ndarray) -> None:
        """Refuse wavelengths in air, which most stars' lines give away."""
        names = self.instrument.pixel_names()
        known = np.isin(names, self.vocabs)
        tokens = self.tokenize(names[known])
        if len(self.standardizer.missing(tokens)):
            return  # nothing is known yet
        template = self.standardizer.center[tokens]  # the median spectrum of the training stars
        flux = sentinels_to_nan(as_array(spectra[:50], dtype=np.float32))
        found = air_or_vacuum(wavelengths, flux, self.instrument.wavelength[known], template)
        if (found == "air").sum() > (found == "vacuum").sum():
            raise ValueError(
                "the wavelengths are those in air, by the lines of the spectra: convert them with "
                "stellarperceptron.data.wavelengths.air_to_vacuum"
            )

    def _labelled_spectra(
        self,
        spectra: Any,
        labels: Any,
        wavelengths: Any,
        label_names: Sequence[str] | None,
        errors: Any = None,
    ) -> tuple[np.ndarray, list[str], list[str], np.ndarray, np.ndarray | None]:
        """Arguments of `fit` in its published form, from spectra and labels apart.

        The last of them are errors of the columns, if those of the spectra (N, n) are given.
        """
        given = as_spectra(spectra, wavelengths)[1]
        flux, wavelengths, names = self._on_pixels(spectra, wavelengths)
        if errors is not None:
            errors = as_array(as_spectra(errors, given)[0], dtype=np.float32)
            if (
                errors.shape != flux.shape
                or off_pixels(
                    self.instrument, self._check_wavelengths(given, [errors.shape[1:]])
                ).any()
            ):
                raise ValueError(
                    f"inputs_err {errors.shape} do not match spectra on pixels of the model's "
                    f"instrument {flux.shape}"
                )
            flux = without_noisy_pixels(flux, errors)
        values, known = self._known_labels(labels, label_names, len(flux))
        wavelengths = np.append(wavelengths, np.zeros(len(known)))
        if errors is not None:
            errors = np.hstack([errors, np.zeros_like(values)])
        return np.hstack([flux, values]), [*names, *known], known, wavelengths, errors

    def _known_labels(
        self, labels: Any, label_names: Sequence[str] | None, stars: int
    ) -> tuple[np.ndarray, list[str]]:
        """Values (N, Q) of labels in any container, and what the model calls them."""
        if isinstance(labels, Table):
            labels = labels.to_pandas()
        if isinstance(labels, pd.DataFrame | Mapping):
            labels = pd.DataFrame(labels)
            label_names = list(labels) if label_names is None else as_names(label_names)
            labels = labels[label_names]
        elif label_names is None:
            raise ValueError("give label_names, or labels as a table with names")
        label_names = as_names(label_names, "label_names")
        known = [self._known_label(name) for name in label_names]
        values = as_array(labels, unit=None, name="labels")
        if values.shape != (stars, len(known)):
            raise ValueError(
                f"labels have shape {values.shape}, expected {(stars, len(known))}: a row a star, "
                "a column a label"
            )
        return values, known
