import logging
import sys
import types

import matplotlib.image
import numpy as np
import pytest

from audio_mamba.training.trackers import TensorBoard, Trackers, Wandb


@pytest.fixture
def picture(tmp_path):
    """A PNG, red on the left and blue on the right."""
    pixels = np.zeros((4, 6, 3))
    pixels[:, :3, 0] = pixels[:, 3:, 2] = 1
    matplotlib.image.imsave(tmp_path / "picture.png", pixels)
    return tmp_path / "picture.png"


class TestTensorBoard:
    def read(self, workdir):
        """What the program itself would show."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(workdir / "tensorboard"))
        events.Reload()
        return events

    def test_numbers_and_pictures_arrive_at_their_steps(self, tmp_path, picture):
        tracker = TensorBoard(tmp_path)
        tracker.log({"train_loss": 0.75, "lr": 0.5}, step=10)
        tracker.image("reconstructions", picture, step=10)
        events = self.read(tmp_path)  # before the end: a run is watched while it lasts
        tracker.close()
        assert set(events.Tags()["scalars"]) == {"train_loss", "lr"}
        assert [(event.step, event.value) for event in events.Scalars("train_loss")] == [(10, 0.75)]
        (image,) = events.Images("reconstructions")
        (tmp_path / "back.png").write_bytes(image.encoded_image_string)
        np.testing.assert_array_equal(
            matplotlib.image.imread(tmp_path / "back.png")[..., :3], matplotlib.image.imread(picture)[..., :3]
        )

    def test_going_on_hides_what_is_trained_again(self, tmp_path):
        first = TensorBoard(tmp_path)
        for step in (1, 2, 3):
            first.log({"train_loss": 1.0}, step)
        first.close()
        second = TensorBoard(tmp_path, first_step=2)
        second.log({"train_loss": 5.0}, 3)
        second.close()
        assert [(event.step, event.value) for event in self.read(tmp_path).Scalars("train_loss")] == [
            (1, 1.0),
            (2, 1.0),
            (3, 5.0),
        ]


class TestWandb:
    @pytest.fixture
    def started(self, monkeypatch):
        """Replaces wandb; holds the arguments of init, and what login and init do."""
        calls = types.SimpleNamespace(login=lambda prompt: False, start=lambda mode: None, init=None)
        fake = types.ModuleType("wandb")
        fake.errors = types.SimpleNamespace(Error=ConnectionError)
        fake.Image = None
        fake.login = lambda prompt: calls.login(prompt)

        def init(**arguments):
            calls.start(arguments["mode"])
            calls.init = arguments
            return types.SimpleNamespace(
                dir=str(arguments["dir"] / "wandb" / "offline-run-1" / "files"), define_metric=lambda *_, **__: None
            )

        fake.init = init
        monkeypatch.setitem(sys.modules, "wandb", fake)
        monkeypatch.delenv("WANDB_MODE", raising=False)
        return calls

    def test_with_an_account_it_is_online(self, tmp_path, started):
        started.login = lambda prompt: True
        Wandb("project", tmp_path, {"a": 1})
        run_id = started.init.pop("id")
        assert started.init == {
            "project": "project",
            "name": tmp_path.name,
            "dir": tmp_path,
            "config": {"a": 1},
            "mode": "online",
            "resume": "allow",
            "allow_val_change": True,
        }
        for goes_on in (True, True, False):
            Wandb("project", tmp_path, {}, resumed=goes_on)
            assert (started.init["id"] == run_id) == goes_on

    def test_without_a_key_it_is_offline_and_says_where(self, tmp_path, started, caplog):
        with caplog.at_level(logging.INFO, logger="audio_mamba.training.trackers"):
            Wandb("project", tmp_path, {})
        assert started.init["mode"] == "offline" and "id" not in started.init  # wandb cannot go on with it offline
        assert str(tmp_path / "wandb" / "offline-run-1") in caplog.text

    @pytest.mark.parametrize("when", ["login", "start"])
    def test_an_unreachable_server_does_not_stop_the_run(self, tmp_path, started, caplog, when):
        def refuse(argument=None, prompt=None):
            if argument != "offline":
                raise ConnectionError("no route")

        started.login = lambda prompt: True
        setattr(started, when, refuse)
        Wandb("project", tmp_path, {})
        assert started.init["mode"] == "offline"
        assert "no route" in caplog.text

    def test_the_environment_goes_first(self, tmp_path, started, monkeypatch):
        started.login = None  # must not be asked
        monkeypatch.setenv("WANDB_MODE", "disabled")
        Wandb("project", tmp_path, {})
        assert started.init["mode"] == "disabled"

    def test_the_real_one_logs_offline(self, tmp_path, monkeypatch, picture):
        monkeypatch.setenv("WANDB_MODE", "offline")
        tracker = Wandb("project", tmp_path, {"a": (1, 2)})
        tracker.log({"train_loss": 1.0}, step=1)
        tracker.image("reconstructions", picture, step=1)
        tracker.close()
        assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
        assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/reconstructions_*.png"))


class Recorder:
    def __init__(self, fails_in=()):
        self.calls, self.fails_in = [], fails_in

    def __getattr__(self, method):
        def call(*arguments):
            self.calls.append((method, *arguments))
            if method in self.fails_in:
                raise ConnectionResetError("the network is gone")

        return call


def test_all_trackers_get_everything(tmp_path):
    one, two = Recorder(), Recorder()
    trackers = Trackers([one, two])
    trackers.log({"a": 1.0}, 5)
    trackers.image("b", tmp_path / "b.png", 6)
    trackers.close()
    assert one.calls == two.calls == [("log", {"a": 1.0}, 5), ("image", "b", tmp_path / "b.png", 6), ("close",)]


@pytest.mark.parametrize("method", ["log", "image", "close"])
def test_a_failing_tracker_gets_one_warning_and_is_dropped(tmp_path, caplog, method):
    broken, sound = Recorder(fails_in=[method]), Recorder()
    trackers = Trackers([broken, sound])
    for step in (1, 2):
        trackers.log({"a": 1.0}, step)
        trackers.image("b", tmp_path / "b.png", step)
    trackers.close()
    assert [call[0] for call in sound.calls] == ["log", "image", "log", "image", "close"]
    assert [call[0] for call in broken.calls].count(method) == 1 and broken.calls[-1][0] == method
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage() == (
        "Recorder failed; disabled for the rest of this run: ConnectionResetError: the network is gone"
    )
