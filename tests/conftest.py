import copy
import functools
import json
import os
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import fill  # noqa: E402

import bssnet_zoo  # noqa: E402
from bssnet_zoo.models import WEIGHTS  # noqa: E402
from bssnet_zoo.training import Recipe, train  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"
VARIANTS = ("bssnet_t", "bssnet_b")
SIZES = {variant: WEIGHTS[f"{variant}.camvid"].size for variant in VARIANTS}  # of the images that they were trained for

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the project's shared folder")


def filled(keys: str) -> dict[str, torch.Tensor]:
    """The checkpoint behind the golden numbers, in its published naming: a new dict each time."""
    return dict(_filled(keys))


@functools.lru_cache(maxsize=2)
def _filled(keys: str) -> dict[str, torch.Tensor]:
    shapes = json.loads((GOLDEN / f"keys_{keys}.json").read_text())
    return {name: torch.from_numpy(np.asarray(fill.fill(name, shape))) for name, shape in shapes.items()}


def image(*shape: int) -> torch.Tensor:
    return torch.from_numpy(fill.image(shape))


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "golden.npz") as arrays:
        return dict(arrays)


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Files of published BSSNet checkpoints: ``published("bssnet_t")`` gives the path."""
    folder = tmp_path_factory.mktemp("published")

    def path(variant: str) -> Path:
        file = folder / f"{variant}.pth"
        if not file.exists():
            torch.save({"state_dict": filled(variant), "meta": {"epoch": 1}}, file)
        return file

    return path


def write_folder(root: Path, train: int, val: int) -> str:
    """A data set of coloured rectangles, 64x96: what a class looks like is its colour."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for i in range(count):
            mask = np.zeros((64, 96), np.uint8)
            mask[rng.integers(20, 44):] = 1
            left = rng.integers(0, 60)
            mask[20:50, left:left + 30] = 2
            mask[:2] = 255
            image = np.array([(40, 80, 160), (90, 90, 90), (200, 60, 40)])[np.minimum(mask, 2)]
            image = np.clip(image + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8)
            for folder, array in (("images", image), ("masks", mask)):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / folder / split / f"{i}.png")
    (root / "dataset.yaml").write_text("classes: [sky, road, car]\n")
    return f"folder:{root}"


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory) -> Recipe:
    """Four iterations an epoch, of a kind that runs in a fraction of a second."""
    data = write_folder(tmp_path_factory.mktemp("data"), train=16, val=2)
    return Recipe(
        data=data, base_size=(64, 96), crop_size=(64, 96), epochs=2, batch_size=4, opt="sgd", lr=0.005, ema_decay=0.9,
        workers=0, checkpoint_every=100, validate_every=2, device="cpu")


@pytest.fixture(scope="session")
def finished(tiny_recipe, tmp_path_factory):
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("runs") / "straight"
    return folder, train(tiny_recipe, folder)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test reaches the network: in this process, where the Hub's client has read the environment, and in others."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def untrained():
    torch.manual_seed(0)
    return bssnet_zoo.create_model("bssnet_t").eval()


@pytest.fixture
def tiny(untrained):
    """An untrained bssnet_t in eval mode, the same in each test."""
    torch.manual_seed(0)
    return copy.deepcopy(untrained)


def shallow(**kwargs) -> bssnet_zoo.BSSNet:
    """A narrow BSSNet with one block in each stage, for compilers: each more takes their time for the same code."""
    torch.manual_seed(0)
    model = bssnet_zoo.BSSNet(dim=8, **kwargs).eval()
    model.stages = torch.nn.Sequential(*(stage[:1] for stage in model.stages))
    return model


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite runs on all cores, a thread each; a few tests in this process, without waiting for others."""
    if config.args_source != pytest.Config.ArgsSource.TESTPATHS:
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return min(os.cpu_count() or 1, 4)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that run OpenVINO come last, since it changes the process that they run in; of these the longest first."""
    last = ("test_docs.py", "test_export.py", "test_bench.py", "test_demo_page.py", "test_video.py",
            "test_results.py", "test_transformers.py", "test_predictor.py", "test_predict.py", "test_scale.py",
            "test_demo.py")
    items.sort(key=lambda item: last.index(item.path.name) if item.path.name in last else -1)
