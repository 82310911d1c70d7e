"""The table of the linear probe: shares, their standard errors, and paired differences."""

import numpy as np

from backbones.benchmarks.linear_probe import ProbeRow, format_probe


def test_differences_are_of_the_same_images():
    base = np.array([[True, False] * 50] * 3)
    better = base.copy()
    better[:, 1:21:2] = True  # ten more, none less
    table = format_probe(
        [
            ProbeRow(start, tuple(right.mean(axis=1)), right)
            for start, right in (("better", better), ("copied", base))
        ]
    )
    first, second = table.splitlines()[2:]
    # 0.6 · 0.4 / 100, and 0.1 · 0.9 / 100 where unpaired it would be 0.07.
    assert first.startswith("| better | 0.600 ± 0.049 (+0.100 ± 0.030) |")
    assert second.startswith("| copied | 0.500 ± 0.050 (+0.000 ± 0.000) |")
