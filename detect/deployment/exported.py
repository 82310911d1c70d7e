"""Detectors in files of ONNX and OpenVINO, in use like those of this package."""

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from backbones.common.errors import UserError
from backbones.common.packages import require
from backbones.deployment.openvino import CompiledModel, core
from backbones.networks.metadata import broken_metadata
from detect.detector import Detector
from detect.proposals import Proposals
from detect.rcnn.checks import check_image
from detect.rcnn.model import RCNN

OUTPUTS = ("boxes", "labels", "scores")

RT_INFO = "lowres_rcnn"
"""Where OpenVINO's file has what ONNX's has as metadata."""

SUFFIXES = (".onnx", ".xml")
"""Of the files that `load_exported` reads."""


class ExportedModel:
    """A file's graph in the place of an `RCNN` in a `Detector`; CPU only.

    Attributes:
        score_thresh: score that all detections have at least; fixed in the file.
        wanted: `bool [K]`, classes that are told, None: all. The graph suppresses among all.
    """

    device = torch.device("cpu")

    def __init__(self, run: Callable[[np.ndarray], Sequence[np.ndarray]], score_thresh: float):
        self._run, self.score_thresh = run, score_thresh
        self.proposer = self  # the graph has its own
        self.wanted: Tensor | None = None

    def eval(self) -> "ExportedModel":
        """As it is always."""
        return self

    def detect(
        self, images: Sequence[Tensor], proposals: Sequence[Proposals] | None = None
    ) -> list[dict[str, Tensor]]:
        """See `RCNN.detect`; there can be no proposals of others."""
        if proposals is not None:
            raise ValueError("an exported detector has proposals of its own and takes no others")
        found = []
        for index, image in enumerate(images):
            check_image(image, f"images[{index}]")
            outputs = self._run(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
            one = dict(zip(OUTPUTS, map(torch.from_numpy, outputs), strict=True))
            if self.wanted is not None:
                keep = self.wanted[one["labels"] - 1]
                one = {name: tensor[keep] for name, tensor in one.items()}
            found.append(one)
        return found

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
    engine = "onnxruntime" if Path(path).suffix == ".onnx" else "openvino"
    require("export" if engine == "onnxruntime" else engine, engine)
    read = _read_onnx if engine == "onnxruntime" else _read_openvino
    try:
        texts, start = read(Path(path))
    except Exception as error:  # each library has its own
        reason = str(error).strip().rpartition("\n")[2]
        raise UserError(f"{path}: {engine} cannot read this file: {reason}") from error
    if json.loads(texts.get("kind", "null")) != "detector":
        raise UserError(
            f"{path}: expected a detector that tools.export wrote, found something else"
        )
    with broken_metadata(path):
        metadata = {key: json.loads(text) for key, text in texts.items()}
        model = ExportedModel(start(metadata["precision"]), float(metadata["score_thresh"]))
        names, ids = metadata["class_names"], metadata["category_ids"]
        return Detector(cast(RCNN, model), names, ids, {**metadata, "engine": engine})


Reading = tuple[dict[str, str], Callable[[str], Callable[[np.ndarray], Sequence[np.ndarray]]]]
"""Metadata, and what starts a graph in a precision."""


def _read_onnx(path: Path) -> Reading:
    import onnxruntime

    data = path.read_bytes()
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
