"""Mutants of every kind of file that is read: `make fuzz` reads thousands, this file some.

None ends in another exception than the product's own, of one line, in a crash, a hang, more than
two gigabytes, or a number that is none.
"""

import os

import pytest
from fuzz.kinds import make_kinds
from fuzz.pool import GOOD, fuzz, outcome_of, table


def check(root, seed, count):
    findings = fuzz(root, seed, count)
    assert len(findings) == count
    print(f"\nseed {seed}\n{table(findings)}")
    bad = [text for _, outcome, text in findings if outcome not in GOOD]
    assert not bad, "\n".join(bad[:40])


def test_what_is_changed_was_good(tmp_path):
    for kind in make_kinds(tmp_path):
        data = kind.file.read_bytes()
        assert outcome_of(kind) == ("read", ""), kind.name
        kind.file.write_bytes(data)


def test_some_mutants(tmp_path):
    check(tmp_path, seed=0, count=120)


@pytest.mark.fuzz
def test_thousands_of_mutants(tmp_path):
    check(tmp_path, int(os.environ.get("SEED", "1")), int(os.environ.get("COUNT", "5000")))
