"""Foundation models for stellar spectra."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stellarperceptron.model import StellarPerceptron
    from stellarperceptron.network.config import ModelConfig

__version__: str
__all__ = ["ModelConfig", "StellarPerceptron", "__version__"]


def __getattr__(name: str) -> Any:
    # Scripts that draw figures or read tables need not wait for PyTorch, which takes seconds.
    if name == "ModelConfig":
        from stellarperceptron.network.config import ModelConfig

        return ModelConfig
    if name == "StellarPerceptron":
        from stellarperceptron.model import StellarPerceptron

        return StellarPerceptron
    if name == "__version__":
        from importlib.metadata import version

        return version("stellarperceptron")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
