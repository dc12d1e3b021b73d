"""The published baseline: a plain network from fluxes to one label, trained from scratch."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from astropy.stats import mad_std
from torch import Tensor, nn

from stellarperceptron.checkpoint import load_weights
from stellarperceptron.nn_utils import robust_mean_squared_error
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.linear import Linear

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
        self.label, self.seed = label, seed
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
        epochs: int,
        batch_size: int = 64,
        learning_rate: float = 1e-4,
        validation: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> list[float]:
        """Train with Adam, as published.

        Parameters
        ----------
        flux, labels, label_errors
            (N, P), (N,), (N,) of the training stars; sets the standardization.
        epochs, batch_size, learning_rate
            Passes over the stars, stars of a batch, Adam's learning rate.
        validation
            Fluxes and labels of other stars.

        Returns
        -------
        list of float
            Root mean square error of the validation stars after each epoch, in the label's unit.
        """
        statistics = [np.nanmedian(flux, axis=0), mad_std(flux, axis=0, ignore_nan=True)]
        statistics[1] = np.where(statistics[1] > 0, statistics[1], 1.0)
        self.flux_statistics.copy_(torch.as_tensor(np.stack(statistics)))
        self.label_statistics.copy_(torch.tensor([np.median(labels), mad_std(labels)]))
        median, spread = self.label_statistics
        device = self.flux_statistics.device
        x = torch.as_tensor(flux, dtype=torch.float32, device=device)
        y = (torch.as_tensor(labels, dtype=torch.float32, device=device) - median) / spread
        error = torch.as_tensor(label_errors, dtype=torch.float32, device=device) / spread
        error = error.nan_to_num(nan=0.0)
        optimizer = torch.optim.Adam(self.parameters(), lr=learning_rate)
        random = np.random.RandomState(self.seed)
        history = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            for _ in range(epochs):
                self.train()
                order = torch.from_numpy(random.permutation(len(x)))
                for part in order.split(batch_size):
                    value, logvar = self(x[part])
                    loss = robust_mean_squared_error(y[part], value, logvar, error[part])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                if not math.isfinite(loss.item()):
                    raise RuntimeError(f"the loss is {loss.item()}: a lower learning rate helps")
                self.eval()
                if validation is not None:
                    predicted = self.predict(validation[0])[self.label].to_numpy()
                    history.append(float(np.sqrt(np.mean((predicted - validation[1]) ** 2))))
        return history

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

    def save(self, folder: str | os.PathLike) -> None:
        """Save weights and sizes as a folder, replacing what stands there."""
        with atomic_output(folder) as temporary:
            temporary.mkdir()
            torch.save(self.state_dict(), temporary / "weights.pt")
            content = {
                "network": "baseline",
                "pixels": self.flux_statistics.shape[1],
                "label": self.label,
            }
            (temporary / "config.json").write_text(json.dumps(content), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "BaselineNetwork":
        """Load a folder that `save` wrote.

        Raises
        ------
        FileNotFoundError, ValueError
            The folder is no checkpoint of a baseline network.
        """
        folder = Path(folder)
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if content.get("network") != "baseline":
            raise ValueError(f"{folder} is no checkpoint of a baseline network")
        network = cls(content["pixels"], content["label"])
        weights = torch.load(folder / "weights.pt", map_location="cpu", weights_only=True)
        load_weights(network, weights, f"weights of {folder}")
        return network.eval()
