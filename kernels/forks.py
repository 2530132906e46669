"""Forked children: the threads of the parent do not exist there, and whoever waits for them hangs.

PyTorch's own operators hang in a forked child as well, once its parent has used several threads. So the child is told
to use one, as the data loader of PyTorch tells its workers, and kernels run on that one. A process that was spawned is
not concerned.
"""

__all__ = ["in_forked_child"]

import os

import torch

_forked = False


def in_forked_child() -> bool:
    """Return whether this process was forked after vimlearn was imported."""
    return _forked


def _after_fork() -> None:
    global _forked
    _forked = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
