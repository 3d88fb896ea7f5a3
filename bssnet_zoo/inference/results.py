"""Names of the files that are written for a source, and what they say of it."""
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from . import video_writer
from .video_reader import is_stream

__all__ = [
    "IMAGE_ENDINGS", "RESULT_ENDINGS", "VIDEO_ENDINGS", "ResultNames", "check_free", "is_result", "origin", "png_info",
    "result_paths", "unfinished", "written_from"]

IMAGE_ENDINGS = {"labels": "_labels.png", "overlay": "_overlay.png"}
VIDEO_ENDINGS = {"overlay": "_overlay.mp4", "labels": "_labels.mkv"}
RESULT_ENDINGS = (*IMAGE_ENDINGS.values(), *VIDEO_ENDINGS.values())
Names = defaultdict[str, set[str]]
SOFTWARE, SOURCE, NAME = "Software", "Source", "bssnet-zoo"


def result_paths(base: Path, outputs: Iterable[str], endings: Mapping[str, str]) -> dict[str, Path]:
    """``BASE_labels.png`` and the like, by kind."""
    return {kind: base.with_name(base.name + endings[kind]) for kind in outputs}


def unfinished(base: Path) -> Path:
    """A file that says that the video's files, whole and playable, end where the run was interrupted."""
    return base.with_name(f".{base.name}.unfinished")


def origin(source: str | os.PathLike[str], result: Path) -> str:
    """What a result says of its source: the way to it from the result's folder, or nothing of a stream."""
    if is_stream(source):
        return ""
    path = os.path.realpath(source)
    try:
        path = os.path.relpath(path, os.path.realpath(result.parent))
    except ValueError:  # another drive
        pass
    return path.replace(os.sep, "/").encode("utf-8", "backslashreplace").decode()


def png_info(source: str | os.PathLike[str], result: Path) -> PngInfo:
    """What a PNG says of itself."""
    info = PngInfo()
    info.add_text(SOFTWARE, NAME)
    info.add_text(SOURCE, origin(source, result))
    return info


def written_from(path: Path) -> str | None:
    """What a result says of its source; None for a file of others."""
    if path.suffix != ".png":
        try:
            return video_writer.written_from(path)
        except RuntimeError:  # without PyAV its name has to do
            return ""
    try:
        with Image.open(path) as picture:
            return str(picture.info.get(SOURCE, "")) if picture.info.get(SOFTWARE) == NAME else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def is_result(path: Path) -> bool:
    """Whether ``predict`` wrote a file, which is no input then."""
    return path.name.endswith(RESULT_ENDINGS) and written_from(path) is not None


def check_free(path: Path, inputs: Iterable[str | os.PathLike[str]], overwrite: bool) -> None:
    """Raises FileExistsError for an input, and for a file that ``predict`` did not write unless ``overwrite``."""
    if not path.exists():
        return
    if any(os.path.exists(source) and os.path.samefile(source, path) for source in inputs):
        raise FileExistsError(f"{path} is an input and would be overwritten: choose another --out")
    if not overwrite and written_from(path) is None:
        raise FileExistsError(f"{path} is there and was not written by {NAME} predict: choose another --out, or "
                              "--overwrite")


class ResultNames:
    """Gives each source a name for its results that no other source has, in this run or in an earlier one.

    Args:
        out: The folder of all results.
        keep_recordings: A stream's name may have no results: what was recorded can't be had again.
    """

    def __init__(self, out: Path, keep_recordings: bool):
        self.out, self.keep_recordings = out, keep_recordings
        self._taken = set[str]()
        self._next = dict[str, int]()
        self._there = dict[Path, tuple[Names, Names]]()

    def choose(self, source: str | Path, base: Path) -> Path:
        """``base``, or the first of ``base-2``, ``base-3`` that is free; a source keeps the name that it has."""
        (sources_of, names_of), own = self._results((self.out / base).parent), origin(source, self.out / base)
        before = re.compile(re.escape(base.name.casefold()) + r"(-\d+)?")
        for name in sorted(filter(before.fullmatch, names_of.get(own, ()) if own else ())):
            path = base.with_name(base.name + name[len(base.name.casefold()):])
            if self._take(path):
                return path
        key = str(base).casefold()  # on many disks a.png and A.png are one file
        number = self._next.get(key, 1)
        while True:
            path = base if number == 1 else base.with_name(f"{base.name}-{number}")
            sources = sources_of.get(path.name.casefold(), set())
            number += 1
            if not (sources if is_stream(source) and self.keep_recordings else sources - {"", own}):
                if self._take(path):
                    self._next[key] = number
                    return path

    def _take(self, path: Path) -> bool:
        key = str(path).casefold()
        free = key not in self._taken
        self._taken.add(key)
        return free

    def _results(self, folder: Path) -> tuple[Names, Names]:
        """What the results in a folder are from, by their names, and their names by what they are from."""
        if folder not in self._there:
            sources_of, names_of = self._there[folder] = Names(set), Names(set)
            for path in folder.iterdir() if folder.is_dir() else ():
                ending = next((ending for ending in RESULT_ENDINGS if path.name.endswith(ending)), None)
                source = written_from(path) if ending else None
                if ending and source is not None:
                    name = path.name.removesuffix(ending).casefold()
                    sources_of[name].add(source)
                    names_of[source].add(name)
        return self._there[folder]
