"""Shards from a server on the loopback and from pipes, read from front to back."""

import functools
import gc
import http.server
import itertools
import os
import pickle
import shutil
import sys
import threading
import zlib

import numpy as np
import pytest
import torch

from audio_mamba.data.archives import write_shard
from audio_mamba.data.loader import make_loader, make_remote_loader, set_epoch
from audio_mamba.data.remote import is_remote
from audio_mamba.data.samples import ArchiveError, Sample
from audio_mamba.data.shard_index import index_from_headers
from audio_mamba.front_end import FrontEnd

SHARDS, CLIPS = 6, 20


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    directory = tmp_path_factory.mktemp("archive")
    for shard in range(SHARDS):
        rng = np.random.default_rng(shard)
        write_shard(
            directory / f"shard-{shard}.tar",
            [
                Sample(f"s{shard}c{i:03d}", rng.normal(-6, 3, (30, 80)).astype("float16"), np.array([1]))
                for i in range(CLIPS)
            ],
        )
    return directory


@pytest.fixture(scope="module")
def server(archive):
    if shutil.which("curl") is None:
        pytest.skip("webdataset reads http with curl, which is absent")
    handler = functools.partial(QuietHandler, directory=str(archive))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


make = functools.partial(
    make_remote_loader,
    samples=SHARDS * CLIPS,
    num_frames=12,
    batch_size=5,
    seed=3,
    draw_mask=lambda rng: rng.integers(0, 2, 10).astype(np.float32),
)


def epoch_of(loader, epoch: int) -> list[dict]:
    set_epoch(loader, epoch)
    return list(loader)


def indices(batches: list[dict]) -> list[int]:
    return [index for batch in batches for index in batch["index"].tolist()]


def same(a: list[dict], b: list[dict]) -> bool:
    return len(a) == len(b) and all(torch.equal(x[key], y[key]) for x, y in zip(a, b) for key in x)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_over_http_has_each_sample_once_in_an_order_of_its_own(server, num_workers):
    loader = make([server + "/shard-{0..5}.tar"], num_workers=num_workers)
    first, second = epoch_of(loader, 0), epoch_of(loader, 1)
    assert len(first) == len(loader) == SHARDS * CLIPS // 5
    assert first[0]["spectrogram"].shape == (5, 1, 12, 80) and first[0]["mask"].shape == (5, 10)
    assert len(set(indices(first))) == SHARDS * CLIPS == len(set(indices(second)))
    assert indices(first) != indices(second)
    assert same(epoch_of(make([server + "/shard-{0..5}.tar"], num_workers=num_workers), 0), first)


def test_crops_are_those_of_the_clips(server, archive):
    stored = torch.cat([batch["spectrogram"] for batch in make_loader([archive], num_frames=30, batch_size=1)])
    for batch in make([server + "/shard-{0..5}.tar"], num_frames=30, batch_size=1):
        assert (stored - batch["spectrogram"]).abs().amax((1, 2, 3)).min() < 1e-5


def test_ranks_divide_the_shards_and_make_equal_steps(archive):
    urls = [f"pipe:cat {archive}/shard-{i}.tar" for i in range(SHARDS - 1)]  # 2, 2 and 1 for three ranks
    parts = [epoch_of(make(urls, rank=rank, world_size=3, samples=100), 0) for rank in range(3)]
    assert [len(part) for part in parts] == [100 // 15] * 3
    for a, b in itertools.combinations(parts, 2):
        assert not set(indices(a)) & set(indices(b))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumes_in_mid_epoch_with_the_batches_that_were_left(archive, num_workers):
    urls = [str(archive / f"shard-{i}.tar") for i in range(SHARDS)]
    expected = epoch_of(make(urls, num_workers=num_workers), 2)
    loader = make(urls, num_workers=num_workers)
    set_epoch(loader, 2)
    batches = iter(loader)
    for _ in range(7):
        next(batches)
    state = pickle.loads(pickle.dumps(loader.state_dict()))
    resumed = make(urls, num_workers=num_workers)
    resumed.load_state_dict(state)
    assert same(list(resumed), expected[7:])
    assert same(epoch_of(resumed, 3), epoch_of(make(urls, num_workers=num_workers), 3))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_can_begin_at_any_step(archive, num_workers):
    urls = [str(archive / f"shard-{i}.tar") for i in range(SHARDS)]
    expected = epoch_of(make(urls, num_workers=num_workers), 2)
    loader = make(urls, num_workers=num_workers)
    for step in (7, 2):
        set_epoch(loader, 2, step)
        assert same(list(loader), expected[step:])
    assert same(epoch_of(loader, 2), expected)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_that_is_read_is_not_read_again(archive, tmp_path, num_workers):
    """As in a run that was stopped during validation."""
    urls = [f"pipe:cat {archive}/shard-{i}.tar; echo {i} >> {tmp_path}/read" for i in range(SHARDS)]
    loader = make(urls, num_workers=num_workers)
    set_epoch(loader, 2, len(loader))
    assert list(loader) == [] and not (tmp_path / "read").exists()
    assert len(epoch_of(loader, 3)) == len(loader) and (tmp_path / "read").exists()


def test_too_few_shards_for_the_readers_or_samples_for_a_batch_are_refused(archive):
    with pytest.raises(ValueError, match=r"6 shards are too few for 8 readers \(4 process\(es\) with 2 worker"):
        make([str(archive / "shard-{0..5}.tar")], num_workers=2, world_size=4)
    with pytest.raises(ValueError, match="9 samples do not fill one batch: batch size 5 on 2 .* at least 10"):
        make([str(archive / "shard-{0..5}.tar")], samples=9, world_size=2)


def test_faults_are_named_by_shard_and_key(archive, server, tmp_path, caplog):
    nan = np.full((30, 80), np.nan, np.float32)
    write_shard(
        tmp_path / "ill.tar",
        [Sample("ill7", nan, np.array([1]))]
        + [Sample(f"k{i}", np.random.default_rng(i).normal(size=(30, 80)), np.array([1])) for i in range(150)],
    )
    loader = make([f"pipe:cat {tmp_path}/ill.tar"], samples=151)
    assert len(epoch_of(loader, 0)) == 30
    assert len(caplog.records) == 1 and "ill.tar, sample ill7: the spectrogram holds NaN or Inf" in caplog.text
    with pytest.raises(ArchiveError, match="ill.tar, sample ill7"):
        epoch_of(make([f"pipe:cat {tmp_path}/ill.tar"], samples=151, strict=True), 0)
    size = (archive / "shard-0.tar").stat().st_size
    for length in (700, 100000, size // 2, size // 1024 * 512, size - 10240):
        cut = f"pipe:head -c {length} {archive}/shard-0.tar"
        with pytest.raises(ArchiveError, match=f"head -c {length} .*shard-0.tar: cannot be read in full as a tar"):
            epoch_of(make([cut], strict=True), 0)
    flipped = bytearray((archive / "shard-0.tar").read_bytes())
    flipped[int(index_from_headers(archive / "shard-0.tar").places["data_offset"][9]) - 400] ^= 1
    (tmp_path / "flipped.tar").write_bytes(flipped)
    with pytest.raises(ArchiveError, match="flipped.tar: cannot be read in full as a tar file .damaged between byte"):
        epoch_of(make([str(tmp_path / "flipped.tar")], strict=True), 0)
    with pytest.raises(ArchiveError, match="none of 1 remote shards can be read.*absent.tar"):
        epoch_of(make([server + "/absent.tar"]), 0)


def test_an_endless_search_for_a_good_sample_is_stopped(archive):
    loader = make([str(archive / "shard-{0..5}.tar")], front_end=FrontEnd(n_mels=64))
    for read in (loader.dataset.first, functools.partial(epoch_of, loader)):
        with pytest.raises(ArchiveError, match="21 remote samples in a row cannot be used; .*tar, sample s.*but 64"):
            read(1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_lost_shard_counts_with_all_its_samples(archive, tmp_path, num_workers):
    there = [str(archive / f"shard-{i}.tar") for i in range(SHARDS - 2)]
    absent = [str(tmp_path / f"absent-{i}.tar") for i in range(2)]
    with pytest.raises(ArchiveError, match="20 of 120 samples cannot be used, more than 1%: 20 in .*absent-.[.]tar"):
        epoch_of(make(there + absent, num_workers=num_workers), 0)


def test_a_lost_shard_of_less_than_one_percent_of_the_epoch_stops_no_rank(tmp_path):
    """Of 150 shards each of two ranks reads 75, of which one is more than 1%."""
    for number in range(149):
        write_shard(
            tmp_path / f"{number}.tar",
            [Sample(f"s{number}c{clip}", np.eye(30, 80, dtype="float16"), np.array([1])) for clip in range(2)],
        )
    urls = [str(tmp_path / f"{number}.tar") for number in range(150)]
    for rank in (0, 1):
        loader = make_remote_loader(urls, samples=300, num_frames=20, batch_size=10, rank=rank, world_size=2)
        assert sum(1 for _ in loader) == 15
    (tmp_path / "0.tar").unlink()
    (tmp_path / "1.tar").unlink()
    with pytest.raises(ArchiveError, match="more than 1%"):
        for rank in (0, 1):
            list(make_remote_loader(urls, samples=300, num_frames=20, batch_size=10, rank=rank, world_size=2))


def test_a_shard_that_is_cut_off_counts_with_the_samples_after_the_cut(archive):
    urls = [str(archive / f"shard-{i}.tar") for i in range(SHARDS - 1)]
    places = index_from_headers(archive / "shard-5.tar").places
    cut = f"pipe:head -c {int(places['data_offset'][13]) + 9} {archive}/shard-5.tar"  # 13 of 20 are whole
    with pytest.raises(ArchiveError, match="7 of 120 samples cannot be used, more than 1%: 7 in pipe:head"):
        epoch_of(make(urls + [cut]), 0)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_epoch_counts_what_it_lost_before(archive, tmp_path, num_workers):
    shutil.copytree(archive, tmp_path / "shards")
    urls = [str(tmp_path / "shards" / f"shard-{i}.tar") for i in range(SHARDS)]
    loader = make(urls, num_workers=num_workers)
    set_epoch(loader, 2)
    batches = iter(loader)
    for _ in range(7):
        next(batches)
    resumed, begun_later = make(urls, num_workers=num_workers), make(urls, num_workers=num_workers)
    resumed.load_state_dict(loader.state_dict())
    set_epoch(begun_later, 2, 7)
    (tmp_path / "shards" / "shard-4.tar").unlink()
    for going_on in (resumed, begun_later):
        with pytest.raises(ArchiveError, match="20 of 120 samples cannot be used, more than 1%: 20 in .*shard-4.tar"):
            list(going_on)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_an_epoch_tries_twice_is_lost_once(tmp_path, caplog, num_workers):
    samples = 102  # one more than are there, so that a reader begins its shards again
    for i in range(1, samples):
        write_shard(tmp_path / f"{i}.tar", [Sample("k", np.random.default_rng(i).normal(size=(30, 80)), np.array([1]))])
    urls = [str(tmp_path / f"{i}.tar") for i in range(samples)]
    loader = make(urls, samples=samples, batch_size=1, num_workers=num_workers)
    for epoch in range(2):
        assert len(epoch_of(loader, epoch)) == samples
    assert len(caplog.records) == 1 and f"{tmp_path}/0.tar: cannot be read" in caplog.text


@pytest.fixture
def complaining(tmp_path):
    """Two shards of 3 MB from commands that fail when they are cut short, and a function that lists their processes."""
    for shard in range(2):
        write_shard(
            tmp_path / f"{shard}.tar",
            [Sample(f"s{i}", np.random.default_rng(i).normal(size=(100, 80)), np.array([1])) for i in range(48)],
        )
    urls = [f"pipe:echo $$ >> {tmp_path}/started; cat {tmp_path}/{shard}.tar || exit 1" for shard in range(2)]
    return urls, lambda: [int(line) for line in (tmp_path / "started").read_text().split()]


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("how", ["end of an epoch", "iterator dropped", "clips to show"])
def test_a_reader_that_stops_early_ends_its_command_quietly_and_begins_no_other(complaining, monkeypatch, how, strict):
    unraisable = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    urls, started = complaining
    loader = make(urls, samples=10, strict=strict)
    loader.dataset.shuffle_buffer = 0
    gc.disable()  # an end must not wait for the collector
    try:
        match how:
            case "end of an epoch":
                assert len(epoch_of(loader, 0)) == 2
            case "iterator dropped":
                next(iter(loader))
                del loader
                gc.collect()
            case "clips to show":
                loader.dataset.first(3)
    finally:
        gc.enable()
    assert len(started()) == 1 and all(map(gone, started()))
    gc.collect()
    assert len(started()) == 1 and not unraisable


def test_addresses_are_distinguished_from_folders_and_the_first_samples_can_be_shown(archive):
    assert all(map(is_remote, ["http://h/a.tar", "pipe:cat a.tar", "s3://b/a.tar", "file:/a.tar"]))
    assert not any(map(is_remote, ["archives", "/data/a", "./a:b", "C:\\data"]))
    urls = [str(archive / f"shard-{i}.tar") for i in range(SHARDS)]
    shown = make(urls, rank=1, world_size=2).dataset.first(3)
    assert shown["spectrogram"].shape == (3, 1, 12, 80)
    assert torch.equal(shown["spectrogram"], make(urls).dataset.first(3)["spectrogram"])
    firsts = [zlib.crc32(f"{urls[0]} s0c{i:03d}".encode()) for i in range(3)]
    assert shown["index"].tolist() == firsts
    assert torch.equal(shown["index"], make(urls, samples=2, batch_size=1).dataset.first(3)["index"])


def test_a_sample_is_named_by_its_checksum(archive):
    urls = [str(archive / f"shard-{i}.tar") for i in range(SHARDS)]
    loader = make(urls)
    index = epoch_of(loader, 0)[0]["index"][0].item()
    names = [f"{url} s{shard}c{i:03d}" for shard, url in enumerate(urls) for i in range(CLIPS)]
    assert [zlib.crc32(name.encode()) for name in names].count(index) == 1
    assert loader.dataset.name(index) == f"the sample whose 'URL KEY' has the CRC-32 {index}"


def test_a_folder_with_a_colon_in_its_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run:1").mkdir()
    assert not is_remote("run:1") and is_remote("run:2")
    with pytest.raises(ValueError, match="run:2/a.tar is not a folder, and the URL scheme run: is not"):
        make(["run:2/a.tar"])


def test_the_first_good_samples_are_shown_if_the_first_shards_are_bad(archive, tmp_path):
    (tmp_path / "empty.tar").touch()
    bad, good = [str(tmp_path / "absent.tar"), str(tmp_path / "empty.tar")], [str(archive / "shard-{0..5}.tar")]
    shown, expected = make(bad + good).dataset.first(3), make(good).dataset.first(3)
    assert all(torch.equal(shown[key], expected[key]) for key in expected)
    with pytest.raises(ArchiveError, match="absent.tar: cannot be read"):
        make(bad + good, strict=True).dataset.first(3)
    with pytest.raises(ArchiveError, match="none of 2 remote shards can be read; the last problem: .*empty.tar"):
        make(bad).dataset.first(3)
