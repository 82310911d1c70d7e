"""What a series of checks found, on paper as soon as it is known: a killed run loses nothing."""

import logging
import traceback
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from backbones.benchmarks.gpu.processes import TurnError
from backbones.common.files import atomic_write, make_folder, write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finding:
    """One line of the table; `met` says whether the value is what the goal asks for in words."""

    name: str
    value: float | str
    unit: str = ""
    goal: str = ""
    met: bool | None = None


@dataclass
class Report:
    """All findings so far by part, and tracebacks, in `gpu_check.json` and `gpu_check.txt`."""

    folder: Path
    facts: dict[str, Any]
    parts: dict[str, list[Finding]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def run(self, part: str, check: Iterable[Finding]) -> None:
        """Run one part; what it raises is noted, and ends it alone."""
        found = self.parts.setdefault(part, [])
        logger.info("%s", part)
        try:
            for finding in check:
                logger.info("%s: %s", part, _line(finding))
                found.append(finding)
                self.write()
        except Exception as error:  # the other parts are still worth having
            reason = traceback.format_exc()
            logger.error("%s failed: %s", part, reason)
            self.failures[part] = reason
            found.append(failed("this part", error))
        self.write()

    def write(self) -> None:
        """Write both files."""
        content = {
            "facts": self.facts,
            "parts": {part: [asdict(one) for one in found] for part, found in self.parts.items()},
            "failures": self.failures,
        }
        make_folder(self.folder)
        write_json(self.folder / "gpu_check.json", content, indent=1)
        with atomic_write(self.folder / "gpu_check.txt", "w") as file:
            file.write(self.table() + "\n")

    def table(self) -> str:
        """All findings as text."""
        lines = [", ".join(f"{key} {value}" for key, value in self.facts.items())]
        for part, found in self.parts.items():
            lines += ["", part, *(f"  {_line(finding)}" for finding in found)]
        unmet = [
            f"{p}: {f.name}" for p, found in self.parts.items() for f in found if f.met is False
        ]
        lines += ["", f"not as it should be: {'; '.join(unmet) or 'nothing'}"]
        return "\n".join(lines)


def failed(name: str, error: Exception) -> Finding:
    """What is said of something that could not be looked at."""
    kind = "" if isinstance(error, TurnError) else f"{type(error).__name__}: "
    reason = str(error).strip().partition("\n")[0]
    return Finding(name, f"FAILED: {kind}{reason}"[:200], met=False)


def _line(finding: Finding) -> str:
    value = finding.value
    if isinstance(value, float):
        value = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    text = f"{finding.name:<58} {value:>12} {finding.unit}".rstrip()
    if finding.goal:
        verdict = {True: "yes", False: "NO", None: "?"}[finding.met]
        text += f"   [{finding.goal}: {verdict}]"
    return text
