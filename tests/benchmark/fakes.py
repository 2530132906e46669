"""Stand-ins for the process of a contestant: their times are made up, and they break where they are told to."""

from vimlearn.benchmark.worker import Broken


class FakeWorker:
    """A call takes `seconds[model] * (size / 224)**2`; `breaks` gives (status, why) for (model, size)."""

    def __init__(self, case, seconds, breaks, log):
        self.case, self.log = case, log
        self.seconds = seconds.get(case.model, 1.0) * (case.size / 224) ** 2
        self.end = breaks.get((case.model, case.size))

    def wait(self):
        return {"threads": 1}

    def ask(self, command, **arguments):
        self.log.append((self.case.model, self.case.size, command))
        if self.end and command == self.end[2]:
            raise Broken(*self.end[:2])
        return {"load": {"parameters": 7}, "warm_up": {"seconds": 2 * self.seconds},
                "again": {"seconds": self.seconds, "peak_mb": self.case.size / 2},
                "turn": {"seconds": self.seconds, "processor": self.seconds}}[command]

    def close(self):
        self.log.append((self.case.model, self.case.size, "close"))


def workers(seconds, breaks=None, log=None):
    """Return a function to be given as `start`."""
    log = [] if log is None else log
    return lambda case, limit, threads: FakeWorker(case, seconds, breaks or {}, log)
