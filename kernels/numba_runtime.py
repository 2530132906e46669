"""How a Numba kernel runs: compiled once and cached on disk, by the threads that PyTorch already has.

A kernel here is a function of one pointer, to a record of sizes and addresses. It takes tasks (a block of channels of
one sequence, say) from a shared counter until none is left, so it does not matter how many threads run it or when they
come. Who calls it is decided here, and not by Numba: its OpenMP layer brings a second runtime whose threads compete
with PyTorch's, and its workqueue layer aborts when two Python threads call at once.

- Where PyTorch runs on OpenMP, the kernel is handed to that very runtime, through its entry `GOMP_parallel`. The
  threads are the same, already awake, and as many as `torch.get_num_threads()` says.
- Elsewhere threads of Python call it. They run side by side because ctypes lets go of the interpreter lock.
- In a forked child it runs on one thread (see `forks`).
"""

__all__ = ["TEAM", "apart", "as_uint", "as_wide", "compile_kernel", "from_half", "multiply_add",
           "out_of_line", "pack", "pointer", "prefetch", "run", "scratch", "scratch_slots", "shift", "stack", "to_half"]

import ctypes
import functools
import hashlib
import os
import platform
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import llvmlite.ir as ir
import numba
import numpy as np
import torch
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from .forks import in_forked_child

PAGE = 4096
# The fields that every record begins with: two shared counters and the number of tasks.
TEAM = [("next_slot", np.int64), ("next_task", np.int64), ("tasks", np.int64)]

# Numba looks at one source file to tell whether what it cached is stale; a kernel spans several.
FINGERPRINT = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("numba_*.py")))
                             ).hexdigest()


def _widest_vectors(function: ir.Function) -> None:
    """Ask LLVM for vectors of 512 bits in this function, where the processor has them.

    Left alone it keeps to 256 bits on most of Intel's processors, because wide vectors once slowed the clock down. With
    256 bits the scan took 1.5 times as long, on a Xeon with AVX-512. Loops become vector code before functions become
    part of each other, so every function has to ask: the intrinsics that they all use do it for them.
    """
    # llvmlite lists the attributes that it knows, and this one is not among them.
    set.add(function.attributes, '"prefer-vector-width"="512"')


INT, BYTES = ir.IntType(32), ir.IntType(8).as_pointer()
# Processors that need up to a hundred cycles for a number so small that it has fewer digits (below 1.2e-38 in float32).
# Gradients get there in every training: they are small, and decays of 2^-20 a token make them smaller.
ON_X86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
# Bits of the float mode on these: such numbers are taken as 0 and written as 0.
TINY_AS_ZERO = np.uint32(0x8040)


@intrinsic
def pointer(typingctx, address, like):
    """Return the integer `address` as a pointer to numbers of the type `like`, such as np.float32."""
    def generate(context, builder, signature, args):
        _widest_vectors(builder.function)
        return builder.inttoptr(args[0], context.get_value_type(signature.return_type))
    return types.CPointer(like.dtype)(address, like), generate


@intrinsic
def shift(typingctx, start, count):
    """Return the pointer to the number that stands `count` numbers behind the pointer `start`."""
    def generate(context, builder, signature, args):
        _widest_vectors(builder.function)
        return builder.gep(args[0], [args[1]])
    return start(start, types.int64), generate


@intrinsic
def apart(typingctx, start):
    """Return the pointer `start`, and promise the compiler that what is reached through it is reached in no other way.

    Without the promise it has to fear that a store changes what the next load reads, and gives up vectors where a loop
    has many arrays. The promise is a function whose result is marked like that of malloc.
    """
    def generate(context, builder, signature, args):
        name, kind = "vimlearn_apart", args[0].type
        function = builder.module.globals.get(f"{name}_{kind.pointee}")
        if function is None:
            function = ir.Function(builder.module, ir.FunctionType(kind, [kind]), f"{name}_{kind.pointee}")
            function.linkage = "internal"
            function.return_value.add_attribute("noalias")
            for attribute in ("noinline", "optnone"):
                function.attributes.add(attribute)
            ir.IRBuilder(function.append_basic_block()).ret(function.args[0])
        return builder.call(function, [args[0]])
    return start(start), generate


@intrinsic
def arguments_apart(typingctx):
    """Promise the compiler that what one pointer argument of this function reaches is written through no other one.

    A function is made into vector code before it becomes part of its caller, so what the caller knows of the pointers
    comes too late. Without the promise every loop is preceded by a comparison of all pointers with each other.
    """
    def generate(context, builder, signature, args):
        _widest_vectors(builder.function)
        for argument in builder.function.args:
            if isinstance(argument.type, ir.PointerType):
                argument.add_attribute("noalias")
        return context.get_dummy_value()
    return types.void(), generate


@intrinsic
def out_of_line(typingctx):
    """Keep this function out of its callers, which are loops that seldom come here.

    As part of a loop it would have its say in which numbers stay in registers.
    """
    def generate(context, builder, signature, args):
        builder.function.attributes.add("noinline")
        return context.get_dummy_value()
    return types.void(), generate


@intrinsic(prefer_literal=True)
def stack(typingctx, count, like):
    """Return a pointer to `count` (a constant) numbers of the type `like` on the stack, not initialised.

    The compiler knows that such an array overlaps with no other, which an array on the heap does not tell it.
    """
    def generate(context, builder, signature, args):
        size = ir.Constant(ir.IntType(64), count.literal_value)
        memory = cgutils.alloca_once(builder, context.get_value_type(like.dtype), size=size)
        # A line of the cache, so that no vector lies across two.
        memory.align = 64
        return memory
    return types.CPointer(like.dtype)(count, like), generate


@intrinsic(prefer_literal=True)
def prefetch(typingctx, start, write):
    """Ask for the line of memory that the pointer `start` points to, before it is needed; `write` is a constant."""
    def generate(context, builder, signature, args):
        address, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic("llvm.prefetch", [address],
                                                    ir.FunctionType(ir.VoidType(), [address, number, number, number]))
        # Into all caches, as data.
        builder.call(function, [builder.bitcast(args[0], address), number(int(write.literal_value)), number(3),
                                number(1)])
        return context.get_dummy_value()
    return types.void(start, write), generate


@intrinsic
def fetch_add(typingctx, record, index):
    """Add 1 to counter `index` at the head of `record`, atomically, and return what it was before."""
    def generate(context, builder, signature, args):
        _widest_vectors(builder.function)
        counters = builder.bitcast(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", builder.gep(counters, [args[1]]), ir.Constant(ir.IntType(64), 1), "monotonic")
    return types.int64(record, index), generate


@intrinsic
def float_mode(typingctx):
    """Return how this thread computes with float numbers: rounding, and what becomes of tiny ones. 0 where unknown."""
    def generate(context, builder, signature, args):
        if not ON_X86:
            return ir.Constant(INT, 0)
        memory = cgutils.alloca_once(builder, INT)
        builder.call(_float_mode_function(builder.module, "stmxcsr"), [builder.bitcast(memory, BYTES)])
        return builder.load(memory)
    return types.uint32(), generate


@intrinsic
def set_float_mode(typingctx, mode):
    """Let this thread compute as `mode` says, a value of `float_mode` or one with other bits."""
    def generate(context, builder, signature, args):
        if ON_X86:
            memory = cgutils.alloca_once(builder, INT)
            builder.store(args[0], memory)
            builder.call(_float_mode_function(builder.module, "ldmxcsr"), [builder.bitcast(memory, BYTES)])
        return context.get_dummy_value()
    return types.void(types.uint32), generate


def _float_mode_function(module: ir.Module, name: str) -> ir.Function:
    return module.declare_intrinsic(f"llvm.x86.sse.{name}", (), ir.FunctionType(ir.VoidType(), [BYTES]))


def _conversion(result: types.Type, argument: types.Type, convert):
    """Return a function for kernels that applies `convert(builder, x)`, a sequence of LLVM instructions."""
    def conversion(typingctx, x):
        return result(argument), lambda context, builder, signature, args: convert(builder, args[0])
    return intrinsic(conversion)


@intrinsic
def multiply_add(typingctx, x, y, z):
    """Return x y + z, rounded once where the processor can, and as two operations where it cannot."""
    def generate(context, builder, signature, args):
        kind = args[0].type
        function = builder.module.declare_intrinsic("llvm.fmuladd", [kind], ir.FunctionType(kind, [kind] * 3))
        return builder.call(function, args)
    return x(x, x, x), generate


FLOAT, HALF = ir.FloatType(), ir.HalfType()
# The same 32 bits, read as another type.
as_uint = _conversion(types.uint32, types.float32, lambda builder, x: builder.bitcast(x, ir.IntType(32)))
as_wide = _conversion(types.float32, types.uint32, lambda builder, x: builder.bitcast(x, FLOAT))
# A float16, which Numba does not know on the CPU, as its 16 bits.
from_half = _conversion(types.float32, types.int16,
                        lambda builder, x: builder.fpext(builder.bitcast(x, HALF), FLOAT))
to_half = _conversion(types.int16, types.float32,
                      lambda builder, x: builder.bitcast(builder.fptrunc(x, HALF), ir.IntType(16)))


def compile_kernel(body, record: np.dtype, storage: type, wide: type):
    """Compile `body(args, slot, task, storage, wide)`, a `register_jitable` function, into a kernel for `run`.

    `args` is a record that begins with the fields of `TEAM`; a slot is a number that no other thread of the team has.
    storage is the type of numbers in memory (np.uint16 stands for bfloat16, np.int16 for float16), wide that of states
    and sums. Cached on disk where a folder can be written.
    """
    args_type = numba.from_dtype(record)
    version = FINGERPRINT + repr(record.descr)

    def work(data):
        args = numba.carray(data, 1)[0]
        # `version` is part of the cached kernel's key because it is used here.
        slot, mode = fetch_add(data, len(version) * 0), float_mode()
        set_float_mode(mode | TINY_AS_ZERO)
        task = fetch_add(data, 1)
        while task < args.tasks:
            body(args, slot, task, storage, wide)
            task = fetch_add(data, 1)
        set_float_mode(mode)

    def compiled(**options):
        return numba.cfunc(types.void(types.CPointer(args_type)), nopython=True, error_model="numpy", **options)(work)

    try:
        return compiled(cache=True)
    except RuntimeError as error:
        if "cache" not in str(error):
            raise
        warnings.warn(f"a compiled kernel is not kept for the next process: {error}; set NUMBA_CACHE_DIR to a folder "
                      "that can be written", stacklevel=2)
        return compiled()


# ------------------------------------------------------------------------------------------------- who calls a kernel

def scratch_slots(tasks: int) -> int:
    """Return how many threads `run` may put on that many tasks: none has more tasks than it can use."""
    return 1 if in_forked_child() else max(1, min(torch.get_num_threads(), tasks))


def scratch(threads: int, size: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, int]]:
    """Return memory of `size` numbers for each thread, and the fields of a record that say where it is.

    A processor fetches lines of memory ahead of those that a thread uses, up to the end of a page. So there is a page
    between the threads: next to each other, they took these lines away from each other all the time, and a scan on two
    threads took 1.1 times as long.
    """
    size += PAGE // dtype.itemsize
    memory = torch.empty(threads * size, dtype=dtype)
    return memory, {"scratch": memory.data_ptr(), "scratch_size": size}


@functools.cache
def _packing(record: np.dtype, given: tuple[str, ...]) -> tuple[struct.Struct, list[str]]:
    """Return how to pack a record of which only the given fields are not 0, and these in the order of the record."""
    names, code = [], "="
    for name, (kind, _) in record.fields.items():
        inner = [(name, kind)] if kind.fields is None else [(f"{name}.{n}", k) for n, (k, _) in kind.fields.items()]
        names += [n for n, _ in inner if n in given]
        code += "".join(("d" if k.char == "d" else "q") if n in given else "8x" for n, k in inner)
    assert set(given) == set(names), f"unknown fields: {set(given) - set(names)}"
    return struct.Struct(code), names


def pack(record: np.dtype, values: dict[str, int | float]) -> bytearray:
    """Return a record with the given numbers in its fields and 0 in all others. Much faster than field by field.

    A field of a record inside the record is called "outer.inner".
    """
    packing, names = _packing(record, tuple(values))
    return bytearray(packing.pack(*map(values.__getitem__, names)))


def run(kernel, args: bytearray, threads: int) -> None:
    """Let `threads` threads run `kernel` on a packed record until its tasks are done."""
    address, call = ctypes.addressof(ctypes.c_char.from_buffer(args)), _callable(kernel.address)
    if threads == 1 or in_forked_child():
        call(address)
    elif (parallel := _openmp_of_torch()) is not None:
        parallel(kernel.address, address, threads, 0)
    else:
        others = [_python_threads().submit(call, address) for _ in range(threads - 1)]
        call(address)
        for other in others:
            other.result()


@functools.cache
def _callable(address: int):
    # A foreign function of ctypes: it lets go of the interpreter lock while it runs.
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


@functools.cache
def _openmp_of_torch():
    """Return the entry of the OpenMP runtime that PyTorch was linked with, or None where it has no such entry."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        try:
            # A symbol is looked for in the library and in all that it was linked with.
            entry = ctypes.CDLL(str(folder / name)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        entry.restype = None
        return entry
    return None


@functools.cache
def _python_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="vimlearn-kernel")
