"""The classes that CVAT lists beside annotations in Pascal VOC's layout."""

import os
import re
from pathlib import Path

from backbones.common.errors import UserError
from backbones.common.regular_files import read_file
from detect.data.sample import check_class_name

_COLOUR_AND_PARTS = re.compile(r":(\d+,\d+,\d+)?:[^:]*:[^:]*$")
"""What CVAT writes behind a name in `labelmap.txt`."""

VOC_CLASS_FILE = "labelmap.txt"
"""Where CVAT has the classes beside the annotations, `name:colour:parts:actions` a line."""


def listed_classes(path: Path) -> tuple[str, ...]:
    """The classes in `labelmap.txt`, but for the background; none where there is no such file.

    Raises:
        UserError: it cannot be read, or a name is none.
    """
    if not os.path.isfile(path):
        return ()
    try:
        lines = read_file(path).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read as text in UTF-8: {reason}") from error
    # CVAT lists the background with its colour; a class by this name would have none.
    names = [
        _COLOUR_AND_PARTS.sub("", line).strip()
        for line in lines
        if line.strip() and not line.startswith(("background:0,0,0:", "# label:"))
    ]
    for name in names:
        check_class_name(name, str(path))
    return tuple(dict.fromkeys(names))
