"""
Make a mock APOGEE survey: synthetic and observed spectra and labels, with errors, in one file.

Two emulators in the package make the spectra: "nominal", with a line list from the literature,
makes the synthetic ones, and "nature", with a line list calibrated to the survey, makes the
observed ones (dataset/mock_survey/README.md). The file gets its final name when it is complete. A
seed gives the same stars whatever their number, and with the same arguments the same bytes.

    python dataset/create_mock_survey.py --stars 102747 --test-stars 25681 --output runs/mock.h5

The catalogue holds the five labels of the published models, or those that --labels names, in that
order. Labels and observed spectra of a star do not depend on what else the catalogue holds.

    python dataset/create_mock_survey.py --labels TEFF LOGG FE_H C_FE --output runs/carbon.h5
"""

import argparse
from pathlib import Path

from stellarperceptron.data.survey_file import FORMAT_VERSION
from stellarperceptron.evaluation.catalogue.surveys import make_survey, survey_arguments
from stellarperceptron.utils.arguments import HelpFormatter, run_script


def main() -> None:
    """Make the survey."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    survey_arguments(parser, output=Path("runs/mock_survey.h5"))
    parser.add_argument(
        "--format-version",
        type=int,
        choices=(1, FORMAT_VERSION),
        default=FORMAT_VERSION,
        help="of the file's layout: 1 as written by version 0.1",
    )
    make_survey(parser.parse_args())


if __name__ == "__main__":
    run_script(main)
