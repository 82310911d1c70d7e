"""Tar files that were made to harm, as shards."""

import io
import subprocess
import tarfile

import pytest
from helpers.shard_server import pairs, write_shard

from backbones.common.errors import UserError
from backbones.data import shards, tar
from backbones.data.shards import read_shard


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE, raw: bytes | None = None) -> bytes:
    """A member's header, with any size in it."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (size % 2**96).to_bytes(12, "big") if raw is None else raw
    if raw is None:
        block[124] = 0xFF if size < 0 else 0x80
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(text: bytes) -> bytes:
    """An extended header with one record."""
    length = len(text) + 2
    length += len(str(length + len(str(length)))) - 1
    record = b"%d %s\n" % (length + 1, text)
    record = b"%d %s\n" % (len(record), text)
    block = record + bytes(-len(record) % 512)
    return header("pax", 0, tarfile.XHDTYPE, raw=b"%011o\0" % len(record)) + block


LONG = header("././@LongLink", 0, tarfile.GNUTYPE_LONGNAME, raw=b"%011o\0" % 512) + b"a" * 512
BAD = {
    "negative": header("x.bin", -512),
    "so negative that it comes again": header("x.bin", -4096),
    "enormous": header("x.bin", 2**70),
    "beyond the file": header("x.bin", 2**40),
    "an enormous name": header("n", 2**40, tarfile.GNUTYPE_LONGNAME),
    "headers upon headers": LONG * 2000,
    "negative by an extended header": pax(b"size=-512") + header("x.bin", 0),
    "enormous by an extended header": pax(b"size=" + b"9" * 400) + header("x.bin", 0),
    "sparse": header("x.bin", 512, tarfile.GNUTYPE_SPARSE) + bytes(512),
    "a sparse map": pax(b"GNU.sparse.map=" + b"0,1," * 700 + b"x") + header("x.bin", 0),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_good_members_are_read_and_a_bad_header_is_a_line(tmp_path, bad, caplog):
    path = tmp_path / "a.tar"
    write_shard(path, pairs(0, 3))
    good = list(read_shard(str(path)))
    with tarfile.open(path) as opened:
        last = opened.getmembers()[-1]
    whole = path.read_bytes()[: last.offset_data + 512]
    path.write_bytes(whole + bad + bytes(1024))
    shards._tell_once.cache_clear()
    assert list(read_shard(str(path))) == good
    assert len(caplog.records) == 1
    assert "a.tar: damaged after 3 images: " in caplog.text
    # Alone it is the end.
    path.write_bytes(bad + bytes(1024))
    with pytest.raises(UserError, match=r"a\.tar: (not a tar file, or damaged|expected members)"):
        list(read_shard(str(path)))


def test_a_large_member_is_not_read(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(shards, "MAX_IMAGE_BYTES", 5000)
    members = [("big.jpg", bytes(10_000)), ("big.cls", b"1"), *pairs(0, 2)]
    write_shard(tmp_path / "a.tar", members)
    assert len(list(read_shard(str(tmp_path / "a.tar")))) == 2
    assert "big.jpg: 10000 bytes are no image, left out" in caplog.text


def test_the_folder_itself_may_be_a_member(tmp_path):
    """As `tar -C DIR .` writes it."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name, data in pairs(0, 3):
        (folder / name).write_bytes(data)
    subprocess.run(["tar", "-cf", tmp_path / "a.tar", "-C", folder, "."], check=True)
    assert len(list(read_shard(str(tmp_path / "a.tar")))) == 3


def test_odd_names_are_names(tmp_path):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name in (".", "..", "/", ".jpg", "a\udcff.jpg", "a\udcff.cls"):
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"1"))
    (tmp_path / "a.tar").write_bytes(content.getvalue())
    assert [sample.label for sample in read_shard(str(tmp_path / "a.tar"))] == [1]


def test_a_large_shard_is_gone_through_in_constant_memory(tmp_path):
    write_shard(tmp_path / "a.tar", [(f"{number}.txt", b"") for number in range(300)])
    with tar.open_tar((tmp_path / "a.tar").open("rb"), "r|") as opened:
        for _ in tar.members(opened):
            assert len(opened.members) <= 1
