"""Detectors in files of ONNX and OpenVINO, in use like those of this package."""

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from backbones.common.errors import UserError
from backbones.common.packages import require
from backbones.common.read_json import parse_json
from backbones.common.regular_files import open_file, read_file
from backbones.deployment.openvino import CompiledModel, core
from backbones.networks.metadata import broken_metadata
from detect.data.sample import check_class_name
from detect.deployment.seal import KEY, check_seal
from detect.detector import Detector
from detect.proposals import Proposals
from detect.rcnn.checks import check_image
from detect.rcnn.model import RCNN
from detect.rcnn.postprocess import check_score

OUTPUTS = ("boxes", "labels", "scores")

_DTYPES = (torch.float32, torch.int64, torch.float32)

RT_INFO = "lowres_rcnn"
"""Where OpenVINO's file has what ONNX's has as metadata."""

SUFFIXES = (".onnx", ".xml")
"""Of the files that `load_exported` reads."""


def refuse_exported(weights: str, what: str) -> None:
    """Raise `UserError` for an exported file where networks are needed, which `what` speaks of."""
    if weights.endswith(SUFFIXES):
        raise UserError(
            f"{weights}: an exported file {what}: name the .safetensors that it was made from, or "
            "its run folder"
        )


class ExportedModel:
    """A file's graph, `run`, in the place of an `RCNN` in a `Detector`; CPU only.

    Attributes:
        score_thresh: score that all detections have at least; fixed in the file.
        wanted: `bool [K]`, classes that are told, None: all. The graph suppresses among all.
    """

    device = torch.device("cpu")

    def __init__(
        self,
        path: Path,
        run: Callable[[np.ndarray], Sequence[np.ndarray]],
        num_classes: int,
        score_thresh: float,
    ) -> None:
        self._path, self._run, self._num_classes = path, run, num_classes
        self.score_thresh = score_thresh
        self.proposer = self  # the graph has its own
        self.wanted: Tensor | None = None

    def eval(self) -> "ExportedModel":
        """As it is always."""
        return self

    def detect(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals] | None = None
    ) -> list[dict[str, Tensor]]:
        """See `RCNN.detect`; there can be no proposals of others. Raises `UserError` where the
        graph cannot be run, or gives no detections."""
        if proposals is not None:
            raise ValueError("an exported detector has proposals of its own and takes no others")
        found = []
        for index, image in enumerate(images):
            check_image(image, f"images[{index}]")
            try:
                outputs = self._run(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
                one = dict(zip(OUTPUTS, map(torch.from_numpy, outputs), strict=True))
            except Exception as error:  # each library has its own
                raise UserError(f"{self._path}: cannot be run: {_reason(error)}") from error
            one["boxes"] = self._checked(one, *image.shape[1:])
            if self.wanted is not None:
                keep = self.wanted[one["labels"] - 1]
                one = {name: tensor[keep] for name, tensor in one.items()}
            found.append(one)
        return found

    def _checked(self, found: Mapping[str, Tensor], height: int, width: int) -> Tensor:
        """The boxes, inside of the image; raises for another graph than `export_detector` wrote."""
        boxes, labels, scores = (found[name] for name in OUTPUTS)
        far = boxes.new_tensor([width, height] * 2)
        if (
            boxes.ndim != 2
            or boxes.shape[1] != 4
            or not labels.shape == scores.shape == boxes.shape[:1]
            or (boxes.dtype, labels.dtype, scores.dtype) != _DTYPES
            # NaN is in no range; in bf16 what is clipped to the image is a little beyond it.
            or not ((boxes >= -far / 100) & (boxes <= far * 1.01)).all()
            or not (boxes[:, :2] <= boxes[:, 2:]).all()
            or not ((labels >= 1) & (labels <= self._num_classes)).all()
            or not ((scores >= 0) & (scores <= 1)).all()
        ):
            raise UserError(
                f"{self._path}: what its graph gives are no detections of {self._num_classes} "
                f"classes in an image of {width}x{height} pixels: export it anew"
            )
        return boxes.clamp(min=0).minimum(far)

    def describe(self) -> str:
        """In a few words, for the detector's `repr`."""
        return f"exported graph, scores from {self.score_thresh}"

    def require_proposer(self) -> "ExportedModel":
        """See `RCNN.require_proposer`."""
        return self

    def propose(self, images: Sequence[Tensor]) -> list[Proposals]:
        """Raise `UserError`: the graph gives detections alone."""
        raise UserError("an exported detector does not tell its proposals: name its .safetensors")


def load_exported(path: str | Path) -> Detector:
    """Read a detector that `export_detector` wrote.

    Raises:
        UserError: damaged, or a file of something else.
        MissingPackageError: the package that runs it is not installed.
    """
    path = Path(path)
    engine = "onnxruntime" if path.suffix == ".onnx" else "openvino"
    require("export" if engine == "onnxruntime" else engine, engine)
    read = _read_onnx if engine == "onnxruntime" else _read_openvino
    try:
        digest = _digest_of(path)  # libraries would wait for a pipe
        is_sealed = check_seal(path)
        texts, start = read(path)
        if _digest_of(path) != digest:
            raise UserError(f"{path}: was replaced while it was read: try again")
    except UserError:
        raise
    except OSError as error:
        place = error.filename or path  # of the two of OpenVINO
        raise UserError(f"{place}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # each library has its own
        raise UserError(f"{path}: {engine} cannot read this file: {_reason(error)}") from error
    with broken_metadata(path):
        metadata = {key: parse_json(text) for key, text in texts.items()}
    if metadata.get("kind") != "detector":
        raise UserError(
            f"{path}: expected a detector that tools.export wrote, found something else"
        )
    if KEY in metadata and not is_sealed:
        raise UserError(f"{path}: damaged, or other programs changed it: export it again")
    with broken_metadata(path):
        names, ids = classes_of(metadata)
        score_thresh = metadata["score_thresh"]
        check_score("score_thresh", score_thresh)
        run = start(metadata["precision"])
        model = ExportedModel(path, run, len(names), score_thresh)
        metadata |= {"engine": engine, "digest": digest}
        return Detector(cast(RCNN, model), names, ids, metadata)


def _digest_of(path: Path) -> str:
    """Of a file, and of the one beside it that holds its weights."""
    digest = hashlib.sha256()
    weights = path.with_suffix(".bin")
    for part in (path, weights) if path.suffix == ".xml" and weights.exists() else (path,):
        with open_file(part) as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def classes_of(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """Names and ids of labels `1..K` that the metadata of a detector's file hold; raises what
    `broken_metadata` takes, where they are none."""
    for key in ("metrics", "training"):
        if not isinstance(metadata.get(key), dict | None):
            raise TypeError(f"{key} must be a mapping")
    check_score("metrics.score_thresh", (metadata.get("metrics") or {}).get("score_thresh", 0.5))
    class_names, category_ids = metadata["class_names"], metadata["category_ids"]
    if not isinstance(class_names, list) or {type(name) for name in class_names} != {str}:
        raise TypeError("class_names must be a list of text")
    if not isinstance(category_ids, list) or {type(number) for number in category_ids} != {int}:
        raise TypeError("category_ids must be a list of whole numbers")
    if len(class_names) != len(category_ids):
        raise ValueError(f"{len(class_names)} class names, {len(category_ids)} category ids")
    if min(len({*class_names}), len({*category_ids})) < len(class_names):
        raise ValueError("a class name or category id stands twice")
    for name in class_names:
        check_class_name(name, "class_names")
    return class_names, category_ids


def _reason(error: Exception) -> str:
    return str(error).strip().rpartition("\n")[2] or type(error).__name__


Reading = tuple[dict[str, str], Callable[[str], Callable[[np.ndarray], Sequence[np.ndarray]]]]
"""Metadata, and what starts a graph in a precision."""


def _read_onnx(path: Path) -> Reading:
    import onnxruntime

    data = read_file(path)
    sessions: dict[int, Any] = {}
    starting = threading.Lock()

    def session() -> Any:
        threads = torch.get_num_threads()
        with starting:
            if threads not in sessions:
                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads = threads
                providers = ["CPUExecutionProvider"]
                sessions[threads] = onnxruntime.InferenceSession(data, options, providers)
            return sessions[threads]

    def run(image: np.ndarray) -> Sequence[np.ndarray]:
        return session().run(list(OUTPUTS), {"image": image})

    return session().get_modelmeta().custom_metadata_map, lambda _: run


def _read_openvino(path: Path) -> Reading:
    model = core().read_model(path)
    info = model.rt_info[RT_INFO] if model.has_rt_info([RT_INFO]) else {}
    texts = {key: model.get_rt_info([RT_INFO, key]).astype(str) for key in info}
    return texts, lambda precision: CompiledModel(model, precision)
