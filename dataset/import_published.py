"""
Turn a folder of the published arrays into one survey file.

The folder holds ``synspec_train.npy``, ``aspcap_spectra_train.npy``, ``labels_train.npy``,
``label_errs_train.npy``, the same with ``_test``, and ``apogee_wavelength_sol.csv``. All
scripts of this repository also open the folder itself; the survey file is half as large (single
precision), has checksums, and is a single file. Spectra are read in blocks, so that memory does not
depend on their number.

    python dataset/import_published.py folder/of/arrays survey.h5
"""

import argparse
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from stellarperceptron.data.apogee.aspcap_files import clean_flux
from stellarperceptron.data.apogee.continuum import VALID_FLUX
from stellarperceptron.data.apogee.dr17 import clean_labels
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.data.survey_file import SurveyWriter
from stellarperceptron.utils.arguments import HelpFormatter, run_script

BLOCK = 1024  # stars in a block: 31 MB for each kind of spectra


def import_published(folder: Path, output: Path) -> None:
    """
    Write the survey file `output` from the arrays in `folder`.

    Raises
    ------
    FileNotFoundError, stellarperceptron.data.dataset.DatasetError
        For a folder that lacks an array or holds a damaged one; the message names it.
    OSError
        When the disk has not enough room; nothing is left behind.
    """
    with SpectraDataset.open(folder) as source:
        splits = {"train": source.train, "test": source.test}
        kinds = [kind for kind in source.train.kinds if kind in source.test.kinds]
        provenance = {
            "generator": "import_published.py",
            "version": version("stellarperceptron"),
            "arguments": {"folder": folder.resolve().name},
            "valid_flux": VALID_FLUX,
        }
        writer = SurveyWriter(
            output,
            counts={name: len(split) for name, split in splits.items()},
            provenance=provenance,
            wavelength=source.wavelength,
            label_names=source.label_names,
            kinds=kinds,
        )
        bar = tqdm(total=sum(writer.counts.values()), unit="star", desc=output.name)
        with bar, writer:
            for name, split in splits.items():
                for first in range(0, len(split), BLOCK):
                    rows = slice(first, min(first + BLOCK, len(split)))
                    writer.append(
                        name,
                        ids=split.ids[rows].tolist(),
                        labels=clean_labels(split.labels[rows]),
                        label_errors=clean_labels(split.label_errors[rows]),
                        **{kind: clean_flux(split.read(kind, rows)) for kind in kinds},
                    )
                    bar.update(rows.stop - rows.start)


def main(arguments: list[str] | None = None) -> None:
    """Read the arguments, import, print a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("folder", type=Path, help="folder with the published arrays")
    parser.add_argument("output", type=Path, help="survey file to write (HDF5)")
    options = parser.parse_args(arguments)
    try:
        import_published(options.folder, options.output)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    with SpectraDataset.open(options.output) as survey:
        print(
            f"{options.output}: {len(survey.train)} + {len(survey.test)} stars, "
            f"{len(survey.wavelength)} pixels, {' and '.join(survey.train.kinds)} spectra, "
            f"{options.output.stat().st_size / 1e9:.2f} GB"
        )


if __name__ == "__main__":
    run_script(main)
