"""The parser of all verbs, and what an error does to the exit status."""
import argparse
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn

from ..training.interrupt import ENDS
from ..version import __version__
from . import bench, convert, data, demo, evaluate, export, predict, publish, train
from . import list as list_

__all__ = ["build_parser", "main"]

_logger = logging.getLogger(__name__)

VERBS = (predict, list_, convert, data, train, evaluate, bench, export, demo, publish)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} ('{self.prog} --help' shows the options)")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="bssnet-zoo", description="BSSNet: real-time semantic segmentation of road scenes.",
        epilog="'bssnet-zoo VERB --help' tells more of each verb.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log what is loaded from where")
    verbs = parser.add_subparsers(required=True, metavar="VERB", title="verbs")
    for verb in VERBS:
        verb.add_parser(verbs)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Returns:
        The exit status: 0; 1 if some input failed; 2 if nothing could be done; 3 for an error that nobody thought of;
        130 after Ctrl-C.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # Python allows handlers nowhere else
    previous = {number: signal.signal(number, _end) for number in ENDS  # so that temporary files are removed
                if in_main_thread and signal.getsignal(number) is not signal.SIG_IGN}
    if isinstance(sys.stdout, io.TextIOWrapper):  # a file's name may have bytes that the terminal's encoding has not
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        args = build_parser().parse_args(argv)
        logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING, format="%(message)s")
        status = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()  # if nobody reads it, we want to know now
        return status
    except BrokenPipeError:  # who reads our output has gone, as `head` does: nobody is there to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        _logger.info("", exc_info=True)
        print(f"bssnet-zoo: error: {_message(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bssnet-zoo: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        _logger.info("", exc_info=True)
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        print(f"bssnet-zoo: error: {reason}. Please report it; 'bssnet-zoo -v' shows the traceback", file=sys.stderr)
        return 3
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler or signal.SIG_DFL)


def _message(error: Exception) -> str:
    text = str(error).rstrip()
    if "\nOriginal Traceback" in text:  # of a process that loads images: torch puts the traceback into the message
        text = text.rpartition("\n")[2].partition(": ")[2]
    return text


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
