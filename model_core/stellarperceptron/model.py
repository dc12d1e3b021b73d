"""The public model: perceive stars, request labels, predict, calibrate, fit."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.flags import Reference, SpectrumFlags, warn_of_flags
from stellarperceptron.data.standardizer import Standardizer
from stellarperceptron.data.wavelengths import resampling_onto
from stellarperceptron.model_core import Calibration, error_scale, label_table
from stellarperceptron.network.checkpoint import read_config, read_embed_map
from stellarperceptron.network.interface.base import one_of
from stellarperceptron.network.interface.spectra import SpectraModel, holds_labels
from stellarperceptron.network.patches import predict_patches, split_into_patches
from stellarperceptron.utils.arrays import as_array, as_spectra, sentinels_to_nan
from stellarperceptron.utils.distributed import Process

__all__ = ["StellarPerceptron"]

_COMBINATIONS = ("mean", "inverse_variance")


class StellarPerceptron(SpectraModel):
    """A foundation model for stellar spectra (Koblischke & Bovy 2024, Leung & Bovy 2023).

    Parameters
    ----------
    vocabs
        Names of all tokens (pixels and labels); see `StellarPerceptronCore`.
    embed_map
        Embedding row of each token; see `StellarPerceptronCore`.
    device
        "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1", ...
    nan_policy
        "mask": missing values are not attended to. "attend": they are attended to as zero
        vectors, as the published code does at inference.
    seed
        Seed of the initial weights. None: draw them from PyTorch's global generator.
    instrument
        Instrument whose pixels are in the vocabulary. None: APOGEE if the vocabulary has
        "syn_apogee0"; otherwise the model has no instrument, and `predict` needs pixel names.
    **config
        Entries of `ModelConfig`; the defaults are the published sizes.

    Examples
    --------
    >>> names = ["syn_apogee0", "syn_apogee1", "TEFF"]
    >>> model = StellarPerceptron(names, embed_map={"syn_apogee1": "syn_apogee0"}, seed=1)
    >>> model.fit_standardization([[0.9, 1.0, 4500.0], [1.0, 0.9, 4800.0]], names)
    >>> model.perceive([[0.95, 0.97]], names[:2], [15152.2, 15152.4])
    >>> list(model.request(["TEFF"]).columns)
    ['TEFF', 'TEFF_error']
    """

    # --- any number of pixels --------------------------------------------------------------

    def predict(
        self,
        spectra: Any,
        wavelengths: Any = None,
        labels: Sequence[str] | str | None = None,
        *,
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

        Parameters
        ----------
        spectra
            (N, n) fluxes over the pseudo-continuum, or (n,) of one star, NaN for bad pixels: an
            array, a tensor, a Quantity, or anything that can be sliced like an array (HDF5 data
            set, memory map), which is read batch by batch. Or a `Spectrum` of specutils.
        wavelengths
            (n,) vacuum [Angstrom], in any order, or any unit of length; None: those of a
            `Spectrum`. Spectra on another grid than the instrument's are interpolated onto it,
            with a warning, if they are sampled finely enough.
        labels
            Names of Q labels; None: all.
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
        wavelengths = self._check_wavelengths(wavelengths, [(n,)])
        if (wavelengths <= 0).any():
            raise ValueError("every pixel needs a wavelength above 0")
        resampling = None
        if names is None:
            if self.instrument is None:
                raise ValueError(
                    "the model has no instrument to find pixels by wavelength: give their names "
                    "(names=...)"
                )
            resampling = resampling_onto(self.instrument, wavelengths)
            if resampling is not None:
                self._refuse_air(spectra, wavelengths)
                warnings.warn(
                    f"the wavelengths are not those of {self.instrument.name} pixels: the spectra "
                    f"are interpolated onto {len(resampling.pixels)} of them",
                    stacklevel=2,
                )
                wavelengths = self.instrument.wavelength[resampling.pixels]
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
        judge = SpectrumFlags(
            self.standardizer, tokens, self.detokenize(tokens), self.instrument, self.reference
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
            )
            request_ids = torch.as_tensor(label_tokens, device=self.device)
            for start in range(0, stars, batch_size):
                flux = as_array(spectra[start : start + batch_size], dtype=np.float32)
                flux = sentinels_to_nan(flux)
                if resampling is not None:
                    flux = resampling(flux)
                given, number = flux, len(flux)
                if compile:
                    flux = np.resize(flux, (min(batch_size, stars), n))  # keep the shape
                flux = self.measured(torch.from_numpy(flux).to(self.device), tokens)
                flux = self.standardizer.standardize(flux, tokens)
                value, error = predict_patches(
                    network, flux, patches, request_ids, combine, self.nan_policy, compile
                )
                answers.append(torch.stack([value, error])[:, :number].cpu().double())
                valid.append((~flux[:number].isnan()).sum(dim=1).cpu().numpy())
                flags.append(judge(given, valid[-1]))
                bar.update(number)
        pixels = np.concatenate(valid)
        self._warn_of_empty_stars(pixels == 0)
        frame = self._frame(*torch.cat(answers, dim=1).numpy(), labels, label_tokens, pixels)
        frame["flags"] = np.concatenate(flags)
        if self.reference is not None:
            frame["flags"] |= self.reference.edge_flags(frame[labels].to_numpy(), label_tokens)
        warn_of_flags(frame["flags"].to_numpy())
        return frame

    def calibrate(
        self,
        spectra: np.ndarray,
        wavelengths: np.ndarray,
        labels: pd.DataFrame,
        label_errors: pd.DataFrame | None = None,
        *,
        names: Sequence[str] | np.ndarray | None = None,
        windows: Sequence[float] = (1.0, 0.5, 0.25, 0.125),
        seed: int = 0,
    ) -> None:
        """Calibrate predicted standard deviations on stars that were not used in training.

        For the whole spectra and for random windows of them, the factor is measured that makes
        68.3 % of the stars lie within one standard deviation, label by label. A power law of the
        number of valid pixels is fitted to these factors. `predict` and `request` apply it from
        then on, and `save` keeps it in the checkpoint.

        A label that no star has, or whose catalogue errors exceed its scatter, is left
        uncalibrated, with a warning.

        If the model does not know yet what the spectra and labels of its training set are like,
        which some `flags` of `predict` need, they are described by these stars, too.

        Parameters
        ----------
        spectra, wavelengths, names
            See `predict`.
        labels, label_errors
            (N, Q) catalogue labels and their errors, one column per label; NaN where missing.
        windows
            Widths of the windows, as fractions of the number of pixels.
        seed
            Seed of the positions of the windows.
        """
        known_as, label_tokens = self._label_tokens(list(labels))
        labels = label_table(labels, known_as)
        errors = 0 * labels if label_errors is None else label_table(label_errors, known_as, "_ERR")
        wavelengths = as_array(wavelengths, unit="Angstrom", name="wavelengths")
        random, order = np.random.default_rng(seed), np.argsort(wavelengths)
        old, self.calibration = self.calibration, Calibration()
        pixels: list[float] = []
        scales: dict[str, list[float]] = {label: [] for label in labels}
        try:
            for share in windows:
                length = max(1, round(share * len(order)))
                start = int(random.integers(len(order) - length + 1))
                part = order[start : start + length]
                flux = as_array(spectra, dtype=np.float32)[:, part]
                predicted = self.predict(
                    flux,
                    wavelengths[part],
                    known_as,
                    names=None if names is None else np.asarray(names)[part],
                    progress=False,
                )
                pixels.append(max(1.0, float(np.median(np.isfinite(flux).sum(axis=1)))))
                for label in labels:
                    residual = (predicted[label] - labels[label]).to_numpy()
                    error = predicted[f"{label}_error"].to_numpy()
                    scales[label].append(error_scale(residual, error, errors[label].to_numpy()))
        except BaseException:
            self.calibration = old
            raise
        if self.reference is None:
            flux = sentinels_to_nan(as_array(spectra, dtype=np.float32))
            if names is None:
                resampling = resampling_onto(self.instrument, wavelengths)
                if resampling is not None:
                    flux = resampling(flux)
                    wavelengths = self.instrument.wavelength[resampling.pixels]
                names = self.instrument.pixel_names(wavelengths)
            tokens = self.tokenize(names)
            self.reference = Reference.fit(flux, tokens, labels, label_tokens, seed)
        kept = {k: v for k, v in old.factors.items() if k not in labels}
        self.calibration = Calibration(kept)
        for label, values in scales.items():
            found = np.isfinite(values)
            if found.any():
                self.calibration.fit(label, np.array(pixels)[found], np.array(values)[found])
            else:
                warnings.warn(
                    f"errors of {label} stay uncalibrated: no star has it, or its catalogue errors "
                    "explain all of the scatter",
                    stacklevel=2,
                )

    # --- training --------------------------------------------------------------------------

    def fit(
        self,
        inputs: SpectraDataset | pd.DataFrame | np.ndarray,
        inputs_name: Any = None,
        outputs_name: Any = None,
        *,
        label_names: Sequence[str] | None = None,
        inputs_err: np.ndarray | None = None,
        inputs_wavelength: np.ndarray | None = None,
        kind: str = "observed",
        pixels: str | slice = "full",
        validation_split: float = 0.1,
        validation_indices: np.ndarray | None = None,
        lr_scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None,
        freeze_decoder: bool = False,
        freeze_encoder: bool = False,
        freeze_encoder_second_layer: bool = False,
        standardization_file: str | os.PathLike | None = None,
        embed_map_file: str | os.PathLike | None = None,
        new_names_for_embed_mapping: Sequence[str] = (),
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        checkpoint_folder: str | os.PathLike | None = None,
        resume: bool = False,
        process: Process | None = None,
        progress: bool = True,
        **options: Any,
    ) -> pd.DataFrame:
        """Train on stars whose labels are known.

        Three forms: ``fit(spectra, labels, wavelengths)``, ``fit(survey)``, and the published
        ``fit(inputs, inputs_name, outputs_name)`` with inputs and labels in one array.

        Parameters
        ----------
        inputs
            Spectra as `predict` takes them. Or a survey. Or (N, n) values with the inputs and the
            labels as columns, NaN where missing; a data frame gives the names itself.
        inputs_name
            Labels of the spectra, NaN where missing: a table (N, Q), or an array with
            `label_names`. In the published form (n,) names of the columns.
        outputs_name
            Wavelengths of the spectra, see `predict`. In the published form names of the labels,
            which are not used as inputs; None: all labels of a survey.
        label_names
            (Q,) names of the labels' columns.
        inputs_err
            (N, n) standard deviations; only those of the labels are used.
        inputs_wavelength
            (n,) or (N, n) vacuum [Angstrom], 0 for columns without one. None: no wavelengths.
        kind, pixels
            Which spectra and which pixels of a survey; see `SpectraDataset`.
        validation_split
            Fraction of the stars kept for validation, drawn at random with `seed`.
        validation_indices
            Rows of the validation stars, instead of a random choice.
        lr_scheduler
            Function that makes a learning-rate schedule for an optimizer. It is stepped once per
            epoch, or once per step if its attribute `every_step` is true. None: a constant rate.
        freeze_decoder, freeze_encoder, freeze_encoder_second_layer
            See `set_trainable`.
        standardization_file
            `config.json` of a checkpoint with this vocabulary, or its folder: use the
            standardization of that checkpoint.
        embed_map_file
            `embed_map.npz` of a checkpoint with this vocabulary.
        new_names_for_embed_mapping
            Names that share the embedding row of the vocabulary's first name.
        augment
            Function of fluxes (B, n) and a generator that returns a changed copy of the fluxes. It
            is called whenever stars are drawn.
        checkpoint_folder
            Folder for logs and checkpoints; None: none are written.
        resume
            Continue from the newest checkpoint in that folder, also one of a training with fewer
            epochs; all other settings must be the same. False: refuse a folder that has
            checkpoints.
        process
            See `utils.distributed.process_group`; None: a single process on this model's device.
        progress
            Show a progress bar when the output is a terminal.
        **options
            Entries of `stellarperceptron.training.profiles.TrainingOptions`: epochs, batch_size,
            learning_rate, labels_per_star, precision, seed, ...

        Returns
        -------
        DataFrame
            Metrics, one row per epoch: time [s], loss, mse_loss, val_loss, val_mse_loss, lr, ...

        Raises
        ------
        ValueError
            Shapes that do not match, unknown names, no usable star.
        TrainingError
            The loss became NaN.
        """

        from stellarperceptron.training.prepare import array_stars, survey_stars
        from stellarperceptron.training.stages import fit_model

        if standardization_file is not None:
            norm = read_config(standardization_file)["norm_config"]
            self.standardizer = Standardizer.from_config(norm, self.vocab_size + 1)
        if embed_map_file is not None:
            self.set_embed_map(read_embed_map(Path(embed_map_file)))
        self.set_embed_map(dict.fromkeys(new_names_for_embed_mapping, self.vocabs[0]))
        if holds_labels(inputs_name):
            inputs, inputs_name, outputs_name, inputs_wavelength = self._labelled_spectra(
                inputs, inputs_name, outputs_name, label_names
            )
        if isinstance(inputs, SpectraDataset):
            stars = survey_stars(inputs, kind, pixels, outputs_name)
        else:
            if isinstance(inputs, pd.DataFrame) and inputs_name is None:
                inputs_name = list(map(str, inputs.columns))
            inputs_name = self._known_names(inputs_name, "inputs_name")
            outputs_name = self._known_names(outputs_name, "outputs_name", strict=True)
            stars = array_stars(inputs, inputs_name, outputs_name, inputs_err, inputs_wavelength)
        if stars.wavelengths is not None:
            self._check_wavelengths(stars.wavelengths, [np.shape(stars.wavelengths)])
            self._refuse_names_in_air(self.tokenize(stars.names), stars.wavelengths)
        self.set_trainable(
            freeze_decoder=freeze_decoder,
            freeze_encoder=freeze_encoder,
            freeze_encoder_second_layer=freeze_encoder_second_layer,
        )
        history = fit_model(
            self,
            stars,
            options,
            validation_split=validation_split,
            validation_indices=validation_indices,
            lr_scheduler=lr_scheduler,
            augment=augment,
            checkpoint_folder=checkpoint_folder,
            resume=resume,
            process=process,
            progress=progress,
        )
        self.card = ""  # what it says no longer holds
        return pd.DataFrame(history)
