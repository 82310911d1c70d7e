"""What every command-line tool does around its work: one-line errors and exit codes."""

import functools
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import NoReturn

import cv2
import torch

from backbones.common.cores import limit_threads_to_quota
from backbones.common.device import set_tf32
from backbones.common.early_log import keep_early_log, take_early_log
from backbones.common.errors import UserError
from backbones.common.memory import keep_freed_memory
from backbones.common.progress import console_handler
from backbones.common.signals import ctrl_c_twice_exits

_LONGEST = 2000
"""Characters of an error line."""


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Make `main` a tool: what the user can mend becomes one line on stderr, not a traceback.

    A `UserError`, or what the system says of a file by its name, exits with code 2 and Ctrl-C with
    130, as shells expect. Anything else is a defect of this package and keeps its traceback. Log
    messages go to stderr.
    """

    @functools.wraps(main)
    def run() -> None:
        prepare_process()
        try:
            with ctrl_c_twice_exits():
                main()
        except UserError as error:
            exit_with_error(error)
        except OSError as error:
            if error.filename is None:
                raise
            # A name that is too long, a folder that may not be looked into: the user's to mend.
            name = os.fsdecode(str(error.filename))
            exit_with_error(UserError(f"{name[:300]}: {error.strerror}"))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        finally:
            take_early_log()

    return run


def prepare_process(early: Iterable[logging.LogRecord] = ()) -> None:
    """Set memory, threads and log of this process as tools have them; `early` was logged for it in
    another."""
    keep_freed_memory()
    limit_threads_to_quota()
    set_tf32(False)  # fp32 is fp32, but for training in the precision tf32
    # One setting for the threads of both, OMP_NUM_THREADS or what torchrun says.
    cv2.setNumThreads(torch.get_num_threads())
    logging.basicConfig(level=logging.INFO, handlers=[console_handler()])
    keep_early_log(early)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of the fonts that it finds


def exit_with_error(error: UserError) -> NoReturn:
    """Print the error as one line on stderr and exit with code 2."""
    # Set by torchrun and srun; the main process needs no name.
    number = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    where = "" if number == "0" else f"process {number}: "
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:  # what it quotes may be a whole file
        text = f"{text[: _LONGEST // 2]} ... {text[-_LONGEST // 2 :]}"
    print(f"{where}error: {text}", file=sys.stderr)
    sys.exit(2)
