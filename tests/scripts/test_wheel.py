"""The wheel, installed outside the repository, has all that the command needs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from apogee_files import apstar_hdus
from astropy.table import Table

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Folder with the package as its wheel installs it; other packages are those of the tests."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source, site = folder / "source", folder / "site"
    made = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "model_core", source / "model_core", ignore=made)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", site, wheel], check=True)
    return site


def test_the_command_makes_a_catalogue_in_an_empty_folder(site, tmp_path):
    apstar_hdus().writeto(tmp_path / "star.fits")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = "import stellarperceptron; print(stellarperceptron.__file__)"
    found = subprocess.check_output(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, text=True
    )
    assert Path(found.strip()).is_relative_to(site)
    command = [sys.executable, site / "bin/stellarperceptron"]
    words = ["predict", "star.fits", "-o", "labels.fits"]
    subprocess.run([*command, *words], cwd=tmp_path, env=environment, check=True)
    assert Table.read(tmp_path / "labels.fits")["TEFF"].unit == "K"


def test_the_addresses_are_in_the_metadata(site):
    (metadata,) = site.glob("stellarperceptron-*.dist-info/METADATA")
    addresses = [line for line in metadata.read_text().splitlines() if line.startswith("Project-U")]
    assert len(addresses) == 4
    assert any("https://arxiv.org/abs/2411.04750" in line for line in addresses)
