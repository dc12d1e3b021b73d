# PYTHON_ARGCOMPLETE_OK
"""The command `stellarperceptron`: labels of spectra in files, models, mock surveys."""

import argparse
import contextlib
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stellarperceptron.evaluation.catalogue.surveys import (
    SURVEY_SUFFIXES,
    describe_survey_file,
    make_survey,
    survey_arguments,
)
from stellarperceptron.labels import resolve_label_names
from stellarperceptron.utils.arguments import (
    HelpFormatter,
    cores,
    errors_argument,
    positive,
    reason,
)

# PyTorch takes seconds to import: `--help` and wrong arguments need not wait for it.
if TYPE_CHECKING:
    import pandas as pd

    from stellarperceptron.evaluation.catalogue.parts import Failure, Plan
    from stellarperceptron.model import StellarPerceptron

__all__ = ["main"]

FAILURE_COLUMNS = ["catalogue", "file", "reason"]
SHOWN = 10  # failures that are printed; all are in failures.csv

PREDICT = """Predict labels of spectra and write a catalogue, one row per file.

Takes files of the checkpoint's instrument, recognised by their content: apStar, apVisit and
aspcapStar (APOGEE), mwmStar, mwmVisit and astraStar (SDSS-V), the cameras' files of GALAH (the four
of a star are one row), RVS_MEAN_SPECTRUM of Gaia (VOTable, ECSV, CSV, FITS), low-resolution spectra
of LAMOST, coadds of DESI that hold a single star; folders of FITS files, and patterns; a word
@list.txt stands for the lines of that file. Bad pixels, strong sky lines and, by the files' errors,
noisy pixels are masked. Spectra are shifted to rest with the header's velocity or, without one,
with that of their lines relative to the training spectra's, and divided by the pseudo-continuum.

The suffix says what is written: .fits, .ecsv or .csv. FITS and ECSV have units (K, dex, km/s) and a
description of every column; CSV has room for neither. Files that cannot be used are listed in
failures.csv beside the catalogue, and the exit status is then 1. An interrupted run continues where
it was. The tasks of a job array share the work; a last command, with the same arguments, merges it:

    stellarperceptron predict @list.txt -o labels.fits --array-index $SLURM_ARRAY_TASK_ID \\
        --array-count 16
    stellarperceptron predict @list.txt -o labels.fits --merge
"""


def main(command_line: Sequence[str] | None = None) -> None:
    """Run the command; errors end it with a line, without a traceback."""
    parser = command_parser()
    with contextlib.suppress(ModuleNotFoundError):
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(command_line)
    name = f"{parser.prog} {options.command}"
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError, ModuleNotFoundError) as error:
        sys.exit(f"{name}: {reason(error)}")
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


def command_parser() -> argparse.ArgumentParser:
    """Options of the command and of its parts."""
    parser = argparse.ArgumentParser(
        prog="stellarperceptron",
        description="Labels of stars from their spectra.",
        formatter_class=HelpFormatter,
        fromfile_prefix_chars="@",
    )
    parser.add_argument("--version", action="store_true", help="show the version and exit")
    parts = parser.add_subparsers(dest="command", metavar="predict | info | survey")

    predict = parts.add_parser(
        "predict",
        help="labels of files of spectra, as a catalogue",
        description=PREDICT,
        formatter_class=HelpFormatter,
    )
    predict.add_argument(
        "files", type=Path, nargs="+", help="files of spectra, folders of them, patterns"
    )
    predict.add_argument(
        "-o", "--output", type=Path, required=True, help="catalogue: .fits, .ecsv or .csv"
    )
    predict.add_argument("--overwrite", action="store_true", help="replace an existing catalogue")
    predict.add_argument(
        "--checkpoint",
        default="laptop",
        help="name of a trained model, or folder of a checkpoint or of a stage's output",
    )
    predict.add_argument(
        "--pixels",
        help="a named range or start:stop of the instrument's pixels; for APOGEE full, first_half "
        "(the default: 15,152 to 16,028 A, on which stage 2 is fine-tuned) or fe_chunk; for other "
        "instruments full (the default) or a chip",
    )
    predict.add_argument(
        "--labels",
        nargs="+",
        metavar="LABEL",
        default=["all"],
        help="labels to predict, all that the model knows if nothing is said: Teff [K], log g and "
        "abundances [dex], ...",
    )
    predict.add_argument(
        "--shuffles",
        type=positive,
        default=8,
        help="how often to shuffle pixels into patches, where they do not fit into one context",
    )
    errors_argument(predict)
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    predict.add_argument(
        "--threads", type=positive, default=1, help="CPU threads of the network (not on a GPU)"
    )
    predict.add_argument(
        "--workers", type=positive, default=min(4, cores()), help="files that are read at a time"
    )
    array = predict.add_argument_group("array of tasks")
    array.add_argument("--array-index", type=int, help="this task, 0 or more: does its part")
    array.add_argument("--array-count", type=positive, help="number of tasks")
    array.add_argument(
        "--merge", action="store_true", help="read no spectra, merge what the tasks have made"
    )
    predict.set_defaults(run=run_predict)

    info = parts.add_parser(
        "info",
        help="what a model or a survey is",
        description="Describe a trained model, a checkpoint or a survey file.",
        formatter_class=HelpFormatter,
    )
    info.add_argument(
        "what", help="name of a trained model, folder of a checkpoint, or survey file"
    )
    info.set_defaults(run=run_info)

    survey = parts.add_parser(
        "survey",
        help="make a mock survey",
        description="Make a mock survey: synthetic and observed spectra, labels and errors.",
        formatter_class=HelpFormatter,
    )
    survey_arguments(survey)
    survey.set_defaults(run=make_survey)

    parser.set_defaults(run=lambda options: run_nothing(parser, options))
    return parser


def run_nothing(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Show the version, or how to use the command."""
    if options.version:
        from importlib.metadata import version

        print(version("stellarperceptron"))
    else:
        parser.error("say what to do: predict, info or survey")


# --- models -----------------------------------------------------------------------------------


def find_checkpoint(text: str) -> Path:
    """Folder of a checkpoint: of a path, or else of a trained model's name.

    A FileNotFoundError or ValueError says that there is neither such a path nor such a model.
    """
    from stellarperceptron.network.pretrained import find_pretrained
    from stellarperceptron.training.run.script import resolve_checkpoint

    path = Path(text).expanduser()
    if path.exists() or len(path.parts) > 1:
        try:
            return resolve_checkpoint(path)
        except FileNotFoundError:
            files = "no folder of a checkpoint (config.json, weights.pt), nor the output of a stage"
            raise FileNotFoundError(f"{path} is {files}") from None
    return find_pretrained(text)


def load_model(text: str, device: str = "cpu") -> "tuple[StellarPerceptron, str]":
    """Load a model, with the checksum of its weights."""
    from stellarperceptron.model import StellarPerceptron
    from stellarperceptron.network.checkpoint import weights_sha256

    folder = find_checkpoint(text)
    return StellarPerceptron.load(folder, device=device), weights_sha256(folder)


# --- catalogues -------------------------------------------------------------------------------


def check_predict(options: argparse.Namespace) -> None:
    """Refuse options that do not fit together, before anything is read.

    Raises
    ------
    OSError, ValueError
    """
    from stellarperceptron.evaluation.catalogue.table import SUFFIXES
    from stellarperceptron.utils.data_utils import check_output_file

    options.output = options.output.expanduser()
    if options.output.suffix not in SUFFIXES:
        raise ValueError(f"--output {options.output} must end in {', '.join(SUFFIXES)}")
    check_output_file(options.output)
    read_failures(options.output.with_name("failures.csv"))
    if options.output.exists() and not options.overwrite:
        raise FileExistsError(f"{options.output} exists: choose another name, or give --overwrite")
    if (options.array_index is None) != (options.array_count is None):
        raise ValueError("--array-index and --array-count belong together")
    if options.array_index is not None:
        if options.merge:
            raise ValueError("--merge is a run of its own, after those with --array-index")
        if not 0 <= options.array_index < options.array_count:
            raise ValueError(
                f"--array-index {options.array_index} is not within 0 and "
                f"{options.array_count - 1}: number the tasks from 0"
            )


def run_predict(options: argparse.Namespace) -> None:
    """Make a catalogue, or a task's parts of it, while no other run makes the same one."""
    import torch

    from stellarperceptron.evaluation.catalogue.files import find_files
    from stellarperceptron.evaluation.catalogue.parts import Plan
    from stellarperceptron.evaluation.catalogue.table import instrument_of, template_of
    from stellarperceptron.utils.locks import FileLock

    check_predict(options)
    # The catalogue has columns for both, and `merge` counts the flags.
    warnings.filterwarnings("ignore", message=".*(see the column flags|bad, by their errors)")
    torch.set_num_threads(options.threads)
    model, checkpoint = load_model(options.checkpoint, options.device)
    instrument = instrument_of(model)
    output = options.output
    usual = "first_half" if "first_half" in instrument.ranges else "full"
    plan = Plan(
        files=find_files(path.expanduser() for path in options.files),
        pixels=instrument.pixel_range(options.pixels or usual),
        labels=resolve_label_names(options.labels, model.label_names),
        shuffles=options.shuffles,
        checkpoint=checkpoint,
        folder=output.with_name(f"{output.name}.parts"),
        instrument=instrument,
        template=template_of(model),
        errors=options.errors,
        about={"MODEL": options.checkpoint, "PIXELS": options.pixels or usual},
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = output.with_name(f".{output.name}.parts.lock")
    with FileLock(lock, f"{output}, which is being made,", shared=options.array_index is not None):
        if not options.merge:
            predict_parts(plan, model, options)
        if options.array_index is None:
            merge(plan, output)


def predict_parts(plan: "Plan", model: "StellarPerceptron", options: argparse.Namespace) -> None:
    """Make the parts of this task, or all."""
    from tqdm.auto import tqdm

    from stellarperceptron.evaluation.catalogue.parts import make_parts

    numbers = range(plan.n_parts)[options.array_index or 0 :: options.array_count or 1]
    total = sum(len(plan.files_of(number)) for number in numbers)
    with tqdm(total=total, unit=" files", desc="predict", disable=None) as bar:
        make_parts(plan, numbers, model, options.workers, bar.update)
    if options.array_index is not None:
        print(f"{len(numbers)} of {plan.n_parts} parts are in {plan.folder}; merge with --merge")


def merge(plan: "Plan", output: Path) -> None:
    """Write the catalogue and the list of failures, and remove the parts."""
    from stellarperceptron.evaluation.catalogue.parts import merge_parts
    from stellarperceptron.evaluation.catalogue.table import write_catalogue

    catalogue, failures = merge_parts(plan)
    write_catalogue(catalogue, output)
    write_failures(failures, output.name, output.with_name("failures.csv"))
    shutil.rmtree(plan.folder)
    flagged = sum(catalogue["flags"] != 0)
    print(f"{output}: {len(catalogue):,} of {len(plan.files):,} files; {flagged:,} with flags")
    if failures:
        reasons = [f"\n  {reason}" for _, reason in failures[:SHOWN]]
        more = f"\n  ... and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
        raise ValueError(
            f"{len(failures)} of {len(plan.files)} files could not be used, see "
            f"{output.with_name('failures.csv')}:{''.join(reasons)}{more}"
        )


def read_failures(path: Path) -> "pd.DataFrame":
    """Read a list of files that could not be used; a ValueError says that it is something else."""
    import pandas as pd

    if not path.is_file():
        return pd.DataFrame(columns=FAILURE_COLUMNS)
    try:
        earlier = pd.read_csv(path, dtype=str)
    except ValueError:  # no table
        earlier = pd.DataFrame()
    if list(earlier) != FAILURE_COLUMNS:
        raise ValueError(f"{path} is no list of this command's failures: move it away")
    return earlier


def write_failures(failures: "Sequence[Failure]", catalogue: str, path: Path) -> None:
    """List the files that could not be used, with reasons; no list where there are none.

    What the list says of other catalogues in the same folder is kept.
    """
    import pandas as pd

    from stellarperceptron.utils.data_utils import atomic_output, escaped, plain_text

    rows = [(catalogue, *failure) for failure in failures]
    failed = escaped(pd.DataFrame(rows, columns=FAILURE_COLUMNS))
    earlier = read_failures(path)
    others = earlier[earlier["catalogue"] != plain_text(catalogue)]
    failed = pd.concat([others, failed], ignore_index=True)
    if failed.empty:
        path.unlink(missing_ok=True)
        return
    with atomic_output(path) as temporary:
        failed.to_csv(temporary, index=False)


# --- models and surveys -----------------------------------------------------------------------


def run_info(options: argparse.Namespace) -> None:
    """Describe a model or a survey."""
    path = Path(options.what).expanduser()
    if path.is_file() or (path.suffix in SURVEY_SUFFIXES and not path.exists()):
        describe_survey_file(path)
        return
    model, checkpoint = load_model(options.what)
    print(model)
    print(f"    epoch: {model.epoch}\n    SHA-256 of the weights: {checkpoint}")
    print(f"\n{model.card}" if model.card else "It has no model card.")
