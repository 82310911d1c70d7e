"""Where labelled images come from: class folders and WebDataset shards."""

import logging
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from backbones.common.errors import ImageError, UserError
from backbones.common.images import IMAGE_SUFFIXES
from backbones.common.listing import is_visible, visible_files, with_suffix
from backbones.common.read_json import parse_json
from backbones.common.regular_files import read_file
from backbones.data.tar import (
    LABEL_BYTES,
    MAX_IMAGE_BYTES,
    members,
    open_tar,
    parse_label,
    split_name,
)

logger = logging.getLogger(__name__)


class ImageSource(Protocol):
    """Encoded images with labels 0..K-1, in a fixed order."""

    class_names: tuple[str, ...]
    labels: list[int]
    """Of every image."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[bytes, int, str]:
        """The encoded image, its label, and a name for messages.

        Raises:
            ImageError: the file cannot be read.
        """


def open_split(
    root: str | Path, split: str, class_names: Sequence[str] | None = None
) -> ImageSource:
    """The images of `ROOT/SPLIT/CLASS/*` or of the shards `ROOT/SPLIT-*.tar`.

    Another split than that of training is labelled by the `class_names` of that.

    Raises:
        UserError: neither is there, there are no images, or a class or label is unknown.
    """
    root = Path(root)
    shards = sorted(root.glob(f"{split}-*.tar"))
    if os.path.isdir(root / split):
        return ClassFolders(root / split, class_names)
    if shards:
        return Shards(shards, class_names)
    raise UserError(f"{root}: found neither a folder {split}/CLASS nor shards {split}-*.tar in it")


class ClassFolders:
    """Images in one folder for each class; labels follow the folders' sorted names.

    Hidden folders and files are passed over. Files of other kinds are counted in a warning, and
    classes without an image named in one.
    """

    def __init__(self, root: Path, class_names: Sequence[str] | None = None) -> None:
        found = sorted(
            folder.name
            for folder in root.iterdir()
            if is_visible(folder.name) and os.path.isdir(folder)
        )
        self.class_names = tuple(found if class_names is None else class_names)
        labels = {name: label for label, name in enumerate(self.class_names)}
        for name in found:
            if name not in labels:
                raise UserError(f"{root / name}: class {name!r} is not in the training split")
        of_class = {file: name for name in found for file in visible_files(root / name)}
        files = with_suffix(of_class, IMAGE_SUFFIXES, root)
        if not files:
            raise UserError(f"{root}: expected images in CLASS folders, found none")
        self._files = [(file, labels[of_class[file]]) for file in files]
        self.labels = [label for _, label in self._files]
        there = set(self.labels)
        if empty := [name for name in self.class_names if labels[name] not in there]:
            logger.warning("%s: classes without an image: %s", root, ", ".join(empty))

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> tuple[bytes, int, str]:
        """As `ImageSource.read`."""
        path, label = self._files[index]
        try:
            return read_file(path), label, str(path)
        except OSError as error:
            raise ImageError(f"{path}: cannot read image: {error.strerror}") from error


class Shards:
    """Local WebDataset shards: tar files of `NAME.jpg` and `NAME.cls`, the label as a number.

    The members are indexed once, so that examples are read in any order. A shard cut off in the
    middle costs its tail only. Class names come from `classes.json` beside the shards (a list of
    names, or of objects with `index` and `name`), else they are the numbers.
    """

    def __init__(self, shards: Sequence[Path], class_names: Sequence[str] | None = None) -> None:
        self._members: list[_Member] = []
        for shard in shards:
            self._members += _index_shard(shard)
        if not self._members:
            raise UserError(f"{shards[0]}: expected members NAME.jpg and NAME.cls, found none")
        largest = max(self._members, key=lambda member: member.label)
        if class_names is None:
            class_names = _read_class_names(shards[0].parent / "classes.json")
        if class_names is None:
            class_names = [str(label) for label in range(largest.label + 1)]
        if largest.label >= len(class_names):
            raise UserError(
                f"{largest.name}: label {largest.label} but there are {len(class_names)} classes"
            )
        self.class_names = tuple(class_names)
        self.labels = [member.label for member in self._members]

    def __len__(self) -> int:
        return len(self._members)

    def read(self, index: int) -> tuple[bytes, int, str]:
        """As `ImageSource.read`."""
        member = self._members[index]
        try:
            with member.shard.open("rb") as file:
                file.seek(member.offset)
                return file.read(member.size), member.label, member.name
        except OSError as error:
            raise ImageError(f"{member.name}: cannot read image: {error.strerror}") from error


class FirstClasses:
    """The images of the first `count` classes of another source, for experiments in little time.

    Raises:
        UserError: `count` is more than there are, or no image is left.
    """

    def __init__(self, source: ImageSource, count: int) -> None:
        if count > len(source.class_names):
            raise UserError(
                f"data.max_classes is {count} but there are {len(source.class_names)} classes"
            )
        self._source = source
        self._indices = [index for index, label in enumerate(source.labels) if label < count]
        if not self._indices:
            raise UserError(f"data.max_classes: the first {count} classes have no image")
        self.class_names = tuple(source.class_names[:count])
        self.labels = [source.labels[index] for index in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    def read(self, index: int) -> tuple[bytes, int, str]:
        """As `ImageSource.read`."""
        return self._source.read(self._indices[index])


class _Member(NamedTuple):
    shard: Path
    offset: int
    size: int
    label: int
    name: str


def _index_shard(shard: Path) -> list[_Member]:
    places: dict[str, tuple[int, int, str]] = {}
    labels: dict[str, int] = {}
    try:
        with shard.open("rb") as stream, open_tar(stream, "r:") as tar:
            for info in members(tar):
                (key, suffix), name = split_name(info), f"{shard}:{info.name}"
                if suffix in IMAGE_SUFFIXES and info.size <= MAX_IMAGE_BYTES:
                    places[key] = (info.offset_data, info.size, name)
                elif suffix == ".cls":
                    file = tar.extractfile(info)
                    text = file.read(LABEL_BYTES + 1) if file is not None else b""
                    labels[key] = parse_label(text, name)
            if not _ends_properly(stream, tar.offset):
                # tarfile takes a file that ends between or in headers for a whole one.
                raise tarfile.ReadError("unexpected end of data")
    except tarfile.ReadError as error:
        if not places:
            raise UserError(f"{shard}: not a tar file, or damaged: {error}") from error
        logger.warning("%s: damaged after %d images: %s", shard, len(places), error)
    except OSError as error:
        raise UserError(f"{shard}: cannot read shard: {error.strerror}") from error
    if unpaired := len(places.keys() ^ labels.keys()):
        logger.warning("%s: %d members lack their .jpg or .cls and are left out", shard, unpaired)
    return [
        _Member(shard, *place[:2], labels[key], place[2])
        for key, place in places.items()
        if key in labels
    ]


def _ends_properly(stream: IO[bytes], end: int) -> bool:
    """Whether a block of zeros follows the last member, as the format has it."""
    stream.seek(end)
    return stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def parse_class_names(text: bytes, location: str | Path) -> list[str]:
    """Names from JSON: a list of them, or of objects with `index` and `name`, in any order; raises
    `UserError`, naming `location`, for something else."""
    try:
        entries = parse_json(text)
        if all(isinstance(entry, str) for entry in entries):
            return list(entries)
        names = {entry["index"]: str(entry["name"]) for entry in entries}
        return [names[label] for label in range(len(entries))]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{location}: expected a list of names, or of objects with index 0..K-1 and name"
        ) from error


def _read_class_names(path: Path) -> list[str] | None:
    if not os.path.exists(path):
        return None
    try:
        return parse_class_names(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot read class names: {error.strerror}") from error
