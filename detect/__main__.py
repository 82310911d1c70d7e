"""The command `lowres-rcnn`: `lowres-rcnn COMMAND ...` runs one of `detect.commands`."""

import ast
import difflib
import os
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import FrameType

NAME = "lowres-rcnn"


def main() -> None:
    """Run from the command line."""
    # What is imported takes seconds, in which Ctrl-C would end in a traceback.
    former = signal.getsignal(signal.SIGINT)
    if former is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from backbones import __version__
    from backbones.common.cli import exit_with_error
    from backbones.common.errors import UserError

    commands = {path.stem: path for path in sorted(Path(__file__).parent.glob("commands/[!_]*.py"))}
    word = sys.argv[1] if len(sys.argv) > 1 else "--help"
    name = word.replace("-", "_")
    if name in commands:
        sys.argv = [f"{NAME} {name}", *sys.argv[2:]]
        command = import_module(f"detect.commands.{name}")
        signal.signal(signal.SIGINT, former)
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


def _leave(number: int, frame: FrameType | None) -> None:
    del number, frame
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(130)


if __name__ == "__main__":
    main()
