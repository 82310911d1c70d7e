"""Where labelled images come from: class folders and WebDataset shards."""

import hashlib
import logging
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from backbones.common.errors import ImageError, UserError
from backbones.common.images import IMAGE_SUFFIXES
from backbones.common.listing import is_visible, one_form, visible_files, with_suffix
from backbones.common.read_json import parse_json
from backbones.common.regular_files import read_file
from backbones.data.tar import (
    LABEL_BYTES,
    MAX_IMAGE_BYTES,
    Pairs,
    members,
    open_tar,
    parse_label,
    split_name,
)

logger = logging.getLogger(__name__)

_ARCHIVE = re.compile(r"\.(tar(\.(gz|bz2|xz|zst|lz4|z))?|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)


class ImageSource(Protocol):
    """Encoded images with labels 0..K-1, in a fixed order."""

    class_names: tuple[str, ...]
    labels: list[int]
    """Of every image."""

    def __len__(self) -> int: ...

    def names(self) -> Iterator[str]:
        """Of every image's file, from the split's folder on, or its shard's name with its own."""

    def read(self, index: int) -> tuple[bytes, int, str]:
        """The encoded image, its label, and a name for messages.

        Raises:
            ImageError: the file cannot be read.
        """


def digest_of(source: ImageSource) -> str:
    """Of the images' names and labels: another one for other data."""
    digest = hashlib.blake2b(digest_size=16)
    for name, label in zip(source.names(), source.labels, strict=True):
        digest.update(f"{name}\0{label}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def open_split(
    root: str | Path, split: str, class_names: Sequence[str] | None = None
) -> ImageSource:
    """The images of `ROOT/SPLIT/CLASS/*` or of the shards `ROOT/SPLIT-*.tar`.

    Another split than that of training is labelled by the `class_names` of that. Shards that are
    not read, compressed ones or those beside a folder, are counted in a warning.

    Raises:
        UserError: neither is there, there are no images, or a class or label is unknown.
    """
    root = Path(root)
    is_folder = os.path.isdir(root / split)
    shards, unread, note = [], [], ""
    for path in sorted(root.glob(f"{split}-*.*")):
        if path.suffix == ".tar" and not is_folder:
            shards.append(path)
        elif _ARCHIVE.search(path.name):
            unread.append(path.name)
    if unread:
        why = f"the folder {split} is" if is_folder else f"only {split}-*.tar are, uncompressed"
        note = f"archives that are not read, {why}: {len(unread)}, first {unread[0]}"
    if not is_folder and not shards:
        missing = f"found neither a folder {split}/CLASS nor shards {split}-*.tar in it"
        raise UserError("; ".join(filter(None, (f"{root}: {missing}", note))))
    if note:
        logger.warning("%s: %s", root, note)
    return ClassFolders(root / split, class_names) if is_folder else Shards(shards, class_names)


class ClassFolders:
    """Images in one folder for each class; labels follow the folders' sorted names.

    Hidden folders and files are passed over. Files of other kinds and images in no class are
    counted in a warning, and classes without an image named in one.
    """

    def __init__(self, root: Path, class_names: Sequence[str] | None = None) -> None:
        found = sorted(
            (one_form(path.name), path) for path in root.iterdir() if is_visible(path.name)
        )
        folders = {path: name for name, path in found if os.path.isdir(path)}
        if class_names is None:
            class_names = list(dict.fromkeys(folders.values()))
        self.class_names = tuple(class_names)
        labels = {one_form(name): label for label, name in enumerate(class_names)}
        for folder, name in folders.items():
            if name not in labels:
                raise UserError(f"{folder}: class {name!r} is not in the training split")
        of_class = {
            file: name for folder, name in folders.items() for file in visible_files(folder)
        }
        loose = [
            name
            for name, path in found
            if path not in folders and path.suffix.lower() in IMAGE_SUFFIXES
        ]
        note = f"images in no CLASS folder: {len(loose)}, first {loose[0]}" if loose else ""
        files = with_suffix(of_class, IMAGE_SUFFIXES, root)
        if not files:
            missing = f"{root}: expected images in CLASS folders, found none"
            raise UserError("; ".join(filter(None, (missing, note))))
        if note:
            logger.warning("%s: left out %s", root, note)
        self._files = [(file, labels[of_class[file]]) for file in files]
        self.labels = [label for _, label in self._files]
        self._root = root
        there = set(self.labels)
        if empty := [name for label, name in enumerate(class_names) if label not in there]:
            logger.warning("%s: classes without an image: %s", root, ", ".join(empty))

    def __len__(self) -> int:
        return len(self._files)

    def names(self) -> Iterator[str]:
        """As `ImageSource.names`."""
        return (str(file.relative_to(self._root)) for file, _ in self._files)

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
    middle costs its tail only. `classes.json` beside the shards (a list of names, or of objects
    with `index` and `name`) says what the numbers mean. Without it they are the places of
    `class_names`, or the names themselves.
    """

    def __init__(self, shards: Sequence[Path], class_names: Sequence[str] | None = None) -> None:
        self._members: list[_Member] = []
        for shard in shards:
            self._members += _index_shard(shard)
        if not self._members:
            raise UserError(f"{shards[0]}: expected members NAME.jpg and NAME.cls, found none")
        largest = max(self._members, key=lambda member: member.label)
        path = shards[0].parent / "classes.json"
        own = _read_class_names(path)
        meant = own or class_names or [str(label) for label in range(largest.label + 1)]
        if largest.label >= len(meant):
            raise UserError(
                f"{largest.name}: label {largest.label} but there are {len(meant)} classes"
            )
        self.class_names = tuple(class_names or meant)
        if own:
            labels = {one_form(name): label for label, name in enumerate(self.class_names)}
            for name in own:
                if name not in labels:
                    where = "the training split, or data.classes where that is streamed"
                    raise UserError(f"{path}: class {name!r} is not in {where}")
            self._members = [
                member._replace(label=labels[own[member.label]]) for member in self._members
            ]
        elif class_names and any(name != str(label) for label, name in enumerate(class_names)):
            what = "nothing says which class has which label, taken as in training: 0 is"
            logger.warning("%s: not there: %s %s", path, what, class_names[0])
        self.labels = [member.label for member in self._members]

    def __len__(self) -> int:
        return len(self._members)

    def names(self) -> Iterator[str]:
        """As `ImageSource.names`."""
        for member in self._members:
            yield member.shard.name + member.name.removeprefix(str(member.shard))

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

    def names(self) -> Iterator[str]:
        """As `ImageSource.names`."""
        names = list(self._source.names())
        return (names[index] for index in self._indices)

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
    pairs = Pairs[tuple[int, int, str]]()
    found: list[_Member] = []
    try:
        with shard.open("rb") as stream, open_tar(stream, "r:") as tar:
            for info in members(tar):
                (key, suffix), name = split_name(info), f"{shard}:{info.name}"
                if suffix in IMAGE_SUFFIXES and info.size <= MAX_IMAGE_BYTES:
                    pairs.add_image(key, (info.offset_data, info.size, name))
                elif suffix == ".cls":
                    file = tar.extractfile(info)
                    text = file.read(LABEL_BYTES + 1) if file is not None else b""
                    pairs.add_label(key, parse_label(text, name))
                if pair := pairs.take(key):
                    (offset, size, name), label = pair
                    found.append(_Member(shard, offset, size, label, name))
            if not _ends_properly(stream, tar.offset):
                # tarfile takes a file that ends between or in headers for a whole one.
                raise tarfile.ReadError("unexpected end of data")
    except tarfile.ReadError as error:
        if not found and not pairs.images:
            raise UserError(f"{shard}: not a tar file, or damaged: {error}") from error
        logger.warning("%s: damaged after %d images: %s", shard, len(found), error)
    except OSError as error:
        raise UserError(f"{shard}: cannot read shard: {error.strerror}") from error
    if message := pairs.left_out(shard):
        logger.warning("%s", message)
    return found


def _ends_properly(stream: IO[bytes], end: int) -> bool:
    """Whether a block of zeros follows the last member, as the format has it."""
    stream.seek(end)
    return stream.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)


def parse_class_names(text: bytes, location: str | Path) -> list[str]:
    """Different names from JSON: a list of them, or of objects with `index` and `name`, in any
    order; raises `UserError`, naming `location`, for something else."""
    try:
        entries = parse_json(text)
        if not isinstance(entries, list) or not entries:
            raise TypeError("no list, or nothing in it")
        if all(isinstance(entry, dict) for entry in entries):
            of_label = {entry["index"]: entry["name"] for entry in entries}
            entries = [of_label[label] for label in range(len(entries))]
        names = [one_form(name) for name in entries]  # a TypeError for what is no text
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{location}: expected a list of names, or of objects with index 0..K-1 and name"
        ) from error
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{location}: expected different names, {name!r} stands there {count} times"
        )
    return names


def _read_class_names(path: Path) -> list[str] | None:
    if not os.path.exists(path):
        return None
    try:
        return parse_class_names(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"{path}: cannot read class names: {error.strerror}") from error
