"""Vision Mamba, from the first equation to a trained network: the finished code of the course."""

from .torchvision_compat import declare_missing_ops

declare_missing_ops()  # before anything imports torchvision or timm

from . import registry as _registry  # noqa: E402, F401  (puts the networks into timm's registry)
from .bidirectional import Scan, bidirectional_scan  # noqa: E402
from .checkpoint import class_names, load_checkpoint, load_model, save_checkpoint  # noqa: E402
from .conv import bidirectional_conv1d, causal_conv1d  # noqa: E402
from .errors import VimlearnError  # noqa: E402
from .mixer import BidirectionalMixer  # noqa: E402
from .norm import RMSNorm, add_rms_norm  # noqa: E402
from .position import resize_position_embedding  # noqa: E402
from .scan import selective_scan  # noqa: E402
from .vim import VisionMamba  # noqa: E402

__version__ = "0.1.0"

__all__ = ["BidirectionalMixer", "RMSNorm", "Scan", "VimlearnError", "VisionMamba", "__version__", "add_rms_norm",
           "bidirectional_conv1d", "bidirectional_scan", "causal_conv1d", "class_names", "load_checkpoint",
           "load_model", "resize_position_embedding", "save_checkpoint", "selective_scan"]
