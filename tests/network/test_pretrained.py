"""Trained models by name: shipped, downloaded, refused."""

import builtins
import tomllib
import zlib

import numpy as np
import pytest
from chain import ROOT
from conftest import make_model
from file_server import served

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.mock.survey import MockSurvey
from stellarperceptron.network.pretrained import (
    ADDRESS_VARIABLE,
    REGISTRY,
    SHIPPED,
    find_pretrained,
    shipped_names,
)
from stellarperceptron.utils.data_utils import user_cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and no address in the environment."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    return user_cache()


@pytest.fixture
def published(tmp_path, model):
    """A folder with one checkpoint and its checksums."""
    pooch = pytest.importorskip("pooch")
    folder = tmp_path / "published"
    model.card = "# Model card: tiny\n"
    model.save(folder / "tiny")
    pooch.make_registry(str(folder), str(tmp_path / REGISTRY))
    (tmp_path / REGISTRY).rename(folder / REGISTRY)
    return folder


# --- with the package -----------------------------------------------------------------------------


@pytest.mark.slow
def test_shipped_model_knows_the_stars_of_a_new_survey():
    model = StellarPerceptron.from_pretrained("laptop", device="cpu")
    stars = MockSurvey(seed=77).block("test", 0, 100)
    half = model.instrument.pixel_range("first_half")
    flux, wavelength = stars["observed"][:, half], model.instrument.wavelength[half]
    predicted = model.predict(flux, wavelength, ["Teff", "[Fe/H]"], progress=False)
    teff, fe_h = stars["true_labels"][:, 0], stars["true_labels"][:, 4]
    assert np.median(np.abs(predicted["TEFF"] - teff)) < 25
    assert np.median(np.abs(predicted["FE_H"] - fe_h)) < 0.03


def test_shipped_model_has_a_card_of_all_its_labels():
    model = StellarPerceptron.from_pretrained("laptop", device="cpu")
    for label in model.labels.values():
        assert f"| {label.heading} |" in model.card
    for part in ("## Training data", "## What it must not be used for"):
        assert part in model.card


def test_wheel_has_the_shipped_model_and_stays_small():
    with open(ROOT / "pyproject.toml", "rb") as file:
        patterns = tomllib.load(file)["tool"]["setuptools"]["package-data"]["stellarperceptron"]
    files = [path for pattern in patterns for path in SHIPPED.parent.glob(pattern)]
    shipped = [path for path in files if SHIPPED in path.parents]
    assert {"config.json", "weights.pt", "embed_map.npz", "card.md"} <= {p.name for p in shipped}
    assert sum(len(zlib.compress(path.read_bytes())) for path in shipped) < 3e6


# --- cards ----------------------------------------------------------------------------------------


def test_cards_are_saved_with_the_model(model, tmp_path):
    assert model.card == ""
    model.card = "# Model card: [α/Fe]\n"
    model.save(tmp_path / "with")
    loaded = StellarPerceptron.load(tmp_path / "with", device="cpu")
    assert loaded.card == model.card
    loaded.save(tmp_path / "with", overwrite=True)  # the card is no foreign file
    assert StellarPerceptron.load(tmp_path / "with", device="cpu").card == model.card


def test_training_clears_the_card(model, spectra, wavelengths):
    model.card = "# Model card\n"
    labels = np.linspace(1, 3, len(spectra))[:, None]
    model.fit(
        np.hstack([spectra, labels]),
        [*model.vocabs[:40], "TEFF"],
        ["TEFF"],
        inputs_wavelength=np.append(wavelengths, 0),
        epochs=1,
        batch_size=2,
        progress=False,
    )
    assert model.card == ""


# --- from elsewhere -------------------------------------------------------------------------------


def test_published_models_are_downloaded_once(published, model, spectra, wavelengths, monkeypatch):
    with served(published) as address:
        monkeypatch.setenv(ADDRESS_VARIABLE, address + "/")
        loaded = StellarPerceptron.from_pretrained("tiny", device="cpu")
    again = StellarPerceptron.from_pretrained("tiny", device="cpu")  # the server is gone
    pixels = model.vocabs[:40]
    for other in (loaded, again):
        assert other.card == model.card
        np.testing.assert_array_equal(
            other.predict(spectra, wavelengths, ["TEFF"], names=pixels, progress=False),
            model.predict(spectra, wavelengths, ["TEFF"], names=pixels, progress=False),
        )


def test_unknown_names_list_those_there_are(published):
    with pytest.raises(ValueError, match=f"comes with {', '.join(shipped_names())}"):
        find_pretrained("lapto")
    with (
        served(published) as address,
        pytest.raises(ValueError, match=r"nearest known: laptop.*has tiny"),
    ):
        find_pretrained("lapto", address)


@pytest.mark.parametrize("name", ["../tiny", "tiny/../tiny", "", "/"])
def test_names_lead_nowhere_else(published, cache, name):
    with served(published) as address, pytest.raises(ValueError, match="no pretrained model"):
        find_pretrained(name, address)
    assert not list(cache.rglob("*.json"))


def test_other_checksums_are_refused_and_nothing_stays(published, cache):
    other = make_model(seed=2)
    other.card = "# Another\n"
    other.save(published / "tiny", overwrite=True)
    with (
        served(published) as address,
        pytest.raises(ValueError, match=r"tiny/\w+\.\w+ is not what registry\.txt says"),
    ):
        find_pretrained("tiny", address)
    assert not [path for path in cache.rglob("*") if path.suffix in (".json", ".pt", ".npz")]


@pytest.mark.parametrize("text", ["<html>a portal</html>", "", "../../evil/config.json 0123"])
def test_nonsense_of_a_server_is_named(published, text):
    (published / REGISTRY).write_text(text)
    with served(published) as address, pytest.raises(ValueError, match=rf"{address}/registry\.txt"):
        find_pretrained("tiny", address)


def test_servers_that_are_away_are_named(published):
    with served(published) as address:
        (published / REGISTRY).unlink()
        with pytest.raises(OSError, match=rf"{address}/registry\.txt cannot be read"):
            find_pretrained("tiny", address)
    with pytest.raises(OSError, match=rf"{address}/registry\.txt cannot be read"):
        find_pretrained("tiny", address)


def test_without_pooch_it_is_said_how_to_get_it(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest):
        if name == "pooch":
            raise ModuleNotFoundError("no pooch")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ModuleNotFoundError, match=r"stellarperceptron\[download\]"):
        find_pretrained("tiny", "http://127.0.0.1:1")


def test_the_checkpoint_is_found_at_its_old_place_too():
    link = ROOT / "results" / "checkpoints" / "laptop"
    if link.is_file():
        pytest.skip("git made no symbolic links here")
    assert link.samefile(ROOT / "model_core" / "stellarperceptron" / "checkpoints" / "laptop")
