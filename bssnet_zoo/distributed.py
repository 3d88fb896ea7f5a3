"""One process among several, or alone; and those that load images for it."""
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so, reduce_tensor
from torch.utils.data import DataLoader

from .device import parse_device

__all__ = [
    "Process", "end_process", "explained", "init_process", "is_initialized", "leave_signals_to_parent", "loading"]

NO_MEMORY = re.compile(r"DataLoader worker \(pid|shared memory|ancdata")  # what torch says of a loader's process
ADVICE = "give a container more shared memory (docker run --shm-size 2g), or load in one process (--workers 0)"
Value = TypeVar("Value")


def leave_signals_to_parent(worker_id: int = 0) -> None:
    """For processes that load images: Ctrl-C, and a SIGTERM to the whole group, are their parent's business.

    They end when it has no more work for them, or is gone: run them within `loading`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def loading(loader: DataLoader) -> Iterator[Iterator[Any]]:
    """The batches of a loader; its processes end with the block, whatever ends it.

    Without it they live as long as the traceback of an error, and Python waits for them when it ends.

    Raises:
        RuntimeError: A process that loads images has died, as for want of memory; the message says what to do.
    """
    batches = iter(loader)
    try:
        with explained():
            yield batches
    finally:
        if loader.num_workers:
            batches._shutdown_workers()  # type: ignore[attr-defined]


@contextmanager
def explained() -> Iterator[None]:
    """For a block in which others load images: torch raises the error of one that has died wherever the block is."""
    try:
        yield
    except RuntimeError as error:
        if not NO_MEMORY.search(str(error)) or ADVICE in str(error):
            raise
        raise RuntimeError(f"a process that loads images has died, which happens where there is too little memory: "
                           f"{ADVICE}. It said: {str(error).splitlines()[-1]}") from error


def is_initialized() -> bool:
    """Whether there is a group of processes; some builds of torch can't have one."""
    return dist.is_available() and dist.is_initialized()


@dataclass(frozen=True)
class Process:
    """This process: its device, its rank among ``world_size`` processes; the group in which they wait for long."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    patient: dist.ProcessGroup | None = None

    @property
    def primary(self) -> bool:
        """This is the one process that prints and writes files."""
        return self.rank == 0

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all processes."""
        return reduce_tensor(tensor, self.world_size) if self.world_size > 1 else tensor

    def agree(self, value: Value) -> Value:
        """The value that the primary process has."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, group=self.patient)
        return box[0]

    def gather(self, value: Value) -> list[Value]:
        """The values of all processes, in the order of their ranks, once the slowest is there."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.patient)
        return values

    def seed(self, seed: int, iteration: int) -> None:
        """Seeds what is random in an iteration, so that no generator's state needs to be saved."""
        torch.manual_seed(((seed << 40) + iteration * self.world_size + self.rank) % 2 ** 64)


def init_process(device: str | None = None, patient: bool = False) -> Process:
    """Joins the processes that torchrun (or SLURM) started, if it did.

    Args:
        device: cpu, cuda, cuda:1 or mps; None for the best there is. With several processes each takes its own GPU.
        patient: They will `agree` and `gather`.

    Raises:
        ValueError: A device that isn't there.
    """
    device = str(parse_device(device))
    if is_initialized():
        process = Process(torch.device(device), dist.get_rank(), dist.get_world_size())
    else:
        slow = device.startswith("cuda") and not (dist.is_available() and dist.is_nccl_available())  # as on Windows
        found = init_distributed_device_so(device, dist_backend="gloo" if slow else None)
        process = Process(torch.device(found["device"]), found["global_rank"], found["world_size"])
    if not patient or process.world_size == 1:
        return process
    group = dist.new_group(backend="gloo", timeout=timedelta(days=365))  # by default they give up after half an hour
    assert isinstance(group, dist.ProcessGroup)  # as it has all processes
    return replace(process, patient=group)


def end_process() -> None:
    """Leaves the other processes, if there are any."""
    if is_initialized():
        dist.destroy_process_group()
