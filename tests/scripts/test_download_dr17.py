"""Downloading data release 17 with the script, from a server on localhost."""

import fcntl
import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import pytest
from chain import ROOT, load
from dr17_files import CUT_FATES, write_archive
from dr17_server import serve

from stellarperceptron.data.apogee.dr17 import CATALOGUE

pytestmark = pytest.mark.slow

SCRIPT = ROOT / "dataset" / "download_dr17.py"


@pytest.fixture
def few(tmp_path):
    """An archive of 60 rows, served."""
    root = tmp_path / "root"
    made = write_archive(root, 60, seed=1)
    with serve(root) as running:
        made.server = running
        made.sas = tmp_path / "sas"
        made.arguments = ["--local-sas", str(made.sas), "--base-url", running.url]
        made.arguments += ["--rate", "1e6", "--wait", "0.01", "--attempts", "2"]
        made.sound = [
            path
            for path, fate in zip(made.paths, made.fate, strict=True)
            if fate not in (*CUT_FATES, "missing", "truncated", "no FITS", "empty")
        ]
        yield made


@pytest.fixture
def run(few, capsys):
    """Run the script within this process: exit status, output, errors."""
    specification = importlib.util.spec_from_file_location("download_dr17", SCRIPT)
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)

    def run_script(*extra):
        with pytest.raises(SystemExit) as ended:
            script.main([*few.arguments, *extra])
        status = ended.value.code
        message = status if isinstance(status, str) else ""
        return int(bool(status)), capsys.readouterr().out, message

    return run_script


def test_dry_run_counts_and_fetches_nothing(few, run):
    assert "catalogue: 0.00 GB, not there yet" in run("--dry-run")[1]
    assert run("--catalogue-only")[0] == 0
    few.server.requests.clear()
    _, said, _ = run("--dry-run")
    n_files = sum(fate not in CUT_FATES for fate in few.fate)
    assert f"{n_files} files of candidates, 0 are there, {n_files} to fetch" in said
    assert {method for method, *_ in few.server.requests} == {"HEAD"}
    assert [path.name for path in few.sas.rglob("*.fits")] == [Path(CATALOGUE).name]


def test_killed_and_started_again_fetches_only_the_rest(few, run):
    """Killed while a file has come half; the files before it are complete."""
    halfway = sorted(few.sound)[20]
    few.server.faults[halfway] = ["crawl"]
    command = [sys.executable, str(SCRIPT), *few.arguments, "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    part = few.sas / f"{halfway}.part"
    while process.poll() is None and not (part.exists() and part.stat().st_size > 10_000):
        time.sleep(0.02)
    process.kill()
    process.wait()
    there = {path for path in few.paths if (few.sas / path).exists()}
    half = part.stat().st_size
    assert len(there) >= 20
    few.server.requests.clear()
    status, said, _ = run()
    asked = {path: ranges for method, path, ranges in few.server.requests if method == "GET"}
    assert not there & set(asked)
    assert CATALOGUE not in asked
    assert asked[halfway] == f"bytes={half}-"
    for path in few.sound:
        assert (few.sas / path).read_bytes() == (few.server.root / path).read_bytes()
    assert status == 1
    assert "8 files are missing" in said


def test_verify_fetches_damaged_files_anew(few, run):
    run()
    damaged, deleted = few.sound[3], few.sound[5]
    (few.sas / damaged).write_bytes((few.sas / damaged).read_bytes()[:50_000])
    (few.sas / deleted).unlink()
    run()
    assert (few.sas / damaged).stat().st_size == 50_000
    run("--verify")
    for path in (damaged, deleted):
        assert (few.sas / path).read_bytes() == (few.server.root / path).read_bytes()


def test_verify_removes_a_damaged_file_that_cannot_be_had_again(few, run):
    run()
    damaged = few.sound[3]
    (few.sas / damaged).write_bytes(b"")
    (few.server.root / damaged).unlink()
    run("--verify")
    assert not (few.sas / damaged).exists()
    assert f"{damaged},yes" in (few.sas / "missing.csv").read_text()


def test_limit(run):
    assert "5 files of candidates" in run("--limit", "5")[1]


def test_list_of_missing_files_goes_when_all_are_there(few, run):
    run()
    assert (few.sas / "missing.csv").exists()
    for path, fate in zip(few.paths, few.fate, strict=True):
        if fate not in CUT_FATES:
            (few.server.root / path).parent.mkdir(parents=True, exist_ok=True)
            (few.server.root / path).write_bytes((few.sas / few.sound[0]).read_bytes())
    assert run()[0] == 0
    assert not (few.sas / "missing.csv").exists()


def test_list_keeps_files_that_were_not_asked_for(few, run):
    run()
    listed = (few.sas / "missing.csv").read_text()
    status, said, _ = run("--limit", "2")
    assert (status, "2 files of candidates, 2 are there" in said) == (0, True)
    assert (few.sas / "missing.csv").read_text() == listed


def test_list_is_safe_in_a_spreadsheet_and_comes_back_from_one(tmp_path):
    write_missing = load("dataset/download_dr17.py").write_missing
    path = tmp_path / "missing.csv"
    write_missing(path, [("=cmd|' /C calc'!A0", False, "is no name"), ("a", True, "gone")], set())
    assert "\n'=cmd|" in path.read_text()
    path.write_text(path.read_text(), encoding="utf-8-sig")  # as Excel saves it
    write_missing(path, [("b", False, "damaged")], {"b"})
    names = [line.split(",")[0] for line in path.read_text().splitlines()]
    assert names == ["file", "'=cmd|' /C calc'!A0", "a", "b"]


def test_absent_file_stays_so_when_the_server_is_out_of_order(few, run):
    run()
    listed = (few.sas / "missing.csv").read_text()
    absent = [row.split(",")[0] for row in listed.splitlines() if ",yes," in row]
    assert absent
    few.server.faults.update({path: ["503"] * 9 for path in absent})
    assert run()[0] == 1
    assert (few.sas / "missing.csv").read_text() == listed


def test_two_runs_on_one_folder_are_refused(few, run):
    few.sas.mkdir()
    with open(few.sas / ".download.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, _, message = run()
        assert status == 1
        assert "another download is at work there" in message
        assert not few.server.requests
        assert run("--dry-run")[0] == 0
    assert run("--catalogue-only")[0] == 0


def test_server_that_is_out_of_order_is_left_alone(few, run):
    assert run("--catalogue-only")[0] == 0
    few.server.faults.update({path: ["503"] * 9 for path in few.paths})
    status, said, _ = run("--workers", "1", "--no-checksums")
    assert status == 1
    assert "not tried: 20 files in a row were given up before" in said
    tried = {path for method, path, _ in few.server.requests if method == "GET"}
    assert len(tried & set(few.paths)) <= 21


def test_wrong_address_is_said(few, run):
    status, _, message = run("--base-url", few.server.url + "/wrong")
    assert status == 1
    assert "404" in message
    assert "/wrong right?" in message


@pytest.mark.parametrize(
    "extra", [["--base-url", "ftp://x"], ["--rate", "0"], ["--limit", "-1"], ["--timeout", "inf"]]
)
def test_bad_arguments_are_refused_before_any_work(few, run, extra):
    assert run(*extra)[0]
    assert not few.server.requests
    assert not few.sas.exists()
