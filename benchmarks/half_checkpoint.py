"""Save the newest checkpoint of a training in half precision, small enough to be sent.

python -m benchmarks.half_checkpoint runs/gpu/2_realfinetune_firsthalf checkpoint
"""

import argparse
from pathlib import Path

import torch

from stellarperceptron import StellarPerceptron
from stellarperceptron.training.run.script import resolve_checkpoint


def main() -> None:
    """Arguments, checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="output of a stage, or a checkpoint")
    parser.add_argument("output", type=Path, help="folder; replaced if it exists")
    arguments = parser.parse_args()
    model = StellarPerceptron.load(resolve_checkpoint(arguments.folder), device="cpu")
    model.save(arguments.output, dtype=torch.float16, overwrite=True)
    print(f"{arguments.folder}: epoch {model.epoch}, saved in {arguments.output}")


if __name__ == "__main__":
    main()
