"""`bssnet-zoo export`: files that answer what the model answers, say what they are, and run with or without torch."""
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import shallow, write_folder
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
from bssnet_zoo.deployment.exported import OPENERS, ExportedModel, onnx_session
from bssnet_zoo.deployment.graph import row_strips
from bssnet_zoo.models.config import class_info
from bssnet_zoo.models.metadata import class_metadata
from bssnet_zoo.training.run_folder import trained_model
from bssnet_zoo.training.state import save_weights

onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")

PAGE = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text()
SIZE = (97, 140)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.2)
slow = pytest.mark.slow


def network() -> bssnet_zoo.BSSNet:
    """A small network with names and a normalisation of its own."""
    model = shallow(num_classes=11)
    model.pretrained_cfg = dict(
        architecture="bssnet_t", tag="mine", input_size=(3, 96, 128), mean=MEAN, std=STD, **CAMVID.config)
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """``files("onnx", ...)``: `network` and its file, which is made once."""
    made = {}

    def make(format: str, **options):
        key = (format, *options.items())
        if key not in made:
            path = tmp_path_factory.mktemp("files") / f"model{FORMATS[format].suffix}"
            model = network()
            report = export_model(model, path, format, **options)
            assert report.path == path and report.same_class > 0.99
            made[key] = model, path
        return made[key]

    return make


def street(size: tuple[int, int]) -> torch.Tensor:
    """The sample image in 8 bits, (1, H, W, 3)."""
    return (255 * TF.resize(load_image(STREET), size, antialias=True)).round().byte().permute(1, 2, 0)[None]


def normalized(images: torch.Tensor, mean=MEAN, std=STD) -> torch.Tensor:
    return TF.normalize(images.permute(0, 3, 1, 2) / 255, mean, std)


@pytest.mark.parametrize(("format", "sizes"), [
    ("torchscript", [(64, 64), (104, 160), (75, 203), (192, 130)]),  # odd and even at every level
    pytest.param("onnx", [(64, 64), (104, 160), (75, 203), (192, 130)], marks=slow),
    pytest.param("openvino", [(64, 64), (104, 160), (75, 203), (192, 130)], marks=slow),
    pytest.param("exported-program", [(513, 600), (576, 513)], marks=slow)])
def test_any_size(files, format, sizes):
    model, path = files(format)
    file = ExportedModel(path, threads=1, trust=True)
    assert file.size is None and not file.train().eval().training
    for size in sizes:
        images = normalized(street(size)).repeat(1 if format == "exported-program" else 3, 1, 1, 1)
        with torch.inference_mode():
            expected, logits = model(images), file(images)
        assert logits.shape == expected.shape and logits.dtype == torch.float32
        assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    predictor = Predictor(path, precision="float32", size=64, trust=True)
    expected = bssnet_zoo.predict(model, STREET, size=64)
    with ThreadPoolExecutor(2) as pool:
        found = [*predictor.batch([STREET, STREET]), *pool.map(predictor, [STREET] * 4)]
    if format != "exported-program":  # which sees an image with its edges repeated up to 513x513
        assert all((each.labels == expected.labels).mean() > 0.999 for each in found)
    assert Predictor(path, trust=True).size == [96]
    if format == "onnx":
        graph = onnx.load(path).graph
        shapes = [[d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
                  for value in (graph.input[0], graph.output[0])]
        assert shapes == [["batch", 3, "height", "width"], ["batch", 11, "height", "width"]]


@pytest.mark.parametrize(("format", "precision"), [
    pytest.param("onnx", "float16", marks=slow), pytest.param("openvino", "float16", marks=slow),
    ("torchscript", "float16"), pytest.param("exported-program", "bfloat16", marks=slow)])
def test_labels_of_8_bit_images_of_one_size(files, format, precision):
    """In half precision. The untrained network's layers share weights, which ONNX has once."""
    model, path = files(format, size=SIZE, labels=True, normalize=True, precision=precision)
    file = ExportedModel(path, threads=1, trust=True)
    images = street(SIZE)
    labels = file.run(images)
    with torch.inference_mode():
        expected = model(normalized(images)).argmax(1)
    assert labels.shape == (1, *SIZE) and labels.dtype == torch.uint8
    assert (labels == expected).float().mean() > 0.95 and len(labels.unique()) > 1
    assert torch.equal(file(normalized(images)).argmax(1), labels.long())  # as `evaluate` asks

    weights = path.with_suffix(".bin") if format == "openvino" else path
    assert weights.stat().st_size < 3.4 * sum(p.numel() for p in model.parameters()) + 5e5
    said = {key: value if key in ("model", "precision", "bssnet_zoo") else json.loads(value)
            for key, value in file.metadata.items()}
    assert (said.pop("mean"), said.pop("std")) == (pytest.approx(MEAN), pytest.approx(STD))
    assert said == {
        "model": "bssnet_t.mine", "class_names": list(CAMVID.names), "palette": list(CAMVID.hex_palette),
        "size": list(SIZE), "trained_size": [96, 128], "precision": precision, "labels": True, "normalize": True,
        "raw": False, "bssnet_zoo": bssnet_zoo.__version__}

    predictor = Predictor(path, trust=True)
    assert predictor.size == list(SIZE) and predictor.runner.classes.names == CAMVID.names
    assert (predictor(STREET).labels == bssnet_zoo.predict(model, STREET, size=SIZE).labels).mean() > 0.9  # nearest
    for ask, message in (
            (lambda: predictor(STREET, probabilities=True), "this file ends in labels"),
            (lambda: Predictor(path, size=128, trust=True), "takes images of 97x140 only: leave out the size"),
            (lambda: Predictor(path, backend="deploy"), "is run by the library that it is for"),
            (lambda: Predictor(path, device="meta"), "device 'meta' is unknown or not there")):
        with pytest.raises(ValueError, match=message):
            ask()
    if format != "openvino":
        with pytest.raises(ValueError, match=f"computes in {precision}, not in float32: export it in that precision"):
            Predictor(path, precision="float32", trust=True)


def test_onnx_files_are_for_old_runtimes_and_hold_no_full_size_logits(files):
    _, path = files("onnx", size=SIZE, labels=True, normalize=True, precision="float16")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8 and [each.version for each in model.opset_import if not each.domain] == [18]
    assert not any(node.metadata_props for node in model.graph.node)
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes = [[d.dim_value for d in value.type.tensor_type.shape.dim] for value in graph.value_info]
    assert max(shape[2] for shape in shapes if len(shape) == 4 and shape[1] == 11 and shape[3] == SIZE[1]) == 64


@pytest.mark.parametrize(("rows", "height"), [(13, 97), (45, 360), (1, 5), (128, 1024), (9, 64)])
def test_row_strips_are_the_resize(rows, height):
    x = torch.randn(1, 3, rows, 4)
    strips = torch.cat([matrix @ x[:, :, first:last] for first, last, matrix in row_strips(rows, height)], dim=2)
    torch.testing.assert_close(strips, F.interpolate(x, size=(height, 4), mode="bilinear", align_corners=True))


def test_raw_labels_of_an_image_that_is_padded(files):
    """A file takes 64 pixels and more: what is added to a smaller image is cut off its labels."""
    model, path = files("torchscript", raw=True, labels=True)
    image = Image.open(STREET).convert("RGB").resize((50, 40))
    padded = F.pad(normalized(torch.from_numpy(np.array(image))[None]), (0, 14, 0, 24), mode="replicate")
    with torch.inference_mode():
        raw = model.forward_head(model.forward_features(padded)).argmax(1)[0].numpy()
    rows, columns = ((np.arange(side) * 7 / 63).round().astype(int) for side in (40, 50))
    found = Predictor(path, size="full", trust=True)(image)
    assert raw.shape == (8, 8) and np.array_equal(found.labels, raw[rows][:, columns])
    assert ExportedModel(path, trust=True)(padded).shape == (1, 11, 8, 8)


def test_threads_are_those_of_the_environment(files, monkeypatch):
    _, path = files("torchscript")
    asked = []
    opener = OPENERS[".torchscript"][1]
    monkeypatch.setitem(OPENERS, ".torchscript", ("torchscript", lambda *args: asked.append(args[1]) or opener(*args)))
    for number in ("2", None):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        monkeypatch.setenv("OMP_NUM_THREADS", number) if number else monkeypatch.delenv("OMP_NUM_THREADS")
        ExportedModel(path, trust=True)
    assert asked == [2, 0]


@pytest.mark.parametrize("vnni", [True, False])
def test_options_of_onnx_runtime(vnni, tmp_path, monkeypatch):
    """Slower int8 sums, which don't overflow, are asked for where they are needed."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni, raising=False)
    make, ends = onnx.helper, [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=8), tmp_path / "relu.onnx")
    options = onnx_session(tmp_path / "relu.onnx", 2).get_session_options()
    try:
        found = options.get_session_config_entry("session.x64quantprecision")
    except RuntimeError:  # it isn't set
        found = None
    assert found == (None if vnni else "1") and options.intra_op_num_threads == 2


# --- files that aren't ours

@pytest.mark.parametrize("suffix", OPENERS)
def test_damaged_files(tmp_path, suffix, capfd):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(b"no network")
    with pytest.raises(ValueError, match=f"damaged{suffix} is damaged or no exported file: "):
        Predictor(path, trust=True)
    assert capfd.readouterr().err == ""  # the libraries' own words


@pytest.mark.parametrize("suffix", [".torchscript", ".pt2", ".PT2"])
def test_files_that_can_run_code_are_asked_for(tmp_path, suffix, capsys):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"code")
    data = write_folder(tmp_path / "data", train=1, val=1)
    for command in (["predict", str(STREET), "--out", str(tmp_path)], ["eval", "--data", data]):
        assert cli.main([*command, "--checkpoint", str(path)]) == 2
        assert "can run code when it is opened" in (error := capsys.readouterr().err) and "--trust" in error
        assert cli.main([*command, "--checkpoint", str(path), "--trust"]) == 2
        assert "is damaged or no exported file" in capsys.readouterr().err


@pytest.mark.parametrize("change", [
    None, dict(class_names="sky,road"), dict(class_names='["sky"]'), dict(mean="0.5"), dict(std="[1]"),
    dict(labels="maybe"), dict(palette="[1, 2]"), dict(size=None)])
def test_files_of_others(tmp_path, files, change):
    """Of other programs, some of which use the same keys."""
    metadata = dict(class_names='["sky", "road"]', palette='["#000000", "#ffffff"]', mean="[0, 0, 0]", std="[1, 1, 1]",
                    size="null", labels="false", normalize="false", raw="false")
    metadata = {key: value for key, value in {**metadata, **change}.items() if value} if change else {}
    path = tmp_path / "a.torchscript"
    torch.jit.save(torch.jit.script(nn.ReLU()), path, _extra_files={"metadata.json": json.dumps(metadata)})
    with pytest.raises(ValueError, match="a.torchscript was not made by 'bssnet-zoo export'"):
        Predictor(path, trust=True)


def test_no_exported_file(tmp_path):
    with pytest.raises(ValueError, match="its name must end in .onnx, .xml, .torchscript, .pt2"):
        ExportedModel(tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match="exported file not found"):
        ExportedModel(tmp_path / "a.onnx")


# --- what export does, and refuses

def test_weights_beside_the_file_are_not_written_over(tiny, tmp_path):
    (tmp_path / "a.bin").write_text("a checkpoint")
    with pytest.raises(ValueError, match="a.bin is there and not the weights of a.xml: choose another name"):
        export_model(tiny, tmp_path / "a.xml", "openvino", (64, 64))
    assert (tmp_path / "a.bin").read_text() == "a checkpoint"


def test_leaves_the_model_as_it_is(tmp_path):
    model = network().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    export_model(model, tmp_path / "a.torchscript", "torchscript")
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert export_model(bssnet_zoo.deploy(model), tmp_path / "b.torchscript", "torchscript").max_difference < 1e-4


class Unknown(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return eval("x")  # no TorchScript


def test_unsupported_operator(tmp_path):
    deployed = bssnet_zoo.deploy(network())
    deployed.decoder.refine = nn.Sequential(Unknown(), *deployed.decoder.refine)
    with pytest.raises(RuntimeError, match="this model can't become torchscript: .+") as caught:
        export_model(deployed, tmp_path / "a.torchscript", "torchscript")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_other_answers_are_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "a.torchscript"
    path.write_text("what was there")
    monkeypatch.setattr(export, "compare", lambda *args: (0.01, 1.))
    with pytest.raises(RuntimeError, match="not written, its answers are not those of the model: .*1.0e-02"):
        export_model(network(), path, "torchscript", (64, 64))
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
    (network, dict(format="tflite"), "unknown format 'tflite': there are onnx, openvino"),
    (network, dict(precision="bfloat16"), "onnx files hold float32, float16, int8, not bfloat16"),
    (network, dict(format="openvino", path="a.xml", precision="bfloat16"), "run it with INFERENCE_PRECISION_HINT"),
    (network, dict(format="torchscript", path="a.torchscript", precision="int8"), "hold float32, bfloat16, float16"),
    (network, dict(format="openvino"), r"must end in \.xml, got .*a.onnx"),
    (network, dict(size=[360]), r"size must be height and width of 32 or more, got \[360\]"),
    (network, dict(size=(31, 64)), "of 32 or more, got .31, 64."),
    (network, dict(precision="int8"), "int8 needs a calibration folder"),
    (network, dict(precision="int8", calibration="nowhere"), "calibration images not found: nowhere"),
    (network, dict(precision="int8", calibration="empty"), "no images in empty"),
])
def test_refusals(make, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        export_model(make(), **{"path": "a.onnx", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(("package", "format", "precision"), [
    ("onnx", "onnx", "float32"), ("onnxruntime", "onnx", "float32"), ("onnxscript", "openvino", "float32"),
    ("openvino", "openvino", "float32"), ("nncf", "openvino", "int8")])
def test_missing_package(package, format, precision, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeError, match=rf"needs {package}.*pip install '\.\[export\]'"):
        export_model(network(), tmp_path / f"a{FORMATS[format].suffix}", format, precision=precision,
                     calibration=STREET)


def test_classes_keep_the_names_of_the_checkpoint(tmp_path):
    data, path = write_folder(tmp_path, train=1, val=1), tmp_path / "mine.safetensors"
    classes = ClassInfo(("car", "road", "sky"), ((0, 0, 1), (0, 0, 2), (0, 0, 3)))  # another order than the data's
    save_weights(bssnet_zoo.create_model("bssnet_t", num_classes=3), path, **class_metadata(classes))
    assert class_info(trained_model(checkpoint=str(path), data=data)) == classes


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
    file = ["--checkpoint", "bssnet_t.torchscript", "--trust"]
    assert cli.main(["eval", *file, "--data", data, "--workers", "0"]) == 0
    assert re.search(rf"mIoU +{miou[2]}", capsys.readouterr().out)
    assert cli.main(["predict", str(STREET), *file, "--out", "."]) == 0
    assert "sky" in capsys.readouterr().out and Path("street_labels.png").exists()

    Path("file").touch()
    for args, message in (
            (["--out", "file/a.torchscript"], "file"), (["--precision", "int8"], "torchscript files hold"),
            (["--model", "bssnet_x"], "unknown model 'bssnet_x'"), (["--checkpoint", "no.pth"], "no.pth")):
        assert cli.main([*common, *args]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("bssnet-zoo: error: ") and message in error and len(error.splitlines()) == 1


# --- the published weights

@slow
@pytest.mark.parametrize(("format", "options"), [("onnx", ["--labels", "--normalize"]), ("openvino", [])])
def test_int8(tmp_path, format, options):
    """In a process of its own: torch crashed in one where NNCF had been."""
    pytest.importorskip("nncf" if format == "openvino" else "onnxruntime.quantization")
    image = TF.to_pil_image(load_image(STREET))
    for i in range(6):
        image.crop((10 * i, 12 * i, 480 - 10 * i, 360 - 4 * i)).save(tmp_path / f"{i}.png")
    size = (128, 192)  # maps are exactly doubled, for which there are other operators
    model, path = bssnet_zoo.create_model("bssnet_t", pretrained=True).eval(), tmp_path / f"t{FORMATS[format].suffix}"
    subprocess.run([sys.executable, "-m", "bssnet_zoo", "export", "--format", format, "--precision", "int8", "--size",
                    "128x192", "--calibration", str(tmp_path), "--out", str(path), *options], check=True)
    images = normalized(street(size), model.pretrained_cfg["mean"], model.pretrained_cfg["std"])
    with torch.inference_mode():
        agree = (ExportedModel(path)(images).argmax(1) == model(images).argmax(1)).float().mean()
    assert 0.9 < agree < 1
    weights = path if format == "onnx" else path.with_suffix(".bin")
    assert weights.stat().st_size < 0.3 * 4 * 8.4e6  # a byte instead of four for each parameter
    if format == "onnx":
        model = onnx.load(path)
        assert model.ir_version == 8
        convs = [node for node in model.graph.node if node.op_type == "Conv"]
        makers = {name: node.op_type for node in model.graph.node for name in node.output}
        assert len({node.name for node in convs}) == 63
        assert all((makers.get(node.input[1]) == "DequantizeLinear") != ("attention" in node.name) for node in convs)
        kernels = [list(attribute.ints) for node in convs for attribute in node.attribute
                   if attribute.name == "kernel_shape"]
        assert kernels.count([2, 2]) == 5  # x2 resizes


@slow
@pytest.mark.parametrize("heading", ["ONNX Runtime", "OpenVINO"])
def test_page_runs_without_torch(heading, tmp_path, monkeypatch):
    """The page's command makes the file, for a small size, and the page's code runs it."""
    section = PAGE.split(f"\n### {heading}\n")[1].split("\n### ")[0]
    command = re.search(r"```bash\nbssnet-zoo (.*)\n```", section)[1]
    code = re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)[1]
    assert len(code.splitlines()) <= 22 and "torch" not in code and "bssnet_zoo" not in code
    shutil.copy(STREET, tmp_path / "street.jpg")  # Pillow looks at the bytes
    monkeypatch.chdir(tmp_path)
    assert cli.main([*command.split(), "--size", "180x240"]) == 0
    (tmp_path / "run.py").write_text(
        f"import sys\nsys.modules['torch'] = sys.modules['bssnet_zoo'] = None\n{code}\nnp.save('labels.npy', labels)\n")
    result = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    labels = np.load(tmp_path / "labels.npy")
    seen = Image.open(STREET).convert("RGB").resize((240, 180))
    expected = bssnet_zoo.Predictor("bssnet_t", backend="deploy", precision="float32", size="full")(seen).labels
    assert (labels == expected).mean() > 0.995  # OpenVINO computes in bfloat16
    if road := re.search(r"road +([\d.]+)%", result.stdout):
        assert float(road[1]) == pytest.approx(100 * (labels == 3).mean(), abs=0.1)
