import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from backbones.classification.evaluation import evaluate_classifier
from backbones.common.errors import UserError
from backbones.data.datasets import EvaluationImages, ImageBatch, TrainingImages, collate
from backbones.data.sources import open_split
from backbones.data.transforms import AugmentConfig


def encode(color, size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


def write_folders(root, split="train", classes=("cat", "dog"), count=3):
    for label, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for index in range(count):
            data = encode((100 * label, 10 * index, 0))
            (root / split / name / f"{index}.jpg").write_bytes(data)


def write_shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def shard_members(count, first=0):
    for index in range(first, first + count):
        yield f"im_{index}.jpg", encode((index, 0, 0))
        yield f"im_{index}.cls", str(index % 3).encode()


def test_class_folders(tmp_path):
    write_folders(tmp_path)
    source = open_split(tmp_path, "train")
    assert source.class_names == ("cat", "dog")
    assert [source.read(index)[1] for index in range(len(source))] == [0, 0, 0, 1, 1, 1]
    assert source.read(4)[2].endswith("dog/1.jpg")


def test_what_a_folder_holds_besides_images(tmp_path, caplog):
    """Hidden files and folders are nothing, what cannot be read and what is missing is said."""
    write_folders(tmp_path)
    train = tmp_path / "train"
    for name in (".ipynb_checkpoints/cat.jpg", "cat/.ipynb_checkpoints/0.jpg", "cat/._0.jpg"):
        (train / name).parent.mkdir(exist_ok=True)
        (train / name).write_bytes(b"x")
    assert len(open_split(tmp_path, "train")) == 6
    assert caplog.messages == []
    (train / "cat" / "more").mkdir()
    (train / "cat" / "more" / "a.JFIF").write_bytes(encode((0, 0, 0)))
    (train / "cat" / "more" / "a.HEIC").write_bytes(b"x")
    (train / "dog" / "a.mts").write_bytes(b"x")
    (train / "emu").mkdir()
    source = open_split(tmp_path, "train")
    assert source.class_names == ("cat", "dog", "emu")
    assert len(source) == 7
    assert caplog.messages == [
        f"{train}: left out for their suffix: 2 (.HEIC, .mts)",
        f"{train}: classes without an image: emu",
    ]


def test_validation_uses_the_labels_of_training(tmp_path):
    write_folders(tmp_path, "val", classes=("dog",))
    assert open_split(tmp_path, "val", ["cat", "dog"]).read(0)[1] == 1
    with pytest.raises(UserError, match="class 'dog' is not in the training split"):
        open_split(tmp_path, "val", ["cat"])


def test_shards_are_read_in_any_order(tmp_path):
    write_shard(tmp_path / "train-0000.tar", shard_members(4))
    write_shard(tmp_path / "train-0001.tar", shard_members(4, first=4))
    source = open_split(tmp_path, "train")
    assert (len(source), source.class_names) == (8, ("0", "1", "2"))
    for index in (7, 0, 5, 3):
        data, label, name = source.read(index)
        assert (data, label) == (encode((index, 0, 0)), index % 3)
        assert name.endswith(f"train-000{index // 4}.tar:im_{index}.jpg")


def test_class_names_beside_shards(tmp_path):
    write_shard(tmp_path / "train-0000.tar", shard_members(3))
    entries = [{"index": i, "name": name} for i, name in [(2, "c"), (0, "a"), (1, "b")]]
    (tmp_path / "classes.json").write_text(json.dumps(entries))
    assert open_split(tmp_path, "train").class_names == ("a", "b", "c")
    (tmp_path / "classes.json").write_text('["a", "b"]')
    with pytest.raises(UserError, match="label 2 but there are 2 classes"):
        open_split(tmp_path, "train")
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(UserError, match=r"classes\.json: expected a list"):
        open_split(tmp_path, "train")


def test_a_shard_cut_off_anywhere_costs_its_tail_only(tmp_path, caplog):
    path = tmp_path / "train-0000.tar"
    write_shard(path, shard_members(4))
    with tarfile.open(path) as tar:
        end = max(member.offset_data + 512 for member in tar.getmembers())
    whole = path.read_bytes()
    for cut in (end, end - 100, end - 512, end - 700, end - 1100, end // 2 + 100, 3000):
        caplog.clear()
        path.write_bytes(whole[:cut])
        source = open_split(tmp_path, "train")
        assert 1 <= len(source) <= 4
        assert "damaged after" in caplog.text, cut
        dataset = TrainingImages(source, 8, AugmentConfig(), seed=0)
        assert all(dataset[0, index].image is not None for index in range(len(source)))
    path.write_bytes(whole)
    caplog.clear()
    assert len(open_split(tmp_path, "train")) == 4
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.jpg", b"x"), ("a.cls", b"seven")], r"a\.cls: expected a label of 0 or more"),
        ([("a.txt", b"x")], "expected members NAME.jpg and NAME.cls"),
    ],
)
def test_bad_shards(tmp_path, members, message):
    write_shard(tmp_path / "train-0.tar", members)
    with pytest.raises(UserError, match=message):
        open_split(tmp_path, "train")


def test_missing_data(tmp_path):
    with pytest.raises(UserError, match="found neither a folder train/CLASS nor shards"):
        open_split(tmp_path, "train")
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match="expected images in CLASS folders"):
        open_split(tmp_path, "train")


def test_the_key_alone_decides_the_pixels(tmp_path):
    write_folders(tmp_path)
    dataset = TrainingImages(open_split(tmp_path, "train"), 16, AugmentConfig(), seed=5)
    first = dataset[2, 1].image
    torch.manual_seed(99)
    assert torch.equal(first, dataset[2, 1].image)
    assert not torch.equal(first, dataset[3, 1].image)


def test_corrupt_images_are_replaced_in_training_and_left_out_in_evaluation(tmp_path, caplog):
    write_folders(tmp_path)
    (tmp_path / "train/cat/1.jpg").write_bytes(b"not an image")
    source = open_split(tmp_path, "train")
    example = TrainingImages(source, 8, AugmentConfig(), seed=0)[0, 1]
    assert example.name.endswith("cat/2.jpg")
    assert "cat/1.jpg" in example.skipped[0]
    evaluation = EvaluationImages(source, 8, 0.875)
    batch = collate([evaluation[index] for index in range(6)])
    assert batch.images.shape == (5, 3, 8, 8)
    assert batch.labels.tolist() == [0, 0, 1, 1, 1]
    assert len(batch.skipped) == 1

    def predict_dog(images):
        return torch.tensor([[0.0, 1.0]]).repeat(len(images), 1)

    assert evaluate_classifier(predict_dog, [batch]) == {"top1": 3 / 5, "top5": 1.0}
    assert "left out 1 unreadable images" in caplog.text


def test_nothing_readable(tmp_path):
    write_folders(tmp_path, classes=("cat",), count=1)
    (tmp_path / "train/cat/0.jpg").write_bytes(b"")
    source = open_split(tmp_path, "train")
    with pytest.raises(UserError, match="none of the 1 training images can be read"):
        TrainingImages(source, 8, AugmentConfig(), seed=0)[0, 0]
    assert len(collate([EvaluationImages(source, 8, 0.875)[0]]).labels) == 0


def test_top5_counts_over_uneven_batches():
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(23, 9, generator=random)
    labels = torch.randint(9, (23,), generator=random)
    order = logits.argsort(dim=1, descending=True)
    expected1 = sum(int(order[i, 0] == labels[i]) for i in range(23)) / 23
    expected5 = sum(int(labels[i] in order[i, :5]) for i in range(23)) / 23
    rows = torch.arange(23, dtype=torch.uint8).reshape(23, 1, 1, 1).repeat(1, 3, 1, 1)
    batches = [ImageBatch(rows[i : i + 10], labels[i : i + 10], [], []) for i in (0, 10, 20)]
    scores = evaluate_classifier(lambda images: logits[images[:, 0, 0, 0].long()], batches)
    assert scores == {"top1": expected1, "top5": expected5}


def damage(data: bytes) -> bytes:
    """Overwrite a stretch in the middle of the coded pixels."""
    middle = len(data) // 2
    return data[:middle] + bytes(20) + data[middle + 20 :]


def image_file(kind: str) -> bytes:
    """A file of one kind, its pixels a ramp from black to white."""
    ramp = np.linspace(0, 255, 160).astype(np.uint8)[None].repeat(120, axis=0)
    buffer = io.BytesIO()
    if kind == "16-bit PNG":
        Image.fromarray(ramp.astype(np.uint16) * 257).save(buffer, "PNG")
    elif kind == "palette PNG":
        Image.fromarray(ramp).convert("P").save(buffer, "PNG")
    else:
        mode = {"grey": "L", "CMYK": "CMYK"}.get(kind, "RGB")
        Image.fromarray(ramp).convert("RGB").convert(mode).save(buffer, "JPEG", quality=95)
    data = buffer.getvalue()
    return {
        "truncated": data[: len(data) // 2],
        "without its last bytes": data[:-4],
        "header only": data[:20],
        "empty": b"",
        "text": b"<html>not found</html>",
        "corrupt PNG": damage(encode_png(ramp)),
    }.get(kind, data)


def encode_png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


READABLE = ("RGB", "grey", "CMYK", "16-bit PNG", "palette PNG")
UNREADABLE = (
    *("truncated", "without its last bytes", "header only", "empty", "text", "corrupt PNG"),
)


@pytest.fixture
def one_of_each(tmp_path):
    folder = tmp_path / "train" / "ramp"
    folder.mkdir(parents=True)
    for kind in (*READABLE, *UNREADABLE):
        (folder / f"{kind}.jpg").write_bytes(image_file(kind))
    return open_split(tmp_path, "train")


@pytest.mark.parametrize("size", [16, 100])
def test_every_kind_of_image_trains_and_is_evaluated(one_of_each, size):
    training = TrainingImages(one_of_each, size, AugmentConfig(flip=False), seed=0)
    evaluation = EvaluationImages(one_of_each, size, 0.875)
    for index in range(len(one_of_each)):
        _, _, name = one_of_each.read(index)
        trained, evaluated = training[0, index], evaluation[index]
        assert trained.image.shape == (3, size, size)
        if any(name.endswith(f"{kind}.jpg") for kind in READABLE):
            assert (trained.name, evaluated.name) == (name, name)
            assert trained.skipped == evaluated.skipped == []
            for image in (trained.image, evaluated.image):
                grey = image.float().mean(dim=0)
                assert float((image - grey).abs().max()) < 8, "the ramp is grey"
                assert float(grey[:, -1].mean() - grey[:, 0].mean()) > 30, "from dark to light"
            ramp = torch.linspace(30, 225, size)  # the central square of 160 by 120, cut to 7/8
            assert float((evaluated.image[0].float() - ramp).abs().max()) < 30
        else:
            assert trained.name != name
            assert name in trained.skipped[0]
            assert evaluated.image is None
            assert name in evaluated.skipped[0]
    batch = collate([evaluation[index] for index in range(len(one_of_each))])
    assert len(batch.images) == len(READABLE)
    assert len(batch.skipped) == len(UNREADABLE)


def test_a_jpeg_with_damaged_pixels_is_read_as_every_program_reads_it(tmp_path):
    """The decoder cannot tell; nothing crashes, nothing is skipped."""
    folder = tmp_path / "train" / "ramp"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(damage(image_file("RGB")))
    source = open_split(tmp_path, "train")
    assert TrainingImages(source, 16, AugmentConfig(), seed=0)[0, 0].skipped == []
    assert EvaluationImages(source, 16, 0.875)[0].image.shape == (3, 16, 16)
