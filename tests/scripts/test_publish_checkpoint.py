"""The shipped checkpoint predicts what it did when it was published."""

import json
import runpy

import numpy as np
import pandas as pd
from chain import ROOT

from stellarperceptron import StellarPerceptron
from stellarperceptron.labels import PUBLISHED_LABELS
from stellarperceptron.network.pretrained import SHIPPED


def test_shipped_predictions_are_pinned():
    """Within a hundredth of the predicted errors, since processors round differently.

    For a new checkpoint, `publish_checkpoint.py` writes the numbers anew.
    """
    script = runpy.run_path(str(ROOT / "results/publish_checkpoint.py"))
    pinned = json.loads((SHIPPED / "laptop" / "pinned.json").read_text())
    model = StellarPerceptron.from_pretrained("laptop", device="cpu")
    predicted = script["pinned_predictions"](model)
    assert list(predicted) == list(pinned) == ["first_half", "fe_chunk", "full"]
    for name in pinned:
        found, expected = pd.DataFrame(predicted[name]), pd.DataFrame(pinned[name])
        assert list(found) == [*PUBLISHED_LABELS, *(f"{label}_error" for label in PUBLISHED_LABELS)]
        for label in PUBLISHED_LABELS:
            error = expected[f"{label}_error"]
            assert (np.abs(found[label] - expected[label]) < 0.01 * error).all(), (name, label)
            np.testing.assert_allclose(found[f"{label}_error"], error, rtol=0.01)
    # What is pinned is near the truth: the stars of the emulator are those of the survey.
    for label, most in zip(PUBLISHED_LABELS, (150, 0.2, 0.2, 0.2, 0.15), strict=True):
        off = np.abs(np.subtract(pinned["first_half"][label], script["STARS"][label]))
        assert (off < most).all(), label
