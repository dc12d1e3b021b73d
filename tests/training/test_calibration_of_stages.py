"""The last step of a stage: what its training spectra are like."""

import numpy as np

from stellarperceptron import StellarPerceptron
from stellarperceptron.data.dataset import SpectraDataset
from stellarperceptron.training.run.script import resolve_checkpoint


def test_stages_describe_the_spectra_that_they_are_trained_on(chain, survey):
    one, two, three = (
        StellarPerceptron.load(resolve_checkpoint(chain / n), device="cpu").reference for n in "123"
    )
    assert (len(one.tokens), len(two.tokens), three) == (7514, 3757, None)
    with SpectraDataset.open(survey) as dataset:
        observed = dataset.train.read("observed", pixels="first_half")
    np.testing.assert_allclose(two.mean, np.nanmean(observed, 0), atol=0.02)
