"""A mark for torch.compile that needs no import of it."""
from collections.abc import Callable


def constant_when_traced(function: Callable) -> Callable:
    """What `torch.compiler.assume_constant_result` does: the function runs at tracing, and its result is a constant.

    That one imports the whole compiler, a second and a half at the start of every command.
    """
    function._dynamo_marked_constant = True
    return function
