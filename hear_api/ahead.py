"""Work that others do while the model runs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from itertools import islice


def run_ahead(pool: Executor, function: Callable, calls: Iterable[tuple], ahead: int) -> Iterator:
    """`function(*call)` for every call, in order, with at most `ahead` calls begun but not yet taken.

    The first ones begin at once. What a call raises is raised in its turn; those begun after it are cancelled then.
    """
    calls = iter(calls)
    begun = deque(pool.submit(function, *call) for call in islice(calls, ahead))

    def begin_next() -> None:
        begun.extend(pool.submit(function, *call) for call in islice(calls, 1))

    return _results(begun, begin_next)


def _results(begun: deque[Future], begin_next: Callable) -> Iterator:
    try:
        while begun:
            result = begun.popleft().result()
            begin_next()
            yield result
    finally:
        for future in begun:
            future.cancel()
