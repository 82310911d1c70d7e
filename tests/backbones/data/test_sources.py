"""Nothing of a data set is labelled wrongly or left unread in silence."""

import shutil
import unicodedata

import pytest
from helpers.shard_server import pairs, png, write_shard

from backbones.classification.classifiers import open_matching_split
from backbones.common.errors import UserError
from backbones.data import shards
from backbones.data.shards import read_shard
from backbones.data.sources import open_split, parse_class_names


@pytest.fixture
def root(tmp_path):
    """`train/` with two classes of one image each."""
    for number, name in enumerate(("cat", "dog")):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.png").write_bytes(png(number))
    return tmp_path


def labels_by_name(source):
    """Name of the class of each image of a shard, by the image's own name."""
    read = (source.read(index) for index in range(len(source)))
    return {name.rpartition(":")[2]: source.class_names[label] for _, label, name in read}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"dog": 1, "cat": 0}', "expected a list of names"),
        ('{"0": "cat"}', "expected a list of names"),
        ('"cat"', "expected a list of names"),
        ("[]", "expected a list of names"),
        ("null", "expected a list of names"),
        ('["cat", 1]', "expected a list of names"),
        ('["cat", {"index": 1, "name": "dog"}]', "expected a list of names"),
        ('[{"index": 0, "name": 5}]', "expected a list of names"),
        ('[{"index": 1, "name": "a"}, {"index": 1, "name": "b"}]', "expected a list of names"),
        ('["cat", "dog", "cat"]', "expected different names, 'cat' stands there 2 times"),
        ('[{"index": 0, "name": "a"}, {"index": 1, "name": "a"}]', "expected different names, 'a'"),
        ('["B\\u00e4r", "Ba\\u0308r"]', "expected different names"),
    ],
)
def test_class_names_are_a_list_of_different_texts(text, message):
    with pytest.raises(UserError, match=rf"^DIR/classes\.json: {message}"):
        parse_class_names(text.encode(), "DIR/classes.json")


def test_shards_are_labelled_by_the_names_beside_them(root, caplog):
    """Whatever order the classes have in training, or in the weights that are evaluated."""
    write_shard(root / "val-0.tar", [("a.png", png(0)), ("a.cls", b"0")])
    (root / "classes.json").write_text('["dog", "cat"]')
    train = open_split(root, "train")
    assert train.class_names == ("cat", "dog")
    for val in (
        open_split(root, "val", train.class_names),
        open_matching_split(root, "val", train.class_names),
    ):
        assert (val.class_names, val.labels) == (("cat", "dog"), [1])
        assert labels_by_name(val) == {"a.png": "dog"}
    assert caplog.messages == []
    (root / "classes.json").write_text('["dog", "cow"]')
    message = r"classes\.json: class 'cow' is not in the training split, or data\.classes"
    with pytest.raises(UserError, match=message):
        open_split(root, "val", train.class_names)
    (root / "classes.json").unlink()
    assert open_split(root, "val", train.class_names).labels == [0]
    assert caplog.messages == [
        f"{root}/classes.json: not there: nothing says which class has which label, taken as in "
        "training: 0 is cat"
    ]
    open_split(root, "val", ["0", "1"])
    assert len(caplog.messages) == 1, "numbers are what they are"


def test_shards_that_are_not_read_are_counted(root, caplog):
    for name in ("train-0000.tar", "train-0001.tar"):
        write_shard(root / name, pairs(0, 2))
    (root / "train-0000.json").write_text("{}")
    assert len(open_split(root, "train")) == 2
    assert caplog.messages == [
        f"{root}: archives that are not read, the folder train is: 2, first train-0000.tar"
    ]
    caplog.clear()
    shutil.rmtree(root / "train")
    assert len(open_split(root, "train")) == 4
    assert caplog.messages == []
    for name in ("train-0002.tar.gz", "train-0003.TAR", "train-0004.tgz"):
        (root / name).write_bytes(b"")
    assert len(open_split(root, "train")) == 4
    message = "archives that are not read, only train-*.tar are, uncompressed: 3, first "
    assert caplog.messages == [f"{root}: {message}train-0002.tar.gz"]
    for path in root.glob("*.tar"):
        path.unlink()
    with pytest.raises(UserError, match=r"found neither .*; archives .*first train-0002\.tar\.gz"):
        open_split(root, "train")


def test_images_in_no_class_are_counted(root, caplog):
    for name in ("a.png", "b.JPG", "notes.txt", "._a.png"):
        (root / "train" / name).write_bytes(b"")
    assert len(open_split(root, "train")) == 2
    assert caplog.messages == [f"{root}/train: left out images in no CLASS folder: 2, first a.png"]
    for name in ("cat", "dog"):
        shutil.rmtree(root / "train" / name)
    with pytest.raises(UserError, match=r"found none; images in no CLASS folder: 2, first a\.png"):
        open_split(root, "train")


def test_class_folders_of_a_mac_are_those_of_others(tmp_path):
    """NFD orders the names otherwise, too."""
    names = ["B\u00e4r", "Bison"]
    for split, form in (("train", "NFC"), ("val", "NFD")):
        for number, name in enumerate(names):
            folder = tmp_path / split / unicodedata.normalize(form, name)
            folder.mkdir(parents=True)
            (folder / f"{number}.png").write_bytes(png(number))
    train, val = open_split(tmp_path, "train"), open_split(tmp_path, "val")
    assert train.class_names == val.class_names == ("Bison", "B\u00e4r")
    for weights in (train.class_names, ["Bison", "Ba\u0308r"]):
        for source in (
            open_split(tmp_path, "val", weights),
            open_matching_split(tmp_path, "val", weights),
        ):
            labels = {name[-5:]: label for _, label, name in map(source.read, range(2))}
            assert labels == {"0.png": 1, "1.png": 0}


@pytest.mark.parametrize(
    ("members", "samples", "left_out"),
    [
        ("a.png=0 a.cls=1 a.png=2 a.cls=3", [(0, 1), (2, 3)], 0),
        ("a.png=0 a.png=2 a.cls=1", [(0, 1)], 1),
        ("a.cls=1 a.cls=3 a.png=0", [(0, 1)], 1),
        ("a.png=0 a.cls=1 a.cls=3", [(0, 1)], 1),
        ("a.png=0 a.JPG=2 a.cls=1 a.cls=3 b.png=4", [(0, 1)], 3),
        ("a.png=0 b.png=2 b.cls=3 a.cls=1", [(2, 3), (0, 1)], 0),
    ],
)
def test_members_of_the_same_name_are_paired_in_their_order_or_counted(
    tmp_path, caplog, members, samples, left_out
):
    """By both readers, in the same way."""
    parts = [member.split("=") for member in members.split()]
    path = tmp_path / "train-0.tar"
    write_shard(path, [(n, v.encode() if n.endswith("cls") else png(int(v))) for n, v in parts])
    expected = [(png(image), label) for image, label in samples]
    source = open_split(tmp_path, "train")
    assert [source.read(index)[:2] for index in range(len(source))] == expected
    shards._tell_once.cache_clear()
    assert [(sample.data, sample.label) for sample in read_shard(str(path))] == expected
    what = "members lack their .jpg or .cls, or have another's name, and are left out"
    assert caplog.messages == [f"{path}: {left_out} {what}"] * (2 if left_out else 0)
