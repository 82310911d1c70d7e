"""Batches come from their workers whatever room there is in shared memory."""

import resource
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from backbones.data import handover
from backbones.data.sampler import EpochSampler, training_loader


class Pair(NamedTuple):
    images: list[Tensor]
    targets: list[dict[str, Tensor]]
    names: list[str]


class Photographs(Dataset):
    """Of a megabyte; a worker may make shared memory of half of that, and gets an error for more,
    as where `/dev/shm` is full."""

    def __init__(self, is_narrow: bool) -> None:
        self.is_narrow = is_narrow

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, str]:
        if self.is_narrow and get_worker_info() is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))
        image = torch.full((2**20,), key[1], dtype=torch.uint8)
        return image.view(2**10, 2**10).t(), f"{key[1]}.png"


def collate(examples: list[tuple[Tensor, str]]) -> Pair:
    images, names = map(list, zip(*examples, strict=True))
    return Pair(images, [{"boxes": image[:2, :4].float()} for image in images], names)


@pytest.mark.parametrize("is_narrow", [True, False])
def test_a_batch_arrives_as_it_was_made(is_narrow, caplog, monkeypatch):
    handover._warn.cache_clear()

    def batches(workers: int) -> list[Pair]:
        sampler = EpochSampler(8, 2, epochs=1, seed=0)
        loader = training_loader(
            Photographs(is_narrow), sampler, workers=workers, collate_fn=collate
        )
        loader.timeout = 60 if workers else 0  # torch's own way would stand still
        return list(loader)

    expected, got = batches(0), batches(1)
    assert len(got) == 4
    for one, other in zip(got, expected, strict=True):
        assert type(one) is Pair
        assert one.names == other.names
        for image, wanted in zip(one.images, other.images, strict=True):
            assert torch.equal(image, wanted)
            assert image.stride() == wanted.stride()
            assert image.is_shared() != is_narrow
        assert all(map(torch.equal, *([t["boxes"] for t in b.targets] for b in (one, other))))
    assert caplog.text.count("shared memory (/dev/shm) is too small") == is_narrow
