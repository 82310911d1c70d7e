"""Files that `torch.save` wrote."""

import zipfile
from pathlib import Path


def check_whole(path: Path) -> None:
    """Raise an exception unless every part of the file has the digest that was written with it.

    torch writes CRC-32s into its zip files and does not look at them: a flipped bit would be a
    weight like any other.
    """
    with zipfile.ZipFile(path) as archive:
        # What unpacks to more than the file holds was not written by torch, and has no end.
        if sum(part.file_size for part in archive.infolist()) > path.stat().st_size:
            raise zipfile.BadZipFile("it claims more than it holds")
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} does not have the digest it was written with")
