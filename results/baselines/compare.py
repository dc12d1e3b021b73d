r"""Put predictions of the same stars side by side: mad_std and RMSE of every label, and CPU time.

Takes any number of tables of predictions, NAME=FILE or FILE, whose name then is the file's. CPU
seconds are read from the JSON files beside them (`train_baselines.py` writes them) or given by
--seconds. Writes OUTPUT.csv (a row for each method and label) and OUTPUT.md (the best in bold).

    python compare.py ours=runs/laptop/evaluation/2_realfinetune_firsthalf_on_observed.csv \
        runs/laptop/baselines/*.csv --seconds ours=700 --output runs/laptop/tables/baselines
"""

import argparse
import sys
from pathlib import Path

from stellarperceptron.evaluation.tables import compare_predictions, comparison_text
from stellarperceptron.utils.arguments import HelpFormatter, run_script, with_nearest
from stellarperceptron.utils.data_utils import atomic_output
from stellarperceptron.utils.document import markdown_table


def main() -> None:
    """Arguments, table, files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("predictions", nargs="+", metavar="[NAME=]FILE", help="CSV files")
    parser.add_argument(
        "--seconds",
        action="append",
        default=[],
        metavar="NAME=SECONDS",
        help="CPU seconds of training and prediction; may be given more than once",
    )
    parser.add_argument(
        "--subset", default="all", help="stars that count: all, giants or '[Fe/H] < -1'"
    )
    parser.add_argument("--output", type=Path, required=True, help="of the files, without .csv")
    arguments = parser.parse_args()
    try:
        files = named_files(arguments.predictions)
        seconds = named_seconds(arguments.seconds, list(files))
        table = compare_predictions(files, seconds, arguments.subset)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    text = markdown_table(comparison_text(table))
    stem = arguments.output
    with atomic_output(stem.with_name(f"{stem.name}.csv")) as temporary:
        table.to_csv(temporary, index=False, float_format="%.7g", lineterminator="\n")
    with atomic_output(stem.with_name(f"{stem.name}.md")) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text, end="")


def named_files(given: list[str]) -> dict[str, Path]:
    """Files by name; two of one name are refused."""
    files: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or Path(text).is_file():
            name, path = Path(text).stem.replace("_", " "), text
        if name in files:
            raise ValueError(f"two tables are called '{name}': name them, NAME=FILE")
        files[name] = Path(path)
    return files


def named_seconds(given: list[str], names: list[str]) -> dict[str, float]:
    """CPU seconds by name."""
    seconds = {}
    for text in given:
        name, _, value = text.rpartition("=")
        if name not in names:
            raise ValueError(f"--seconds {text}: no table is called {with_nearest(name, names)}")
        try:
            seconds[name] = float(value)
        except ValueError:
            raise ValueError(f"--seconds {text}: '{value}' is no number") from None
    return seconds


if __name__ == "__main__":
    run_script(main)
