"""Where the time of a training iteration goes, in each precision, and how that compares with the bare network.

python experiments/training_speed.py --data camvid:DIR    (with the package installed)

Prints, as medians: an iteration of the real loop (loading, augmentation, losses, optimiser, averaged weights), forward
and backward of the network alone, each further part alone, and the ratios. Loop and network alone take turns, so that a
machine that slows down slows both; while the network runs alone, nothing is loaded. Run it on a quiet machine.
"""
import argparse
import resource
import time
from collections.abc import Callable
from itertools import count, islice
from statistics import median

import torch

from bssnet_zoo.device import PRECISIONS, keep_freed_memory
from bssnet_zoo.distributed import Process
from bssnet_zoo.losses import BSSNetLoss
from bssnet_zoo.training.loop import clip_gradients, forward_backward, update_weights
from bssnet_zoo.training.parts import create_state, create_student, open_datasets, train_batches, train_sampler
from bssnet_zoo.training.recipes import RECIPES, Recipe


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Bench:
    """A training run of one recipe whose parts can be timed one by one."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        process = Process(torch.device("cpu"))
        self.dataset, _ = open_datasets(recipe)
        model = create_student(recipe, self.dataset.classes.names, process)
        self.state = create_state(model, recipe, iterations=10_000)
        self.criterion = BSSNetLoss(recipe.class_weights)
        for index in range(len(self.dataset) if recipe.cache else 0):  # what a run does in its first epoch
            self.dataset.load(index)
        self.sampler = train_sampler(self.dataset, recipe, process, 0)
        self.batches = train_batches(self.dataset, self.sampler, recipe, process.device)
        self.images, self.labels = next(self.batches)

    def forward(self):
        precision = PRECISIONS[self.recipe.precision]
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            return self.state.model(self.images)

    def network(self) -> None:
        """Forward and backward of the network alone."""
        self.state.optimizer.zero_grad()
        output = self.forward()
        maps = [output.seg, output.border, output.spatial, *output.aux]
        torch.autograd.backward(maps, [torch.ones_like(m) for m in maps])

    def iteration(self) -> None:
        """All of an iteration of the loop."""
        self.state.optimizer.zero_grad()
        forward_backward(self.state.model, self.criterion, islice(self.batches, 1), self.recipe, self.state.scaler)
        clip_gradients(self.state, self.recipe)
        update_weights(self.state)

    def parts(self, repeats: int) -> dict[str, float]:
        """Median seconds of the parts that the network alone doesn't have."""
        output = self.forward()
        leaves = output._replace(**{name: getattr(output, name).detach().requires_grad_()
                                    for name in ("seg", "border", "spatial")},
                                 aux=tuple(m.detach().requires_grad_() for m in output.aux))

        def load() -> None:  # in this process and thread: what it costs, not what is left to wait for
            for key in self.sampler.batch(next(numbers)):
                self.dataset[key]

        numbers = count()

        def losses() -> None:
            self.criterion(leaves, self.images, self.labels).total.backward()

        def optimiser() -> None:
            clip_gradients(self.state, self.recipe)
            self.state.optimizer.step()

        self.network()  # for gradients
        functions = {
            "loading and augmentation": load,
            "losses, forward and backward": losses,
            "optimiser": optimiser,
            "averaged weights": lambda: self.state.ema.update(self.state.model, step=1),
        }
        return {name: median(seconds(function) for _ in range(repeats)) for name, function in functions.items()}


def measure(recipe: Recipe, repeats: int) -> tuple[float, float]:
    """Prints the split of an iteration. Returns the images/s of the loop and of the network alone."""
    bench = Bench(recipe)
    networks, iterations = [], []
    for _ in range(3):
        for function, times in ((bench.network, networks), (bench.iteration, iterations)):
            function()  # settles workers and caches
            times += [seconds(function) for _ in range(repeats)]
    network, iteration = median(networks), median(iterations)
    parts = bench.parts(repeats)
    bench.batches.close()
    rates = recipe.batch_size / iteration, recipe.batch_size / network
    print(f"{recipe.precision}: {rates[0]:.2f} images/s; network alone {rates[1]:.2f}; ratio {rates[0] / rates[1]:.3f}")
    print(f"  {'iteration':<42}{1000 * iteration:8.1f} ms")
    print(f"  {'network, forward and backward':<42}{1000 * network:8.1f} ms {network / iteration:7.1%}")
    for name, part in parts.items():
        name += f" ({recipe.workers} workers share it)" if name.startswith("loading") and recipe.workers else ""
        print(f"  {name:<42}{1000 * part:8.1f} ms {part / iteration:7.1%}")
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="camvid:data/camvid", metavar="KIND:DIR")
    parser.add_argument("--model", default="bssnet_t", metavar="NAME")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N")
    parser.add_argument("--recipe", default="camvid_360x480", choices=RECIPES)
    parser.add_argument("--precision", nargs="+", default=["bfloat16", "float32"], choices=PRECISIONS, metavar="NAME")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--workers", type=int, default=0, metavar="N")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="iterations in a turn, of three")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    recipe = RECIPES[args.recipe].with_options(
        data=args.data, model=args.model, batch_size=args.batch_size, workers=args.workers, device="cpu")
    rates = {}
    for precision in args.precision:
        rates[precision], _ = measure(recipe.with_options(precision=precision), args.repeats)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20
        print(f"  peak memory so far {peak:.2f} GiB, without the workers")
    first, *others = rates
    for other in others:
        print(f"{first} / {other}: {rates[first] / rates[other]:.2f}")


if __name__ == "__main__":
    main()
