"""Settings for fine-tuning a pre-trained model on few labelled stars.

They were chosen on 30 and 100 real giants of APOGEE (`results/real_stars/README.md`).
"""

import math
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from stellarperceptron.data.mock.observation import Augmentation
from stellarperceptron.nn_utils import linear_warmup_cosine

__all__ = ["AUGMENTATION", "SETTINGS", "TRAINED", "WARMUP_STEPS", "fine_tuning"]

TRAINED = ("auto", "embeddings", "all")
ENOUGH_STARS = 200
"""For all weights: from 30 and 100 stars the embeddings alone learned more, from 300 less."""

SETTINGS = {
    "batch_size": 16,
    "learning_rate": 2e-3,
    "weight_decay": 0.01,
    "labels_per_star": "all",
    "max_gradient_norm": 1.0,
    "validation_split": 0.0,
}
WARMUP_STEPS = 20
# Every step shows the stars with other errors, or the model would learn the noise of so few.
AUGMENTATION = Augmentation(
    snr=(50.0, 500.0), correlation=(0.0, 0.5), ripple=(0.0, 0.02), line_spread=0.05
)


def fine_tuning(stars: int, steps: int, seed: int = 0, train: str = "all") -> dict[str, Any]:
    """Arguments of `StellarPerceptron.fit` for fine-tuning on few stars.

    The learning rate follows one cosine over the steps. `AUGMENTATION` goes with these arguments,
    given the pixels or the instrument of the spectra.

    Parameters
    ----------
    stars
        Number of stars to learn from.
    steps
        Optimizer steps. The last epoch is completed.
    seed
        Seed of all random choices.
    train
        Which weights learn: "all"; "embeddings", the others being frozen; or "auto", which is
        "embeddings" below `ENOUGH_STARS` stars and "all" from there on.

    Raises
    ------
    ValueError
        `train` is something else.
    """
    if train not in TRAINED:
        raise ValueError(f"train = {train!r} is none of {', '.join(TRAINED)}")
    frozen = train == "embeddings" or (train == "auto" and stars < ENOUGH_STARS)

    def schedule(optimizer: Optimizer) -> LRScheduler:
        return linear_warmup_cosine(optimizer, WARMUP_STEPS, steps)

    epochs = math.ceil(steps / math.ceil(stars / SETTINGS["batch_size"]))
    freeze = dict.fromkeys(("freeze_decoder", "freeze_encoder"), frozen)
    return {**SETTINGS, **freeze, "lr_scheduler": schedule, "epochs": epochs, "seed": seed}
