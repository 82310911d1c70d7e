"""What a file says of the network in it: one writer and one reader for every kind of file.

All kinds hold `kind`, `variant`, `width`, `input_size`, `mean`, `std` and `package_version`, and
where they are known `class_names`, `metrics` (scores it was measured at) and `training` (the
configuration of the run that made it).
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from backbones.common.addresses import without_secrets
from backbones.common.errors import MissingPackageError, UserError
from backbones.networks.inception import InceptionV3, check_standard
from backbones.networks.specs import BackboneSpec, find_spec
from backbones.networks.stems import stage_grids
from backbones.networks.weights import load_weights

_PACKAGE = "lowres-rcnn"


def describe(network: InceptionV3) -> dict[str, Any]:
    """What a user of the network must know to feed it, and what wrote this; raises as
    `check_standard`."""
    check_standard(network)
    spec = network.spec
    return {
        "variant": spec.name,
        "width": network.width,
        "input_size": spec.input_size,
        "mean": spec.mean,
        "std": spec.std,
        "package_version": package_version(),
    }


def checkpoint_metadata(
    kind: str,
    network: InceptionV3,
    class_names: Sequence[str] | None,
    metrics: Mapping[str, float] | None,
    training: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What every checkpoint for use says, see above, for `weights.save_weights`.

    Of addresses in the configuration no secrets are kept, for the file may be handed on. Of a
    detector the network is that on the crops.
    """
    return {
        "kind": kind,
        **describe(network),
        "class_names": None if class_names is None else list(class_names),
        "metrics": dict(metrics or {}),
        "training": None if training is None else _masked(dict(training)),
    }


def _masked(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _masked(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


def read_checkpoint(
    path: str | os.PathLike[str], kind: str, *, or_foreign: bool = False
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a file of one kind; nothing is executed.

    `or_foreign` takes files of other programs as well, which name no kind.

    Raises:
        UserError: missing, damaged, of another kind, or written by a newer release of this package,
            which may mean something else by the same names.
    """
    tensors, metadata = load_weights(path)
    found = metadata.get("kind")
    if found != kind and not (or_foreign and found is None):
        found = "a file without a kind" if found is None else f"kind {str(found)[:40]!r}"
        raise UserError(f"{path}: expected a checkpoint of kind {kind!r}, found {found}")
    written_by, own = metadata.get("package_version"), package_version()
    theirs, ours = _release(written_by), _release(own)
    if theirs and ours and theirs > ours:
        raise UserError(
            f"{path}: written by {_PACKAGE} {written_by}, newer than the installed {own}: "
            f"pip install --upgrade {_PACKAGE}"
        )
    return tensors, metadata


def spec_from_metadata(metadata: Mapping[str, Any]) -> BackboneSpec:
    """The variant with a file's normalisation and size; raises what `broken_metadata` takes."""
    spec = replace(
        find_spec(metadata["variant"]),
        mean=triple(metadata["mean"]),
        std=triple(metadata["std"]),
        input_size=metadata["input_size"],
    )
    return replace(spec, grids=stage_grids(spec, spec.input_size))


@contextmanager
def broken_metadata(path: str | os.PathLike[str], what: str = "metadata") -> Iterator[None]:
    """Turn what building from a file's metadata raises into one line that names the file."""
    try:
        yield
    except MissingPackageError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        # torch appends a stack trace to some messages.
        reason = f"no {error}" if isinstance(error, KeyError) else str(error).partition("\n")[0]
        raise UserError(f"{path}: broken {what}: {reason}") from error


def package_version() -> str:
    """Of this package; `unknown` where it runs from a source tree that was not installed."""
    try:
        return version(_PACKAGE)
    except PackageNotFoundError:
        return "unknown"


def _release(text: Any) -> tuple[int, int] | None:
    """Major and minor: files of patch releases are the same."""
    numbers = re.match(r"(\d{1,9})\.(\d{1,9})", str(text))
    return None if numbers is None else (int(numbers[1]), int(numbers[2]))


def triple(values: Any) -> tuple[float, float, float]:
    """Three numbers, of red, green and blue; raises `TypeError` or `ValueError` for others."""
    r, g, b = (float(value) for value in values)
    return r, g, b
