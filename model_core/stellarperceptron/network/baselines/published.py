"""The published baseline: a plain network from fluxes to one label, trained from scratch."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from stellarperceptron.network.checkpoint import (
    load_weights,
    read_weights,
    require_finite,
    require_replaceable,
)
from stellarperceptron.network.kernels.linear import Linear
from stellarperceptron.network.tensor_files import save_tensors, tensor_bytes
from stellarperceptron.utils.arrays import as_array, is_constant, sentinels_to_nan
from stellarperceptron.utils.data_utils import atomic_output, written_by

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
        Dropout rate after each hidden layer (published: 0.1).
    seed
        Seed of the initial weights and of training.
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
        # Median and scale of each pixel and of the label, from the training stars.
        self.register_buffer("flux_statistics", torch.tensor([[0.0], [1.0]]).repeat(1, pixels))
        self.register_buffer("label_statistics", torch.tensor([0.0, 1.0]))

    def forward(self, flux: Tensor) -> tuple[Tensor, Tensor]:
        """(N, P) fluxes, NaN for bad pixels -> standardized value and log-variance (N,)."""
        median, scale = self.flux_statistics
        # Bad pixels are replaced by their median.
        z = (flux - median) / scale
        value, logvar = self.layers(torch.where(z.isfinite(), z, 0.0)).unbind(dim=1)
        return value, logvar

    @torch.no_grad()
    def predict(self, flux: np.ndarray, batch_size: int = 4096) -> pd.DataFrame:
        """Predict the label of spectra (N, P): columns `<label>` and `<label>_error`.

        NaN for stars without any good pixel.
        """
        self.eval()
        parts = []
        for start in range(0, len(flux), batch_size):
            part = as_array(flux[start : start + batch_size], dtype=np.float32)
            part = torch.from_numpy(sentinels_to_nan(part)).to(self.flux_statistics.device)
            value, logvar = self(part)
            median, scale = self.label_statistics
            answer = torch.stack([value * scale + median, (0.5 * logvar).exp() * scale], 1)
            measured = torch.isfinite(part).any(dim=1) & ~is_constant(part)
            parts.append(answer.masked_fill(~measured[:, None], torch.nan))
        columns = [self.label, f"{self.label}_error"]
        answers = torch.cat(parts).cpu().double().numpy() if parts else np.empty((0, 2))
        return pd.DataFrame(answers, columns=columns)

    def save(
        self,
        folder: str | os.PathLike,
        *,
        optimizer: torch.optim.Optimizer | None = None,
        epoch: int | None = None,
        training_state: dict[str, Any] | None = None,
    ) -> None:
        """Save a checkpoint, replacing an earlier one; a failed save leaves nothing behind.

        Parameters
        ----------
        folder
            Folder of the checkpoint.
        optimizer, training_state
            State from which an interrupted training continues; None: not saved.
        epoch
            Number of epochs trained; None: the network's own number.
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
                "written_by": written_by(),
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
            The folder is not a checkpoint of a baseline network.
        """
        folder = Path(folder)
        try:
            content = json.loads((folder / "config.json").read_text(encoding="utf-8-sig"))
            if content["network"] != "baseline":
                raise ValueError("it is another network's")
            pixels, label = int(content["pixels"]), str(content["label"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{folder} is no checkpoint of a baseline network: {error}") from error
        weights, state = read_weights(folder / "weights.pt")
        if pixels > sum(tensor.numel() for tensor in state.values()):
            raise ValueError(f"{folder / 'weights.pt'} has fewer weights than {pixels} pixels")
        network = cls(pixels, label)
        require_finite(state, folder / "weights.pt")
        load_weights(network, state, f"weights of {folder}")
        network.epoch = int(weights.get("epoch") or 0)
        return network.eval()
