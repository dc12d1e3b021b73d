"""Save a checkpoint in half precision, small enough to be shipped: results/checkpoints/laptop.

Only what is needed to predict and to be fine-tuned: no state of the optimizer. Predictions change
by about a hundredth of their errors.

    python publish_checkpoint.py --checkpoint runs/laptop/2_realfinetune_firsthalf \
        --output results/checkpoints/laptop
"""

import argparse
import sys
from pathlib import Path

import torch

from stellarperceptron import StellarPerceptron
from stellarperceptron.training.run.script import resolve_checkpoint
from stellarperceptron.utils.arguments import HelpFormatter


def main() -> None:
    """Arguments, checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="output of a stage, or a checkpoint"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder; replaced if it exists")
    arguments = parser.parse_args()
    try:
        model = StellarPerceptron.load(resolve_checkpoint(arguments.checkpoint), device="cpu")
        model.save(arguments.output, dtype=torch.float16, overwrite=True)
    except (OSError, ValueError) as error:
        sys.exit(f"{Path(__file__).name}: {error}")
    size = sum(path.stat().st_size for path in arguments.output.iterdir())
    print(f"{arguments.output}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
