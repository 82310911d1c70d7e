"""What the tests that every configuration key is read have in common."""

import dataclasses
from typing import Any, TypeVar

from backbones.common.config import from_dict, to_dict

Config = TypeVar("Config")


def leaf_keys(config_class: type, prefix: str = "") -> list[str]:
    """Dotted names of all keys, those of groups included."""
    keys = []
    for field in dataclasses.fields(config_class):
        default = field.default
        if isinstance(field.default_factory, type):
            default = field.default_factory()
        if dataclasses.is_dataclass(default):
            keys += leaf_keys(type(default), f"{prefix}{field.name}.")
        else:
            keys.append(prefix + field.name)
    return keys


def configuration(config_class: type[Config], values: dict[str, Any]) -> Config:
    """Dotted keys on top of the defaults; `{}` as a group's value resets it to them."""
    defaults = to_dict(config_class())
    config = to_dict(config_class())
    for key, value in values.items():
        *parents, name = key.split(".")
        group, default = config, defaults
        for parent in parents:
            group, default = group[parent], default[parent]
        group[name] = default[name] if value == {} else value
    return from_dict(config_class, config)
