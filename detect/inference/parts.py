"""The lists of a run in parts: of several processes, or of a run and those that go on with it.

Each process writes lists of its own into `parts/NUMBER`, whole at every moment as those of one
process are. Joined they are the lists of the output, in the order of the inputs. While
`images.json` of the output is there it alone counts, else the parts do, so that a kill at any
moment loses nothing and counts nothing twice.
"""

import logging
import os
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from backbones.common.addresses import without_secrets
from backbones.common.errors import UserError
from backbones.common.files import atomic_write, write_errors
from backbones.common.read_json import read_json
from detect.inference.corrections import check_unchanged, texts_of_lists
from detect.inference.outputs import (
    IMAGES,
    PARTS,
    RESULTS,
    delete_listed,
    remove_parts,
)
from detect.inference.results import Results, name_of
from detect.media.sources import Input

logger = logging.getLogger(__name__)


def part_folder(output: Path, number: int) -> Path:
    """Folder for the lists of one process."""
    return output / PARTS / str(number)


def _parts(output: Path) -> list[Path]:
    folders = [path.parent for path in output.glob(f"{PARTS}/*/{IMAGES}")]
    return sorted((own for own in folders if own.name.isdigit()), key=lambda own: int(own.name))


def take_up(
    output: Path, targets: Mapping[Input, Path], settings: Mapping[str, Any]
) -> tuple[int, set[str]]:
    """Make parts of what earlier runs have left in the lists of a folder.

    The last input of a part counts as not done where the list does not say that it is whole, and so
    does one that failed, or whose annotated picture or video is missing; what was written beside
    these, and drawn of one that failed, is deleted. A live stream is done as soon as there are
    frames of it, for these do not come again.

    Args:
        output: the folder, locked.
        targets: annotated picture or video of each input.
        settings: of this run, see `Results`.

    Returns:
        Number of the first new part, and names of the annotated pictures and videos that are done.

    Raises:
        UserError: an earlier run had other settings, or an input that is none of these, its lists
            do not belong together or were changed, or labels of an input that is not done were
            corrected; nothing is changed then.
    """
    whole, parts = output / IMAGES, _parts(output)
    inputs = {target.name: name_of(path) for path, target in targets.items()}
    live = _live(targets)
    done, failed, listed = set[str](), set[str](), list[dict[str, Any]]()
    for path in [whole] if whole.exists() else [part / IMAGES for part in parts]:
        document = read_json(path)
        begun = document.get("settings") or {}
        if other := [key for key, value in settings.items() if begun.get(key) != value]:
            raise UserError(
                f"{output}: was begun with another {', '.join(other)}: resume with the same, or "
                "choose another output"
            )
        _check_counts(path.parent, document, live)
        if path == whole:
            check_unchanged(output, [texts_of_lists(document)], "--resume would replace")
        listed += document["images"]
        failed |= _failed(document)
        done -= _unfinished(document, live)
        finished = {entry["annotated"] for entry in _finished(document, live)}
        for entry in document["images"]:
            if inputs.get(entry["annotated"]) != entry["file_name"]:
                raise UserError(
                    f"{output}: has {entry['annotated']} of {_shown(entry)}, which is not "
                    "among these inputs, or would have another name: resume with the same inputs"
                )
            if entry["annotated"] in finished and os.path.isfile(output / entry["annotated"]):
                done.add(entry["annotated"])
    logger.info("%s: images and videos that are done already: %d", output, len(done))
    again = [entry for entry in listed if entry["annotated"] not in done]
    texts = [entry.get("texts", {}) for entry in again]
    check_unchanged(output, texts, "its input is not done, which would overwrite")
    beside = {name for entry in again for name in entry.get("files", ())}
    beside |= {entry["geojson"] for entry in again if "geojson" in entry}
    delete_listed(output, beside | (failed - done))
    if not whole.exists():
        return max((int(part.name) + 1 for part in parts), default=0), done
    remove_parts(output)  # they have been joined
    for name in (IMAGES, RESULTS):
        if (output / name).exists():
            with (
                open(output / name, "rb") as old,
                atomic_write(part_folder(output, 0) / name) as new,
            ):
                shutil.copyfileobj(old, new)
    with write_errors(whole):
        whole.unlink()
    return 1, done


def _rows(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Results in one folder of lists, by the ids of its images."""
    by_image = defaultdict[int, list[dict[str, Any]]](list)
    for row in read_json(folder / RESULTS) if (folder / RESULTS).exists() else ():
        by_image[row["image_id"]].append(row)
    return by_image


def _check_counts(folder: Path, document: Mapping[str, Any], live: Collection[str]) -> None:
    found = _rows(folder)
    wrong = [e for e in _finished(document, live) if e.get("objects") != len(found[e["id"]])]
    if wrong:
        raise UserError(
            f"{folder / RESULTS}: has not the objects that {IMAGES} counts, first of "
            f"{_shown(wrong[0])}: it was changed since; choose another output, or --overwrite"
        )


def _shown(entry: Mapping[str, Any]) -> str:
    """The input, in messages; the lists of earlier releases have addresses with their secrets."""
    return without_secrets(str(entry["file_name"]))


def _failed(document: Mapping[str, Any]) -> set[str]:
    """Names that images.json has of inputs that could not be read to their end, where they are as
    `infer` writes them."""
    names = document.get("failed", ())
    return {entry["annotated"] for entry in document["images"] if entry["annotated"] in names}


def _live(targets: Mapping[Input, Path]) -> set[str]:
    """Names of the annotated videos of streams and cameras: what they gave is gone by now."""
    return {target.name for path, target in targets.items() if not path.suffix}


def _unfinished(document: Mapping[str, Any], live: Collection[str]) -> set[str]:
    last = document["images"][-1:] if document.get("last_is_whole") is not True else []
    return (_failed(document) | {entry["annotated"] for entry in last}) - {*live}


def _finished(document: Mapping[str, Any], live: Collection[str]) -> list[dict[str, Any]]:
    again = _unfinished(document, live)
    return [entry for entry in document["images"] if entry["annotated"] not in again]


def join_parts(
    output: Path, new_results: Callable[..., Results], targets: Mapping[Input, Path], first: int
) -> tuple[int, Counter[int]]:
    """Make one of the lists of all parts: each picture and frame once, in the order of the inputs.

    Args:
        output: the folder, locked.
        new_results: `Results` of this run but for `lists`.
        targets: annotated picture or video of each input.
        first: number of the first part of this run.

    Returns:
        How many images and frames there are, and how many objects by category id.
    """
    order = {target.name: number for number, target in enumerate(targets.values())}
    found: dict[tuple[int, int, int], tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    failed: list[str] = []
    listed: list[tuple[Path, list[dict[str, Any]]]] = []
    live = _live(targets)
    for part in _parts(output):
        document, is_own = read_json(part / IMAGES), int(part.name) >= first
        failed += sorted(_failed(document)) if is_own else []
        listed.append((part, document["images"] if is_own else _finished(document, live)))
    # Of an input that was looked at again the later part counts, though it have fewer frames.
    latest = {entry["annotated"]: part for part, entries in listed for entry in entries}
    for part, entries in listed:
        by_image = _rows(part)
        for entry in (entry for entry in entries if latest[entry["annotated"]] == part):
            # As one process does them: images in blocks after the others, then videos.
            kind = 2 if "frame" in entry else int("in_blocks" in entry)
            place = kind, order[entry["annotated"]], entry.get("frame", 0)
            found[place] = entry, by_image[entry["id"]]
    objects = Counter[int]()
    joined = output / PARTS / "joined"
    with new_results(lists=joined) as results:
        for _, (entry, rows) in sorted(found.items(), key=lambda item: item[0]):
            results.add_listed(entry, rows)
            objects.update(row["category_id"] for row in rows)
        results.mark_failed(failed)
        results.mark_whole()
    for name in reversed(results.files):  # the list of images last: from then on the parts are past
        with write_errors(output / name):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            with open(joined / name, "rb") as file:
                os.fsync(file.fileno())
            os.replace(joined / name, output / name)
    shutil.rmtree(joined)
    remove_parts(output)
    return len(found), objects
