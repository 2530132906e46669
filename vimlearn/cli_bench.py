"""`vimlearn bench`: options of the benchmarks, and what is said at their end."""

__all__ = ["PARTS", "BenchOptions", "FloorOptions", "ScalingOptions", "ScanOptions", "bench", "floor", "scaling",
           "scan"]

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import VimlearnError

PUBLISHED_SIZES = (512, 640, 738, 1024, 1248)


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Options of the benchmarks that fill a table row by row."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute. auto: the GPU if there is one."""
    resume: bool = False
    """Whether to go on with a table that is there already: what it holds is not measured again."""
    overwrite: bool = False
    """Whether to begin anew where a table is there already."""
    quiet: bool = False
    """Whether to leave the progress bar out."""


@dataclass(frozen=True, kw_only=True)
class BenchOptions(TableOptions):
    """Options of `vimlearn bench`."""

    models: tuple[str, ...] = ("vim-ti", "deit-ti-fused", "deit-ti-plain")
    """Contestants: vim-ti, vim-s, vim-b, deit-ti-fused, deit-ti-plain and the same with s and b, resnet-50. Ratios are
    to the first."""
    sizes: tuple[int, ...] = (224, *PUBLISHED_SIZES)
    """Sides of the square images, pixels, multiples of 16. Without 224: those of the paper's Figure 1."""
    until_it_breaks: bool = False
    """Whether to go on with images a quarter larger each time, until every model has run out of memory or time."""
    batch_sizes: tuple[int, ...] = (1,)
    """Images at a time, counts."""
    dtypes: tuple[Literal["float32", "bfloat16", "float16"], ...] = ("float32",)
    """Number formats. In a training step the weights stay in float32, under autocast."""
    modes: tuple[Literal["inference", "training"], ...] = ("inference",)
    """What is timed. training: forward, backward and a step of AdamW."""
    execution: tuple[Literal["eager", "compiled"], ...] = ("eager",)
    """How PyTorch runs the network. compiled: by torch.compile."""
    pyramid: bool = False
    """Whether to take backbones without head and class token, with the feature pyramid of a detector on them: the
    paper's Figures 3 and 4."""
    rounds: int = 15
    """Turns of each contestant at most, a count."""
    budget: float = 60.0
    """Time for the turns of one comparison, seconds; slow contestants get fewer of them, and 3 at least."""
    longest: float = 120.0
    """A contestant whose call takes longer than this many seconds is not called again."""
    memory_limit: float | None = None
    """Memory that a contestant may take, GB. More counts as out of memory. None: what the machine has."""
    threads: int | None = None
    """Threads on the CPU, a count. None: as PyTorch chooses."""
    output: str = "bench_models.csv"
    """Table to write. The figure is written beside it, with .png at its end."""


@dataclass(frozen=True, kw_only=True)
class ScalingOptions(TableOptions):
    """Options of `vimlearn bench scaling`."""

    models: tuple[str, ...] = ("vim-ti", "deit-ti-fused", "deit-ti-plain")
    """Contestants, as in vimlearn bench."""
    sizes: tuple[int, ...] = (224, 320, 448, 640, 896, 1248)
    """Sides of the square images, pixels; tokens double from each to the next."""
    batch_sizes: tuple[int, ...] = (1,)
    """Images at a time, counts. On a GPU take 16 or more: one image is done before the next kernel has started."""
    budget: float = 20.0
    """Time for the turns of one size, seconds."""
    output: str = "bench_scaling.csv"
    """Table to write, with a figure beside it."""


@dataclass(frozen=True)
class ScanOptions:
    """Options of `vimlearn bench scan`."""

    batch_size: int = 8
    """Sequences at a time, a count."""
    tokens: int = 197
    """Length of a sequence, a count. 197: an image of 224 pixels."""
    channels: int = 384
    """Inner width, a count. 384: Vim-Ti."""
    states: int = 16
    """States a channel, a count; a multiple of 4."""
    peers: bool = False
    """Whether transformers and mambapy take part; benchmarks/peers.txt lists them."""
    rounds: int = 15
    """Turns of each contestant, a count."""
    output: str | None = None
    """Table to write. None: there is none."""


@dataclass(frozen=True)
class FloorOptions:
    """Options of `vimlearn bench floor`."""

    model: Literal["vim-ti", "vim-s", "vim-b"] = "vim-ti"
    """The network."""
    sizes: tuple[int, ...] = (224, 512, 1248)
    """Sides of the square images, pixels."""
    rounds: int = 9
    """Turns of network and floor, a count."""
    output: str | None = None
    """Table to write. None: there is none."""


def bench(options: BenchOptions) -> list[str]:
    """Measure models against each other. Returns the lines to print. Raises VimlearnError on all that cannot be."""
    from .benchmark.case import groups
    from .benchmark.models import Rules

    device = _device(options.device)
    rules = Rules(options.rounds, budget=options.budget, longest=options.longest, threads=options.threads,
                  memory_limit=options.memory_limit)
    plan = groups(options.models, mode=options.modes, batch_size=options.batch_sizes, dtype=options.dtypes,
                  compiled=tuple(way == "compiled" for way in options.execution), size=options.sizes,
                  pyramid=(options.pyramid,), device=(device,))
    return _measured(options, plan, rules, device, until_it_breaks=options.until_it_breaks)


def scaling(options: ScalingOptions) -> list[str]:
    """Measure how cost grows with tokens. Returns the lines to print."""
    from .benchmark.case import groups
    from .benchmark.models import Rules

    device = _device(options.device)
    plan = groups(options.models, batch_size=options.batch_sizes, size=options.sizes, device=(device,))
    return _measured(options, plan, Rules(budget=options.budget), device)


def scan(options: ScanOptions) -> list[str]:
    """Measure the scan alone, on the CPU. Returns the lines to print."""
    from .benchmark.scan_contest import Sizes, scan_contest
    from .benchmark.table import check_writable

    if options.output:
        check_writable(options.output)
    return _plain(options, scan_contest(Sizes(options.batch_size, options.tokens, options.channels, options.states),
                                        options.rounds, options.peers))


def floor(options: FloorOptions) -> list[str]:
    """Measure a network against its floor. Returns the lines to print."""
    from .benchmark.network_floor import floor_lines, floor_rows
    from .benchmark.table import check_writable

    if options.output:
        check_writable(options.output)
    rows = floor_rows(options.model, options.sizes, options.rounds)
    return [*_plain(options, rows), "", *floor_lines(rows)]


def _device(name: str) -> str:
    import torch
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def _measured(options, plan, rules, device: str, until_it_breaks: bool = False) -> list[str]:
    """Check everything, measure, write table and figures, and return the summary."""
    from .benchmark import figure, session, summary
    from .benchmark.table import check_writable, finished

    output = Path(options.output)
    check_writable(output)
    if output.exists() and not (options.resume or options.overwrite):
        raise VimlearnError(f"{output} is there already; --resume goes on with it, --overwrite begins anew, and "
                            "--output names another file")
    where = session.place(device, rules.threads)
    kept = finished(output, where) if options.resume else []
    try:
        rows = session.run(plan, rules, output, where, kept, until_it_breaks, options.quiet)
    except KeyboardInterrupt as stop:
        there = output.exists()
        left = f"{output} holds what is finished, and --resume goes on" if there else "nothing is finished yet"
        raise KeyboardInterrupt(f"stopped; {left}") from stop
    pictures = figure.save_all(rows, output)
    return [*summary.table(rows), "", *summary.lines(rows), *_warned(summary.warnings(rows)), "",
            f"written: {', '.join(str(path) for path in (output, *pictures))}"]


def _warned(found: list[str]) -> list[str]:
    return ["", "not to be trusted:", *(f"  {line}" for line in found)] if found else []


def _plain(options, rows: list[dict]) -> list[str]:
    """Write a table if one is asked for, and return the rows as lines."""
    from .benchmark import summary
    from .benchmark.contest import write_rows
    from .benchmark.session import place

    where = place("cpu")
    if options.output:
        write_rows(Path(options.output), [row | where for row in rows])
    written = [f"written: {options.output}"] if options.output else []
    return [f"{where['machine']}, {where['threads']} threads, {where['versions']}", *summary.plain(rows), *written]


PARTS = {"": (BenchOptions, bench), "scan": (ScanOptions, scan), "scaling": (ScalingOptions, scaling),
         "floor": (FloorOptions, floor)}
