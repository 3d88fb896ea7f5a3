"""Class names and palettes of the data sets."""
from dataclasses import dataclass
from typing import Any

__all__ = ["CAMVID", "CITYSCAPES", "IGNORE_INDEX", "ClassInfo", "default_palette", "hex_colour"]

IGNORE_INDEX = 255  # the label of what is no class

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class ClassInfo:
    """Names and 8-bit RGB colours of the classes of a data set, in the order of their ids.

    ``class_weights`` are those that the published recipes weight the cross-entropy with.

    Example:
        >>> ClassInfo(names=("road", "sky"), palette=((128, 64, 128), (70, 130, 180))).hex_palette
        ('#804080', '#4682b4')
    """

    names: tuple[str, ...]
    palette: tuple[RGB, ...]
    class_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} class names, but {len(self.palette)} colours")
        if self.class_weights is not None and len(self.names) != len(self.class_weights):
            raise ValueError(f"{len(self.names)} class names, but {len(self.class_weights)} class weights")

    @property
    def config(self) -> dict[str, Any]:
        """Names and colours in the words of timm's pretrained configs."""
        return {"label_names": self.names,
                "label_descriptions": dict(zip(self.names, self.hex_palette, strict=True))}

    @property
    def hex_palette(self) -> tuple[str, ...]:
        """The colours as "#rrggbb"."""
        return tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in self.palette)


def hex_colour(text: str) -> RGB:
    """An 8-bit RGB colour from "#rrggbb"."""
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def default_palette(num_classes: int) -> tuple[RGB, ...]:
    """Distinct colours for any number of classes: the PASCAL VOC colour map, without its black background entry.

    Example:
        >>> default_palette(2)
        ((128, 0, 0), (0, 128, 0))
    """
    def colour(index: int) -> RGB:
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        red, green, blue = channels
        return red, green, blue

    return tuple(colour(i + 1) for i in range(num_classes))


CAMVID = ClassInfo(
    names=("sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
    class_weights=(1.779, 1.362, 4.616, 1.131, 2.906, 2.158, 7.213, 4.064, 3.227, 4.845, 4.871),
)
CITYSCAPES = ClassInfo(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0),
        (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
    class_weights=(
        0.8373, 0.918, 0.866, 1.0345, 1.0166, 0.9969, 0.9754, 1.0489, 0.8786, 1.0023, 0.9539, 0.9843, 1.1116, 0.9037,
        1.0865, 1.0955, 1.0865, 1.1529, 1.0507),
)
