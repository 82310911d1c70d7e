"""Whether a video file is all there, by the sizes that its container declares.

Durations and numbers of frames cannot tell: a frame rate may vary, a recorder may drop frames.
"""

import os
from pathlib import Path
from typing import BinaryIO

from backbones.common.regular_files import open_file

VIDEO_SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"

_SLACK = 8
"""Bytes that some programs count too many."""


def missing_bytes(path: str | Path) -> int:
    """How many bytes a Matroska, WebM, MP4, MOV or AVI file has lost at its end.

    0 where it is whole, of another kind, or was streamed and does not say.

    Raises:
        OSError: it cannot be read.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        end = 0
        if head.startswith(_EBML):
            end = _end_of_segment(file)
        elif head[4:8] == b"ftyp" or head[:4] == b"RIFF":
            end = _end_of_boxes(file, size, "little" if head[:4] == b"RIFF" else "big")
    return end - size if end > size + _SLACK else 0


def _end_of_segment(file: BinaryIO) -> int:
    """Where a Matroska's one segment ends; 0 where that is not said."""
    file.seek(len(_EBML))
    file.seek(_read_size(file) or 0, os.SEEK_CUR)
    if file.read(len(_SEGMENT)) != _SEGMENT:
        return 0
    size = _read_size(file)
    return 0 if size is None else file.tell() + size


def _read_size(file: BinaryIO) -> int | None:
    """A number of 1 to 8 bytes, whose leading zeros say how many; all ones is "unknown"."""
    first = file.read(1)
    if first in (b"", b"\0"):
        return None
    bits = 7 * (9 - first[0].bit_length())
    value = int.from_bytes(first + file.read(bits // 7 - 1), "big") % (1 << bits)
    return None if value == (1 << bits) - 1 else value


def _end_of_boxes(file: BinaryIO, file_size: int, order: str) -> int:
    """Where the last of the boxes of an MP4 or AVI ends, one after the other from the beginning."""
    end = 0
    while end + 8 <= file_size:
        file.seek(end)
        head = file.read(16)
        if order == "little":
            kind, size = head[:4], 8 + int.from_bytes(head[4:8], "little")
            size += size % 2
        else:
            kind, size = head[4:8], int.from_bytes(head[:4], "big")
            if size == 1:
                size = int.from_bytes(head[8:16], "big")
        # What others append is no box; one without a size lasts to the end.
        if size < 8 or not kind.isalnum():
            break
        end += size
    return end
