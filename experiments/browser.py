"""What the page of ``bssnet-zoo demo`` costs in Chromium: milliseconds a frame beside ONNX Runtime in Python on the
same file, time to the first result from a cold cache on localhost, bytes loaded.

    bssnet-zoo demo --out site --runtime node_modules
    python experiments/browser.py site

Needs the extras [export] and playwright, and Chromium.
"""
import argparse
import json
import shutil
import statistics
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
from playwright.sync_api import Browser, Page, sync_playwright

from bssnet_zoo.demo import SiteServer

IN_BROWSER = """async ([height, width, runs]) => {
    if (!window.network) {
        const { openNetwork } = await import("./network.js");
        const manifest = await (await fetch("manifest.json")).json();
        window.network = await openNetwork(
            manifest, manifest.models[0], "wasm", [height, width], document.baseURI, () => {});
    }
    const times = [];
    for (let i = 0; i < runs; i++) {
        const images = Float32Array.from({ length: 3 * height * width }, Math.random);
        times.push((await window.network.run(images, [height, width])).milliseconds);
    }
    return [times, window.network.threads];
}"""


def first_result(browser: Browser, url: str) -> tuple[float, int, Page]:
    """Seconds until the first street is segmented in a browser without a cache, bytes loaded, and the page."""
    page, loaded = browser.new_context().new_page(), []
    page.on("response", lambda response: loaded.append(int(response.headers.get("content-length", 0))))
    start = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("#view[data-done]", timeout=120_000)
    return time.perf_counter() - start, sum(loaded), page


def in_python(session: onnxruntime.InferenceSession, size: tuple[int, int], runs: int) -> list[float]:
    times = []
    for _ in range(runs):
        images = np.random.rand(1, 3, *size).astype(np.float32)
        start = time.perf_counter()
        session.run(None, {"images": images})
        times.append(1000 * (time.perf_counter() - start))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("site", type=Path, help="what 'bssnet-zoo demo --out' wrote")
    parser.add_argument("--rounds", type=int, default=4, help="browser and Python by turns (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=8, help="frames of a round (default: %(default)s)")
    args = parser.parse_args()
    model = json.loads((args.site / "manifest.json").read_text())["models"][0]
    size = (model["trained_size"], model["trained_size"] * 4 // 3)
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    browser_times: list[float] = []
    python_times: list[float] = []
    with SiteServer(args.site, port=0) as server, sync_playwright() as playwright:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        browser = playwright.chromium.launch(executable_path=chromium)
        cold = []
        for _ in range(3):
            seconds, loaded, page = first_result(browser, server.url)
            cold.append(seconds)
            page.context.close()
        page = browser.new_page()
        page.goto(server.url + "manifest.json")  # the page's origin, without the page's own network
        _, threads = page.evaluate(IN_BROWSER, [*size, 3])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        file = model["files"].get("int8", model["files"]["float32"])  # what the page takes
        session = onnxruntime.InferenceSession(args.site / file["url"], options)
        in_python(session, size, 3)
        for _ in range(args.rounds):
            browser_times += page.evaluate(IN_BROWSER, [*size, args.runs])[0]
            python_times += in_python(session, size, args.runs)
        server.shutdown()
    print(f"first result: {', '.join(f'{seconds:.1f}' for seconds in cold)} s, {loaded / 1e6:.1f} MB")
    for where, times in (("browser", browser_times), ("python", python_times)):
        low, *_, high = statistics.quantiles(times, n=10)
        print(f"{where}: {statistics.median(times):.0f} ms ({low:.0f}-{high:.0f}), {size[0]}x{size[1]}, "
              f"{threads} threads")
    print(f"ratio: {statistics.median(python_times) / statistics.median(browser_times):.2f}")


if __name__ == "__main__":
    main()
