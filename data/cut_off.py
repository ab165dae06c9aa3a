"""How a file of audio shows that its end is missing, where libsndfile reads on as if it were whole."""

import os
import re
from pathlib import Path

import soundfile

# What libsndfile notes about the samples of a wav or aiff file that is shorter than its header says.
SAMPLE_BYTES = re.compile(r"^(?:data| SSND) : (\d+) \(should be (\d+)\)", re.MULTILINE)
BYTES_UNKNOWN = 0x7EFFF000  # programs that write to a pipe put about this much or more for a length they do not know
OGG_PAGE_BYTES = 65307  # at most
OGG_HEADER_BYTES = 27  # of a page; the last of them counts the bytes that follow, whose sum is the rest


def cut_off(file: soundfile.SoundFile, path: str | Path) -> str | None:
    """How an open file shows that its end is missing, where reading it would not; None if it shows nothing."""
    notes = file.extra_info
    if found := SAMPLE_BYTES.search(notes):
        promised, there = map(int, found.groups())
        if there < promised < BYTES_UNKNOWN:
            return f"{there} of {promised} bytes of samples are there"
    if file.format != "OGG":
        return None
    # Some complete files lack the mark of the end; only where it is lacking a rest after the last whole page is a torn
    # one, which may be empty space.
    unmarked = "Last page lacks an end-of-stream bit" in notes and "Junk after the last page" in notes
    return "its last page is torn" if unmarked or _last_page_is_torn(path) else None


def _last_page_is_torn(path: str | Path) -> bool:
    """Whether an Ogg file, of Vorbis, Opus or FLAC, ends before its last page does."""
    with open(path, "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - OGG_PAGE_BYTES))
        tail = file.read()
    start = tail.rfind(b"OggS\0")
    if start < 0:
        return False
    page = tail[start:]
    if len(page) < OGG_HEADER_BYTES:
        return True
    counts = page[OGG_HEADER_BYTES : OGG_HEADER_BYTES + page[OGG_HEADER_BYTES - 1]]
    return len(page) < OGG_HEADER_BYTES + page[OGG_HEADER_BYTES - 1] + sum(counts)
