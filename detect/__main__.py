"""The command `lowres-rcnn`: `lowres-rcnn COMMAND ...` runs one of `detect.commands`."""

import ast
import difflib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType

NAME = "lowres-rcnn"


def main() -> None:
    """Run from the command line."""
    with _ctrl_c_leaves():
        from backbones import __version__
        from backbones.common.cli import exit_with_error
        from backbones.common.errors import UserError

    commands = {path.stem: path for path in sorted(Path(__file__).parent.glob("commands/[!_]*.py"))}
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    name = word.replace("-", "_")
    if name in commands:
        sys.argv = [f"{NAME} {name}", *sys.argv[2:]]
        with _ctrl_c_leaves():
            command = import_module(f"detect.commands.{name}")
        command.main()
    elif word == "--version":
        print(f"{NAME} {__version__}")
    elif word in ("--help", "-h"):
        print(f"usage: {NAME} COMMAND ...\n")
        for each, path in commands.items():
            explanation = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            print(f"  {each:<20}{explanation.splitlines()[0]}")
        print(f"\n{NAME} COMMAND --help says how each is called; --version says which this is.")
    else:
        near = difflib.get_close_matches(name, commands, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        known = ", ".join(commands)
        exit_with_error(UserError(f"{word}: no such command: {meant}The commands are {known}"))


@contextmanager
def _ctrl_c_leaves() -> Iterator[None]:
    """Ctrl-C is a word while modules are imported, which takes seconds, and no traceback."""
    own = threading.current_thread() is threading.main_thread()
    if not own or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    main()
