"""Evaluation of a model on a data set."""
import multiprocessing
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SHARED, SIZES, needs_shared, shallow, write_folder
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import bssnet_zoo
from bssnet_zoo import cli, metrics
from bssnet_zoo.cli import evaluate as eval_cli
from bssnet_zoo.data import CAMVID, CITYSCAPES, ClassInfo, EvalTransform, SegmentationDataset, open_dataset
from bssnet_zoo.distributed import explained
from bssnet_zoo.evaluation.accuracy import evaluate, multi_scale_probabilities, sliding_window_logits
from bssnet_zoo.models import WEIGHTS
from bssnet_zoo.models.metadata import class_metadata
from bssnet_zoo.training.recipes import RECIPES, save_recipe


class Pixelwise(nn.Conv2d):
    """A model that looks at one pixel at a time: the same whole, in windows and mirrored."""

    def __init__(self, num_classes: int = 3):
        torch.manual_seed(0)
        super().__init__(3, num_classes, 1)
        self.num_classes = num_classes


class Mean(nn.Module):
    """A model whose logits are those of the mean of what it sees."""

    num_classes = 3

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        return images.mean((2, 3), keepdim=True).expand_as(images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data"), train=1, val=5)


def test_windows_of_a_network_that_ends_at_its_own_stride():
    images = torch.randn(1, 3, 100, 130)

    def whole(x):
        return F.interpolate(raw(x), size=x.shape[-2:], mode="bilinear", align_corners=True)

    def raw(x):
        return F.avg_pool2d(x, 8)

    for window in ((40, 60), None):
        torch.testing.assert_close(sliding_window_logits(raw, images, window),
                                   sliding_window_logits(whole, images, window))


def test_measures(folder):
    dataset = open_dataset(folder, "val", EvalTransform())
    model = Pixelwise().train()
    result = evaluate(model, dataset, workers=0)
    assert model.training
    images, labels = (torch.stack(column) for column in zip(*dataset, strict=True))
    predictions, valid = model(images).argmax(1), labels != 255
    for c in range(3):
        union = ((predictions == c) | (labels == c)) & valid
        expected = ((predictions == c) & (labels == c)).sum() / union.sum()
        assert result.iou[c] == pytest.approx(expected.item(), nan_ok=True)
    assert result.miou == pytest.approx(np.nanmean(result.iou))
    assert result.pixel_accuracy == pytest.approx((predictions == labels)[valid].float().mean().item())
    assert 0 <= result.boundary_f1 <= 1 and result.num_images == 5
    assert f"{100 * result.miou:.3f}" in str(result) and all(name in str(result) for name in ("sky", "road", "car"))


def test_same_in_windows_mirrored_and_with_workers(folder):
    dataset = open_dataset(folder, "val", EvalTransform())
    plain = evaluate(Pixelwise(), dataset, workers=0).iou
    for options in ({"sliding_window": True}, {"sliding_window": (48, 50)}, {"flip": True}, {"workers": 2}):
        assert evaluate(Pixelwise(), dataset, **{"workers": 0, **options}).iou == pytest.approx(plain, abs=1e-4)


def test_scored_at_the_size_of_the_labels(folder):
    dataset = open_dataset(folder, "val", EvalTransform(size=(32, 48)))
    images, labels = zip(*dataset, strict=True)
    assert images[0].shape == (3, 32, 48) and labels[0].shape == (64, 96)
    model = Pixelwise()
    result = evaluate(model, dataset, workers=0)
    logits = F.interpolate(model(torch.stack(images)), size=(64, 96), mode="bilinear", align_corners=True)
    right = (logits.argmax(1) == torch.stack(labels))[torch.stack(labels) != 255]
    assert result.pixel_accuracy == pytest.approx(right.float().mean().item())


@pytest.mark.parametrize("options", [{}, {"sliding_window": (32, 32)}])
def test_images_smaller_than_the_network_takes_are_padded_as_in_prediction(folder, options, tmp_path):
    model = shallow(num_classes=3)
    evaluate(model, open_dataset(folder, "val", EvalTransform((20, 30))), workers=0, save_dir=tmp_path, **options)
    predictor = bssnet_zoo.Predictor(model, backend="eager", size=(20, 30))
    for name in range(5):
        labels = predictor(Path(folder.removeprefix("folder:"), f"images/val/{name}.png")).labels
        assert (np.array(Image.open(tmp_path / f"{name}.png")) == labels).mean() > 0.99


def test_windows_are_averaged():
    """Windows of 40x60 over 64x96: two starts each way, the middle is seen four times."""
    images = torch.randn(1, 3, 64, 96)
    model = Mean()
    logits = sliding_window_logits(model, images, (40, 60))
    assert model.sizes == [(40, 60)] * 4
    corner, middle = images[..., :40, :60].mean((2, 3)), []
    for top in (0, 24):
        middle += [images[..., top:top + 40, left:left + 60].mean((2, 3)) for left in (0, 36)]
    assert torch.allclose(logits[..., 0, 0], corner, atol=1e-6)
    assert torch.allclose(logits[..., 32, 48], torch.stack(middle).mean(0), atol=1e-6)
    model.sizes.clear()
    sliding_window_logits(model, torch.randn(1, 3, 100, 200))
    assert model.sizes == [(100, 100)] * 3  # squares of the shorter side, a third or more in common


def test_scales_are_averaged():
    images = torch.randn(1, 3, 64, 96)
    model = Mean()
    probabilities = multi_scale_probabilities(model, images, (0.5, 1., 1.25), flip=True)
    assert model.sizes == [(32, 48)] * 2 + [(64, 96)] * 2 + [(80, 120)] * 2
    assert probabilities.shape == images.shape
    assert torch.allclose(probabilities.sum(1), torch.ones(1, 64, 96), atol=1e-5)
    left = torch.zeros(1, 3, 64, 96)
    left[:, 0, :, :48] = 9

    def biased(images):  # right wherever it looks at an image, wrong at a mirrored one
        return images if images[0, 0, 0, 0] else torch.zeros_like(images)

    sharp, mixed = (multi_scale_probabilities(biased, left, flip=flip) for flip in (False, True))
    assert torch.allclose(mixed[..., :48], (sharp[..., :48] + 1 / 3) / 2, atol=1e-5)


def test_memory_is_flat(tmp_path):
    """Sixty images: what is kept of each would show, at 1.3 MB for a float image with its label."""
    (tmp_path / "labels.png").parent.mkdir(exist_ok=True)
    Image.fromarray(np.zeros((256, 256), np.uint8)).save(tmp_path / "labels.png")
    Image.fromarray(np.zeros((256, 256, 3), np.uint8)).save(tmp_path / "image.png")
    sizes = []

    class Watched(Pixelwise):
        def forward(self, images):
            sizes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
            return super().forward(images)

    files = [(tmp_path / "image.png", tmp_path / "labels.png")] * 60
    classes = bssnet_zoo.data.ClassInfo(("a", "b", "c"), ((0, 0, 0),) * 3)
    evaluate(Watched(), SegmentationDataset(files, classes, transform=EvalTransform()), workers=0)
    assert sizes[-1] - sizes[10] < 20e6


def test_saved_predictions(folder, tmp_path):
    dataset = open_dataset(folder, "val", EvalTransform())
    evaluate(Pixelwise(), dataset, save_dir=tmp_path, workers=0)
    with Image.open(tmp_path / "3.png") as picture, torch.inference_mode():
        assert picture.mode == "P"
        expected = Pixelwise()(dataset[3][0][None]).argmax(1)[0]
        assert np.array_equal(np.asarray(picture), expected)
        assert tuple(picture.convert("RGB").getpixel((0, 0))) == dataset.classes.palette[expected[0, 0]]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{i}.png" for i in range(5)]


def test_saved_for_cityscapes_test_server(tmp_path):
    """Label ids, under names that the scripts of Cityscapes find: CITY_SEQUENCE_FRAME*.png."""
    for city in ("bonn", "ulm"):
        for kind, name in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelIds")):
            path = tmp_path / "data" / kind / "val" / city / f"{city}_000000_000019_{name}.png"
            path.parent.mkdir(parents=True)
            values = np.full((64, 96), 26, np.uint8) if kind == "gtFine" else np.zeros((64, 96, 3), np.uint8)
            Image.fromarray(values).save(path)
    dataset = open_dataset(f"cityscapes:{tmp_path / 'data'}", "val", EvalTransform())
    model = Pixelwise(19)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.arange(19) == 13)  # car: train id 13, label id 26
    result = evaluate(model, dataset, save_dir=tmp_path / "out", workers=0)
    assert result.miou == 1 and result.pixel_accuracy == 1
    written = sorted(tmp_path.glob("out/**/*.png"))
    assert [re.match(r"(bonn|ulm)_000000_000019.*\.png", path.name)[1] for path in written] == ["bonn", "ulm"]
    for path in written:
        with Image.open(path) as picture:
            assert (np.asarray(picture) == 26).all()
            assert picture.convert("RGB").getpixel((5, 5)) == CITYSCAPES.palette[13]


class Changed(Pixelwise):
    """A model whose scores are changed afterwards."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, images):
        return self.change(super().forward(images))


@pytest.mark.parametrize("options", [{}, {"scales": (0.5, 1.)}, {"sliding_window": (48, 50)}])
@pytest.mark.parametrize("size", [None, (50,)])
def test_a_class_may_be_impossible_but_scores_must_be_numbers(folder, options, size):
    dataset = open_dataset(folder, "val", EvalTransform(size))

    def without_car(value):
        return lambda scores: torch.where(torch.tensor([False, False, True])[:, None, None], value, scores)

    low, never = (evaluate(Changed(without_car(x)), dataset, workers=0, **options) for x in (-99., -torch.inf))
    assert never.iou == low.iou and never.iou[2] == 0
    for broken in (without_car(torch.nan), without_car(torch.inf)):
        with pytest.raises(ValueError, match="val/0.png: the network gives NaN or infinite logits"):
            evaluate(Changed(broken), dataset, workers=0, **options)


@pytest.mark.parametrize("names, order, words", [
    (("sky", "road", "car"), (0, 1, 2), ""),
    (("Car", "sky", "road"), (2, 0, 1), "classes stand in another order than the data set's: they are matched by name"),
    (("car", "sky", "tree"), (0, 1, 2), "only the model has tree; only the data set has road. They are compared by"),
])
def test_classes_are_matched_by_name(folder, names, order, words, caplog):
    dataset, model = open_dataset(folder, "val", EvalTransform()), Pixelwise()
    expected = evaluate(model, dataset, workers=0)
    model.pretrained_cfg = {"label_names": names}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter[list(order)])
    result = evaluate(model, dataset, workers=0)
    assert result.iou == expected.iou and result.class_names == expected.class_names
    assert words in caplog.text and bool(caplog.text) == bool(words)


def test_alone_among_several_processes(folder, monkeypatch):
    """In somebody's own loop one process may evaluate while the others train: it doesn't wait for them."""
    dataset = open_dataset(folder, "val", EvalTransform())
    expected = evaluate(Pixelwise(), dataset, workers=0)
    monkeypatch.setattr(metrics, "is_initialized", lambda: True)
    monkeypatch.setattr(metrics.dist, "all_reduce", lambda counts: pytest.fail("waits for the other processes"))
    assert evaluate(Pixelwise(), dataset, workers=0).iou == expected.iou


@pytest.mark.parametrize("load, message", [
    (lambda index: 1 / 0, "division by zero"),
    (lambda index: os._exit(1), r"has died.*--shm-size 2g\), or load in one process \(--workers 0\)"),
])
def test_loading_processes_end_with_an_error(folder, load, message, monkeypatch):
    dataset = open_dataset(folder, "val", EvalTransform())
    monkeypatch.setattr(dataset, "load", load)
    with pytest.raises((RuntimeError, ZeroDivisionError), match=message) as error:
        evaluate(Pixelwise(), dataset, workers=1)
    assert error.traceback and not multiprocessing.active_children()


def test_the_death_of_a_loading_process_is_explained_once():
    with pytest.raises(RuntimeError, match="It said: DataLoader worker .*: Bus error") as error:
        with explained(), explained():
            raise RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error.")
    assert str(error.value).count("--shm-size") == 1


@pytest.mark.parametrize("options, message", [
    ({"model": Pixelwise(4)}, "the model has 4 classes, the data set 3"),
    ({"scales": (1., 0.)}, "scales must be more than 0, got 0"),
    ({"sliding_window": (0, 0)}, r"sliding_window must be 32 or more high and wide, got \(0, 0\)"),
])
def test_refused(folder, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate(options.pop("model", Pixelwise()), open_dataset(folder, "val", EvalTransform()), workers=0, **options)


class TestCommand:
    def test_of_a_run(self, folder, tmp_path, capsys, caplog):
        """A checkpoint in a run folder brings model, data, split and size along."""
        recipe = RECIPES["camvid_360x480"].with_options(data=folder, val_split="val", val_size=(48, 128))
        save_recipe(recipe, tmp_path / "recipe.yaml")
        model = bssnet_zoo.create_model("bssnet_t", num_classes=3)
        torch.save(model.state_dict(), tmp_path / "best.pth")
        assert cli.main(["eval", "--checkpoint", str(tmp_path / "best.pth"), "--workers", "0"]) == 0
        expected = evaluate(model, open_dataset(folder, "val", EvalTransform((48,))), workers=0)
        out = capsys.readouterr().out
        assert out.startswith(f"{folder}, split val\n") and f"mIoU             {100 * expected.miou:7.3f}" in out
        assert "best.pth was trained on trainval, and val is part of it" in caplog.text

    def test_windows_slide_over_whole_images(self, folder, tmp_path, monkeypatch, caplog):
        sizes = []
        monkeypatch.setattr(eval_cli, "evaluate", lambda model, dataset, **_: sizes.append(dataset.transform.size))
        recipe = RECIPES["camvid_360x480"].with_options(data=folder, train_split="val", val_size=(64, 128))
        save_recipe(recipe, tmp_path / "recipe.yaml")
        torch.save(bssnet_zoo.create_model("bssnet_t", num_classes=3).state_dict(), tmp_path / "best.pth")
        for options in ([], ["--sliding-window", "64x128"], ["--sliding-window", "32x32", "--size", "48"]):
            arguments = ["--checkpoint", str(tmp_path / "best.pth"), "--split", "val", *options]
            # named in another way, it is the same folder
            assert cli.main(["eval", *arguments, "--data", f"{folder}/."]) == 0
        assert sizes == [(64,), None, (48,)]
        assert caplog.text.count("best.pth was trained on val, and val is part of it") == 3

    def test_size_is_what_the_weights_were_made_for(self, folder, tmp_path, monkeypatch):
        sizes, classes = [], ClassInfo(("sky", "road", "car"), CAMVID.palette[:3])
        monkeypatch.setattr(eval_cli, "evaluate", lambda model, dataset, **_: sizes.append(dataset.transform.size))
        model = bssnet_zoo.create_model("bssnet_t", num_classes=3)
        for name, notes in (("mine", {**class_metadata(classes), "input_size": "[64, 128]"}), ("bare", {})):
            save_file(model.state_dict(), tmp_path / f"{name}.safetensors", metadata=notes)
            for size in ([], ["--size", "48"], ["--size", "full"]):
                arguments = ["--checkpoint", str(tmp_path / f"{name}.safetensors"), "--data", folder, *size]
                assert cli.main(["eval", *arguments]) == 0
        assert sizes == [[64], (48,), None, None, (48,), None]
        zoo = WEIGHTS["bssnet_t.camvid"].path  # says nothing of itself
        assert eval_cli.size_made_for(bssnet_zoo.create_model("bssnet_t", checkpoint_path=zoo), zoo) == [720]
        assert eval_cli.size_made_for(bssnet_zoo.create_model("bssnet_t"), None) == [min(SIZES["bssnet_t"])]

    @pytest.mark.parametrize("args, message", [
        (["--model", "bssnet_t"], "say what to evaluate on: --data camvid:DIR"),
        (["--data", "FOLDER"], "the model has 11 classes, the data set 3"),
        (["--data", "FOLDER", "--model", "bssnet_t.pidnet_in1k"], "has no trained classifier"),
        (["--data", "FOLDER", "--sliding-window", "3"], "--sliding-window: a height and a width are needed"),
        (["--checkpoint", "nofile.pth"], "checkpoint not found: nofile.pth"),
        (["--data", "FOLDER", "--split", "test"], "has no split 'test': there is no"),
    ])
    def test_errors(self, folder, args, message, capsys):
        args = [folder if arg == "FOLDER" else arg for arg in args]
        assert cli.main(["eval", "--workers", "0", *args]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("name, step, miou, pixel_accuracy", [
    ("bssnet_t.camvid", 18, 67.133, 91.45), ("bssnet_t.street", 36, 65.784, 91.21),
    ("bssnet_b.camvid", 24, 66.400, 92.58)])
def test_bundled_weights_on_camvid(name, step, miou, pixel_accuracy):
    """On every 18th image and so on: all 233 take minutes, and give the figures of README."""
    dataset = open_dataset(f"camvid:{SHARED / 'camvid'}", "test", EvalTransform(WEIGHTS[name].size))
    assert len(dataset) == 233 and dataset.classes == CAMVID
    dataset.files = dataset.files[::step]
    model = bssnet_zoo.deploy(bssnet_zoo.create_model(name, pretrained=True))
    result = evaluate(model.to(memory_format=torch.channels_last), dataset)
    assert 100 * result.miou == pytest.approx(miou, abs=0.05)
    assert 100 * result.pixel_accuracy == pytest.approx(pixel_accuracy, abs=0.05)
