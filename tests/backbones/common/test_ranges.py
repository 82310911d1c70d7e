import math
from dataclasses import dataclass
from typing import Literal

import pytest

from backbones.common.errors import UserError
from backbones.common.ranges import check_ranges


@dataclass(frozen=True)
class Numbers:
    share: float | Literal["auto"] = 0.5
    count: int | None = 3
    sides: tuple[float, ...] = (1.0, 2.0)

    def __post_init__(self) -> None:
        ranges = {"(0, 1]": "share", "[0, inf)": "count", "(0, inf)": "sides"}
        check_ranges(self, "group.", ranges)


@pytest.mark.parametrize(
    "good", [{"share": 1}, {"share": "auto"}, {"count": None}, {"count": 0}, {"sides": (1e-9,)}]
)
def test_what_is_in_its_range_is_taken(good):
    Numbers(**good)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"share": 0}, "group.share must be in (0, 1] or auto, got 0"),
        ({"share": 1.1}, "group.share must be in (0, 1] or auto, got 1.1"),
        ({"share": math.nan}, "group.share must be in (0, 1] or auto, got nan"),
        ({"count": -1}, "group.count must be 0 or more or null, got -1"),
        ({"count": math.inf}, "group.count must be 0 or more or null, got inf"),
        ({"sides": (1.0, 0.0)}, "group.sides must be more than 0, got [1.0, 0.0]"),
        ({"sides": (math.nan,)}, "group.sides must be more than 0, got [nan]"),
        ({"sides": ()}, "group.sides must be more than 0, got []"),
    ],
)
def test_what_is_not_is_named(bad, message):
    with pytest.raises(UserError) as raised:
        Numbers(**bad)
    assert str(raised.value) == message
