"""The trained networks that come along, inside the package: no download, no connection.

| source            | network                                            | images                       |
|-------------------|----------------------------------------------------|------------------------------|
| `shipped:cifar10` | a Vim of 6 blocks, width 96, 443,530 parameters    | 32 x 32 pixels, ten classes  |
| `shipped:scenes`  | the same, trained on to name drawn shapes          | 32 x 32 pixels, eight shapes |

`vimlearn.load_model("shipped:cifar10")` returns it ready for use; every command that wants weights takes the name. The
model card is data/checkpoints/README.md.
"""

__all__ = ["DEFAULT", "SHIPPED", "shipped_file"]

from importlib.resources import files
from pathlib import Path

from .errors import VimlearnError, nearest

MARK = "shipped:"
SHIPPED = {"cifar10": "vim_cifar10.safetensors", "scenes": "vim_scenes.safetensors"}
# What a command takes that was told no weights.
DEFAULT = f"{MARK}cifar10"


def shipped_file(name: str) -> Path:
    """Return the path of a network that comes along. Raises VimlearnError where there is none of that name."""
    if name not in SHIPPED:
        raise VimlearnError(f"no network called {name!r} comes along{nearest(name, SHIPPED)}; expected one of "
                            f"{', '.join(MARK + known for known in SHIPPED)}")
    path = Path(str(files("vimlearn.weights"))) / SHIPPED[name]
    if not path.is_file():
        raise VimlearnError(f"{path} is missing, which comes along with vimlearn; install vimlearn again")
    return path
