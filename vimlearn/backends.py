"""One name for each operation, several implementations behind it, chosen by device and dtype.

An operation registers each backend with a loader: a function that imports the backend's module and returns its
function. The loader runs when the backend is first used, so a compiler is never loaded for nothing. `backend="auto"`
takes the first registered backend that is meant for the tensor's device and dtype and loads. The environment variable
VIMLEARN_BACKEND, read when vimlearn is imported, stands in for "auto" in every operation that has what it names.

    def load_numba():
        from .fused_numba import selective_scan_numba
        return selective_scan_numba

    SCAN.register("numba", load_numba, devices=("cpu",), dtypes=(torch.float32,), before="parallel")
    function = SCAN.choose("auto", torch.device("cpu"), torch.float32)

The `import` stands in a function, and not in a string handed to importlib, because `torch.compile` can trace it.
"""

__all__ = ["BACKENDS", "Operation", "check_backend", "register_compiled", "register_export"]

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .errors import VimlearnError, nearest
from .kernels import forks  # noqa: F401  (has to be there before a fork, not only when a kernel is first used)

BACKENDS = ("auto", "loop", "parallel", "numba", "triton", "export")
# Read once: `torch.compile` cannot follow a look into the environment.
DEFAULT_BACKEND = os.environ.get("VIMLEARN_BACKEND", "auto")


def check_backend(name: str) -> str:
    """Return `name` if it is one of BACKENDS. Raises VimlearnError with the nearest name if it is not."""
    if name not in BACKENDS:
        raise VimlearnError(f"unknown backend {name!r}{nearest(str(name), BACKENDS)}; "
                            f"expected one of {', '.join(BACKENDS)}")
    return name


def _check_default(name: str) -> str:
    if name not in BACKENDS:
        raise VimlearnError(f"the environment variable VIMLEARN_BACKEND is {name!r}{nearest(name, BACKENDS)}; "
                            f"expected one of {', '.join(BACKENDS)}")
    return name


@dataclass(frozen=True)
class _Backend:
    load: Callable[[], Callable]
    devices: tuple[str, ...] | None
    dtypes: tuple[torch.dtype, ...] | None
    by_name_on: tuple[str, ...]

    def runs_on(self, device: torch.device) -> bool:
        return self.devices is None or device.type in (*self.devices, *self.by_name_on)

    def is_meant_for(self, device: torch.device, dtype: torch.dtype | None) -> bool:
        return ((self.devices is None or device.type in self.devices)
                and (self.dtypes is None or dtype is None or dtype in self.dtypes))


@dataclass
class Operation:
    """The backends of one operation, in the order in which `auto` tries them."""

    name: str
    _backends: dict[str, _Backend] = field(default_factory=dict)
    # What `available` found for a type of device, and `choose` for its arguments.
    _devices: dict[str, list[str]] = field(default_factory=dict)
    _chosen: dict[tuple, Callable] = field(default_factory=dict)

    def register(self, backend: str, load: Callable[[], Callable], *, devices: tuple[str, ...] | None = None,
                 dtypes: tuple[torch.dtype, ...] | None = None, by_name_on: tuple[str, ...] = (),
                 before: str | None = None) -> None:
        """Add `backend`, whose function `load` returns, for the given device types and dtypes (None: all).

        `auto` tries backends in the order of registration; `before` puts this one ahead of another. On devices in
        `by_name_on`, and for other dtypes, the backend works too, and is taken only where it is asked for by name.
        """
        items = list(self._backends.items())
        at = [name for name, _ in items].index(before) if before else len(items)
        items.insert(at, (check_backend(backend), _Backend(load, devices, dtypes, by_name_on)))
        self._backends = dict(items)
        self._devices, self._chosen = {}, {}

    def available(self, device: torch.device) -> list[str]:
        """Return the names of the backends that run on `device`, in the order in which `auto` tries them."""
        if device.type not in self._devices:
            self._devices[device.type] = [name for name, b in self._backends.items() if b.runs_on(device)]
        return self._devices[device.type]

    def backend_or_auto(self, backend: str, device: torch.device) -> str:
        """Return `backend` where this operation has it for `device`, else "auto".

        A network names one backend for all its operations, and not every operation has every backend.
        """
        return backend if backend in self.available(device) else "auto"

    def choose(self, backend: str, device: torch.device, dtype: torch.dtype | None = None) -> Callable:
        """Return the function for `backend` on `device`; "auto" looks at `dtype` as well.

        Raises VimlearnError where the name is unknown, not there yet, not meant for the device, or fails to import.
        """
        key = (check_backend(backend), DEFAULT_BACKEND, device.type, dtype)
        if key not in self._chosen:
            self._chosen[key] = self._choose(backend, device, dtype)
        return self._chosen[key]

    def _choose(self, backend: str, device: torch.device, dtype: torch.dtype | None) -> Callable:
        if backend == "auto":
            backend = self.backend_or_auto(_check_default(DEFAULT_BACKEND), device)
        if backend == "auto":
            return self._load_first([name for name, b in self._backends.items() if b.is_meant_for(device, dtype)])
        usable = self.available(device)
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


def register_compiled(operation: Operation, load_numba: Callable[[], Callable],
                      load_triton: Callable[[], Callable]) -> None:
    """Register the two compiled backends: Numba for the CPU, Triton for the GPU.

    Neither is chosen by itself for float64, which is for checks and not for speed. With TRITON_INTERPRET=1 in the
    environment Triton runs on the CPU too, very slowly, where it is asked for by name.
    """
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    interpreted = ("cpu",) if os.environ.get("TRITON_INTERPRET") == "1" else ()
    # On the device "meta" tensors have shapes and no numbers, and nothing is compiled.
    operation.register("numba", load_numba, devices=("cpu",), dtypes=dtypes, by_name_on=("meta",))
    operation.register("triton", load_triton, devices=("cuda",), dtypes=dtypes, by_name_on=("meta", *interpreted))


def register_export(operation: Operation, load: Callable[[], Callable]) -> None:
    """Register what goes into files for other programs: on every device, where it is asked for by name."""
    operation.register("export", load, devices=(), by_name_on=("cpu", "cuda", "meta"))
