"""How a batch comes from the worker that read it: in shared memory, or, where that is full, copied.

Containers often have 64 MB of /dev/shm. A loader of torch's whose worker finds it full prints a
traceback and stands still for ever, for the batch is lost on its way.
"""

import functools
import logging
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import get_worker_info

logger = logging.getLogger(__name__)


def sendable(collate_fn: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A loader's `collate_fn` whose batches always come from the worker to its owner.

    In a worker the tensors in a batch (in tuples, lists and mappings too) move to shared memory; if
    they do not fit there, the batch arrives as a copy, equal in every bit, and a warning in the log
    says once how to make room.
    """
    return functools.partial(_collate, collate_fn)


def _collate(collate_fn: Callable[[Any], Any], examples: Any) -> Any:
    batch = collate_fn(examples)
    if get_worker_info() is None:
        return batch
    try:
        for tensor in _tensors(batch):
            tensor.share_memory_()
    except RuntimeError:  # no space, or too many open files
        return _Copied(batch)
    return batch


class _Copied:
    """What becomes the batch where it is unpickled."""

    def __init__(self, batch: Any) -> None:
        # Not by multiprocessing's pickler, which moves tensors to shared memory.
        self.data = pickle.dumps(batch)

    def __reduce__(self) -> Any:
        return _batch_of, (self.data,)


def _batch_of(data: bytes) -> Any:
    _warn()
    return pickle.loads(data)


@functools.cache
def _warn() -> None:
    logger.warning(
        "shared memory (/dev/shm) is too small for the batches, which are copied instead: give a "
        "container more, by docker run --shm-size 1g"
    )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
