import json
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import fill  # noqa: E402

import bssnet_zoo  # noqa: E402

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"
VARIANTS = ("bssnet_t", "bssnet_b")

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the project's shared folder")


def filled(keys: str) -> dict[str, torch.Tensor]:
    """The checkpoint behind the golden numbers, in its published naming: a new dict each time."""
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


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test reaches the network: in this process, where the Hub's client has read the environment, and in others."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def tiny():
    """An untrained bssnet_t in eval mode, the same in each test."""
    torch.manual_seed(0)
    return bssnet_zoo.create_model("bssnet_t").eval()


@pytest.fixture
def shallow():
    """A narrow BSSNet with one block in each stage, for compilers: each more takes their time for the same code."""
    torch.manual_seed(0)
    model = bssnet_zoo.BSSNet(dim=8).eval()
    model.stages = torch.nn.Sequential(*(stage[:1] for stage in model.stages))
    return model


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of exported files come last: after OpenVINO, NNCF and ONNX Runtime in one process, others crashed there."""
    items.sort(key=lambda item: item.path.name in ("test_bench.py", "test_export.py"))
