"""Files that are whole or absent, their hashes, and YAML from strangers."""
import errno
import hashlib
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

__all__ = ["atomic_path", "check_writable", "make_folder", "parse_yaml", "sha256", "visible_files"]

YAML_CHARACTERS = 1 << 20
DEVICES = [Path("/dev"), Path("/dev/fd"), Path("/proc/self/fd")]
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)  # what a write says, and not of which file


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to: renamed to ``path`` at the end, removed if the block fails.

    A file that is replaced passes its mode on, a new one has that of any new file. A link stays, and what it points to
    is replaced. A device or pipe, such as /dev/null or /dev/stdout, is written to itself.

    Raises:
        OSError: The folder can't be made or written to, or the disk is full; the message names ``path``.
    """
    path = Path(path)
    if _is_device(path):
        yield path
        return
    target = Path(os.path.realpath(path))
    stem = target.stem.encode(errors="ignore")[:100].decode(errors="ignore")  # a name may have 255 bytes in all
    temporary = target.with_name(f".{stem}-{secrets.token_hex(4)}{target.suffix[-20:]}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less the umask
        mode = (target if target.exists() else temporary).stat().st_mode
        os.close(handle)
    except OSError as error:
        raise _unwritten(path, error) from error
    try:
        yield temporary
        temporary.chmod(stat.S_IMODE(mode))  # safetensors replaces the file by one that only its owner can read
        temporary.replace(target)
    except SafetensorError as error:  # which says what the system said
        raise OSError(f"{path} can't be written: {error}") from error
    except OSError as error:
        ours = os.fspath(temporary) in map(str, (error.filename, error.filename2))
        if ours or error.filename is None and error.errno in FULL:
            raise _unwritten(path, error) from error
        raise  # of another file
    finally:
        temporary.unlink(missing_ok=True)


def visible_files(
        folder: str | os.PathLike,
        suffixes: Sequence[str] | None = None,
        unreadable: Callable[[OSError], object] | None = None,
) -> list[Path]:
    """Files below a folder, sorted, without hidden ones (of macOS, as ._a.jpg).

    Links to folders are followed, except into a folder that is being searched. A broken link counts as a file, so that
    who reads it says so.

    Args:
        folder: Where to search, to the bottom.
        suffixes: The suffixes that are wanted, in lower case; None for all files.
        unreadable: Called for a folder that can't be listed, which raises otherwise.
    """
    def below(folder: str, above: tuple[str, ...]) -> Iterator[Path]:
        real = os.path.realpath(folder)
        try:
            names = [] if real in above else [name for name in os.listdir(folder) if not name.startswith(".")]
        except OSError as error:
            if unreadable is None:
                raise
            unreadable(error)
            return
        for path in (os.path.join(folder, name) for name in names):
            if os.path.isdir(path):
                yield from below(path, (*above, real))
            elif suffixes is None or os.path.splitext(path)[1].lower() in suffixes:
                if os.path.isfile(path) or not os.path.exists(path):  # no pipe, no device
                    yield Path(path)

    return sorted(below(os.fspath(folder), ()))


def make_folder(folder: Path) -> None:
    """Makes a folder. OSError if that, or a file in it, can't be."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_writable(path: str | os.PathLike) -> None:
    """Raises OSError if `atomic_path` can't make a file of that name: before the work, not after it."""
    path = Path(path)
    if _is_device(path):
        return
    if path.is_dir():
        raise IsADirectoryError(f"{path} can't be written: it is a folder")
    try:
        make_folder(Path(os.path.realpath(path)).parent)
    except OSError as error:
        raise _unwritten(path, error) from error


def _is_device(path: Path) -> bool:
    if path.absolute().parent in DEVICES:  # /dev/stdout may be a file
        return path.exists()
    return path.exists() and not path.is_file() and not path.is_dir()


def _unwritten(path: Path, error: OSError) -> OSError:
    return type(error)(f"{path} can't be written: {error.strerror or error}")


def sha256(path: str | os.PathLike) -> str:
    """The sha256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def parse_yaml(text: str) -> Any:
    """What a YAML text of limited size says, in plain Python objects.

    Raises:
        ValueError: It is no YAML, longer than a mebibyte, nested too deep or uses aliases. The message is one line.
    """
    if len(text) > YAML_CHARACTERS:
        raise ValueError(f"{len(text)} characters are too many")
    try:
        content = yaml.safe_load(text)
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise ValueError("an alias (*name) is not allowed")  # with them a few lines stand for gigabytes
        return content
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None
