"""Checks of what a config gives to a constructor: its arguments by name, and numbers."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from audio_mamba.schema import argument_names, is_finite, is_whole, suggestion


def check_whole(name: str, value: Any, least: int = 1) -> None:
    """Raise ValueError unless it is a whole number of at least `least`."""
    if not is_whole(value, least):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_not_negative(name: str, value: Any) -> None:
    """Raise ValueError unless it is a finite number of at least 0."""
    if not (is_finite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value!r}")


def check_switch(name: str, value: Any) -> None:
    """Raise ValueError unless it is True or False: a string such as "false" would count as True."""
    if value not in (True, False):
        raise ValueError(f"{name} must be True or False, got {value!r}")


def check_names(section: str, given: Iterable[str], valid: list[str]) -> None:
    """Raise ValueError if one of the given names is not valid; the message suggests the nearest one.

    Args:
        section: of the config, for the message.
        given: the keys of the section.
        valid: the names that it may have.
    """
    for name in given:
        if name not in valid:
            raise ValueError(f"{section}: unexpected keyword argument {name!r}; {suggestion(name, valid)}")


def check_call(section: str, constructor: Callable[..., Any], arguments: Mapping[str, Any], *first: Any) -> None:
    """Raise ValueError unless a constructor can be called with these arguments. What it makes of them is its own.

    Args:
        section: of the config, for the message.
        constructor: a class, or a `functools.partial` of one.
        arguments: by name, from the section.
        first: what comes before them by position.
    """
    check_names(section, arguments, argument_names(constructor)[len(first) :])
    try:
        inspect.signature(constructor).bind(*first, **arguments)
    except TypeError as error:
        raise ValueError(f"{section}: {error}") from error
