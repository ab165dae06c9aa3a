"""Who trains, validates and tests: folds that are dealt, given folds, named splits."""

import numpy as np
import pytest

from audio_mamba.data.folds import (
    FoldError,
    deal,
    file_names,
    file_numbers,
    find_fold,
    fold_names,
    joined,
    split_by_fold,
    split_by_name,
)


def test_every_fold_has_its_share_of_each_label_and_the_order_does_not_matter():
    names = [f"{label}/{number}.wav" for label in "abc" for number in range(25)]
    labels = [(name[0],) for name in names]
    folds = deal(names, labels)
    for label in "abc":
        assert [folds[i] for i in range(75) if labels[i] == (label,)].count("fold2") == 5
    backwards = deal(names[::-1], labels[::-1])
    assert backwards[::-1] == folds
    assert deal(names, labels, names) == folds


def test_a_group_is_in_one_fold():
    names = [f"speaker{speaker}_{take}" for speaker in range(20) for take in range(4)]
    groups = [name.split("_")[0] for name in names]
    folds = deal(names, [("a",)] * 80, groups)
    assert len(set(zip(groups, folds))) == 20
    assert {folds.count(fold) for fold in set(folds)} == {16}


def test_a_clip_of_several_labels_counts_for_its_rarest():
    names = [f"{number}.wav" for number in range(200)]
    folds = deal(names, [("always", "rare") if number % 10 == 0 else ("always",) for number in range(200)])
    assert sorted(folds[::10]) == [f"fold{number // 4}" for number in range(20)]


def test_digits_that_are_no_numbers_are_part_of_a_name():
    assert fold_names(["2²", "10", "1²", "1"]) == ["1", "1²", "2²", "10"]


def test_fold_k_tests_and_the_next_validates():
    folds = ["10", "1", "2", "10", "3", "1"]
    assert fold_names(folds) == ["1", "2", "3", "10"]
    split = split_by_fold(folds, "3")
    assert [part.tolist() for part in split] == [[1, 2, 5], [0, 3], [4]]
    last = split_by_fold(folds, "10")
    assert last.valid.tolist() == [1, 5] and last.test.tolist() == [0, 3]
    with pytest.raises(FoldError, match="2 folds; at least 3"):
        split_by_fold(["1", "2"], "1")


def test_folds_by_name_and_number():
    names = ["fold00", "fold01", "fold10"]
    assert [find_fold(names, text) for text in ("fold01", "1", "0", "10")] == ["fold01", "fold01", "fold00", "fold10"]
    with pytest.raises(FoldError, match="no fold '2'; there are fold00, fold01, fold10"):
        find_fold(names, "2")


def test_named_splits():
    folds = ["train", "test", "val", "train"]
    assert fold_names(folds) == []
    assert [part.tolist() for part in split_by_name(folds)] == [[0, 3], [2], [1]]


@pytest.mark.parametrize("other", ["unused", "1", ""])
def test_named_splits_and_others_are_not_mixed(other):
    """As four folds, clips for the test would train."""
    with pytest.raises(FoldError, match=f"^{other!r} is not the name of a split, but .* are; name either"):
        fold_names(["train", "val", "Test", other, "train"])


def test_keys_name_their_files():
    assert file_numbers(["00000012_00000_dog", "00000012_00001_dog"]) == [12, 12]
    with pytest.raises(FoldError, match="sample abc does not say"):
        file_numbers(["abc"])
    with pytest.raises(FoldError, match="sample 0000001² does not say"):
        file_numbers(["0000001²"])


def test_samples_of_one_file_in_archives_of_several_channels():
    keys = ["00000012_00000_dog", "00000012_00001_dog", "00000012_ch1_00000_dog", "00000012_00000_cat", "00000012"]
    assert file_names(keys) == ["00000012_dog"] * 3 + ["00000012_cat", "00000012"]


def test_groups_that_share_a_file_are_one():
    groups = joined(["a", "b", "c", "d", "e", "a", "c"], ["1", "2", "3", "2", "5", "6", "6"])
    assert len({groups[i] for i in (0, 2, 5, 6)}) == len({groups[i] for i in (1, 3)}) == 1
    assert len(set(groups)) == 3


def test_no_clip_is_in_two_parts():
    rng = np.random.default_rng(0)
    folds = rng.choice(["a", "b", "c", "d"], 100).tolist()
    for name in "abcd":
        split = split_by_fold(folds, name)
        assert sorted(np.concatenate(split).tolist()) == list(range(100))
