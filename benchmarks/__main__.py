"""Measure everything: seconds a star of each part, beside the published manner and the floor.

    python -m benchmarks --suite cpu --output benchmarks/results/<date>-<hardware>.json
    python -m benchmarks.table

Results are written after each benchmark, so that an interrupted run keeps what it has.
"""

import argparse
import json
import os
import time
import traceback

import torch

from benchmarks import cpu, gpu
from benchmarks.common import record
from stellarperceptron.utils.arguments import output_file

SUITES = {"cpu": cpu.suite, "gpu": gpu.suite}
TABLES = ("scaling", "options")  # benchmarks with tables of their own


def main() -> None:
    """Arguments, benchmarks, record."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--suite", choices=SUITES, required=True, help="what to measure")
    parser.add_argument(
        "--output",
        type=output_file,
        help="JSON file (default: by date and hardware, below results/)",
    )
    parser.add_argument("--only", nargs="+", help="names of benchmarks; the others are left out")
    parser.add_argument(
        "--add", action="store_true", help="keep what OUTPUT has from other benchmarks"
    )
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try everything")
    arguments = parser.parse_args()
    if arguments.suite == "gpu" and not torch.cuda.is_available() and not arguments.small:
        parser.error("there is no GPU that PyTorch can use; --suite cpu needs none")
    given = {"fastest_of": arguments.output} if arguments.suite == "gpu" else {}
    benchmarks = dict(SUITES[arguments.suite](arguments.small, **given))
    unknown = set(arguments.only or ()) - set(benchmarks)
    if unknown:
        parser.error(f"--only {' '.join(sorted(unknown))}: known are {', '.join(benchmarks)}")
    torch.set_num_threads(1)

    name = f"suite-{arguments.suite}"
    results = {"small": arguments.small, "load_before": os.getloadavg()[0]}
    results |= {"seconds": {}, "failed": {}, "rows": {}}
    if arguments.add and arguments.output is not None and arguments.output.exists():
        results |= json.loads(arguments.output.read_text(encoding="utf-8"))["results"]
    for benchmark in arguments.only or benchmarks:
        print(f"{benchmark} ...", flush=True)
        begin = time.perf_counter()
        results["failed"].pop(benchmark, None)
        try:
            found = benchmarks[benchmark]()
        except Exception as error:  # the others are still worth measuring
            traceback.print_exc()
            results["failed"][benchmark] = f"{type(error).__name__}: {error}"
            found = {}
        results["seconds"][benchmark] = time.perf_counter() - begin
        rows = {} if benchmark in TABLES else found
        results["rows"] |= rows
        results |= found if benchmark in TABLES else {}
        for what, line in rows.items():
            ratio = f", {line['ratio']:.1f} times faster" if line["ratio"] else ""
            print(
                f"  {what}: {1e3 * line['ours_s_per_star']:.3g} ms a star{ratio}, "
                f"{100 * line['share_of_floor']:.3g} % of the floor"
            )
        path = record(name, results, arguments.output, module="benchmarks")
        print(f"  {results['seconds'][benchmark]:.0f} s; recorded in {path}", flush=True)
    if results["failed"]:
        raise SystemExit(f"failed: {', '.join(results['failed'])}")


if __name__ == "__main__":
    main()
