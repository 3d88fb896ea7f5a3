"""The page of `bssnet-zoo demo`: every control of it in a real browser, without a network.

Needs Chromium, Playwright, and onnxruntime-web, which npm installs into tests/page/node_modules.
"""
import base64
import contextlib
import functools
import io
import json
import shutil
import subprocess
import threading
import time
import wave
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_demo import PAGE, TOOLS, serving

import bssnet_zoo
from bssnet_zoo.data.classes import CAMVID
from bssnet_zoo.demo import runtime, server, site
from bssnet_zoo.demo.site import write_site

pytestmark = pytest.mark.slow

SAMPLES = {name: PAGE / "samples" / f"{name}.jpg" for name in ("shops", "crossing", "dusk")}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@functools.cache
def npm_folder() -> Path:
    """What npm installed; skips the test if it isn't there and can't be had."""
    folder = TOOLS / "node_modules"
    if (folder / "onnxruntime-web").is_dir():
        return folder
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm, to install onnxruntime-web into tests/page/node_modules")
    done = subprocess.run(
        [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=TOOLS, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm could not install onnxruntime-web: {done.stderr.strip()[-200:]}")
    return folder


def test_sources_are_clean():
    biome = npm_folder() / ".bin" / "biome"
    if not biome.exists():
        pytest.skip("npm has no Biome for this platform")
    done = subprocess.run(
        [biome, "check", f"--config-path={TOOLS}", "--error-on-warnings", PAGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """T, float32 only (to export float16 takes time, and no test has a GPU), with the runtime beside it."""
    pytest.importorskip("playwright")
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    folder, npm = tmp_path_factory.mktemp("demo") / "site", npm_folder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "PRECISIONS", ("float32",))
        write_site([bssnet_zoo.create_model("bssnet_t", pretrained=True)], folder, runtime=npm, size=360)
    with serving(folder) as running:
        running.folder = folder
        yield running


@pytest.fixture(scope="module")
def browser(served, tmp_path_factory):
    from playwright.sync_api import sync_playwright

    video = tmp_path_factory.mktemp("camera") / "street.y4m"
    picture = np.asarray(Image.open(SAMPLES["crossing"]).resize((640, 480)).convert("YCbCr"))
    planes = [picture[..., 0], picture[::2, ::2, 1], picture[::2, ::2, 2]]
    frame = b"FRAME\n" + b"".join(plane.tobytes() for plane in planes)
    video.write_bytes(b"YUV4MPEG2 W640 H480 F30:1 Ip A1:1 C420jpeg\n" + 4 * frame)
    with sync_playwright() as playwright:
        # no name is resolved: what isn't on this machine can't be reached
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--use-fake-ui-for-media-stream",
            "--use-fake-device-for-media-stream", f"--use-file-for-fake-video-capture={video}"])
        yield browser
        browser.close()


class Demo:
    """A page of the demo, and what was asked for and went wrong in it."""

    def __init__(self, browser, url: str, **options):
        self.page = browser.new_page(viewport=dict(width=1440, height=900), **options)
        self.errors, self.requests = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(url)

    def text(self, name: str) -> str:
        return self.page.inner_text(f"#{name}")

    def done(self) -> str | None:
        return self.page.get_attribute("#view", "data-done")

    def wait(self, before: str | None = None) -> None:
        """Until there is another result."""
        self.page.wait_for_function(
            "before => ![before, undefined].includes(document.getElementById('view').dataset.done)",
            arg=before, timeout=60_000)

    @contextlib.contextmanager
    def result(self):
        before = self.done()
        yield
        self.wait(before)

    def saved(self, what: str) -> Image.Image:
        with self.page.expect_download() as download:
            self.page.click(f"#save-{what}")
        self.name = download.value.suggested_filename
        return Image.open(io.BytesIO(Path(download.value.path()).read_bytes()))

    def choose_sample(self, name: str) -> None:
        with self.result():
            self.page.click(f"[data-sample={name}]")

    def choose_file(self, name: str, content: bytes, type: str = "image/jpeg") -> None:
        self.page.set_input_files("#file", dict(name=name, mimeType=type, buffer=content))


@pytest.fixture(scope="module")
def demo(served, browser):
    """A page for all tests that leave it usable."""
    demo = Demo(browser, served.url)
    demo.wait()
    yield demo
    assert not demo.errors
    assert all(url.startswith((served.url, "blob:", "data:")) for url in demo.requests)
    demo.page.close()


@pytest.fixture(scope="module")
def model():
    return bssnet_zoo.create_model("bssnet_t", pretrained=True)


@pytest.mark.parametrize("name", SAMPLES)
def test_labels_are_those_of_predict(demo, model, name):
    if name != "shops":  # which is there when the page opens
        demo.choose_sample(name)
    labels = demo.saved("labels")
    expected = bssnet_zoo.predict(model, SAMPLES[name], size=360)
    assert demo.name == f"{name}_labels.png" and labels.mode == "P"
    assert labels.getpalette()[:33] == expected.label_image().getpalette()[:33]
    assert (np.asarray(labels) == expected.labels).mean() >= 0.999


def test_legend_tells_the_shares(demo, model):
    demo.choose_sample("crossing")
    prediction = bssnet_zoo.predict(model, SAMPLES["crossing"], size=360)
    shares = prediction.counts() / prediction.labels.size
    order = np.argsort(-shares)
    rows = demo.page.locator("#legend button")
    assert rows.count() == 11
    for row, index in list(zip(rows.all(), order, strict=True))[:4]:
        name, share = row.inner_text().split()
        assert name == prediction.class_names[index]
        assert abs(float(share.rstrip("%")) - 100 * shares[index]) < 0.2
    assert demo.text("status").startswith(f"Segmented: {prediction.class_names[order[0]]} ")
    assert "CPU, " in demo.text("facts") and "360 × 480" in demo.text("facts") and "ms" in demo.text("facts")


def colours(demo) -> np.ndarray:
    """The saved overlay, with the classes' colours at full strength."""
    demo.page.evaluate("document.getElementById('strength').value = 100")
    overlay = np.asarray(demo.saved("overlay").convert("RGB")).astype(int)
    demo.page.evaluate("document.getElementById('strength').value = 55")
    return overlay


def test_a_class_is_highlighted_by_mouse_tap_and_keyboard(demo):
    demo.choose_sample("shops")
    labels, photo = np.asarray(demo.saved("labels")), np.asarray(Image.open(SAMPLES["shops"])).astype(int)
    road = demo.page.get_by_role("button", name="road")
    colour = np.array((128, 64, 128))

    def check_highlighted():
        overlay = colours(demo)
        assert np.abs(overlay[labels == 3] - colour).max() <= 1
        building = labels == 1
        assert np.abs(overlay - photo)[building].mean() < 0.3 * np.abs(photo - (128, 0, 0))[building].mean()

    road.click()
    assert road.get_attribute("aria-pressed") == "true"
    demo.page.mouse.move(5, 5)
    check_highlighted()
    road.click()
    demo.page.mouse.move(5, 5)
    assert road.get_attribute("aria-pressed") == "false"
    assert np.abs(colours(demo)[labels == 1] - (128, 0, 0)).max() <= 1
    road.press("Enter")
    check_highlighted()
    road.press("Enter")


def test_the_class_under_the_pointer_is_told(demo):
    demo.choose_sample("shops")
    labels = np.asarray(demo.saved("labels"))
    box = demo.page.locator("#photo").bounding_box()
    names = [each["name"] for each in json.loads(
        demo.page.evaluate("fetch('manifest.json').then(r => r.text())"))["models"][0]["classes"]]
    for y, x in ((600, 480), (60, 480), (300, 900)):
        demo.page.mouse.move(box["x"] + (x + 0.5) * box["width"] / 960, box["y"] + (y + 0.5) * box["height"] / 720)
        assert demo.text("under") == names[labels[y, x]]
        assert demo.page.locator("#legend .is-under .name").inner_text() == names[labels[y, x]]
    demo.page.mouse.move(5, 5)
    assert demo.page.is_hidden("#under")


def test_strength_of_the_overlay(demo):
    demo.choose_sample("dusk")
    demo.page.mouse.move(5, 5)
    labels = np.asarray(demo.saved("labels"))
    slider = demo.page.get_by_label("Overlay", exact=True)
    slider.focus()
    demo.page.keyboard.press("End")
    assert demo.text("strength-text") == "100%"
    assert demo.page.evaluate("getComputedStyle(document.getElementById('mask')).opacity") == "1"
    slider.fill("30")
    assert demo.page.evaluate("getComputedStyle(document.getElementById('mask')).opacity") == "0.3"
    overlay = demo.saved("overlay")
    assert demo.name == "dusk_overlay.png" and overlay.size == (960, 720)
    palette = np.array(CAMVID.palette)
    expected = 0.7 * np.asarray(Image.open(SAMPLES["dusk"])).astype(float) + 0.3 * palette[labels]
    assert np.abs(np.asarray(overlay.convert("RGB")) - expected).max() <= 3
    slider.fill("55")


def test_another_size(demo, model):
    demo.choose_sample("crossing")
    with demo.result():
        demo.page.select_option("#size", "480")
    assert "480 × 640" in demo.text("facts")
    expected = bssnet_zoo.predict(model, SAMPLES["crossing"], size=480).labels
    assert (np.asarray(demo.saved("labels")) == expected).mean() >= 0.999
    with demo.result():
        demo.page.select_option("#size", "360")


TURNED = Image.open(SAMPLES["crossing"]).resize((300, 400))  # in a file whose EXIF says: turn right


@pytest.mark.parametrize("how", ["choose", "drop", "paste"])
def test_a_picture_of_ones_own(demo, model, how):
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    TURNED.save(file, "JPEG", exif=exif, quality=95)
    with demo.result():
        if how == "choose":
            with demo.page.expect_file_chooser() as chooser:
                demo.page.get_by_role("button", name="Choose a picture or video").click()
            chooser.value.set_files(dict(name="mine.jpg", mimeType="image/jpeg", buffer=file.getvalue()))
        else:
            demo.page.evaluate("""([how, text]) => {
                const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
                const data = new DataTransfer();
                data.items.add(new File([bytes], "mine.jpg", { type: "image/jpeg" }));
                dispatchEvent(how === "drop" ? new DragEvent("drop", { dataTransfer: data, cancelable: true })
                    : new ClipboardEvent("paste", { clipboardData: data }));
            }""", [how, base64.b64encode(file.getvalue()).decode()])
    labels = np.asarray(demo.saved("labels"))
    assert labels.shape == (300, 400) and demo.name == "mine_labels.png"
    assert (labels == bssnet_zoo.predict(model, Image.open(file), size=360).labels).mean() >= 0.999


def test_what_is_no_picture_is_said_and_the_last_one_stays(demo):
    demo.choose_sample("dusk")
    before = np.asarray(demo.saved("labels"))
    demo.choose_file("notes.txt", b"no picture at all", "text/plain")
    demo.page.wait_for_selector("#problem:not([hidden])")
    assert demo.text("problem") == "notes.txt is not a picture or a video that this browser can read."
    assert (np.asarray(demo.saved("labels")) == before).all()
    line = io.BytesIO()
    Image.new("RGB", (1, 300)).save(line, "PNG")
    demo.choose_file("line.png", line.getvalue(), "image/png")
    demo.page.wait_for_function("() => document.getElementById('problem').textContent.includes('is too long and thin')")
    demo.choose_sample("dusk")
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 8000, 8000, "NONE", ""))
        file.writeframes(bytes(16000))
    demo.choose_file("song.wav", sound.getvalue(), "audio/wav")
    demo.page.wait_for_function("() => document.getElementById('problem').textContent.startsWith('song.wav is not')")
    assert demo.page.is_hidden("#pause")
    demo.choose_sample("dusk")
    assert demo.page.is_hidden("#problem")


def test_what_was_chosen_last_stays(demo):
    """Even if what was chosen before it comes later."""
    waiting = []
    demo.page.route("**/samples/shops.jpg", lambda route: waiting.append(route))
    demo.page.click("[data-sample=shops]")
    demo.page.wait_for_timeout(200)
    with demo.result():
        demo.choose_file("mine.jpg", SAMPLES["crossing"].read_bytes())
    waiting[0].continue_()
    demo.page.wait_for_timeout(500)
    assert demo.page.get_attribute("#photo", "aria-label").startswith("mine.jpg")
    demo.page.unroute("**/samples/shops.jpg")


def test_a_picture_that_is_slow_to_decode_comes_too_late(demo, model):
    demo.page.evaluate("""() => {
        const decode = createImageBitmap.bind(window);
        let calls = 0;
        window.createImageBitmap = async (source, options) => {
            const bitmap = await decode(source, options);
            if (source.name === "slow.jpg" && ++calls === 2) {  // the one to be segmented, not the one to be shown
                await new Promise((go) => setTimeout(go, 1500));
            }
            return bitmap;
        };
    }""")
    demo.choose_file("slow.jpg", SAMPLES["crossing"].read_bytes())
    demo.page.wait_for_timeout(500)
    demo.choose_sample("dusk")
    demo.page.wait_for_timeout(2000)
    assert demo.page.get_attribute("#photo", "aria-label").startswith("dusk.jpg")
    expected = bssnet_zoo.predict(model, SAMPLES["dusk"], size=360).labels
    assert (np.asarray(demo.saved("labels")) == expected).mean() >= 0.999


def check_moving(demo) -> None:
    """Frames come, are dropped rather than queued, pause and go on."""
    page = demo.page
    for _ in range(3):
        demo.wait(demo.done())
    assert " FPS · " in demo.text("facts")
    longest = page.evaluate("""async () => {
        let [last, longest] = [performance.now(), 0];
        for (let i = 0; i < 60; i++) {
            await new Promise(requestAnimationFrame);
            longest = Math.max(longest, performance.now() - last);
            last = performance.now();
        }
        return longest;
    }""")
    assert longest < 1000  # the page itself never waits for the network
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function("() => !document.getElementById('facts').textContent.includes('FPS')", timeout=60_000)
    before = demo.done()  # no frame has waited: after that of the pause there is none
    time.sleep(1)
    assert demo.done() == before
    with demo.result():
        page.get_by_role("button", name="Go on").click()


def test_video_file(demo):
    video = demo.page.evaluate("""async () => {
        const image = await createImageBitmap(await (await fetch("samples/shops.jpg")).blob());
        const canvas = Object.assign(document.createElement("canvas"), { width: 480, height: 360 });
        const recorder = new MediaRecorder(canvas.captureStream(30), { mimeType: "video/webm" });
        const parts = [];
        recorder.ondataavailable = ({ data }) => parts.push(data);
        recorder.start();
        for (let i = 0; i < 60; i++) {
            canvas.getContext("2d").drawImage(image, -i / 10, 0, 486, 360);
            await new Promise(requestAnimationFrame);
        }
        await new Promise((resolve) => { recorder.onstop = resolve; recorder.stop(); });
        const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
        return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
    }""")
    demo.choose_file("drive.webm", base64.b64decode(video), "video/webm")
    check_moving(demo)
    demo.page.get_by_role("button", name="Pause").click()
    demo.page.wait_for_function("() => !document.getElementById('facts').textContent.includes('FPS')", timeout=60_000)
    labels = np.asarray(demo.saved("labels"))
    assert labels.shape == (360, 480) and demo.name == "drive_labels.png"
    assert (labels == 3).mean() > 0.2 and (labels == 1).mean() > 0.2
    demo.page.get_by_role("button", name="Stop").click()
    assert demo.page.is_hidden("#pause")


def test_camera(demo, model):
    with demo.result():
        demo.page.get_by_role("button", name="Use the camera").click()
    check_moving(demo)
    demo.page.get_by_role("button", name="Pause").click()
    demo.page.wait_for_function("() => !document.getElementById('facts').textContent.includes('FPS')", timeout=60_000)
    labels = demo.saved("labels")
    expected = bssnet_zoo.predict(model, SAMPLES["crossing"], size=360).label_image().resize(labels.size)
    assert (np.asarray(labels) == np.asarray(expected)).mean() > 0.9
    demo.page.get_by_role("button", name="Stop").click()
    assert demo.page.is_hidden("#stop")
    demo.page.evaluate("""() => {
        navigator.mediaDevices.getUserMedia = async () => { throw new DOMException("no", "NotAllowedError"); };
    }""")
    demo.page.get_by_role("button", name="Use the camera").click()
    demo.page.wait_for_selector("#problem:not([hidden])")
    assert demo.text("problem") == "The camera was not allowed: change that beside the page's address."


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_accessible_at_any_width(demo, scheme, width):
    demo.page.set_viewport_size(dict(width=width, height=800))
    demo.page.emulate_media(color_scheme=scheme)
    demo.page.evaluate((npm_folder() / "axe-core" / "axe.min.js").read_text())
    found = demo.page.evaluate("axe.run()")
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found["violations"]] == []
    assert len(found["passes"]) > 20
    assert demo.page.evaluate("document.documentElement.scrollWidth") <= width
    demo.page.set_viewport_size(dict(width=1440, height=900))


def test_keyboard_reaches_every_control(demo):
    demo.page.mouse.click(5, 5)
    reached = set()
    for _ in range(40):
        demo.page.keyboard.press("Tab")
        reached.add(demo.page.evaluate(
            "(e => e.id || e.dataset.sample || e.className || e.textContent)(document.activeElement)"))
    assert {"shops", "crossing", "dusk", "choose", "camera", "strength", "save-labels", "save-overlay", "model", "size",
            "backend"} <= reached


def test_nothing_can_be_sent_elsewhere(demo):
    """The content security policy holds for the page and its workers: no request reaches another server."""
    asked = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()

        def log_message(self, *args) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as elsewhere:
        threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
        ask = f"fetch('http://127.0.0.1:{elsewhere.server_address[1]}/picture').then(() => 'sent', () => 'refused')"
        worker = demo.page.workers[0]  # the others are its threads, which wait for work and can't be asked
        assert worker.evaluate("typeof OffscreenCanvas") == "function"
        assert {place.evaluate(ask) for place in (demo.page, worker)} == {"refused"}
        elsewhere.shutdown()
    assert not asked
    demo.requests = [url for url in demo.requests if not url.endswith("/picture")]


@contextlib.contextmanager
def instead(served, name: str, path: Path | None):
    """Another file, or none, in the place of one of the site's."""
    place, kept = served.folder / name, served.folder.parent / "kept"
    place.rename(kept)
    if path:
        shutil.copy(path, place)
    yield
    kept.replace(place)


def test_another_model_with_its_classes_and_another_backend(browser, served, tmp_path):
    manifest = json.loads((served.folder / "manifest.json").read_text())
    first, = manifest["models"]
    classes = [dict(name=f"kind {i}", colour="#0a0b0c") for i in range(len(first["classes"]))]
    files = {**first["files"], "int8": first["files"]["float32"]}
    manifest["models"] = [first, {**first, "name": "mine", "classes": classes, "size": 240, "files": files}]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with instead(served, "manifest.json", tmp_path / "manifest.json"):
        demo = Demo(browser, served.url)
        demo.wait()
        with demo.result():
            demo.page.select_option("#model", "mine")
        assert demo.page.locator("#legend .name").all_inner_texts()[0].startswith("kind ")
        assert " · int8 · " in demo.text("facts")
        assert demo.saved("labels").getpalette()[:33] == 11 * [10, 11, 12]
        with demo.result():
            demo.page.select_option("#backend", "wasm")
        assert "CPU, " in demo.text("facts") and not demo.errors
        assert len([url for url in demo.requests if url.endswith(".wasm")]) == 1  # the runtime is loaded once
        demo.page.close()


def problem(browser, served) -> str:
    demo = Demo(browser, served.url)
    demo.page.wait_for_selector("#problem:not([hidden])", timeout=60_000)
    text = demo.text("problem")
    assert demo.done() is None and demo.page.is_hidden("#loading")
    demo.page.close()
    return text


def test_files_that_are_missing_or_altered_are_refused(browser, served, tmp_path):
    weights = f"models/{next((served.folder / 'models').iterdir()).name}"
    with instead(served, weights, None):
        host = served.url.split("/")[2]
        assert problem(browser, served) == f"{weights.split('/')[1]} is missing: {host} answers 404."
    for name in (weights, "runtime/ort.wasm.min.mjs"):
        altered = tmp_path / Path(name).name
        content = bytearray((served.folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        altered.write_bytes(content)
        with instead(served, name, altered):
            assert "is not the file that this page was made with (its sha256 differs)" in problem(browser, served)
        altered.write_bytes(content[:-1])
        with instead(served, name, altered):
            assert "is not the file that this page was made with" in problem(browser, served)


def test_one_thread_where_the_host_sets_no_headers(browser, served, monkeypatch):
    monkeypatch.setattr(server, "HEADERS", {})
    demo = Demo(browser, served.url)
    demo.wait()
    assert "CPU, 1 thread ·" in demo.text("facts")
    demo.page.close()


def test_the_runtime_comes_from_the_cdn_and_is_checked(browser, served, tmp_path):
    manifest = json.loads((served.folder / "manifest.json").read_text())
    manifest["runtime"] = runtime.runtime_facts(local=False)
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    asked = []

    def answer(route):
        name = route.request.url.removeprefix(runtime.CDN)
        asked.append(name)
        body = (npm_folder() / "onnxruntime-web" / "dist" / name).read_bytes()
        route.fulfill(body=body, headers={"Access-Control-Allow-Origin": "*"})

    with instead(served, "manifest.json", tmp_path / "manifest.json"):
        demo = Demo(browser, "about:blank")
        demo.page.route(f"{runtime.CDN}**", answer)
        demo.page.goto(served.url)
        demo.wait()
        assert sorted(asked) == sorted(name for name, _, _ in runtime.FILES["wasm"])
        demo.page.close()


def test_a_slow_connection_that_saves_data_is_asked_first(browser, served):
    demo = Demo(browser, "about:blank")
    demo.page.add_init_script("Object.defineProperty(navigator, 'connection', { value: { saveData: true } })")
    demo.page.goto(served.url)
    demo.page.wait_for_function(
        "() => document.getElementById('loading-text').textContent.startsWith('Choose a picture')")
    time.sleep(0.5)
    assert not [url for url in demo.requests if url.endswith(".onnx")]
    demo.choose_sample("dusk")
    demo.page.close()
