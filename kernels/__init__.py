"""Compiled kernels, imported as `vimlearn.kernels`. Empty so far: chapter 04 fills this room.

Each module here will be named by its compiler and its operation, as in `numba_scan.py` and `triton_scan.py`. It is
loaded when its backend is first used, and it knows nothing about networks.
"""
