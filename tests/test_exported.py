"""What exported files are used for: int8, the deployment page's code, and what is said where a package is missing."""
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import normalized, street
from test_pretrained import STREET
from torchvision.transforms.v2 import functional as TF

import bssnet_zoo
from bssnet_zoo import cli
from bssnet_zoo.data.images import load_image
from bssnet_zoo.deployment.export import FORMATS, export_model
from bssnet_zoo.deployment.exported import ExportedModel, onnx_session

onnx, openvino = pytest.importorskip("onnx"), pytest.importorskip("openvino")

PAGE = (Path(__file__).parents[1] / "docs" / "deploy.md").read_text()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    image = TF.to_pil_image(load_image(STREET))
    for i in range(6):
        image.crop((10 * i, 12 * i, 480 - 10 * i, 360 - 4 * i)).save(folder / f"{i}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("format", "options"), [("onnx", ["--labels", "--normalize"]), ("openvino", [])])
def test_int8(tmp_path, pictures, format, options):
    """In a process of its own: torch crashed in one where NNCF had been."""
    pytest.importorskip("nncf" if format == "openvino" else "onnxruntime.quantization")
    size = (128, 192)  # maps are exactly doubled, for which there are other operators
    model, path = bssnet_zoo.create_model("bssnet_t", pretrained=True).eval(), tmp_path / f"t{FORMATS[format].suffix}"
    subprocess.run([sys.executable, "-m", "bssnet_zoo", "export", "--format", format, "--precision", "int8", "--size",
                    "128x192", "--calibration", str(pictures), "--out", str(path), *options], check=True)
    file = ExportedModel(path)
    images = street(size)
    with torch.inference_mode():
        agree = (file(normalized(images)).argmax(1) == model(normalized(images)).argmax(1)).float().mean()
    assert 0.9 < agree < 1
    weights = path if format == "onnx" else path.with_suffix(".bin")
    assert weights.stat().st_size < 0.3 * 4 * 8.4e6  # a byte instead of four for each parameter
    if format == "onnx":
        graph = onnx.load(path).graph
        makers = {name: node.op_type for node in graph.node for name in node.output}
        quantised = {node.name: makers.get(node.input[1]) == "DequantizeLinear"
                     for node in graph.node if node.op_type == "Conv"}
        assert len(quantised) == 63
        assert all(done != ("attention" in name) for name, done in quantised.items())
        kernels = [list(attribute.ints) for node in graph.node if node.op_type == "Conv"
                   for attribute in node.attribute if attribute.name == "kernel_shape"]
        assert kernels.count([2, 2]) == 5  # x2 resizes


@pytest.mark.parametrize("vnni", [True, False])
def test_int8_sums_that_overflow(vnni, tmp_path, monkeypatch):
    """What is slower is asked for where it is needed."""
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni, raising=False)
    make, ends = onnx.helper, [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in "xy"]
    graph = make.make_graph([make.make_node("Relu", ["x"], ["y"])], "relu", ends[:1], ends[1:])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=10), tmp_path / "relu.onnx")
    options = onnx_session(tmp_path / "relu.onnx", 1).get_session_options()
    try:
        found = options.get_session_config_entry("session.x64quantprecision")
    except RuntimeError:  # it isn't set
        found = None
    assert found == (None if vnni else "1")


@pytest.mark.parametrize(("package", "format", "precision"), [
    ("onnx", "onnx", "float32"), ("onnxruntime", "onnx", "float32"), ("onnxscript", "openvino", "float32"),
    ("openvino", "openvino", "float32"), ("nncf", "openvino", "int8")])
def test_missing_package(tiny, pictures, package, format, precision, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(RuntimeError, match=rf"needs {package}.*pip install '\.\[export\]'"):
        export_model(tiny, tmp_path / f"a{FORMATS[format].suffix}", format, precision=precision, calibration=pictures)


@pytest.mark.slow
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
