"""Ranges of the numbers in a configuration."""

from collections.abc import Mapping
from typing import Any

from backbones.common.errors import UserError


def check_ranges(config: Any, group: str, ranges: Mapping[str, str]) -> None:
    """Raise `UserError`, which says what a key may be, unless its numbers are in their range.

    Args:
        config: a dataclass. A tuple has one number at least; `None` and `auto` are in any range.
        group: what the keys stand in from the top, with its dot: `model.rcnn.`.
        ranges: names of keys by interval, as in mathematics: `{"[0, 1)": "momentum decay"}`;
            `[1, inf)` are all finite numbers from 1 on.
    """
    for interval, keys in ranges.items():
        for key in keys.split():
            value = getattr(config, key)
            numbers = value if isinstance(value, tuple) else (value,)
            if numbers and all(one in (None, "auto") or _is_in(one, interval) for one in numbers):
                continue
            hint = str(config.__dataclass_fields__[key].type)
            others = " or null" * ("None" in hint) + " or auto" * ("auto" in hint.lower())
            got = list(value) if isinstance(value, tuple) else value
            raise UserError(f"{group}{key} must be {_in_words(interval)}{others}, got {got}")


def _is_in(number: float, interval: str) -> bool:
    low, high = (float(bound) for bound in interval[1:-1].split(", "))
    from_low = low < number if interval[0] == "(" else low <= number
    to_high = number < high if interval[-1] == ")" else number <= high
    return from_low and to_high


def _in_words(interval: str) -> str:
    low, high = interval[1:-1].split(", ")
    if high != "inf":
        return f"in {interval}"
    if interval[0] == "(":
        return f"more than {low}"
    return "0 or more" if low == "0" else f"at least {low}"
