"""The memory of a training process, and precisions that a CPU is slow in."""
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from bssnet_zoo import distributed
from bssnet_zoo.device import why_slow

STEP = """
import ctypes, sys, torch
from bssnet_zoo.device import keep_freed_memory
if sys.argv[1] == "other":
    ctypes.CDLL = lambda name: object()  # a C library without mallopt
keep_freed_memory()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

before = resident()
x = torch.ones(8, 2 ** 20, requires_grad=True)
(x * x).sum().backward()
assert x.grad.eq(2).all()
del x
print(resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("library, kept", [("own", True), ("other", False)])
@pytest.mark.slow
def test_keep_freed_memory(library, kept):
    """Gradients are computed as ever. With glibc the 32 MB tensors stay with the process, else they go back."""
    run = subprocess.run([sys.executable, "-c", STEP, library], capture_output=True, text=True,
                         cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stderr
    assert (int(run.stdout) > 32e6) == kept


@pytest.mark.parametrize(("machine", "has", "slow"), [
    ("x86_64", False, True), ("AMD64", False, True), ("x86_64", True, False), ("aarch64", False, False)])
def test_why_slow(monkeypatch, machine, has, slow):
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("bssnet_zoo.device.has_bfloat16", lambda: has)
    cpu = torch.device("cpu")
    assert ("no instructions for bfloat16" in str(why_slow("bfloat16", cpu))) == slow
    assert "float16 is for GPUs" in why_slow("float16", cpu)
    monkeypatch.setattr("torch.cuda.device", lambda device: nullcontext())
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: including_emulation or has)
    assert ("take float16" in str(why_slow("bfloat16", torch.device("cuda")))) != has
    assert why_slow("float32", cpu) is why_slow("float16", torch.device("cuda")) is None


@pytest.mark.parametrize(("there", "backend"), [(True, None), (False, "gloo")])
def test_several_gpus_without_nccl(monkeypatch, there, backend):
    """As on Windows; None leaves the choice to timm."""
    asked = []

    def init(device, dist_backend):
        asked.append(dist_backend)
        return dict(device=device, global_rank=0, world_size=1)

    monkeypatch.setattr(distributed, "parse_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(distributed, "init_distributed_device_so", init)
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: there)
    assert distributed.init_process().device.type == "cuda" and asked == [backend]
