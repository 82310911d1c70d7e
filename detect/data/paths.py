"""Image files that annotations name: none but those in the folder of the images.

Annotations come from others, and would choose what is read and sent on in pictures of results.
"""

import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence

from backbones.common.addresses import without_secrets
from backbones.common.errors import UserError


def refuse_paths_outside(
    folder: str | os.PathLike[str], names: Sequence[str], where: Callable[[int], str]
) -> None:
    """Raise `UserError` for a name that leads out of a folder, by `..`, from the root or a link.

    The folder itself may be a link.

    Args:
        folder: that the names are relative to.
        names: of files, which need not be there.
        where: the name of a number stands, for the message.
    """
    in_folder = defaultdict(list)
    top = os.path.abspath(folder)
    for number, name in enumerate(names):
        refuse_address(name, where(number))
        # The last of these is for paths from the root, which may lead into the folder.
        if (
            not is_file_name(name)
            or ".." in name.split("/")
            or not is_inside(os.path.abspath(os.path.join(folder, name)), top)
        ):
            raise UserError(
                f"{where(number)}: expected a file inside of {folder}, got {name!r}: name it "
                "relative to that folder, without .."
            )
        in_folder[os.path.dirname(name)].append(number)
    root = os.path.realpath(folder)
    for inner, numbers in in_folder.items():
        place = os.path.join(folder, inner)
        if is_inside(os.path.realpath(place), root):
            links = _links(place)
            numbers = [n for n in numbers if links is None or os.path.basename(names[n]) in links]
        for number in numbers:
            path = os.path.join(folder, names[number])
            if not is_inside(os.path.realpath(path), root):
                raise UserError(
                    f"{where(number)}: {path} leads out of {folder} by a link: put the file "
                    "itself there"
                )


def refuse_address(name: str, where: str) -> None:
    """Raise `UserError` for a name with `://`, without the secrets in it."""
    if "://" in name:
        raise UserError(
            f"{where}: expected a file on a disk, got the address {without_secrets(name)!r}: "
            "download it, and name the file"
        )


def name_on_disk(folder: str | os.PathLike[str], name: str) -> str:
    """A file's name in the form that it has there: a Mac writes an umlaut as two characters, others
    as one. As it is where there is none."""
    if name.isascii() or not is_file_name(name) or os.path.lexists(os.path.join(folder, name)):
        return name
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD"))
    return next((one for one in forms if os.path.lexists(os.path.join(folder, one))), name)


def is_file_name(name: str) -> bool:
    """Whether a name can be one of a file: JSON may hold a NUL, and halves of characters."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def is_inside(path: str, root: str) -> bool:
    """Whether a path lies in a folder; both are absolute, and resolved where links matter."""
    return os.path.commonpath([path, root]) == root


def _links(folder: str) -> set[str] | None:
    """Names of the links in a folder, by one look at it; None where that cannot be seen."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_symlink()}
    except OSError:
        return None
