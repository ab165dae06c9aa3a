"""Work that others do while the model runs."""
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from itertools import islice


def run_ahead(pool: Executor, function: Callable, calls: Iterable[tuple], ahead: int) -> Iterator:
    """`function(*call)` for every call, in order, with at most `ahead` calls begun but not yet taken.

    What a call raises is raised here in its turn; those begun after it are cancelled then.
    """
    calls = iter(calls)
    begun = deque(pool.submit(function, *call) for call in islice(calls, ahead))
    try:
        while begun:
            yield begun.popleft().result()
            begun.extend(pool.submit(function, *call) for call in islice(calls, 1))
    finally:
        for future in begun:
            future.cancel()
