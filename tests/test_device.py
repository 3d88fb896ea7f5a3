"""The memory of a training process."""
import subprocess
import sys
from pathlib import Path

import pytest

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
def test_keep_freed_memory(library, kept):
    """Gradients are computed as ever. With glibc the 32 MB tensors stay with the process, else they go back."""
    run = subprocess.run([sys.executable, "-c", STEP, library], capture_output=True, text=True,
                         cwd=Path(__file__).parents[1])
    assert run.returncode == 0, run.stderr
    assert (int(run.stdout) > 32e6) == kept
