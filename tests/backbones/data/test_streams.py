"""Streamed images: each once in a pass, in batches that an interruption does not change."""

import itertools
import json
from collections import Counter, defaultdict

import pytest
import torch
from helpers.shard_server import pairs, png, serve, write_shard

from backbones.common.errors import UserError
from backbones.data import shards
from backbones.data.shards import expand_braces
from backbones.data.streams import StreamedImages, load_class_names, streamed_loader
from backbones.data.transforms import AugmentConfig

# More workers than this machine may have cores: what is tested is their order.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

SHARDS, IMAGES = 64, 4
WORKERS, RANKS = 3, 2


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A web server with 64 shards of 4 images each."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        write_shard(folder / f"train-{shard:04d}.tar", pairs(IMAGES * shard, IMAGES))
    (folder / "classes.json").write_text(json.dumps([f"digit {n}" for n in range(10)]))
    with serve(folder) as (url, _):
        yield url


def images(url, rank=0, workers=0, world_size=1, cursors=None, **options):
    shard_urls = expand_braces(f"{url}/train-{{0000..{SHARDS - 1:04d}}}.tar")
    options = {"batch_size": 5, "block": 3} | options
    return StreamedImages(
        shard_urls, 10, 8, AugmentConfig(), seed=7,
        rank=rank, workers=workers, world_size=world_size, cursors=cursors, **options,
    )  # fmt: skip


def take(dataset, count):
    return list(itertools.islice(streamed_loader(dataset), count))


def same(batch, other):
    return (
        torch.equal(batch.images, other.images)
        and torch.equal(batch.labels, other.labels)
        and (batch.names, batch.skipped, batch.cursor) == (other.names, other.skipped, other.cursor)
    )


def numbers(names):
    return [int(name.rpartition(":")[2].removesuffix(".png")) for name in names]


def test_every_image_is_seen_once_in_a_pass_over_workers_and_ranks(url):
    seen = defaultdict(list)
    for rank in range(RANKS):
        batches = take(images(url, rank, WORKERS, RANKS), 3 * 28)
        slots = [batch.cursor["slot"] for batch in batches]
        assert slots == [rank * WORKERS + step % WORKERS for step in range(len(batches))]
        for batch in batches:
            assert len(batch.names) == 5
            seen[batch.cursor["slot"]] += numbers(batch.names)
            # A pixel's level and the label say which image it is, too.
            assert batch.labels.tolist() == [number % 10 for number in numbers(batch.names)]

    passes = []
    for _ in range(3):
        # Where a slot's pass ends: it has every sixth shard, the first slots one more.
        counts = [IMAGES * len(range(slot, SHARDS, 6)) for slot in range(6)]
        of_slots = [[seen[slot].pop(0) for _ in range(counts[slot])] for slot in range(6)]
        together = Counter(itertools.chain(*of_slots))
        assert together == Counter(range(SHARDS * IMAGES))
        passes.append(of_slots)
    assert passes[0] != passes[1] != passes[2], "dealt anew"


@pytest.mark.parametrize("used", [2, 7, 63])
def test_a_stream_continues_exactly_from_its_cursors(url, used):
    whole = take(images(url, 1, WORKERS, RANKS), 70)
    cursors = {batch.cursor["slot"]: batch.cursor for batch in whole[:used]}
    cursors = json.loads(json.dumps(list(cursors.values())))  # as a checkpoint keeps them
    dataset = images(url, 1, WORKERS, RANKS, {cursor["slot"]: cursor for cursor in cursors})
    rest = take(dataset, 70 - used)
    assert all(same(*pair) for pair in zip(whole[used:], rest, strict=True))


def test_every_interruption_of_one_process_continues_exactly(url):
    whole = take(images(url), 110)  # two passes are 102 batches
    for used in range(1, 110, 6):
        cursor = whole[used - 1].cursor
        rest = take(images(url, cursors={0: cursor}), 3)
        assert all(map(same, whole[used:], rest)), used


def test_a_batch_is_split_for_accumulation(url):
    batch = next(iter(images(url, batch_size=6)))
    parts = batch.split(2)
    assert parts[0].names + parts[1].names == batch.names
    assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
    assert [part.labels.tolist() for part in parts] == batch.labels.reshape(2, 3).tolist()


def test_blocks_are_shuffled_and_nothing_else_is(tmp_path):
    write_shard(tmp_path / "a.tar", pairs(0, 10))
    dataset = StreamedImages(
        [str(tmp_path / "a.tar")], 10, 8, AugmentConfig(), 3, batch_size=5, workers=0, block=4
    )
    names = [numbers(batch.names) for batch in itertools.islice(dataset, 4)]
    first, second = names[0] + names[1], names[2] + names[3]
    for order in (first, second):
        blocks = [order[:4], order[4:8], order[8:]]
        assert [sorted(block) for block in blocks] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert first != second
    assert first != sorted(first)


def test_augmentation_depends_on_seed_pass_and_image_alone(url):
    def by_name(dataset, count):
        pairs = zip(*[(b.images, b.names) for b in take(dataset, count)], strict=True)
        batches, names = pairs
        return dict(zip(itertools.chain(*names), torch.cat(batches), strict=True))

    one = by_name(images(url), 51)
    two = [by_name(images(url, rank, 0, 2), 25) for rank in range(2)]
    for half in two:
        shared = one.keys() & half.keys()
        assert len(shared) > 60
        assert all(torch.equal(one[name], half[name]) for name in shared)


def test_broken_images_are_left_out_and_reported(tmp_path):
    members = pairs(0, 10)
    members[4] = ("0002.png", b"not an image")
    members[8] = ("0004.png", png(4)[:50])
    write_shard(tmp_path / "a.tar", members)
    paths = [str(tmp_path / "a.tar")]
    dataset = StreamedImages(paths, 10, 8, AugmentConfig(), 0, batch_size=8, workers=0)
    for batch in itertools.islice(dataset, 3):
        assert sorted(numbers(batch.names)) == [0, 1, 3, 5, 6, 7, 8, 9]
        assert batch.images.shape == (8, 3, 8, 8)
    dataset = StreamedImages(paths, 10, 8, AugmentConfig(), 0, batch_size=4, workers=0)
    skipped = [message for batch in itertools.islice(dataset, 5) for message in batch.skipped]
    assert sum("a.tar:0002.png: not an image" in message for message in skipped) >= 2
    assert sum("a.tar:0004.png: corrupt" in message for message in skipped) >= 2

    write_shard(tmp_path / "a.tar", [("0.png", b"?"), ("0.cls", b"1")])
    with pytest.raises(UserError, match=r"no image of a whole pass can be read.*a\.tar:0\.png"):
        next(iter(dataset))


def test_a_truncated_shard_loses_its_tail_alone(tmp_path, caplog):
    for shard in range(2):
        write_shard(tmp_path / f"{shard}.tar", pairs(10 * shard, 10))
    path = tmp_path / "1.tar"
    path.write_bytes(path.read_bytes()[: 10 * 4 * 512 // 2 + 600])
    shards._tell_once.cache_clear()
    paths = expand_braces(str(tmp_path / "{0..1}.tar"))
    dataset = StreamedImages(paths, 10, 8, AugmentConfig(), 0, batch_size=15, workers=0)
    for batch in itertools.islice(dataset, 3):
        assert sorted(numbers(batch.names)) == list(range(15))
    assert caplog.text.count("1.tar: damaged after 5 images") == 1


def test_errors_of_a_stream(url, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="64 shards are too few for 66 workers in 2 processes"):
        images(url, 0, 33, 2)
    cursor = next(iter(images(url))).cursor
    with pytest.raises(UserError, match="read by 1 workers in all and cannot be continued by 6"):
        images(url, 0, WORKERS, RANKS, {0: cursor})
    with pytest.raises(ValueError, match="num_workers=2"):
        next(iter(images(url, workers=2)))
    monkeypatch.setattr(shards, "RETRY_SECONDS", (0.0,))
    missing = StreamedImages([f"{url}/x.tar"], 10, 8, AugmentConfig(), 0, batch_size=1, workers=1)
    with pytest.raises(UserError, match=rf"{url}/x\.tar: the server says 404"):
        take(missing, 1)
    write_shard(tmp_path / "a.tar", pairs(0, 3))
    paths = [str(tmp_path / "a.tar")]
    dataset = StreamedImages(paths, 2, 8, AugmentConfig(), 0, batch_size=3, workers=0)
    with pytest.raises(UserError, match="label 2 but there are 2 classes"):
        next(iter(dataset))


def test_class_names(url, tmp_path):
    assert load_class_names("3") == ["0", "1", "2"]
    assert load_class_names(f"{url}/classes.json")[9] == "digit 9"
    (tmp_path / "classes.json").write_text('[{"index": 1, "name": "b"}, {"index": 0, "name": "a"}]')
    assert load_class_names(str(tmp_path / "classes.json")) == ["a", "b"]
    with pytest.raises(UserError, match=r"nowhere\.json"):
        load_class_names("nowhere.json")
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(UserError, match=r"classes\.json: expected a list of names"):
        load_class_names(str(tmp_path / "classes.json"))


@pytest.mark.parametrize("braces", ["{0..9999999}", "{x", "{0.9}"])
def test_messages_about_braces_keep_secrets(braces):
    with pytest.raises(UserError) as caught:
        expand_braces(f"https://me:hidden@host/{braces}.tar?token=hidden")
    assert "hidden" not in str(caught.value)
    assert "https://me:***@host" in str(caught.value)
