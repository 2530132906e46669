"""The command line, `vimlearn COMMAND`, also as `python -m vimlearn.cli COMMAND`. `USAGE` lists the commands.

What a command needs is imported when the command runs. Bad input ends in one line on stderr and exit code 2.
"""

__all__ = ["main"]

import argparse
import contextlib
import inspect
import io
import itertools
import os
import re
import signal
import sys
from collections.abc import Iterable
from dataclasses import fields

from torch import distributed

from .cli_eval import EvalOptions, accuracy_line, report
from .errors import VimlearnError, nearest

USAGE = """\
usage: vimlearn COMMAND [OPTIONS]

Vision Mamba: train it, test it, see what it looks at, take it elsewhere, measure it, follow the course.

  vimlearn train      train a network; without options, the built-in one on handwritten digits
  vimlearn eval       accuracy of trained weights: a run's, or published ones
  vimlearn explain    maps of what a network looks at, drawn over your images
  vimlearn export     write trained weights as ONNX and .pt2 files, which run without vimlearn
  vimlearn bench      speed and memory of Vim beside DeiT, on this machine
  vimlearn progress   which exercises of the course you have solved
  vimlearn fetch      download a published set of images: cifar10 or imagenette

  vimlearn COMMAND --help   every option of a command
  vimlearn --version        the version
"""


def main(args: list[str] | None = None) -> int:
    """Run the command that `args` (by default those of the process) name, and return its exit code.

    0: done. 2: bad input. 128 + n: stopped by signal n; 130 is Ctrl-C.
    """
    args = sys.argv[1:] if args is None else list(args)
    try:
        _dispatch(args)
        code = 0
    except VimlearnError as error:
        _complain(error)
        code = 2
    except KeyboardInterrupt as stop:
        _complain(str(stop) or "stopped")
        code = 128 + getattr(stop, "signal", signal.SIGINT)
    _leave_the_others(code)
    return code


def _leave_the_others(code: int) -> None:
    """End a process that trained with others, at once; do nothing in any other.

    A thread of gloo lets go of a sum some time after whoever waited for it went on. If Python is being taken down by
    then, C++ ends the process: "terminate called without an active exception", SIGABRT, and torchrun calls the run
    failed. Destroying the group does not end that thread once DistributedDataParallel has used it.
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return
    if code == 0:
        # NCCL waits for the others here, and they come too, unless this process was stopped or failed alone.
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _complain(message) -> None:
    # One write: print takes two where Python is unbuffered, and the lines of two processes would mix.
    sys.stderr.write(f"vimlearn: {message}\n")


def _dispatch(args: list[str]) -> None:
    name, rest = (args[0], args[1:]) if args else ("--help", [])
    if name in ("-h", "--help"):
        print(USAGE, end="")
    elif name == "--version":
        from . import __version__
        print(f"vimlearn {__version__}")
    elif name in COMMANDS:
        COMMANDS[name](rest)
    else:
        raise VimlearnError(f"unknown command {name!r}{nearest(name, COMMANDS)}; expected one of {', '.join(COMMANDS)}")


def _train(args: list[str]) -> None:
    """Train a network and write log, options and weights into a folder.

    --config FILE.yaml takes options from a file, in the groups below; --config NAME takes one that comes along:
    {recipes}. The command line goes over the file, and the file over the defaults. The defaults printed here are those
    of the file where one is named.

    On several GPUs: torchrun --nproc-per-node COUNT -m vimlearn.cli train ..., or accelerate launch. The batch size is
    that of all processes together, so the run is the same.
    """
    from .training.options import Options, find_recipe, known_options, read_yaml, recipe_names

    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    own.add_argument("--config", action="append")
    try:
        found, args = own.parse_known_args(args)
    except argparse.ArgumentError as error:
        raise VimlearnError("--config needs the name of a YAML file") from error
    if len(found.config or []) > 1:
        raise VimlearnError(f"--config is given {len(found.config)} times; expected one file")
    start = read_yaml(find_recipe(found.config[0])) if found.config else Options()
    description = inspect.cleandoc(_train.__doc__).format(recipes=", ".join(recipe_names()))
    options = _parse(Options, "train", description, args, ["config", *known_options()], start)

    from .training import train
    from .training.memory import keep_freed_memory

    keep_freed_memory()
    result = train(options)
    if int(os.environ.get("RANK", 0)):
        return
    print(accuracy_line(result.heldout, "held-out accuracy"))
    if options.data.dataset == "digits":
        from .data import digits
        from .evaluate import nearest_neighbour
        print(f"  {nearest_neighbour(*digits()):8.2%}  1-nearest neighbour on the same split, which learns nothing")
        print(NEIGHBOUR_NOTE)
    if result.folder:
        print(f"written to {result.folder}: log.csv, options.yaml, model.safetensors (after the last epoch), states\n"
              f"vimlearn eval --checkpoint {result.folder / 'model.safetensors'} gives the same accuracy")


NEIGHBOUR_NOTE = """\
            It is hard to beat here: the digits are tiny, centred and aligned, and the file keeps similar ones together,
            so near copies of a held-out digit are among the training images (data/runs/README.md has the numbers)."""


def _evaluate(args: list[str]) -> None:
    """Measure trained weights on the held-out part of a set of images: top-1 and top-5 accuracy and cross-entropy.

    The weights are those of a run, --checkpoint FILE, or those of a released network, --model NAME --weights SOURCE.
    Without either, it is the Vim that comes along, trained on CIFAR-10.
    Images of some of the network's classes are enough; all its classes stay in the choice.
    """
    options = _parse(EvalOptions, "eval", _evaluate.__doc__, args, [f.name for f in fields(EvalOptions)])
    print("\n".join(report(options)))


def _export(args: list[str]) -> None:
    """Write a trained network as files that run without vimlearn: model.onnx and model.pt2.

    The network is that of a run, --checkpoint FILE, or a released one, --model NAME --weights SOURCE. Without either,
    it is the Vim that comes along, trained on CIFAR-10.

    Each file is opened and run before it gets its name: model.onnx in onnxruntime, model.pt2 in PyTorch. A file whose
    logits differ from the network's by more than --tolerance is not kept, and the command ends with an error. Then the
    network and the files take turns, and their speed is printed.
    """
    from .cli_export import ExportOptions, report

    options = _parse(ExportOptions, "export", _export.__doc__, args, [f.name for f in fields(ExportOptions)])
    for line in report(options):
        print(line, flush=True)


def _explain(args: list[str]) -> None:
    """Draw what a Vim looks at over images, and write each map with its numbers and a text in words.

    vimlearn explain IMAGE ... --output FOLDER [--method METHOD]

    The network is that of a run, --checkpoint FILE, or a released one, --model NAME --weights SOURCE. Without either,
    it is the Vim that comes along, trained on CIFAR-10: it sees 32 x 32 pixels and knows ten classes.
    Rows, columns, layers and classes are counted from 0.
    """
    from tqdm import tqdm

    from .cli_explain import ExplainOptions, report

    options = _parse(ExplainOptions, "explain", _explain.__doc__, args, [f.name for f in fields(ExplainOptions)])
    for line in report(options):
        # Past the bar.
        tqdm.write(line)


def _progress(args: list[str]) -> None:
    """Show which exercises of the course are solved."""
    if args in (["-h"], ["--help"]):
        print(f"usage: vimlearn progress\n\n{_progress.__doc__}")
        return
    if args:
        raise VimlearnError(f"`vimlearn progress` takes no options, found {args[0]!r}")
    from .course.progress import report
    print(report())


def _fetch(args: list[str]) -> None:
    """Download a published set of images, check it, and write it as FOLDER/{train,val}/CLASS/IMAGE.

    cifar10: CIFAR-10, 170 MB to download. imagenette: Imagenette2-320, 342 MB.

    A download that broke off is taken up where it was. A set that is there already is left alone.
    """
    from .fetch import FetchOptions, fetch_dataset

    options = _parse(FetchOptions, "fetch", _fetch.__doc__, args, ["output", "url", "quiet"])
    fetch_dataset(**vars(options))


def _bench(args: list[str]) -> None:
    """Measure models against each other, on this machine: time, peak memory, and from which size on Vim is faster.

    Each contestant has a process of its own, and they take turns. Rows are written after each size; a run that was
    stopped goes on with --resume. Running out of memory is a result.

    vimlearn bench scan: the scan alone, against its floor.

    vimlearn bench scaling: how cost grows with the number of tokens.

    vimlearn bench floor: what the parts of a Vim must cost at least on this CPU, and the share of that reached.
    """
    from . import cli_bench

    part = args[0] if args and not args[0].startswith("-") else ""
    if part not in cli_bench.PARTS:
        known = [name for name in cli_bench.PARTS if name]
        raise VimlearnError(f"unknown part {part!r} of vimlearn bench{nearest(part, known)}; expected one of "
                            f"{', '.join(known)}, or options alone")
    form, report = cli_bench.PARTS[part]
    description = re.split(" Returns| Raises", report.__doc__)[0] if part else _bench.__doc__
    options = _parse(form, f"bench {part}".strip(), description, args[1:] if part else args,
                     [f.name for f in fields(form)])
    print("\n".join(report(options)))


COMMANDS = {"train": _train, "eval": _evaluate, "explain": _explain, "export": _export, "bench": _bench,
            "progress": _progress, "fetch": _fetch}


def _parse(form: type, command: str, description: str, args: list[str], known: Iterable[str], start=None):
    """Turn flags into the dataclass `form`, over the values of `start`; every complaint becomes a VimlearnError."""
    import tyro

    default = {} if start is None else {"default": start}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options, left = tyro.cli(tyro.conf.OmitArgPrefixes[form], prog=f"vimlearn {command}", args=args,
                                     description=inspect.cleandoc(description), return_unknown_args=True, **default)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise VimlearnError(f"{_first_sentence(complaint.getvalue())}; "
                            f"`vimlearn {command} --help` explains every option") from None
    for word in left:
        name = word.split("=")[0]
        if not name.startswith("-"):
            raise VimlearnError(f"unexpected {word!r}; expected options such as --{next(iter(known))} VALUE")
        flags = [option.replace("_", "-") for option in known]
        hint = nearest(name.lstrip("-").replace("_", "-"), flags).replace("'", "'--", 1)
        raise VimlearnError(f"unknown option {name}{hint}; `vimlearn {command} --help` lists all")
    return options


def _first_sentence(box: str) -> str:
    """Return what tyro says first in its framed message, on one line: what stands below the title, up to a rule."""
    title, *lines = [line.strip(" │╭╮╰╯") for line in box.splitlines() if line.strip()] or [""]
    if lines and not lines[0].strip("-─"):
        # Where the frame cannot be drawn, the title has a rule of its own.
        del lines[0]
    lines = list(itertools.takewhile(lambda line: line.strip("-─"), lines))
    # A check of our own names what is wrong; tyro puts the dataclass in front of it.
    return re.sub(r"^Error parsing \w*Options: ", "", " ".join(lines)).rstrip(".") or title.strip("─ ")


if __name__ == "__main__":
    sys.exit(main())
