"""The published files, from a local server that answers as Zenodo's API does."""

import hashlib
import importlib.util
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from chain import ROOT
from file_server import Handler, served

from stellarperceptron import StellarPerceptron
from stellarperceptron.utils.arguments import run_script
from stellarperceptron.utils.server import DownloadError

pytest.importorskip("pooch")
RECORD = "14041360"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location(
        "fetch_published", ROOT / "dataset" / "fetch_published.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Zenodo:
    """A folder that a server shows as a record: a description, and files below."""

    def __init__(self, folder: Path):
        self.folder = folder / "api" / "records"
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.folder.mkdir(parents=True)

    def describe(self, address: str) -> None:
        """Write the description, with checksums and addresses."""
        described = []
        for name, content in self.files.items():
            path = self.folder / "content" / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
            described.append(
                {
                    "id": name,
                    "key": name,
                    "size": len(content),
                    "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                    "links": {"self": f"{address}/api/records/content/{name}"},
                }
            )
        text = json.dumps({"id": int(RECORD), "title": "SpectraFM", "files": described})
        (self.folder / RECORD).write_text(text)


@pytest.fixture
def zenodo(tmp_path, model):
    """A record of an array and an archive with a checkpoint."""
    zenodo = Zenodo(tmp_path / "server")

    class Counting(Handler):
        def do_GET(self):
            zenodo.requests.append(Path(self.path).name)
            super().do_GET()

    model.save(tmp_path / "checkpoint")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tmp_path / "checkpoint").iterdir():
            file.write(path, f"model_torch/{path.name}")
    array = io.BytesIO()
    np.save(array, np.zeros((3, 5)))
    zenodo.files = {"labels_train.npy": array.getvalue(), "checkpoints.zip": archive.getvalue()}
    with served(tmp_path / "server", Counting) as address:
        zenodo.address = address
        zenodo.describe(address)
        yield zenodo


@pytest.fixture
def fetch(script, zenodo, tmp_path):
    """Run the script; the folder of the files."""

    def run(*options):
        fixed = ["--address", f"{zenodo.address}/api", "--output", str(tmp_path / "out")]
        errors = (ModuleNotFoundError, DownloadError)
        run_script(lambda: script.main([*fixed, *options]), errors=errors)
        return tmp_path / "out"

    return run


def test_files_are_listed_with_their_sizes(fetch, capsys, tmp_path):
    fetch("--list")
    assert "0.000 MB  labels_train.npy" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_arrays_and_checkpoints_come_to_where_they_are_taken(fetch, capsys, model):
    folder = fetch()
    assert np.load(folder / "labels_train.npy").shape == (3, 5)
    checkpoint = folder / "checkpoints" / "model_torch"
    assert StellarPerceptron.load(checkpoint, device="cpu").vocabs == model.vocabs
    said = capsys.readouterr().out
    assert f'StellarPerceptron.load("{checkpoint}")' in said
    assert f"import_published.py {folder} " in said


def test_complete_files_are_not_downloaded_again(fetch, zenodo):
    folder = fetch("--only", "*.npy")
    assert not (folder / "checkpoints.zip").exists()
    assert zenodo.requests == [RECORD, "labels_train.npy"]
    fetch()
    assert zenodo.requests[2:] == [RECORD, "checkpoints.zip"]


def test_damaged_files_are_downloaded_again(fetch, zenodo):
    folder = fetch()
    (folder / "labels_train.npy").write_bytes(b"cut")
    fetch()
    assert (folder / "labels_train.npy").read_bytes() == zenodo.files["labels_train.npy"]


def test_checksums_of_the_first_download_are_kept(fetch, zenodo):
    folder = fetch()
    content = zenodo.files["labels_train.npy"]
    lock = json.loads((folder / "published.lock").read_text())
    assert lock["labels_train.npy"]["sha256"] == hashlib.sha256(content).hexdigest()
    zenodo.files["labels_train.npy"] = content[:-1] + b"!"  # a new version of the record
    zenodo.describe(zenodo.address)
    with pytest.raises(SystemExit, match=r"labels_train\.npy is not what .*published\.lock says"):
        fetch()
    assert (folder / "labels_train.npy").read_bytes() == content


def test_other_bytes_than_described_are_refused(fetch, zenodo, tmp_path):
    (zenodo.folder / "content" / "labels_train.npy").write_bytes(b"other")
    with pytest.raises(SystemExit, match=r"labels_train\.npy is not what it should be"):
        fetch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == []


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ("<html>", "does not describe files"),
        ('{"files": [{"key": "a"}]}', "does not describe files"),
        ("[]", "does not describe files"),
        (
            '{"files": [{"key": "../a", "size": 1, "checksum": "md5:0", "links": {"self": ""}}]}',
            "which is refused",
        ),
    ],
)
def test_nonsense_of_the_server_is_named(fetch, zenodo, tmp_path, description, message):
    (zenodo.folder / RECORD).write_text(description)
    with pytest.raises(SystemExit, match=message):
        fetch()
    assert not (tmp_path / "out").exists()


def test_what_is_not_there_is_named(fetch, zenodo):
    with pytest.raises(SystemExit, match=r"--only \*\.h5: no such file.*labels_train\.npy"):
        fetch("--only", "*.h5")
    with pytest.raises(SystemExit, match="records/7: the archive does not have it"):
        fetch("--record", "7")


def test_damaged_archives_are_named(fetch, zenodo, tmp_path):
    zenodo.files = {"checkpoints.zip": b"no archive"}
    zenodo.describe(zenodo.address)
    with pytest.raises(SystemExit, match=r"checkpoints\.zip cannot be unpacked"):
        fetch()
    assert not (tmp_path / "out" / "checkpoints").exists()
