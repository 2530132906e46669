"""Vision Mamba, from the first equation to a trained network: the finished code of the course."""

from .torchvision_compat import declare_missing_ops

declare_missing_ops()  # before anything imports torchvision or timm

from .errors import VimlearnError  # noqa: E402

__version__ = "0.1.0"

__all__ = ["VimlearnError", "__version__"]
