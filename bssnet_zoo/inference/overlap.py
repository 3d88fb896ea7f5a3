"""Work that a thread does ahead of the one who needs it."""
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

__all__ = ["ahead"]

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
