"""From an archive served on localhost to a survey file: 2,000 rows, everything that goes wrong."""

import csv
import importlib.util
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from chain import ROOT
from dr17_files import CUT_FATES, FILE_FATES, LABELS, write_archive
from dr17_server import serve
from sklearn.model_selection import train_test_split

from stellarperceptron.data.apogee import archive as archive_parts
from stellarperceptron.data.apogee.dr17 import CATALOGUE
from stellarperceptron.data.apogee.grid import VALID_PIXELS
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.utils.locks import FileLock

pytestmark = pytest.mark.slow

FOLDER = ROOT / "dataset"
REASONS = {
    "missing": "the file is missing",
    "zero": "the spectrum is all zero",
    "NaN": "no pixel of HDU 1 has a flux within 0.05 and 1.2",
    "truncated": "the file is truncated",
    "no FITS": "the file is missing",  # the downloader refuses it
    "empty": "the file is missing",
    "wrong length": "the file has the wrong length: (8000,) in HDU 1, not 8575",
    "no label": "the star has no label",
}


def load_script(name):
    specification = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return load_script("create_dataset")


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """The archive, downloaded from localhost; files that cannot be had are copied as they are."""
    root, sas = (tmp_path_factory.mktemp(name) for name in ("server", "sas"))
    made = write_archive(root)
    quick = ["--rate", "1e6", "--wait", "0.001", "--attempts", "2"]
    with serve(root) as server, pytest.raises(SystemExit) as ended:
        load_script("download_dr17").main(
            ["--local-sas", str(sas), "--base-url", server.url, *quick]
        )
    assert ended.value.code == 1
    made.root, made.sas = root, sas
    with open(sas / "missing.csv", newline="") as file:
        made.missing = list(csv.DictReader(file))
    for i, fate in enumerate(made.fate):  # damage that befalls files after the download
        if fate == "truncated":
            shutil.copy(root / made.paths[i], sas / made.paths[i])
    shutil.rmtree(root)
    return made


@pytest.fixture(scope="module")
def survey(script, archive, tmp_path_factory):
    """The survey file with error spectra, made in one go."""
    path = tmp_path_factory.mktemp("survey") / "dr17.h5"
    script.main(["--local-sas", str(archive.sas), "--output", str(path), "--errors"])
    return path


def expected_rows(archive):
    """Rows of the catalogue that are split, and whether each has a spectrum and a label."""
    fate = np.array(archive.fate)
    names, snr = np.array(archive.rows["APOGEE_ID"]), archive.rows["SNR"]
    candidates = np.flatnonzero(~np.isin(fate, (*CUT_FATES, "zero")))
    best = {}
    for i in candidates:
        if names[i] not in best or snr[i] > snr[best[names[i]]]:
            best[names[i]] = i
    rows = np.array(sorted(best.values()))
    return rows, np.isin(fate[rows], ("good", "duplicate"))


def cut_counts(archive):
    """Rows left after each cut, counted from what was written."""
    rows = archive.rows
    left = rows["ASPCAPFLAG"] & (1 << 23) == 0
    counts = [int(left.sum())]
    for further in (rows["STARFLAG"] == 0, rows["SNR"] > 200, rows["VSCATTER"] < 1):
        left = left & further
        counts.append(int(left.sum()))
    zero = np.array(archive.fate) == "zero"
    return [*counts, int((left & ~zero).sum()), len(expected_rows(archive)[0])]


def test_counts_after_every_cut_are_exact(archive, survey):
    with SpectraDataset.open(survey) as data:
        cuts = data.provenance["cuts"]
    assert [left for *_, left in cuts] == cut_counts(archive)
    removed = -np.diff([2000, *cut_counts(archive)])
    assert [cut[1] for cut in cuts] == removed.tolist()
    assert (removed > 0).all()


def test_split_is_that_of_scikit_learn(archive, survey):
    rows, sound = expected_rows(archive)
    names = np.array(archive.rows["APOGEE_ID"])
    parts = train_test_split(np.arange(len(rows)), test_size=0.2, random_state=42)
    with SpectraDataset.open(survey) as data:
        for split, order in zip((data.train, data.test), parts, strict=True):
            assert split.ids.tolist() == names[rows[order][sound[order]]].tolist()


def test_values_are_exactly_those_of_the_files(archive, survey):
    names = {}
    rows, sound = expected_rows(archive)
    for i in rows[sound]:
        names[archive.rows["APOGEE_ID"][i]] = i
    with SpectraDataset.open(survey) as data:
        for split in (data.train, data.test):
            order = [names[name] for name in split.ids.tolist()]
            spectra = np.stack([archive.spectra[i] for i in order])[:, :, VALID_PIXELS]
            np.testing.assert_array_equal(split.read("observed_errors"), spectra[:, 1])
            for kind, number in (("observed", 0), ("synthetic", 2)):
                flux = spectra[:, number]
                flux[(flux < 0.05) | (flux > 1.2)] = np.nan
                np.testing.assert_array_equal(split.read(kind), flux)
            labels = np.stack([archive.rows[name][order] for name in LABELS], axis=1)
            errors = np.stack([archive.rows[f"{name}_ERR"][order] for name in LABELS], axis=1)
            np.testing.assert_array_equal(split.labels, labels)
            np.testing.assert_array_equal(split.label_errors, errors)


def test_every_bad_file_is_listed_with_its_reason(archive, survey):
    with open(survey.parent / "rejected.csv", newline="") as file:
        listed = {int(row["catalogue_row"]): row for row in csv.DictReader(file)}
    expected = {i for i, fate in enumerate(archive.fate) if fate in FILE_FATES}
    unlabelled = {i for i, fate in enumerate(archive.fate) if fate == "no label"}
    assert set(listed) == expected | unlabelled
    for i, row in listed.items():
        assert row["reason"].startswith(REASONS[archive.fate[i]])
        assert row["file"] == archive.paths[i]
        assert row["apogee_id"] == archive.rows["APOGEE_ID"][i]


def test_download_names_what_is_missing(archive):
    reasons = {row["file"]: (row["absent"], row["reason"]) for row in archive.missing}
    expected = {"missing": ("yes", "(404)"), "empty": ("no", "what came is empty")}
    expected |= {"truncated": ("no", "truncated"), "no FITS": ("no", "what came is no FITS file")}
    bad = {archive.paths[i]: fate for i, fate in enumerate(archive.fate) if fate in expected}
    assert set(reasons) == set(bad)
    for path, fate in bad.items():
        absent, reason = expected[fate]
        assert reasons[path][0] == absent
        assert reason in reasons[path][1]


def test_no_row_of_zeros_and_no_star_twice(survey):
    with SpectraDataset.open(survey) as data:
        ids = [*data.train.ids.tolist(), *data.test.ids.tolist()]
        assert len(ids) == len(set(ids))
        for kind in ("observed", "synthetic", "observed_errors"):
            assert np.nan_to_num(data.train.read(kind)).any(axis=1).all()


def test_flags_of_rows_without_a_spectrum(archive, survey):
    flags = np.load(survey.parent / "spectra_all_zeroes_flag.npy", allow_pickle=False)
    assert flags.dtype == bool
    assert flags.tolist() == [fate in FILE_FATES for fate in archive.fate]


def test_absent_files_are_cut_before_the_split(script, archive, tmp_path):
    options = ["--local-sas", str(archive.sas), "--output", str(tmp_path / "a.h5")]
    script.main([*options, "--absent", str(archive.sas / "missing.csv")])
    with SpectraDataset.open(tmp_path / "a.h5") as data:
        cuts = {name: removed for name, removed, _ in data.provenance["cuts"]}
    # 404 of the server: the archive does not have them; the others it has, but not sound.
    n_absent = archive.fate.count("missing")
    assert cuts["spectrum not all zero"] == archive.fate.count("zero") + n_absent


def test_tasks_of_an_array_make_the_same_file(script, archive, survey, tmp_path, monkeypatch):
    monkeypatch.setattr(archive_parts, "PART_STARS", 200)
    options = ["--local-sas", str(archive.sas), "--output", str(tmp_path / "b.h5"), "--errors"]
    for index in (2, 0):
        script.main([*options, "--array-index", str(index), "--array-count", "3"])
    with pytest.raises(SystemExit, match=r"3 of 9 parts are missing .*\(1, 4, 7\)"):
        script.main([*options, "--merge"])
    script.main([*options, "--array-index", "1", "--array-count", "3"])
    script.main([*options, "--merge"])
    assert not list(tmp_path.glob("*.parts"))
    with h5py.File(survey) as one, h5py.File(tmp_path / "b.h5") as other:
        for split in ("train", "test"):
            for name, values in one[split].items():
                np.testing.assert_array_equal(values[:], other[split][name][:])
    beside = [path.parent / "rejected.csv" for path in (survey, tmp_path / "b.h5")]
    assert beside[0].read_text() == beside[1].read_text()


def test_interrupted_run_goes_on_where_it_was(script, archive, survey, tmp_path, monkeypatch):
    monkeypatch.setattr(archive_parts, "PART_STARS", 400)
    options = ["--local-sas", str(archive.sas), "--output", str(tmp_path / "c.h5"), "--errors"]
    read = []

    def reading(path, n_before_interruption=1100, really=archive_parts.read_star):
        read.append(path)
        if len(read) == n_before_interruption:
            raise KeyboardInterrupt
        return really(path)

    with monkeypatch.context() as patch:
        patch.setattr(archive_parts, "read_star", reading)
        with pytest.raises(KeyboardInterrupt):
            script.main(options)
        made = sorted(path.name for path in tmp_path.glob("c.h5.parts/*"))
        assert made
        assert not (tmp_path / "c.h5").exists()
        read.clear()
        patch.setattr(archive_parts, "read_star", lambda path: reading(path, -1))
        script.main(options)
    n_candidates = sum(fate not in CUT_FATES for fate in archive.fate)
    assert len(read) == n_candidates - 400 * len(made)
    with SpectraDataset.open(survey) as one, SpectraDataset.open(tmp_path / "c.h5") as other:
        assert one.train.ids.tolist() == other.train.ids.tolist()
        np.testing.assert_array_equal(one.test.read("observed"), other.test.read("observed"))


# --- bad input, on a handful of stars -------------------------------------------------------------


@pytest.fixture
def few(tmp_path):
    """An archive of 60 rows without files, and the arguments of a run on it."""
    made = write_archive(tmp_path / "sas", 60, seed=1)
    made.root = tmp_path / "sas"
    made.options = ["--local-sas", str(made.root), "--output", str(tmp_path / "out" / "d.h5")]
    return made


def test_of_two_runs_on_one_output_the_second_says_so(script, few):
    """Tasks of an array share the parts; one that merges has them alone."""
    lock = few.root.parent / "out" / ".d.h5.parts.lock"
    lock.parent.mkdir()
    task = [*few.options, "--array-index", "0", "--array-count", "1"]
    with FileLock(lock, "d.h5"):
        for options in (few.options, [*few.options, "--merge"], task):
            with pytest.raises(SystemExit, match=r"d\.h5, which is being made, is in use by proc"):
                script.main(options)
    with FileLock(lock, "d.h5", shared=True):
        with pytest.raises(SystemExit, match="is in use by"):
            script.main(few.options)
        script.main(task)
    assert (lock.parent / "d.h5.parts" / "part_00000.h5").is_file()


def test_bad_file_that_was_replaced_is_read_again(script, few):
    script.main([*few.options, "--array-index", "0", "--array-count", "1"])
    bad, good = few.fate.index("truncated"), few.fate.index("good")
    shutil.copy(few.root / few.paths[good], few.root / few.paths[bad])
    script.main(few.options)
    rejected = Path(few.options[3]).with_name("rejected.csv").read_text()
    assert few.paths[bad] not in rejected
    assert few.paths[few.fate.index("wrong length")] in rejected


def test_parts_of_another_run_are_refused(script, few):
    script.main([*few.options, "--array-index", "0", "--array-count", "1"])
    with pytest.raises(SystemExit, match="belongs to another catalogue, --limit or --errors"):
        script.main([*few.options, "--errors"])
    with pytest.raises(SystemExit, match="belongs to another catalogue"):
        script.main([*few.options, "--merge", "--limit", "20"])


def test_damaged_part_is_named(script, few):
    script.main([*few.options, "--array-index", "0", "--array-count", "1"])
    part = Path(few.options[3] + ".parts") / "part_00000.h5"
    part.write_bytes(part.read_bytes()[:5000])
    with pytest.raises(SystemExit, match=r"part_00000\.h5 is damaged .* remove it"):
        script.main([*few.options, "--merge"])


def test_part_with_damaged_spectra_is_named(script, few):
    script.main([*few.options, "--array-index", "0", "--array-count", "1"])
    part = Path(few.options[3] + ".parts") / "part_00000.h5"
    with h5py.File(part) as file:
        flux = file["observed"]
        chunks = [flux.id.get_chunk_info(i) for i in range(flux.id.get_num_chunks())]
    with open(part, "r+b") as file:
        for chunk in chunks:
            file.seek(chunk.byte_offset + 100)
            file.write(b"\1\2\3\4")
    with pytest.raises(SystemExit, match=r"part_00000\.h5 is damaged .* remove it"):
        script.main([*few.options, "--merge"])
    assert not Path(few.options[3]).exists()


def test_limit_takes_the_first_candidates(script, few):
    script.main([*few.options, "--limit", "30"])
    with SpectraDataset.open(few.options[3]) as data:
        name, _, left = data.provenance["cuts"][4]
        assert (name, left) == ("--limit 30", 30)
        assert len(data.train) + len(data.test) < 30


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--array-index", "0"], "belong together"),
        (["--array-index", "3", "--array-count", "3"], "number the tasks from 0"),
        (["--array-index", "0", "--array-count", "2", "--merge"], "a run of its own"),
        (["--local-sas", "/nowhere"], "must be the folder that holds dr17/"),
        (["--limit", "0"], "is not at least 1"),
        (["--output", str(FOLDER)], "is a folder"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(script, few, capsys, extra, message):
    with pytest.raises(SystemExit):
        script.main([*few.options, *extra])
    assert message in capsys.readouterr().err
    assert not Path(few.options[3]).exists()


def test_missing_folder_is_asked_for(script, capsys, monkeypatch):
    monkeypatch.delenv("SDSS_LOCAL_SAS_MIRROR", raising=False)
    with pytest.raises(SystemExit):
        script.main([])
    assert "SDSS_LOCAL_SAS_MIRROR" in capsys.readouterr().err


def test_environment_names_the_mirror(monkeypatch, few):
    monkeypatch.setenv("SDSS_LOCAL_SAS_MIRROR", str(few.root))
    load_script("create_dataset").main(few.options[2:])
    assert Path(few.options[3]).exists()


def test_environment_may_name_the_mirror_with_a_tilde(monkeypatch, few):
    monkeypatch.setenv("HOME", str(few.root.parent))
    monkeypatch.setenv("USERPROFILE", str(few.root.parent))  # Windows
    monkeypatch.setenv("SDSS_LOCAL_SAS_MIRROR", f"~/{few.root.name}")  # quoted: no shell expands it
    load_script("create_dataset").main(few.options[2:])
    assert Path(few.options[3]).exists()


def test_archive_without_any_file_is_refused(script, few):
    for path in few.root.rglob("aspcapStar*.fits"):
        path.unlink()
    with pytest.raises(SystemExit, match="none has a file"):
        script.main(few.options)


@pytest.mark.parametrize("damage", ["header cut", "rows cut", "no table", "no column", "gone"])
def test_damaged_catalogue_is_named(script, few, damage):
    path = few.root / CATALOGUE
    if damage in ("header cut", "rows cut"):
        share = 0.2 if damage == "header cut" else 0.7
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
    elif damage == "no table":
        path.write_bytes(b"<html></html>")
    elif damage == "no column":
        path.write_bytes(path.read_bytes().replace(b"'VSCATTER'", b"'SCATTERV'"))
    else:
        path.unlink()
    match = {"no column": "lacks the columns VSCATTER", "gone": "download_dr17.py"}
    damaged = "(damaged|truncated).*: remove it and fetch it anew"
    with pytest.raises(SystemExit, match=match.get(damage, damaged)) as ended:
        script.main(few.options)
    assert "allStar-dr17-synspec_rev1.fits" in str(ended.value)


def test_full_disk_is_noticed_before_anything_is_read(script, few, monkeypatch):
    usage = shutil.disk_usage(few.root)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SystemExit, match="are needed for parts and survey file"):
        script.main(few.options)
    assert not Path(few.options[3]).exists()
