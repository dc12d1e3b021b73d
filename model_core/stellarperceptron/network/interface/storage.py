"""Models in files: saved, loaded, found by name, and described by a model card."""

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, Self

import numpy as np
import torch

from stellarperceptron.data.flags import Reference
from stellarperceptron.data.standardizer import Standardizer
from stellarperceptron.instruments.drawn import DrawnInstruments
from stellarperceptron.instruments.spectrograph import Instrument
from stellarperceptron.model_core import Calibration
from stellarperceptron.network.baselines.averaged import AveragedRegression
from stellarperceptron.network.checkpoint import (
    load_weights,
    read_checkpoint,
    write_checkpoint,
)
from stellarperceptron.network.config import ModelConfig
from stellarperceptron.network.interface.base import StellarPerceptronBase
from stellarperceptron.network.pretrained import find_pretrained

__all__ = ["StoredModel"]

_REGRESSION = "regression"  # before the names of its arrays; no instrument is called so


class StoredModel(StellarPerceptronBase):
    """A model that can be saved and loaded.

    Attributes
    ----------
    card : str
        What the model was trained on, how well it does and what it must not be used for, in
        Markdown; empty where nobody has written it. It is saved with the model. `fit` clears it.
    """

    card: str = ""

    def save(
        self,
        folder: str | os.PathLike,
        *,
        overwrite: bool = False,
        optimizer: torch.optim.Optimizer | None = None,
        dtype: torch.dtype = torch.float32,
        safetensors: bool = False,
    ) -> None:
        """Save a checkpoint folder, which the published code can load as well.

        Section `stellarperceptron` of `config.json` names the version and commit of this package,
        the survey that the model was trained on, and the units of its labels.

        Parameters
        ----------
        folder
            Folder of the checkpoint; missing parent folders are created.
        overwrite
            Replace an existing checkpoint. If saving fails, the old one stays.
        optimizer
            Optimizer whose state is saved with the weights.
        dtype
            Type of the weights in the file; torch.float16 halves its size.
        safetensors
            Write the weights to `weights.safetensors` as well, a format without code that other
            programs read. `load` takes it where there is no `weights.pt`.

        Raises
        ------
        ModuleNotFoundError
            safetensors is not installed.
        FileExistsError
            The folder exists and `overwrite` is False.
        """
        write_checkpoint(
            folder,
            self.torch_model,
            self.get_config(),
            self.embed_map,
            optimizer=optimizer,
            epoch=self.epoch,
            overwrite=overwrite,
            reference=self._reference_arrays(dtype) or None,
            dtype=dtype,
            card=self.card,
            safetensors=safetensors,
        )

    def _reference_arrays(self, dtype: torch.dtype) -> dict[str, np.ndarray]:
        """Arrays of all references, with the name of a part of the instrument before theirs.

        Those of the regression, if there is one, have "regression" before theirs.
        """
        arrays: dict[str, np.ndarray] = {}
        for name, reference in self.references.items():
            before = "" if name == self._instrument_name else f"{name}/"
            arrays |= {before + key: array for key, array in reference.to_arrays().items()}
        if self.regression is not None:
            own = self.regression.to_arrays(half=dtype == torch.float16)
            arrays |= {f"{_REGRESSION}/{key}": array for key, array in own.items()}
        return arrays

    def _read_references(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set the references and the regression from such arrays."""
        by_name: dict[str, dict[str, np.ndarray]] = {}
        for key, array in arrays.items():
            before, _, name = key.rpartition("/")
            by_name.setdefault(before or self._instrument_name, {})[name] = array
        if _REGRESSION in by_name:
            own = by_name.pop(_REGRESSION)
            self.regression = AveragedRegression.from_arrays(own, self.vocab_size)
        self.references = {
            name: Reference.from_arrays(part, self.vocab_size) for name, part in by_name.items()
        }

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        embed_map: np.ndarray | None = None,
        *,
        device: str | torch.device = "auto",
        nan_policy: str = "mask",
        seed: int | None = None,
    ) -> Self:
        """Make a model with fresh weights from the sections of a `config.json`.

        Parameters
        ----------
        config
            Result of `get_config`, or that of the published code or of Leung & Bovy (2023).
        embed_map
            (V + 1,) integers. None: each token has its own row.
        device, nan_policy, seed
            See the class.
        """
        known = {field.name for field in fields(ModelConfig)}
        entries = config["nn_config"] | config.get("stellarperceptron", {})
        instrument = entries.pop("instrument", None)
        trained_on = entries.pop("trained_on", {})
        drawn = entries.pop("drawn", None)
        for name in ("units", "written_by"):  # for whoever reads the file
            entries.pop(name, None)
        calibration = Calibration(entries.pop("calibration", None))
        unknown = [k for k in entries if k not in known and not k.startswith("backend_")]
        if unknown:
            warnings.warn(f"entries of nn_config that are not understood: {unknown}", stacklevel=2)
        entries = {k: v for k, v in entries.items() if k in known}
        model = cls(
            config["tokenizer_config"]["vocabs"],
            embed_map=embed_map,
            device=device,
            nan_policy=nan_policy,
            seed=seed,
            instrument=None if instrument is None else Instrument.from_dict(instrument),
            **entries,
        )
        model.standardizer = Standardizer.from_config(config["norm_config"], model.vocab_size + 1)
        model.calibration = calibration
        model.trained_on = dict(trained_on)
        model.drawn = None if drawn is None else DrawnInstruments.from_dict(drawn)
        return model

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        *,
        device: str | torch.device = "auto",
        nan_policy: str = "mask",
    ) -> Self:
        """Load a checkpoint of this package, of the published code, or of Leung & Bovy (2023).

        Parameters
        ----------
        folder
            Folder with `config.json`, `weights.pt` (or `weights.safetensors`) and, unless every
            token has its own row, `embed_map.npz`. Nothing in these files is executed.
        device, nan_policy
            See the class.

        Raises
        ------
        FileNotFoundError
            The folder is not a checkpoint.
        ValueError
            A file is damaged or holds more than tensors, or the files do not fit together; the
            message names them.
        """
        checkpoint = read_checkpoint(folder)
        if "embedding_layer.pixel_projection.weight" in checkpoint.weights:
            raise ValueError(
                f"checkpoint {folder} has tokens of several pixels that share one linear map; "
                "since version 0.2.0 each pixel has an embedding of its own: train the model again"
            )
        try:
            model = cls.from_config(
                checkpoint.config, checkpoint.embed_map, device=device, nan_policy=nan_policy
            )
            model._read_references(checkpoint.reference or {})
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"checkpoint {folder}: {error}") from error
        load_weights(model.torch_model, checkpoint.weights, f"weights of {folder}")
        model.epoch = checkpoint.epoch
        model.card = checkpoint.card
        return model

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        address: str | None = None,
        device: str | torch.device = "auto",
        nan_policy: str = "mask",
    ) -> Self:
        """Load a trained model by its name; "laptop" comes with the package.

        Parameters
        ----------
        name
            See `stellarperceptron.network.pretrained.find_pretrained`.
        address
            Where checkpoints that do not come with the package are published (https://...). None:
            that of the environment variable STELLARPERCEPTRON_CHECKPOINTS.
        device, nan_policy
            See the class.

        Raises
        ------
        ValueError
            The name is unknown; the message lists the known ones. Or a file is damaged.
        ModuleNotFoundError
            The model must be downloaded, and pooch is not installed.
        OSError
            It cannot be downloaded.

        Examples
        --------
        >>> from stellarperceptron import StellarPerceptron
        >>> model = StellarPerceptron.from_pretrained("laptop", device="cpu")
        >>> list(model.labels)
        ['TEFF', 'LOGG', 'O_FE', 'MG_FE', 'FE_H']
        """
        return cls.load(find_pretrained(name, address), device=device, nan_policy=nan_policy)

    @classmethod
    def load_for_finetuning(
        cls,
        folder: str | os.PathLike,
        new_names: Sequence[str] | str = (),
        embed_map: Mapping[str, str] | None = None,
        *,
        device: str | torch.device = "auto",
        nan_policy: str = "mask",
        seed: int | None = None,
    ) -> Self:
        """Load a checkpoint and append new tokens to its vocabulary.

        Old tokens keep their embedding rows and their standardization. New tokens get rows with
        random weights, and a standardization when the model is fitted. The regression of the
        checkpoint, if it has one, is left out: its shares hold beside the old weights only.

        Parameters
        ----------
        folder
            See `load`.
        new_names
            Names of new pixels or labels.
        embed_map
            Names that use the embedding row of another name, such as new pixels that share the row
            of the old ones.
        device, nan_policy, seed
            See the class; `seed` is for the new rows.

        Raises
        ------
        FileNotFoundError, ValueError
            See `load`; a new name is in the vocabulary already.
        """
        new_names = [new_names] if isinstance(new_names, str) else new_names
        old = cls.load(folder, device="cpu", nan_policy=nan_policy)
        grown = cls(
            [*old.vocabs, *new_names],
            device=device,
            nan_policy=nan_policy,
            seed=seed,
            instrument=old.instrument,
            **vars(old.config),
        )
        rows = old.vocab_size + 1
        grown.embed_map[:rows] = old.embed_map
        grown.set_embed_map(embed_map or {})
        grown.standardizer.copy_from(old.standardizer)
        weights = old.torch_model.state_dict()
        fresh = grown.torch_model.state_dict()
        for name in ("embedding_layer.embeddings", "embedding_layer.bias"):
            weights[name] = torch.cat([weights[name], fresh[name][rows:].cpu()])
        load_weights(grown.torch_model, weights, f"weights of {folder}")
        grown.calibration = Calibration(old.calibration.to_dict())
        grown.references = dict(old.references)
        grown.trained_on, grown.drawn = old.trained_on, old.drawn
        grown.epoch = old.epoch
        return grown
