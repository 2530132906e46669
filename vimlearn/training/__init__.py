"""Training: options, engine and the folder that a run writes.

    from vimlearn.training import Options, Run, train
    result = train(Options(run=Run(output=None, quiet=True)))
"""

from .engine import Result, train
from .interrupt import Stopped
from .options import Augment, Data, Network, Options, Recipe, Run
from .record import read_log

__all__ = ["Augment", "Data", "Network", "Options", "Recipe", "Result", "Run", "Stopped", "read_log", "train"]
