# SPDX-License-Identifier: MIT
"""Everything kept for a scenario, in a directory of its own below the run's."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RUN_VARIABLE = "KERNRIG_RUN"
_LONGEST_NAME = 150


def new_run() -> str:
    """A name for this run: time and process id. xdist's workers get it from the environment."""
    name = time.strftime("%Y%m%d-%H%M%S") + f"-{os.getpid()}"
    return os.environ.setdefault(RUN_VARIABLE, name)


@dataclass
class Evidence:
    """What is known about one scenario's run, collected as it happens and written at once when it is kept; `console` is
    asked only then."""

    nodeid: str
    kernel: str
    command_line: Sequence[str] = ()
    console: Callable[[], str] = str
    kernel_log: str = ""
    reports: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def directory(self, results: Path, run: str) -> Path:
        """Where it goes: RESULTS/RUN/SCENARIO, with the kernel when there are several in the name."""
        name = re.sub(r"[^A-Za-z0-9_.,=@+-]+", "-", self.nodeid.replace("/", "__").replace("::", "--")).strip(
            "-"
        )
        return results / run / name[:_LONGEST_NAME]

    def write(self, directory: Path, explanation: str) -> None:
        """Write all of it. A full disk must not hide the scenario's failure: raises OSError for the caller to say."""
        directory.mkdir(parents=True, exist_ok=True)
        files = {
            "verdict.txt": explanation,
            "console.log": self.console(),
            "kernel.log": self.kernel_log,
            "qemu.sh": shlex.join(self.command_line) + "\n",
            "reports.json": json.dumps(self.reports, indent=1),
            "facts.json": json.dumps(self.facts | {"nodeid": self.nodeid, "kernel": self.kernel}, indent=1),
            **{f"{name}.txt": text for name, text in self.notes.items()},
        }
        for name, text in files.items():
            if text.strip():
                (directory / name).write_text(text, errors="replace")
