"""Files of Pascal VOC's layout: lists of splits, annotations, and the image of each."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from backbones.common.errors import UserError
from backbones.common.images import IMAGE_SUFFIXES
from backbones.common.listing import one_form, visible_files
from backbones.common.regular_files import read_file
from detect.data.paths import refuse_address

logger = logging.getLogger(__name__)


def listed_names(path: Path) -> list[str]:
    """The lines of a split's list that are not empty.

    Raises:
        UserError: it cannot be read; the message names the others.
    """
    try:
        # The mark that some editors put at a file's beginning is no part of it.
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except OSError as error:
        there = ", ".join(sorted(entry.stem for entry in path.parent.glob("*.txt"))) or "none"
        raise UserError(f"{path}: cannot read this split; there are: {there}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: expected text in UTF-8, save it as such: {error}") from error
    return [one_form(line.strip()) for line in lines if line.strip()]


def read_split(path: Path, known: Container[str]) -> list[str]:
    """The annotations in `known` that a split lists, a name a line, in the file's order.

    Names may have spaces. Lists for one class have a flag behind each, -1, 0 or 1.
    """
    entries = listed_names(path)
    # One of them must be no name with a number, such as "IMG 1".
    has_flags = all(re.search(r"\s(-1|0|1)$", entry) for entry in entries) and any(
        re.search(r"\s(-1|\s[01])$", entry) for entry in entries
    )
    names = []
    for entry in entries:
        name = entry if entry in known or not has_flags else without_flag(entry)
        if name not in known:
            refuse_address(name, str(path))
            page = path.parents[2] / "Annotations" / f"{name}.xml"
            raise UserError(
                f"{page}: no such file, split {path.stem} has it: an image without objects has a "
                "file without <object>"
            )
        names.append(name)
    if not names:
        raise UserError(f"{path}: the split is empty: expected image names, one a line")
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UserError(f"{path}: {twice} is listed twice")
    return names


def without_flag(entry: str) -> str:
    """A line of a list for one class, without what says whether the image has it."""
    return entry.rsplit(maxsplit=1)[0]


def by_name(folder: Path, suffixes: Collection[str] | None = None) -> dict[str, list[Path]]:
    """Files by what splits call them, their path in the folder without suffix; None takes any."""
    found = defaultdict(list)
    for path in visible_files(folder):
        if suffixes is None or path.suffix.lower() in suffixes:
            found[one_form(path.relative_to(folder).with_suffix("").as_posix())].append(path)
    return dict(found)


def find_pages(folder: Path) -> dict[str, Path]:
    """The annotations of a folder by what splits call them.

    Raises:
        UserError: there are two of one name.
    """
    found = by_name(folder, {".xml"})
    for first, *others in found.values():
        if others:
            raise UserError(f"{first}: there is {others[0].name} too: remove all but one")
    return {name: paths[0] for name, paths in found.items()}


def find_images(
    names: Iterable[str],
    files: Mapping[str, Sequence[Path]],
    file_names: Mapping[str, str],
    folder: Path,
) -> dict[str, Path]:
    """By name, see `_image_of`; one warning counts the images that are not taken beside others, and
    one the annotations that name another image, by `file_names`, than the one with their own."""
    paths: dict[str, Path] = {}
    others: list[str] = []
    renamed: list[str] = []
    there = {file for found in files.values() for file in found}
    for name in names:
        file_name, found = file_names.get(name, ""), files.get(name, [])
        path = paths[name] = _image_of(name, found, file_name, folder)
        images = [file for file in found if file.suffix.lower() in IMAGE_SUFFIXES]
        others += [file.name for file in images if file != path]
        named = path.parent / PurePosixPath(file_name).name
        if named != path and named in there:
            renamed.append(f"{name}.xml")
    for those, what in (
        (others, "images left out beside the one of the same name that the annotation names"),
        (renamed, "annotations with another image as <filename>, that of their own name is taken"),
    ):
        if those:
            logger.warning("%s: %s: %d, first %s", folder, what, len(those), those[0])
    return paths


def _image_of(name: str, files: Sequence[Path], file_name: str, folder: Path) -> Path:
    """Of the files with a name and any suffix, the image: where there are several, that which the
    annotation names."""
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    if len(images) > 1:
        meant = one_form(PurePosixPath(file_name).name)
        images = [path for path in images if one_form(path.name) == meant]
    if len(images) == 1:
        return images[0]
    there = ", ".join(sorted(path.name for path in files))
    if not files:
        raise UserError(f"{folder / name}.jpg: no such file, and none of another suffix")
    if any(path.suffix.lower() in IMAGE_SUFFIXES for path in files):
        raise UserError(
            f"{folder / name}: there are {there}, and <filename> of the annotation names none of "
            "them: remove all but one"
        )
    raise UserError(
        f"{folder}: of {name} there is {there}: this suffix is not known, expected one of "
        f"{' '.join(sorted(IMAGE_SUFFIXES))}"
    )
