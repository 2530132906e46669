"""Checks of chapter 04: bytes, masks, a step forward, a step back, the order of chunks, shares of a sum.

Kernels run in `vimlearn.course.simulator`, so they need neither Triton nor a GPU, and every address that a program
touches is known: a mask is judged by what was read and written, not by the values alone.
"""

import builtins
import dis
import types
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vimlearn.course.answers import require_started
from vimlearn.course.exercise import Wrong, call, exercise, match, parts
from vimlearn.course.simulator import Block, Memory, in_language, run_watched
from vimlearn.course.verdict import kind_of

# What Triton knows of Python's own functions.
_BUILTINS = {"abs", "float", "getattr", "hasattr", "int", "isinstance", "len", "max", "min", "print", "range"}


def _random(*shape: int) -> Tensor:
    """Return the same float64 normal numbers for the same shape, every time."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def _decays(*shape: int) -> Tensor:
    """Return numbers between 0.4 and 0.95, all different."""
    return 0.4 + 0.55 * torch.sigmoid(_random(*shape).flip(0))


def _unset(*shape: int) -> Tensor:
    return torch.full(shape, float("nan"), dtype=torch.float64)


def _kernel_function(answer: object) -> Callable:
    """Return the Python function of a kernel, with or without @triton.jit. Raises NotStarted for the stub."""
    function = getattr(answer, "fn", answer)
    if not isinstance(function, types.FunctionType):
        raise Wrong("the answer should be a kernel: a function with @triton.jit above it")
    require_started(function)
    if {"torch", "np"} & set(function.__code__.co_names):
        raise Wrong("there is no torch and no numpy inside a kernel; use what tl has")
    for step in dis.get_instructions(function):
        if step.opname == "LOAD_GLOBAL" and step.argval not in _BUILTINS and hasattr(builtins, str(step.argval)):
            raise Wrong(f"Triton has no {step.argval}() inside a kernel; count with range and compute the rest")
    return function


def _run(answer: object, grid: tuple[int, ...], result: str, /, look: Callable | None = None,
         **arguments: object) -> dict[str, Memory]:
    """Run a learner's kernel; raise Wrong where it leaves its tensors or writes into an input. `look` sees the
    memories first.
    """
    function = _kernel_function(answer)
    memories = call(lambda: run_watched(function, grid, **arguments))
    if look:
        look(memories)
    for name, memory in memories.items():
        for verb, log in (("reads", memory.reads), ("writes", memory.writes)):
            for program, address in memory.outside(log)[:1]:
                end = f"ends at {memory.size - 1}" if address > 0 else "starts at 0"
                raise Wrong(f"program {program} {verb} address {address} of {name}, which {end}: out of bounds")
        if memory.writes and name != result:
            raise Wrong(f"program {min(memory.writes)} writes into its input {name}; the result belongs in {result}")
    return memories


def _own_channels(memory: Memory, block_of: Callable, e: int, E: int, per_channel: int = 1) -> None:
    """Raise Wrong where a program touches a channel that is not in its block of E of the e channels."""
    for verb, log in (("reads", memory.reads), ("writes", memory.writes)):
        for program, addresses in sorted(log.items()):
            block = block_of(program)
            for address in sorted(addresses):
                channel = address // per_channel % e
                if channel // E != block:
                    raise Wrong(f"program {program} {verb} {memory.name}{memory.place(address)}, channel {channel} of "
                                "another program; mask by channel < e, and count channels from block * E")


def _written_once(memory: Memory, what: str) -> None:
    """Raise Wrong where no program or more than one writes a number of the result."""
    writers = [[program for program, log in sorted(memory.writes.items()) if a in log] for a in range(memory.size)]
    for address, programs in enumerate(writers):
        if len(programs) > 1:
            raise Wrong(f"programs {programs[0]} and {programs[1]} both write {memory.name}{memory.place(address)}; "
                        f"{what}")
    for address, programs in enumerate(writers):
        if not programs:
            raise Wrong(f"no program writes {memory.name}{memory.place(address)}; is the mask too narrow, or a block "
                        "left out?")


@exercise("4.1", "Bytes on paper")
def bytes_on_paper(answer):
    """(4 l e + 2 l n) 4 bytes, and 6 l e n 4 more."""
    fused, unfused = parts(answer, "fused", "with a, x, s")
    match(
        fused,
        1600,
        name="the first number",
        mistakes={
            "400 counts numbers; one of float32 has 4 bytes": 400,
            "1280 leaves out one tensor of 80 numbers; y is written, and z is read as well": 1280,
            "1440 counts only one of B and C": 1440,
            "1920 takes B and C for tensors of e = 8 channels; they have n = 4 states a token": 1920,
            "1728 counts A too; the question leaves it out": 1728,
            "9280 is the unfused scan; the fused one comes first": 9280,
        },
    )
    match(
        unfused,
        9280,
        name="the second number",
        mistakes={
            "7680 is what a, x and s add; the inputs and y are moved as well": 7680,
            "5440 moves a, x and s once; they are written and read": 5440,
            "4160 counts only one of the three big tensors, written and read": 4160,
            "6720 counts two of the three big tensors": 6720,
            "2320 counts numbers; one of float32 has 4 bytes": 2320,
        },
    )
    return "what must be moved, and 4.8 times as much again for a, x and s."


def _own_token(memory: Memory, verb: str, program: tuple, addresses: set[int], e: int, E: int) -> None:
    """Raise Wrong where a program of exercise 4.2 touches the row of another token, and say why."""
    token, block = program
    foreign = [a for a in sorted(addresses) if a // e != token]
    if not foreign:
        return
    seen = f"program {program} {verb} {memory.name}{memory.place(foreign[0])}, in the row of another token"
    first = token * e + block * E
    if addresses <= set(range(first, first + E)):
        raise Wrong(f"{seen}; the mask has to compare the channel with e, not the address")
    if {a // e for a in addresses} == set(range(memory.shape[0])):
        raise Wrong(f"{seen}; there is no loop here: each program has one token, tl.program_id(0)")
    if all((a // e, a % e // E) == (block, token) for a in addresses):
        raise Wrong(f"{seen}; tl.program_id(0) is the token, and tl.program_id(1) the block")
    raise Wrong(f"{seen}; the address of its channel is tl.program_id(0) * e + channel")


@exercise("4.2", "The mask of a gate")
def gate_mask(answer):
    """out = y z sigmoid(z) by rows; the mask compares channels with e."""
    l, e, E = 3, 6, 4
    y, z = _random(l, e), _random(e, l).T.contiguous() + 0.3
    memories = _run(answer, (l, 2), "out", y=y, z=z, out=_unset(l, e), l=l, e=e, E=E)
    for memory in memories.values():
        for verb, log in (("reads", memory.reads), ("writes", memory.writes)):
            for program, addresses in sorted(log.items()):
                _own_token(memory, verb, program, addresses, e, E)
        _own_channels(memory, lambda program: program[1], e, E)
    _written_once(memories["out"], "each channel belongs to one program")
    match(
        memories["out"].tensor,
        y * z * torch.sigmoid(z),
        name="out",
        mistakes={
            "out lacks a factor z: the gate is z sigmoid(z)": y * torch.sigmoid(z),
            "out lacks the sigmoid": y * z,
            "out lacks y: this is the gate alone": z * torch.sigmoid(z),
            "y and z are exchanged: it is z that goes through the sigmoid": y * z * torch.sigmoid(y),
        },
    )
    return "each program reads and writes its own channels of its own token, and nothing else."


@exercise("4.3", "One step forward")
def forward_step(answer):
    """s = exp(d A) s + d u B, y = sum over n of s C."""
    E, n = 4, 2
    s, u, d, A = _random(E, n), _random(E) + 0.5, _decays(E), -_decays(n, E).T.contiguous()
    B, C = _random(n), _random(n + 1)[:n] - 1
    after = torch.exp(d[:, None] * A) * s + (d * u)[:, None] * B
    decay, fed = torch.exp(d[:, None] * A), (d * u)[:, None] * B
    got = parts(call(in_language(_kernel_function(answer)), *map(Block, (s, u, d, A, B, C))), "s", "y")
    got, y = (x.data if isinstance(x, Block) else x for x in got)
    match(
        got,
        after,
        name="the state",
        mistakes={
            "the state is not multiplied by its decay exp(d A)": s + (d * u)[:, None] * B,
            "the input lacks the step: it is d u B, not u B": torch.exp(d[:, None] * A) * s + u[:, None] * B,
            "the decay lacks the step: it is exp(d A), not exp(A)": torch.exp(A) * s + (d * u)[:, None] * B,
            "the old state is left out: exp(d A) multiplies s": torch.exp(d[:, None] * A) + (d * u)[:, None] * B,
            "the decay is d A without the exponential": d[:, None] * A * s + (d * u)[:, None] * B,
            "the input is left out": torch.exp(d[:, None] * A) * s,
            "the input lacks B": torch.exp(d[:, None] * A) * s + (d * u)[:, None],
            "the new input decays as well; exp(d A) multiplies the old state alone": decay * (s + fed),
            "the decay is 1 + d A, an Euler step; here it is exp(d A)": (1 + d[:, None] * A) * s + fed,
            "the input is that of the exact hold, (exp(d A) - 1) / A; here it is d u B": (
                decay * s + (decay - 1) / A * u[:, None] * B
            ),
            "B and C are exchanged": decay * s + (d * u)[:, None] * C,
        },
    )
    match(
        y,
        (after * C).sum(1),
        name="y",
        mistakes={
            "y is made from the old state; the token's own input belongs in it": (s * C).sum(1),
            "y lacks C": after.sum(1),
            "y uses B where C belongs": (after * B).sum(1),
            "y is summed over channels; sum over the states, axis 1": (after * C).sum(0),
            "y is not summed over the states": after * C,
        },
    )
    return "columns for channels, rows for states, and the tile of inputs lives for one step only."


@exercise("4.4", "Kept and recomputed")
def kept_and_recomputed(answer):
    """All states, chunk starts, and the steps from chunk start to each token."""
    everything, starts, steps = parts(answer, "all states", "chunk starts", "steps")
    match(
        everything,
        384,
        name="the number of all states",
        mistakes={
            "1536 counts bytes; the question is for numbers": 1536,
            "96 leaves out a factor: there are l e n of them": 96,
            "48 leaves out the channels: there are l e n of them": 48,
        },
    )
    match(
        starts,
        96,
        name="the number of chunk starts",
        mistakes={
            "128 has 4 chunks; 12 tokens in chunks of 4 are 3": 128,
            "64 leaves out the first chunk; its start, 0, is stored like the others": 64,
            "3 counts chunks; each start is a state of e n = 32 numbers": 3,
            "12 leaves out the channels": 12,
            "384 is all states again": 384,
        },
    )
    match(
        steps,
        18,
        name="the number of steps",
        mistakes={
            "66 starts at token 0 each time; the walk starts at the chunk": 66,
            "30 walks to the token itself; the state before it is one step less": 30,
            "12 recomputes each token once; there is no room to keep the chunk's states, so each walk starts anew": 12,
            "6 is one chunk; there are three": 6,
            "9 recomputes each chunk once; each of its tokens needs a walk of its own": 9,
        },
    )
    return "a quarter of the memory for one and a half steps more a token."


def _gradient(a: Tensor, c: Tensor, decay_of: int = 1, carry: bool = True) -> Tensor:
    """Return g[t] = a[t + decay_of] g[t+1] + c[t] for (l, e), with the mistakes of exercise 4.5 as options."""
    g = c.clone()
    for t in reversed(range(len(c) - 1)):
        g[t] = c[t] + a[t + decay_of] * (g if carry else c)[t + 1]
    return g


def _from_left(a: Tensor, c: Tensor, decay_of: int = 0) -> Tensor:
    """Return g[t] = a[t + decay_of] g[t-1] + c[t], walked from the first token."""
    g = c.clone()
    for t in range(1, len(c)):
        g[t] = c[t] + a[t + decay_of] * g[t - 1]
    return g


def _last_token(memories: dict[str, Memory]) -> None:
    """Raise Wrong where the first program of exercise 4.5, whose lanes all exist, goes on behind the last token."""
    a, c, g = memories.values()
    end = min((address for address in a.reads[(0,)] if address >= a.size), default=None)
    if end is None:
        return
    if any(address >= c.size for address in c.reads[(0,)] | g.writes[(0,)]):
        raise Wrong(f"program (0,) uses token {len(c.tensor)}, and the last one is {len(c.tensor) - 1}: out of bounds; "
                    "the last token is l - 1")
    raise Wrong(f"program (0,) reads address {end} of a, which ends at {a.size - 1}: out of bounds. That is a of token "
                "l, which does not exist; carry h = a g instead")


@exercise("4.5", "The backward recurrence")
def gradient_kernel(answer):
    """g[t] = c[t] + h[t], h[t-1] = a[t] g[t], walked from the last token."""
    l, e, E = 5, 6, 4
    a, c = _decays(l, e), _random(l, e)
    memories = _run(answer, (2,), "g", _last_token, a=a, c=c, g=_unset(l, e), l=l, e=e, E=E)
    for memory in memories.values():
        _own_channels(memory, lambda program: program[0], e, E)
    _written_once(memories["g"], "each channel belongs to one program")
    match(
        memories["g"].tensor,
        _gradient(a, c),
        name="g",
        mistakes={
            "g is c, the direct gradient alone; the carry from the later tokens is forgotten": c,
            "g uses the token's own a[t]; what comes from token t + 1 was multiplied by a[t+1]": _gradient(a, c, 0),
            "the carry holds only the direct gradient of the next token; carry a times the whole g": (
                _gradient(a, c, carry=False)
            ),
            "g is walked from the first token, as the states are; the gradient comes from the last": _from_left(a, c),
            "g is walked from the first token, with t = i; the gradient comes from the last, t = l - 1 - i": (
                _from_left(a, c, -1)
            ),
            "this is the carry a g; store g itself": a * _gradient(a, c),
            "the carry is not multiplied by the decay": c.flip(0).cumsum(0).flip(0),
        },
    )
    return "the last token comes first, and nothing behind the end is read."


@exercise("4.6", "Tokens of a chunk")
def chunk_tokens(answer):
    """Chunks are cut from the left; in reverse their order and that of their tokens turn round."""
    for l, m, reverse in ((10, 4, False), (10, 4, True), (12, 4, True), (3, 4, True), (1, 4, False)):
        chunks = -(-l // m)
        for k in range(chunks):
            got = call(answer, k, l, m, reverse)
            got = [int(t) for t in got] if isinstance(got, Iterable) and not isinstance(got, str) else got
            name = f"chunk {k} of {l} tokens, m = {m}, reverse = {reverse},"
            if not isinstance(got, list):
                raise Wrong(f"{name} should be a list of tokens, but it is {kind_of(got)}")
            if any(not 0 <= t < l for t in got):
                bad = next(t for t in got if not 0 <= t < l)
                raise Wrong(f"{name} holds token {bad}; the tokens end at {l - 1}: out of bounds")
            edges = range((chunks - 1 - k if reverse else k) * m, min((chunks - k if reverse else k + 1) * m, l))
            tokens, other = list(edges), list(range(k * m, min(k * m + m, l)))
            cut = list(range(l))[::-1][k * m : k * m + m]
            whole = list(range(max(l // m - 1 - k, 0) * m, max(l // m - k, 0) * m))[::-1]
            right = tokens[::-1] if reverse else tokens
            mistakes = {
                "the right chunk, but its tokens are in ascending order; a scan from the right descends": tokens,
                "the right chunk, but its tokens descend; a scan from the left ascends": tokens[::-1],
                "the chunks are in the wrong order: from the right, the last chunk is met first": other[::-1],
                "chunks and tokens are those of a scan from the left; here it runs from the right": other,
                "the chunks are cut from the right; the edges are the same for both directions": cut,
                "l // m does not count the short chunk at the end; -(-l // m) rounds up": whole,
            }
            if got != right:
                raise Wrong(next((message for message, wrong in mistakes.items() if got == wrong),
                                 f"{name} is {got[:6]}, expected {right}"))
    return "the edges stay, and the order turns round twice: of chunks and of tokens."


@exercise("4.7", "A share of B's gradient")
def share_kernel(answer):
    """shares[k, t] = sum over the channels of block k of g x."""
    l, e, n, E = 3, 6, 8, 4
    g, x = _random(l, e, n), _random(l, e) + 0.4
    memories = _run(answer, (2,), "shares", g=g, x=x, shares=_unset(2, l, n), l=l, e=e, n=n, E=E)
    _own_channels(memories["g"], lambda program: program[0], e, E, per_channel=n)
    _own_channels(memories["x"], lambda program: program[0], e, E)
    _written_once(memories["shares"], "each program needs a place of its own, shares[block]")
    right = torch.stack([torch.einsum("len,le->ln", g[:, c], x[:, c]) for c in (slice(0, E), slice(E, e))])
    got = memories["shares"].tensor
    if got[1].isnan().any() and not got[0].isnan().any():
        raise Wrong("the share of the last program is NaN: lanes that do not exist went into the sum; load them with "
                    "other=0")
    match(
        got,
        right,
        name="shares",
        mistakes={
            "the shares lack the factor x": torch.stack([g[:, :E].sum(1), g[:, E:].sum(1)]),
            "the shares lack the factor g": torch.stack([x[:, :E].sum(1), x[:, E:].sum(1)])[..., None].expand(2, l, n),
            "every token holds the running sum of the tokens so far; B has a gradient for each token": right.cumsum(1),
            "the two shares are exchanged": right.flip(0),
            "the shares lie as (l, blocks, n); they are (blocks, l, n), so token t of block k is row k * l + t": (
                right.transpose(0, 1).reshape(right.shape)
            ),
            "a lane that does not exist repeats the last channel and is added again; it must add 0": torch.stack(
                [right[0], right[1] + (2 * E - e) * g[:, -1] * x[:, -1:]]
            ),
        },
    )
    return "a place for each program, zeros in the lanes that do not exist, and no order to depend on."
