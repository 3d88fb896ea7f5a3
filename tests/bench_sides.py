"""What test_bench.py times. Each side's process imports this file, and so nothing that it doesn't need."""
import os
import time

import numpy as np
import torch
from PIL import Image

import bssnet_zoo
from bssnet_zoo.models.weights import ASSETS


class Result:
    shape = (1, 2)


def make_sleep(seconds: float):
    passes = []

    def run():
        passes.append(1)
        time.sleep(seconds)
        result = Result()
        result.shape = (len(passes), os.getpid(), torch.get_num_threads())
        return result

    return run


def make_failure():
    raise ValueError("\nthe first line\nthe second")


def make_death():
    os._exit(3)


def make_late_death():
    start = time.monotonic()

    def run():
        if time.monotonic() - start > 0.2:
            os._exit(4)
        return Result()

    return run


def make_memory(made: int, kept: int, used: int):
    """Megabytes that are needed in making only, that stay, and that each pass takes and gives back."""
    np.ones(made * 2 ** 20, np.uint8)
    array = np.ones(kept * 2 ** 20, np.uint8)

    def run():
        np.ones(used * 2 ** 20, np.uint8)
        return array

    return run


def make_many_classes(probabilities: bool):
    model = bssnet_zoo.BSSNet(num_classes=100, dim=8).eval()
    image = Image.open(ASSETS / "street.png").resize((960, 720))
    return lambda: bssnet_zoo.predict(model, image, size=180, probabilities=probabilities).labels


def make_bundled(probabilities: bool):
    model = bssnet_zoo.deploy(bssnet_zoo.create_model("bssnet_t", pretrained=True))
    image = Image.open(ASSETS / "street.png").resize((1200, 900))
    return lambda: bssnet_zoo.predict(model, image, size=360, probabilities=probabilities).labels
