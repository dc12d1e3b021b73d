"""The published baseline: a plain network from fluxes to one label, trained from scratch."""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from astropy.stats import mad_std
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from stellarperceptron.network.checkpoint import (
    load_weights,
    require_finite,
    require_replaceable,
)
from stellarperceptron.network.kernels.linear import Linear
from stellarperceptron.network.tensor_files import load_tensors, save_tensors, tensor_bytes
from stellarperceptron.training.loop import run_training
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.run_folder import RunFolder
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.distributed import Process

__all__ = ["BaselineNetwork"]

# Hidden layers of Koblischke & Bovy (2024): 4,987,138 parameters from 512 pixels.
WIDTHS = (2048, 1280, 1024)


class BaselineNetwork(nn.Module):
    """512-2048-1280-1024 ReLU network with dropout, to a value and its log-variance.

    Parameters
    ----------
    pixels
        Number of fluxes.
    label
        Name of the label.
    dropout_rate
        Behind each hidden layer (published: 0.1).
    seed
        Of the initial weights and of training.
    """

    def __init__(self, pixels: int, label: str = "FE_H", dropout_rate: float = 0.1, seed: int = 0):
        super().__init__()
        self.label, self.seed, self.epoch = label, seed, 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            for inputs, outputs in zip((pixels, *WIDTHS), WIDTHS, strict=False):
                layers += [Linear(inputs, outputs), nn.ReLU(), nn.Dropout(dropout_rate)]
            self.layers = nn.Sequential(*layers, Linear(WIDTHS[-1], 2))
        # Median and spread of each pixel and of the label, from the training stars.
        self.register_buffer("flux_statistics", torch.tensor([[0.0], [1.0]]).repeat(1, pixels))
        self.register_buffer("label_statistics", torch.tensor([0.0, 1.0]))

    def forward(self, flux: Tensor) -> tuple[Tensor, Tensor]:
        """(N, P) fluxes, NaN for bad pixels -> standardized value and log-variance (N,)."""
        median, spread = self.flux_statistics
        # A bad pixel is given its median.
        value, logvar = self.layers(((flux - median) / spread).nan_to_num(nan=0.0)).unbind(dim=1)
        return value, logvar

    def fit(
        self,
        flux: np.ndarray,
        labels: np.ndarray,
        label_errors: np.ndarray,
        *,
        validation: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
        scheduler: Callable[[torch.optim.Optimizer, int], LRScheduler | None] | None = None,
        folder: RunFolder | None = None,
        resume: bool = True,
        progress: bool = True,
        **options: Any,
    ) -> pd.DataFrame:
        """Train with Adam, as published.

        Parameters
        ----------
        flux, labels, label_errors
            (N, P), (N,), (N,) of the training stars; sets the standardization.
        validation
            The same of other stars.
        scheduler
            See `training.train`.
        folder
            Where logs and checkpoints go; None: nowhere.
        resume
            Go on from the newest checkpoint in `folder`.
        progress
            Show a progress bar when the output is a terminal.
        **options
            Entries of `training.profiles.TrainingOptions`: epochs, batch_size, ...;
            a weight decay of 0 and this network's seed unless given.

        Returns
        -------
        DataFrame
            Metrics, a row an epoch, as of the other stages, and `val_rmse`: root mean square
            error of the validation stars, in the label's unit.

        Raises
        ------
        TrainingError
            The loss became NaN.
        SystemExit
            With code 0, after SIGTERM or SIGUSR1 and a checkpoint.
        """
        settings = TrainingOptions(**{"weight_decay": 0.0, "seed": self.seed, **options})
        spread = mad_std(flux, axis=0, ignore_nan=True)
        statistics = np.stack([np.nanmedian(flux, axis=0), np.where(spread > 0, spread, 1.0)])
        self.flux_statistics.copy_(torch.as_tensor(statistics))
        self.label_statistics.copy_(torch.tensor([np.median(labels), mad_std(labels)]))
        if validation is None:
            validation = flux[:0], labels[:0], label_errors[:0]
        size = settings.batch_size
        task = _BaselineTask(
            self,
            _Stars(self, flux, labels, label_errors, size, settings.seed),
            _Stars(self, *validation, size * settings.val_batchsize_factor),
        )
        process = Process(0, 1, self.flux_statistics.device)
        history = pd.DataFrame(
            run_training(
                task,
                settings,
                process,
                scheduler=scheduler,
                folder=folder,
                resume=resume,
                progress=progress,
            )
        )
        self.epoch = settings.epochs
        scale = float(self.label_statistics[1])
        return history.assign(val_rmse=scale * np.sqrt(history["val_mse_loss"]))

    @torch.no_grad()
    def predict(self, flux: np.ndarray, batch_size: int = 4096) -> pd.DataFrame:
        """Predict the label of spectra (N, P): columns `<label>` and `<label>_error`."""
        self.eval()
        parts = []
        for start in range(0, len(flux), batch_size):
            part = np.asarray(flux[start : start + batch_size], dtype=np.float32)
            value, logvar = self(torch.from_numpy(part).to(self.flux_statistics.device))
            median, spread = self.label_statistics
            parts.append(torch.stack([value * spread + median, (0.5 * logvar).exp() * spread], 1))
        columns = [self.label, f"{self.label}_error"]
        answers = torch.cat(parts).double().cpu().numpy() if parts else np.empty((0, 2))
        return pd.DataFrame(answers, columns=columns)

    def save(
        self,
        folder: str | os.PathLike,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        epoch: int | None = None,
        training_state: dict[str, Any] | None = None,
    ) -> None:
        """Save a checkpoint, whole or not at all, in the place of an earlier one.

        Parameters
        ----------
        folder
            Where it belongs.
        optimizer, training_state
            With which an interrupted training goes on; None leaves them out.
        epoch
            Epochs trained; None: those of the last `fit`.
        """
        folder = Path(folder)
        require_replaceable(folder)
        weights = {
            "model_state_dict": self.state_dict(),
            "optimizer_state_dict": optimizer and optimizer.state_dict(),
            "epoch": self.epoch if epoch is None else epoch,
        }
        with atomic_output(folder, expected_bytes=tensor_bytes(weights)) as temporary:
            temporary.mkdir()
            content = {
                "network": "baseline",
                "pixels": self.flux_statistics.shape[1],
                "label": self.label,
            }
            (temporary / "config.json").write_text(json.dumps(content), encoding="utf-8")
            save_tensors(weights, temporary / "weights.pt")
            if training_state is not None:
                save_tensors(training_state, temporary / "training_state.pt")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "BaselineNetwork":
        """Load a folder that `save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            The folder is no checkpoint of a baseline network.
        """
        folder = Path(folder)
        try:
            content = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
            if content["network"] != "baseline":
                raise ValueError("it is another network's")
            pixels, label = int(content["pixels"]), str(content["label"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{folder} is no checkpoint of a baseline network: {error}") from error
        weights = load_tensors(folder / "weights.pt")
        state = weights.get("model_state_dict") if isinstance(weights, dict) else None
        if not isinstance(state, dict):
            raise ValueError(f"{folder / 'weights.pt'} holds no 'model_state_dict'")
        if pixels > sum(tensor.numel() for tensor in state.values()):
            raise ValueError(f"{folder / 'weights.pt'} has fewer weights than {pixels} pixels")
        network = cls(pixels, label)
        require_finite(weights["model_state_dict"], folder / "weights.pt")
        load_weights(network, weights["model_state_dict"], f"weights of {folder}")
        network.epoch = weights["epoch"]
        return network.eval()


@dataclass(frozen=True)
class _Batch:
    stars: Tensor
    flux: Tensor
    labels: Tensor
    label_errors: Tensor


class _Stars:
    """Batches of stars, in a new order each epoch, or always in the same without a seed."""

    def __init__(
        self,
        network: BaselineNetwork,
        flux: np.ndarray,
        labels: np.ndarray,
        label_errors: np.ndarray,
        batch_size: int,
        seed: int | None = None,
    ):
        device = network.flux_statistics.device
        median, spread = network.label_statistics
        self.rows, self.batch_size, self.seed = np.arange(len(flux)), batch_size, seed
        self.flux, labels, errors = (
            torch.as_tensor(values, dtype=torch.float32, device=device)
            for values in (flux, labels, label_errors)
        )
        self.labels = (labels - median) / spread
        self.label_errors = (errors / spread).nan_to_num(nan=0.0)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def batches(self, epoch: int = 0, start: int = 0) -> Iterator[_Batch]:
        order = self.rows
        if self.seed is not None:
            order = np.random.default_rng([self.seed, epoch]).permutation(order)
        order = torch.from_numpy(order).to(self.flux.device)
        for number in range(start, len(self)):
            stars = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield _Batch(stars, self.flux[stars], self.labels[stars], self.label_errors[stars])


class _BaselineTask:
    """The network and its stars, as the training loop sees them; see `trainer.Task`."""

    optimizer = torch.optim.Adam

    def __init__(self, network: BaselineNetwork, training: _Stars, validation: _Stars):
        self.network, self.training, self.validation = network, training, validation
        # Two operations a weight for the answer, twice as many for the gradients.
        self.flops_per_star = 6 * sum(p.numel() for p in network.parameters() if p.dim() == 2)

    def answer(self, module: nn.Module, batch: _Batch) -> tuple[Tensor, Tensor]:
        return module(batch.flux)

    def save(self, folder: Path, network, optimizer, epoch: int, training_state) -> None:
        network.save(folder, optimizer=optimizer, epoch=epoch, training_state=training_state)

    def load(self, folder: Path) -> dict[str, Any]:
        weights = load_tensors(folder / "weights.pt")
        load_weights(self.network, weights["model_state_dict"], f"weights of {folder}")
        return weights["optimizer_state_dict"]
