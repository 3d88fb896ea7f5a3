"""Times things against each other, by turns, each in a process of its own.

Turns, because what slows a machine down, other work or its own heat, then slows all sides alike: ratios within a round
survive that. Processes, because sides that share one change each other's times: the C library decides by what was freed
before whether a large map is reused or taken from the system by the page, and the thread pools of PyTorch, ONNX Runtime
and OpenVINO spin against each other. It also gives each side a peak memory of its own.
"""
import ctypes
import gc
import multiprocessing
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

__all__ = ["Spread", "Timing", "spread", "time_by_turns"]

Name = TypeVar("Name")


@dataclass(frozen=True)
class Timing:
    """How one side did.

    Attributes:
        seconds: Of one pass, as the mean over each round.
        memory: Peak memory in bytes: of its process, less what that had before the side was made; on a GPU, what torch
            allocated there. None where the system doesn't tell.
        shape: Shape of the result.
        error: Why there is no timing, else empty.
    """

    seconds: tuple[float, ...] = ()
    memory: int | None = None
    shape: tuple[int, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile of values of rounds."""

    median: float
    low: float
    high: float

    def format(self, digits: int, scale: float = 1.) -> str:
        median, low, high = (f"{scale * value:.{digits}f}" for value in (self.median, self.low, self.high))
        return f"{median} ({low}-{high})"


def spread(values: Any) -> Spread:
    low, median, high = np.percentile(np.asarray(values, dtype=np.float64), [10, 50, 90])
    return Spread(float(median), float(low), float(high))


def _resident(key: str) -> int | None:
    """Resident bytes of this process, now (``VmRSS``) or at its peak (``VmHWM``); None where the kernel isn't Linux."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)


def _forget_making() -> bool:
    """Gives back what making a side left. Returns whether the peak of the resident memory starts anew."""
    gc.collect()
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", int)(0)
        with suppress(OSError):  # not in every container
            Path("/proc/self/clear_refs").write_text("5")
            return True
    return False


def _peak_memory(device: torch.device, before: int | None) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    peak = _resident("VmHWM")
    return None if before is None or peak is None else peak - before


def _clock(run: Callable[[], Any], passes: int, device: torch.device) -> float:
    """Seconds of one pass: the mean of some, with the device done before and after."""
    module = torch.get_device_module(device)
    module.synchronize()
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(passes):
            run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / passes
    start = time.perf_counter()
    for _ in range(passes):
        run()
    module.synchronize()
    return (time.perf_counter() - start) / passes


def _seconds_of_a_pass(run: Callable[[], Any], seconds: float, device: torch.device) -> float:
    """Found by doubling the passes until some seconds are filled."""
    passes = 1
    while (each := _clock(run, passes, device)) * passes < seconds:
        passes *= 2
    return each


@torch.inference_mode()
def _serve(
        connection: Connection,
        make: Callable[[], Callable[[], Any]],
        device: torch.device,
        threads: int,
        seconds: float,
        rounds: int,
        warmup: int,
) -> None:
    """A side's process: makes it and warms it up, then answers each True with the time of a round, False with the end.
    """
    try:
        warnings.simplefilter("ignore")  # of the libraries, once for each process
        if device.type == "cuda":  # whose events and graphs are those of the current device
            torch.cuda.set_device(device.index or 0)
        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = True
        before = _resident("VmRSS")
        with torch.inference_mode(False):  # a side is made as usual: deployed, compiled, scripted
            run = make()
        before = before if _forget_making() else None
        for _ in range(warmup):
            result = run()
        passes = max(1, round(seconds / rounds / _seconds_of_a_pass(run, seconds / 6, device)))
        connection.send(tuple(result.shape))
        while connection.recv():
            connection.send(_clock(run, passes, device))
        connection.send(_peak_memory(device, before))
    except (EOFError, KeyboardInterrupt):  # the other end has gone, or goes
        pass
    except Exception as error:  # whatever a backend raises is a line in the table
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        connection.send(RuntimeError(lines[0] if lines else type(error).__name__))


class _Side:
    """This process's end of a side."""

    def __init__(self, context: Any, *arguments: Any):  # Python's types know no Process of a context
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, *arguments))
        self.process.start()
        theirs.close()
        self.seconds: list[float] = []
        self.error = ""
        self.shape = self._receive()

    def _receive(self) -> Any:
        """The side's next word; None, with ``error`` set, if it failed."""
        try:
            word = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            word = RuntimeError(f"its process ended with exit code {self.process.exitcode}: out of memory?")
        if isinstance(word, RuntimeError):
            self.error = str(word)
            return None
        return word

    def _ask(self, go_on: bool) -> Any:
        with suppress(ConnectionError):  # it has gone: receiving says why
            self.connection.send(go_on)
        return self._receive()

    def take_turn(self) -> None:
        if not self.error:
            self.seconds.append(self._ask(True))

    def end(self) -> Timing:
        memory = None if self.error else self._ask(False)
        self.connection.close()
        self.process.join()
        return Timing(error=self.error) if self.error else Timing(tuple(self.seconds), memory, self.shape)


def time_by_turns(
        makers: Mapping[Name, Callable[[], Callable[[], Any]]],
        device: torch.device,
        threads: int,
        seconds: float = 6.,
        rounds: int = 12,
        warmup: int = 10,
) -> dict[Name, Timing]:
    """Times several sides by turns: one pass of each is ``makers[name]()()``.

    The method of the paper's FPS, in rounds: warm-up passes, then passes doubled until a sixth of the time is filled,
    one second of six, tell how many passes a round has; in each round every side runs them, in order and, the next
    time, in reverse.

    Args:
        makers: What makes each side, in its own process: a picklable function (a `functools.partial` of one at the top
            of a module) that returns a function without arguments, whose result has a ``shape``.
        device: What is synchronised around a round, and whose memory counts.
        threads: Of torch in each process; other runtimes are told by their makers.
        seconds: Time for each side, over all rounds; one pass in each round is the least.
        rounds: Number of rounds.
        warmup: Passes before anything is timed.
    """
    forks = sys.platform == "linux"  # imports once, forks before any thread runs; macOS's Metal doesn't survive it
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload([__name__, "bssnet_zoo.benchmark.backends"])
    sides = {}
    try:
        for name, make in tqdm(makers.items(), desc="warming up", unit="side", leave=False, disable=None):
            sides[name] = _Side(context, make, device, threads, seconds, rounds, warmup)
        for number in tqdm(range(rounds), desc="timing", unit="round", leave=False, disable=None):
            for side in list(sides.values())[::-1 if number % 2 else 1]:
                side.take_turn()
    finally:
        timings = {name: side.end() for name, side in sides.items()}
    return timings
