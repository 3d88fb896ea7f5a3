"""docs/scale.md: its program for Ray Data, with the real Ray and two workers."""
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_pretrained import STREET

import bssnet_zoo

PAGE = Path(__file__).parents[1] / "docs" / "scale.md"


@pytest.mark.slow
def test_ray_data(tmp_path):
    pytest.importorskip("ray.data", reason="needs Ray: pip install 'ray[data]'")
    program, reader = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "label.py").write_text(program)
    street = Image.open(STREET).convert("RGB")
    (tmp_path / "images").mkdir()
    for i in range(20):
        street.crop((i, 0, 240 + i, 180)).save(tmp_path / "images" / f"{i:02}.png")
    env = {**os.environ, "PYTHONPATH": str(PAGE.parents[1]), "RAY_USAGE_STATS_ENABLED": "0"}
    run = subprocess.run([sys.executable, "label.py", "images", "labels"], cwd=tmp_path, env=env, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    assert run.returncode == 0, run.stdout
    show = subprocess.run([sys.executable, "-c", reader], cwd=tmp_path, env=env, text=True, stdout=subprocess.PIPE)
    assert re.search(r"\d\d.png \(180, 240\) {'sky': 0.", show.stdout), show.stdout

    import pandas

    table = pandas.read_parquet(tmp_path / "labels").sort_values("path")
    assert [Path(path).name for path in table["path"]] == [f"{i:02}.png" for i in range(20)]
    predictor = bssnet_zoo.Predictor("bssnet_t")
    for path, content, facts in zip(table["path"], table["labels"], table["facts"], strict=True):
        labels = np.array(Image.open(io.BytesIO(content)))
        assert (labels == predictor(tmp_path / path).labels).mean() > 0.999
        assert json.loads(facts)["shares"]["road"] == pytest.approx((labels == 3).mean(), abs=1e-6)
