"""Damaged bytes, full disks and sudden ends: an error in words, and whole files only."""
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from conftest import write_folder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save
from test_train import environment

from bssnet_zoo.data.datasets import dataset_classes
from bssnet_zoo.data.images import read_image
from bssnet_zoo.files import atomic_path, check_writable
from bssnet_zoo.models.checkpoints import read_checkpoint
from bssnet_zoo.models.weights import ASSETS
from bssnet_zoo.training.recipes import Recipe, parse_recipe

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file that was cut off, or had a few bytes changed, added or removed."""
    content = bytearray(whole[:draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole)
    for _ in range(draw(st.integers(0, 8))):
        place = draw(st.integers(0, len(content)))
        content[place:place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(content)


def picture(suffix: str, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("picture") / f"a{suffix}"
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(path)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
def test_images(suffix, tmp_path, tmp_path_factory):
    whole = picture(suffix, tmp_path_factory)

    @quick
    @given(damaged(whole))
    def read(content: bytes) -> None:
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        try:
            image = read_image(path)
        except (OSError, ValueError) as error:
            assert str(error).count("\n") == 0 and path.name in str(error)
        else:
            assert image.shape[0] == 3 and image.dtype in (torch.uint8, torch.float32)

    read()


WEIGHTS = {"stem.0.conv.weight": torch.ones(4, 3, 3, 3), "stem.0.bn.running_var": torch.ones(4)}


def pickled() -> bytes:
    import io
    buffer = io.BytesIO()
    torch.save(WEIGHTS, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("whole", [save(WEIGHTS), pickled()], ids=["safetensors", "pickle"])
def test_checkpoints(whole, tmp_path):
    @quick
    @given(damaged(whole))
    def read(content: bytes) -> None:
        path = tmp_path / "a.pth"
        path.write_bytes(content)
        try:
            weights = read_checkpoint(path)
        except (OSError, ValueError, RuntimeError) as error:
            assert "a.pth" in str(error)
        else:
            assert all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in weights.values())

    read()


scalars = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
           | st.sampled_from(["camvid", "bssnet_t", "float32", "none", "1e-3"]))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(scalars, inner, max_size=3),
                      max_leaves=8)


@quick
@given(st.dictionaries(st.sampled_from(["classes", "palette", "id_map", "ignore_index", "clases"]), values, max_size=4)
       | values)
def test_dataset_yaml(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("data")
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    try:
        classes = dataset_classes(f"folder:{folder}")
    except ValueError as error:
        assert "dataset.yaml: " in str(error) and len(str(error)) < 2000
    else:
        assert len(set(classes.names)) == len(classes.names) == len(classes.palette) > 0
        assert classes.hex_palette


@quick
@given(st.dictionaries(st.sampled_from(list(Recipe.__dataclass_fields__)), values, max_size=5), st.booleans())
def test_recipe_yaml(content, with_length):
    try:
        recipe = parse_recipe(yaml.safe_dump({**content, **({"epochs": 1} if with_length else {})}), "mine.yaml")
    except ValueError as error:
        assert str(error).startswith("mine.yaml is no recipe: ")
    else:
        assert parse_recipe(str(recipe), "again") == recipe


# every verb that writes: {} is the folder to write to
VERBS = {
    "predict": f"predict {ASSETS}/street.png --backend deploy --size 64 --overwrite --out {{}}/predictions",
    "export": "export --format torchscript --size 64x96 --out {}/model.torchscript",
    "convert": f"convert {ASSETS}/bssnet_t.camvid.safetensors {{}}/weights.safetensors --dtype float32",
    "publish": "publish bssnet_t.camvid --org me --dry-run --out {}/repository",
    "train": "train --data folder:{data} --val-split val --base-size 64x96 --crop-size 64x96 --epochs 1 --batch-size 2 "
             "--workers 0 --class-weights none --output {}/run",
}
FULL_DISK = """
import contextlib, io, json, resource, sys
from bssnet_zoo.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # as if the disk were full after that
for name, command in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()) as out:
        status = main(command.split())
    print(json.dumps([name, status, err.getvalue() or out.getvalue()]))
"""
FOREVER = """
import json, shutil, sys
from bssnet_zoo.cli import main
while True:
    for name, command in json.loads(sys.argv[1]).items():
        if name == "train":
            shutil.rmtree(sys.argv[2] + "/run", ignore_errors=True)
        print(name, flush=True)
        if main(command.split()) == 130:  # training, which SIGTERM ends in its own way
            sys.exit(143)
"""


def commands(tmp_path: Path) -> str:
    data = tmp_path / "data"
    write_folder(data, train=4, val=2)
    out = tmp_path / "out"
    return json.dumps({name: command.replace("{data}", str(data)).replace("{}", str(out))
                       for name, command in VERBS.items()})


def check_whole(folder: Path) -> None:
    """Everything that has its name can be read to the end."""
    for path in folder.rglob("*"):
        if not path.is_file() or path.name.startswith("."):
            continue
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                assert file.keys()
        elif path.suffix == ".pth":
            assert torch.load(path, weights_only=True)["model"]
        elif path.suffix == ".torchscript":
            torch.jit.load(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".yaml":
            assert yaml.safe_load(path.read_text())["model"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits on the size of files")
@pytest.mark.slow
def test_full_disk(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL_DISK, commands(tmp_path)], capture_output=True, text=True,
                          env=environment(), check=True)
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert [(name, status) for name, status, _ in results] == [
        (name, 1 if name == "predict" else 2) for name in VERBS]  # an image that failed is one of many
    for _, _, message in results:
        assert "can't be written: " in message and "File too large" in message and str(tmp_path / "out") in message
        assert "Traceback" not in message
    check_whole(tmp_path / "out")
    assert not list((tmp_path / "out").rglob(".*-????????.*"))


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="has no /dev/fd")
def test_a_redirected_output_is_written_to(tmp_path):
    with open(tmp_path / "out.txt", "w") as file, atomic_path(f"/dev/fd/{file.fileno()}") as path:
        path.write_text("what is written")
    assert (tmp_path / "out.txt").read_text() == "what is written" and os.listdir(tmp_path) == ["out.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_stays_a_pipe(tmp_path):
    """As /dev/stdout and /dev/null do: they are written to, not replaced by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_writable(pipe)
    with ThreadPoolExecutor(1) as reader:
        content = reader.submit(pipe.read_text)
        with atomic_path(pipe) as path:
            path.write_text("what is written")
        assert content.result(timeout=60) == "what is written"
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_sudden_end(number, tmp_path):
    """Whatever is killed at whatever moment, what is there is whole; after SIGTERM nothing else is there."""
    draw = random.Random(int(number))
    process = subprocess.Popen([sys.executable, "-c", FOREVER, commands(tmp_path), str(tmp_path / "out")],
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment())
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "train" or draw.random() < 0.1:
                break
        time.sleep(draw.uniform(0, 3))
    finally:
        os.kill(process.pid, number)
        try:
            status = process.wait(timeout=60)
        finally:
            process.kill()
            process.stdout.close()  # not before: a broken pipe would end the command in its own way
    assert status == {signal.SIGKILL: -9, signal.SIGTERM: 128 + signal.SIGTERM}[number]
    check_whole(tmp_path / "out")
    if number == signal.SIGTERM:
        assert not list((tmp_path / "out").rglob(".*-????????.*"))
