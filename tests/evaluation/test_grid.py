import json

import pytest
import torch

from audio_mamba.external_sources.grid import PUBLISHED, number_of_points, parse_grid, torch_objects


def test_published_grid_has_two_points_and_torch_objects():
    grid = torch_objects(parse_grid("published"))
    assert number_of_points(grid) == 2
    assert grid["dropout"] == [0.1, 0.25] and grid["lr"] == [1e-4] and grid["hidden_layers"] == [1]
    assert grid["hidden_norm"] == [torch.nn.BatchNorm1d] and grid["optim"] == [torch.optim.Adam]
    assert grid["initialization"] == [torch.nn.init.xavier_normal_]


def test_published_grid_has_every_key_that_the_kit_reads():
    from audio_mamba.external_sources.predictions import task_predictions

    assert set(PUBLISHED) == set(task_predictions.PARAM_GRID)


def test_json_replaces_values_of_the_published_grid(tmp_path):
    changes = {"max_epochs": [5, 7], "hidden_norm": ["LayerNorm"]}
    (tmp_path / "grid.json").write_text(json.dumps(changes))
    for text in (json.dumps(changes), str(tmp_path / "grid.json")):
        assert parse_grid(text) == PUBLISHED | changes
    assert number_of_points(parse_grid(json.dumps(changes))) == 4


def test_the_grid_for_small_tasks_changes_the_steps_alone():
    small = parse_grid("small")
    assert {key for key in PUBLISHED if small[key] != PUBLISHED[key]} == {"lr", "batch_size"}
    assert max(small["lr"]) > max(PUBLISHED["lr"]) and max(small["batch_size"]) < min(PUBLISHED["batch_size"])
    assert number_of_points(small) == 2


def test_grids_of_the_kit_are_accepted_by_name():
    assert parse_grid("fast") == "fast"


@pytest.mark.parametrize(
    "text, sentence",
    [
        ('{"max_epoch": [5]}', "unknown key 'max_epoch'; did you mean max_epochs?"),
        ('{"max_epochs": 5}', "max_epochs must be a list"),
        ('{"max_epochs": []}', "max_epochs must be a list"),
        ('{"optim": ["Adom"]}', "torch.optim has no Adom"),
        ("quick", "GRID: 'quick' is neither published, small, default"),
        ('{"lr": [', "GRID"),
    ],
)
def test_mistakes_get_one_sentence(text, sentence):
    with pytest.raises(ValueError, match="GRID") as error:
        parse_grid(text)
    assert sentence in str(error.value)
