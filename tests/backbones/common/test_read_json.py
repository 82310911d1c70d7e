import json

import pytest

from backbones.common.errors import UserError
from backbones.common.read_json import parse_json, read_json


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("9" * 5000, "999999999999999999999999 has more digits than integers have, 5000"),
        ("[9223372036854775808]", "9223372036854775808 has more digits"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        (r'["a\ud800b"]', "'a\\ud800b' holds a character that cannot be written"),
        (r'{"a": {"b\u0000": 1}}', "'b\\x00' holds a character"),
        ('["a\0"]', "Invalid control character"),
        (b'["\xff"]', "not UTF-8"),
    ],
    ids=str,
)
def test_what_cannot_be_meant_is_one_line(tmp_path, text, reason):
    path = tmp_path / "a.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_json(path, "results")
    message = str(error.value)
    assert message.startswith(f"{path}: results: expected JSON, cannot parse it: ")
    assert reason in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -2.5, 1e300, 5e-324, None, True], "é": "𝄞 \\ud800"},
        [2**63 - 1, -(2**62)],
        "😀",  # a pair of surrogates in the file
    ],
)
def test_what_can_be_meant_is_as_it_was_written(value):
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_the_mark_that_editors_put_first_is_no_part_of_it(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf["a"]')
    assert read_json(tmp_path / "a.json") == ["a"]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: cannot read results: No such file"):
        read_json(tmp_path / "none.json", "results")
    with pytest.raises(UserError, match="cannot read results: is a folder"):
        read_json(tmp_path, "results")
