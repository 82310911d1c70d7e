"""What a command line's `--help` shows, and which key may be meant by one that does not exist."""

import difflib
import re
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Collection, Sequence

from jsonargparse import ArgumentParser, DefaultHelpFormatter

_ELSEWHERE = {
    "batch": "batch_size",
    "conf": "score_thresh model.rcnn.score_thresh",
    "fliplr": "augment.flip",
    "flipud": "augment.vertical_flip",
    "half": "precision",
    "imgsz": "model.learned.scale model.learned.tile_size model.rcnn.crop_size",
    "iou": "model.rcnn.nms_thresh",
    "learning_rate": "optim.lr",
    "lr0": "optim.lr",
    "max_det": "model.rcnn.detections_per_image",
    "name": "run output",
    "project": "run output",
    "source": "inputs",
    "val": "data.val",
}
"""Keys as users of Ultralytics' tools know them, and what they are called here."""


class HelpFormatter(DefaultHelpFormatter):
    """Types of keys in the words of YAML; in a description, commands stay on lines of their own."""

    def _get_type_str(self, action: Action) -> str | None:
        text = super()._get_type_str(action)
        return None if text is None else in_words(text)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n\n".join(
            part if part.startswith("lowres-rcnn") else textwrap.fill(part, width)
            for part in text.strip().split("\n\n")
        )


def show_only(parser: ArgumentParser, usual: Collection[str]) -> None:
    """Leave out of the help all keys but the usual ones and those that are required."""
    kept = {"help", "config", *usual}
    for action in parser._actions:
        if action.dest not in kept and not action.required:
            action.help = SUPPRESS
    for group in parser._action_groups[2:]:
        group.title, group.description = None, None
    parser.epilog = "--help-all explains all keys. Each can be set here or in the YAML file."


def meant_keys(message: str, keys: Sequence[str]) -> str:
    """The keys that may be meant by the first word of a message, where some are near."""
    word = re.search(r"arguments: (?:--)?([\w.-]+)", message)
    if word is None:
        return ""
    name = word[1].replace("-", "_")
    elsewhere = _ELSEWHERE.get(name, "").split()
    leaves = [key.rpartition(".")[2] for key in keys]
    near = (
        [key for key in elsewhere if key in keys]
        # Of a group whose keys are free.
        or [key for key in elsewhere if key.partition(".")[0] in keys]
        or [key for key, leaf in zip(keys, leaves, strict=True) if name in (key, leaf)]
        or difflib.get_close_matches(name, keys, n=1, cutoff=0.75)
    )
    if not near:
        leaf = difflib.get_close_matches(name, leaves, n=1, cutoff=0.75)
        near = [key for key in keys if leaf and key.endswith(f".{leaf[0]}")]
    return f"did you mean {' or '.join(f'--{key}' for key in near)}? " if near else ""


def in_words(text: str) -> str:
    """Python's types as a user reads them: `Literal['a', 'b']` is `one of a, b`."""
    for name in ("str", "int", "float", "bool", "tuple", "list", "dict"):
        text = text.replace(f"<class '{name}'>", name)
    text = text.replace("typing.", "").replace("<class 'NoneType'>", "null")
    text = re.sub(r"Literal\[([^]]*)\]", lambda found: f"one of {found[1]}".replace("'", ""), text)
    text = re.sub(r"Union\[([^][]*)\]", lambda found: " or ".join(found[1].split(", ")), text)
    return re.sub(r"Optional\[(one of [^]]*)\]", r"\1 or null", text)
