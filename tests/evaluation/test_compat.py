import random
import subprocess
import sys

import pytest

from audio_mamba.external_sources import compat
from tests.conftest import ROOT
from tests.evaluation.conftest import environment


def test_stand_ins_are_removed_after_the_kit_is_imported():
    """In a separate process, since this one may have imported the kit already."""
    code = (
        "import sys\nfrom external_sources.compat import stand_ins\n"
        "with stand_ins():\n    from heareval.embeddings import runner\n    assert runner.tf.Module\n"
        "real = [name for name in ('tensorflow', 'pkg_resources') if name in sys.modules\n"
        "        and not getattr(sys.modules[name], '__file__', None)]\n"
        "assert not real, real\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(), check=True, timeout=120)


@pytest.fixture
def filters(monkeypatch):
    """dcase_util's own filter and the faster one."""
    with compat.stand_ins():
        from dcase_util.containers import ListDictContainer
    import importlib.util

    from audio_mamba.external_sources import predictions  # noqa: F401 - patches, so the original must be found elsewhere

    spec = importlib.util.find_spec("dcase_util.containers.containers")
    with compat.stand_ins():
        fresh = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(fresh)
    return fresh.ListDictContainer.filter, ListDictContainer.filter


def test_faster_event_filter_equals_the_original(filters):
    from dcase_util.containers import MetaDataContainer

    original, faster = filters
    assert original is not faster
    rng = random.Random(0)
    events = []
    for _ in range(300):
        event = {
            "file": rng.choice(["a.wav", "b.wav"]),
            "event_label": rng.choice(["low", "mid", "high"]),
            "event_onset": rng.random(),
            "event_offset": 1 + rng.random(),
        }
        if rng.random() < 0.2:
            del event["event_label"]
        if rng.random() < 0.2:
            event["Scene Label"] = rng.choice(["park", "bus"])
        events.append(event)
    container = MetaDataContainer(events)
    for conditions in (
        {"filename": "a.wav"},
        {"event_label": "low"},
        {"event_label": ["low", "mid"]},
        {"scene_label": "bus"},
        {"FileName": "a.wav"},
        {"filename": "b.wav", "event_label": "high"},
        {"FileName": "a.wav", "case_insensitive_fields": False},
        {},
    ):
        expected = list(original(container, **conditions))
        assert list(faster(container, **conditions)) == expected
        assert expected, conditions
    copies = faster(container, filename="a.wav")
    copies[0]["event_label"] = "changed"
    assert "changed" not in [event.get("event_label") for event in container]
