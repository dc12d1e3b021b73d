"""Compare runs in Markdown tables: several seeds of a profile, or several profiles.

First mad_std [K and dex] of stages 1 and 2 on the first half of the observed test spectra, then
RMSE of [Fe/H] [dex] from the narrow chunk: all stars, and in brackets those with [Fe/H] < -1.

    python compare_runs.py runs/laptop runs/laptop-1 runs/laptop-2 --output seeds.md
"""

import argparse
import sys
from pathlib import Path

import pandas as pd

from stellarperceptron.evaluation.predictions import metrics_of_predictions, read_predictions
from stellarperceptron.evaluation.tables import format_value, label_heading
from stellarperceptron.utils.arguments import HelpFormatter, output_file, run_script
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.document import markdown_table

STAGES = {
    "stage 1": "1_basemodel_synthetic",
    "stage 2": "2_realfinetune_firsthalf",
}
NETWORKS = {
    "from scratch": "basic_NN",
    **STAGES,
    "stage 3": "3_fefinetune_chunk",
    "from scratch, published selection": "basic_NN_published",
    "stage 3, published selection": "3_fefinetune_chunk_published",
}


def main() -> None:
    """Arguments, tables, text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders of `make reproduce RUN=...`")
    parser.add_argument(
        "--output", type=output_file, help="Markdown file; default: standard output"
    )
    arguments = parser.parse_args()
    try:
        tables = [observed_table(arguments.runs), chunk_table(arguments.runs)]
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    text = "\n".join(markdown_table(table) for table in tables)
    if arguments.output is None:
        print(text, end="")
    else:
        with atomic_output(arguments.output) as temporary:
            temporary.write_text(text, encoding="utf-8")


def metrics(run: Path, name: str) -> pd.DataFrame:
    """Metrics of one table of a run, by subset and label."""
    table = read_predictions(run / "evaluation" / f"{name}.csv", f"make reproduce RUN={run}")
    return metrics_of_predictions(table).set_index(["subset", "label"])


def observed_table(runs: list[Path]) -> pd.DataFrame:
    """The mad_std of every label, a row for each stage and run."""
    rows = []
    for stage, name in STAGES.items():
        for run in runs:
            found = metrics(run, f"{name}_on_observed").loc["all", "mad_std"]
            cells = {label_heading(k): format_value(v, k) for k, v in found.items()}
            rows.append({"first half, mad_std": f"{stage}, {run}", **cells})
    return pd.DataFrame(rows).fillna("–")


def chunk_table(runs: list[Path]) -> pd.DataFrame:
    """RMSE of [Fe/H], a row for each network that was evaluated, a column for each run."""
    rows = []
    for network, name in NETWORKS.items():
        cells = {}
        for run in runs:
            optional = name.endswith("_published")
            if optional and not (run / "evaluation" / f"{name}_fehpredictions.csv").exists():
                continue
            rmse = metrics(run, f"{name}_fehpredictions")["rmse"]
            poor = format_value(rmse.get(("[Fe/H] < -1", "FE_H"), float("nan")))
            cells[str(run)] = f"{format_value(rmse['all', 'FE_H'])} ({poor})"
        if cells:
            rows.append({"chunk, RMSE of [Fe/H] (below −1)": network, **cells})
    return pd.DataFrame(rows).fillna("–")


if __name__ == "__main__":
    run_script(main)
