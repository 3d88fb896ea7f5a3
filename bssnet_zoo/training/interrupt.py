"""Ctrl-C that ends a run where it can be resumed."""
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["ENDS", "StopRequest"]

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None

ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
SIGNALS = [signal.SIGINT, *ENDS]


class StopRequest:
    """Within its block, Ctrl-C, SIGTERM and a terminal that goes away set ``requested`` and nothing else.

    The loop looks at it.

    Again after two seconds, the signal does what it usually does. (Sooner it may be the same one: a terminal sends
    Ctrl-C to each process, and torchrun passes it on to its processes once more.)
    """

    def __init__(self) -> None:
        self.requested = False
        self.time = 0.
        self.previous: dict[int, Handler] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self.previous = {number: signal.signal(number, self._handle) or signal.SIG_DFL for number in SIGNALS
                             if signal.getsignal(number) is not signal.SIG_IGN or number == signal.SIGINT}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self.time > 2:
            signal.signal(number, self.previous[number])
            signal.raise_signal(number)
        elif not self.requested:
            self.requested, self.time = True, time.monotonic()
