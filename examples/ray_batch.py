"""Detect objects in any number of images with Ray, each image exactly once.

python examples/ray_batch.py --weights runs/mine --inputs photos/ --output runs/bulk --workers 8

Inputs are pictures as for `lowres-rcnn infer`; `-` is a list on standard input. The work is cut
into parts, each a file of JSON lines, a line an image, that is there as a whole or not at all:
killed at any moment, the same command goes on. In the end they are joined to COCO's results. For
several machines, `ray start` on each, and folders that all of them see.
"""

import argparse
import json
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from backbones.common.cli import command, prepare_process
from backbones.common.errors import ImageError, UserError
from backbones.common.files import atomic_write, locked, make_folder, remove_unfinished, write_json
from backbones.common.images import read_image
from backbones.networks.hub import SCHEME
from detect import deploy_detector, load_detector
from detect.media.sources import find_inputs


class DetectPart:
    """A worker with a detector of its own. Where one dies, Ray gives its part to a new one."""

    def __init__(self, weights: str, score: float | None) -> None:
        prepare_process()  # with one thread, as Ray sets it
        self.detector = deploy_detector(load_detector(weights))
        self.score = self.detector.best_score_thresh if score is None else score

    def __call__(self, part: dict[str, Any]) -> dict[str, Any]:
        """Look at the images of a part, and write its file."""
        rows: dict[str, dict[str, Any]] = {}
        waiting = deque[str]()  # read, and not yet detected in

        def readable() -> Iterator[Tensor]:
            for name in part["images"]:
                rows[name] = {"file_name": name}
                try:
                    image = read_image(name)
                except ImageError as error:  # is the row of this image, and the rest is done
                    rows[name]["error"] = str(error)
                else:
                    waiting.append(name)
                    yield image

        for result in self.detector.stream(readable(), score_thresh=self.score):
            height, width = result.image.shape[1:]
            found = result.to_coco(image_id=0)
            rows[waiting.popleft()] |= {"height": height, "width": width, "found": found}
        with atomic_write(part["file"], "w") as file:  # under another name until it is whole
            file.writelines(json.dumps(row) + "\n" for row in rows.values())
        return {"file": part["file"], "images": len(rows)}


def join(weights: str, files: list[str], images: list[str], output: Path) -> str:
    """Write COCO's results of all parts, unless an image is missing or there twice."""
    rows = [json.loads(line) for file in files for line in Path(file).read_text().splitlines()]
    times = Counter(row["file_name"] for row in rows)
    if wrong := [name for name in times.keys() | set(images) if times[name] != 1]:
        raise UserError(f"{output}: {len(wrong)} images are not there exactly once: {wrong[0]}")
    if foreign := times.keys() - set(images):
        raise UserError(f"{output}: {len(foreign)} images are of other inputs: {min(foreign)}")
    read = [{"id": id, **row} for id, row in enumerate((r for r in rows if "found" in r), 1)]
    results = [{**one, "image_id": row["id"]} for row in read for one in row.pop("found")]
    detector = load_detector(weights, "cpu")
    pairs = zip(detector.category_ids, detector.class_names, strict=True)
    lists = {"images": read, "categories": [{"id": id, "name": name} for id, name in pairs]}
    broken = [row for row in rows if "error" in row]
    write_json(output / "results.json", results)
    write_json(output / "images.json", lists | {"errors": broken})
    return f"images: {len(read)}, objects: {len(results)}, unreadable: {len(broken)}"


def _weights(name: str) -> str:
    """The same from the folder of a worker."""
    return name if name.startswith(SCHEME) else str(Path(name).absolute())


@command
def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="Detect objects in images with Ray.")
    parser.add_argument("--weights", required=True, type=_weights)
    parser.add_argument("--inputs", required=True, nargs="+")
    parser.add_argument("--output", required=True, type=lambda name: Path(name).absolute())
    parser.add_argument("--workers", type=int, default=2, help="each on a core, or its --gpus")
    parser.add_argument("--gpus", type=float, default=0.0, help="of a worker, as 1 or 0.5")
    parser.add_argument("--size", type=int, default=256, help="images of a part")
    parser.add_argument("--score", type=float, help="the least; otherwise that of the best F1")
    args = parser.parse_args()
    source = find_inputs(args.inputs, recursive=True)
    if source.videos:
        raise UserError(f"{source.videos[0]}: expected pictures: lowres-rcnn infer takes this")
    images = [str(Path(path).absolute()) for path in source.images]
    groups = [images[start : start + args.size] for start in range(0, len(images), args.size)]
    folder = make_folder(args.output / "parts")
    files = [str(folder / f"{number:06d}.jsonl") for number in range(len(groups))]
    with locked(folder):
        remove_unfinished(folder)
        plan, own = folder / "plan.json", [args.weights, args.score, groups]
        if not plan.exists():
            write_json(plan, own)
        elif json.loads(plan.read_text()) != own:  # parts would overlap, or be of several kinds
            raise UserError(f"{folder}: begun with other inputs or keys: choose another output")
        parts = [{"file": f, "images": group} for f, group in zip(files, groups, strict=True)]
        if missing := [part for part in parts if not Path(part["file"]).exists()]:
            workers = ray.data.ActorPoolStrategy(size=args.workers)
            arguments = {"fn_constructor_args": (args.weights, args.score), "compute": workers}
            data = ray.data.from_items(missing, override_num_blocks=len(missing))
            for row in data.map(DetectPart, **arguments, num_gpus=args.gpus).iter_rows():
                print(f"{row['file']}: {row['images']} images", flush=True)
        print(join(args.weights, files, images, args.output))


if __name__ == "__main__":
    main()
