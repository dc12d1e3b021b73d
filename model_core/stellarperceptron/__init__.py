"""Foundation models for stellar spectra."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stellarperceptron.model import StellarPerceptron
    from stellarperceptron.network.config import ModelConfig

__all__ = ["ModelConfig", "StellarPerceptron"]


def __getattr__(name: str) -> Any:
    # What draws, counts or reads tables need not wait for PyTorch (seconds on a small machine).
    if name == "ModelConfig":
        from stellarperceptron.network.config import ModelConfig

        return ModelConfig
    if name == "StellarPerceptron":
        from stellarperceptron.model import StellarPerceptron

        return StellarPerceptron
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
