"""Damage to an exported file that its own format would not notice."""

import pytest

from backbones.common.errors import UserError
from detect.deployment.exported import load_exported
from detect.deployment.seal import check_seal, seal_onnx, seal_openvino


@pytest.mark.parametrize("place", [0, 500, 999])
def test_a_changed_byte_of_an_onnx_file_is_noticed(place, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(seal_onnx(bytes(1000)))
    assert check_seal(path)
    data = bytearray(path.read_bytes())
    data[place] = 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x.onnx: damaged, its digest is another: copy or export"):
        check_seal(path)


@pytest.mark.parametrize("suffix", [".xml", ".bin"])
def test_a_changed_byte_of_an_openvino_file_is_noticed(suffix, tmp_path):
    path = tmp_path / "x.xml"
    path.write_bytes(b"<?xml?><net></net>")
    path.with_suffix(".bin").write_bytes(bytes(100))
    seal_openvino(path)
    assert check_seal(path)
    file = path.with_suffix(suffix)
    file.write_bytes(b"?" + file.read_bytes()[1:])
    with pytest.raises(UserError, match="damaged"):
        check_seal(path)


@pytest.mark.parametrize("data", [b"", b"x", bytes(1000)])
def test_files_without_a_digest_are_told(data, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(data)
    assert not check_seal(path)


def test_missing_weights_are_named(tmp_path):
    pytest.importorskip("openvino")
    path = tmp_path / "x.xml"
    path.write_bytes(b"<net></net>")
    path.with_suffix(".bin").write_bytes(b"1")
    seal_openvino(path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match=r"x\.bin: cannot be read: No such file"):
        load_exported(path)
