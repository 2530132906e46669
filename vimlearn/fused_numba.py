"""The operators of the Numba backend: kernels for the CPU, compiled when one is first called."""

__all__ = ["add_rms_norm_numba", "bidirectional_scan_numba", "convolve_numba", "selective_scan_numba"]

from .kernels import numba_conv, numba_norm, numba_scan
from .operators import conv_operators, norm_operators, scan_operators

selective_scan_numba, bidirectional_scan_numba = scan_operators("numba", numba_scan, projects=True)
convolve_numba = conv_operators("numba", numba_conv)
add_rms_norm_numba = norm_operators("numba", numba_norm)
