"""Devices without double precision (Apple's graphics, "mps"): none of it is moved there."""

import numpy as np
import pytest
import torch
from conftest import LABELS, make_spectra
from small_training import NAMES, WAVELENGTHS, make_data
from torch.overrides import TorchFunctionMode

from stellarperceptron.data.apogee.continuum import normalize
from stellarperceptron.data.standardizer import _by_sorting
from stellarperceptron.network.baselines.published import BaselineNetwork
from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.tasks import train
from stellarperceptron.utils.distributed import Process, precise

MPS = torch.device("mps")


class OnMps(torch.Tensor):
    """A tensor that plays to be on "mps"; what is computed from it is there, too."""

    @property
    def device(self):
        return MPS

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), options=None):
        if function is torch.Tensor.cpu:
            return arguments[0].as_subclass(torch.Tensor)
        result = super().__torch_function__(function, types, arguments, options or {})
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, OnMps) and tensor.dtype == torch.float64:
                raise TypeError(f"{function.__name__}: the MPS framework doesn't support float64")
        return result


class PretendedMps(TorchFunctionMode):
    """What is made for "mps" or moved there becomes an `OnMps`."""

    def __torch_function__(self, function, types, arguments=(), options=None):
        options = dict(options or {})
        cpu = torch.device("cpu")
        there = MPS in [a for a in (*arguments, options.get("device")) if a.__class__ is type(MPS)]
        if not there or function is torch.device:
            return function(*arguments, **options)
        arguments = [cpu if a.__class__ is type(MPS) else a for a in arguments]
        if "device" in options:
            options["device"] = cpu
        result = function(*arguments, **options)
        if not isinstance(result, torch.Tensor):
            return result
        if result.dtype == torch.float64:
            raise TypeError(f"{function.__name__}: the MPS framework doesn't support float64")
        return result.as_subclass(OnMps)


def test_the_stand_in_refuses_double_precision():
    with PretendedMps():
        tensor = torch.zeros(2, device=MPS)
        with pytest.raises(TypeError, match="doesn't support float64"):
            tensor.double()
        with pytest.raises(TypeError, match="doesn't support float64"):
            torch.from_numpy(np.zeros(2)).to(MPS)
        assert tensor.cpu().double().dtype == torch.float64
    assert precise(MPS) == torch.float32
    assert precise(torch.device("cpu")) == torch.float64


def test_predictions(model):
    spectra = make_spectra(3, 40)
    expected = model.predict(spectra, WAVELENGTHS, LABELS, names=NAMES)
    model.device = MPS
    with PretendedMps():
        predicted = model.predict(spectra, WAVELENGTHS, LABELS, names=NAMES)
        model.perceive(spectra[:, :16], NAMES[:16], WAVELENGTHS[:16])
        model.request(LABELS, return_attention_scores=True)
    np.testing.assert_allclose(predicted, expected, rtol=1e-5)


def test_training(model):
    with PretendedMps():
        data = make_data(device=MPS)
        options = TrainingOptions(epochs=2, batch_size=8)
        history = train(model, data, np.arange(24), np.arange(24, 30), options, Process(0, 1, MPS))
    assert np.isfinite([row["val_loss"] for row in history]).all()


def test_medians_normalization_and_the_baseline():
    values = torch.from_numpy(make_spectra(30, 40)).float()
    center, _ = _by_sorting(values)
    flux = torch.from_numpy(300 * make_spectra(2, 7514)).float()
    network = BaselineNetwork(40).eval()
    with PretendedMps():
        np.testing.assert_allclose(_by_sorting(values.to(MPS))[0], center, rtol=1e-6)
        torch.testing.assert_close(
            normalize(flux.to(MPS)).cpu(), normalize(flux), rtol=1e-3, atol=1e-3, equal_nan=True
        )
        network.flux_statistics = network.flux_statistics.to(MPS)
        assert np.isfinite(network.predict(values.numpy()[:2])).all(axis=None)
