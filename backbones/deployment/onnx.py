"""Networks as ONNX files, which run without PyTorch."""

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from backbones.common.files import atomic_write
from backbones.common.packages import quiet, require
from backbones.deployment.folding import fold_batch_norm
from backbones.networks.inception import InceptionV3
from backbones.networks.metadata import describe

OPSET = 20
"""Version of ONNX's operators, the newest that `torch.onnx` writes by itself."""

_TOLERANCE = 1e-4
_CHECKED_BATCHES = (1, 3)  # neither is the one that the network is traced with


def export_backbone(
    path: str | Path, model: InceptionV3, class_names: Sequence[str] | None = None
) -> float:
    """Write a network as ONNX: `images` float `[batch, 3, S, S]` in, S the variant's input size.

    What comes out is `logits [batch, num_classes]`, or `features [batch, num_features]` without
    classes. Images are normalised by the `mean` and `std` in the file's metadata, which has the
    class names too. Returns and raises as `export_onnx`.
    """
    outputs = ("logits" if model.num_classes else "features",)
    metadata = describe(model) | {"class_names": class_names}
    return export_onnx(path, fold_batch_norm(model), model.input_size, outputs, metadata)


def export_onnx(
    path: str | Path,
    network: nn.Module,
    size: int,
    output_names: Sequence[str],
    metadata: Mapping[str, Any],
) -> float:
    """Write a network that takes `images` float `[batch, 3, size, size]`, and run the file.

    The file is put in place only if ONNX Runtime gets the outputs of `network` from it, for batches
    of 1 and of 3 random images.

    Args:
        path: the `.onnx` file to write.
        network: on the CPU, in evaluation mode, in fp32.
        size: side of its images in pixels.
        output_names: one for each tensor that it returns.
        metadata: stored as JSON under its keys.

    Returns:
        The largest absolute difference of an output.

    Raises:
        MissingPackageError: the extra is not installed.
        RuntimeError: ONNX Runtime computes something else.
    """
    require("export", "onnx", "onnxscript", "onnxruntime")
    data = _to_onnx(network, size, output_names, metadata)
    worst = _largest_difference(data, network, size, output_names)
    with atomic_write(path) as file:
        file.write(data)
    return worst


def _to_onnx(
    network: nn.Module, size: int, output_names: Sequence[str], metadata: Mapping[str, Any]
) -> bytes:
    program = torch.export.export(
        network,
        (torch.zeros(2, 3, size, size),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
    )
    return to_onnx(program, ["images"], output_names, metadata)


def to_onnx(
    program: torch.export.ExportedProgram,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, Any],
    translations: dict[Callable, Callable] | None = None,
) -> bytes:
    """A program as ONNX's model; the metadata each as JSON under its key.

    With `translations` of operations that are not torch's it has the version of operators that
    these are written in, 18, which `torch.onnx` converts from.
    """
    with warnings.catch_warnings(), quiet("onnxscript", "onnx_ir"):
        warnings.simplefilter("ignore")  # of torch's own deprecations
        exported = torch.onnx.export(
            program,
            input_names=list(input_names),
            output_names=list(output_names),
            opset_version=OPSET if translations is None else 18,
            dynamo=True,
            custom_translation_table=translations,
            verbose=False,
        )
    assert exported is not None
    proto = exported.model_proto
    for key, value in metadata.items():
        proto.metadata_props.add(key=key, value=json.dumps(value))
    return proto.SerializeToString()


def _largest_difference(
    data: bytes, network: nn.Module, size: int, output_names: Sequence[str]
) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    random = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in _CHECKED_BATCHES:
        images = torch.randn(batch, 3, size, size, generator=random)
        with torch.inference_mode():
            outputs: Tensor | tuple[Tensor, ...] = network(images)
        expected = (outputs,) if isinstance(outputs, Tensor) else outputs
        found = session.run(list(output_names), {"images": images.numpy()})
        for name, ours, theirs in zip(output_names, expected, found, strict=True):
            difference = float((ours - torch.from_numpy(theirs)).abs().max())
            if not difference <= _TOLERANCE * max(1.0, float(ours.abs().max())):
                raise RuntimeError(
                    f"ONNX Runtime computes other {name}: off by {difference:.2g} in a batch of "
                    f"{batch}; nothing was written"
                )
            worst = max(worst, difference)
    return worst
