"""A catalogue of thousands of apStar files: the command beside a loop over files, and its memory.

The loop reads and asks for one file after the other, with the functions that the command and
`results/real_stars/predict_real_stars.py` use, and draws nothing. Both are processes of their own
with one thread for the network; their seconds contain the start (importing PyTorch, loading the
checkpoint). The files are in the system's cache.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.apogee_files import apstar_hdus

from benchmarks.common import record
from stellarperceptron.utils.arguments import HelpFormatter, output_file, positive

COMMAND = "from stellarperceptron.evaluation.catalogue.command import main; main()"
LOOP = """
import sys
from pathlib import Path

import torch

from stellarperceptron import StellarPerceptron
from stellarperceptron.evaluation.catalogue.files import read_normalized
from stellarperceptron.evaluation.catalogue.table import errors_of, predict_labels
from stellarperceptron.instruments import APOGEE

torch.set_num_threads(1)
model = StellarPerceptron.from_pretrained("laptop", device="cpu")
half = APOGEE.pixel_range("first_half")
for path in Path(sys.argv[1]).read_text().split():
    spectrum, flux = read_normalized(Path(path), half)
    errors = errors_of([(spectrum, flux)])
    predict_labels(model, [flux], half, model.label_names, 8, errors)
"""


def make_files(folder: Path, number: int) -> list[Path]:
    """Write apStar files with two visits, of stars with lines of different depths."""
    hdus = apstar_hdus()
    hdus[2].data, hdus[3].data = hdus[2].data.astype("f4"), hdus[3].data.astype("i2")
    flux = hdus[1].data
    paths = [folder / f"apStar-{i:06d}.fits" for i in range(number)]
    for i, path in enumerate(paths):
        hdus[0].header["OBJID"] = f"2M{i:08d}+0000000"
        hdus[1].data = (flux ** (1 + 0.1 * i / number)).astype("f4")
        hdus.writeto(path)
    return paths


def listed(path: Path, files: list[Path]) -> Path:
    """Write the names of files, a line each."""
    path.write_text("\n".join(map(str, files)) + "\n")
    return path


def measured(files: int, *arguments: object) -> dict[str, float]:
    """Seconds by the clock and of the processor, and peak memory [GB], of a Python process."""
    begin = time.perf_counter()
    process = subprocess.Popen([sys.executable, *map(str, arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{arguments} ended with {os.waitstatus_to_exitcode(status)}")
    wall, cpu = time.perf_counter() - begin, usage.ru_utime + usage.ru_stime
    return {
        "files": files,
        "wall_s": wall,
        "cpu_s": cpu,
        "files_per_s": files / wall,
        "files_per_cpu_s": files / cpu,
        "peak_memory_gb": usage.ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6),
        "load_after": os.getloadavg()[0],
    }


def main() -> None:
    """Files, both manners, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--files", type=positive, default=2000, help="apStar files, 0.35 MB each")
    parser.add_argument("--few-files", type=positive, default=200, help="of these, for memory")
    parser.add_argument("--output", type=output_file, help="JSON file; default: below results/")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "stars").mkdir()
        paths = make_files(folder / "stars", arguments.files)
        for suffix, files in ((", few files", paths[: arguments.few_files]), ("", paths)):
            names = listed(folder / "files.txt", files)
            words = ["predict", f"@{names}", "-o", folder / "labels.fits", "--overwrite"]
            words += ["--device", "cpu", "--workers", 1]
            results["command" + suffix] = measured(len(files), "-c", COMMAND, *words)
            results["loop" + suffix] = measured(len(files), "-W", "ignore", "-c", LOOP, names)
    for manner, line in results.items():
        print(
            f"{manner}: {line['files']} files, {line['files_per_s']:.1f} a second, "
            f"{line['files_per_cpu_s']:.1f} a CPU second, {line['peak_memory_gb']:.2f} GB"
        )
    print("recorded in", record("catalogue", {**results}, arguments.output))


if __name__ == "__main__":
    main()
