"""What a GPU computes is what the CPU does: networks, losses, training, prediction, bench. Skipped without a GPU.

``BSSNET_ZOO_GPU=cpu pytest tests/test_gpu.py`` runs them on the CPU, which shows no more than that they can pass.
"""
import copy
import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from conftest import VARIANTS, image

import bssnet_zoo
from bssnet_zoo.cli import main
from bssnet_zoo.data import EvalTransform, open_dataset
from bssnet_zoo.distributed import Process
from bssnet_zoo.evaluation import evaluate
from bssnet_zoo.losses import BSSNetLoss, bssnet_loss
from bssnet_zoo.models.weights import ASSETS
from bssnet_zoo.training import train
from bssnet_zoo.training.parts import create_student

NAME = os.environ.get("BSSNET_ZOO_GPU", "cuda")
DEVICE = torch.device(NAME)
ON_CUDA = DEVICE.type == "cuda"
STREET = ASSETS / "street.png"
pytestmark = pytest.mark.skipif(ON_CUDA and not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture(autouse=True)
def exact():
    """No TF32, which has 10 bits of float32's 23."""
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, value in zip(switches, before, strict=True):
        switch.allow_tf32 = value


@pytest.fixture(scope="module", params=VARIANTS)
def model(request):
    return bssnet_zoo.create_model(request.param, pretrained=True).eval()


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    assert found.device.type == DEVICE.type and found.isfinite().all()
    return bool((found.cpu().float() - expected).abs().max() <= tolerance * expected.abs().max())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("change", [lambda model: model, bssnet_zoo.deploy], ids=["eager", "deploy"])
def test_logits(model, change, memory_format):
    images = image(2, 3, 97, 130)
    with torch.inference_mode():
        expected = model(images)
        there = change(copy.deepcopy(model)).to(DEVICE, memory_format=memory_format)
        assert close(there(images.to(DEVICE, memory_format=memory_format)), expected, 1e-3)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.05), (torch.bfloat16, 0.2)])
def test_half_precision(model, dtype, tolerance):
    images = image(1, 3, 96, 128)
    with torch.inference_mode():
        expected = model(images)
        cast = bssnet_zoo.deploy(model).to(DEVICE, dtype)
        assert close(cast(images.to(DEVICE, dtype)), expected, tolerance)
        with torch.autocast(DEVICE.type, dtype):
            assert close(copy.deepcopy(model).to(DEVICE)(images.to(DEVICE)), expected, tolerance)


def test_losses():
    """The six losses and the gradients of all parameters. No pixel counts as hard, so OHEM selects the hardest."""
    torch.manual_seed(0)
    model = bssnet_zoo.create_model("bssnet_t", num_classes=5, aux_heads=True).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout2d):
            module.p = 0.  # each device draws its own numbers
    images, labels = image(4, 3, 96, 128), torch.randint(0, 5, (4, 96, 128))
    labels[:, :9] = 255
    found = []
    for device in (torch.device("cpu"), DEVICE):
        there, x, y = copy.deepcopy(model).to(device), images.to(device), labels.to(device)
        criterion = BSSNetLoss(min_kept=20000, aux_min_kept=5000).to(device)
        criterion.threshold = criterion.aux_threshold = 0.
        losses = criterion(there(x), x, y)
        losses.total.backward()
        found.append((torch.stack([*losses]).cpu(), [p.grad.cpu() for p in there.parameters()]))
    (losses, gradients), (losses_there, gradients_there) = found
    torch.testing.assert_close(losses_there, losses, rtol=1e-3, atol=1e-4)
    difference = torch.stack([(a - b).norm() for a, b in zip(gradients, gradients_there, strict=True)]).norm()
    assert difference < 0.02 * torch.stack([a.norm() for a in gradients]).norm()


@pytest.mark.parametrize("index", [0, 131072, 2 ** 20 - 1])
def test_kth_largest(index):
    values = torch.rand(2 ** 20, generator=torch.Generator().manual_seed(0))
    assert bssnet_loss.kth_largest(values.to(DEVICE), index).cpu() == values.sort(descending=True).values[index]


@pytest.mark.parametrize("options", [
    dict(precision="float32"), dict(precision="bfloat16"), dict(precision="float16", clip_grad=1.),
    dict(precision="float16", grad_accum=2, workers=2),
    pytest.param(dict(compile=True), marks=pytest.mark.slow)], ids=str)
def test_training(tiny_recipe, tmp_path, options):
    """The loss falls; the run stops, goes on, and its weights are evaluated on the CPU as on the GPU."""
    recipe = replace(tiny_recipe, device=NAME, epochs=6, validate_every=3, lr=0.01, **options)
    train(recipe, tmp_path, stop_epoch=2)
    state = train(recipe, tmp_path, resume=True)
    with (tmp_path / "log.csv").open(newline="") as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 24 and np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    dataset = open_dataset(recipe.data, "val", EvalTransform((64, 96)))
    trained = copy.deepcopy(state.ema.module)
    assert evaluate(trained, dataset).miou == pytest.approx(evaluate(trained.cpu(), dataset).miou, abs=0.02)


def test_feature_teacher(tiny_recipe, tmp_path):
    name, encoder = "tf_efficientnet_lite0", tmp_path / "encoder.pth"
    torch.save(timm.create_model(name).state_dict(), encoder)
    recipe = replace(tiny_recipe, device=NAME, epochs=0, iterations=2, precision="bfloat16", feature_teacher=name,
                     feature_checkpoint=str(encoder))
    train(recipe, tmp_path / "run")
    with (tmp_path / "run" / "log.csv").open(newline="") as file:
        assert all(float(row["features"]) > 0 for row in csv.DictReader(file))


GROUP = """
import sys, torch, torch.distributed as dist
from bssnet_zoo import create_model
from bssnet_zoo.distributed import end_process, init_process
from bssnet_zoo.metrics import ConfusionMatrix

device = torch.device(sys.argv[1])
backend = "nccl" if device.type == "cuda" else "gloo"
dist.init_process_group(backend, init_method=f"file://{sys.argv[2]}", rank=0, world_size=1)
assert init_process(str(device)).world_size == 1
model = torch.nn.parallel.DistributedDataParallel(create_model("bssnet_t", num_classes=3, dim=8).to(device))
model(torch.randn(2, 3, 64, 64, device=device)).sum().backward()
assert all(p.grad is not None for p in model.parameters())
values = [None]
dist.all_gather_object(values, "there", group=dist.new_group(backend="gloo"))
assert values == ["there"]
counts = ConfusionMatrix(3, device=device)
labels = torch.ones(1, 4, 4, dtype=torch.int64, device=device)
counts.update(labels, labels)
counts.reduce()
assert counts.counts.sum() == 16
end_process()
"""


def test_a_group_of_one(tmp_path):
    """NCCL, DDP and the collectives, as far as one GPU can have them; torchrun makes no group for one process."""
    run = subprocess.run([sys.executable, "-c", GROUP, NAME, str(tmp_path / "group")], capture_output=True, text=True,
                         env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(not ON_CUDA, reason="SyncBN is for CUDA")
def test_sync_bn(tiny_recipe):
    model = create_student(tiny_recipe, ("sky", "road", "car"), Process(DEVICE, 0, 2)).eval()
    plain = create_student(tiny_recipe, ("sky", "road", "car"), Process(DEVICE)).eval()
    assert any(isinstance(module, torch.nn.SyncBatchNorm) for module in model.modules())
    with torch.inference_mode():
        assert close(model(image(1, 3, 64, 96).to(DEVICE)), plain(image(1, 3, 64, 96).to(DEVICE)).cpu(), 1e-3)


@pytest.mark.parametrize(("backend", "precision", "share"), [
    ("deploy", None, 0.999), ("eager", None, 0.999), ("deploy", "float16", 0.98), ("deploy", "bfloat16", 0.95)])
def test_predictor(backend, precision, share):
    expected = bssnet_zoo.Predictor("bssnet_t", "cpu", "float32", "eager", size=240)(STREET)
    predictor = bssnet_zoo.Predictor("bssnet_t", NAME, precision, backend, size=240)
    for prediction in (predictor(STREET), *predictor.batch([STREET, STREET]), *predictor.stream([STREET])):
        assert (prediction.labels == expected.labels).mean() >= share
    probabilities = predictor(STREET, probabilities=True).probabilities
    assert np.abs(probabilities.sum(0) - 1).max() < 1e-3


def test_commands(tmp_path, capsys):
    assert main(["predict", str(STREET), "--device", NAME, "--out", str(tmp_path)]) == 0
    assert main(["bench", "--models", "bssnet_t", "--size", "128x128", "--device", NAME, "--seconds", "0.3", "--rounds",
                 "3", "--precision", "float32", "float16", "--backends", "channels_last", "deploy"]) == 0
    out = capsys.readouterr().out
    backends = ("eager", "channels_last", "deploy")
    for backend in backends:
        assert f"| bssnet_t | {backend}" in out


def test_streams_of_frames_keep_their_order():
    """Copies to and from the GPU overlap with its work: no answer may be that of another image."""
    predictor = bssnet_zoo.Predictor("bssnet_t", NAME, size=64)
    frames = [np.full((64, 96, 3), 10 * i, np.uint8) for i in range(20)]
    for frame, prediction in zip(frames, predictor.stream(frames), strict=True):
        assert np.array_equal(prediction.image, frame)
        assert np.array_equal(prediction.labels, predictor(frame).labels)
