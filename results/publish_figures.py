r"""Copy the figures of a run beside the scripts that draw them, each with a caption.

Figures 2 to 4 and sensitivity.png, and beside each a .md: caption, profile, date and survey.
The PDFs stay in the run's folder, to keep the repository small.

    python publish_figures.py runs/laptop --profile laptop --data runs/laptop/survey.h5
"""

import argparse
import datetime
import shutil
import sys
from pathlib import Path

from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.evaluation.summary import describe_survey
from stellarperceptron.utils.arguments import HelpFormatter, output_folder, run_script
from stellarperceptron.utils.data_utils import atomic_output

HERE = Path(__file__).resolve().parent
FIGURES = {
    "figures/Figure2.png": "real_spectra_finetune",
    "figures/Figure3.png": "fe",
    "attention/Figure4.png": "attention",
    "attention/sensitivity.png": "attention",
}


def main() -> None:
    """Arguments, figures, captions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--profile", required=True, help="its name, for the captions")
    parser.add_argument("--data", type=Path, required=True, help="the survey of the run")
    parser.add_argument(
        "--output", type=output_folder, default=HERE, help="where the scripts' folders are"
    )
    arguments = parser.parse_args()
    files = [arguments.run / name for name in FIGURES]
    files += [path.with_suffix(".md") for path in files]
    missing = [str(path.relative_to(arguments.run)) for path in files if not path.is_file()]
    if missing:
        parser.error(f"{arguments.run} lacks {', '.join(missing)}: make reproduce draws them")
    try:
        with SpectraDataset.open(arguments.data) as dataset:
            survey = describe_survey(dataset)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    for name, folder in FIGURES.items():
        source = arguments.run / name
        date = datetime.date.fromtimestamp(source.stat().st_mtime)
        target = arguments.output / folder / source.name
        with atomic_output(target) as temporary:
            shutil.copyfile(source, temporary)
        with atomic_output(target.with_suffix(".md")) as temporary:
            caption = source.with_suffix(".md").read_text(encoding="utf-8")
            origin = f"Profile {arguments.profile}, {date:%d %B %Y}. {survey}\n"
            temporary.write_text(f"{caption}\n{origin}", encoding="utf-8")
        print(target)


if __name__ == "__main__":
    run_script(main)
