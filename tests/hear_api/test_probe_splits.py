"""Which clips the probe trains on, validates with and tests."""

from pathlib import Path

import pytest

from audio_mamba.hear_api.probe.clips import Clips, ProbeError


def clips_in(splits, labels="ab"):
    labels = [(labels[number % len(labels)],) for number in range(len(splits))]
    names = [str(number) for number in range(len(splits))]
    return Clips(Path("source"), names, None, labels, ["a", "b"], splits)


def test_splits_are_known_by_their_usual_names():
    """As finetune knows them; else a validation split of another name would make three folds of them."""
    for train, valid, test in (("train", "val", "test"), ("Training", "validation", "eval")):
        (part,) = clips_in([train] * 4 + [valid] * 3 + [test] * 2).rounds()
        assert [each.tolist() for each in (part.train, part.valid, part.test)] == [[0, 1, 2, 3], [4, 5, 6], [7, 8]]
    with pytest.raises(ProbeError, match="the splits are dev, test; train, valid and test are needed"):
        clips_in(["dev"] * 4 + ["test"] * 4).rounds()


def test_a_split_of_an_unknown_name_is_refused():
    with pytest.raises(ProbeError, match="^source: 'unused' is not the name of a split, but test, train, val are;"):
        clips_in(["train", "train", "val", "val", "test", "test", "unused", "unused"]).rounds()


def test_the_next_of_ten_folds_validates():
    splits = [str(1 + number // 2) for number in range(20)]
    for part in clips_in(splits).rounds():
        tested, validated = int(splits[part.test[0]]), int(splits[part.valid[0]])
        assert validated == tested % 10 + 1


def test_a_fold_for_each_label_is_refused_by_name():
    with pytest.raises(ProbeError, match="source: to test 'x', all training clips have the label 'a'"):
        clips_in(["x", "y", "z", "y"] * 3).rounds()  # y validates, and z has no b
