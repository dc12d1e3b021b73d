"""Training tasks: what the network is told of its batches."""

import numpy as np
import pytest
import torch
from conftest import make_model
from small_training import make_data

from stellarperceptron.training.profiles import TrainingOptions
from stellarperceptron.training.tasks import PerceptronTask
from stellarperceptron.utils.distributed import Process

ALONE = Process(0, 1, torch.device("cpu"))
BINS = {"choice": "batch", "labels_per_star": "all", "batch_size": 5}


@pytest.mark.parametrize(
    ("bad", "options", "rehearsed", "complete"),
    [
        (0.02, {}, None, True),  # no bin is without a good pixel
        (0.02, {"window_share": 0.9}, None, False),  # but the first of a window may be
        (0.02, {}, 0.9, False),
        (0.9, {}, None, False),
    ],
)
def test_batches_are_called_complete_if_no_token_is_missing(bad, options, rehearsed, complete):
    """Attention needs no mask then."""
    model = make_model(pixels_per_token=4, context_length=11)
    data, settings = make_data(bad=bad, pixels_per_token=4), TrainingOptions(**BINS, **options)
    rehearsal = rehearsed and (make_data(bad=rehearsed, pixels_per_token=4), settings)
    task = PerceptronTask(model, data, np.arange(30), np.arange(0), settings, ALONE, rehearsal)
    present = [
        bool(part.tokens.present().all())
        for epoch in range(5)
        for batch in task.training.batches(epoch)
        for part in getattr(batch, "parts", (batch,))
    ]
    assert all(present) == task.complete == complete
