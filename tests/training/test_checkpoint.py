import argparse
import os
import pickle
import re
import subprocess
import sys
from collections import OrderedDict

import numpy as np
import pytest
import torch
from ml_collections import ConfigDict
from torch import nn

from audio_mamba import models
from audio_mamba.training import checkpoint
from audio_mamba.training.checkpoint import CheckpointError


@pytest.fixture
def published(golden):
    return golden / "published_layout" / "checkpoints" / "checkpoint-99.pth"


def holds_only_builtins(value) -> bool:
    if type(value) in (dict, list, tuple):
        entries = [*value.keys(), *value.values()] if type(value) is dict else value
        return all(map(holds_only_builtins, entries))
    return value is None or type(value) in (bool, int, float, str)


def test_the_published_checkpoint_loads_with_its_args_as_plain_data(published):
    state = checkpoint.load_checkpoint(published)
    assert state.keys() == {"model", "optimizer", "epoch", "scaler", "args"}
    assert (state["epoch"], state["scaler"]["scale"]) == (99, 65536.0)
    assert holds_only_builtins(state["args"])
    config = state["args"]["config"]
    assert config["model"]["arch"] == "mamba_ssast_tiny"
    assert config["model"]["model_args"]["img_size"] == (200, 80)
    assert config["data"]["train_samples"] == [18988, 1766912, 265408]
    assert state["args"]["precision"] == "float16"
    model = models.mamba_ssast_tiny(depth=2, **config["model"]["model_args"])
    checkpoint.load_model_state(model, state["model"], published)
    torch.testing.assert_close(model.blocks[1].mixer.D, state["model"]["blocks.1.mixer.D"])


def test_args_are_read_without_the_classes_they_were_saved_with(tmp_path):
    """Nested configs become nested dicts, without using argparse or ml_collections."""
    args = argparse.Namespace(config=ConfigDict({"a": {"b": [1, {"c": (2, None)}]}}), workdir="w")
    torch.save({"model": {}, "args": args}, tmp_path / "c.pth")
    assert checkpoint.load_checkpoint(tmp_path / "c.pth")["args"] == {
        "config": {"a": {"b": [1, {"c": (2, None)}]}},
        "workdir": "w",
    }


def test_a_saved_state_loads_unchanged_without_an_allow_list(tmp_path):
    model = nn.Linear(3, 2)
    path = checkpoint.checkpoint_path(tmp_path, 7)
    checkpoint.save_checkpoint(path, model=model.state_dict(), epoch=7, args={"config": {"a": (1, 2)}})
    state = checkpoint.load_checkpoint(path)
    assert torch.equal(state["model"]["weight"], model.weight)
    assert (state["epoch"], state["args"]) == (7, {"config": {"a": (1, 2)}})
    torch.load(path, weights_only=True)


def test_all_that_may_be_saved_can_be_read(tmp_path):
    state = {
        "tensors": OrderedDict(plain=torch.ones(2), parameter=nn.Parameter(torch.zeros(1))),
        "torch": [torch.Size([2]), torch.float16, torch.device("cpu")],
        "builtins": (None, True, 1, 0.5, 1j, "a", b"b", bytearray(b"c"), {"set"}, {3: [()]}),
    }
    checkpoint.save_checkpoint(tmp_path / "c.pth", model={}, **state)
    read = checkpoint.load_checkpoint(tmp_path / "c.pth")
    assert torch.equal(read["tensors"]["plain"], torch.ones(2))
    assert (read["torch"], read["builtins"]) == (state["torch"], state["builtins"])


class Text(str):
    pass


@pytest.mark.parametrize(
    "value, place",
    [
        ({"scale": np.float64(0.5)}, r"objective.scale is np.float64\(0.5\), of <class 'numpy.float64'>"),
        ({"steps": [0, (1, np.int64(2))]}, r"objective.steps\[1\]\[1\] is np.int64\(2\), of"),
        ({"names": {Text("a"): 1}}, "objective.names is 'a', of <class '.*Text'>"),
        (argparse.Namespace(), r"objective is Namespace\(\), of"),
        ({"noise": np.zeros(1)}, r"objective.noise is array\(\[0.\]\), of"),
    ],
)
def test_a_state_that_could_not_be_read_again_is_refused_with_its_place(tmp_path, value, place):
    with pytest.raises(TypeError, match=f"cannot write {tmp_path / 'c.pth'}: {place}"):
        checkpoint.save_checkpoint(tmp_path / "c.pth", model={"weight": torch.ones(1)}, objective=value)
    assert not list(tmp_path.iterdir())
    torch.save({"model": {}, "objective": value}, tmp_path / "c.pth")
    if not isinstance(value, argparse.Namespace):  # read as a dict, for the published checkpoints
        with pytest.raises(CheckpointError, match="it asks for"):
            checkpoint.load_checkpoint(tmp_path / "c.pth")


class Attack:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize(
    "write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value, 2))], ids=["torch.save", "pickle"]
)
def test_a_malicious_file_is_refused_without_running_it(tmp_path, write):
    path, marker = tmp_path / "evil.pth", tmp_path / "was_here"
    write({"model": {}, "args": Attack(marker)}, path)
    with pytest.raises(CheckpointError, match=re.escape(str(path)) + r": it asks for (posix|nt)\.mkdir, which"):
        checkpoint.load_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("data", [b"# a text", b"RIFF....WAVEfmt", pickle.dumps([1], 4), b"{}", b"PK\3\4 no zip"])
def test_a_file_that_is_not_a_checkpoint_is_refused_in_one_line(tmp_path, data):
    (tmp_path / "file.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="file.pth: damaged, or not a checkpoint") as caught:
        checkpoint.load_checkpoint(tmp_path / "file.pth")
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused_by_name(published, tmp_path, kept):
    path = tmp_path / "checkpoint-3.pth"
    data = published.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        checkpoint.load_checkpoint(path)


def test_a_missing_file_or_one_without_weights_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint file at .*absent.pth"):
        checkpoint.load_checkpoint(tmp_path / "absent.pth")
    for content in ([1, 2], {"epoch": 1}, {"model": [1.0]}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match="other.pth .*'model'"):
            checkpoint.load_checkpoint(tmp_path / "other.pth")


def test_the_latest_checkpoint_has_the_highest_epoch(tmp_path):
    assert checkpoint.latest_checkpoint(tmp_path / "absent") is None
    for name in ("checkpoint-9.pth", "checkpoint-10.pth", "checkpoint-11.pth.tmp", "checkpoint-12-old.pth", "x-99.pth"):
        (tmp_path / name).touch()
    assert checkpoint.latest_checkpoint(tmp_path) == (tmp_path / "checkpoint-10.pth", 10)


def test_weights_of_another_architecture_are_refused_with_the_differences():
    model, other = models.ssast_tiny(depth=1), models.mamba_ssast_tiny(depth=1)
    with pytest.raises(CheckpointError, match=r"W.pth holds another architecture: no blocks\.0\.norm1\.weight; .*more"):
        checkpoint.load_model_state(model, other.state_dict(), "W.pth")
    state = model.state_dict()
    state["cls_token"] = torch.zeros(1, 1, 7)
    state["extra"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"unexpected extra; cls_token is \(1, 1, 7\) instead of \(1, 1, 192\)$"):
        checkpoint.load_model_state(model, state, "W.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf_weights_are_refused_by_name(value):
    model = models.ssast_tiny(depth=1)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state["blocks.0.norm1.weight"][3] = value
    with pytest.raises(CheckpointError, match=r"W.pth holds weights that are NaN or Inf, first in blocks"):
        checkpoint.load_model_state(model, state, "W.pth")


def test_every_second_epoch_and_the_last_five_are_saved():
    due = [epoch for epoch in range(100) if checkpoint.is_due(epoch, 100)]
    assert due == [*range(0, 95, 2), 95, 96, 97, 98, 99]
    assert [epoch for epoch in range(3) if checkpoint.is_due(epoch, 3)] == [0, 1, 2]


def test_the_rest_of_a_killed_attempt_makes_room_for_the_next(tmp_path, monkeypatch):
    """It is as large as the checkpoint."""
    rest, seen = tmp_path / "checkpoint-1.pth.01234567.partial", []
    rest.touch()
    monkeypatch.setattr(torch, "save", lambda state, file: seen.append(rest.exists()))
    checkpoint.save_checkpoint(tmp_path / "checkpoint-1.pth", model={})
    assert seen == [False]


FULL_DISK = """
import os, sys
import torch
from audio_mamba.training.checkpoint import load_checkpoint, save_checkpoint
kept, path = sys.argv[1] + "/checkpoint-0.pth", sys.argv[1] + "/checkpoint-1.pth"
save_checkpoint(kept, model={"weight": torch.randn(1000)}, epoch=0)
try:
    save_checkpoint(path, model={"weight": torch.randn(100000)}, epoch=1)
except OSError as error:
    assert str(error).startswith("cannot write " + path + "; 0 MiB are free on its disk"), error
    assert os.listdir(sys.argv[1]) == ["checkpoint-0.pth"]
    load_checkpoint(kept)
else:
    raise AssertionError("there was enough space after all")
"""


def test_a_full_disk_leaves_old_files_intact_and_no_partial_one(tmp_path):
    """On a disk of 200 KiB, which only this test sees."""
    own_mounts = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*own_mounts, "mount", "-t", "tmpfs", "none", str(tmp_path)], capture_output=True).returncode:
        pytest.skip("this machine allows no small disk of one's own (unshare, mount)")
    mount = f"mount -t tmpfs -o size=200k none {tmp_path}"
    done = subprocess.run(
        [*own_mounts, "sh", "-c", f'{mount} && exec "$@"', "sh", sys.executable, "-c", FULL_DISK, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
