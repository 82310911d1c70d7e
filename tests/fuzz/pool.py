"""Mutants read in processes of their own, so that a crash, a hang or gigabytes are counted too."""

import logging
import multiprocessing
import os
import resource
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from fuzz.kinds import Kind, make_kinds

from backbones.common.errors import UserError

MEMORY = 2 << 30
"""Bytes that reading one file may ask for."""
SECONDS = 20
"""That it may take."""
GOOD = ("read", "refused")
"""Outcomes that are as they should be."""

Finding = tuple[str, str, str]
"""Kind, outcome, and what is known of it where it is not a good one."""


def fuzz(root: Path, seed: int, count: int, processes: int = 2) -> list[Finding]:
    """Read so many mutants, the same for the same seed, which go in turn to some processes."""
    with ThreadPoolExecutor(processes) as pool:
        kinds = [make_kinds(_folder(root / str(part))) for part in range(processes)]
        shares = [range(part, count, processes) for part in range(processes)]
        found = pool.map(lambda own, numbers: list(_read_all(own, seed, numbers)), kinds, shares)
        return [finding for part in found for finding in part]


def table(findings: list[Finding]) -> str:
    """Counts by kind and outcome."""
    counts = Counter(finding[:2] for finding in findings)
    outcomes = sorted({outcome for _, outcome in counts}, key=lambda name: (name not in GOOD, name))
    rows = [["", *outcomes]]
    for kind in dict.fromkeys(kind for kind, *_ in findings):
        rows.append([kind, *(str(counts[kind, outcome]) for outcome in outcomes)])
    total = Counter(outcome for _, outcome, _ in findings)
    rows.append([f"all {len(findings)}", *(str(total[outcome]) for outcome in outcomes)])
    return "\n".join("  ".join(f"{cell:>14}" for cell in row) for row in rows)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _read_all(kinds: list[Kind], seed: int, numbers: range) -> Iterator[Finding]:
    """What becomes of each mutant; where one ends its process, another goes on with the next."""
    done = 0
    while done < len(numbers):
        own, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context("fork")
        process = context.Process(target=_work, args=(theirs, kinds, seed, numbers[done:]))
        process.start()
        theirs.close()
        try:
            while True:
                yield own.recv()
                done += 1
        except EOFError:
            process.join()
        if done < len(numbers):
            kind, label = _choose(kinds, seed, numbers[done])
            outcome = "hang" if process.exitcode == -signal.SIGALRM else "crash"
            yield kind.name, outcome, f"{label}: ended with {process.exitcode}"
            done += 1


def _choose(kinds: list[Kind], seed: int, number: int) -> tuple[Kind, str]:
    weights = [kind.share for kind in kinds]
    kind = Random(f"{seed} {number}").choices(kinds, weights)[0]
    return kind, f"{kind.name}, seed {seed}, number {number}"


def _work(pipe: Connection, kinds: list[Kind], seed: int, numbers: range) -> None:
    """Read mutants one after the other; the alarm of the kernel ends what takes too long."""
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, has + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    good = {kind.file: kind.file.read_bytes() for kind in kinds}
    for number in numbers:
        kind, label = _choose(kinds, seed, number)
        kind.file.write_bytes(kind.change(good[kind.file], Random(f"{seed} {number} change")))
        signal.alarm(SECONDS)
        outcome, text = outcome_of(kind)
        signal.alarm(0)
        kind.file.write_bytes(good[kind.file])
        pipe.send((kind.name, outcome, "" if outcome in GOOD else f"{label}: {text}"))


def outcome_of(kind: Kind) -> tuple[str, str]:
    """What reading its file ends in, and what is known of it where that is not good."""
    try:
        value = kind.read()
    except UserError as error:
        return ("refused", "") if "\n" not in str(error) else ("two lines", str(error))
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
        return type(error).__name__, f"{str(error)[:200]} at {where}"
    return ("read", "") if _is_finite(value) else ("NaN", "")


def _is_finite(value: Any) -> bool:
    if isinstance(value, Mapping):
        return _is_finite(list(value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_finite, value))
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().all())
    if isinstance(value, float | np.ndarray):
        return bool(np.isfinite(value).all())
    return True
