"""The public model: perceive stars, request labels, predict, calibrate, fit."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.standardizer import Standardizer
from stellarperceptron.network.checkpoint import read_config, read_embed_map
from stellarperceptron.network.interface.calibration import CalibratedModel
from stellarperceptron.network.interface.spectra import holds_labels
from stellarperceptron.utils.distributed import Process

__all__ = ["StellarPerceptron"]


class StellarPerceptron(CalibratedModel):
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

    def fit(
        self,
        inputs: SpectraDataset | pd.DataFrame | np.ndarray,
        inputs_name: Any = None,
        outputs_name: Any = None,
        *,
        label_names: Sequence[str] | None = None,
        inputs_err: np.ndarray | None = None,
        inputs_wavelength: np.ndarray | None = None,
        resolving_power: Any = None,
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
            (N, n) standard deviations. Those of the inputs are for a model that takes conditions,
            which is told the signal-to-noise ratio of each token. Pixels of spectra count as bad
            by their errors as in `predict`.
        inputs_wavelength
            (n,) or (N, n) vacuum [Angstrom], 0 for columns without one. None: no wavelengths.
        resolving_power
            One number or (n,) of spectra of another instrument, for a model that was trained on
            many; see `predict`.
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
            Function of fluxes (B, n) and a generator that returns a changed copy of the fluxes, or
            that and the standard deviation (B,) or (B, n) of the noise in it, for a model that
            takes conditions. It is called whenever stars are drawn.
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

        from stellarperceptron.training.stages import fit_model
        from stellarperceptron.training.stars.drawn import OtherSpectra, other_stars
        from stellarperceptron.training.stars.labelled import array_stars, survey_stars

        if standardization_file is not None:
            norm = read_config(standardization_file)["norm_config"]
            self.standardizer = Standardizer.from_config(norm, self.vocab_size + 1)
        if embed_map_file is not None:
            self.set_embed_map(read_embed_map(Path(embed_map_file)))
        self.set_embed_map(dict.fromkeys(new_names_for_embed_mapping, self.vocabs[0]))
        another = draw = None
        if holds_labels(inputs_name):
            another = self._of_another_instrument(inputs, outputs_name, resolving_power)
        if another is not None:
            if inputs_err is not None:
                raise ValueError("inputs_err is for spectra on the model's own pixels")
            flux, wavelengths, power = another
            values, known = self._known_labels(inputs_name, label_names, len(flux))
            stars = other_stars(self.instrument, flux, values, known)
            draw = OtherSpectra(self.instrument, wavelengths, power, augment)
            augment = None
        elif resolving_power is not None:
            raise ValueError(
                "resolving_power is for spectra of another instrument than the model's, and a "
                "model that was trained on many"
            )
        elif holds_labels(inputs_name):
            inputs, inputs_name, outputs_name, inputs_wavelength, inputs_err = (
                self._labelled_spectra(inputs, inputs_name, outputs_name, label_names, inputs_err)
            )
        if isinstance(inputs, SpectraDataset):
            stars = survey_stars(inputs, kind, pixels, outputs_name)
        elif another is None:
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
            draw=draw,
        )
        self.card, self.trained_on = "", {}  # what they say no longer holds
        return pd.DataFrame(history)
