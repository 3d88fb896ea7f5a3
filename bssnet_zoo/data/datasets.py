"""Folders of images and class masks as a PyTorch data set."""
import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from reprlib import repr as short
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets as torchvision_datasets
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from ..files import parse_yaml, visible_files
from . import transforms
from .classes import CAMVID, CITYSCAPES, IGNORE_INDEX, ClassInfo, default_palette
from .images import IMAGE_SUFFIXES, read_values
from .images import UNREADABLE as PILLOW_ERRORS
from .images import read_image as read_rgb

__all__ = [
    "SPLITS", "SegmentationDataset", "add_dataset", "add_teacher_labels", "open_dataset", "read_image", "read_label"]

UNKNOWN = 254  # stands in a mapped label for a value that the data set doesn't know
PARTS = ("train", "val", "test")
SPLITS = {**{part: (part,) for part in PARTS}, "trainval": ("train", "val")}
UNREADABLE = (RuntimeError, *PILLOW_ERRORS)  # what an image or label file may make of its reader

Pair = tuple[Path, Path]
IdMap = dict[int, int]


class Transform(Protocol):
    """Makes a sample of an image and its label, as ``TrainTransform`` and ``EvalTransform`` do."""

    def __call__(self, image: Tensor, label: Tensor, rng: np.random.Generator, /) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class Layout:
    """Where a kind of data set keeps the images and the labels of a split, relative to its root.

    What follows ``ending`` in the name of an image isn't in that of its label.
    """

    kind: str
    images: str
    labels: str
    ending: str = ""

    def folders(self, root: Path, split: str) -> tuple[Path, Path]:
        """The folders of the images and of the labels of a split."""
        return root / self.images.format(split=split), root / self.labels.format(split=split)

    def has(self, root: Path, split: str) -> bool:
        """Whether both folders of a split are there."""
        return all(folder.is_dir() for folder in self.folders(root, split))


LAYOUTS = (
    Layout("camvid", "{split}", "{split}annot"),
    Layout("camvid", "imgs/{split}", "anns/{split}"),
    Layout("cityscapes", "leftImg8bit/{split}", "gtFine/{split}", ending="_leftImg8bit"),
    Layout("nightcity", "imgs/{split}", "labels/{split}"),
    Layout("folder", "images/{split}", "masks/{split}"),
)
KINDS = tuple(dict.fromkeys(layout.kind for layout in LAYOUTS))


class SegmentationDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and their label maps.

    ``dataset[index]`` gives ``(image, label)``. Without a transform: the decoded image, uint8 (3, H, W), and the int64
    label map (H, W) with class ids and ``ignore_index``. With one: what ``transform(image, label, rng)`` returns, where
    the label is uint8 and ``rng`` is a NumPy generator, seeded by PyTorch's own. Where ``class_mix`` says so, the
    sample is mixed with another one, by `class_mix`, after the transform of both.

    ``dataset[epoch, index]`` seeds it from (seed, epoch, index), so that a sample is the same whatever process makes
    it, and however often that process was restarted. ``TrainSampler`` yields such keys.

    Args:
        files: Pairs of image and label file. Labels are PNGs: 8-bit grey, palette, or 1-bit.
        classes: Names and colours of the classes, 2 to 254.
        id_map: Value in the label files -> class id, or 255 to ignore. By default the values are class ids.
            255 itself is ignored unless it is listed; any other value that isn't listed is an error.
        transform: Called as ``transform(image, label, rng)``.
        seed: Seed of the augmentation, where the epoch is given.
        unpaired: Label files without an image, for ``check_dataset`` to report.
        class_mix: Probability that a sample is mixed with one drawn at random. It needs a transform to one size.

    Attributes:
        names: Split and path of each image below the folder of that split, without the suffix: ``train/seq1/0001``.
            By them `add_dataset` and `add_teacher_labels` match files. By default they are the images' own paths.
        left_out: Files among the images that are no images of a known kind.
        teacher_labels: For each image the file with a teacher's label map, or None; see `add_teacher_labels`.
        cache: Keeps decoded images and labels in the memory of each process that loads them, once it is a dict.

    Example:
        >>> image, label = open_dataset("folder:data/mine", "val")[0]
        >>> image.shape, label.shape
        (torch.Size([3, 64, 96]), torch.Size([64, 96]))
    """

    ignore_index = IGNORE_INDEX

    def __init__(
            self,
            files: Sequence[Pair],
            classes: ClassInfo,
            id_map: IdMap | None = None,
            transform: Transform | None = None,
            seed: int = 0,
            unpaired: Iterable[Path] = (),
            class_mix: float = 0.,
            names: Iterable[str] | None = None,
    ):
        if not 0 <= class_mix <= 1:
            raise ValueError(f"class_mix is a probability, 0 to 1, got {class_mix}")
        self.files = list(files)
        self.names = [str(image) for image, _ in self.files] if names is None else list(names)
        self.teacher_labels: list[Path | None] = []
        self.classes = classes
        self.id_map = _identity(classes) if id_map is None else id_map
        self.id_table = _id_table(self.id_map, len(classes.names))
        self.transform = transform
        self.seed = seed
        self.unpaired = list(unpaired)
        self.left_out: list[Path] = []
        self.class_mix = class_mix
        self.cache: dict[int, tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, Tensor]:
        epoch, index = key if isinstance(key, tuple) else (None, key)
        index = range(len(self))[index]
        image, label = self.load(index)
        if self.transform is None:
            return image.clone(), label.long()  # the caller's own, not those in the cache
        rng = transforms.torch_seeded() if epoch is None else np.random.default_rng((self.seed, epoch, index))
        sample = self.transform(image, label, rng)
        if self.class_mix and rng.random() < self.class_mix:
            other = self.transform(*self.load(int(rng.integers(len(self)))), rng)
            sample = transforms.class_mix(*sample, *other, rng)
        return sample

    def load(self, index: int) -> tuple[Tensor, Tensor]:
        """The image and its label without the transform, both uint8: (3, H, W) and (H, W).

        With ``teacher_labels`` the label is (2, H, W): its own and the teacher's.

        Raises:
            ValueError: The label has a value that isn't allowed; the message names the file.
            RuntimeError: A file can't be decoded.
        """
        if self.cache is None:
            return self._decode(index)
        if index not in self.cache:
            self.cache[index] = self._decode(index)
        return self.cache[index]

    def _decode(self, index: int) -> tuple[Tensor, Tensor]:
        image_path, label_path = self.files[index]
        label = self.load_label(label_path)
        if self.teacher_labels:
            path = self.teacher_labels[index]
            taught = torch.full_like(label, IGNORE_INDEX) if path is None else self.load_label(path)
            taught = TF.resize(taught[None], list(label.shape), interpolation=InterpolationMode.NEAREST_EXACT)
            label = torch.cat([label[None], taught])
        return read_image(image_path), label

    def load_label(self, path: Path) -> Tensor:
        """The class ids in a label file, uint8 (H, W); raises what `load` does."""
        values = read_label(path)
        label = self.id_table[values]
        if (label == UNKNOWN).any():
            unknown = ranges(np.unique(values[label == UNKNOWN]).tolist())
            raise ValueError(f"{path}: label values {unknown} aren't known ({self.allowed_values})")
        return torch.from_numpy(label)

    @property
    def allowed_values(self) -> str:
        """The values that label files may have, in words."""
        ignored = ranges(np.flatnonzero(self.id_table == IGNORE_INDEX).tolist())
        return f"allowed {ranges(np.flatnonzero(self.id_table < UNKNOWN).tolist())}; ignored {ignored}"


def open_dataset(
        spec: str,
        split: str,
        transform: Transform | None = None,
        seed: int = 0,
        class_mix: float = 0.,
) -> SegmentationDataset:
    """Open a data set by its kind and folder.

    - ``camvid``: the SegNet tutorial's ``train/ trainannot/ val/ valannot/ test/ testannot/``, or ``imgs/{split}
      anns/{split}`` where labels are named like the image or end in ``_L``. 11 classes, 11 is ignored.
    - ``cityscapes``: ``leftImg8bit/{split}/CITY/*_leftImg8bit.png gtFine/{split}/CITY/*_gtFine_labelIds.png``; ids
      become train ids.
    - ``nightcity``: ``imgs/{split} labels/{split}``. Labels named ``*_trainIds.png``, ``*_labelTrainIds.png`` or just
      like the image hold Cityscapes train ids; ``*_labelIds.png`` (the release) hold Cityscapes ids, which are mapped.
      The first of these that images have is used, other files are left alone.
    - ``folder``: ``images/{split} masks/{split} dataset.yaml``. The latter has ``classes`` (a list of names) and may
      have ``palette`` (a list of [r, g, b]), ``ignore_index`` (a value in the masks, 255 by default) and ``id_map``
      (value in the masks: class id, or 255 to ignore).

    Images are of any kind that ``predict`` takes, labels are PNGs; sub-folders and links are searched. 255 is ignored
    everywhere, unless a ``folder``'s ``id_map`` gives it a class.

    Args:
        spec: ``"kind:DIR"``, or ``"DIR"`` to find out the kind from the folders in it.
        split: ``"train"``, ``"val"``, ``"test"`` or ``"trainval"``.
        transform: Called as ``transform(image, label, rng)``, see ``SegmentationDataset``.
        seed: Seed of the augmentation.
        class_mix: Probability that a sample is mixed with another one, see ``SegmentationDataset``.

    Raises:
        ValueError: The split or the layout is unknown, there are no images, or ``dataset.yaml`` is wrong.
        OSError: A folder can't be read.

    Example:
        >>> dataset = open_dataset("folder:data/mine", "train")
        >>> len(dataset), dataset.classes.names
        (4, ('sky', 'road', 'car'))
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; give one of {', '.join(SPLITS)}")
    kind, root = split_spec(spec)
    layouts = [layout for layout in LAYOUTS if kind in (None, layout.kind)]
    parts = [_open_split(root, part, layouts) for part in SPLITS[split]]
    if any(part.id_map != parts[0].id_map for part in parts):
        raise ValueError(f"{root}: the labels of {' and '.join(SPLITS[split])} are named differently; name them alike")
    dataset = SegmentationDataset(
        files=[pair for part in parts for pair in part.files],
        classes=parts[0].classes,
        id_map=parts[0].id_map,
        transform=transform,
        seed=seed,
        unpaired=[path for part in parts for path in part.unpaired],
        class_mix=class_mix,
        names=[name for part in parts for name in part.names],
    )
    dataset.left_out = [path for part in parts for path in part.left_out]
    return dataset


def add_dataset(dataset: SegmentationDataset, spec: str, split: str) -> None:
    """Add the images of another data set to one: those of the same split and path take the place of what is there.

    So the full-size files of a part of a data set are preferred where there are any. Of a split such as ``"trainval"``
    the parts that the other data set has are added.

    Args:
        dataset: What to add to, not yet cached.
        spec: As for ``open_dataset``.
        split: As for ``open_dataset``.

    Raises:
        ValueError: Other classes, other values in the labels, a name that may stand for an image in another folder,
            and what ``open_dataset`` refuses.
    """
    root = split_spec(spec)[1]
    there = [part for part in SPLITS[split] if any(layout.folders(root, part)[0].is_dir() for layout in LAYOUTS)]
    for part in there or SPLITS[split]:
        other = open_dataset(spec, part)
        if other.classes.names != dataset.classes.names or other.id_map != dataset.id_map:
            raise ValueError(f"{spec} has other classes, or other values in its labels, than the data it is added to")
        files, added = (dict(zip(d.names, d.files, strict=True)) for d in (dataset, other))
        new, old = added.keys() - files.keys(), files.keys() - added.keys()
        for name, flat in _same_ending(new, old) or _same_ending(old, new):
            raise ValueError(f"{spec} is added to other images, and of {name} and {flat} each has one: is it the same "
                             "image? Lay both out alike, or rename one")
        files.update(added)
        dataset.names, dataset.files = list(files), list(files.values())
        dataset.unpaired += other.unpaired
        dataset.left_out += other.left_out


def add_teacher_labels(dataset: SegmentationDataset, folder: str | os.PathLike) -> None:
    """Give a data set a second label map for its images: what a teacher, another network, says of them.

    A sample's label is then (2, H, W): its own map and the teacher's. An image without a file in the folder gets a map
    that is ignored as a whole. A map of another size is resized (nearest).

    Args:
        dataset: What to add to, with all of its images and not yet cached.
        folder: Label files as those of the data set, ``SPLIT/NAME.png`` for the image ``NAME``, 255 where the
            teacher isn't sure.

    Raises:
        ValueError: There is no file for any of the images.
    """
    folder = Path(folder).expanduser()
    found = _by_name(folder, visible_files(folder, (".png",))) if folder.is_dir() else {}
    dataset.teacher_labels = [found.get(name) for name in dataset.names]
    if not any(dataset.teacher_labels):
        raise ValueError(f"{folder} has no label map of a teacher for any of the {len(dataset)} images: for "
                         f"{dataset.files[0][0]} it should have {dataset.names[0]}.png")


def dataset_classes(spec: str) -> ClassInfo:
    """Names and colours of a data set's classes, without a look at its images.

    Args:
        spec: ``"kind:DIR"`` as for ``open_dataset``. Of a ``folder`` its ``dataset.yaml`` is read, of others nothing.

    Raises:
        ValueError: The kind is unknown, or ``dataset.yaml`` is missing or wrong.
    """
    kind, root = split_spec(spec)
    if kind is None:
        raise ValueError(f"data is {spec!r}; write KIND:DIR with KIND one of {', '.join(KINDS)}")
    return _meanings(kind, root)[0]


def split_spec(spec: str) -> tuple[str | None, Path]:
    """The kind, None if there is none, and the folder of ``KIND:DIR``."""
    kind, _, folder = spec.partition(":")
    return (kind, Path(folder).expanduser()) if kind in KINDS else (None, Path(spec).expanduser())


def with_kind(spec: str) -> str:
    """``KIND:DIR`` for ``DIR``, whose kind is found out from the folders in it; as it is if they don't tell."""
    kind, root = split_spec(spec)
    found = (layout.kind for layout in LAYOUTS if any(layout.has(root, part) for part in PARTS))
    return next((f"{kind}:{spec}" for kind in found), spec) if kind is None else spec


def same_data(spec: str, other: str) -> bool:
    """Whether two ``KIND:DIR`` are the same data: of ``folder`` in one place, of a named data set anywhere."""
    (kind, root), (other_kind, other_root) = split_spec(spec), split_spec(other)
    return kind == other_kind and (kind not in (None, "folder") or root.resolve() == other_root.resolve())


def default_split(data: str) -> str:
    """The split of a data set ``KIND:DIR`` to evaluate on unless told otherwise."""
    return "test" if data.startswith("camvid:") else "val"


def _open_split(root: Path, split: str, layouts: Sequence[Layout]) -> SegmentationDataset:
    layout = next((layout for layout in layouts if layout.has(root, split)), None)
    if layout is None:
        if not root.is_dir():
            raise ValueError(f"{root} is not a folder; write KIND:DIR with KIND one of {', '.join(KINDS)}, or DIR")
        other = next((layout for layout in layouts if any(layout.has(root, part) for part in PARTS)), None)
        if other is not None:
            missing = [str(folder) for folder in other.folders(root, split) if not folder.is_dir()]
            raise ValueError(f"{root} has no split '{split}': there is no {' and no '.join(missing)}")
        looked = ", ".join(f"{layout.images} + {layout.labels} ({layout.kind})" for layout in layouts)
        raise ValueError(f"{root} has no known layout; looked for {looked.format(split=split)}. Write KIND:DIR with "
                         f"KIND one of {', '.join(KINDS)}, or DIR")
    classes, id_maps = _meanings(layout.kind, root)
    image_dir, label_dir = layout.folders(root, split)
    found = visible_files(image_dir)
    images = _by_name(image_dir, (path for path in found if path.suffix.lower() in IMAGE_SUFFIXES))
    if not images:
        raise ValueError(f"no images ({', '.join(IMAGE_SUFFIXES)}) in {image_dir}")
    keys = [name.partition(layout.ending)[0] if layout.ending else name for name in images]
    maps = visible_files(label_dir, IMAGE_SUFFIXES)
    labels = _by_name(label_dir, (path for path in maps if path.suffix.lower() == ".png"))
    others = {_name(path, label_dir): path for path in maps}
    suffix = next((suffix for suffix in id_maps if any(key + suffix in labels for key in keys)), list(id_maps)[-1])
    # a label that is missing stands in the pairs by the name it should have
    files = [(image, labels.get(key + suffix) or others.get(key + suffix, label_dir / f"{key}{suffix}.png"))
             for key, image in zip(keys, images.values(), strict=True)]
    paired = {label for _, label in files}
    dataset = SegmentationDataset(
        files, classes, id_maps[suffix], names=[f"{split}/{name}" for name in images],
        unpaired=[path for name, path in labels.items() if name.endswith(suffix) and path not in paired])
    dataset.left_out = [path for path in found if path.suffix.lower() not in IMAGE_SUFFIXES]
    return dataset


def _meanings(kind: str, root: Path) -> tuple[ClassInfo, dict[str, IdMap]]:
    """The classes, and for each ending of label names what the values in the file mean; preferred endings first."""
    if kind == "folder":
        classes, id_map = _read_yaml(root / "dataset.yaml")
        return classes, {"": id_map}
    if kind == "camvid":
        id_map = {**_identity(CAMVID), len(CAMVID.names): IGNORE_INDEX}
        return CAMVID, {"_L": id_map, "": id_map}
    train_ids = _identity(CITYSCAPES)
    ids = {c.id: c.train_id for c in torchvision_datasets.Cityscapes.classes if c.id >= 0}
    if kind == "cityscapes":
        return CITYSCAPES, {"_gtFine_labelIds": ids}
    return CITYSCAPES, {"_trainIds": train_ids, "_labelTrainIds": train_ids, "_labelIds": ids, "": train_ids}


def _identity(classes: ClassInfo) -> IdMap:
    return {i: i for i in range(len(classes.names))}


def _same_ending(names: Iterable[str], others: Container[str]) -> list[tuple[str, str]]:
    """Names ``SPLIT/FOLDER/NAME`` and the ``SPLIT/NAME`` among the others that may mean the same image."""
    split = [(name, *name.split("/")) for name in names]
    shorter = [(name, "/".join((first, *rest[i:]))) for name, first, *rest in split for i in range(1, len(rest))]
    return [(name, short) for name, short in shorter if short in others]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _by_name(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Files by their path in a folder without the suffix; ValueError if two have the same name but for the suffix."""
    found: dict[str, Path] = {}
    for path in files:
        name = _name(path, folder)
        if name in found:
            raise ValueError(f"{found[name]} and {path.name} have the same name: which one belongs to its mask?")
        found[name] = path
    return found


def _read_yaml(path: Path) -> tuple[ClassInfo, IdMap]:
    """Classes and id map of a ``folder`` data set."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; it needs at least a line like: classes: [road, car]")
    try:
        return _parse(parse_yaml(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _parse(content: Any) -> tuple[ClassInfo, IdMap]:
    types = {"classes": list, "palette": list, "ignore_index": int, "id_map": dict}
    for key, value in content.items() if isinstance(content, dict) else [("content", content)]:
        if not isinstance(value, types.get(key, ())) or isinstance(value, bool):
            raise ValueError(f"{key} is {short(value)}; known are classes: [name, ...], palette: [[r, g, b], ...], "
                             "ignore_index: number and id_map: {value: id}")
    odd = [name for name in content.get("classes", ()) if isinstance(name, bool) or not isinstance(name, (str, int))]
    if odd:
        raise ValueError(f"{short(odd[0])} among the classes is no name: YAML reads no, yes, on, off and null as "
                         "values; write it in quotes")
    names = tuple(map(str, content.get("classes", ())))
    for name in names:
        if not name.strip() or not name.isprintable() or "|" in name:
            raise ValueError(f"{short(name)} among the classes is no name: it must fit into a table, without | and "
                             "line breaks")
    if len(names) == 1:
        raise ValueError(f"there is one class, {names[0]}: a network chooses between two or more, so name the rest as "
                         f"well, as in classes: [background, {names[0]}]")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"classes are named twice: {', '.join(twice)}")
    colours = content.get("palette", default_palette(len(names)))
    for colour in colours:
        if not isinstance(colour, (list, tuple)) or len(colour) != 3 or not all(map(_is_byte, colour)):
            raise ValueError(f"{short(colour)} in the palette is no colour; three numbers 0-255 are needed, as in "
                             "[128, 64, 0]")
    classes = ClassInfo(names, tuple(map(tuple, colours)))
    id_map, ignored = content.get("id_map", _identity(classes)), content.get("ignore_index", IGNORE_INDEX)
    if "ignore_index" not in content and IGNORE_INDEX in id_map:
        ignored = None  # 255 is a class, or named as ignored
    if ignored is not None and id_map.get(ignored, IGNORE_INDEX) != IGNORE_INDEX:
        raise ValueError(f"ignore_index {ignored} stands for class id {id_map[ignored]} as well; "
                         "give an id_map without it")
    id_map = id_map if ignored is None else {**id_map, ignored: IGNORE_INDEX}
    _id_table(id_map, len(names))  # says what is wrong with it, if anything
    return classes, id_map


def _is_byte(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and value in range(256)


def _id_table(id_map: IdMap, num_classes: int) -> np.ndarray:
    """The id map as 256 class ids, ``UNKNOWN`` for values that it doesn't list."""
    if not 1 < num_classes <= UNKNOWN:
        raise ValueError(f"{num_classes} classes; 2 to {UNKNOWN} are possible")
    table = np.full(256, UNKNOWN, np.uint8)
    table[IGNORE_INDEX] = IGNORE_INDEX
    for value, class_id in id_map.items():
        if not _is_byte(value) or not _is_byte(class_id) or class_id not in (*range(num_classes), IGNORE_INDEX):
            raise ValueError(f"id_map has {short(value)}: {short(class_id)}; values are 0-255, ids 0-{num_classes - 1} "
                             f"or {IGNORE_INDEX}")
        table[value] = class_id
    return table


def read_image(path: Path) -> Tensor:
    """Read an image as prediction does, to uint8 (3, H, W); channels are last in memory, for a fast resize.

    Raises:
        RuntimeError: The file can't be decoded.
    """
    try:
        image = read_rgb(path)
    except (OSError, ValueError) as error:  # which name the file
        raise RuntimeError(str(error)) from error
    return image if image.dtype == torch.uint8 else (255 * image).round().byte()


def read_label(path: Path) -> np.ndarray:
    """Decode a label file to its raw values, uint8 (H, W).

    Raises:
        ValueError: The file is no PNG, has colours, or values above 255.
        RuntimeError: The file can't be decoded.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: masks must be PNGs, other formats may change the numbers in them")
    try:
        values = read_values(path)
    except PILLOW_ERRORS as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise RuntimeError(f"{path}: can't be read ({error})") from error
    if values.max(initial=0) > 255:
        raise ValueError(f"{path}: a label with the value {values.max()}; 0 to 255 are possible")
    return values.astype(np.uint8)


def ranges(values: Sequence[int]) -> str:
    """Ascending integers in short: ``[0, 1, 2, 7]`` -> ``"0-2, 7"``."""
    starts = [value for value in values if value - 1 not in values]
    ends = [value for value in values if value + 1 not in values]
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in zip(starts, ends, strict=True))
