"""Which images are for what: usual names of splits, and one that is made where there is none."""

import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import PurePath

import numpy as np

SPLITS = ("train", "val", "test")

_USUAL = {
    **dict.fromkeys(("train", "training", "trainval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def usual_split(name: str) -> str:
    """`train`, `val` or `test` where another name means it (`valid`, `train2017`), or the name."""
    plain = re.sub(r"^(instances|obj)_|_?\d{4}$", "", name.lower())
    return _USUAL.get(plain, name)


def find_split(split: str, names: Collection[str]) -> str | None:
    """The name that a split has among some: its own, or one that means the same (`valid`)."""
    same = [name for name in names if usual_split(name) == split]
    return split if split in names else min(same, key=len, default=None)


def scene_of(path: str) -> str:
    """What a file's name says that a picture is of.

    The part before the last number is one of a camera, flight or clip where it holds a number
    itself: `cam1_0001` and `DJI_0005-2` are of `cam1_` and `DJI_0005-`. Names that only count, such
    as `IMG_0001`, say nothing, and the picture is a scene by itself. What Label Studio writes
    before a name and Roboflow behind it is left out, so that the changed copies of a picture that
    Roboflow makes are of one scene.
    """
    place = PurePath(path)
    stem = re.sub(r"^[0-9a-f]{8}-", "", place.stem)
    stem = re.sub(r"([._-](jpe?g|png|bmp|webp|tiff?))?\.rf\.[0-9a-zA-Z]+$", "", stem)
    found = re.match(r"(.*\d.*?[^\d])\d+\D*$", stem)
    return found[1] if found else stem


def hold_out(paths: Sequence[str], share: float, seed: int) -> np.ndarray:
    """Which images a split that is made holds out, `bool [N]`, about `share` of them.

    A scene (see `scene_of`) is held out as a whole, by a hash of its name: it stays where it is
    whatever else is added. Where that would leave one side empty, one scene is moved there; of
    pictures of one scene alone, single ones are held out.

    Args:
        paths: `[N]` image files, relative to their dataset; two different ones or more.
        share: that is held out, in 0..1.
        seed: another one gives another split.
    """
    scenes = [scene_of(path) for path in paths]
    if len(set(scenes)) == 1:
        scenes = list(paths)
    places = {scene: _place(scene, seed) for scene in scenes}
    held = {scene for scene, place in places.items() if place < share}
    if not held:
        held = {min(places, key=places.__getitem__)}
    elif len(held) == len(places):
        held.remove(max(places, key=places.__getitem__))
    return np.array([scene in held for scene in scenes])


def _place(scene: str, seed: int) -> float:
    """In 0..1, evenly; Python's own hash differs between processes."""
    digest = hashlib.blake2b(f"{seed} {scene}".encode("utf-8", "surrogateescape"), digest_size=8)
    return int.from_bytes(digest.digest(), "big") / 2**64
