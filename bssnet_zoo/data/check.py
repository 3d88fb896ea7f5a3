"""Look at every file of a data set once, before hours are spent on it."""
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .classes import IGNORE_INDEX
from .datasets import UNKNOWN, UNREADABLE, SegmentationDataset, ranges, read_image, read_label
from .images import image_size

__all__ = ["FileScan", "check_dataset", "data_warnings", "fingerprint"]

SHOWN = 3
TAIL = 4096


@dataclass(frozen=True)
class FileScan:
    """What one pair of files holds: sizes as (height, width), and how often the raw label has each value 0-255."""

    image_path: Path
    label_path: Path
    image_size: tuple[int, int] = (0, 0)
    label_size: tuple[int, int] = (0, 0)
    counts: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    error: str = ""


def _scan(pair: tuple[Path, Path], full: bool) -> FileScan:
    try:
        if full:
            read_image(pair[0])
        size, label = image_size(pair[0]), read_label(pair[1])
    except UNREADABLE as error:
        return FileScan(*pair, error=f"{pair[0]}: {error}" if str(pair[0]) not in str(error) else str(error))
    return FileScan(*pair, size, label.shape, np.bincount(label.ravel(), minlength=256))


def _scan_label(dataset: SegmentationDataset, path: Path) -> str:
    try:
        dataset.load_label(path)
    except UNREADABLE as error:
        return str(error)
    return ""


def check_dataset(dataset: SegmentationDataset, full: bool = False, labelled: bool = True) -> list[FileScan]:
    """Check that every image has a label, of its size and with allowed values only.

    Args:
        dataset: The data set.
        full: Decode the images as well, not just their headers.
        labelled: Some pixel must have a class; there is none in the masks of a test set whose labels are kept secret.

    Returns:
        What was found in each pair of files.

    Raises:
        ValueError: Anything is wrong; a line per kind of problem, with the count and the first files.

    Example:
        >>> from bssnet_zoo.data import open_dataset
        >>> len(check_dataset(open_dataset("folder:data/mine", "train")))
        4
    """
    missing = [label for _, label in dataset.files if not label.is_file()]
    pairs = [pair for pair in dataset.files if pair[1].is_file()]
    with ThreadPoolExecutor() as pool:
        found = pool.map(partial(_scan, full=full), pairs)
        scans = list(tqdm(found, "checking", len(pairs), unit="image", leave=False, disable=None))
        taught = list(pool.map(partial(_scan_label, dataset), filter(None, dataset.teacher_labels)))
    broken = [scan.error for scan in scans if scan.error]
    sizes = [
        f"{scan.label_path.name} ({_text(scan.label_size)}, image {_text(scan.image_size)})"
        for scan in scans if scan.label_size != scan.image_size]
    values = [_unknown_values(dataset, scan) for scan in scans if scan.counts[dataset.id_table == UNKNOWN].any()]
    problems = [
        _line("images without a label, for instance", missing),
        _line("labels without an image", dataset.unpaired),
        _line("files that can't be read", broken),
        _line("labels of another size than their image (height x width)", sizes),
        _line(f"labels with unknown values ({dataset.allowed_values})", values),
        _line("teacher's label maps that can't be used", list(filter(None, taught))),
        _mistaken_ids(scans),
    ]
    if not any(problems) and labelled and not dataset.teacher_labels and not _pixels(dataset, scans)[:UNKNOWN].any():
        problems.append(f"no pixel has a class: all values in the masks are ignored ({dataset.allowed_values})")
    if any(problems):
        raise ValueError("\n  ".join([f"the data set of {len(dataset)} images has problems:", *filter(None, problems)]))
    return scans


def fingerprint(dataset: SegmentationDataset) -> dict[str, str]:
    """What a data set holds: by its name in the split, size and tail of each file; the classes and the id map.

    The folder that it lies in plays no part. A PNG's checksum is in its tail.
    """
    found = {"the classes": ", ".join(dataset.classes.names), "id_map": str(sorted(dataset.id_map.items()))}
    teachers = dataset.teacher_labels or [None] * len(dataset)
    for name, (image, label), teacher in zip(dataset.names, dataset.files, teachers, strict=True):
        for kind, path in (("image", image), ("mask", label), ("teacher's map", teacher)):
            if path is not None and path.is_file():
                with path.open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(max(0, size - TAIL))
                    found[f"{kind} {name}"] = f"{size} {zlib.crc32(file.read()):08x}"
    return found


def data_warnings(dataset: SegmentationDataset, scans: list[FileScan], split: str) -> list[str]:
    """A line for each thing that is allowed and hardly meant: classes without a pixel, masks that are ignored whole,
    files that aren't read."""
    pixels = _pixels(dataset, scans)
    absent = [name for i, name in enumerate(dataset.classes.names) if not pixels[i]]
    hint = ("255 in the masks is ignored; if it is a class, as in masks of 0 and 255, say so in dataset.yaml: "
            "id_map: {0: 0, 255: 1}")
    taught = dataset.teacher_labels or [None] * len(scans)
    ignored = [scan.label_path for scan, teacher in zip(scans, taught, strict=True)
               if teacher is None and not scan.counts[dataset.id_table != IGNORE_INDEX].any()]
    means_255 = dataset.id_table[IGNORE_INDEX] != IGNORE_INDEX or not any(scan.counts[IGNORE_INDEX] for scan in scans)
    return list(filter(None, [
        _line(f"of {len(dataset.classes.names)} classes without a pixel in {split}", absent),
        hint if absent and not means_255 else "",
        _line(f"masks in {split} are ignored as a whole", ignored),
        _line(f"files in {split} are left out, for they are no images of a known kind", dataset.left_out),
    ]))


def _pixels(dataset: SegmentationDataset, scans: list[FileScan]) -> np.ndarray:
    """Pixels of each class id, 256 of them."""
    return np.bincount(dataset.id_table, sum(scan.counts for scan in scans), minlength=256)


def _line(problem: str, items: list) -> str:
    more = ", ..." if len(items) > SHOWN else ""
    return f"{len(items)} {problem}: {', '.join(map(str, items[:SHOWN]))}{more}" if items else ""


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _unknown_values(dataset: SegmentationDataset, scan: FileScan) -> str:
    counts = np.where(dataset.id_table == UNKNOWN, scan.counts, 0)
    return f"{scan.label_path.name} ({ranges(np.flatnonzero(counts).tolist())} in {counts.sum()} pixels)"


def _mistaken_ids(scans: list[FileScan]) -> str:
    """Train ids in files named ``*_labelIds``, which is common for NightCity, would pass as other classes."""
    if not all(scan.label_path.stem.endswith("_labelIds") for scan in scans):
        return ""
    counts = sum((scan.counts for scan in scans), np.zeros(256, np.int64))
    if counts[7:19].any() and not counts[19:34].any():
        return "the labels named *_labelIds have no value in 19-33: if they hold train ids, name them *_trainIds"
    return ""
