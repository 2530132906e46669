"""One name for each operation, several implementations behind it, chosen by device.

An operation registers each backend with a loader: a function that imports the backend's module and returns its
function. The loader runs when the backend is first used, so a compiler is never loaded for nothing. `backend="auto"`
takes the first registered backend that is meant for the tensor's device and loads.

    def load_numba():
        from .kernels.numba_scan import selective_scan_numba
        return selective_scan_numba

    SCAN.register("numba", load_numba, devices=("cpu",), before="parallel")
    function = SCAN.choose("auto", torch.device("cpu"))

The `import` stands in a function, and not in a string handed to importlib, because `torch.compile` can trace it.
"""

__all__ = ["BACKENDS", "Operation", "check_backend"]

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .errors import VimlearnError, nearest

BACKENDS = ("auto", "loop", "parallel", "numba", "triton")


def check_backend(name: str) -> str:
    """Return `name` if it is one of BACKENDS. Raises VimlearnError with the nearest name if it is not."""
    if name not in BACKENDS:
        raise VimlearnError(f"unknown backend {name!r}{nearest(str(name), BACKENDS)}; "
                            f"expected one of {', '.join(BACKENDS)}")
    return name


@dataclass(frozen=True)
class _Backend:
    load: Callable[[], Callable]
    devices: tuple[str, ...] | None


@dataclass
class Operation:
    """The backends of one operation, in the order in which `auto` tries them."""

    name: str
    _backends: dict[str, _Backend] = field(default_factory=dict)

    def register(self, backend: str, load: Callable[[], Callable], *, devices: tuple[str, ...] | None = None,
                 before: str | None = None) -> None:
        """Add `backend`, whose function `load` returns, for the given device types (None: all).

        `auto` tries backends in the order of registration; `before` puts this one ahead of another.
        """
        items = list(self._backends.items())
        at = [name for name, _ in items].index(before) if before else len(items)
        items.insert(at, (check_backend(backend), _Backend(load, devices)))
        self._backends = dict(items)

    def available(self, device: torch.device) -> list[str]:
        """Return the names of the backends that are meant for `device`, in the order in which `auto` tries them."""
        return [name for name, b in self._backends.items() if b.devices is None or device.type in b.devices]

    def backend_or_auto(self, backend: str, device: torch.device) -> str:
        """Return `backend` where this operation has it for `device`, else "auto".

        A network names one backend for all its operations, and not every operation has every backend.
        """
        return backend if backend in self.available(device) else "auto"

    def choose(self, backend: str, device: torch.device) -> Callable:
        """Return the function for `backend` on `device`.

        Raises VimlearnError where the name is unknown, not there yet, not meant for the device, or fails to import.
        """
        usable = self.available(device)
        if check_backend(backend) == "auto":
            return self._load_first(usable)
        if backend not in usable:
            raise VimlearnError(f"{self.name} has no backend {backend!r} for device '{device.type}'; "
                                f"expected one of {', '.join(['auto', *usable])}")
        return self._load(backend)

    def _load_first(self, names: list[str]) -> Callable:
        """Return the first of the backends that loads. Warns of those that do not: the next one is slower."""
        for name in names[:-1]:
            try:
                return self._load(name)
            except VimlearnError as error:
                warnings.warn(f"{error}; trying the next backend", stacklevel=4)
        return self._load(names[-1])

    def _load(self, backend: str) -> Callable:
        try:
            return self._backends[backend].load()
        except ImportError as error:
            raise VimlearnError(f"backend {backend!r} of {self.name} cannot be loaded: {error}") from error
