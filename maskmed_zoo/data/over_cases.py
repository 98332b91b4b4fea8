"""The same for every case of a data set, side by side in threads, and counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

from maskmed_zoo.data.case import Case

Progress = Callable[[int, int], None]
"""Called with how many cases are done, and how many there are."""
Result = TypeVar("Result")


def over_cases(
    cases: Sequence[Case], do: Callable[[Case], Result], *, workers: int, progress: Progress | None = None
) -> list[Result]:
    """What `do` gives for each of the cases, in their order, in `workers` threads (0: in this one).

    What it raises is raised when the cases that have begun are done; those that have not are left out then.
    """
    if workers == 0:
        results: list[Result] = []
        for count, case in enumerate(cases, 1):
            results.append(do(case))
            if progress is not None:
                progress(count, len(cases))
        return results
    with ThreadPoolExecutor(workers) as pool:  # BLAS, SciPy and zlib work outside the interpreter lock
        tasks = [pool.submit(do, case) for case in cases]
        try:
            for count, task in enumerate(as_completed(tasks), 1):
                task.result()
                if progress is not None:
                    progress(count, len(cases))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [task.result() for task in tasks]
