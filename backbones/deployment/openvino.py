"""Networks that OpenVINO runs on the CPU: in bf16 or fp32, or quantised to 8-bit integers.

In bf16 it is faster than anything that PyTorch offers. In int8 it was the fastest of all that were
measured, twice as fast as PyTorch's bf16 (ONNX Runtime's int8 was slower than that). A network
takes images of one size.
"""

import contextlib
import functools
import io
import tempfile
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbones.common.device import resolve_precision
from backbones.common.errors import UserError
from backbones.common.packages import quiet, require
from backbones.deployment.folding import fold_batch_norm
from backbones.deployment.pytorch import DeployPrecision, check_precision
from backbones.networks.inception import InceptionV3, check_images
from backbones.networks.metadata import (
    broken_metadata,
    describe,
    read_checkpoint,
    spec_from_metadata,
)
from backbones.networks.normalization import normalize
from backbones.networks.specs import BackboneSpec
from backbones.networks.weights import save_weights

_SETTINGS = {
    "fp32": {"INFERENCE_PRECISION_HINT": "f32"},
    "bf16": {"INFERENCE_PRECISION_HINT": "bf16"},
    "int8": {},
}
"""By precision; of a quantised network OpenVINO chooses that of the rest."""


class _Requests(threading.local):
    """What runs a network for a thread, by the number of threads that it computes in."""

    def __init__(self) -> None:
        self.by_threads: dict[int, Any] = {}


class CompiledModel:
    """A model of OpenVINO, compiled for as many threads as torch has where it is called."""

    def __init__(self, model: Any, precision: str) -> None:
        self._model, self._precision = model, precision
        self._cores = torch.get_num_threads()
        self._compiled: dict[int, Any] = {}
        self._compiling = threading.Lock()
        self._requests = _Requests()
        self._request(self._cores)

    def __call__(self, inputs: np.ndarray) -> list[np.ndarray]:
        """What the model makes of its one input."""
        return list(self._request(torch.get_num_threads()).infer(inputs).values())

    def _request(self, threads: int) -> Any:
        """What runs the model for the calling thread, on so many threads."""
        requests = self._requests.by_threads
        if threads not in requests:
            with self._compiling:
                if threads not in self._compiled:
                    streams = max(1, self._cores // threads)
                    settings = {
                        "INFERENCE_NUM_THREADS": str(streams * threads),
                        "NUM_STREAMS": str(streams),
                    }
                    settings |= _SETTINGS[self._precision]
                    self._compiled[threads] = core().compile_model(self._model, "CPU", settings)
                requests[threads] = self._compiled[threads].create_infer_request()
        return requests[threads]


class OpenVINONetwork(nn.Module):
    """A network in the place of the `InceptionV3` it was made from; CPU only.

    Made by `convert`, `quantize` or `load_openvino`. It uses as many threads as
    `torch.get_num_threads()` says where it is called. Callers in several threads do not wait for
    each other while they have together no more than it said where the network was made.

    Attributes:
        precision: `fp32`, `bf16` or `int8`.
        spec: the variant, with the file's normalisation.
        num_classes: size of the classifier, 0 for none.
        num_features: size of what it returns without classes.
        metadata: everything the file says.
    """

    def __init__(self, graph: bytes, weights: np.ndarray, metadata: dict[str, Any]) -> None:
        super().__init__()
        import openvino

        self.graph, self.weights, self.metadata = graph, weights, metadata
        self.precision: str = metadata["precision"]
        self.spec: BackboneSpec = spec_from_metadata(metadata)
        self.num_classes: int = metadata["num_classes"]
        self.num_features: int = metadata["num_features"]
        model = core().read_model(graph, openvino.Tensor(weights))
        self._compiled = CompiledModel(model, self.precision)
        self.eval()

    @property
    def input_size(self) -> int:
        """Side in pixels of the images it takes, no others."""
        return self.spec.input_size

    def train(self, mode: bool = True) -> "OpenVINONetwork":
        """Raise `ValueError` for training mode."""
        if mode:
            raise ValueError(
                "a network of OpenVINO cannot be trained: train the one it is made from"
            )
        return super().train(False)

    def __reduce__(self) -> Any:
        # What OpenVINO compiles can neither be copied nor pickled.
        return OpenVINONetwork, (self.graph, self.weights, self.metadata)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `float32 [N, num_classes]`, or pooled features without classes.

        Args:
            x: float images `[N, 3, S, S]` normalised by `spec.mean` and `spec.std`, or `uint8` RGB
                images; S is `input_size`.

        Raises:
            ValueError: not such images.
        """
        x = _as_input(x, self.spec)
        size = self.input_size
        if x.shape[-2:] != (size, size):
            shape = list(x.shape)
            raise ValueError(f"this network was made for [N, 3, {size}, {size}], got {shape}")
        if not len(x):
            return torch.zeros(0, self.num_classes or self.num_features)
        return torch.from_numpy(self._compiled(x.numpy())[0])

    def save(self, path: str | Path) -> None:
        """Write one `.safetensors` file for `load_openvino`."""
        tensors = {
            "graph": torch.frombuffer(bytearray(self.graph), dtype=torch.uint8),
            "weights": torch.from_numpy(self.weights),
        }
        save_weights(path, tensors, self.metadata)


def convert(
    model: InceptionV3,
    precision: DeployPrecision = "auto",
    image_size: int | None = None,
) -> OpenVINONetwork:
    """The network in OpenVINO, with the same outputs to within its precision.

    Args:
        model: a network in evaluation mode, on the CPU.
        precision: of weights and maps; `auto` is `bf16` where the processor computes in it.
        image_size: side of its images; by default the variant's input size.

    Raises:
        MissingPackageError: the extra is not installed.
        ValueError: `model` is in training mode, `image_size` is too small for it, or another
            precision.
    """
    check_precision(precision)
    require("openvino", "openvino")
    side = model.input_size if image_size is None else image_size
    resolved = resolve_precision(precision, torch.device("cpu"))
    return OpenVINONetwork(*_serialized(_converted(model, side)), _metadata(model, side, resolved))


def quantize(model: InceptionV3, calibration_images: Iterable[Tensor]) -> OpenVINONetwork:
    """Quantise weights and maps to 8 bits, by the ranges that the maps have on given images.

    Args:
        model: a network in evaluation mode, on the CPU.
        calibration_images: batches like those it will see, as `OpenVINONetwork.forward` takes them,
            all of one size, which becomes that of the quantised network. Some hundred images do.

    Raises:
        UserError: the extra is not installed, or there are no images.
        ValueError: `model` is in training mode, or images it cannot take.
    """
    require_quantization()
    import nncf

    batches = [_as_input(images, model.spec) for images in calibration_images]
    if not batches:
        raise UserError("quantisation needs images: calibration_images is empty")
    sides = {side for images in batches for side in images.shape[2:]}
    if len(sides) > 1:
        raise ValueError(f"calibration_images must be squares of one size, got sides {sides}")
    (side,) = sides
    with _silent():
        data = nncf.Dataset([images.numpy() for images in batches])
        quantized = nncf.quantize(_converted(model, side), data, **_settings(len(batches)))
    return OpenVINONetwork(*_serialized(quantized), _metadata(model, side, "int8"))


@functools.cache
def core() -> Any:
    """OpenVINO's one object for all networks of the process, as its makers advise.

    With one for each network, processes that had dropped some of them ended by a segmentation fault
    later, when they trained (OpenVINO 2026.4; `test_openvino` and then `test_resume` showed it).
    """
    import openvino

    return openvino.Core()


def require_quantization() -> None:
    """Raise `MissingPackageError` unless the packages that quantise are installed."""
    with _silent():
        require("openvino", "openvino", "nncf")


def load_openvino(path: str | Path) -> OpenVINONetwork:
    """Read a network that `OpenVINONetwork.save` wrote.

    Raises:
        UserError: missing, damaged, another kind of file, of a newer release, or the extra is not
            installed.
    """
    require("openvino", "openvino")
    tensors, metadata = read_checkpoint(path, "openvino")
    with broken_metadata(path, "network of OpenVINO"):
        graph, weights = tensors["graph"].numpy().tobytes(), tensors["weights"].numpy()
        return OpenVINONetwork(graph, weights, metadata)


def _converted(model: InceptionV3, side: int) -> Any:
    """OpenVINO's form of a network, for batches of any number of images."""
    import openvino

    example = torch.zeros(2, 3, side, side)
    check_images(example, model.spec)
    folded = fold_batch_norm(model)
    with warnings.catch_warnings(), quiet("torch.utils.cpp_extension"):
        warnings.simplefilter("ignore")  # of tracing's constants
        return openvino.convert_model(folded, example_input=example, input=[-1, 3, side, side])


def _metadata(model: InceptionV3, side: int, precision: str) -> dict[str, Any]:
    return describe(model) | {
        "kind": "openvino",
        "precision": precision,
        "input_size": side,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
    }


def _settings(batches: int) -> dict[str, Any]:
    """How NNCF quantises; decided by agreement with fp32 on Tiny ImageNet."""
    from nncf import IgnoredScope
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return {
        "subset_size": batches,
        # The first convolution sees the image itself, the classifier decides: both cost little.
        "ignored_scope": IgnoredScope(
            types=["MatMul"], patterns=[r".*stem\.conv1.*Convolution.*"], validate=False
        ),
        "advanced_parameters": AdvancedQuantizationParameters(
            # Ranges that no calibration image leaves; by default they are a mean over batches.
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
            # Its shift of the biases made agreement worse.
            disable_bias_correction=True,
        ),
    }


def _as_input(images: Tensor, spec: BackboneSpec) -> Tensor:
    """Checked and normalised, `float32`."""
    check_images(images, spec)
    if images.dtype == torch.uint8:
        return normalize(images, spec.mean, spec.std)
    return images.float()


def _serialized(model: Any) -> tuple[bytes, np.ndarray]:
    """The graph as XML and the weights as bytes, which OpenVINO only writes to files."""
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
        return path.read_bytes(), np.fromfile(path.with_suffix(".bin"), np.uint8)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep NNCF's progress bars off stdout, and its and torch's chatter off stderr."""
    with quiet("nncf", "torch.utils.cpp_extension"), contextlib.redirect_stdout(io.StringIO()):
        yield
