"""Foundation models for stellar spectra."""

from stellarperceptron.config import ModelConfig
from stellarperceptron.model import StellarPerceptron

__all__ = ["ModelConfig", "StellarPerceptron"]
