"""Models as ONNX files."""

import builtins
import json

import numpy as np
import pytest
from conftest import make_model, make_spectra

from stellarperceptron.instruments import APOGEE
from stellarperceptron.model_core import Calibration


@pytest.fixture(scope="module")
def onnxruntime():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name)
    return pytest.importorskip("onnxruntime")


@pytest.mark.slow
@pytest.mark.parametrize(
    "tokens",
    [{}, {"pixels_per_token": 8}, {"pixels_per_token": 8, "conditions": True}],
    ids=["patches", "bins", "conditions"],
)
def test_exported_models_answer_alike(onnxruntime, tmp_path, tokens):
    model = make_model(**tokens)
    model.calibration = Calibration({"TEFF": (0.3, -0.4), "FE_H": (0.1, 0.2, 0.5)})
    wavelengths, spectra = APOGEE.wavelength[:40], make_spectra(7, 40).astype(np.float32)
    spectra[3, 20:] = np.nan
    spectra[4, 7] = 50.0  # too far from the training stars to count
    model.export_onnx(tmp_path / "model.onnx", ["Teff", "FE_H"], wavelengths)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for stars in (1, 7):
        labels, errors = session.run(None, {"flux": spectra[:stars]})
        expected = model.predict(spectra[:stars], wavelengths, ["TEFF", "FE_H"], progress=False)
        np.testing.assert_allclose(labels, expected[["TEFF", "FE_H"]], rtol=1e-5)
        np.testing.assert_allclose(errors, expected[["TEFF_error", "FE_H_error"]], rtol=1e-5)
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["labels"]) == ["TEFF", "FE_H"]
    assert json.loads(about["units"]) == ["K", "dex"]
    np.testing.assert_allclose(json.loads(about["wavelengths_angstrom"]), wavelengths, atol=1e-4)
    labels, _ = session.run(None, {"flux": np.full((2, 40), np.nan, np.float32)})
    assert np.isnan(labels).all()


def test_wavelengths_of_another_grid_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="not those of APOGEE"):
        model.export_onnx(tmp_path / "model.onnx", None, APOGEE.wavelength[:40] + 0.1)
    assert not list(tmp_path.iterdir())


def test_without_onnx_it_is_said_how_to_get_it(model, tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "onnx":
            raise ModuleNotFoundError("no onnx", name="onnx")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"stellarperceptron\[onnx\]"):
        model.export_onnx(tmp_path / "model.onnx", None, APOGEE.wavelength[:40])
