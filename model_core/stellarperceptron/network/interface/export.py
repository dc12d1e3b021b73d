"""A model as an ONNX file, which other programs and languages run without this package."""

import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from stellarperceptron.layers import StellarPerceptronTorchModel
from stellarperceptron.model_core import Calibration
from stellarperceptron.network.patches import Patch
from stellarperceptron.utils.data_utils import atomic_output

__all__ = ["FluxToLabels", "write_onnx"]


class FluxToLabels(nn.Module):
    """From fluxes to labels and their standard deviations, both in their units, as one network.

    Parameters
    ----------
    network
        The network.
    patches
        Parts of the pixels; their answers are averaged, as `predict_patches` does.
    statistics
        Center, scale and largest deviation (n,) of the pixels; see `Standardizer.statistics`.
    label_statistics
        Center and scale (Q,) of the labels.
    request_ids
        (Q,) tokens of the labels.
    calibration
        (Q, 2) coefficients of the labels' calibration.
    """

    def __init__(
        self,
        network: StellarPerceptronTorchModel,
        patches: Sequence[Patch],
        statistics: Sequence[Tensor],
        label_statistics: Sequence[Tensor],
        request_ids: Tensor,
        calibration: Tensor,
    ):
        super().__init__()
        self.network, self.patches = network, list(patches)
        self.center, self.scale, self.limit = statistics
        self.label_center, self.label_scale = label_statistics
        self.request_ids, self.calibration = request_ids, calibration

    def forward(self, flux: Tensor) -> tuple[Tensor, Tensor]:
        """Labels and standard deviations (N, Q) of stars with these fluxes (N, n), NaN for bad."""
        z = (flux - self.center) / self.scale
        z = torch.where(z.abs() <= self.limit, z, math.nan)
        pixels = (~z.isnan()).sum(dim=1, keepdim=True)
        z = torch.cat([z, torch.full_like(z[:, :1], math.nan)], dim=1)  # index -1: no pixel
        value = error = weight = torch.zeros((), dtype=flux.dtype)
        for patch in self.patches:
            tokens = patch.tokens(z)
            seen = tokens.present().any(dim=1, keepdim=True).to(flux.dtype)
            answer, logvar = self.network(tokens, self.request_ids)
            value, weight = value + seen * answer, weight + seen
            error = error + seen * (0.5 * logvar).exp()
        value, error = value / weight, error / weight  # NaN for stars without any valid pixel
        logarithm = torch.log(pixels.clamp(min=1).to(flux.dtype) / Calibration.PIXELS)
        factor = torch.exp(self.calibration[:, 0] + self.calibration[:, 1] * logarithm)
        return (
            value * self.label_scale + self.label_center,
            error * self.label_scale * factor,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def write_onnx(model: FluxToLabels, path: str | os.PathLike, pixels: int, about: dict) -> None:
    """Write a network as an ONNX file: `flux` (stars, pixels) -> `labels`, `errors` (stars, Q).

    Parameters
    ----------
    model
        The network, on the CPU.
    path
        File to write.
    pixels
        Number of pixels of a spectrum.
    about
        Texts that the file carries as its metadata.

    Raises
    ------
    ModuleNotFoundError
        onnx or onnxscript is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  torch.onnx needs it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error.name} is needed to write ONNX files: pip install 'stellarperceptron[onnx]'"
        ) from error
    flux = torch.from_numpy(np.random.default_rng(0).normal(1, 0.05, (2, pixels))).float()
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            model.eval(),
            (flux,),
            input_names=["flux"],
            output_names=["labels", "errors"],
            dynamic_shapes={"flux": {0: torch.export.Dim("stars")}},
            dynamo=True,
            verbose=False,
        )
    proto = program.model_proto
    for name, text in about.items():
        proto.metadata_props.add(key=name, value=text)
    with atomic_output(path) as temporary:
        onnx.save(proto, temporary)
