"""What is wrong gives one line, the right exit status, and leaves nothing behind. A new case is a row."""
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_folder
from PIL import Image
from safetensors.torch import save_file

import bssnet_zoo
from bssnet_zoo.cli import main
from bssnet_zoo.deployment.export import export_model
from bssnet_zoo.models.weights import ASSETS

STREET = str(ASSETS / "street.png")
TRAIN = ("train --data folder:{in}/data --val-split val --base-size 64x96 --crop-size 64x96 --epochs 1 --batch-size 2 "
         "--workers 0 --class-weights none --output {out}/run ")
PREDICT = f"predict {STREET} --backend deploy --size 64 --out {{out}} "
EVAL = "eval --workers 0 --data folder:{in}/data "
FIXED = EVAL + "--trust --checkpoint {in}/fixed.torchscript "

# command line, what the one line says, exit status
ROWS = [
    # sizes
    (PREDICT + "--size abc", "a size is the shorter side or height x width, as in 720 or 720x960, got 'abc'", 2),
    (PREDICT + "--size 0", "got '0'", 2),
    ("export --size 720 --out {out}/m.onnx", "a height and a width are needed, as in 720x960, got '720'", 2),
    ("export --size 16x16 --out {out}/m.onnx", "size must be height and width of 32 or more, got [16, 16]", 2),
    (TRAIN + "--crop-size 8x8", "crop_size must be 32 or more high and wide, got (8, 8)", 2),
    (FIXED + "--size 32x32", "takes images of 64x96 only, not --size 32x32", 2),
    (FIXED + "--scales 0.5 1", "leave out --scales and --sliding-window", 2),
    (FIXED + "--sliding-window 32x32", "leave out --scales and --sliding-window", 2),
    (FIXED + "--precision bfloat16", "computes in float32, not in bfloat16", 2),
    (FIXED + "--model bssnet_b", "knows its model: leave out --model", 2),
    (EVAL + "--checkpoint {in}/three.safetensors --save-dir {in}/data/masks/val", "would be overwritten", 2),
    # names and options
    ("predict --sise 3", "unrecognized arguments: --sise ('bssnet-zoo --help' shows the options)", 2),
    (PREDICT + "--model bssnet_x", "unknown model 'bssnet_x'. Did you mean", 2),
    (PREDICT + "--model bssnet_t.moon", "unknown tag 'moon' of bssnet_t: its weights are camvid, street", 2),
    (PREDICT + "--num-classes 3", "--num-classes needs --checkpoint", 2),
    (PREDICT + "--precision int4", "invalid choice: 'int4'", 2),
    (PREDICT + "--device gpu", "gpu", 2),
    ("bench --json {in}", "can't be written: it is a folder", 2),
    ("export --out {out}/m.txt", "the name of an onnx file must end in .onnx", 2),
    ("publish bssnet_t --org me --dry-run --out {out}", "the name to publish is MODEL.TAG", 2),
    (TRAIN + "--recipe none_such", "no recipe 'none_such'", 2),
    # images
    ("predict {in}/none.png --out {out}", "image not found: {in}/none.png", 1),
    ("predict {in}/text.png --out {out}", "text.png", 1),
    ("predict {in}/cut.png --out {out}", "cut.png", 1),
    ("predict {in}/empty --out {out}", "no images or videos in {in}/empty", 2),
    # checkpoints
    (PREDICT + "--checkpoint {in}/none.safetensors", "none.safetensors", 2),
    (PREDICT + "--checkpoint {in}/text.safetensors", "text.safetensors", 2),
    (PREDICT + "--checkpoint {in}/nan.safetensors", "nan.safetensors is broken: stem.0.conv.weight has values", 2),
    (PREDICT + "--checkpoint {in}/other.safetensors", "other.safetensors", 2),
    ("predict {in}/cut.png --checkpoint {in}/damaged.onnx", "damaged.onnx is damaged or no exported file", 2),
    (EVAL + "--checkpoint {in}/eleven.safetensors", "the model has 11 classes, the data set 3", 2),
    ("convert {in}/nan.safetensors {out}/a.safetensors", "is broken", 2),
    ("convert {in}/pickle.pth {out}/a.safetensors", "pickle.pth", 2),
    ("export --checkpoint {in}/nan.safetensors --out {out}/m.onnx", "is broken", 2),
    ("train --resume {in}/empty", "{in}/empty has no run to resume", 2),
    # data sets
    ("data folder:{in}/none --out {out}/s.png", "{in}/none is not a folder", 2),
    ("data folder:{in}/data --out {in}/text.png/s.png", "s.png can't be written", 2),
    ("demo --out {out}/site --data folder:{in}/data", "--data names the classes of a --checkpoint", 2),
    ("data folder:{in}/empty --out {out}/s.png", "{in}/empty has no known layout", 2),
    ("data folder:{in}/values --out {out}/s.png", "labels with unknown values", 2),
    ("data folder:{in}/colour --out {out}/s.png", "a label of mode RGB, not grey or palette", 2),
    ("data folder:{in}/cut --full --out {out}/s.png", "1 files that can't be read", 2),
    ("eval --data moon:{in}/data", "moon:{in}/data is not a folder", 2),
    ("eval --data folder:{in}/late --workers 1 --model bssnet_t --checkpoint {in}/three.safetensors", "0.png", 2),
    (TRAIN.replace("/data", "/bomb"), "an alias (*name) is not allowed", 2),
]
YAMLS = [
    ("palette: [1, 2, 3]", "1 in the palette is no colour"),
    ("palette: [[1, 2, 3.5], [0, 0, 0], [0, 0, 0]]", "[1, 2, 3.5] in the palette is no colour"),
    ("palette: ['#ff0000', '#00ff00', '#0000ff']", "'#ff0000' in the palette is no colour"),
    ("palette: [[true, 0, 0], [0, 0, 0], [0, 0, 0]]", "[True, 0, 0] in the palette is no colour"),
    ("palette: [[1, 2, 3]]", "3 class names, but 1 colours"),
    ("id_map: {0: true}", "id_map has 0: True"),
    ("id_map: {0.0: 1}", "id_map has 0.0: 1"),
    ("ignore_index: yes", "ignore_index is True"),
    ("id_map: &a {0: 0}\nx: *a", "an alias (*name) is not allowed"),
    ("palette: " + 5000 * "[", "it is nested too deep"),
]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with all that is wrong."""
    root = tmp_path_factory.mktemp("in")
    (root / "empty").mkdir()
    write_folder(root / "data", train=4, val=2)
    for name in ("values", "colour", "cut", "late", "bomb"):
        shutil.copytree(root / "data", root / name)
    Image.fromarray(np.full((64, 96), 77, np.uint8)).save(root / "values/masks/train/0.png")
    Image.new("RGB", (96, 64)).save(root / "colour/masks/train/0.png")
    (root / "bomb/dataset.yaml").write_text("classes: &a [sky, road, car]\npalette: [*a, *a, *a]\n")
    png = Path(STREET).read_bytes()
    for path in ("cut.png", "cut/images/train/0.png", "late/images/val/0.png"):
        shutil.copy(STREET, root / path)
        (root / path).write_bytes(png[:len(png) // 2])
    for path in ("cut/masks/train/0.png", "late/masks/val/0.png"):
        Image.fromarray(np.zeros((360, 480), np.uint8)).save(root / path)
    for name in ("text.png", "text.safetensors", "damaged.onnx"):
        (root / name).write_text("this is text")
    for classes, name in ((3, "three"), (11, "eleven")):
        weights = bssnet_zoo.create_model("bssnet_t", num_classes=classes).state_dict()
        save_file(weights, root / f"{name}.safetensors")
    save_file({**weights, "stem.0.conv.weight": weights["stem.0.conv.weight"] * torch.nan}, root / "nan.safetensors")
    save_file({"layer.weight": torch.ones(3)}, root / "other.safetensors")
    torch.save({"state_dict": Path("x")}, root / "pickle.pth")
    export_model(bssnet_zoo.create_model("bssnet_t", num_classes=3), root / "fixed.torchscript",
                 format="torchscript", size=(64, 96))
    return root


def check(command: str, message: str, status: int, inputs: Path, out: Path, capsys) -> None:
    out.mkdir(exist_ok=True)
    before = sorted(inputs.rglob("*"))
    places = {"{in}": str(inputs), "{out}": str(out)}
    for place, path in places.items():
        command, message = command.replace(place, path), message.replace(place, path)
    assert main(command.split()) == status
    output = capsys.readouterr()
    text = output.err if status == 2 else "\n".join(
        line for line in output.out.splitlines() if line.startswith("failed: "))
    assert message in text
    assert "Traceback" not in text and len(text.strip().splitlines()) <= 3  # one for each kind of problem
    assert not [path for path in out.rglob("*") if path.is_file()] and sorted(inputs.rglob("*")) == before


@pytest.mark.parametrize(("command", "message", "status"), ROWS, ids=[re.sub(r"\W+", "-", row[1])[:40] for row in ROWS])
def test_command_line(command, message, status, inputs, tmp_path, capsys):
    check(command, message, status, inputs, tmp_path / "out", capsys)


@pytest.mark.parametrize(("text", "message"), YAMLS)
def test_dataset_yaml(text, message, inputs, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(inputs / "data", data)
    (data / "dataset.yaml").write_text(f"classes: [sky, road, car]\n{text}\n")
    check(f"data folder:{data} --out {{out}}/s.png", f"{data / 'dataset.yaml'}: {message}", 2, inputs, tmp_path / "out",
          capsys)


@pytest.mark.parametrize(("command", "interrupted"), [
    (PREDICT, "bssnet_zoo.inference.predictor.Predictor.segment"),
    (EVAL + "--checkpoint {in}/three.safetensors --save-dir {out}", "bssnet_zoo.metrics.BoundaryF1.update"),
    ("export --format torchscript --size 64x96 --out {out}/m.torchscript", "bssnet_zoo.deployment.export.compare"),
    ("data folder:{in}/data --out {out}/s.png", "bssnet_zoo.cli.data.report"),
    ("bench --json {out}/b.json", "bssnet_zoo.cli.bench.bench_size"),
])
def test_ctrl_c(command, interrupted, inputs, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(interrupted, interrupt)
    assert main(command.replace("{in}", str(inputs)).replace("{out}", str(tmp_path / "out")).split()) == 130
    assert capsys.readouterr().err == "bssnet-zoo: interrupted\n"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="of Unix")
def test_a_terminal_that_goes_away(monkeypatch):
    monkeypatch.setattr("bssnet_zoo.cli.list.model_table", lambda: signal.raise_signal(signal.SIGHUP))
    before = signal.getsignal(signal.SIGHUP)
    with pytest.raises(SystemExit) as stop:
        main(["list"])
    assert stop.value.code == 128 + signal.SIGHUP and signal.getsignal(signal.SIGHUP) == before


def test_a_reader_that_has_gone(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert main(["list"]) == 1


def test_an_error_nobody_thought_of(monkeypatch, capsys):
    monkeypatch.setattr("bssnet_zoo.cli.list.model_table", lambda: {}["x"])
    assert main(["list"]) == 3
    error = capsys.readouterr().err
    assert error.startswith("bssnet-zoo: error: KeyError: 'x'. Please report it") and error.count("\n") == 1
