"""Shared fixtures: one thread, repeatable property tests, tiny models, the reference data."""

from pathlib import Path

import numpy as np
import pytest
import torch
from chain import make_survey, run_here, stage
from hypothesis import settings

from stellarperceptron import StellarPerceptron

# Two threads of small matrices lose more time waiting for each other than they gain.
torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=25)
settings.register_profile("quick", settings.get_profile("repeatable"), max_examples=5)
settings.load_profile("repeatable")  # `make test-fast` asks for the other one

SHARED = Path(__file__).resolve().parents[2] / "shared"
LABELS = ["TEFF", "LOGG", "FE_H"]

SLOW_FIXTURES = {"chain", "evaluated", "survey", "uninterrupted"}


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of the reference data; only where it is absent are the tests skipped."""
    if not SHARED.is_dir():
        pytest.skip(f"the reference data are not at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def survey(tmp_path_factory) -> Path:
    """A mock survey of 240 + 40 stars."""
    path = tmp_path_factory.mktemp("survey") / "survey.h5"
    make_survey(path, seed=3)
    return path


@pytest.fixture(scope="session")
def chain(survey, tmp_path_factory) -> Path:
    """All stages, trained on it for one epoch: folders 1, 2, 3, nn."""
    folder = tmp_path_factory.mktemp("chain")
    few = ("--set", "training.epochs=1")
    stage(1, survey, folder / "1", *few)
    stage(2, survey, folder / "2", "--checkpoint", folder / "1", *few)
    stage(3, survey, folder / "3", "--checkpoint", folder / "2", *few)
    stage("baseline", survey, folder / "nn", *few)
    return folder


@pytest.fixture(scope="session")
def evaluated(survey, chain, tmp_path_factory) -> Path:
    """A run's folder with these stages and their predictions of all test stars."""
    run = tmp_path_factory.mktemp("run")
    (run / "survey.h5").symlink_to(survey)
    stages = ("1_basemodel_synthetic", "2_realfinetune_firsthalf", "3_fefinetune_chunk", "basic_NN")
    for name, folder in zip(stages, ("1", "2", "3", "nn"), strict=True):
        (run / name).symlink_to(chain / folder)
    common = ("--data", survey, "--output", run / "evaluation")
    for path, arguments in (
        ("evaluate_1_basemodel_synthetic_epoch325", ["--checkpoint", run / stages[0]]),
        ("evaluate_2_realfinetune_firsthalf_epoch_10", ["--checkpoint", run / stages[1]]),
    ):
        assert not run_here(f"results/real_spectra_finetune/{path}.py", *common, *arguments)
    assert not run_here("results/fe/EvaluateFeFT.py", *common, *(run / name for name in stages))
    return run


def pytest_collection_modifyitems(items):
    """Mark the tests that train the stages as slow, whichever fixture trains them.

    Files with slow tests come first: the quick ones then fill up what two processes have left.
    """
    for item in items:
        if SLOW_FIXTURES & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def make_model(pixels: int = 40, labels=LABELS, seed: int = 1, **config) -> StellarPerceptron:
    """A tiny model with random weights and a standardization."""
    sizes = {
        "device": "cpu",
        "context_length": 16,
        "embedding_dim": 16,
        "encoder_head_num": 4,
        "encoder_dense_num": 32,
        "decoder_head_num": 4,
        "decoder_dense_num": 32,
    }
    pixel_names = [f"syn_apogee{i}" for i in range(pixels)]
    vocabs = [*pixel_names, *labels]
    model = StellarPerceptron(
        vocabs,
        embed_map=dict.fromkeys(pixel_names, "syn_apogee0"),
        seed=seed,
        **(sizes | config),
    )
    # Fresh weights hardly let the spectrum through; these make every input matter.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.torch_model.named_parameters():
            if "embedding" not in name:
                noise = 0.3 * torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise.to(parameter.device))
    random = np.random.default_rng(seed)
    center = np.append(np.full(pixels, 0.95), np.linspace(1, 3, len(labels)))
    model.fit_standardization(center + 0.05 * random.normal(size=(50, len(vocabs))), vocabs)
    return model


@pytest.fixture
def model() -> StellarPerceptron:
    return make_model()


def make_spectra(stars: int, pixels: int, seed: int = 0, bad: float = 0.1) -> np.ndarray:
    """(stars, pixels) fluxes near 0.95, some of them bad."""
    random = np.random.default_rng(seed)
    flux = 0.95 + 0.05 * random.normal(size=(stars, pixels))
    flux[random.random(flux.shape) < bad] = np.nan
    return flux


@pytest.fixture
def spectra() -> np.ndarray:
    return make_spectra(5, 40)


@pytest.fixture
def wavelengths() -> np.ndarray:
    return 15200.0 + 0.21 * np.arange(40)


@pytest.fixture
def small_files():
    """A limit of the size of files: it stops the writing of PyTorch as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
