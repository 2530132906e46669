"""One name for each operation, several implementations behind it, chosen by device.

An operation registers each backend with the place where its function is found (`"module:function"`). The module is
imported when the backend is first used, so a compiler is never loaded for nothing. `backend="auto"` takes the
first registered backend that is meant for the tensor's device.

    scan = Operation("selective_scan")
    scan.register("parallel", "vimlearn.scan_parallel:selective_scan")
    scan.register("numba", "vimlearn.kernels.numba_scan:selective_scan", devices=("cpu",), before="parallel")
    function = scan.choose("auto", torch.device("cpu"))
"""

__all__ = ["BACKENDS", "Operation", "check_backend"]

import importlib
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
    place: str
    devices: tuple[str, ...] | None


@dataclass
class Operation:
    """The backends of one operation, in the order in which `auto` tries them."""

    name: str
    _backends: dict[str, _Backend] = field(default_factory=dict)

    def register(self, backend: str, place: str, *, devices: tuple[str, ...] | None = None,
                 before: str | None = None) -> None:
        """Add `backend`, found at `place` ("module:function"), for the given device types (None: all).

        `auto` tries backends in the order of registration; `before` puts this one ahead of another.
        """
        items = list(self._backends.items())
        at = [name for name, _ in items].index(before) if before else len(items)
        items.insert(at, (check_backend(backend), _Backend(place, devices)))
        self._backends = dict(items)

    def available(self, device: torch.device) -> list[str]:
        """Return the names of the backends that are meant for `device`, in the order in which `auto` tries them."""
        return [name for name, b in self._backends.items() if b.devices is None or device.type in b.devices]

    def choose(self, backend: str, device: torch.device) -> Callable:
        """Return the function for `backend` on `device`.

        Raises VimlearnError where the name is unknown, not there yet, not meant for the device, or fails to import.
        """
        usable = self.available(device)
        if check_backend(backend) == "auto":
            return self._load(usable[0])
        if backend not in usable:
            raise VimlearnError(f"{self.name} has no backend {backend!r} for device '{device.type}'; "
                                f"expected one of {', '.join(['auto', *usable])}")
        return self._load(backend)

    def _load(self, backend: str) -> Callable:
        module, function = self._backends[backend].place.split(":")
        try:
            return getattr(importlib.import_module(module), function)
        except ImportError as error:
            raise VimlearnError(f"backend {backend!r} of {self.name} cannot be loaded: {error}") from error
