"""Outlines of a mask: traced by OpenCV, exact to the pixel."""
import numpy as np

__all__ = ["Region", "coco_segmentation", "polygon_area", "regions", "require_opencv"]

Region = list[np.ndarray]


def require_opencv() -> None:
    """Raises RuntimeError, which names the extra, if OpenCV is missing."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"polygons need OpenCV ({error}): the extra [polygons], as in pip install '.[polygons]'"
                           ) from None


def regions(mask: np.ndarray, min_area: float = 0) -> list[Region]:
    """The connected regions of a mask (corners connect), each as its polygons: the outline, then those of its holes.

    Args:
        mask: (H, W), bool.
        min_area: In pixels: smaller regions are left out, smaller holes are filled.

    Returns:
        Polygons (N, 2), int32: x and y of corners of pixels, not of their centres, so that areas are numbers of pixels.

    Raises:
        RuntimeError: OpenCV is missing.
    """
    require_opencv()
    import cv2

    # OpenCV gives the border pixels of a region. Where a pixel is four, those are on the two sides of each of its edges
    doubled = mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    found: dict[int, Region] = {}
    if not contours:
        return []
    parents = hierarchy[0, :, 3]
    for i in sorted(range(len(contours)), key=lambda i: parents[i] >= 0):  # outlines before holes
        polygon = (contours[i][:, 0] + 1) // 2
        polygon = polygon[(polygon != np.roll(polygon, 1, axis=0)).any(axis=1)]
        found.setdefault(i if parents[i] < 0 else parents[i], []).append(polygon)
    large = []
    for outline, *holes in found.values():
        areas = [polygon_area(hole) for hole in holes]
        if polygon_area(outline) - sum(areas) >= min_area:
            large.append([outline, *(hole for hole, area in zip(holes, areas, strict=True) if area >= min_area)])
    return large


def polygon_area(polygon: np.ndarray) -> float:
    """The area of a polygon (N, 2) in pixels."""
    x, y = polygon.T.astype(np.float64)
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)


def coco_segmentation(region: Region) -> list[list[int]]:
    """A region as COCO's polygons, which know no holes: one polygon that goes to each hole, around it, and back."""
    outline, *holes = region
    if not holes:
        return [outline.ravel().tolist()]
    start = outline[:1]
    cuts = [part for hole in holes for part in (hole, hole[:1], start)]
    return [np.concatenate([outline, start, *cuts[:-1]]).ravel().tolist()]
