"""Batches that are read while the one before is trained on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Chosen = TypeVar("Chosen")
Batch = TypeVar("Batch")


def read_ahead(load: Callable[[Chosen], Batch], order: Iterable[Chosen], workers: int) -> Iterator[Batch]:
    """`load` of each of `order`, in its order, on so many threads that read up to twice as many batches ahead; 0: none does."""
    if workers == 0:
        for chosen in order:
            yield load(chosen)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="batches") as pool:
        ahead: deque[Future[Batch]] = deque()
        for chosen in order:
            ahead.append(pool.submit(load, chosen))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
