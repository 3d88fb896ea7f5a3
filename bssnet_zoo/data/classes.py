"""Class names and palettes of the data sets."""
from dataclasses import dataclass

__all__ = ["CAMVID", "CITYSCAPES", "ClassInfo", "default_palette"]

RGB = tuple[int, int, int]


@dataclass(frozen=True)
class ClassInfo:
    """Names and 8-bit RGB colours of the classes of a data set, in the order of their ids."""

    names: tuple[str, ...]
    palette: tuple[RGB, ...]

    def __post_init__(self):
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} class names, but {len(self.palette)} colours")

    @property
    def hex_palette(self) -> tuple[str, ...]:
        """The colours as "#rrggbb"."""
        return tuple("#{:02x}{:02x}{:02x}".format(*colour) for colour in self.palette)


def default_palette(num_classes: int) -> tuple[RGB, ...]:
    """Distinct colours for any number of classes: the PASCAL VOC colour map, without its black background entry."""
    def colour(index: int) -> RGB:
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (index >> (3 * bit + channel) & 1) << (7 - bit)
        return tuple(channels)

    return tuple(colour(i + 1) for i in range(num_classes))


CAMVID = ClassInfo(
    names=("sky", "building", "pole", "road", "sidewalk", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    palette=(
        (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0), (192, 128, 128),
        (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)
CITYSCAPES = ClassInfo(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation",
        "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
    palette=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153),
        (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0),
        (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32)),
)
