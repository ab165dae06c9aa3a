"""Grids of hyper-parameters of the downstream heads: published, for small tasks, the kit's, or the user's."""

import difflib
import json
import math
from pathlib import Path
from typing import Any

# The grid of the paper's experiments; torch classes and functions are given by name.
PUBLISHED: dict[str, list[Any]] = {
    "hidden_layers": [1],
    "hidden_dim": [1024],
    "dropout": [0.1, 0.25],
    "lr": [1e-4],
    "patience": [20],
    "max_epochs": [500],
    "check_val_every_n_epoch": [3],
    "batch_size": [1024],
    "hidden_norm": ["BatchNorm1d"],
    "norm_after_activation": [False],
    "embedding_norm": ["Identity"],
    "initialization": ["xavier_normal_"],
    "optim": ["Adam"],
}
# For tasks with fewer than about a thousand training clips: the published grid gives them one step an epoch at a low
# rate, this one steps of 64 clips at ten times that rate. docs/hear.md says what that changes.
SMALL = PUBLISHED | {"lr": [1e-3], "batch_size": [64]}
NAMED = {"published": PUBLISHED, "small": SMALL}
KIT_GRIDS = ("default", "fast", "faster")


def parse_grid(text: str) -> str | dict[str, list]:
    """The grid that GRID names.

    Args:
        text: `published`, `small` (for small tasks), a grid of the kit (`default`, `fast`, `faster`), a JSON file, or
            JSON: an object whose lists of values replace those of the published grid, for example {"max_epochs": [50]}.

    Returns:
        The name of a grid of the kit, or a whole grid with torch objects by name.

    Raises:
        ValueError: any other text, an unknown key, or a value that is not a list.
    """
    if text in KIT_GRIDS:
        return text
    if text in NAMED:
        return NAMED[text]
    try:
        changes = json.loads(text if text.lstrip().startswith("{") else Path(text).read_bytes())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(
            f"GRID: {text!r} is neither {', '.join([*NAMED, *KIT_GRIDS])}, a readable JSON file nor JSON ({error})"
        ) from None
    if not isinstance(changes, dict):
        raise ValueError(f"GRID: {text!r} must be a JSON object of lists")
    for key, values in changes.items():
        if key not in PUBLISHED:
            nearest = difflib.get_close_matches(key, PUBLISHED, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"accepted are {', '.join(PUBLISHED)}"
            raise ValueError(f"GRID: unknown key {key!r}; {hint}")
        if not isinstance(values, list) or not values:
            raise ValueError(f"GRID: {key} must be a list of values, got {values!r}")
    grid = PUBLISHED | changes
    torch_objects(grid)
    return grid


def torch_objects(grid: dict[str, list]) -> dict[str, list[Any]]:
    """The grid with torch's classes and functions in place of their names, as the kit expects it.

    Raises:
        ValueError: torch has no object of that name.
    """
    import torch

    places: dict[str, Any] = {
        "hidden_norm": torch.nn,
        "embedding_norm": torch.nn,
        "initialization": torch.nn.init,
        "optim": torch.optim,
    }
    for key, place in places.items():
        for name in grid[key]:
            if not callable(getattr(place, str(name), None)):
                raise ValueError(f"GRID: {key}: {place.__name__} has no {name}")
    return grid | {key: [getattr(place, name) for name in grid[key]] for key, place in places.items()}


def number_of_points(grid: dict[str, list]) -> int:
    """How many combinations of values the grid has."""
    return math.prod(map(len, grid.values()))
