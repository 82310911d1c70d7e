"""The folders that `evaluate` and `inspect_data` write into; others' files stay."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from backbones.common.errors import UserError
from backbones.common.files import locked, make_folder, numbered_folder
from backbones.common.read_json import read_json
from backbones.common.regular_files import open_file

NEW_FOLDERS = Path("runs/evaluate")
"""The first folder of reports that name none; others have numbers behind it."""


@contextmanager
def report_folder(path: str | None, *, has_results: bool) -> Iterator[Path]:
    """A folder to write a report into, made where missing and locked until the block ends.

    Args:
        path: the folder; an earlier report in it may be replaced. None: a new one of `NEW_FOLDERS`.
        has_results: results.json and images.json will be written too.

    Raises:
        UserError: it cannot be written to, another program writes there, or it is a training's run
            folder, `infer`'s, or has files by those names that `evaluate` did not write.
    """
    folder = numbered_folder(NEW_FOLDERS) if path is None else make_folder(path)
    with _gone_if_empty(folder, is_new=path is None), locked(folder):
        if (folder / "config.yaml").exists() and (folder / "checkpoints").exists():
            raise UserError(f"{folder}: is the run folder of a training: choose another output")
        # Each is told by the one that is written before it.
        _check_own(folder, "evaluate", "report.json", "report.html")
        if has_results or os.path.lexists(folder / "images.json"):
            _check_own(folder, "evaluate", "images.json", "results.json")
        yield folder


@contextmanager
def _gone_if_empty(folder: Path, *, is_new: bool) -> Iterator[None]:
    """What fails before its first file leaves no new folder either."""
    try:
        yield
    finally:
        if is_new:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def data_folder(path: str) -> Iterator[Path]:
    """As `report_folder`, to write data.html into, and sheet.jpg after it."""
    folder = make_folder(path)
    with locked(folder):
        _check_own(folder, "inspect_data", "data.html", "sheet.jpg")
        yield folder


def _check_own(folder: Path, program: str, first: str, second: str) -> None:
    there = [name for name in (first, second) if os.path.lexists(folder / name)]
    if there and not _is_own(folder / first):
        raise UserError(
            f"{folder}: {program} did not write {' and '.join(there)} there (another program did): "
            "choose another output"
        )


def _is_own(path: Path) -> bool:
    try:
        if path.name == "data.html":  # behind the splits, of which there are few
            with open_file(path) as file:
                return b"<h2>To look at</h2>" in file.read(1 << 16)
        content = read_json(path)
    except (OSError, UserError):
        return False
    if not isinstance(content, dict):
        return False
    if path.name == "images.json":  # that of infer has more
        return content.keys() == {"images", "categories"}
    return content.keys() >= {"title", "coco", "confusion"}
