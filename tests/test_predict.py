"""Images in, label maps and pictures out; in Python and on the command line."""
import io
import os
import re
import runpy
import shutil
import struct
import sys
import time
import zlib
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from test_pretrained import STREET
from torchvision.transforms.v2 import functional as TF

import bssnet_zoo
from bssnet_zoo import Predictor
from bssnet_zoo.cli import main
from bssnet_zoo.data import CAMVID, ClassInfo
from bssnet_zoo.data.images import image_files, image_size, load_image, read_image, read_values, resize_image
from bssnet_zoo.files import visible_files
from bssnet_zoo.inference.predict_files import predict_files
from bssnet_zoo.inference.results import ResultNames

SKY, BUILDING, ROAD, CAR = (CAMVID.names.index(name) for name in ("sky", "building", "road", "car"))


@pytest.fixture(scope="module")
def model():
    return bssnet_zoo.create_model("bssnet_t", pretrained=True).eval()


predict = partial(bssnet_zoo.predict, size=360)  # the street's own size


@pytest.fixture(scope="module")
def prediction(model):
    return predict(model, STREET, probabilities=True)


def test_things_are_where_they_are(prediction):
    labels = prediction.labels
    assert labels.shape == (360, 480) and labels.dtype == np.uint8
    assert (labels[:60, 240:280] == SKY).mean() > 0.9
    assert (labels[280:, 220:340] == ROAD).mean() > 0.9
    assert (labels[200:280, 375:470] == CAR).mean() > 0.9
    assert (labels[60:100, 320:400] == BUILDING).mean() > 0.9


def test_is_the_models_own_argmax(model, prediction):
    x = TF.normalize(load_image(STREET), model.pretrained_cfg["mean"], model.pretrained_cfg["std"])[None]
    with torch.inference_mode():
        logits = model(x)
    assert (logits.argmax(1)[0].numpy() == prediction.labels).mean() > 0.9999
    assert prediction.probabilities.shape == (11, 360, 480)
    assert np.allclose(prediction.probabilities.sum(0), 1, atol=1e-5)
    assert np.abs(prediction.probabilities - logits.softmax(1)[0].numpy()).max() < 1e-4
    assert predict(model, STREET).probabilities is None


def test_every_form_of_an_image(model, prediction, tmp_path):
    picture = Image.open(STREET)
    array = np.array(picture)
    forms = [
        str(STREET), picture, array, np.dstack([array, np.full(array.shape[:2], 7, np.uint8)]), picture.convert("RGBA"),
        TF.pil_to_tensor(picture), TF.pil_to_tensor(picture) / 255, (TF.pil_to_tensor(picture) / 255).double(),
        array / 255, (TF.pil_to_tensor(picture) / 255).numpy(),
    ]
    for form in forms:
        assert (predict(model, form).labels == prediction.labels).mean() > 0.9999
    grey = predict(model, picture.convert("L"))
    deep = Image.fromarray(np.array(picture.convert("L")).astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png")
    for form in (deep, tmp_path / "deep.png", np.array(picture.convert("L")), np.array(picture.convert("L"))[..., None],
                 picture.convert("LA"), torch.from_numpy(np.array(picture.convert("L")) / 255)):
        assert (predict(model, form).labels == grey.labels).mean() > 0.999
    palette = picture.quantize(256)
    assert (predict(model, palette).labels == predict(model, palette.convert("RGB")).labels).all()


def png(bits: int, rows: list[bytes], width: int) -> bytes:
    """A grey PNG of any bit depth; Pillow writes 1, 8 and 16 only."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


class TestReading:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation(self, orientation, tmp_path):
        """Every format is turned, once, and a label like its image."""
        picture = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((8, 8), np.uint8))
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(picture).save(tmp_path / "a.png", exif=exif)
        shown = np.array(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
        for suffix in ("png", "jpg", "webp", "tiff", *["avif"] * (".avif" in Image.registered_extensions())):
            path = tmp_path / f"a.{suffix}"
            Image.fromarray(picture).save(path, exif=exif, quality=95)
            found = read_image(path)
            assert np.abs(found.numpy().astype(int) - shown).max() < 12, suffix
            assert image_size(path) == shown.shape
        assert np.array_equal(read_values(tmp_path / "a.tiff"), shown)
        assert np.array_equal(read_values(tmp_path / "a.png"), shown)

    def test_integers_of_any_width(self, tmp_path):
        grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
        for wide in (grey.astype(np.int32), grey.astype(np.int32) * 257, grey.astype(np.uint16) * 257):
            for image in (Image.fromarray(wide), tmp_path / "a.tiff"):
                Image.fromarray(wide).save(tmp_path / "a.tiff")
                assert (load_image(image) - torch.from_numpy(grey / 255)).abs().max() < 1e-6
        for odd in ([[0, 70000]], [[-1, 5]]):
            with pytest.raises(ValueError, match="don't say what is white: scale them to 0 to 255 or 65535"):
                read_image(Image.fromarray(np.array(odd, np.int32)))
        dark = np.full((4, 4), 9, np.uint16)  # 16 bits say what is white, whatever is used of them
        Image.fromarray(dark).save(tmp_path / "dark.png")
        assert read_image(tmp_path / "dark.png").max() == pytest.approx(9 / 65535)

    @pytest.mark.parametrize(("bits", "rows"), [(2, b"\x1b\x1b"), (4, b"\x01\x23")])
    def test_values_are_not_stretched(self, bits, rows, tmp_path):
        (tmp_path / "a.png").write_bytes(png(bits, [rows], width=4))
        assert read_values(tmp_path / "a.png").tolist() == [[0, 1, 2, 3]]
        assert read_image(tmp_path / "a.png")[0].tolist() == [[i * 255 // (2 ** bits - 1) for i in range(4)]]

    def test_values_of_other_files(self, tmp_path):
        for array in (np.eye(3, dtype=bool), np.arange(9, dtype=np.uint16).reshape(3, 3) * 300):
            Image.fromarray(array).save(tmp_path / "a.png")
            assert np.array_equal(read_values(tmp_path / "a.png"), array)
        with pytest.raises(ValueError, match="a label of mode RGB, not grey or palette"):
            read_values(STREET)

    def test_floats_may_be_rounded(self):
        image = torch.tensor([[[-1e-7, 1.0000001]]])
        assert read_image(image)[0].tolist() == [[0, 1]]

    @pytest.mark.parametrize("suffix", ["gif", "png", "tiff", "webp"])
    def test_first_of_several_frames_is_said(self, suffix, tmp_path, caplog):
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        assert read_image(tmp_path / f"a.{suffix}")[0].min() > 200
        assert f"a.{suffix} has several frames or pages: only the first is read" in caplog.text

    def test_too_many_pixels(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        with pytest.raises(ValueError, match="street.png: .*MAX_IMAGE_PIXELS .bssnet-zoo predict: --max-pixels"):
            read_image(STREET)

    def test_shapes_that_would_fill_the_memory(self):
        with pytest.raises(ValueError, match="an image of 1x1000 would be enlarged to 720x720000: give a smaller size"):
            resize_image(torch.zeros(3, 1, 1000), [720])
        assert resize_image(torch.zeros(3, 3, 5), [6]).shape == (3, 6, 10)


def test_folders_are_searched_through_links(tmp_path):
    """Into loops once only; a broken link is for its reader to report, and a folder that can't be listed is named."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside / "a", inside / ".hidden", outside):
        folder.mkdir(parents=True)
        (folder / "1.PNG").touch()
    (inside / "a" / "up").symlink_to(inside)
    (inside / "b").symlink_to(outside)
    (outside / "back").symlink_to(inside)
    (inside / "gone.png").symlink_to(tmp_path / "nothing")
    (inside / "text.txt").touch()
    os.mkfifo(inside / "pipe.png")
    assert [str(path.relative_to(inside)) for path in image_files(inside)] == ["a/1.PNG", "b/1.PNG", "gone.png"]
    assert inside / "text.txt" in visible_files(inside)
    errors: list[OSError] = []
    assert visible_files(tmp_path / "nothing", unreadable=errors.append) == []
    assert errors[0].filename == str(tmp_path / "nothing")
    with pytest.raises(OSError, match="nothing"):
        visible_files(tmp_path / "nothing")


@pytest.mark.parametrize("size", [(1, 1), (7, 50), (31, 31), (40, 20), (33, 47)])
def test_small_and_odd_images(model, size):
    result = predict(model, np.full((*size, 3), 128, np.uint8), probabilities=True)
    assert result.labels.shape == size and result.probabilities.shape == (11, *size)
    assert result.overlay().width >= size[1]


@pytest.mark.parametrize(("size", "seen"), [
    (180, (180, 240)), ([180], (180, 240)), ((128, 256), (128, 256)), (16, (32, 32))])
def test_size_is_what_the_network_sees(model, prediction, size, seen):
    shapes = []
    handle = model.stem.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape[2:])))
    result = bssnet_zoo.predict(model, STREET, size=size)
    handle.remove()
    assert shapes == [seen] and result.labels.shape == (360, 480)
    if min(seen) > 100:
        assert (result.labels == prediction.labels).mean() > 0.8


def test_leaves_the_model_as_it_was(model):
    """Each module in its mode, frozen ones too, and statistics untouched."""
    model.train()
    model.stem.eval()
    before = model.stages[0][0].conv1.bn.running_mean.clone()
    bssnet_zoo.predict(model, STREET, size=64)
    assert model.training and model.stages.training and not model.stem.training and not model.stem[0].bn.training
    assert torch.equal(before, model.stages[0][0].conv1.bn.running_mean)
    model.eval()


def test_half_precision(model, prediction):
    half = bssnet_zoo.create_model("bssnet_t", pretrained=True).bfloat16()
    result = predict(half, STREET, probabilities=True)
    assert (result.labels == prediction.labels).mean() > 0.97 and result.probabilities.dtype == np.float32


def test_pictures(prediction):
    labels = prediction.label_image()
    assert labels.mode == "P" and (np.array(labels) == prediction.labels).all()
    buffer = io.BytesIO()
    labels.save(buffer, "PNG")
    again = Image.open(buffer)
    assert again.mode == "P" and (np.array(again) == prediction.labels).all()
    assert again.convert("RGB").getpixel((300, 350)) == CAMVID.palette[ROAD]
    overlay = prediction.overlay(legend=False)
    assert overlay.size == (480, 360)
    expected = 0.45 * np.array(prediction.image, float) + 0.55 * np.array(labels.convert("RGB"), float)
    assert np.abs(np.array(overlay, float) - expected).max() <= 1.5
    with_legend = prediction.overlay()
    assert with_legend.height > 360 and (np.array(with_legend)[:360, :480] == np.array(overlay)).all()
    colours = {tuple(c) for c in np.array(with_legend)[360:].reshape(-1, 3)}
    assert {CAMVID.palette[i] for i in np.unique(prediction.labels)} <= colours
    with pytest.raises(ValueError, match="alpha must be between 0 and 1, got 2"):
        prediction.overlay(alpha=2)


@pytest.mark.parametrize(("image", "error", "message"), [
    ("none.png", FileNotFoundError, "image not found: none.png"),
    (np.zeros((4, 4, 3), np.int64), ValueError, "uint8 array or a float tensor.* not int64"),
    (np.full((4, 4, 3), 255.), ValueError, r"must lie in \[0, 1\], got values from 255 to 255"),
    ([np.zeros((4, 4, 3), np.uint8)], ValueError, "not list: for several images there is Predictor.batch"),
    (np.zeros((4, 4, 2), np.uint8), ValueError, r"must have shape \(H, W\), .* got \(4, 4, 2\)"),
    (np.zeros((0, 4, 3), np.uint8), ValueError, r"got \(0, 4, 3\)"),
    (torch.full((3, 4, 4), 200.), ValueError, r"must lie in \[0, 1\], got values from 200 to 200"),
    (torch.full((3, 4, 4), torch.nan), ValueError, r"must lie in \[0, 1\]"),
    (torch.zeros(2, 3, 4, 4), ValueError, r"must have shape \(3, H, W\) or \(1, H, W\), got \(2, 3, 4, 4\)"),
    (torch.zeros(3, 4, 4, dtype=torch.int64), ValueError, "not torch.int64"),
    (None, ValueError, "not NoneType"),
])
def test_bad_images(model, image, error, message):
    with pytest.raises(error, match=message):
        predict(model, image)


@pytest.mark.parametrize("size", [0, (0, 5), (1, 2, 3), -4])
def test_bad_size(model, size):
    with pytest.raises(ValueError, match="size must be the shorter side or"):
        bssnet_zoo.predict(model, STREET, size=size)


@pytest.mark.parametrize(("kwargs", "message"), [
    (dict(num_classes=0), "num_classes=0 and gives features"), (dict(num_classes=1), "the model has one class"),
    (dict(in_chans=4), "images are read as RGB, the model takes 4 channels"),
    (dict(features_only=True), "gives a list, not logits"),
])
def test_bad_models(kwargs, message):
    with pytest.raises(ValueError, match=message):
        predict(bssnet_zoo.create_model("bssnet_t", **kwargs), STREET)


class Grey:
    """Stands for a predictor where only files matter."""

    runner = SimpleNamespace(classes=ClassInfo(("dark", "light"), ((0, 0, 0), (255, 255, 255))))

    def prepare(self, image):
        return read_image(image)

    def segment(self, rgb):
        labels = (rgb[0] > 127).byte().numpy()
        picture = Image.fromarray(rgb.permute(1, 2, 0).numpy())
        return bssnet_zoo.Prediction(labels, picture, *vars(self.runner.classes).values())


def draw(path: Path, value: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (value,) * 3).save(path)
    return path


def shown(out: Path) -> dict[str, int]:
    """The names of the label files below a folder, and what is in them."""
    return {str(path.relative_to(out)).removesuffix("_labels.png"): int(np.array(Image.open(path))[0, 0])
            for path in out.rglob("*_labels.png")}


class TestResults:
    """Each result is of its own picture, from run to run."""

    def test_sources_of_one_name_keep_apart(self, tmp_path):
        dark, light, out = draw(tmp_path / "1/a.png", 0), draw(tmp_path / "2/a.png", 255), tmp_path / "out"
        for source in (dark.parent, light.parent, light, dark.parent):  # the last two find their own
            predict_files(Grey(), source, out)
            predict_files(Grey(), source, out, skip_existing=True)
        assert shown(out) == {"a": 0, "a-2": 1}

    def test_a_source_beside_another(self, tmp_path):
        draw(tmp_path / "in/a.png", 0)
        predict_files(Grey(), tmp_path / "in", tmp_path / "out")
        draw(tmp_path / "in/a.bmp", 255)  # comes first now
        summary = predict_files(Grey(), tmp_path / "in", tmp_path / "out", skip_existing=True)
        assert summary.skipped == 1 and shown(tmp_path / "out") == {"a": 0, "a-2": 1}

    def test_a_picture_that_changed_is_done_again(self, tmp_path):
        source, out = draw(tmp_path / "a.png", 0), tmp_path / "out"
        predict_files(Grey(), source, out)
        draw(source, 255)
        later = (out / "a_labels.png").stat().st_mtime + 10
        os.utime(source, (later, later))
        assert predict_files(Grey(), source, out, skip_existing=True).skipped == 0 and shown(out) == {"a": 1}

    def test_only_what_we_wrote_is_no_input(self, tmp_path):
        """An earlier output folder inside the source is none, the user's own file of such a name is one."""
        draw(tmp_path / "a.png", 0)
        draw(tmp_path / "mine_labels.png", 255)
        for name in ("b.txt", "c.txt", "notes"):
            (tmp_path / name).touch()
        for out in ("one", "two"):
            summary = predict_files(Grey(), tmp_path, tmp_path / out)
            assert shown(tmp_path / out) == {"a": 0, "mine_labels": 1}
        assert summary.left_out == {".txt": 2, "without suffix": 1, "results of earlier runs": 4}
        assert "left out 4 results of earlier runs, 2 .txt, 1 without suffix" in str(summary)

    def test_an_input_is_not_replaced(self, tmp_path):
        source, other = draw(tmp_path / "a.png", 0), draw(tmp_path / "a_labels.png", 255)
        summary = predict_files(Grey(), [source, other], tmp_path, overwrite=True)
        assert "a_labels.png is an input and would be overwritten" in summary.failed[source]
        assert np.array(Image.open(other)).min() == 255

    def test_one_path_does_not_end_the_run(self, tmp_path, monkeypatch):
        long, list_folder = tmp_path / "in" / ("図" * 82 + ".png"), os.listdir
        draw(long, 255)
        draw(tmp_path / "in/z.png", 255)
        (tmp_path / "in/locked").mkdir()
        (tmp_path / "empty").mkdir()
        (tmp_path / "in/gone.png").symlink_to(tmp_path / "nothing")

        def listdir(path):
            if str(path).endswith("locked"):
                raise PermissionError(13, "Permission denied", str(path))
            return list_folder(path)

        monkeypatch.setattr(os, "listdir", listdir)
        for skip in (False, True):
            summary = predict_files(Grey(), [tmp_path / "in", tmp_path / "empty", "http://host/a.jpg"],
                                    tmp_path / "out", skip_existing=skip)
            problems = "\n".join(summary.failed.values())
            assert shown(tmp_path / "out") == {"z": 1} and len(summary.failed) == 5
            for problem in ("File name too long", "can't search .*locked: Permission denied", "no images or videos in",
                            "image not found: .*gone.png", "image not found: http://host/a.jpg: download it first"):
                assert re.search(problem, problems)

    def test_many_of_one_name(self, tmp_path):
        names, start = ResultNames(tmp_path, keep_recordings=True), time.perf_counter()
        found = {names.choose(f"{i}/a.png", Path("a")) for i in range(3000)}
        assert len(found) == 3000 and time.perf_counter() - start < 5

    @pytest.mark.skipif(sys.platform != "linux", reason="has names that are no text")
    def test_a_name_that_is_no_text(self, tmp_path):
        name = os.fsdecode(b"caf\xe9")
        draw(tmp_path / "a.png", 255).rename(tmp_path / f"{name}.png")
        predict_files(Grey(), tmp_path, tmp_path / "out")
        assert predict_files(Grey(), tmp_path, tmp_path / "out", skip_existing=True).skipped == 1
        assert shown(tmp_path / "out") == {name: 1}


class TestCommandLine:
    def test_predict(self, tmp_path, capsys, prediction):
        folder = tmp_path / "drive" / "day"
        folder.mkdir(parents=True)
        Image.open(STREET).save(folder / "a.webp", lossless=True)
        Image.open(STREET).resize((96, 72)).save(folder / "A.jpg")  # on many disks the same name
        Image.open(STREET).resize((96, 72)).save(tmp_path / "drive" / "b.PNG")
        out = tmp_path / "drive" / "out"
        assert main(
            ["predict", str(tmp_path / "drive"), str(STREET), "--out", str(out), "--precision", "float32",
             "--size", "360"]) == 0
        assert sorted(str(p.relative_to(out)) for p in out.rglob("*.png")) == [
            "b_labels.png", "b_overlay.png", "day/A_labels.png", "day/A_overlay.png", "day/a-2_labels.png",
            "day/a-2_overlay.png", "street_labels.png", "street_overlay.png"]
        labels = Image.open(out / "street_labels.png")
        assert labels.mode == "P" and (np.array(labels) == prediction.labels).mean() > 0.9999
        text = capsys.readouterr().out
        assert "4 images in " in text and "images/s" in text and "building " in text
        assert sum(float(line.split()[1][:-1]) for line in text.splitlines()[:11]) == pytest.approx(100, abs=1)
        again = ["predict", str(tmp_path / "drive"), "--out", str(out), "--size", "64"]
        assert main(again) == 0  # its own results are no input
        assert "3 images in " in capsys.readouterr().out

    def test_results_beside_the_images(self, tmp_path, monkeypatch, capsys):
        monkeypatch.chdir(tmp_path)
        Image.open(STREET).resize((64, 48)).save("a.png")
        for _ in range(2):
            assert main(["predict", "--size", "32", ".", "--out", "."]) == 0
            assert "1 images in " in capsys.readouterr().out
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "a_labels.png", "a_overlay.png"]

    def test_goes_on_after_unreadable_files(self, tmp_path, capsys):
        (tmp_path / "text.png").write_text("no image")
        (tmp_path / "half.png").write_bytes(STREET.read_bytes()[:50_000])
        shutil.copy(STREET, tmp_path / "whole.png")
        out = tmp_path / "out"
        assert main(["predict", str(tmp_path), str(tmp_path / "none.jpg"), "--out", str(out), "--size", "64"]) == 1
        assert sorted(p.name for p in out.iterdir()) == ["whole_labels.png", "whole_overlay.png"]
        text = capsys.readouterr().out
        assert "1 images in" in text and text.count("failed: ") == 3
        assert "failed: image not found: " in text and "can't read an image from" in text

    def test_goes_on_after_images_too_large_for_memory(self, tmp_path, capsys, monkeypatch):
        """Python's error for that says nothing; it may come in any of the three threads."""
        def fail(self, *args, **kwargs):
            raise MemoryError

        for name in ("a.png", "b.png"):
            shutil.copy(STREET, tmp_path / name)
        for step in ("prepare", "segment"):
            with monkeypatch.context() as patch:
                patch.setattr(Predictor, step, fail)
                assert main(["predict", str(tmp_path), "--out", str(tmp_path / "out"), "--size", "64"]) == 1
            assert capsys.readouterr().out.count(": MemoryError") == 2
        with monkeypatch.context() as patch:
            patch.setattr(bssnet_zoo.Prediction, "overlay", fail)
            assert main(["predict", str(tmp_path), "--out", str(tmp_path / "out"), "--size", "64"]) == 1
        assert capsys.readouterr().out.count(": MemoryError") == 2

    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    def test_precision_and_size(self, precision, tmp_path, model, monkeypatch, caplog):
        monkeypatch.setattr("bssnet_zoo.device.has_bfloat16", lambda: True)
        assert main(["predict", str(STREET), "--out", str(tmp_path), "--precision", precision, "--size", "96x128",
                     "--device", "cpu", "--model", "bssnet_t.camvid"]) == 0
        expected = predict(model, STREET, size=(96, 128)).labels
        assert (np.array(Image.open(tmp_path / "street_labels.png")) == expected).mean() > 0.97
        assert ("slower than float32" in caplog.text) == (precision == "float16")

    def test_checkpoint(self, tmp_path, published):
        assert main(["predict", str(STREET), "--out", str(tmp_path), "--checkpoint", str(published("bssnet_t")),
                     "--num-classes", "19", "--size", "64"]) == 0
        assert (tmp_path / "street_overlay.png").exists()

    def test_convert(self, tmp_path, published):
        target = tmp_path / "ours.safetensors"
        assert main(["convert", str(published("bssnet_t")), str(target), "--dtype", "keep"]) == 0
        bssnet_zoo.create_model("bssnet_t", num_classes=19, checkpoint_path=target)

    def test_list(self, capsys):
        assert main(["list"]) == 0
        rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
        assert "8.39 M" in rows["bssnet_t.camvid"] and "48.74" in rows["bssnet_t.pidnet_in1k"]
        assert "32.07 M" in rows["bssnet_b.camvid"] and "231.93" in rows["bssnet_b.pidnet_in1k"]
        assert "67.45 (CamVid test)" in rows["bssnet_t.camvid"] and "17.4" in rows["bssnet_t.camvid"]

    @pytest.mark.parametrize(("argv", "message"), [
        (["predict", "STREET", "--model", "bssnet_x"], "unknown model 'bssnet_x'. Did you mean"),
        (["predict", "STREET", "--model", "bssnet_t.ade"], "unknown tag 'ade' of bssnet_t"),
        (["predict", "STREET", "--model", "bssnet_t.pidnet_in1k"], "has no trained classifier"),
        (["predict", "STREET", "--device", "warp"], "device 'warp' is unknown or not there; there is cpu"),
        (["predict", "STREET", "--device", "cuda:77"], "device 'cuda:77' is unknown or not there"),
        (["predict", "STREET", "--checkpoint", "none.pth"], "checkpoint not found: none.pth"),
        (["predict", "STREET", "--num-classes", "4"], "--num-classes needs --checkpoint"),
        (["predict", "--size", "1x2x3", "STREET"], "argument --size: a size is the shorter side or height x width"),
        (["predict", "STREET", "--out", "STREET"], "can't write to the output folder .*street.png"),
        (["predict", "STREET", "--out", "/dev/null/x"], "can't write to the output folder /dev/null/x: Not a"),
        (["predict", "EMPTY"], "no images or videos in .*: looked for .avif"),
        (["convert", "none.pth", "out.safetensors"], "checkpoint not found: none.pth"),
        (["convert", "none.pth", "out.bin"], "must end in .safetensors, got out.bin"),
    ])
    def test_errors(self, argv, message, tmp_path, capsys, monkeypatch):
        monkeypatch.chdir(tmp_path)
        empty = tmp_path / "empty"
        empty.mkdir()
        argv = [{"STREET": str(STREET), "EMPTY": str(empty)}.get(word, word) for word in argv]
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert error.startswith("bssnet-zoo: error: ") and len(error.splitlines()) == 1
        assert re.search(message, error)
        assert [p.name for p in tmp_path.iterdir()] == ["empty"]

    @pytest.mark.parametrize("verb", [
        [], ["predict"], ["list"], ["convert"], ["data"], ["train"], ["eval"], ["bench"], ["publish"]])
    def test_help(self, verb, capsys):
        with pytest.raises(SystemExit) as stop:
            main([*verb, "--help"])
        assert stop.value.code == 0 and "usage: bssnet-zoo" in capsys.readouterr().out

    def test_module_and_version(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["bssnet-zoo", "--version"])
        with pytest.raises(SystemExit) as stop:
            runpy.run_module("bssnet_zoo", run_name="__main__")
        assert not stop.value.code and capsys.readouterr().out == f"bssnet-zoo {bssnet_zoo.__version__}\n"


def test_sample(tmp_path, capsys, monkeypatch):
    """It works from anywhere; without any source one line says so."""
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--sample", "--backend", "deploy", "--size", "96"]) == 0
    with Image.open(tmp_path / "predictions" / "street_labels.png") as labels:
        assert labels.size == bssnet_zoo.sample_image().size == (480, 360)
    assert main(["predict"]) == 2
    assert capsys.readouterr().err.count("say what to segment") == 1


def test_max_pixels(tmp_path, monkeypatch, capsys):
    """Pillow's guard can be moved on the command line."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    arguments = ["predict", "--sample", "--backend", "deploy", "--size", "96", "--out", str(tmp_path)]
    assert main(arguments) == 1 and "--max-pixels" in capsys.readouterr().out
    assert main([*arguments, "--max-pixels", "0.2"]) == 0
