"""Shards from a real server: whole, broken, busy, silent."""

import io
import tarfile

import pytest
from helpers.shard_server import pairs, serve, write_shard

from backbones.common.errors import UserError
from backbones.data import shards
from backbones.data.shards import expand_braces, read_shard


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "RETRY_SECONDS", (0.0, 0.0, 0.0))
    write_shard(tmp_path / "a.tar", pairs(0, 20))
    with serve(tmp_path) as (url, faults):
        yield f"{url}/a.tar", faults


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{x,y}/{0..1}", ["x/0", "x/1", "y/0", "y/1"]),
        ("a-{000000..001023}.tar", [f"a-{n:06d}.tar" for n in range(1024)]),
    ],
)
def test_braces_expand(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize(
    "pattern",
    ["{0..999999999999}", "{00..99}" * 9, "{0..9}{00000..99999}{a,b}", "{1.." + "9" * 5000 + "}"],
    ids=["one", "many", "three", "digits"],
)
def test_braces_for_too_many_names(pattern):
    with pytest.raises(UserError, match="expected"):
        expand_braces(pattern)


@pytest.mark.parametrize("pattern", ["a-{0..}.tar", "a-{3..1}.tar", "a-{0..3.tar", "a-}.tar", "{}"])
def test_wrong_braces(pattern):
    with pytest.raises(UserError, match="expected"):
        expand_braces(pattern)


def test_a_url_and_a_file_give_the_same_samples(server, tmp_path):
    url, faults = server
    samples = list(read_shard(url))
    assert [(s.data, s.label) for s in samples] == [
        (s.data, s.label) for s in read_shard(str(tmp_path / "a.tar"))
    ]
    assert [sample.name for sample in samples] == [f"{url}:{n:04d}.png" for n in range(20)]
    assert [sample.label for sample in samples] == [n % 10 for n in range(20)]
    assert faults.requests == [("/a.tar", None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_goes_on_from_the_same_byte(server, ranges):
    url, faults = server
    expected = list(read_shard(url))
    faults.requests.clear()
    faults.breaks, faults.sent, faults.ranges = 3, 7000, ranges
    if not ranges:
        faults.breaks = 1
    assert list(read_shard(url)) == expected
    asked = [wanted for _, wanted in faults.requests]
    assert asked == [None, *(f"bytes={7000 * n}-" for n in range(1, len(asked)))]
    assert len(asked) == (4 if ranges else 2)


def test_a_busy_server_is_asked_again(server):
    url, faults = server
    faults.refusals = 3
    assert len(list(read_shard(url))) == 20
    assert len(faults.requests) == 4
    faults.refusals = 4
    with pytest.raises(UserError, match=r"a\.tar: cannot be read, tried 4 times: 503"):
        list(read_shard(url))


def test_a_server_that_breaks_off_for_ever(server):
    url, faults = server
    faults.breaks, faults.sent = 100, 0
    with pytest.raises(UserError, match=r"tried 4 times: connection closed after 0 of \d+ bytes"):
        list(read_shard(url))


def test_what_is_not_there_is_not_asked_for_again(server, tmp_path):
    url, faults = server
    with pytest.raises(UserError, match=r"b\.tar: the server says 404"):
        list(read_shard(url.replace("a.tar", "b.tar")))
    assert len(faults.requests) == 1
    with pytest.raises(UserError, match=r"s3://b/a\.tar: expected a file or an https address"):
        list(read_shard("s3://b/a.tar"))
    with pytest.raises(UserError, match=r"b\.tar: cannot read shard: No such file"):
        list(read_shard(str(tmp_path / "b.tar")))


def test_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "RETRY_SECONDS", (0.0,))
    with serve(tmp_path) as (url, _):
        pass
    with pytest.raises(UserError, match=f"{url}/a.tar: cannot be read, tried 2 times: .*refused"):
        list(read_shard(f"{url}/a.tar"))


def test_a_shard_cut_off_anywhere_costs_its_tail_only(tmp_path, caplog):
    path = tmp_path / "a.tar"
    write_shard(path, pairs(0, 6))
    expected = list(read_shard(str(path)))
    whole = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        ends = [member.offset_data + 512 for member in tar.getmembers()[1::2]]
    assert caplog.text == ""
    for cut in range(1100, ends[-1] + 1, 300):
        path.write_bytes(whole[:cut])
        shards._tell_once.cache_clear()
        caplog.clear()
        kept = sum(end - 512 + 1 <= cut for end in ends)
        if kept == 0:
            with pytest.raises(UserError, match="not a tar file, or damaged"):
                list(read_shard(str(path)))
            continue
        assert list(read_shard(str(path))) == expected[:kept], cut
        assert f"{path}: damaged after {kept} images" in caplog.text
        list(read_shard(str(path)))
        assert caplog.text.count("damaged") == 1, "once"


def test_members_without_a_partner_are_left_out(tmp_path, caplog):
    write_shard(tmp_path / "a.tar", [*pairs(0, 2), ("x.png", b""), ("y.cls", b"1"), ("z", b"")])
    assert len(list(read_shard(str(tmp_path / "a.tar")))) == 2
    assert "2 members lack their .jpg or .cls" in caplog.text


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("a.jpg", b"x"), ("a.cls", b"seven")],
            r"a\.cls: expected a label of 0 or more, up to 999999, got b'seven'",
        ),
        *(
            (
                [("a.jpg", b"x"), ("a.cls", label)],
                r"a\.cls: expected a label of 0 or more, up to 999999",
            )
            for label in (b"1000000000", b"9" * 5000, b"1" * 32 + b"x", b"-1", b"")
        ),
        ([("a.txt", b"x")], "expected members NAME.jpg and NAME.cls, found none"),
        ([], "expected members NAME.jpg and NAME.cls, found none"),
    ],
)
def test_wrong_members(tmp_path, members, message):
    write_shard(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message):
        list(read_shard(str(tmp_path / "a.tar")))


def test_no_tar_file(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"<html>" * 200)
    with pytest.raises(UserError, match=r"a\.tar: not a tar file, or damaged"):
        list(read_shard(str(tmp_path / "a.tar")))
