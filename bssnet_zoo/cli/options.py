"""What the verbs' options have in common."""
import argparse
import re
from typing import TypeAlias

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def image_size(text: str) -> tuple[int, ...] | str:
    """``720`` is the shorter side, ``720x960`` height and width, in pixels; ``full`` stays as it is."""
    if text == "full":
        return text
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)?", text.lower()):
        raise argparse.ArgumentTypeError(
            f"a size is the shorter side or height x width, as in 720 or 720x960, got '{text}'")
    return tuple(map(int, text.lower().split("x")))


def height_and_width(text: str) -> tuple[int, int]:
    """``720x960``, in pixels."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", text.lower()):
        raise argparse.ArgumentTypeError(f"a height and a width are needed, as in 720x960, got '{text}'")
    height, width = map(int, text.lower().split("x"))
    return height, width
