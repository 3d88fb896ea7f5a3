"""README and docs: every Python and shell snippet, the notebooks, examples in docstrings, the site.

Shell snippets are read by bash, with the tools as functions that write down their arguments. Each `bssnet-zoo` command
must then be one that the parser takes, and runs, on small data and for one epoch. `PARSED` verbs take minutes or don't
end: the files that `export` would write come from a network with few layers. `<!-- not run: WHY -->` before a snippet
leaves it at the parser, `<!-- skip: next "WHY" -->` skips one in Python.
"""
import contextlib
import doctest
import importlib
import inspect
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import SkipTest

import numpy as np
import pytest
import torch
from conftest import write_folder
from PIL import Image
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

import bssnet_zoo
from bssnet_zoo.cli.main import build_parser, main
from bssnet_zoo.data.classes import CAMVID
from bssnet_zoo.deployment import export
from bssnet_zoo.deployment.export import export_model
from bssnet_zoo.inference import runner
from bssnet_zoo.models.weights import ASSETS, WEIGHTS

ROOT = Path(__file__).parents[1]
HISTORY = [ROOT / "docs" / "experiments", ROOT / "docs" / "runs"]  # commands of days: the parser must take them
PAGES = [path for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
         if "cards" not in path.parts and re.search("```(bash|python)\n", path.read_text())]
SMALL = {  # appended to a command: its last value counts
    "train": "--epochs 1 --batch-size 2 --base-size 64x96 --crop-size 64x96 --val-size 64x96 --workers 0 "
             "--validate-every 1 --no-cache --device cpu".split(),
    "eval": ["--workers", "0"],
}
RECORD = """
set -euo pipefail
record() { printf '%s\\0' "$@" >&9; printf '\\0' >&9; }
for tool in bssnet-zoo pip pytest ruff mypy torchrun jupyter sphinx-build hf npm npx node curl ffmpeg; do
    eval "$tool() { record $tool \\"\\$@\\"; }"
done
python() { record python "$@"; echo FILE; }
"""


PARSED = {"bench", "demo", "export"}
RAN = set()  # commands that are on several pages run once


def shell_commands(snippet: str, earlier: str = "") -> list[list[str]]:
    """The commands of a snippet, as bash understands it; variables may come from earlier ones."""
    process = subprocess.run(
        ["bash", "-c", f"exec 8>&1 1>/dev/null 9>/dev/null\n{RECORD}\n{earlier}\nexec 9>&8\n{snippet}\n"],
        capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return [command.split("\0") for command in process.stdout.split("\0\0") if command]


def run_shell(example: Example) -> None:
    before = example.document.text[:example.region.start]
    parse_only = re.search(r"<!-- not run: [\w .-]+ -->\s*$", before) or example.namespace.get("history")
    earlier = example.namespace.setdefault("shell", [])
    commands = shell_commands(example.parsed, "\n".join(earlier))
    earlier.append(example.parsed)
    for tool, *words in commands:
        if tool == "torchrun" and "..." not in words:
            build_parser().parse_args(words[words.index("bssnet_zoo") + 1:])
        elif tool == "python" and words[0].startswith("experiments/"):
            assert (ROOT / words[0]).is_file(), words[0]
        if tool == "bssnet-zoo":
            args = build_parser().parse_args(words)
            if not parse_only and words[0] not in PARSED and tuple(words) not in RAN:
                RAN.add(tuple(words))
                if getattr(args, "output", None):
                    shutil.rmtree(args.output, ignore_errors=True)
                small = [] if getattr(args, "resume", None) else SMALL.get(words[0], [])
                assert main([*words, *small]) == 0, words


def examples(page: Path) -> list[Example]:
    parsers = [PythonCodeBlockParser(), CodeBlockParser(language="bash", evaluator=run_shell), SkipParser()]
    return list(Document.parse(str(page), *parsers).examples())


@pytest.fixture(scope="session")
def workplace(tmp_path_factory, finished, published):
    """A folder with all that the snippets name, small."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "bssnet_zoo").symlink_to(ROOT / "bssnet_zoo")
    write_folder(folder / "data" / "mine", train=4, val=2)
    street = Image.open(ASSETS / "street.png").convert("RGB").resize((160, 120))
    for name in ("street.jpg", "road.jpg", "a.jpg", "b.jpg", "folder/c.jpg", "street.png", "coloured.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        street.save(folder / name)
    still = bssnet_zoo.Prediction(np.zeros((120, 160), np.uint8), street, CAMVID.names, CAMVID.palette)
    bssnet_zoo.write_overlay(((time, still) for time in (0, 30, 60, 65, 70)), folder / "drive.mp4")
    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for kind in ("camvid", "camvid_full"):
            for name in (split, f"{split}annot"):
                (folder / "data" / kind / name).mkdir(parents=True)
            street.save(folder / "data" / kind / split / "0.png")
            Image.fromarray(rng.integers(0, 12, (120, 160), np.uint8)).save(
                folder / "data" / kind / f"{split}annot" / "0.png")
    (folder / "theirs.pth").symlink_to(published("bssnet_t"))
    shutil.copytree(finished[0], folder / "runs" / "mine")
    model = bssnet_zoo.BSSNet(num_classes=3, dim=8).eval()
    model.stages = torch.nn.Sequential(*(stage[:1] for stage in model.stages))
    export_model(model, folder / "mine.onnx", "onnx", (96, 144), labels=True, normalize=True)
    shutil.copy(folder / "mine.onnx", folder / "bssnet_t.onnx")
    return folder


@pytest.fixture
def no_openvino(monkeypatch):
    """Predictors run in torch unless told otherwise: OpenVINO would convert the network for each of them."""
    choose = runner._choose
    monkeypatch.setattr(runner, "_choose", lambda backend, *rest: choose(
        "deploy" if backend == "auto" else backend, *rest))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_snippets(page, workplace, no_openvino, monkeypatch, tmp_path):
    shutil.copytree(workplace, tmp_path / "work", symlinks=True, copy_function=os.link)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(runner, "shown_size", lambda size: size and [min(180, *size)])  # large images take long
    for example in examples(page):
        example.namespace["history"] = any(folder in page.parents for folder in HISTORY)
        with contextlib.suppress(SkipTest):
            example.evaluate()


def code_cells(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells
            if cell["cell_type"] == "code" and "skip-execution" not in cell["metadata"].get("tags", ())]


@pytest.mark.parametrize("notebook", sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks(notebook, workplace, no_openvino, monkeypatch, tmp_path):
    """Each cell, in its order; what they print and draw is saved in the notebook (CONTRIBUTING.md)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(export, "export_model", lambda model, path, *args, **kwargs: shutil.copy(
        workplace / "mine.onnx", path))
    names = {"__name__": "__main__"}
    for cell in code_cells(notebook):
        if notebook.stem == "finetune" and "train(recipe" in cell:
            assert "epochs=8" in cell
            cell = cell.replace("epochs=8", "epochs=1")
        exec(compile(cell, notebook.name, "exec"), names)


PUBLIC = ("layers", "losses", "metrics", "data", "training", "evaluation", "hub", "models", "inference.predictor",
          "inference.prediction", "deployment.export", "deployment.exported", "deployment.rewrites", "device")


@pytest.mark.parametrize("module", PUBLIC)
def test_examples_of_docstrings(module, workplace, no_openvino, monkeypatch, tmp_path):
    shutil.copytree(workplace / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    finder, tests = doctest.DocTestFinder(), doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    package = importlib.import_module(f"bssnet_zoo.{module}")
    files = {inspect.getmodule(getattr(package, name)) for name in package.__all__} | {package}
    for file in files:
        if file and file.__name__.startswith("bssnet_zoo."):
            for test in finder.find(file):
                tests.run(test)
    assert tests.failures == 0


@pytest.mark.parametrize("name", [name for name in bssnet_zoo.__all__ if not name.startswith("_")])
def test_public_names_have_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(bssnet_zoo, name))


def test_figures_are_those_that_were_measured():
    rows = re.findall(r"^\| `([\w.]+)` \| (\d+)x(\d+) \| ([\d.]+) \| ([\d.]+) ", (ROOT / "README.md").read_text(), re.M)
    assert {
        name if "." in name else f"{name}.camvid": ((int(height), int(width)), float(miou), float(other))
        for name, height, width, miou, other in rows} == {
        name: (weights.size, weights.metrics["miou"], weights.metrics["other_streets"])
        for name, weights in WEIGHTS.items()}


def test_classes_of_the_results_page():
    results = (ROOT / "docs" / "models" / "results.md").read_text()
    section = results.partition("## CamVid test, each class")[2].partition("\n## ")[0]
    columns = zip(*re.findall(r"^\| (\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", section, re.M), strict=True)
    names, *found = columns
    for weights, column in zip(WEIGHTS.values(), found, strict=True):
        assert {name: float(iou) for name, iou in zip(names, column, strict=True)} == {
            name: round(iou, 1) for name, iou in weights.metrics["iou"].items()}


def test_the_drawing_is_that_of_the_network():
    draw = runpy.run_path(str(ROOT / "docs" / "architecture.py"))["draw"]
    assert draw() == (ROOT / "docs" / "images" / "architecture.svg").read_text()


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            if "cards" not in link and "cards" not in page.parts and not link.startswith("../../actions"):
                assert (page.parent / link).exists(), (page, link)


def test_the_address_of_the_repository_is_the_same_everywhere():
    address = re.search(r'"https://github.com/([^"]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    for path in [ROOT / "README.md", *(ROOT / "docs" / "notebooks").glob("*.ipynb")]:
        assert set(re.findall(r"[\w-]+/bssnet-zoo(?=[\"\\\n])", path.read_text())) == {address}, path


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    for package in ("tomllib", "furo", "myst_nb", "sphinx_argparse_cli", "sphinx_copybutton"):
        pytest.importorskip(package)
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", tmp_path / "site"], cwd=ROOT,
                   check=True)
    assert "create_model" in (tmp_path / "site" / "reference" / "bssnet_zoo.html").read_text()
