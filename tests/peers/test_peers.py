"""The tests that timm and transformers run on their own models, run on ours.

They come from the source distribution of the installed version. ``run_*.py`` says which don't apply, and why.
"""
import importlib.metadata
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def source_distribution(package: str, cache: Path) -> Path:
    """The unpacked source distribution of the installed version, which is downloaded once."""
    name = f"{package}-{importlib.metadata.version(package)}"
    if not (cache / name).is_dir():
        pip = [sys.executable, "-m", "pip", "download", name.replace("-", "=="), "--no-deps", "--no-binary", package,
               "--dest", str(cache)]
        found = subprocess.run(pip, capture_output=True, text=True, timeout=300)
        if found.returncode:
            pytest.skip(f"no source distribution {name} (offline?): {found.stderr.strip().splitlines()[-1]}")
        with tarfile.open(cache / f"{name}.tar.gz") as archive:
            archive.extractall(cache, filter="data")
    return cache / name


@pytest.mark.slow
@pytest.mark.parametrize("package", ["timm", "transformers"])
def test_their_tests_pass_on_our_models(package, request, tmp_path):
    pytest.importorskip("parameterized")  # transformers' tests import it
    tests = source_distribution(package, request.config.cache.mkdir("source-distributions")) / "tests"
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # none of our options: their marks are not ours
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", tmp_path / "pytest.ini", "--rootdir", tmp_path, "-W", "ignore",
         "-p", "no:cacheprovider", "--basetemp", tmp_path / "temp", "--tb=short", HERE / f"run_{package}.py"],
        cwd=tmp_path, env={**os.environ, "THEIR_TESTS": str(tests), "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:]
    assert " passed" in run.stdout
