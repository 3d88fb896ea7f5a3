"""No wrong answer without a word: what a file says of itself is used, and what can't be right is refused or said."""
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_folder
from PIL import Image
from safetensors.torch import load_file, save_file
from test_train import environment

import bssnet_zoo
from bssnet_zoo.cli import main
from bssnet_zoo.data import open_dataset
from bssnet_zoo.data.check import check_dataset, distorted, fingerprint, missing_classes
from bssnet_zoo.data.images import read_image
from bssnet_zoo.deployment.export import export_model
from bssnet_zoo.deployment.exported import OPENERS, open_torchscript
from bssnet_zoo.models.checkpoints import read_checkpoint
from bssnet_zoo.models.metadata import read_metadata
from bssnet_zoo.models.weights import ASSETS
from bssnet_zoo.training import RECIPES, train
from bssnet_zoo.training.loop import warmup_iterations
from bssnet_zoo.training.run_folder import open_run_folder

STREET = ASSETS / "street.png"


@pytest.fixture(scope="module")
def best(finished, tmp_path_factory):
    """A trained checkpoint, away from its run folder."""
    return Path(shutil.copy(finished[0] / "best.safetensors", tmp_path_factory.mktemp("elsewhere")))


class TestAModelKnowsItsClasses:
    def test_notes(self, best):
        notes = read_metadata(best)
        assert json.loads(notes["class_names"]) == ["sky", "road", "car"]
        assert json.loads(notes["input_size"]) == [64, 96] and notes["architecture"] == "bssnet_t"

    def test_create_model(self, best):
        for model in (bssnet_zoo.create_model("bssnet_t", checkpoint_path=best), bssnet_zoo.create_model(
                "bssnet_t", pretrained=True, pretrained_cfg_overlay=dict(file=str(best)))):
            assert model.num_classes == 3 and bssnet_zoo.class_info(model).names == ("sky", "road", "car")
            assert model.pretrained_cfg["input_size"] == (3, 64, 96)

    def test_another_class_count_is_the_callers(self, best):
        model = bssnet_zoo.create_model(
            "bssnet_t", pretrained=True, num_classes=5, pretrained_cfg_overlay=dict(file=str(best)))
        assert bssnet_zoo.class_info(model).names[0] == "class_0"

    def test_features_of_a_checkpoint(self, best):
        model = bssnet_zoo.create_model("bssnet_t", checkpoint_path=best, num_classes=0)
        assert model.num_classes == 0

    def test_any_file_name(self, best, tmp_path):
        shutil.copy(best, tmp_path / "epoch_100.ckpt")
        for path in (tmp_path / "epoch_100.ckpt", str(tmp_path / "epoch_100.ckpt")):
            assert bssnet_zoo.Predictor(path, backend="deploy").runner.classes.names == ("sky", "road", "car")

    def test_predict(self, best, tmp_path, capsys):
        assert main(["predict", str(STREET), "--checkpoint", str(best), "--out", str(tmp_path)]) == 0
        assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[:3]} == {"sky", "road", "car"}
        assert bssnet_zoo.Predictor(best, backend="deploy").size == [64]

    def test_eval(self, best, capsys):
        assert main(["eval", "--checkpoint", str(best), "--workers", "0", "--device", "cpu"]) == 0
        assert "split val\nsky " in capsys.readouterr().out  # the recipe in the file says where the data is

    def test_convert_and_export(self, best, tmp_path):
        assert main(["convert", str(best), str(tmp_path / "half.safetensors")]) == 0
        assert read_metadata(tmp_path / "half.safetensors") == read_metadata(best)
        path = tmp_path / "mine.torchscript"
        assert main(["export", "--checkpoint", str(tmp_path / "half.safetensors"), "--format", "torchscript", "--out",
                     str(path), "--size", "64x96"]) == 0
        assert bssnet_zoo.Predictor(path, trust=True).runner.classes.names == ("sky", "road", "car")

    def test_publish(self, best, tmp_path):
        from bssnet_zoo.hub import stage
        stage("bssnet_t.mine", "me", tmp_path, checkpoint=best, license="cc-by-4.0")
        config = json.loads((tmp_path / "config.json").read_text())
        assert config["label_names"] == ["sky", "road", "car"]
        assert config["pretrained_cfg"]["input_size"] == [3, 64, 96]

    def test_eleven_classes_of_nobody(self, tmp_path):
        save_file(bssnet_zoo.create_model("bssnet_t", num_classes=11).state_dict(), tmp_path / "mine.safetensors")
        model = bssnet_zoo.create_model("bssnet_t", checkpoint_path=tmp_path / "mine.safetensors")
        assert bssnet_zoo.class_info(model).names[9] == "class_9"  # not a pedestrian
        bundled = bssnet_zoo.create_model("bssnet_t", checkpoint_path=ASSETS / "bssnet_t.camvid.safetensors")
        assert bssnet_zoo.class_info(bundled).names[9] == "pedestrian"

    @pytest.mark.parametrize("notes", [
        {"class_names": "[", "palette": "[]"}, {"class_names": '["a"]'}, {"class_names": '["a"]', "palette": '["#1"]'},
        {"class_names": '["a", "b"]', "palette": '["#000000"]'}, {"class_names": "3", "palette": "3"},
        {"class_names": '["a"]', "palette": '["#000000"]', "input_size": "[4]"},
        {"class_names": '["a"]', "palette": '["#000000"]', "input_size": "[64, 96]"},
    ])
    def test_notes_that_make_no_sense(self, notes, best, tmp_path):
        save_file(load_file(best), tmp_path / "odd.safetensors", metadata=notes)
        with pytest.raises(ValueError, match="odd.safetensors.*(makes no sense|names 1 classes, the model has 3)"):
            bssnet_zoo.create_model("bssnet_t", checkpoint_path=tmp_path / "odd.safetensors")


class TestMasks:
    def folder(self, root: Path, yaml: str, values=(0, 255), splits=("train", "val")) -> str:
        for split in splits:
            for kind, array in (("images", np.zeros((64, 96, 3), np.uint8)), ("masks", np.zeros((64, 96), np.uint8))):
                path = root / kind / split / "a.png"
                path.parent.mkdir(parents=True)
                if kind == "masks":
                    array[:], array[:32] = values
                Image.fromarray(array).save(path)
        (root / "dataset.yaml").write_text(yaml)
        return f"folder:{root}"

    def test_255_may_be_a_class(self, tmp_path):
        dataset = open_dataset(self.folder(tmp_path, "classes: [road, pothole]\nid_map: {0: 0, 255: 1}"), "train")
        assert dataset[0][1].unique().tolist() == [0, 1]
        assert not missing_classes(dataset, check_dataset(dataset), "train")

    def test_255_may_be_ignored_by_name(self, tmp_path):
        dataset = open_dataset(self.folder(tmp_path, "classes: [road]\nid_map: {0: 0, 255: 255}"), "train")
        assert dataset[0][1].unique().tolist() == [0, 255]

    def test_a_class_without_a_pixel_is_said(self, tmp_path):
        dataset = open_dataset(self.folder(tmp_path, "classes: [road, pothole]"), "train")
        lines = missing_classes(dataset, check_dataset(dataset), "train")
        assert lines[0] == "'pothole' has no pixel in train" and "id_map: {0: 0, 255: 1}" in lines[1]

    def test_masks_ignored_as_a_whole_are_said(self, tmp_path):
        dataset = open_dataset(self.folder(tmp_path, "classes: [road]", values=(255, 255)), "train")
        lines = missing_classes(dataset, check_dataset(dataset), "train")
        assert "1 masks in train are ignored as a whole: " in lines[-1]

    def test_damaged_images(self, tmp_path, capsys):
        data = self.folder(tmp_path, "classes: [road]", values=(0, 0))
        noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        (tmp_path / "images/train/a.png").unlink()
        path = tmp_path / "images/train/a.jpg"
        Image.fromarray(noise).save(path)
        path.write_bytes(path.read_bytes()[:2000])  # with a whole header
        check_dataset(open_dataset(data, "train"))
        with pytest.raises(ValueError, match="1 files that can't be read: .*a.jpg"):
            check_dataset(open_dataset(data, "train"), full=True)
        assert main(["data", data, "--full", "--out", str(tmp_path / "sheet.png")]) == 2
        assert "a.jpg" in capsys.readouterr().err and not (tmp_path / "sheet.png").exists()

    @pytest.mark.parametrize("kind", ["images", "masks"])
    def test_decompression_bombs(self, tmp_path, kind, monkeypatch):
        data = self.folder(tmp_path, "classes: [road]", values=(0, 0))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(ValueError, match="a.png.*decompression bomb"):
            check_dataset(open_dataset(data, "train"))

    def test_training_says_so(self, tmp_path, tiny_recipe, capsys):
        data = write_folder(tmp_path / "data", train=4, val=2)
        (tmp_path / "data" / "dataset.yaml").write_text("classes: [sky, road, car, plane]\n")
        train(replace(tiny_recipe, data=data, epochs=1), tmp_path / "run")
        assert "'plane' has no pixel in train" in capsys.readouterr().out

    @pytest.mark.parametrize(("yaml", "message"), [
        ("classes: [road, car, road]", "named twice: road"),
        ("classes: [road, no]", "False among the classes is no name"),
        ("classes: [road, null]", "None among the classes is no name"),
        ("classes: [road, [a]]", "among the classes is no name"),
    ])
    def test_names(self, tmp_path, yaml, message):
        with pytest.raises(ValueError, match=message):
            open_dataset(self.folder(tmp_path, yaml), "train")

    def test_two_images_of_one_name(self, tmp_path):
        data = self.folder(tmp_path, "classes: [road]")
        shutil.copy(tmp_path / "images/train/a.png", tmp_path / "images/train/a.webp")
        with pytest.raises(ValueError, match="a.png and a.webp have the same name"):
            open_dataset(data, "train")

    def test_another_size_than_the_image_in_eval(self, tmp_path, best, capsys):
        data = self.folder(tmp_path, "classes: [sky, road, car]", values=(0, 1))
        Image.fromarray(np.zeros((32, 48), np.uint8)).save(tmp_path / "masks/val/a.png")
        assert main(["eval", "--checkpoint", str(best), "--data", data, "--workers", "0"]) == 2
        assert "labels of another size than their image" in capsys.readouterr().err


class TestPixels:
    """Data sets read an image as prediction does."""

    def dataset(self, root: Path, image: Image.Image, mask: np.ndarray, **options):
        for kind in ("images", "masks"):
            (root / kind / "train").mkdir(parents=True)
        image.save(root / "images/train/a.png", **options)
        Image.fromarray(mask).save(root / "masks/train/a.png")
        (root / "dataset.yaml").write_text("classes: [road]\n")
        return open_dataset(f"folder:{root}", "train")

    def test_16_bits(self, tmp_path):
        grey = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96) * 10
        dataset = self.dataset(tmp_path, Image.fromarray(grey), np.zeros((64, 96), np.uint8))
        image = dataset[0][0].float()
        assert (image - torch.from_numpy(grey / 257.).float()).abs().max() <= 0.5 and image.max() > 200

    def test_rotation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # to be shown turned by 90 degrees
        picture = Image.open(STREET).convert("RGB")
        dataset = self.dataset(
            tmp_path, picture.transpose(Image.Transpose.ROTATE_90), np.zeros((360, 480), np.uint8), exif=exif)
        check_dataset(dataset)
        assert np.array_equal(dataset[0][0].permute(1, 2, 0), picture)

    def test_rotation_that_the_mask_does_not_follow(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6
        dataset = self.dataset(tmp_path, Image.new("RGB", (96, 64)), np.zeros((64, 96), np.uint8), exif=exif)
        with pytest.raises(ValueError, match=r"another size than their image.*a.png \(64x96, image 96x64\)"):
            check_dataset(dataset)


def test_the_bytes_tell_the_kind_of_a_checkpoint(best, tmp_path):
    shutil.copy(best, tmp_path / "mine.pth")
    assert read_checkpoint(tmp_path / "mine.pth").keys() == read_checkpoint(best).keys()
    torch.save(load_file(best), tmp_path / "mine.safetensors")
    assert read_checkpoint(tmp_path / "mine.safetensors").keys() == read_checkpoint(best).keys()


@pytest.mark.parametrize(("name", "change", "message"), [
    ("head.classifier.bias", lambda x: x * torch.nan, "has values that are NaN or infinite"),
    ("stem.0.conv.weight", lambda x: x / 0, "has values that are NaN or infinite"),
    ("stem.0.bn.running_var", lambda x: -1 - x.abs(), "has variances below 0"),
    ("head.classifier.weight", lambda x: x.int(), "holds torch.int32, not floating point numbers"),
    ("head.classifier.weight", lambda x: x > 0, "holds torch.bool"),
])
def test_broken_weights(name, change, message, tmp_path):
    weights = bssnet_zoo.create_model("bssnet_t").state_dict()
    weights[name] = change(weights[name])
    save_file(weights, tmp_path / "broken.safetensors")
    torch.save(weights, tmp_path / "broken.pth")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=f"{path.name} is broken: {name} {message}"):
            read_checkpoint(path)
        with pytest.raises(ValueError, match="is broken"):
            bssnet_zoo.create_model("bssnet_t", pretrained=True, pretrained_cfg_overlay=dict(file=str(path)))
    with pytest.raises(ValueError, match="is broken"):  # what timm itself loads passes the filter
        bssnet_zoo.create_model("bssnet_t", pretrained=True, pretrained_cfg_overlay=dict(state_dict=weights))


class TestRuns:
    def test_two_writers(self, tmp_path, tiny_recipe):
        with open_run_folder(tmp_path, tiny_recipe, resume=False):
            code = ("import sys; from bssnet_zoo.cli import main; "
                    f"sys.exit(main(['train', '--resume', {str(tmp_path)!r}]))")
            second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment())
        assert second.returncode == 2
        assert f"is in use by process {os.getpid()} on " in second.stderr and second.stderr.count("\n") == 1
        with open_run_folder(tmp_path, tiny_recipe, resume=True):
            pass

    def test_data_that_changed(self, tmp_path, tiny_recipe):
        data = write_folder(tmp_path / "data", train=8, val=2)
        recipe = replace(tiny_recipe, data=data, epochs=2)
        train(recipe, tmp_path / "run", stop_epoch=1)
        before = fingerprint(open_dataset(data, "train"))
        for kind in ("images", "masks"):
            shutil.copy(tmp_path / f"data/{kind}/train/0.png", tmp_path / f"data/{kind}/train/new.png")
        assert fingerprint(open_dataset(data, "train")) != before
        with pytest.raises(ValueError, match="the data set has changed since this run began"):
            train(recipe, tmp_path / "run", resume=True)

    def test_damaged_state(self, tmp_path, tiny_recipe):
        train(replace(tiny_recipe, epochs=1), tmp_path / "run", stop_epoch=1)
        state = tmp_path / "run" / "last.pth"
        state.write_bytes(state.read_bytes()[:1000])
        with pytest.raises(ValueError, match="last.pth is damaged, the run can't go on from it"):
            train(replace(tiny_recipe, epochs=1), tmp_path / "run", resume=True)

    def test_warm_up_longer_than_the_run(self):
        recipe = replace(RECIPES["camvid_480x360"], warmup_iterations=200)
        assert [warmup_iterations(recipe, n) for n in (4000, 400, 399, 20)] == [200, 200, 79, 4]

    def test_validation_at_another_shape_is_said(self, tiny_recipe):
        scans = check_dataset(open_dataset(tiny_recipe.data, "val"))
        assert distorted(scans, (64, 64), "val") == [
            "images in val are 64x96 and are validated at 64x64, which distorts them: give the size that the network "
            "should see, as in --base-size 64x96 --val-size 64x96"]
        assert not distorted(scans, (96, 144), "val") and not distorted(scans, None, "val")


@pytest.mark.parametrize(("options", "message"), [
    ({"clip_grad": 0.}, "clip_grad must be more than 0"),
    ({"clip_grad": -1.}, "clip_grad must be more than 0"),
    ({"weight_decay": -1e-4}, "weight_decay must be 0 or more"),
    ({"weight_decay": float("nan")}, "weight_decay must be finite"),
    ({"lr": float("nan")}, "lr must be finite"),
    ({"momentum": 1.}, r"momentum must be in \[0, 1\)"),
    ({"poly_power": 0.}, "poly_power must be more than 0"),
    ({"layer_decay": 2.}, r"layer_decay must be in \(0, 1\]"),
    ({"warmup_iterations": -1}, "warmup_iterations must be 0 or more"),
    ({"gamma": float("inf")}, "gamma must be finite"),
    ({"scale_range": (2., 0.5)}, "scale_range must be two ascending"),
    ({"class_weights": (1., 0., 1.)}, "class_weights must be more than 0"),
    ({"class_mix": 1.5}, "class_mix must be a share"),
    ({"workers": -1}, "workers must be 0 or more"),
    ({"loss_weights": (1., 1., 1., 1., 1., -1.)}, "loss_weights must be 0 or more"),
])
def test_hyper_parameters(options, message):
    with pytest.raises(ValueError, match=message):
        replace(RECIPES["camvid_480x360"], **options)


class TestPredictOverwritesNothing:
    def test_foreign_files(self, tmp_path, capsys):
        labels = tmp_path / "a_labels.png"
        shutil.copy(STREET, tmp_path / "a.png")
        Image.new("L", (4, 4), 7).save(labels)
        before = labels.read_bytes()
        arguments = ["predict", str(tmp_path / "a.png"), "--out", str(tmp_path), "--size", "64", "--backend", "deploy"]
        assert main(arguments) == 1
        assert labels.read_bytes() == before and not (tmp_path / "a_overlay.png").exists()
        assert "a_labels.png is there and was not written by bssnet-zoo predict" in capsys.readouterr().out
        assert main([*arguments, "--overwrite"]) == 0 and labels.read_bytes() != before
        assert main(arguments) == 0  # its own files are replaced


class TestPredictGoesOn:
    def test_an_image_that_is_too_large_for_the_memory(self, tmp_path, monkeypatch, capsys):
        for name in ("large.png", "small.png"):
            shutil.copy(STREET, tmp_path / name)
        segment, calls = bssnet_zoo.Predictor.segment, []

        def first_fails(self, *arguments):
            calls.append(arguments)
            if len(calls) == 1:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory\nmore lines")
            return segment(self, *arguments)

        monkeypatch.setattr(bssnet_zoo.Predictor, "segment", first_fails)
        assert main(["predict", str(tmp_path), "--out", f"{tmp_path}/out", "--size", "64", "--backend", "deploy"]) == 1
        output = capsys.readouterr().out
        assert f"failed: {tmp_path / 'large.png'}: DefaultCPUAllocator: can't allocate memory\n" in output
        assert "1 images in" in output and (tmp_path / "out/small_labels.png").exists()

    def test_a_checkpoint_that_does_not_say_its_size(self, tmp_path, caplog):
        save_file(bssnet_zoo.create_model("bssnet_t", num_classes=3).state_dict(), tmp_path / "mine.safetensors")
        options = ["predict", str(STREET), "--checkpoint", str(tmp_path / "mine.safetensors"), "--backend", "deploy",
                   "--out", str(tmp_path / "out")]
        assert main([*options, "--size", "64"]) == 0 and "doesn't say what size" not in caplog.text
        assert main(options) == 0 and "mine.safetensors doesn't say what size its weights were made for" in caplog.text

    def test_batches_are_bounded(self, tiny):
        predictor, sizes = bssnet_zoo.Predictor(tiny, backend="eager", size=64), []
        run = predictor.runner.run
        object.__setattr__(predictor.runner, "run", lambda images: sizes.append(len(images)) or run(images))
        assert len(predictor.batch([STREET] * 5, batch_size=2)) == 5 and sizes == [2, 2, 1]
        with pytest.raises(ValueError, match="batch_size must be 1 or more, got 0"):
            predictor.batch([STREET], batch_size=0)


    def test_odd_exif(self, tmp_path):
        """A tag of another type than in Pillow's table: the picture is turned all the same."""
        entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x0128, 5, 1, 38)
        tiff = b"II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<III", 0, 2, 1)
        Image.open(STREET).convert("RGB").save(tmp_path / "odd.jpg", exif=b"Exif\0\0" + tiff)
        assert read_image(tmp_path / "odd.jpg").shape == (3, 480, 360)
        text = struct.pack("<HHI4s", 0x0112, 2, 2, b"6\0\0\0")
        tiff = b"II*\0" + struct.pack("<IH", 8, 1) + text + struct.pack("<I", 0)
        Image.open(STREET).convert("RGB").save(tmp_path / "odd.jpg", exif=b"Exif\0\0" + tiff)
        assert read_image(tmp_path / "odd.jpg").shape == (3, 360, 480)

    def test_a_library_with_errors_of_its_own(self, tmp_path, monkeypatch, capsys):
        """Those of ONNX Runtime are plain `Exception`s: the other images are segmented."""
        class Fail(Exception):
            pass

        path = tmp_path / "t.torchscript"
        export_model(bssnet_zoo.BSSNet(num_classes=3, dim=8).eval(), path, "torchscript", (64, 96))
        for name in "ab":
            shutil.copy(STREET, tmp_path / f"{name}.png")
        calls = []

        def run(images):
            calls.append(1)
            if len(calls) == 1:
                raise Fail("not enough space")
            return torch.zeros(1, 3, 64, 96)

        def open_file(*args):
            return run, open_torchscript(*args)[1]

        monkeypatch.setitem(OPENERS, ".torchscript", ("torchscript", open_file))
        out = tmp_path / "out"
        assert main(["predict", str(tmp_path), "--checkpoint", str(path), "--trust", "--out", str(out)]) == 1
        out = capsys.readouterr().out
        assert "1 images in" in out and "t.torchscript: not enough space" in out


class TestOwnFiles:
    def test_a_run_without_its_checkpoint(self, finished, tiny_recipe, tmp_path):
        folder = Path(shutil.copytree(finished[0], tmp_path / "run"))
        (folder / "last.pth").unlink()
        before = {path: path.read_bytes() for path in folder.glob("*.*")}
        for resume in (False, True):
            with pytest.raises(ValueError, match="best.safetensors of a run but no last.pth to go on from"):
                train(tiny_recipe, folder, resume=resume)
        assert {path: path.read_bytes() for path in folder.glob("*.*")} == before

    def test_publish_into_a_folder_of_others(self, best, tmp_path):
        from bssnet_zoo.hub import stage
        shutil.copy(best, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="model.safetensors would be overwritten: choose another folder"):
            stage("bssnet_t.mine", "me", tmp_path, checkpoint=tmp_path / "model.safetensors", license="mit")
        assert (tmp_path / "model.safetensors").read_bytes() == best.read_bytes()

    def test_validation_images_that_are_too_small(self, tmp_path, tiny_recipe):
        data = write_folder(tmp_path / "data", train=4, val=1)
        for path in (tmp_path / "data").glob("*/val/0.png"):
            Image.open(path).crop((0, 0, 96, 28)).save(path)
        with pytest.raises(ValueError, match="32 pixels high and wide or more, one has 28: give --val-size"):
            train(replace(tiny_recipe, data=data), tmp_path / "run")


class TestLastNet:
    @pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="of Unix")
    def test_a_terminal_that_goes_away(self, monkeypatch):
        monkeypatch.setattr("bssnet_zoo.cli.list.model_table", lambda: signal.raise_signal(signal.SIGHUP))
        before = signal.getsignal(signal.SIGHUP)
        with pytest.raises(SystemExit) as stop:
            main(["list"])
        assert stop.value.code == 128 + signal.SIGHUP and signal.getsignal(signal.SIGHUP) == before

    def test_a_reader_that_has_gone(self, monkeypatch):
        reader, writer = os.pipe()
        os.close(reader)
        with open(writer, "w") as out:
            monkeypatch.setattr(sys, "stdout", out)
            assert main(["list"]) == 1

    def test_an_error_nobody_thought_of(self, monkeypatch, capsys):
        monkeypatch.setattr("bssnet_zoo.cli.list.model_table", lambda: {}["x"])
        assert main(["list"]) == 3
        error = capsys.readouterr().err
        assert error.startswith("bssnet-zoo: error: KeyError: 'x'. Please report it") and error.count("\n") == 1

    def test_ctrl_c(self, monkeypatch, capsys):
        def interrupted():
            raise KeyboardInterrupt

        monkeypatch.setattr("bssnet_zoo.cli.list.model_table", interrupted)
        assert main(["list"]) == 130
        assert capsys.readouterr().err == "bssnet-zoo: interrupted\n"

    def test_a_wrong_option_is_one_line(self, capsys):
        assert main(["predict", "--sise", "3"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
