"""Compiled kernels, imported as `vimlearn.kernels`. Chapter 04 builds them step by step.

| compiler | modules    | runs on                                                                            |
|----------|------------|------------------------------------------------------------------------------------|
| Numba    | `numba_*`  | any CPU; compiled at first use and kept on disk, no compiler on the machine needed |
| Triton   | `triton_*` | GPUs of NVIDIA and AMD, on Linux                                                   |

`layout` says which functions each offers. A module is loaded when its backend is first used, and knows nothing about
networks or autograd: `vimlearn.operators` turns its functions into operators of PyTorch.
"""
