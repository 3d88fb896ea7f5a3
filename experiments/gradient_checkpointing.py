"""Memory and time of a training step with and without gradient checkpointing, each in a process of its own.

    python experiments/gradient_checkpointing.py [--model bssnet_t] [--batch-size 8] [--size 352 480]
"""
import argparse
import resource
import subprocess
import sys
import time

import torch

import bssnet_zoo


def measure(model_name: str, batch_size: int, size: list[int], checkpointing: bool) -> str:
    model = bssnet_zoo.create_model(model_name, aux_heads=True).train()
    model.set_grad_checkpointing(checkpointing)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(3):
        images = torch.randn(batch_size, 3, *size)
        start = time.perf_counter()
        output = model(images)
        sum(t.square().mean() for t in (output.seg, output.border, output.spatial, *output.aux)).backward()
        times.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{peak / 2 ** 20:.2f} GiB above the idle process, {min(times):.2f} s a step"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bssnet_t")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--size", type=int, nargs=2, default=[352, 480])
    parser.add_argument("--only", choices=["plain", "checkpointed"])
    args = parser.parse_args()
    if args.only:
        print(f"{args.only}: {measure(args.model, args.batch_size, args.size, args.only == 'checkpointed')}")
        return
    for only in ("plain", "checkpointed"):
        subprocess.run([sys.executable, __file__, *sys.argv[1:], "--only", only], check=True)


if __name__ == "__main__":
    main()
