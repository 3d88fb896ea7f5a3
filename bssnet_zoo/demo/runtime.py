"""The onnxruntime-web that the page runs on: its version, and the sha256 of each file that the page loads."""
import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..files import atomic_path, sha256

__all__ = ["RUNTIME_VERSION", "copy_runtime", "find_runtime", "runtime_facts"]

RUNTIME_VERSION = "1.30.0"
CDN = f"https://cdn.jsdelivr.net/npm/onnxruntime-web@{RUNTIME_VERSION}/dist/"  # the files of the npm package, unchanged

# by backend: the library, the module that starts the WebAssembly, the WebAssembly; bytes and sha256 of each
FILES = {
    "wasm": (
        ("ort.wasm.min.mjs", 50126, "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b"),
        ("ort-wasm-simd-threaded.mjs", 24381, "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b"),
        ("ort-wasm-simd-threaded.wasm", 14239897, "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"),
    ),
    "webgpu": (
        ("ort.webgpu.min.mjs", 66349, "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0"),
        ("ort-wasm-simd-threaded.asyncify.mjs", 53057,
         "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28"),
        ("ort-wasm-simd-threaded.asyncify.wasm", 26781914,
         "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da"),
    ),
}


def runtime_facts(local: bool) -> dict[str, Any]:
    """What the page has to know: the version, where the files are, and what they must be.

    Args:
        local: They lie beside the page, in ``runtime/``; otherwise they come from the CDN.
    """
    files = {
        backend: [dict(url=name, bytes=size, sha256=digest) for name, size, digest in rows]
        for backend, rows in FILES.items()}
    return dict(version=RUNTIME_VERSION, base="runtime/" if local else CDN, files=files)


def find_runtime(folder: str | os.PathLike[str]) -> Path:
    """The folder with the files of an npm installation: ``node_modules`` or a folder around or in it.

    Raises:
        ValueError: No onnxruntime-web there, another version, or files that aren't those of the npm package.
    """
    advice = f"run 'npm install onnxruntime-web@{RUNTIME_VERSION}' and give its folder node_modules"
    places = (
        Path(folder, *parts) for parts in (
            ("node_modules", "onnxruntime-web", "dist"), ("onnxruntime-web", "dist"), ("dist",), ()))
    dist = next((place for place in places if (place / "ort.wasm.min.mjs").is_file()), None)
    if dist is None:
        raise ValueError(f"no onnxruntime-web in {folder}: {advice}")
    package = dist.parent / "package.json"
    version = json.loads(package.read_text()).get("version") if package.is_file() else RUNTIME_VERSION
    if version != RUNTIME_VERSION:
        raise ValueError(f"{dist.parent} is onnxruntime-web {version}, the page needs {RUNTIME_VERSION}: {advice}")
    for name, _, digest in (row for rows in FILES.values() for row in rows):
        if not (dist / name).is_file():
            raise ValueError(f"{dist} has no {name}: {advice}")
        if (found := sha256(dist / name)) != digest:
            raise ValueError(f"{dist / name} has sha256 {found}, that of the npm package is {digest}: {advice}")
    return dist


def copy_runtime(dist: Path, target: Path) -> list[Path]:
    """Copies the files of `find_runtime`. Returns the copies."""
    copies = []
    for name, _, _ in (row for rows in FILES.values() for row in rows):
        with atomic_path(target / name) as temporary:
            shutil.copyfile(dist / name, temporary)
        copies.append(target / name)
    return copies
