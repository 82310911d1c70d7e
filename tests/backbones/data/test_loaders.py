"""Which images a configuration names, and in which order they are served."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.shard_server import pairs, png, write_shard

from backbones.common.errors import UserError
from backbones.data.loaders import (
    ImagesConfig,
    ImageSources,
    build_train_loader,
    build_val_loader,
    open_sources,
)
from backbones.data.sampler import EpochSampler
from backbones.data.streams import StreamedTraining
from backbones.data.transforms import AugmentConfig
from backbones.networks.specs import SPECS

SPEC = SPECS["inception_v3_79"]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Three classes of three training and two validation images, and two shards of four."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("ant", "bee", "cat")):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                (folder / split / name / f"{index}.png").write_bytes(png(10 * label + index))
    for shard in range(2):
        members = pairs(4 * shard, 4)
        labelled = [(n, b"1" if n.endswith("cls") else data) for n, data in members]
        write_shard(folder / f"a-{shard}.tar", labelled)
    (folder / "four.json").write_text(json.dumps(["ant", "bee", "cat", "dog"]))
    return folder


def test_root_holds_both_splits(root):
    sources = open_sources(ImagesConfig(root=str(root)))
    assert sources.class_names == ["ant", "bee", "cat"]
    assert (sources.num_train, len(sources.val)) == (9, 6)
    names = [sources.train.read(index)[2] for index in range(9)]
    assert all(name.startswith(f"{root}/train/") for name in names)
    with pytest.raises(UserError, match="nowhere: found neither a folder train/CLASS nor shards"):
        open_sources(ImagesConfig(root="nowhere"))


def test_max_classes_leaves_the_first_ones_of_both_splits(root):
    sources = open_sources(ImagesConfig(root=str(root), max_classes=2))
    assert sources.class_names == ["ant", "bee"]
    assert (sources.num_train, len(sources.val)) == (6, 4)
    labels = [source.read(i)[1] for source in (sources.train, sources.val) for i in range(4)]
    assert set(labels) == {0, 1}


def sampler(sources: ImageSources, **options) -> EpochSampler:
    return EpochSampler(sources.num_train, **({"batch_size": 2, "epochs": 2, "seed": 3} | options))


def test_train_shards_are_streamed_and_train_images_make_an_epoch(root):
    config = ImagesConfig(
        root=str(root),
        train_shards=f"{root}/a-{{0..1}}.tar",
        train_images=7,
        classes=str(root / "four.json"),
    )
    sources = open_sources(config)
    assert sources.train == [f"{root}/a-0.tar", f"{root}/a-1.tar"]
    assert sources.class_names == ["ant", "bee", "cat", "dog"]  # of `classes`
    assert sampler(sources).steps_per_epoch == 3
    loader = build_train_loader(
        sources, SPEC, AugmentConfig(), sampler(sources), workers=0, pin_memory=False
    )
    assert isinstance(loader, StreamedTraining)
    batches = iter(loader)
    names = [name for _ in range(4) for name in next(batches).names]
    assert sorted(names) == [f"{root}/a-{i // 4}.tar:{i:04d}.png" for i in range(8)]
    # Validation images are those of `root`, with the labels of `classes`.
    assert {sources.val.read(index)[1] for index in range(6)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": None}, "data.train_shards needs data.train_images"),
        ({"classes": None}, "data.train_shards needs data.classes"),
        ({"train_shards": None}, "data.train_images is for data.train_shards"),
        ({"train_images": 0}, "data.train_images must be at least 1 or null, got 0"),
        ({"max_classes": 2}, "data.max_classes does not apply to data.train_shards"),
        ({"max_classes": 1}, "data.max_classes must be at least 2 or null, got 1"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(change, message):
    streamed = ImagesConfig(train_shards="a.tar", train_images=7, classes="4")
    with pytest.raises(UserError, match=message):
        replace(streamed, **change)


def test_batches_follow_the_plan_and_validation_is_shared_out(root):
    sources = open_sources(ImagesConfig(root=str(root)))
    config = AugmentConfig(min_area=1.0)
    train = build_train_loader(sources, SPEC, config, sampler(sources), workers=2, pin_memory=False)
    assert (train.num_workers, train.dataset.size, train.dataset.config) == (2, 79, config)
    keys = [key for batch in sampler(sources) for key in batch]
    served = [name for batch in train for name in batch.names]
    assert served == [sources.train.read(index)[2] for _, index in keys]
    parts = []
    for rank in range(2):
        of_rank = sampler(sources, rank=rank, world_size=2)
        val = build_val_loader(sources, SPEC, of_rank, workers=0, pin_memory=False)
        parts += [name for batch in val for name in batch.names]
    assert sorted(parts) == [sources.val.read(index)[2] for index in range(6)]
