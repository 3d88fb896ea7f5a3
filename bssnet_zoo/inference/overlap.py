"""Work that threads do beside the one who needs it."""
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["ahead", "behind", "newest"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], number: int = 2) -> Iterator[Result]:
    """Results of a function in the order of the items; a thread takes the items and is at most ``number`` ahead.

    What the function or the items raise is raised here, in its turn.
    """
    iterator = iter(items)

    def step() -> list[Result]:
        for item in iterator:
            return [function(item)]
        return []

    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[list[Result]]] = deque(pool.submit(step) for _ in range(number))
        try:
            while result := pending.popleft().result():
                pending.append(pool.submit(step))
                yield result[0]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def behind(function: Callable[..., object], number: int = 4) -> Iterator[Callable[..., None]]:
    """A function that has a thread call ``function``, in order; it waits while ``number`` calls are to be made.

    All calls are made when the block ends. What one raises is raised by a later one, or at the end, unless the block
    raises something itself.
    """
    with ThreadPoolExecutor(1) as pool:
        pending: deque[Future[object]] = deque()

        def call(*args: Any) -> None:
            pending.append(pool.submit(function, *args))
            if len(pending) > number:
                pending.popleft().result()

        try:
            yield call
        except BaseException:  # Ctrl-C, say, which an error of a call must not hide
            wait(pending)
            raise
        for result in pending:
            result.result()


def newest(items: Iterable[Item], drop: Callable[[], object]) -> Iterator[Item]:
    """Items of a source that doesn't wait: a thread takes each as it comes, and the last one is given out.

    Args:
        items: The source. What it raises is raised here, after the items before it.
        drop: Called for each item that a newer one replaced.
    """
    changed, waiting, errors = threading.Condition(), deque[Item](), list[Exception]()
    ended = left = False

    def take() -> None:
        nonlocal ended
        try:
            for item in items:
                with changed:
                    if left:
                        return
                    if waiting:
                        waiting.clear()
                        drop()
                    waiting.append(item)
                    changed.notify()
        except Exception as error:
            errors.append(error)
        finally:
            with changed:
                ended = True
                changed.notify()

    threading.Thread(target=take, daemon=True).start()  # a silent camera doesn't keep the process alive
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or ended)
                if not waiting:
                    break
                item = waiting.popleft()
            yield item
        if errors:
            raise errors[0]
    finally:
        left = True
