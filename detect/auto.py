"""Keys that may be `auto`: derived from the training data when training starts."""

from typing import Literal, TypeVar

from backbones.common.errors import UserError

Auto = Literal["auto"]

Value = TypeVar("Value")


def number(value: Value | Auto, key: str) -> Value:
    """The value of a key, which is a number by the time that anything is built.

    Raises:
        UserError: it is still `auto`.
    """
    if value == "auto":
        raise UserError(
            f"{key} is auto, which training derives from its data: give it a value here"
        )
    return value
