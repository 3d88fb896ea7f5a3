"""`bssnet-zoo demo`: the site as files, and its server. The page itself: test_demo_page.py."""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml
from conftest import shallow
from safetensors.torch import save_file

import bssnet_zoo
from bssnet_zoo.cli import demo as cli
from bssnet_zoo.cli import main
from bssnet_zoo.data.classes import CAMVID, ClassInfo
from bssnet_zoo.demo import runtime, site
from bssnet_zoo.demo.server import SiteServer
from bssnet_zoo.demo.site import write_site
from bssnet_zoo.files import sha256
from bssnet_zoo.models.metadata import class_metadata

TOOLS = Path(__file__).parent / "page"
PAGE = Path(site.__file__).parent / "page"


@contextlib.contextmanager
def serving(folder: Path, host: str = "127.0.0.1"):
    with SiteServer(folder, host, port=0) as served:
        thread = threading.Thread(target=served.serve_forever, daemon=True)
        thread.start()
        yield served
        served.shutdown()
        thread.join()


# --- the site

@pytest.fixture
def small():
    """A model of 19 classes with a pretrained config."""
    model = shallow()
    model.pretrained_cfg = dict(
        architecture="bssnet_t", input_size=(3, 96, 128), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2))
    return model


def test_site_is_what_its_manifest_says_and_replaces_an_older_one(small, tmp_path, monkeypatch):
    def export(model, path, format, precision, raw, calibration) -> None:
        assert model is small and format == "onnx" and raw and len(calibration) == 3
        path.write_text(f"a network in {precision}")

    monkeypatch.setattr(site, "export_model", export)  # it has tests of its own, and the page's tests use it
    out = tmp_path / "site"
    (out / "models").mkdir(parents=True)
    (out / "models" / "older.onnx").write_text("older")
    (out / "CNAME").write_text("mine.example")
    (out / "manifest.json").write_text(json.dumps(dict(
        made_by=site.MADE_BY, files=["manifest.json", "models/older.onnx", "../../etc", str(tmp_path / "mine")])))
    (tmp_path / "mine").write_text("mine")
    written = write_site([small], out, size=64, calibration=PAGE / "samples")
    assert (tmp_path / "mine").exists()
    manifest = json.loads((out / "manifest.json").read_text())
    on_disk = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert sorted(path.relative_to(out).as_posix() for path in written) == manifest["files"]
    assert sorted([*manifest["files"], "CNAME"]) == on_disk
    model, = manifest["models"]
    assert (model["name"], model["trained_size"], model["size"]) == ("bssnet_t", 96, 64) and 64 in model["sizes"]
    assert (model["mean"], model["std"]) == ([0.5, 0.4, 0.3], [0.2, 0.2, 0.2])
    assert [each["name"] for each in model["classes"]] == list(bssnet_zoo.class_info(small).names)
    assert list(model["files"]) == ["float32", "float16", "int8"]
    for file in model["files"].values():
        assert file["sha256"] == sha256(out / file["url"]) and file["bytes"] == (out / file["url"]).stat().st_size
        assert file["sha256"][:8] in file["url"]
    cdn = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{runtime.RUNTIME_VERSION}/dist/"
    assert manifest["runtime"]["base"] == cdn
    space = yaml.safe_load((out / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert space["sdk"] == "static"
    assert space["custom_headers"] == {name.lower(): value for name, value in site.HEADERS.items()}


def test_site_refuses_what_it_cannot_show(small, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="has files that 'bssnet-zoo demo' did not write: choose another --out"):
        write_site([small], tmp_path)
    with pytest.raises(ValueError, match="shorter side in pixels, 64 to 2048, got 20"):
        write_site([small], tmp_path / "new", size=20)
    with pytest.raises(ValueError, match="named twice: bssnet_t, bssnet_t"):
        write_site([small, small], tmp_path / "new")
    small.in_chans = 4
    with pytest.raises(ValueError, match="pictures in RGB, bssnet_t takes 4 channels"):
        write_site([small], tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_an_interrupted_site_can_be_written_again(small, tmp_path, monkeypatch):
    def full_disk(source, target) -> None:
        raise OSError("the disk is full")

    def export(model, path, format, precision, raw, calibration) -> None:
        if precision == broken:
            raise KeyboardInterrupt
        path.write_text(f"a network in {precision}")

    monkeypatch.setattr(site, "export_model", export)
    small.pretrained_cfg["tag"] = "../../../evil"  # of a stranger's config.json
    out = tmp_path / "a" / "site"
    broken = "float16"
    with pytest.raises(KeyboardInterrupt):
        write_site([small], out)
    assert not list(out.iterdir())
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(site.shutil, "copyfile", full_disk)
        broken = None
        write_site([small], out)
    assert not list(out.iterdir())
    write_site([small], out)
    assert len(list((out / "models").iterdir())) == 2 and not list(tmp_path.rglob("evil*"))
    before, broken = sorted(out.rglob("*")), "float16"
    with pytest.raises(KeyboardInterrupt):
        write_site([small], out)
    assert sorted(out.rglob("*")) == before


def test_a_runtime_must_be_the_one_that_was_tested(tmp_path):
    with pytest.raises(ValueError, match="no onnxruntime-web in .*: run 'npm install onnxruntime-web@"):
        runtime.find_runtime(tmp_path)
    dist = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    (dist / "ort.wasm.min.mjs").write_text("export default 1;")
    (dist.parent / "package.json").write_text('{"version": "1.2.3"}')
    with pytest.raises(ValueError, match=f"is onnxruntime-web 1.2.3, the page needs {runtime.RUNTIME_VERSION}"):
        runtime.find_runtime(tmp_path)
    (dist.parent / "package.json").write_text(json.dumps(dict(version=runtime.RUNTIME_VERSION)))
    with pytest.raises(ValueError, match="ort.wasm.min.mjs has sha256 .*, that of the npm package is"):
        runtime.find_runtime(tmp_path / "node_modules")


def test_the_runtime_of_the_page_is_that_of_the_lock_file():
    lock = json.loads((TOOLS / "package-lock.json").read_text())
    assert lock["packages"]["node_modules/onnxruntime-web"]["version"] == runtime.RUNTIME_VERSION


@pytest.mark.parametrize("options, message", [
    (["--size", "20"], "size is the shorter side in pixels, 64 to 2048, got 20"),
    (["--runtime", "nowhere"], "no onnxruntime-web in nowhere"),
    (["--model", "bssnet_x"], "unknown model 'bssnet_x'"),
    (["--model", "bssnet_t", "bssnet_b", "--checkpoint", "best.pth"], "a checkpoint is of one model, --model names 2"),
])
def test_wrong_arguments_are_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--out", "site", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not Path("site").exists()


def test_models_and_checkpoints_come_with_their_classes(tmp_path, monkeypatch, capsys):
    def write(models, *options) -> list[Path]:
        given.append([(site.model_name(model), bssnet_zoo.class_info(model)) for model in models])
        return []

    given = []
    monkeypatch.setattr(cli, "write_site", write)
    out = ["--out", str(tmp_path / "site")]
    assert main(["demo", "--model", "bssnet_t", "bssnet_b", *out]) == 0
    assert [name for name, _ in given[0]] == ["bssnet_t.camvid", "bssnet_b.camvid"]
    assert all(classes.names == CAMVID.names for _, classes in given[0])
    mine = ClassInfo(("sky", "road", "car"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    save_file(bssnet_zoo.create_model("bssnet_t", num_classes=3).state_dict(), tmp_path / "mine.safetensors",
              metadata={**class_metadata(mine), "input_size": "[64, 96]"})
    assert main(["demo", "--checkpoint", str(tmp_path / "mine.safetensors"), *out]) == 0
    assert given[1] == [("bssnet_t", mine)]
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "dataset.yaml").write_text("classes: [sky, road]\n")
    options = ["demo", "--checkpoint", str(tmp_path / "mine.safetensors"), "--data", f"folder:{tmp_path / 'two'}", *out]
    assert main(options) == 2 and len(given) == 2
    assert f"mine.safetensors has 3 classes, folder:{tmp_path / 'two'} has 2" in capsys.readouterr().err


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node.js")
def test_long_and_thin_pictures():
    """In the page they are refused where they would become too large, and resized where they don't."""
    script = f"""import {{ resize, seenSize }} from "{(PAGE / 'resize.js').as_uri()}";
        console.log(seenSize(1, 300, 64), resize(new Uint8ClampedArray(1200).fill(7), [1, 300], [1, 200000])[799996]);
        seenSize(1, 300, 480);"""
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True)
    assert done.stdout.split() == ["[", "64,", "19200", "]", "7"], done.stderr
    assert "A picture of 300 × 1 is too long and thin: at a shorter side of 480 it would become 144000" in done.stderr


# --- the server

@pytest.fixture
def plain_site(tmp_path):
    """A folder that a server can serve, without models."""
    folder = tmp_path / "plain"
    list(site.copy_page(folder))
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def get(url: str, method: str = "GET"):
    return urllib.request.urlopen(urllib.request.Request(url, method=method))


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"), ("0.0.0.0", "127.0.0.1")])
def test_server_gives_the_files_of_the_folder_and_nothing_else(plain_site, host, shown, capsys):
    """At an address of this machine, for which browsers give threads and the camera."""
    if ":" in host and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6")
    with serving(plain_site, host) as served:
        assert served.url == f"http://{shown}:{served.server_address[1]}/"
        with get(served.url) as answer:
            assert answer.read() == (PAGE / "index.html").read_bytes()
            assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
            assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        with get(served.url + "worker.js?again") as answer:
            assert answer.headers["Content-Type"] == "text/javascript"
        with get(served.url + "samples/dusk.jpg", "HEAD") as answer:
            size = (PAGE / "samples" / "dusk.jpg").stat().st_size
            assert answer.read() == b"" and int(answer.headers["Content-Length"]) == size
        for path in ("../secret.txt", "%2e%2e/secret.txt", "samples/"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(served.url + path)
        with pytest.raises(urllib.error.HTTPError, match="501"):
            get(served.url, "POST")
        for error in (ConnectionResetError(), ValueError("ours")):  # a browser that goes away is nobody's error
            try:
                raise error
            except (OSError, ValueError):
                served.handle_error(None, ("127.0.0.1", 1))
    assert "ours" in (text := capsys.readouterr().err) and "ConnectionReset" not in text


def test_addresses_that_cannot_be_had(plain_site):
    with serving(plain_site) as served:
        port = served.server_address[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 is taken: choose another one with --port"):
            SiteServer(plain_site, port=port)
    with pytest.raises(ValueError, match="a port is a number from 0 to 65535, got 70000"):
        SiteServer(plain_site, port=70000)
    with pytest.raises(OSError, match="can't listen at port 0 of no.such.host.invalid: "):
        SiteServer(plain_site, host="no.such.host.invalid", port=0)


def test_the_command_opens_the_page_until_it_is_interrupted(plain_site, monkeypatch, capsys):
    def visit(url: str) -> None:
        """A browser in the terminal: it waits for the page."""
        urls.append(url)
        with get(url + "main.js") as answer:
            answers.append(answer.read())
        os.kill(os.getpid(), signal.SIGINT)

    def write(models, folder, *args, **kwargs) -> None:
        folders.append(Path(folder))
        shutil.copytree(plain_site, folder, dirs_exist_ok=True)

    urls, answers, folders = [], [], []
    monkeypatch.setattr(cli, "write_site", write)  # exporting has a test of its own
    monkeypatch.setattr("webbrowser.open", visit)
    assert main(["demo", "--port", "0"]) == 130
    assert capsys.readouterr().out.split()[0] == urls[0] and urls[0].startswith("http://127.0.0.1:")
    assert answers == [(PAGE / "main.js").read_bytes()]
    assert not folders[0].exists()
