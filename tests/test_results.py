"""What other tools take of a prediction: masks, polygons, COCO, JSON lines, supervision; files shared by processes."""
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import supervision
import torch
from PIL import Image, ImageDraw
from test_pretrained import STREET

import bssnet_zoo
from bssnet_zoo.cli import main
from bssnet_zoo.inference.polygons import coco_segmentation, polygon_area, regions
from bssnet_zoo.inference.predict_files import predict_files

PAGE = Path(__file__).parents[1] / "docs" / "predict.md"


@pytest.fixture(scope="module")
def predictor():
    model = bssnet_zoo.create_model("bssnet_t", pretrained=True)
    return bssnet_zoo.Predictor(model, backend="eager", size=180)


@pytest.fixture(scope="module")
def prediction(predictor):
    return predictor(STREET)


def drawn(rings, shape):
    """A mask from polygons, by Pillow: pixels whose centres are inside, counted at 4 times the size."""
    canvas = Image.new("1", (4 * shape[1], 4 * shape[0]))
    for value, ring in zip([1] + [0] * len(rings), rings, strict=False):
        one = Image.new("1", canvas.size)
        ImageDraw.Draw(one).polygon([tuple(map(int, point)) for point in 4 * ring], fill=1)
        canvas.paste(value, mask=one)
    return np.array(canvas)[2::4, 2::4]


class TestPolygons:
    @pytest.mark.parametrize("density", [0.03, 0.3, 0.5, 0.7, 0.97])
    def test_areas_are_pixels(self, density):
        mask = np.random.default_rng(0).random((40, 50)) < density
        areas = [polygon_area(outline) - sum(map(polygon_area, holes)) for outline, *holes in regions(mask)]
        assert sum(areas) == mask.sum() and min(areas) >= 1

    def test_drawn_again_they_are_the_mask(self, prediction):
        for name, those in prediction.polygons().items():
            again = np.any([drawn(region, prediction.labels.shape) for region in those], axis=0)
            assert np.array_equal(again, prediction.mask(name)), name

    def test_a_ring(self):
        mask = np.zeros((7, 9), bool)
        mask[1:6, 2:8] = True
        mask[3, 4:6] = False
        [[outline, hole]] = regions(mask)
        assert sorted(outline.tolist()) == [[2, 1], [2, 6], [8, 1], [8, 6]]
        assert sorted(hole.tolist()) == [[4, 3], [4, 4], [6, 3], [6, 4]]
        [points] = coco_segmentation([outline, hole])
        assert polygon_area(np.reshape(points, (-1, 2))) == mask.sum() == 28
        assert [len(region) for region in regions(mask, min_area=3)] == [1]
        assert regions(mask, min_area=29) == [] and regions(np.zeros((3, 3), bool)) == []

    def test_min_area(self, prediction):
        large = prediction.polygons(min_area=50)
        assert all(polygon_area(polygon) >= 50 for those in large.values() for region in those for polygon in region)
        assert sum(map(len, large.values())) < sum(map(len, prediction.polygons().values()))

    def test_without_opencv(self, prediction, monkeypatch):
        monkeypatch.setitem(sys.modules, "cv2", None)
        with pytest.raises(RuntimeError, match=r"polygons need OpenCV \(.*\): the extra \[polygons\], as in pip"):
            prediction.polygons()
        assert "annotations" not in prediction.to_dict(polygons=False)


def test_mask(prediction):
    assert prediction.mask("road").dtype == bool
    assert prediction.mask("road").sum() == prediction.counts()[3] > 0
    with pytest.raises(ValueError, match="there is no class 'lane': the classes are sky, building, pole"):
        prediction.mask("lane")


class TestDict:
    def test_it_says_what_the_labels_say(self, prediction):
        found = json.loads(prediction.to_json(file_name="a.png", time=0.04))
        assert list(found)[:4] == ["file_name", "time", "width", "height"]
        assert (found["width"], found["height"]) == (480, 360)
        assert sum(found["shares"].values()) == pytest.approx(1, abs=1e-4)
        assert found["shares"]["road"] == pytest.approx(prediction.mask("road").mean(), abs=1e-6)
        assert found["categories"][3] == {"id": 3, "name": "road"}
        for id_, count in enumerate(prediction.counts()):
            assert count == sum(a["area"] for a in found["annotations"] if a["category_id"] == id_)
        for annotation in found["annotations"]:
            [points] = annotation["segmentation"]
            x, y, width, height = annotation["bbox"]
            assert (min(points[::2]), min(points[1::2])) == (x, y)
            assert (max(points[::2]), max(points[1::2])) == (x + width, y + height)
            assert polygon_area(np.reshape(points, (-1, 2))) == annotation["area"] and annotation["iscrowd"] == 0

    def test_supervision_reads_it_as_coco(self, prediction, tmp_path, monkeypatch):
        """The few lines of docs/predict.md that make a COCO file of lines."""
        monkeypatch.chdir(tmp_path)
        prediction.image.save("street.png")
        line = prediction.to_json(min_area=30, file_name="street.png")
        Path("lines.jsonl").write_text(f"{line}\n")
        [snippet] = [text for text in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
                     if "lines.jsonl" in text]
        exec(snippet, {})
        data = supervision.DetectionDataset.from_coco(str(tmp_path), "coco.json", force_masks=True)
        [(_, image, detections)] = list(data)
        assert image.shape == (360, 480, 3) and len(detections) == len(json.loads(line)["annotations"])
        names = np.array(data.classes)[detections.class_id]
        for name in ("road", "sky", "building"):
            mask = detections.mask[names == name].any(axis=0)
            truth = prediction.mask(name)
            assert (mask & truth).sum() / (mask | truth).sum() > 0.95, name


class TestSupervision:
    def test_detections(self, prediction):
        detections = prediction.to_supervision()
        present = np.unique(prediction.labels)
        assert detections.class_id.tolist() == present.tolist()
        assert detections.data["class_name"].tolist() == [prediction.class_names[i] for i in present]
        for mask, name, box in zip(detections.mask, detections["class_name"], detections.xyxy, strict=True):
            assert np.array_equal(mask, prediction.mask(name))
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), x.max(), y.max()]
        assert set(detections[detections["class_name"] == "road"].class_id) == {3}

    def test_its_annotators_draw(self, prediction):
        palette = supervision.ColorPalette([supervision.Color(*colour) for colour in prediction.palette])
        detections = prediction.to_supervision()
        masks = supervision.MaskAnnotator(color=palette, opacity=1)
        coloured = masks.annotate(prediction.image.copy(), detections)
        expected = np.array(prediction.label_image().convert("RGB"))
        assert (np.array(coloured) == expected).all(axis=2).mean() > 0.999
        labelled = supervision.LabelAnnotator(color=palette).annotate(coloured.copy(), detections)
        assert (np.array(labelled) != expected).any()

    def test_without_supervision(self, prediction, monkeypatch):
        monkeypatch.setitem(sys.modules, "supervision", None)
        with pytest.raises(RuntimeError, match=r"needs supervision \(.*\): the extra \[supervision\], as in pip"):
            prediction.to_supervision()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "drive"
    (folder / "b").mkdir(parents=True)
    street = Image.open(STREET).resize((120, 90))
    for i, name in enumerate(("a.png", "b/1.png", "b/2.png", "b/3.png", "c.png")):
        street.rotate(90 * i).save(folder / name)
    return folder


FAST = ("--backend", "deploy", "--precision", "float32", "--size", "64")


class TestCommandLine:
    def test_json(self, folder, tmp_path, capsys):
        (folder / "bad.png").write_text("no image")
        assert main(["predict", str(folder), "--out", str(tmp_path / "out"), "--json", "--min-area", "20", *FAST]) == 1
        output, error = capsys.readouterr()
        lines = [json.loads(line) for line in output.splitlines()]
        assert [line["file_name"] for line in lines] == [
            str(folder / name) for name in ("a.png", "b/1.png", "b/2.png", "b/3.png", "c.png")]
        for line in lines:
            labels = np.array(Image.open(tmp_path / "out" / os.path.relpath(line["file_name"], folder).replace(
                ".png", "_labels.png")))
            assert line["shares"]["road"] == pytest.approx((labels == 3).mean(), abs=1e-6)
            assert all(annotation["area"] >= 20 for annotation in line["annotations"])
        assert "5 images in" in error and "failed: can't read an image from" in error

    @pytest.mark.parametrize(("options", "message"), [
        (["--min-area", "5"], "--min-area is for the polygons of --json"),
        (["--overwrite", "--skip-existing"], "--skip-existing leaves the files that are there, --overwrite replaces"),
    ])
    def test_options_that_do_not_go_together(self, options, message, capsys, tmp_path):
        assert main(["predict", str(STREET), "--out", str(tmp_path), *options]) == 2
        assert message in capsys.readouterr().err and not list(tmp_path.iterdir())

    def test_json_without_opencv(self, capsys, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "cv2", None)
        assert main(["predict", str(STREET), "--out", str(tmp_path), "--json"]) == 2
        assert "the extra [polygons]" in capsys.readouterr().err and not list(tmp_path.iterdir())

    def test_a_reader_that_goes_away(self, folder, tmp_path):
        read, write = os.pipe()
        os.close(read)
        process = subprocess.run(
            [sys.executable, "-m", "bssnet_zoo", "predict", str(folder), f"--out={tmp_path / 'out'}", "--json", *FAST],
            stdout=write, stderr=subprocess.PIPE, text=True)
        os.close(write)
        assert process.returncode == 1 and "Error" not in process.stderr and "error" not in process.stderr


class TestSkipExisting:
    def test_what_is_there_stays(self, predictor, folder, tmp_path):
        out = tmp_path / "out"
        first = predict_files(predictor, [folder], out)
        assert len(first.written) == 5 and first.skipped == 0
        times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
        (out / "b/2_overlay.png").unlink()  # one of the two is not enough
        again = predict_files(predictor, [folder], out, skip_existing=True)
        assert [labels.name for labels, _ in again.written] == ["2_labels.png"] and again.skipped == 4
        changed = {path.name for path in out.rglob("*.png") if path.stat().st_mtime_ns != times[path]}
        assert changed == {"2_labels.png", "2_overlay.png"}
        assert str(again).endswith("skipped 4 files whose results are there")

    def test_nothing_to_do(self, predictor, folder, tmp_path):
        predict_files(predictor, [folder], tmp_path / "out")
        summary = predict_files(predictor, [folder], tmp_path / "out", skip_existing=True)
        assert str(summary) == "skipped 5 files whose results are there"


@pytest.mark.slow
def test_torchrun_shares_the_files(folder, tmp_path, capsys):
    """Each image once, a bad one stops nobody, all of it in one summary; and on where an earlier run ended."""
    (folder / "b/0.png").write_text("no image")
    out, command = tmp_path / "out", [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "bssnet_zoo",
        "predict", str(folder), "--out", str(tmp_path / "out"), "--json", *FAST]
    with open(tmp_path / "lines.jsonl", "w+") as lines:
        first = subprocess.run(command, stdout=lines, stderr=subprocess.PIPE, text=True, timeout=300)
        lines.seek(0)
        names = [json.loads(line)["file_name"] for line in lines]
    assert first.returncode == 1 and "5 images in" in first.stderr, first.stderr
    assert "failed: can't read an image from" in first.stderr
    assert sorted(names) == sorted(str(folder / name) for name in ("a.png", "b/1.png", "b/2.png", "b/3.png", "c.png"))
    assert len(list(out.rglob("*.png"))) == 10
    (folder / "b/0.png").unlink()
    (out / "c_labels.png").unlink()
    (out / "b/1_labels.png").unlink()
    assert main(["predict", str(folder), "--out", str(out), "--json", "--skip-existing", *FAST]) == 0
    printed = capsys.readouterr()
    names = [json.loads(line)["file_name"] for line in printed.out.splitlines()]
    assert "skipped 3 files" in printed.err and sorted(names) == [str(folder / "b/1.png"), str(folder / "c.png")]


def test_one_pipe_for_several_processes_is_refused(tmp_path, monkeypatch, capsys):
    from bssnet_zoo.cli import predict
    from bssnet_zoo.distributed import Process

    read, write = os.pipe()
    monkeypatch.setattr(predict, "init_process", lambda *args, **kwargs: Process(torch.device("cpu"), 0, 2))
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(os.fdopen(write, "wb")))
    assert main(["predict", str(STREET), "--out", str(tmp_path), "--json"]) == 2
    assert "several processes would mix their lines in one pipe" in capsys.readouterr().err
    os.close(read)
