"""Data sets of full size, generated: `make test-large`, not part of `make test`.

Each number is of a process of its own, and printed.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.large

IMAGES, BOXES = 118_000, 860_000
"""COCO 2017's training split."""

MEASURE = """
import json, resource, sys, time
{imports}
started = time.perf_counter()
{statement}
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({{"result": result, "seconds": seconds, "megabytes": peak / 1024}}))
"""


def measured(what: str, imports: str, statement: str, *arguments: str) -> dict:
    """Run `statement`, which sets `result`, in a process of its own: result, time, peak memory."""
    script = MEASURE.format(imports=imports, statement=statement)
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\n{what}: {found['seconds']:.1f} s, {found['megabytes']:.0f} MB")
    return found


def write_coco(path: Path, images: int, boxes: int) -> list[int]:
    """An annotation file with all of COCO's keys, row by row; the owners of the boxes."""
    random = np.random.default_rng(0)
    owners = random.integers(0, images, boxes)
    corners = random.uniform(0, 500, (boxes, 2)).round(2)
    sides = random.uniform(4, 120, (boxes, 2)).round(2)
    kinds = random.integers(1, 81, boxes)
    outlines = random.uniform(0, 500, (1000, 45)).round(2).tolist()
    url = "http://farm9.staticflickr.com/8186/8119368305_4e622c8349_z.jpg"
    with path.open("w") as file:
        file.write('{"categories": ')
        json.dump([{"id": kind, "name": f"class {kind}"} for kind in range(1, 81)], file)
        file.write(', "images": [')
        for i in range(images):
            entry = {"id": i, "file_name": f"{i:012d}.jpg", "width": 640, "height": 640}
            entry |= {"license": 1, "coco_url": url, "flickr_url": url, "date_captured": "2013"}
            file.write((", " if i else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for j in range(boxes):
            box = [*corners[j].tolist(), *sides[j].tolist()]
            entry = {"id": j + 1, "image_id": int(owners[j]), "category_id": int(kinds[j])}
            entry |= {"bbox": box, "area": box[2] * box[3], "iscrowd": 0}
            entry |= {"segmentation": [outlines[j % 1000]]}
            file.write((", " if j else "") + json.dumps(entry))
        file.write("]}")
    return owners.tolist()


def test_cocos_training_annotations_load(tmp_path):
    write_coco(tmp_path / "train.json", IMAGES, BOXES)
    found = measured(
        "annotations of 118,000 images and 860,000 boxes",
        "from detect.data import load_coco",
        "d = load_coco(*sys.argv[1:]); result = [len(d), sum(len(s.labels) for s in d)]",
        *(str(tmp_path / "train.json"), str(tmp_path)),
    )
    assert found["result"] == [IMAGES, BOXES]
    assert found["seconds"] < 30
    assert found["megabytes"] < 2048


def test_results_of_cocos_validation_split_are_scored(tmp_path):
    """5,000 images with 100 detections each: the truth moved a little, under random scores."""
    random = np.random.default_rng(1)
    owners = write_coco(tmp_path / "val.json", 5_000, 36_000)
    document = json.loads((tmp_path / "val.json").read_text())
    of_image: dict[int, list[dict]] = {}
    for owner, annotation in zip(owners, document["annotations"], strict=True):
        of_image.setdefault(owner, []).append(annotation)
    results = []
    for image_id in range(5_000):
        objects = of_image.get(image_id, document["annotations"][:5])
        for k in range(100):
            annotation = objects[k % len(objects)]
            box = (np.array(annotation["bbox"]) + random.normal(0, 3, 4)).clip(1).round(2).tolist()
            kind = annotation["category_id"] if k % 3 else int(random.integers(1, 81))
            entry = {"image_id": image_id, "category_id": kind, "bbox": box}
            results.append(entry | {"score": float(random.random())})
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = measured(
        "AP of 5,000 x 100 detections",
        "from detect.data import load_coco\n"
        "from detect.evaluation import evaluate_coco, load_results\n"
        "d = load_coco(*sys.argv[1:3])",
        "result = evaluate_coco(d, load_results(sys.argv[3], d))['AP']",
        *(str(tmp_path / "val.json"), str(tmp_path), str(tmp_path / "results.json")),
    )
    assert 0.05 < found["result"] < 0.95
    assert found["seconds"] < 120
    assert found["megabytes"] < 4096


def test_annotations_of_voc_2012_load(tmp_path):
    """17,125 files, of which all are read to learn the classes."""
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    item = (
        "<object><name>dog</name><pose>Left</pose><difficult>0</difficult><bndbox><xmin>48</xmin>"
        "<ymin>240</ymin><xmax>195</xmax><ymax>371</ymax></bndbox></object>"
    )
    size = "<size><width>500</width><height>375</height><depth>3</depth></size>"
    names = [f"2012_{i:06d}" for i in range(17_125)]
    for name in names:
        page = f"<annotation><folder>VOC2012</folder>{size}{item * 3}</annotation>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(page)
        (tmp_path / "JPEGImages" / f"{name}.jpg").touch()
    (tmp_path / "ImageSets/Main/train.txt").write_text("\n".join(names[:5717]))
    found = measured(
        "annotations of VOC 2012",
        "from detect.data import load_voc",
        "result = len(load_voc(sys.argv[1], 'train'))",
        str(tmp_path),
    )
    assert found["result"] == 5717
    assert found["seconds"] < 30
