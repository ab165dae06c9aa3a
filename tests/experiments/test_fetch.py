"""Fetching packages, with stand-ins for apt-get and dpkg-deb."""

import os
import zipfile

import pytest

from experiments.free_audio import fetch

APT_GET = """#!/bin/sh
[ "$2" = khangman ] && { echo "E: Unable to locate package khangman" >&2; exit 100; }
echo "$2" >> "$CALLS"
touch "$2_1.0_all.deb"
"""
DPKG_DEB = """#!/bin/sh
mkdir -p "$3/usr/share/game/Sounds" "$3/usr/share/doc/game"
touch "$3/usr/share/game/Sounds/BANG.OGG" "$3/usr/share/game/level.txt" "$3/usr/share/doc/game/copyright"
touch "$3/usr/share/game/Sounds/bang.opus" # not read when the clips of the shipped weights were chosen
ln -s BANG.OGG "$3/usr/share/game/Sounds/again.ogg"
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """A file with the names of the downloaded packages."""
    for name, script in (("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def test_audio_and_licence_are_kept_and_nothing_is_fetched_twice(calls, tmp_path):
    for _ in range(2):
        fetch.main([str(tmp_path / "audio"), "bambam", "overgod-data"])
    assert calls.read_text().split() == ["bambam", "overgod-data"]
    assert sorted(path.name for path in (tmp_path / "audio").iterdir()) == ["bambam", "overgod-data"]
    assert sorted(
        path.relative_to(tmp_path / "audio/bambam").as_posix()
        for path in (tmp_path / "audio/bambam").rglob("*")
        if path.is_file()
    ) == ["usr/share/doc/game/copyright", "usr/share/game/Sounds/BANG.OGG"]


def test_a_version_and_other_kinds_of_files_can_be_asked_for(calls, tmp_path):
    fetch.fetch("bambam", tmp_path, "1.0-2", {".txt"})
    assert calls.read_text().split() == ["bambam=1.0-2"]
    assert sorted(path.name for path in (tmp_path / "bambam").rglob("*") if path.is_file()) == [
        "copyright",
        "level.txt",
    ]


def test_failing_packages_are_reported_and_leave_nothing(calls, tmp_path):
    with pytest.raises(SystemExit, match="khangman: E: Unable to locate package khangman"):
        fetch.main([str(tmp_path / "audio"), "khangman", "bambam"])
    assert [path.name for path in (tmp_path / "audio").iterdir()] == ["bambam"]
    with pytest.raises(SystemExit, match="not in the table of packages: hydrogen-drumkits"):
        fetch.main([str(tmp_path / "audio"), "hydrogen-drumkits"])


def test_two_fetches_into_one_folder_keep_the_first(calls, tmp_path, monkeypatch):
    unpack, out = fetch._run, tmp_path / "audio"

    def other_fetch_ends_first(command, folder):
        unpack(command, folder)
        if command[0] == "dpkg-deb":
            (out / "bambam").mkdir()
            (out / "bambam" / "copyright").write_text("of the other fetch")

    monkeypatch.setattr(fetch, "_run", other_fetch_ends_first)
    fetch.main([str(out), "bambam"])
    assert [path.name for path in out.iterdir()] == ["bambam"]
    assert [path.name for path in (out / "bambam").iterdir()] == ["copyright"]


def test_another_table_replaces_the_own_one_and_more_recordings_are_kept(calls, tmp_path, monkeypatch):
    table = tmp_path / "more.csv"
    table.write_text("package,kinds,split,hours,licence\ngame-data,effects,train,0.1,CC0\n")
    unpack = fetch._run

    def with_archive(command, folder):
        unpack(command, folder)
        if command[0] == "dpkg-deb":
            with zipfile.ZipFile(folder / "all/usr/share/game/data.PK3", "w") as file:
                file.writestr("sound/bell.ogg", b"bell")
                file.writestr("../../outside.wav", b"outside")
                file.writestr("maps/one.bsp", b"map")
            (folder / "all/usr/share/game/levels.zip").write_bytes(b"not an archive")

    monkeypatch.setattr(fetch, "_run", with_archive)
    fetch.main([str(tmp_path / "audio"), "--packages", str(table)])
    assert calls.read_text().split() == ["game-data"]
    files = {p.relative_to(tmp_path / "audio").as_posix() for p in (tmp_path / "audio").rglob("*") if p.is_file()}
    assert files == {
        "game-data/usr/share/doc/game/copyright",
        "game-data/usr/share/game/Sounds/BANG.OGG",
        "game-data/usr/share/game/Sounds/bang.opus",
        "game-data/usr/share/game/data.PK3.unpacked/sound/bell.ogg",
        "game-data/usr/share/game/data.PK3.unpacked/outside.wav",
    }
    assert not (tmp_path / "outside.wav").exists()

    own = fetch.TABLE
    fetch.main([str(tmp_path / "both"), "bambam", "game-data", "--packages", str(own), "--packages", str(table)])
    kept = {p.name for p in (tmp_path / "both/bambam").rglob("*") if p.is_file()}
    assert kept == {"copyright", "BANG.OGG"}  # as when the shipped weights were made
    assert (tmp_path / "both/game-data/usr/share/game/Sounds/bang.opus").exists()
    with pytest.raises(SystemExit, match="not in the table of packages: bambam"):
        fetch.main([str(tmp_path / "audio"), "bambam", "--packages", str(table)])
    with pytest.raises(SystemExit, match="nowhere.csv"):
        fetch.main([str(tmp_path / "audio"), "--packages", "nowhere.csv"])
