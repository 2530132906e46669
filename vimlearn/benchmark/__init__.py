"""Measuring: contestants take turns in one run, and what is reported are medians and ratios within that run."""

__all__ = ["Contestant", "contest", "environment", "write_rows"]

from .contest import Contestant, contest, environment, write_rows
