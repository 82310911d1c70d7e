"""Which files of a folder are meant, and a word about the others."""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from backbones.common.errors import UserError

logger = logging.getLogger(__name__)


def visible_files(folder: Path) -> list[Path]:
    """All files in a folder and below it, sorted; none that is hidden or in a hidden folder.

    A dot begins what programs keep for themselves: `.ipynb_checkpoints`, a Mac's `._a.jpg`. Links
    to folders are not followed; a warning counts them.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot read this folder: {error.strerror}") from error

    found: list[Path] = []
    links: list[str] = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = filter(is_visible, folders)
        inner = (os.path.join(place, name) for name in folders)
        links += filter(os.path.islink, inner)
        found += [Path(place, name) for name in filter(is_visible, names)]
    if links:
        what = "links to folders, which are not followed: put the folders themselves there"
        logger.warning("%s: %s: %d, first %s", folder, what, len(links), min(links))
    return sorted(found)


def files_below(folder: Path) -> Iterator[Path]:
    """The visible files in a folder and deeper, as far as it may be read."""
    for place, _, names in os.walk(folder):
        yield from (Path(place, name) for name in filter(is_visible, names))


def files_in(folder: Path, suffixes: Collection[str], where: str | Path) -> list[Path]:
    """The files of a folder with one of some suffixes, sorted, none that is hidden or deeper; what
    else it holds is counted in a warning, see `with_suffix`. Raises as `visible_files`."""
    try:
        found = [entry for entry in sorted(folder.iterdir()) if is_visible(entry.name)]
    except OSError as error:
        raise UserError(f"{where}: cannot read this folder: {error.strerror}") from error
    files = [entry for entry in found if not entry.is_dir()]
    return with_suffix(files, suffixes, where, len(found) - len(files))


def is_visible(name: str) -> bool:
    """Whether a file or folder is not hidden, as those are whose names begin with a dot."""
    return not name.startswith(".")


def one_form(name: str) -> str:
    """A name as it is compared: a Mac writes an umlaut as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def with_suffix(
    paths: Iterable[Path], suffixes: Collection[str], where: str | Path, folders: int = 0
) -> list[Path]:
    """The paths with one of some lower-case suffixes; one warning counts the others, and `folders`
    that were not looked into."""
    found, others = [], Counter[str]()
    for path in paths:
        if path.suffix.lower() in suffixes:
            found.append(path)
        else:
            others[path.suffix or "none"] += 1
    parts = []
    if others:
        kinds = ", ".join(sorted(others)[:8])
        parts.append(f"left out for their suffix: {others.total()} ({kinds})")
    if folders:
        parts.append(
            f"folders not looked into: {folders} (of infer: name them, a pattern: a/**/*.*, or "
            "--recursive; in Python give a list, as of Path(FOLDER).rglob('*.jpg'))"
        )
    if parts:
        logger.warning("%s: %s", where, "; ".join(parts))
    return found
