"""Numbered tasks in processes of this machine, any of which may be killed at any time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from threading import Thread
from typing import Any

import torch
from paperhooks import DataError

__all__ = ["done_by_workers"]


def done_by_workers(work: Callable[[int], object], numbers: Sequence[int], workers: int) -> Iterator[int]:
    """Call ``work`` for every number; yields each when it is done.

    A worker that is killed takes those beside it along, and the tasks that they had begun are done again by new ones;
    so tasks must not mind. Workers end where this process is gone. One worker is this process itself.

    :param work: can be pickled. :param workers: processes, started anew, among which cores and GPUs are dealt out.
    :raises DataError: workers were killed twice in a row without having done anything. What ``work`` raises goes on,
        as an interrupt does; then the other workers end at once, in the middle of what they are at.
    """
    if workers == 1:
        for number in numbers:
            work(number)
            yield number
        return
    left, idle = list(numbers), 0
    while left:
        done = set[int]()
        for number in _shared(work, left, workers):
            done.add(number)
            yield number
        left, idle = [number for number in left if number not in done], 0 if done else idle + 1
        if left and idle > 1:
            raise DataError(
                f"workers were killed twice without having done anything, with unit {left[0]} among those begun; give "
                "them more memory or begin fewer workers"
            )


def _shared(work: Callable[[int], object], numbers: Sequence[int], workers: int) -> Iterator[int]:
    """The same until a worker is gone."""
    context, workers = get_context("spawn"), min(workers, len(numbers))
    over = context.Event()
    with ProcessPoolExecutor(workers, context, _begin, (workers, context.Value("i", 0), over)) as pool:
        tasks = {pool.submit(work, number): number for number in numbers}
        try:
            for task in as_completed(tasks):
                task.result()
                yield tasks[task]
        except BrokenProcessPool:
            return
        except BaseException:
            over.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(workers: int, counter: Any, over: Any) -> None:
    """In a worker: its share of the cores, a GPU of its own, and its end where that of the work has come."""
    Thread(target=_end_with_parent, daemon=True).start()
    Thread(target=_end_after, args=(over,), daemon=True).start()
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def _end_after(over: Any) -> None:
    over.wait()
    os._exit(1)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
