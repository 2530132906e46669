"""The processes that read images for another one."""

__all__ = ["leave_signals"]

import signal


def leave_signals(worker: int) -> None:
    """Let a worker of a DataLoader end with its owner alone: Ctrl-C, and the end of a job's time, reach all processes
    of a job, and the step under way still needs its images.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
