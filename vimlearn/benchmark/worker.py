"""A contestant in a process of its own, so that its memory is its own and its end is not that of the others.

    python -m vimlearn.benchmark.worker        one JSON line in, one JSON line out

The first line is the case and the rules of the process; then each line names a method of `Runner` and its arguments.
"""

__all__ = ["Broken", "Worker"]

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile

from .case import Case

# Exit code of a process that went over its memory limit.
OVER_LIMIT = 77
OUT_OF_MEMORY, KILLED, FAILED = "out of memory", "killed", "failed"


class Broken(Exception):
    """A contestant cannot go on. status: OUT_OF_MEMORY, KILLED or FAILED."""

    def __init__(self, status: str, why: str):
        super().__init__(f"{status}: {why}")
        self.status, self.why = status, why


class Worker:
    """The side of the one who asks.

    memory_limit: bytes that the process may hold above what it holds before the network is built; None: no limit.
    threads: a count; None: as many as PyTorch takes.
    """

    def __init__(self, case: Case, memory_limit: float | None = None, threads: int | None = None):
        self.case = case
        self._complaints = tempfile.TemporaryFile()
        self._process = subprocess.Popen([sys.executable, "-m", __name__], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=self._complaints, text=True)
        self._send({"case": dataclasses.asdict(case), "memory_limit": memory_limit, "threads": threads})

    def wait(self) -> dict:
        """Return what the process says of itself once it has imported everything: threads, a count."""
        return self._receive()

    def ask(self, command: str, **arguments) -> dict:
        """Let the process do `command` and return its answer. Raises Broken where it cannot."""
        self._send({"command": command, "arguments": arguments})
        return self._receive()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._complaints):
            with contextlib.suppress(OSError):
                stream.close()

    def _send(self, message: dict) -> None:
        # A process that is gone is found out where its answer is missing.
        with contextlib.suppress(BrokenPipeError, ValueError):
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()

    def _receive(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            raise self._end()
        answer = json.loads(line)
        if "status" in answer:
            raise Broken(answer["status"], answer["why"])
        return answer

    def _end(self) -> Broken:
        code = self._process.wait()
        if code == OVER_LIMIT:
            return Broken(OUT_OF_MEMORY, "it went over the memory limit")
        if code < 0:
            return Broken(KILLED, f"ended by signal {-code}" + ", as the system does when memory runs out" * (
                -code == signal.SIGKILL))
        self._complaints.seek(0)
        said = self._complaints.read().decode(errors="replace").strip().splitlines()
        return Broken(FAILED, said[-1] if said else f"the process ended with code {code}")


def serve() -> None:
    """The side of the process: answer line by line until the input ends."""
    # Whatever the libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    # Ctrl-C reaches all processes of a terminal; the one who asks decides what ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def answer(message: dict) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    runner, ready = _set_up(json.loads(sys.stdin.readline()))
    answer(ready)
    for line in sys.stdin:
        order = json.loads(line)
        answer(_attempt(getattr(runner, order["command"]), order["arguments"]))


def _set_up(settings: dict):
    import torch

    import vimlearn  # noqa: F401  mends torchvision before timm is imported

    from .peak import die_first, limit_memory
    from .runner import Runner

    die_first()
    case, limit = Case(**settings["case"]), settings["memory_limit"]
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    runner = Runner(case)
    if limit and case.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(limit / torch.cuda.mem_get_info()[1], 1.0))
    elif limit:
        limit_memory(limit, lambda: os._exit(OVER_LIMIT))
    return runner, {"threads": torch.get_num_threads()}


def _attempt(function, arguments: dict) -> dict:
    from .runner import is_out_of_memory
    try:
        return function(**arguments)
    except Exception as error:
        status = OUT_OF_MEMORY if is_out_of_memory(error) else FAILED
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"status": status, "why": f"{type(error).__name__}: {lines[0]}"}


if __name__ == "__main__":
    serve()
