"""The loops of docs/training.md run as they stand on the page, on less data and fewer epochs."""
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

PAGE = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
SIZES = "size, batch_size, epochs, frozen_epochs = (352, 480), 8, 30, 5"


def code(heading: str) -> list[str]:
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What is defined after the page's own loop has run in a folder with data of five classes, and what it printed."""
    folder = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 2)):
        for kind, shape in (("images", (64, 96, 3)), ("masks", (64, 96))):
            path = folder / "data" / "mine" / kind / split
            path.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 5, shape, dtype=np.uint8)).save(path / f"{i}.png")
    (folder / "data" / "mine" / "dataset.yaml").write_text("classes: [road, car, person, plant, sky]\n")
    loop = code("In your own code")[0]
    assert SIZES in loop and len(loop.splitlines()) <= 45
    history = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(loop.replace(SIZES, "size, batch_size, epochs, frozen_epochs = (64, 96), 4, 2, 1")
             .replace("    for images, labels in loader:", "    observe(globals())\n    for images, labels in loader:"),
             {"observe": lambda names: history.append(snapshot(names))})
    return folder, history, torch.load(folder / "mine.pth", weights_only=True)


def snapshot(names: dict) -> dict:
    model = names["model"]
    return {
        "names": names, "trainable": model.stem[0].conv.weight.requires_grad, "statistics": model.stages[0].training,
        "trunk": model.stem[0].conv.weight.detach().clone(), "head": model.head.classifier.weight.detach().clone()}


def test_fine_tuning(trained):
    _, history, saved = trained
    frozen, unfrozen = history
    assert not frozen["trainable"] and not frozen["statistics"] and unfrozen["trainable"] and unfrozen["statistics"]
    assert torch.equal(frozen["trunk"], unfrozen["trunk"]) and not torch.equal(frozen["head"], unfrozen["head"])
    assert not torch.equal(saved["stem.0.conv.weight"], unfrozen["trunk"])
    assert saved["head.classifier.weight"].shape[0] == 5


def test_layer_decay(trained):
    names = trained[1][0]["names"]
    names["scheduler"].step_update(1)
    rates = {id(p): group["lr"] for group in names["optimizer"].param_groups for p in group["params"]}
    stem, head = (rates[id(p)] for p in (names["model"].stem[0].conv.weight, names["model"].head.classifier.weight))
    assert 0 < stem < 0.5 * head


def test_accelerate(trained, monkeypatch):
    pytest.importorskip("accelerate")
    names = trained[1][0]["names"]
    before, updates = trained[2]["stem.0.conv.weight"], names["updates"]
    names["scheduler"].step_update(1)
    monkeypatch.chdir(trained[0])
    exec(code("In your own code")[1], names)
    assert names["updates"] == updates + 4 and names["loss"].isfinite()
    assert not torch.equal(names["accelerator"].unwrap_model(names["model"]).stem[0].conv.weight, before)
