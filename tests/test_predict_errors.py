"""One image that fails doesn't end a prediction, and files of others stay."""
import shutil
import struct

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import bssnet_zoo
from bssnet_zoo.cli import main
from bssnet_zoo.data.images import read_image
from bssnet_zoo.deployment.export import export_model
from bssnet_zoo.deployment.exported import OPENERS, open_torchscript
from bssnet_zoo.models.weights import ASSETS

STREET = ASSETS / "street.png"


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
