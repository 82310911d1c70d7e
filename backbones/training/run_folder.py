"""The folder of a training run: its config, log, curves and TensorBoard scalars."""

import csv
import dataclasses
import errno
import logging
import os
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

from torch.utils.tensorboard import SummaryWriter

from backbones.common import distributed
from backbones.common.config import flatten, from_dict, read_yaml, save_config, to_dict
from backbones.common.early_log import take_early_log
from backbones.common.errors import UserError
from backbones.common.files import (
    atomic_write,
    locked,
    make_folder,
    open_to_append,
    remove_unfinished,
    set_aside,
    write_errors,
)
from backbones.training.checkpoints import has_checkpoint
from backbones.training.curves import COLUMNS, CurvePoint, draw_curves, read_curves
from backbones.training.log_file import LogFile

logger = logging.getLogger(__name__)


RESULTS = ("best.safetensors", "last.safetensors", "curves.csv", "curves.png")
"""What a run leaves, and no other may overwrite."""


def weights_line(path: Path) -> str:
    """The last line of a training: where its weights are, or were."""
    return f"weights: {path}{'' if path.exists() else ' (deleted since the run ended)'}"


class RunFolder:
    """A run's folder, used as a context manager while the run goes on.

    Holds `config.yaml` (every key resolved), `log.txt`, `curves.csv` (one row a value, appended),
    `curves.png`, `tensorboard/` and `checkpoints/`; `best.safetensors` and `last.safetensors` are
    written by the caller.

    With several processes only the main one reads and writes here; the others may call everything.

    Args:
        path: made where it is missing.
        config: dataclass of what decides the result, written as `config.yaml`.
        resume: continue the run that is there; `auto` starts it where there is none.
        may_change: keys that a resumed run may have anew, see `refuse_another_run`.

    Raises:
        UserError: the folder holds a run and `resume` is not set, or none and it is, or another
            run than `config` describes; it cannot be made; the processes have different
            configurations.
    """

    def __init__(
        self,
        path: str | Path,
        config: Any,
        *,
        resume: bool | Literal["auto"] = False,
        may_change: Collection[str] = ("resume",),
    ) -> None:
        self.path = Path(path)
        self.resume = resume
        self._config, self._may_change = config, may_change
        self._open = ExitStack()
        if any(other != to_dict(config) for other in distributed.gather(to_dict(config))):
            raise UserError(
                f"{self.path}: the processes were given different configurations: name one with "
                "--config, or put the run folder on a disk that all of them see"
            )
        distributed.call_on_main(self._make)

    def _make(self) -> None:
        config = self.path / "config.yaml"
        is_run = os.path.exists(config) or has_checkpoint(self.checkpoints)
        if is_run and not self.resume:
            raise UserError(
                f"{self.path} already holds a run, by its "
                f"{'config.yaml' if os.path.exists(config) else 'checkpoints'}: continue it with "
                "--resume or choose another folder with --run"
            )
        there = [name for name in RESULTS if (self.path / name).exists()]
        if not is_run and there:
            raise UserError(
                f"{self.path}: {', '.join(there)} would be overwritten, and no run is there that "
                "could be resumed: choose another folder with --run"
            )
        if self.resume is True and not is_run:
            raise UserError(
                f"--resume: {self.path} holds no run: correct --run, or leave --resume out to "
                "start one (--resume auto does what there is to do)"
            )
        make_folder(self.path)
        self._open.enter_context(locked(self.path))
        try:
            # Before its first checkpoint a run begins anew, and may do so in another way.
            if os.path.exists(config) and has_checkpoint(self.checkpoints):
                self._compare_with_file(config)
        except BaseException:
            self._open.close()
            raise
        for folder in (self.path, self.checkpoints):
            remove_unfinished(folder)
        has_weights = any(name.endswith(".safetensors") for name in there)
        if has_weights and not has_checkpoint(self.checkpoints):
            # Somebody deleted the checkpoints, or it was killed just before the first.
            for name in there:
                set_aside(self.path / name, "its run has no checkpoint to go on from", "earlier")

    def _compare_with_file(self, path: Path) -> None:
        try:
            before = read_yaml(path)
        except UserError as error:
            # The last checkpoint says as well what the run was, see `refuse_another`.
            set_aside(path, error)
        else:
            refuse_another_run(before, self._config, self._may_change, self.path, str(path))

    @property
    def config(self) -> dict[str, Any]:
        """What decides the result, in plain values, for checkpoints."""
        return to_dict(self._config)

    def refuse_another(self, config: Mapping[str, Any] | None) -> None:
        """Raise `UserError` unless this is the run that a checkpoint is of, by its `config`.

        `config.yaml` may have been cut off or changed since.
        """
        if config is not None:
            refuse_another_run(config, self._config, self._may_change, self.path)

    def __enter__(self) -> "RunFolder":
        if not distributed.is_main():
            return self
        self._handler = LogFile(self.path)
        for record in take_early_log():
            self._handler.handle(record)
        root = logging.getLogger()
        self._former_level = root.level
        root.setLevel(min(root.level, logging.INFO))
        root.addHandler(self._handler)
        self._curves: IO[str] | None = None
        if not os.path.exists(self.path / "config.yaml"):
            self._save_config()
        return self

    def _save_config(self) -> None:
        # Another run may be begun by the file; whether this one was resumed is no part of it.
        config = self._config
        if getattr(config, "resume", False):
            config = dataclasses.replace(config, resume=False)
        save_config(self.path / "config.yaml", config)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not distributed.is_main():
            return
        if isinstance(error, Exception):
            logger.error("run stopped: %s", error, exc_info=not isinstance(error, UserError))
        root = logging.getLogger()
        root.removeHandler(self._handler)
        root.setLevel(self._former_level)
        self._handler.close()
        with suppress(OSError) if error is not None else write_errors(self.path):
            self._open.close()

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints for resuming."""
        return self.path / "checkpoints"

    def open_curves(self, step: int) -> None:
        """Start recording at `step`: what was recorded beyond it is dropped.

        Such rows are of a run that was killed after its last checkpoint; they come again. From here
        on `config.yaml` is that of a resumed run, which may have been refused until now.
        """
        if not distributed.is_main():
            return
        self._save_config()
        path = self.path / "curves.csv"
        kept = []
        try:
            kept = [point for point in read_curves(path) if point.step <= step] if step else []
        except UserError as error:
            set_aside(path, error)
        with atomic_write(path, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(kept)
        self._curves = self._open.enter_context(open_to_append(path))
        events = self.path / "tensorboard"
        if os.path.exists(events) and not os.path.isdir(events):
            set_aside(events, f"{events}: not a folder")
        self._open.enter_context(_quiet_threads())
        with write_errors(events):
            self._tensorboard = SummaryWriter(str(events), purge_step=step + 1)
        self._open.callback(self._tensorboard.close)

    def record(self, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Append values, named `group/metric`, to the curves and to TensorBoard."""
        if not distributed.is_main():
            return
        assert self._curves is not None, "open_curves comes first"
        path = self.path / "curves.csv"
        with write_errors(path):
            if os.fstat(self._curves.fileno()).st_nlink == 0:
                raise FileNotFoundError(errno.ENOENT, "deleted while the run goes on")
            writer = csv.writer(self._curves, lineterminator="\n")
            for name, value in values.items():
                writer.writerow(CurvePoint(step, round(epoch, 6), name, float(value)))
                self._tensorboard.add_scalar(name, float(value), step)
            self._curves.flush()

    def draw_curves(self) -> None:
        """Draw `curves.png` from what has been recorded."""
        if not distributed.is_main():
            return
        try:
            draw_curves(read_curves(self.path / "curves.csv"), self.path / "curves.png")
        except UserError as error:  # no reason to end a run
            logger.warning("the curves are not drawn: %s", error)


def refuse_another_run(
    before: Mapping[str, Any],
    config: Any,
    may_change: Collection[str],
    folder: Path,
    where: str = "its last checkpoint",
) -> None:
    """Raise `UserError`, naming the keys, unless a run that is resumed is the one that it was.

    `before` is its configuration as `where` has it, `config` of the dataclass that wrote that;
    values of the dotted keys `may_change` may differ.
    """
    whole = to_dict(from_dict(type(config), before, where=where))
    before, now = flatten(whole), flatten(to_dict(config))
    changed = [
        f"{key} was {before.get(key)} and is {now.get(key)} now"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and key not in may_change
    ]
    if changed:
        more = f"; and {len(changed) - 3} more keys" if len(changed) > 3 else ""
        raise UserError(
            f"cannot resume {folder}: {'; '.join(changed[:3])}{more}: leave them as the run "
            "began, or choose another folder with --run"
        )


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """No traceback where the disk refuses TensorBoard's thread, which hands on the error itself."""
    former = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not issubclass(failed.exc_type, OSError):
            former(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = former
