"""Training runs: what they write, how they end and go on, several processes, distillation."""
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from conftest import filled, write_folder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn

import bssnet_zoo
from bssnet_zoo.cli import main
from bssnet_zoo.distributed import Process
from bssnet_zoo.losses import BSSNetLoss
from bssnet_zoo.models.bssnet import BSSNetOutput
from bssnet_zoo.models.checkpoints import CLASSIFIERS
from bssnet_zoo.training import loop, parts
from bssnet_zoo.training.feature_distillation import (
    FeatureStudent,
    FeatureTeacher,
    Renormalize,
    create_feature_teacher,
    create_projections,
    feature_loss,
)
from bssnet_zoo.training.loop import LOSS_NAMES, forward_backward, train
from bssnet_zoo.training.parts import (
    create_criterion,
    create_state,
    create_student,
    open_datasets,
    train_batches,
    train_sampler,
    warmup_iterations,
)
from bssnet_zoo.training.recipes import Recipe, load_recipe, save_recipe
from bssnet_zoo.training.run_folder import open_run_folder
from bssnet_zoo.training.run_log import CsvLog, RunLog

CPU = Process(torch.device("cpu"))
CLASSES = ("sky", "road", "car")
ROOT = Path(__file__).parents[1]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def narrow(monkeypatch):
    """Runs train a network of a quarter of T's width: for what is not about the network."""
    monkeypatch.setattr(parts, "create_model", partial(bssnet_zoo.create_model, dim=8))


@pytest.fixture
def quick(narrow, monkeypatch):
    """Such runs draw nothing, either."""
    for name in ("save_strip", "save_curve"):
        monkeypatch.setattr(loop, name, lambda *args: None)


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "bssnet_zoo", "train", *map(str, args)]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}


def assert_equal(a, b, where="state"):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}.{i}")
    else:
        assert a == b, where


def test_warm_up_longer_than_the_run(tiny_recipe):
    recipe = replace(tiny_recipe, warmup_iterations=200)
    assert [warmup_iterations(recipe, n) for n in (4000, 400, 399, 20)] == [200, 200, 79, 4]


def test_large_seed():
    CPU.seed(2 ** 24 + 3, 5)
    large = torch.rand(2)
    CPU.seed(3, 5)  # 2 ** 24 seeds, and then they begin again
    assert torch.equal(torch.rand(2), large)


class TestInit:
    def test_tag_with_other_classes(self, tiny_recipe):
        model = create_student(replace(tiny_recipe, init="camvid"), CLASSES, CPU)
        bundled = bssnet_zoo.create_model("bssnet_t", pretrained=True, aux_heads=True)
        assert model.training and model.num_classes == 3
        assert torch.equal(model.border_head.classifier.weight, bundled.border_head.classifier.weight)

    def test_pidnet_file(self, tiny_recipe, tmp_path):
        torch.save(filled("pidnet_s"), tmp_path / "pidnet.pth")
        model = create_student(replace(tiny_recipe, init=str(tmp_path / "pidnet.pth")), CLASSES, CPU)
        assert torch.equal(model.stem[0].conv.weight, filled("pidnet_s")["conv1.0.weight"])

    @pytest.mark.parametrize(("classes", "order"), [
        (("sky", "road", "car"), [0, 1, 2]), (("Car", "sky", "road"), [2, 0, 1]), (("sky", "road", "tram"), None)])
    def test_classes_by_name(self, finished, tiny_recipe, classes, order, capsys):
        """Classifiers follow the names: the same ones in another order are kept, those of others made anew."""
        recipe = replace(tiny_recipe, init=str(finished[0] / "best.safetensors"))
        model = create_student(recipe, classes, CPU)
        before = finished[1].ema.module
        assert torch.equal(model.stem[0].conv.weight, before.stem[0].conv.weight)
        for name in CLASSIFIERS:
            found, expected = (dict(net.get_submodule(name).state_dict()) for net in (model, before))
            assert all(torch.equal(found[key], expected[key][order]) for key in found) if order else not torch.equal(
                found["weight"], expected["weight"])
        assert ("only the model has car; only the data set has tram" in capsys.readouterr().out) == (order is None)

    def test_freeze_bn(self, tiny_recipe):
        model = create_student(replace(tiny_recipe, freeze_bn=True), CLASSES, CPU)
        before = {name: b.clone() for name, b in model.named_buffers()}
        model(torch.randn(2, 3, 64, 64)).seg.sum().backward()
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
        assert all(torch.equal(before[name], b) for name, b in model.named_buffers())


class TestRun:
    def test_folder(self, finished, tiny_recipe):
        folder, state = finished
        assert load_recipe(folder / "recipe.yaml") == tiny_recipe
        log = rows(folder / "log.csv")
        assert [int(row["iteration"]) for row in log] == list(range(1, 9))
        assert set(LOSS_NAMES) | {"lr", "images_per_second", "eta_seconds"} <= log[0].keys()
        for row in log:
            parts = sum(float(row[name]) for name in LOSS_NAMES[1:])
            assert float(row["loss"]) == pytest.approx(parts, rel=1e-4)
        (val,) = rows(folder / "val.csv")
        assert int(val["iteration"]) == 8 and float(val["miou"]) == pytest.approx(state.best, rel=1e-4)
        assert val.keys() >= {"pixel_accuracy", "boundary_f1", "sky", "road", "car"}
        with Image.open(folder / "validation.png") as strip:
            assert strip.size == (3 * 480, 2 * 320)
            first, second = (np.asarray(strip.crop((0, top, 480, top + 320))) for top in (0, 320))
            assert not np.array_equal(first, second)

    def test_curve(self, finished):
        pytest.importorskip("matplotlib")
        with Image.open(finished[0] / "curve.png") as curve:
            assert curve.size == (1080, 600)

    def test_best_holds_the_averaged_weights(self, finished):
        folder, state = finished
        model = bssnet_zoo.create_model(
            "bssnet_t", num_classes=3, aux_heads=True, checkpoint_path=folder / "best.safetensors")
        assert_equal(dict(model.state_dict()), dict(state.ema.module.state_dict()))
        assert not torch.equal(model.stem[0].conv.weight, state.model.stem[0].conv.weight)
        with safe_open(folder / "best.safetensors", "pt") as file:
            notes = file.metadata()
        assert float(notes["miou"]) == state.best and (notes["split"], notes["size"]) == ("val", "(64,)")

    def test_last_loads_without_code(self, finished):
        saved = torch.load(finished[0] / "last.pth", weights_only=True)
        assert saved.keys() == {
            "model", "model_ema", "optimizer", "scheduler", "scaler", "iteration", "best", "data", "unvalidated"}
        model = bssnet_zoo.create_model("bssnet_t", num_classes=3, checkpoint_path=finished[0] / "last.pth")
        assert torch.equal(model.stem[0].conv.weight, saved["model_ema"]["stem.0.conv.weight"])

    def test_loss_falls(self, finished):
        losses = [float(row["loss"]) for row in rows(finished[0] / "log.csv")]
        assert sum(losses[-2:]) < 0.8 * sum(losses[:2])

    def test_without_matplotlib_and_tensorboard(self, narrow, tiny_recipe, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        train(tiny_recipe.with_options(iterations=1), tmp_path)
        assert "curve.png needs matplotlib: the extra [train]" in capsys.readouterr().out
        assert not list(tmp_path.glob("events.*")) and not (tmp_path / "curve.png").exists()

    def test_tensorboard(self, finished):
        reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        events = reader.EventAccumulator(str(finished[0]))
        events.Reload()
        for file, group, name in (("log.csv", "train", "loss"), ("log.csv", "train", "lr"), ("val.csv", "val", "road")):
            found = [(event.step, event.value) for event in events.Scalars(f"{group}/{name}")]
            assert found == [(int(row["iteration"]), pytest.approx(float(row[name]), rel=1e-4))
                             for row in rows(finished[0] / file)]

    def test_warnings(self, quick, tiny_recipe, tmp_path, capsys):
        data = write_folder(tmp_path / "data", train=2, val=1)
        (tmp_path / "data" / "dataset.yaml").write_text("classes: [sky, road, car, plane]\n")
        recipe = replace(tiny_recipe, data=data, train_split="trainval", warmup_iterations=9)
        recipe = recipe.with_options(iterations=1)
        train(recipe, tmp_path / "run")
        out = capsys.readouterr().out
        for line in (recipe.summary(), "1 of 4 classes without a pixel in trainval: plane", "val is trained on",
                     "a warm-up of 0 instead of 9", "3 images to train on, 1 to validate, iteration 0 of 1\n"):
            assert line in out

    def test_best_is_kept(self, quick, tiny_recipe, tmp_path, monkeypatch):
        """The second of three validations is the best."""
        scores = iter((0.2, 0.3, 0.1))
        evaluate = loop.evaluate
        monkeypatch.setattr(loop, "evaluate", lambda *args, **kwargs: replace(
            evaluate(*args, **kwargs), miou=next(scores)))
        train(replace(tiny_recipe, epochs=3, validate_every=1), tmp_path)
        with safe_open(tmp_path / "best.safetensors", "pt") as file:
            assert (file.metadata()["iteration"], file.metadata()["miou"]) == ("8", "0.3")

    def test_folder_in_use(self, finished, tiny_recipe, tmp_path):
        with pytest.raises(ValueError, match="has a run already: go on with --resume"):
            train(tiny_recipe, finished[0])
        with pytest.raises(ValueError, match="started with lr=0.005, not 0.1"):
            train(replace(tiny_recipe, lr=0.1), finished[0], resume=True)
        with pytest.raises(ValueError, match="no run to resume"):
            train(tiny_recipe, tmp_path, resume=True)


class TestResume:
    @pytest.fixture
    def begun(self, quick, tiny_recipe, tmp_path):
        """The recipe of a run in ``run`` on data in ``data`` that ended after the first of two iterations."""
        recipe = replace(tiny_recipe, data=write_folder(tmp_path / "data", train=4, val=1), validate_every=1)
        train(recipe, tmp_path / "run", stop_epoch=1)
        return recipe

    @pytest.mark.slow
    def test_after_kill(self, finished, tiny_recipe, tmp_path):
        """Killed in the middle and resumed, with other workers each time, is the same as straight on, to the bit."""
        folder, straight = finished
        save_recipe(replace(tiny_recipe, workers=1, checkpoint_every=2), tmp_path / "start.yaml")
        run = subprocess.Popen(command("--recipe", tmp_path / "start.yaml", "--output", tmp_path / "run"),
                               env=environment(), stdout=subprocess.DEVNULL)
        log = tmp_path / "run" / "log.csv"
        deadline = time.monotonic() + 120
        while not log.exists() or log.read_text().count("\n") < 4:
            assert run.poll() is None and time.monotonic() < deadline, "the run ended before it could be killed"
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.wait()
        before = torch.load(tmp_path / "run" / "last.pth", weights_only=True)["iteration"]
        assert 2 <= before < 8
        with log.open("a") as file:
            file.write("7,1.2")  # the kind of line that a kill leaves
        (tmp_path / "run" / ".last-a1b2c3d4.pth").write_bytes(b"half a file")

        resumed = train(replace(tiny_recipe, workers=2), tmp_path / "run", resume=True)
        assert resumed.iteration == 8
        assert_equal(*(torch.load(path / "last.pth", weights_only=True) for path in (folder, tmp_path / "run")))
        assert_equal(*(load_file(path / "best.safetensors") for path in (folder, tmp_path / "run")))
        assert straight.best == resumed.best
        timing = {"images_per_second", "eta_seconds"}
        for file in ("log.csv", "val.csv"):
            a, b = ([{k: v for k, v in row.items() if k not in timing} for row in rows(path / file)]
                    for path in (folder, tmp_path / "run"))
            assert a == b
        assert not (tmp_path / "run" / ".last-a1b2c3d4.pth").exists()

    def test_validation_by_epochs(self, quick, tiny_recipe, tmp_path):
        """Sixteen images in batches of 3 are five iterations and a third: epochs end in iterations 6, 11 and 16."""
        train(replace(tiny_recipe, batch_size=3, epochs=3, validate_every=1, crop_size=(32, 32), lr=1e-4), tmp_path)
        assert [int(row["iteration"]) for row in rows(tmp_path / "val.csv")] == [6, 11, 16]

    def test_stop_epoch(self, begun, tmp_path, capsys):
        """What is resumed is the same as straight on, to the bit."""
        state = train(begun, tmp_path / "run", resume=True, stop_epoch=1)
        assert state.iteration == 1 and f"bssnet-zoo train --resume {tmp_path}/run" in capsys.readouterr().out
        train(begun, tmp_path / "run", resume=True)
        train(begun, tmp_path / "straight")
        assert_equal(*(torch.load(tmp_path / name / "last.pth", weights_only=True) for name in ("run", "straight")))
        with pytest.raises(ValueError, match="stop_epoch must be 1 or more, got 0"):
            train(begun, tmp_path / "other", stop_epoch=0)

    def test_before_the_first_checkpoint(self, quick, tiny_recipe, tmp_path):
        save_recipe(tiny_recipe.with_options(iterations=1), tmp_path / "recipe.yaml")
        assert train(tiny_recipe.with_options(iterations=1), tmp_path, resume=True).iteration == 1

    def test_without_the_file_it_began_with(self, begun, tmp_path):
        """All weights are in last.pth."""
        recipe = replace(begun, init=str(tmp_path / "run" / "best.safetensors"))
        train(recipe, tmp_path / "second", stop_epoch=1)
        shutil.rmtree(tmp_path / "run")
        assert train(recipe, tmp_path / "second", resume=True).iteration == 2

    @pytest.mark.slow
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupt(self, number, tiny_recipe, tmp_path):
        """Sent twice to all processes, as torchrun does: saved, said how to go on, exit status 130."""
        save_recipe(replace(tiny_recipe, epochs=100, workers=1, checkpoint_every=1000), tmp_path / "start.yaml")
        run = subprocess.Popen(command("--recipe", tmp_path / "start.yaml", "--output", tmp_path / "run"),
                               env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               start_new_session=True)
        log = tmp_path / "run" / "log.csv"
        while run.poll() is None and (not log.exists() or log.read_text().count("\n") < 3):
            time.sleep(0.01)
        os.killpg(run.pid, number)
        os.killpg(run.pid, number)
        output, _ = run.communicate(timeout=60)
        assert run.returncode == 130, output
        assert f"bssnet-zoo train --resume {tmp_path / 'run'}" in output and "Traceback" not in output
        saved = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
        assert saved["iteration"] == len(rows(log)) >= 2

    def test_ends_in_its_first_validation(self, begun, tmp_path, monkeypatch):
        """It goes on with that validation."""
        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_strip", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                train(begun, tmp_path / "run", resume=True)
        assert rows(tmp_path / "run" / "val.csv") and (tmp_path / "run" / "best.safetensors").exists()
        train(begun, tmp_path / "run", resume=True)
        train(begun, tmp_path / "straight", stop_epoch=1)
        train(begun, tmp_path / "straight", resume=True)
        assert rows(tmp_path / "run" / "val.csv") == rows(tmp_path / "straight" / "val.csv")
        assert_equal(*(torch.load(tmp_path / name / "last.pth", weights_only=True) for name in ("run", "straight")))

    def test_a_finished_run(self, finished, tiny_recipe, capsys):
        before = {path: path.read_bytes() for path in finished[0].iterdir()}
        assert train(tiny_recipe, finished[0], resume=True).iteration == 8
        assert "has all of its 8 iterations: best.safetensors is the model" in capsys.readouterr().out
        assert {path: path.read_bytes() for path in finished[0].iterdir()} == before

    def test_where_the_data_has_moved(self, begun, tmp_path, capsys):
        """The folder plays no part. An image may be repaired meanwhile; it is named."""
        (tmp_path / "data").rename(tmp_path / "moved")
        image = tmp_path / "moved/images/train/3.png"
        image.write_bytes(image.read_bytes() + b"0")
        recipe = replace(begun, data=f"folder:{tmp_path}/moved", workers=1)
        assert train(recipe, tmp_path / "run", resume=True).iteration == 2
        assert "1 files have changed since the run began: image train/3\n" in capsys.readouterr().out
        assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe

    @pytest.mark.parametrize(("change", "message"), [
        (lambda data: shutil.copy(data / "images/train/0.png", data / "images/train/new.png"), "image train/new"),
        (lambda data: [path.unlink() for path in data.glob("*/train/3.png")], "image train/3, mask train/3"),
        (lambda data: (data / "dataset.yaml").write_text("classes: [road, sky, car]"),
         r"the classes \('sky, road, car' before, 'road, sky, car' now\)"),
        (lambda data: (data / "dataset.yaml").write_text("classes: [sky, road, car]\nid_map: {0: 0, 1: 2, 2: 1}"),
         r"id_map \('\[\(0, 0\), \(1, 1\)"),
    ])
    def test_other_data(self, begun, tmp_path, change, message):
        change(tmp_path / "data")
        before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
        with pytest.raises(ValueError, match=f"the data set is another one than that of the run, in {message}"):
            train(begun, tmp_path / "run", resume=True)
        assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before

    def test_states_of_before(self, begun, tmp_path):
        """In them one hash stood for all files."""
        state = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
        torch.save({**state, "data": "0123"}, tmp_path / "run" / "last.pth")
        assert train(begun, tmp_path / "run", resume=True).iteration == 2

    def test_damaged_state(self, begun, tmp_path):
        state = tmp_path / "run" / "last.pth"
        state.write_bytes(state.read_bytes()[:1000])
        with pytest.raises(ValueError, match="last.pth is damaged, the run can't go on from it"):
            train(begun, tmp_path / "run", resume=True)

    def test_without_its_checkpoint(self, begun, tmp_path):
        (tmp_path / "run" / "last.pth").unlink()
        before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")}
        for resume in (False, True):
            with pytest.raises(ValueError, match="best.safetensors of a run but no last.pth to go on from"):
                train(begun, tmp_path / "run", resume=resume)
        assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.*")} == before

    def test_two_writers(self, begun, tmp_path):
        with open_run_folder(tmp_path / "run"), pytest.raises(
                ValueError, match=f"is in use by process {os.getpid()} on "):
            train(begun, tmp_path / "run", resume=True)
        train(begun, tmp_path / "run", resume=True)

    def test_data_without_a_kind(self, quick, tiny_recipe, tmp_path):
        train(replace(tiny_recipe, data=tiny_recipe.data.removeprefix("folder:")), tmp_path, stop_epoch=1)
        assert load_recipe(tmp_path / "recipe.yaml").data == tiny_recipe.data

    def test_nan(self, quick, tiny_recipe, tmp_path, monkeypatch):
        calls = []

        class Diverging(BSSNetLoss):
            def forward(self, *args):
                calls.append(1)
                losses = super().forward(*args)
                return losses._replace(seg=losses.seg * float("nan")) if len(calls) == 3 else losses

        monkeypatch.setattr(parts, "BSSNetLoss", Diverging)
        with pytest.raises(RuntimeError, match=r"loss nan, .* in iteration 3, with .*png, .*png") as error:
            train(replace(tiny_recipe, checkpoint_every=1), tmp_path)
        dataset, _ = open_datasets(tiny_recipe)
        for _, index in train_sampler(dataset, tiny_recipe, CPU, 0).batch(2):
            assert str(dataset.files[index][0]) in str(error.value)
        saved = torch.load(tmp_path / "last.pth", weights_only=True)
        assert saved["iteration"] == 2
        assert all(tensor.isfinite().all() for tensor in saved["model"].values())


@pytest.mark.parametrize(("options", "message"), [
    ({"data": "x:y"}, "x:y is not a folder"),
    ({"data": "{one}"}, r"one class, pothole: .* as in classes: \[background, pothole\]"),
    ({"data": "{unlabelled}"}, "no pixel has a class: all values in the masks are ignored"),
    ({"data": "{damaged}"}, "1 files that can't be read: .*0.png"),
    ({"class_weights": (1., 2.)}, "class_weights are 2, classes 3"),
    ({"loss_weights": (1., 1.)}, "loss_weights"),
    ({"init": "coco"}, "init 'coco' is neither a file nor a tag of bssnet_t: .*pidnet_in1k"),
    ({"opt": "none_such"}, "opt 'none_such' is no optimiser of timm"),
    ({"grad_accum": 3}, "can't be shared by 1 processes with grad_accum=3: it must be a multiple of 3"),
    ({"batch_size": 1}, "BatchNorm needs two: give --batch-size 2, or --freeze-bn"),
    ({"grad_accum": 4}, "BatchNorm needs two: give --batch-size 8, or --freeze-bn"),
])
def test_refused_before_a_folder_is_made(quick, tiny_recipe, options, message, tmp_path):
    if name := re.fullmatch("{(.*)}", options.get("data", "")):
        data = tmp_path / name[1]
        options = {"data": write_folder(data, train=4, val=1)}
        image, mask = data / "images/val/0.png", data / "masks/val/0.png"
        if name[1] == "one":
            (data / "dataset.yaml").write_text("classes: [pothole]")
        elif name[1] == "unlabelled":
            Image.new("L", (96, 64), 255).save(mask)
        else:
            image.write_bytes(image.read_bytes()[:500])
    with pytest.raises(ValueError, match=message):
        train(replace(tiny_recipe, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("options", "device", "world_size", "fits"), [
    ({"batch_size": 2}, "cpu", 2, False), ({"batch_size": 2, "freeze_bn": True}, "cpu", 2, True),
    ({"batch_size": 2}, "cuda", 2, True), ({"batch_size": 2, "sync_bn": False}, "cuda", 2, False),
    ({"batch_size": 1}, "cuda", 1, False), ({"batch_size": 4}, "cpu", 2, True), ({"batch_size": 4}, "cpu", 3, False)])
def test_images_of_a_step(tiny_recipe, options, device, world_size, fits):
    recipe, process = replace(tiny_recipe, **options), Process(torch.device(device), 0, world_size)
    with nullcontext() if fits else pytest.raises(ValueError, match="batch_size="):
        train_sampler(range(16), recipe, process, 0)


def test_batches_after_an_iteration(tiny_recipe):
    first, later = (train_sampler(range(16), replace(tiny_recipe, grad_accum=2), CPU, i) for i in (0, 3))
    assert next(iter(later)) == first.batch(6)


def raw_output(num_classes: int) -> BSSNetOutput:
    """Maps of a network in training for images of 64x64."""
    return BSSNetOutput(torch.randn(2, num_classes, 8, 8), torch.randn(2, 1, 8, 8), torch.randn(2, 3, 8, 8),
                        (torch.randn(2, num_classes, 4, 4), torch.randn(2, num_classes, 2, 2)))


def gradients(recipe: Recipe, process: Process) -> list[torch.Tensor]:
    """Gradients of the first iteration's share of a process."""
    dataset, _ = open_datasets(recipe)
    model = create_student(recipe, CLASSES, CPU)
    process.seed(recipe.seed, 0)
    batches = train_batches(dataset, train_sampler(dataset, recipe, process, 0), recipe, CPU.device)
    batches = [next(batches) for _ in range(recipe.grad_accum)]
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    forward_backward(model, create_criterion(recipe), batches, recipe, scaler)
    return [parameter.grad for parameter in model.parameters()]


def train_in_two_processes(recipe: Path, output: Path) -> subprocess.CompletedProcess:
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bssnet_zoo",
         "train", "--recipe", recipe, "--output", output],
        env=environment(), capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run


class TestGradients:
    def test_accumulation(self, tiny_recipe):
        """Two half batches give the mean of their gradients."""
        recipe = replace(tiny_recipe, freeze_bn=True, grad_accum=2)
        found = gradients(recipe, CPU)
        model = create_student(recipe, CLASSES, CPU)
        dataset, _ = open_datasets(recipe)
        batches = train_batches(dataset, train_sampler(dataset, recipe, CPU, 0), recipe, CPU.device)
        CPU.seed(recipe.seed, 0)
        for _ in range(2):
            images, labels = next(batches)
            (BSSNetLoss()(model(images), images, labels).total / 2).backward()
        for a, parameter in zip(found, model.parameters(), strict=True):
            assert torch.allclose(a, parameter.grad, rtol=1e-4, atol=1e-6 * parameter.grad.abs().max().item())

    @pytest.mark.slow
    def test_two_processes(self, tiny_recipe, tmp_path):
        """torchrun with two processes updates with the mean of the gradients of the two halves of the batch."""
        recipe = replace(tiny_recipe, freeze_bn=True, epochs=0, iterations=1, opt="momentum",
                         weight_decay=0., validate_every=1)
        save_recipe(recipe, tmp_path / "start.yaml")
        run = train_in_two_processes(tmp_path / "start.yaml", tmp_path / "run")
        saved = torch.load(tmp_path / "run" / "last.pth", weights_only=True)["optimizer"]["state"]
        halves = [gradients(recipe, Process(CPU.device, rank, 2)) for rank in (0, 1)]
        for i, (a, b) in enumerate(zip(*halves, strict=True)):
            found, expected = saved[i]["momentum_buffer"], (a + b) / 2  # after one update, that is the gradient
            assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
        assert run.stdout.count("validation after iteration 1") == 1
        assert sum(float(row["pixel_accuracy"]) for row in rows(tmp_path / "run" / "val.csv")) > 0

    def test_no_channels_last_on_mps(self):
        assert parts.memory_format(torch.device("mps")) == torch.contiguous_format
        assert parts.memory_format(torch.device("cuda")) == torch.channels_last


def test_logs_are_utf_8(tmp_path, monkeypatch):
    """Class names may be in any language, whatever the machine's encoding is."""
    monkeypatch.setattr("io.text_encoding", lambda encoding, *stacklevel: encoding or "ascii")
    for _ in range(2):
        log = CsvLog(tmp_path / "val.csv", ["iteration", "道路"], keep=1)
        log.write(1, [0.5])
        log.close()
    assert (tmp_path / "val.csv").read_text(encoding="utf-8") == "iteration,道路\n1,0.5\n1,0.5\n"


def test_columns_of_val_csv(tmp_path):
    """Classes may be called as the columns are, and have commas and line breaks."""
    names = ["miou", "iteration", "road, wet", "two\nlines"]
    log = RunLog(tmp_path, ["loss"], names, start=0, total=1, batch_size=1)
    log.validation(1, [0.5, 0.6, 0.7, 0.1, 0.2, 0.3, 0.4])
    log.close()
    (row,) = rows(tmp_path / "val.csv")
    assert row == {"iteration": "1", "miou": "0.5", "pixel_accuracy": "0.6", "boundary_f1": "0.7", "IoU of miou": "0.1",
                   "IoU of iteration": "0.2", "road, wet": "0.3", "two lines": "0.4"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_full_disk_is_named(tmp_path):
    log = CsvLog(tmp_path / "log.csv", ["iteration", "loss"])
    log.file.close()
    log.file, path = open("/dev/full", "w", buffering=1), tmp_path / "log.csv"
    log.path = path
    for call in (lambda: log.write(1, [0.5]), log.close):
        with pytest.raises(OSError, match="log.csv can't be written: No space left on device"):
            call()


class TestPrecision:
    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    def test_mixed(self, quick, tiny_recipe, tmp_path, precision, capsys, monkeypatch):
        """All the trimmings at once: mixed precision, accumulation, clipping, frozen norms, layer decay."""
        monkeypatch.setattr("bssnet_zoo.device.has_bfloat16", lambda: True)
        recipe = replace(tiny_recipe.with_options(iterations=2), precision=precision, clip_grad=1., grad_accum=2,
                         freeze_bn=True, layer_decay=0.9)
        state = train(recipe, tmp_path)
        assert state.iteration == 2
        parameter = state.model.stem[0].conv.weight
        assert parameter.dtype == torch.float32 and parameter.isfinite().all()
        saved = torch.load(tmp_path / "last.pth", weights_only=True)
        assert bool(saved["scaler"]) == (precision == "float16")
        assert ("slower than float32" in capsys.readouterr().out) == (precision == "float16")

    def test_eval_warns_of_a_slow_one(self, finished, caplog):
        for precision in ("float32", "float16"):
            assert main(["eval", "--checkpoint", str(finished[0] / "best.safetensors"), "--device", "cpu", "--workers",
                         "0", "--precision", precision]) == 0
            assert ("slower than float32" in caplog.text) == (precision == "float16")

    def test_clipped(self, tiny_recipe):
        recipe = replace(tiny_recipe, clip_grad=0.01)
        state = create_state(create_student(recipe, CLASSES, CPU), recipe, 8)
        for parameter in state.model.parameters():
            parameter.grad = torch.ones_like(parameter)
        assert loop.clip_gradients(state, recipe) > 1000
        norm = torch.stack([p.grad.norm() for p in state.model.parameters()]).norm().item()
        assert norm == pytest.approx(0.01, rel=1e-3)


class TestWiderAndOther:
    def test_widened(self, finished, tiny_recipe):
        recipe = replace(tiny_recipe, model="bssnet_b", init=f"widen:{finished[0] / 'best.safetensors'}")
        wide, narrow = create_student(recipe, CLASSES, CPU), finished[1].ema.module
        assert torch.equal(wide.stem[0].conv.weight[::2], narrow.stem[0].conv.weight)
        with pytest.raises(ValueError, match="widens a bssnet_t to a bssnet_b, model is bssnet_t"):
            create_student(replace(recipe, model="bssnet_t"), CLASSES, CPU)

    def test_eval_finds_the_model(self, tiny_recipe, tmp_path, capsys):
        model = bssnet_zoo.create_model("bssnet_b", num_classes=3)
        save_file(model.state_dict(), tmp_path / "b.safetensors")
        assert main(["eval", "--checkpoint", str(tmp_path / "b.safetensors"), "--data", tiny_recipe.data, "--size",
                     "64x96", "--workers", "0"]) == 0


class TestTeacherLabels:
    """Label maps of another network, beside the labels or instead of them."""

    @pytest.fixture
    def taught(self, tiny_recipe, tmp_path):
        """The teacher knows half of the images, and sees a car wherever it is sure: in their left half."""
        for i in range(8):
            path = tmp_path / "teacher" / "train" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            label = np.full((32, 48), 255, np.uint8)  # half of the image's size
            label[:, :24] = 2
            Image.fromarray(label).save(path)
        return replace(tiny_recipe, teacher_labels=str(tmp_path / "teacher"), teacher_weight=0.5)

    def test_samples(self, taught):
        dataset, val_set = open_datasets(taught)
        known = [i for i, (image, _) in enumerate(dataset.files) if int(image.stem) < 8]
        assert len(known) == 8 and not val_set.teacher_labels
        dataset.transform = None
        for i in range(len(dataset)):
            label, teacher = dataset[i][1]
            assert label.shape == teacher.shape == (64, 96) and label.unique().tolist() == [0, 1, 2, 255]
            assert (teacher[:, 48:] == 255).all() and (teacher[:, :48] == (2 if i in known else 255)).all()
        augmented, _ = open_datasets(replace(taught, class_mix=1.))
        image, label = augmented[known[0]]
        assert image.shape == (3, 64, 96) and label.shape == (2, 64, 96) and label.dtype == torch.int64

    def test_loss(self, taught):
        """It is a mean over the pixels in which the teacher is sure, with class weights; the rest of the sum stays."""
        torch.manual_seed(0)
        recipe = replace(taught, class_weights=(1., 2., 3.))
        criterion, output = create_criterion(recipe), raw_output(3)
        images, labels = torch.randn(2, 3, 64, 64), torch.randint(3, (2, 64, 64))
        teacher = torch.randint(3, (2, 64, 64)).masked_fill(torch.rand(2, 64, 64) < 0.4, 255)
        *six, found = criterion(output, images, torch.stack([labels, teacher], 1))
        logits = F.interpolate(output.seg, size=(64, 64), mode="bilinear", align_corners=True)
        losses = F.cross_entropy(logits, teacher, torch.tensor(recipe.class_weights), ignore_index=255, reduction="sum")
        assert found.item() == pytest.approx(0.5 * losses.item() / (teacher != 255).sum().item(), rel=1e-5)
        assert [*six, found * 0] == criterion(output, images, labels)
        nothing = torch.full_like(labels, 255)
        losses = criterion(output, images, torch.stack([nothing, teacher], 1))
        assert losses[0] == losses[4] == 0 and losses[-1] == found  # it stands alone on images without a label

    def test_run(self, quick, taught, tmp_path, capsys):
        """What has no label is learned from the teacher. The run resumes, and notices other maps."""
        root = Path(taught.data.removeprefix("folder:"))
        shutil.copytree(root, tmp_path / "unlabelled")
        for path in (tmp_path / "unlabelled" / "masks" / "train").iterdir():
            Image.fromarray(np.full((64, 96), 255, np.uint8)).save(path)
        recipe = replace(taught, data=f"folder:{tmp_path / 'unlabelled'}", teacher_weight=2., lr=0.02, epochs=4,
                         validate_every=4, class_mix=0.5)
        state = train(recipe, tmp_path / "run", stop_epoch=3)
        losses = [float(row["teacher"]) for row in rows(tmp_path / "run" / "log.csv")]
        assert losses[-1] < 0.3 * losses[0]
        assert (state.model.eval()(torch.randn(1, 3, 64, 64)).argmax(1) == 2).float().mean() > 0.9
        path = tmp_path / "teacher" / "train" / "0.png"
        path.write_bytes(path.read_bytes() + b"0")
        train(recipe, tmp_path / "run", resume=True, stop_epoch=3)
        assert "1 files have changed since the run began: teacher's map train/0" in capsys.readouterr().out

    def test_refused(self, taught, tmp_path):
        (tmp_path / "empty").mkdir()
        for name in "empty", "nowhere":
            with pytest.raises(ValueError, match="has no label map .* for .*0.png it should have train/0.png"):
                open_datasets(replace(taught, teacher_labels=str(tmp_path / name)))
        Image.fromarray(np.full((32, 48), 7, np.uint8)).save(tmp_path / "teacher" / "train" / "3.png")
        with pytest.raises(ValueError, match=r"1 teacher's label maps that can't be used: .*3.png: label values 7"):
            train(taught, tmp_path / "run")


class TestFeatureDistillation:
    @pytest.fixture()
    def encoder(self, tmp_path):
        torch.manual_seed(0)
        weights = timm.create_model("resnet10t").state_dict()
        file = tmp_path / "encoder.pth"
        torch.save(weights, file)
        return file

    @pytest.fixture()
    def recipe(self, tiny_recipe, encoder):
        return replace(tiny_recipe, feature_teacher="resnet10t", feature_checkpoint=str(encoder), feature_weight=3.)

    def test_teacher(self, encoder):
        """Its features are those of timm's model on images in its own normalisation, each channel standardised."""
        teacher = FeatureTeacher("resnet10t", encoder)
        expected = timm.create_model("resnet10t", features_only=True).eval()
        weights = torch.load(encoder, weights_only=True)
        expected.load_state_dict({name: weights[name] for name in expected.state_dict()})
        images = torch.randn(2, 3, 64, 96)
        features = teacher(images)
        assert list(features) == list(teacher.channels) == [2, 4, 8, 16, 32]
        assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
        with torch.no_grad():
            raw = expected(teacher.renormalize(images))[3]
        found = features[16]
        assert (found.mean((0, 2, 3)).abs() < 1e-4).all()
        torch.testing.assert_close(
            found, (raw - raw.mean((0, 2, 3), keepdim=True)) / (raw.var((0, 2, 3), correction=0, keepdim=True)
                                                                + 1e-5).sqrt(), rtol=1e-4, atol=1e-4)

    def test_renormalize(self):
        """tf_efficientnet_lite2 takes channels from -1 to 1."""
        black_and_white = torch.tensor([0., 1.]).reshape(2, 1, 1, 1).expand(2, 3, 1, 1)
        mean, std = (torch.tensor(x).reshape(1, 3, 1, 1) for x in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
        found = Renormalize("tf_efficientnet_lite2")((black_and_white - mean) / std)
        torch.testing.assert_close(found, 2 * black_and_white - 1, rtol=0, atol=1e-6)

    def test_student(self, encoder):
        """It predicts from the maps at strides 8, 16 and 32, and gives the output that the model gives."""
        model = bssnet_zoo.create_model("bssnet_t", num_classes=3, drop_rate=0., aux_heads=True).train()
        teacher = FeatureTeacher("resnet10t", encoder)
        projections = create_projections(model, teacher)
        images = torch.randn(2, 3, 64, 96)
        expected = model(images)
        output, predicted = FeatureStudent(model, projections)(images)
        assert torch.equal(output.seg, expected.seg)
        _, maps = model.forward_intermediates(images)
        for stride, x in zip((8, 16, 32), maps[1:4], strict=True):
            torch.testing.assert_close(predicted[stride], projections[str(stride)](x))
        features = teacher(images)
        loss = feature_loss(predicted, features)
        assert loss.item() == pytest.approx(
            sum(F.smooth_l1_loss(predicted[s], features[s]).item() for s in (8, 16, 32)), rel=1e-6)
        loss.backward()
        assert model.stem[0].conv.weight.grad.abs().sum() > 0
        assert model.stages[4][0].conv1.conv.weight.grad is None  # no feature of the teacher is that coarse
        with pytest.raises(ValueError, match="the teacher's features at stride 8 are .* the student's"):
            feature_loss(predicted, {8: features[8][..., 1:], 16: features[16], 32: features[32]})

    def test_run(self, quick, recipe, tmp_path):
        """The trunk learns to predict, and nothing of the teacher is left in what the run gives."""
        state = train(replace(recipe, epochs=8, lr=0.02, validate_every=8), tmp_path / "run")
        losses = [float(row["features"]) for row in rows(tmp_path / "run" / "log.csv")]
        assert losses[-1] < 0.9 * losses[0]
        plain = bssnet_zoo.create_model("bssnet_t", num_classes=3, aux_heads=True).state_dict()
        assert load_file(tmp_path / "run" / "best.safetensors").keys() == plain.keys()
        assert state.model.state_dict().keys() == plain.keys()

    def test_resume(self, quick, recipe, tmp_path):
        """Projections go on where they were, too; with the file of another encoder the run doesn't."""
        recipe = replace(recipe, batch_size=16, validate_every=1)
        train(recipe, tmp_path / "straight")
        train(recipe, tmp_path / "halves", stop_epoch=1)
        train(recipe, tmp_path / "halves", resume=True)
        straight, halves = (torch.load(tmp_path / name / "last.pth", weights_only=True)
                            for name in ("straight", "halves"))
        assert straight["projections"]
        assert_equal(straight, halves)
        encoder = tmp_path / "other.pth"
        torch.save(timm.create_model("resnet10t").state_dict(), encoder)
        with pytest.raises(ValueError, match="in feature_checkpoint"):
            train(replace(recipe, feature_checkpoint=str(encoder)), tmp_path / "halves", resume=True)

    @pytest.mark.slow
    def test_two_processes(self, recipe, tmp_path):
        """Their projections are trained together: the second update still finds all gradients reduced."""
        save_recipe(recipe.with_options(iterations=2, validate_every=1), tmp_path / "recipe.yaml")
        train_in_two_processes(tmp_path / "recipe.yaml", tmp_path / "run")
        saved = torch.load(tmp_path / "run" / "last.pth", weights_only=True)
        assert saved["iteration"] == 2
        assert all(weight.isfinite().all() for weight in saved["projections"].values())
        assert all(float(row["features"]) > 0 for row in rows(tmp_path / "run" / "log.csv"))

    @pytest.mark.parametrize("options, message", [
        ({"feature_teacher": "resnet10tt"}, "'resnet10tt' is no encoder that timm knows"),
        ({"feature_teacher": None}, "feature_checkpoint needs feature_teacher"),
        ({"feature_teacher": "resnet18"}, "fits neither the network nor its encoder"),
    ])
    def test_refused(self, recipe, options, message):
        with pytest.raises(ValueError, match=message):
            create_feature_teacher(replace(recipe, **options))

    def test_no_stride_in_common(self, encoder):
        teacher = FeatureTeacher("resnet10t", encoder)
        teacher.channels = {2: 32, 4: 64}
        with pytest.raises(ValueError, match=r"features at strides \[2, 4\], one of \[8, 16, 32, 64\] is needed"):
            create_projections(bssnet_zoo.create_model("bssnet_t"), teacher)
