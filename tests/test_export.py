"""`bssnet-zoo export`: files that answer what the model answers, and say what they are."""
import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SIZES, shallow, write_folder
from PIL import Image
from safetensors.torch import save_file
from test_pretrained import STREET
from torch import nn
from torchvision.transforms.v2 import functional as TF

import bssnet_zoo
from bssnet_zoo import Predictor, cli
from bssnet_zoo.data import CAMVID, ClassInfo
from bssnet_zoo.data.images import load_image
from bssnet_zoo.deployment import export
from bssnet_zoo.deployment.export import FORMATS, export_model
from bssnet_zoo.deployment.exported import ExportedModel
from bssnet_zoo.deployment.graph import row_strips

onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")

SIZE = (97, 140)
CAMVID_CLASSES = ClassInfo(CAMVID.names, CAMVID.palette)
FORMAT_PARAMS = [pytest.param(name, marks=pytest.mark.slow) if name == "openvino" else name for name in FORMATS]
ANY_SIZE = {"exported-program": [(513, 600), (576, 513)]}  # others: from 64 on, odd and even at every level


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """``exported("bssnet_t", "onnx", ...)``: the pretrained model and the opened file."""
    made = {}

    def make(variant: str, format: str, **options):
        key = (variant, format, *options.items())
        if key not in made:
            model = bssnet_zoo.create_model(variant, pretrained=True).eval()
            path = tmp_path_factory.mktemp("files") / f"model{FORMATS[format].suffix}"
            report = export_model(model, path, format, **options)
            assert report.path == path and report.same_class > 0.9
            made[key] = model, ExportedModel(path, threads=1), path
        return made[key]

    return make


def street(size: tuple[int, int]) -> torch.Tensor:
    """The sample image in 8 bits, (1, H, W, 3)."""
    return (255 * TF.resize(load_image(STREET), size, antialias=True)).round().byte().permute(1, 2, 0)[None]


def normalized(images: torch.Tensor) -> torch.Tensor:
    return TF.normalize(images.permute(0, 3, 1, 2) / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def same(model: nn.Module, exported: ExportedModel, images: torch.Tensor, tolerance: float = 1e-4) -> bool:
    with torch.inference_mode():
        expected, logits = model(images), exported(images)
    return (logits.shape == expected.shape and logits.dtype == torch.float32
            and (logits - expected).abs().max() < tolerance * expected.abs().max())


@pytest.mark.parametrize("format", FORMAT_PARAMS)
def test_one_size(exported, format):
    model, file, _ = exported("bssnet_t", format, size=SIZE)
    assert file.size == list(SIZE) and same(model, file, normalized(street(SIZE)))
    assert same(model, file, torch.randn(1, 3, *SIZE))


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_any_size(exported, format):
    model, file, _ = exported("bssnet_t", format)
    assert file.size is None
    for size in ANY_SIZE.get(format, [(64, 64), (104, 160), (75, 203), (192, 130)]):
        batch = 1 if format == "exported-program" else 3
        assert same(model, file, normalized(street(size)).repeat(batch, 1, 1, 1))


@pytest.mark.parametrize("format", FORMAT_PARAMS)
def test_labels_of_8_bit_images(exported, format):
    model, file, _ = exported("bssnet_t", format, size=SIZE, labels=True, normalize=True)
    images = street(SIZE)
    labels = file.run(images)
    with torch.inference_mode():
        expected = model(normalized(images)).argmax(1)
    assert labels.shape == (1, *SIZE) and labels.dtype == torch.uint8
    assert (labels == expected).float().mean() > 0.999 and len(labels.unique()) > 4
    assert torch.equal(file(normalized(images)).argmax(1), labels.long())  # as `evaluate` asks


@pytest.mark.parametrize("format", FORMAT_PARAMS)
def test_predictor_of_a_file(exported, format):
    model, file, path = exported("bssnet_t", format, size=SIZE)
    predictor = Predictor(path, precision="float32")
    assert predictor.size == list(SIZE) and predictor.runner.classes == file.classes == CAMVID_CLASSES
    expected = bssnet_zoo.predict(model, STREET, size=SIZE)
    assert (predictor(STREET).labels == expected.labels).mean() > 0.9999
    assert len(predictor.batch([STREET, STREET])) == 2  # one by one
    with pytest.raises(ValueError, match="takes images of 97x140 only: leave out the size"):
        Predictor(path, size=128)
    for options, message in ((dict(backend="deploy"), "is run by the library that it is for"),
                             (dict(device="meta"), "device 'meta' is unknown or not there")):
        with pytest.raises(ValueError, match=message):
            Predictor(path, **options)


def test_predictor_of_a_file_for_any_size(exported):
    model, _, path = exported("bssnet_t", "torchscript")
    predictor = Predictor(path)
    assert predictor.size == [min(SIZES["bssnet_t"])]  # what the weights were made for
    with pytest.raises(ValueError, match="computes in float32, not in bfloat16: export it in that precision"):
        Predictor(path, precision="bfloat16")
    tiny = np.array(Image.open(STREET).resize((40, 20)))
    assert Predictor(path, size="full")(tiny).labels.shape == (20, 40)


def test_eval_of_an_exported_program(exported):
    _, file, _ = exported("bssnet_t", "exported-program", size=SIZE)
    assert not file.train().eval().training  # as `evaluate` does


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".torchscript", ".pt2"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(b"no network")
    with pytest.raises(ValueError, match=f"damaged{suffix} is damaged or no exported file: "):
        Predictor(path)


def test_predict_takes_a_file(exported, tmp_path, capsys):
    model, _, path = exported("bssnet_t", "torchscript")
    arguments = ["predict", str(STREET), "--checkpoint", str(path), "--out", str(tmp_path), "--size", "96x128"]
    assert cli.main(arguments) == 0
    labels = np.array(Image.open(tmp_path / "street_labels.png"))
    assert (labels == bssnet_zoo.predict(model, STREET, size=(96, 128)).labels).mean() > 0.9999
    assert cli.main([*arguments, "--backend", "deploy"]) == 2
    assert "is run by the library that it is for" in capsys.readouterr().err


def test_predictor_of_a_file_that_ends_in_labels(exported):
    model, _, path = exported("bssnet_t", "onnx", size=SIZE, labels=True, normalize=True)
    expected = bssnet_zoo.predict(model, STREET, size=SIZE)
    found = Predictor(path)(STREET)
    assert found.labels.shape == (360, 480) and (found.labels == expected.labels).mean() > 0.95  # nearest, not bilinear
    with pytest.raises(ValueError, match="this file ends in labels"):
        Predictor(path)(STREET, probabilities=True)


def test_labels_hold_no_full_size_logits(exported):
    def largest(options):
        *_, path = exported("bssnet_t", "onnx", size=SIZE, **options)
        graph = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True).graph
        values = (*graph.value_info, *graph.output)
        shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in values]
        return max(shape[2] for shape in shapes if len(shape) == 4 and shape[1] == 11 and shape[3] == SIZE[1])

    assert largest({}) == SIZE[0] and largest(dict(labels=True, normalize=True)) == 64


@pytest.mark.parametrize(("rows", "height"), [(13, 97), (45, 360), (1, 5), (128, 1024), (9, 64)])
def test_row_strips_are_the_resize(rows, height):
    x = torch.randn(1, 3, rows, 4)
    strips = torch.cat([matrix @ x[:, :, first:last] for first, last, matrix in row_strips(rows, height)], dim=2)
    torch.testing.assert_close(strips, F.interpolate(x, size=(height, 4), mode="bilinear", align_corners=True))


def test_raw(exported):
    model, file, _ = exported("bssnet_t", "torchscript", raw=True)
    images = torch.randn(1, 3, *SIZE)
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(images))
        torch.testing.assert_close(file(images), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("format", "precision"), [
    pytest.param(format, precision, marks=pytest.mark.slow) if format == "openvino" else (format, precision)
    for format, kind in FORMATS.items() for precision in kind.precisions if precision not in ("float32", "int8")])
def test_half_precision(exported, format, precision):
    model, file, path = exported("bssnet_t", format, size=SIZE, precision=precision)
    *_, whole = exported("bssnet_t", format, size=SIZE)
    sizes = [p.with_suffix(".bin") if format == "openvino" else p for p in (path, whole)]
    assert sizes[0].stat().st_size < 0.6 * sizes[1].stat().st_size
    assert same(model, file, normalized(street(SIZE)), 0.1 if precision == "bfloat16" else 0.01)


@pytest.mark.parametrize("format", FORMAT_PARAMS)
def test_says_what_it_is(exported, format):
    model, file, path = exported("bssnet_t", format, size=SIZE, labels=True, normalize=True)
    said = {key: value if key in ("model", "precision", "bssnet_zoo") else json.loads(value)
            for key, value in file.metadata.items()}
    classes = bssnet_zoo.class_info(model)
    assert said.pop("mean") == pytest.approx(model.pretrained_cfg["mean"])
    assert said.pop("std") == pytest.approx(model.pretrained_cfg["std"])
    assert said == {
        "model": "bssnet_t.camvid", "class_names": list(classes.names), "palette": list(classes.hex_palette),
        "size": list(SIZE), "trained_size": list(SIZES["bssnet_t"]), "precision": "float32", "labels": True,
        "normalize": True, "raw": False, "bssnet_zoo": bssnet_zoo.__version__}
    if format == "onnx":
        onnx_model = onnx.load(path)
        onnx.checker.check_model(onnx_model, full_check=True)
        assert not any(node.metadata_props for node in onnx_model.graph.node)


def test_threads_share_a_file(exported):
    predictor = Predictor(exported("bssnet_t", "openvino")[2], precision="float32", size=64)
    pictures = [np.roll(np.array(Image.open(STREET)), 40 * i, axis=1) for i in range(4)]
    expected = [predictor(picture).labels for picture in pictures]
    with ThreadPoolExecutor(4) as pool:
        for found, labels in zip(pool.map(predictor, pictures * 5), expected * 5, strict=True):
            assert np.array_equal(found.labels, labels)


def test_weights_beside_the_file_are_not_written_over(tiny, tmp_path):
    (tmp_path / "a.bin").write_text("a checkpoint")
    with pytest.raises(ValueError, match="a.bin is there and not the weights of a.xml: choose another name"):
        export_model(tiny, tmp_path / "a.xml", "openvino", (64, 64))
    assert (tmp_path / "a.bin").read_text() == "a checkpoint"


def test_programs_of_any_size_take_one_large_image(exported):
    predictor = Predictor(exported("bssnet_t", "exported-program")[2], size=64)
    assert [found.labels.shape for found in predictor.batch([STREET, STREET])] == [(360, 480)] * 2


def test_axes_have_names(exported):
    *_, path = exported("bssnet_t", "onnx")
    graph = onnx.load(path).graph
    shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
              for value in (graph.input[0], graph.output[0])]
    assert shapes == [["batch", 3, "height", "width"], ["batch", 11, "height", "width"]]


def test_leaves_the_model_as_it_is(tmp_path):
    tiny = shallow()
    before = {name: value.clone() for name, value in tiny.train().state_dict().items()}
    export_model(tiny, tmp_path / "a.torchscript", "torchscript")
    assert tiny.training and all(torch.equal(value, before[name]) for name, value in tiny.state_dict().items())
    deployed = bssnet_zoo.deploy(tiny)
    images = torch.randn(1, 3, 64, 96)
    report = export_model(deployed, tmp_path / "b.pt2", "exported-program", (64, 96))
    assert report.max_difference < 1e-4
    assert torch.equal(*(ExportedModel(tmp_path / name)(images).argmax(1) for name in ("a.torchscript", "b.pt2")))


class Unknown(nn.Module):
    """Scriptable, but no operator of ONNX."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.linalg.matrix_exp(x[..., :2, :2]).sum()


def test_unsupported_operator(tmp_path):
    deployed = bssnet_zoo.deploy(shallow())
    deployed.decoder.refine = nn.Sequential(Unknown(), *deployed.decoder.refine)
    with pytest.raises(RuntimeError, match="this model can't become onnx: .+") as caught:
        export_model(deployed, tmp_path / "a.onnx", size=(64, 64))
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_other_answers_are_not_kept(tiny, tmp_path, monkeypatch):
    path = tmp_path / "a.torchscript"
    path.write_text("what was there")
    monkeypatch.setattr(export, "compare", lambda *args: (0.01, 1.))
    with pytest.raises(RuntimeError, match="not written, its answers are not those of the model: .*1.0e-02"):
        export_model(tiny, path, "torchscript", (64, 64))
    assert path.read_text() == "what was there" and list(tmp_path.iterdir()) == [path]


def test_two_files_or_none(tmp_path):
    path = tmp_path / "a.xml"

    def write(temporary):
        temporary.write_text("graph")
        temporary.with_suffix(".bin").write_text("weights")

    with pytest.raises(RuntimeError), export.whole_files(path) as temporary:
        write(temporary)
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with export.whole_files(path) as temporary:
        write(temporary)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"a.xml": "graph", "a.bin": "weights"}


@pytest.mark.parametrize(("make", "options", "message"), [
    (nn.Identity, {}, "takes a BSSNet with classes, got Identity"),
    (lambda: bssnet_zoo.BSSNet(0, dim=8), {}, "got BSSNet with num_classes=0"),
    (lambda: bssnet_zoo.BSSNet(257, dim=8), dict(labels=True), "256 classes at most, the model has 257"),
    (lambda: bssnet_zoo.BSSNet(in_chans=4, dim=8), {}, "mean and std of 3 channels, the model takes 4"),
    (None, dict(format="tflite"), "unknown format 'tflite': there are onnx, openvino"),
    (None, dict(precision="bfloat16"), "onnx files hold float32, float16, int8, not bfloat16"),
    (None, dict(format="openvino", path="a.xml", precision="bfloat16"), "run it with INFERENCE_PRECISION_HINT"),
    (None, dict(format="torchscript", path="a.torchscript", precision="int8"), "hold float32, bfloat16, float16, not"),
    (None, dict(format="openvino"), r"must end in \.xml, got .*a.onnx"),
    (None, dict(size=[360]), r"size must be height and width of 32 or more, got \[360\]"),
    (None, dict(size=(31, 64)), "of 32 or more, got .31, 64."),
    (None, dict(precision="int8"), "int8 needs a calibration folder"),
    (None, dict(precision="int8", calibration="nowhere"), "calibration images not found: nowhere"),
    (None, dict(precision="int8", calibration="empty"), "no images in empty"),
])
def test_refusals(tiny, make, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    options = {"path": "a.onnx", **options}
    with pytest.raises(ValueError, match=message):
        export_model(make() if make else tiny, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_no_exported_file(tmp_path):
    with pytest.raises(ValueError, match="its name must end in .onnx, .xml, .torchscript, .pt2"):
        ExportedModel(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match="exported file not found"):
        ExportedModel(tmp_path / "a.onnx")
    torch.jit.script(nn.ReLU()).save(tmp_path / "a.torchscript")
    with pytest.raises(ValueError, match="was not made by 'bssnet-zoo export'"):
        ExportedModel(tmp_path / "a.torchscript")


def test_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = write_folder(tmp_path / "data", train=1, val=2)
    model = bssnet_zoo.create_model("bssnet_t", num_classes=3)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, "mine.safetensors")
    common = ["export", "--checkpoint", "mine.safetensors", "--format", "torchscript", "--size", "64x96"]
    assert cli.main([*common, "--data", data]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"bssnet_t\.torchscript: largest difference .* same class at 100\.000 % .*", lines[0])
    miou = re.fullmatch(rf"mIoU before (\S+), after (\S+) \(\+0\.000\), 2 images of {re.escape(data)}", lines[1])
    assert miou[1] == miou[2]
    assert json.loads(ExportedModel("bssnet_t.torchscript").metadata["class_names"]) == ["sky", "road", "car"]
    assert cli.main(["eval", "--checkpoint", "bssnet_t.torchscript", "--data", data, "--workers", "0"]) == 0
    assert re.search(rf"mIoU +{miou[2]}", capsys.readouterr().out)

    Path("file").touch()
    for args, message in (
            (["--out", "file/a.torchscript"], "file"), (["--precision", "int8"], "torchscript files hold"),
            (["--model", "bssnet_x"], "unknown model 'bssnet_x'"), (["--checkpoint", "no.pth"], "no.pth")):
        assert cli.main([*common, *args]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("bssnet-zoo: error: ") and message in error and len(error.splitlines()) == 1
