"""Makes the data sets that the bundled weights learn from a teacher's label maps (docs/experiments/weights.md).

    python experiments/teacher_labels.py STREETS LABELMEFACADE OUT

STREETS holds ``teacher/{camvid_train,camvid_val,labelmefacade_train,unlabelled}``, PNGs of class + 16 where the teacher
is sure, and the photographs ``unlabelled/``. OUT gets ``teacher/{train,val}`` for ``--teacher-labels``, and two data
sets of CamVid's layout for ``--more-data``: ``labelmefacade``, whose labels are ignored where the teacher sees a class
that they hide, and ``unlabelled``, without a label.
"""
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from bssnet_zoo.data.classes import CAMVID, IGNORE_INDEX
from bssnet_zoo.data.datasets import read_label

RIDERS = [CAMVID.names.index(name) for name in ("pedestrian", "bicyclist")]  # which it confuses at CamVid's size
HIDDEN = [CAMVID.names.index(name) for name in ("pole", "sign", "fence", "pedestrian", "bicyclist")]


def teacher_map(path: Path) -> np.ndarray:
    """The teacher's class of each pixel, 255 where it isn't sure and where its classes meet."""
    values = read_label(path)
    taught = Image.fromarray(np.where(values // 16, values % 16, IGNORE_INDEX).astype(np.uint8))
    low, high = (np.asarray(taught.filter(extreme(3))) for extreme in (ImageFilter.MinFilter, ImageFilter.MaxFilter))
    return np.where(low == high, low, IGNORE_INDEX)


def write(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def main(streets: Path, labelmefacade: Path, out: Path) -> None:
    for split in "train", "val":
        for path in (streets / "teacher" / f"camvid_{split}").glob("*.png"):
            taught = teacher_map(path)
            taught[np.isin(taught, RIDERS)] = IGNORE_INDEX
            write(taught, out / "teacher" / split / path.name)
    (out / "labelmefacade").mkdir(parents=True)
    shutil.copytree(labelmefacade / "train", out / "labelmefacade" / "train")
    for path in (streets / "teacher" / "labelmefacade_train").glob("*.png"):
        taught, label = teacher_map(path), read_label(labelmefacade / "trainannot" / path.name)
        hidden = np.isin(taught, HIDDEN)
        taught[~hidden & (label < len(CAMVID.names))] = IGNORE_INDEX  # its own labels are better
        label = np.where(hidden, IGNORE_INDEX, label)
        write(taught, out / "teacher" / "train" / path.name)
        write(label, out / "labelmefacade" / "trainannot" / path.name)
    shutil.copytree(streets / "unlabelled", out / "unlabelled" / "train")
    for path in (streets / "teacher" / "unlabelled").glob("*.png"):
        taught = teacher_map(path)
        write(taught, out / "teacher" / "train" / path.name)
        write(np.full_like(taught, IGNORE_INDEX), out / "unlabelled" / "trainannot" / path.name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
