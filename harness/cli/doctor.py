# SPDX-License-Identifier: MIT
"""`kernrig doctor`: what the host has, what it lacks, and which accelerator machines get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from harness.cli.failure import say
from harness.cli.options import read_settings, shared_options


@click.command(short_help="what is there, what is missing, which accelerator and why")
@shared_options("kernel", "modules", "qemu", "accel")
def doctor(**given: Any) -> None:
    """Look at the host: programs, memory, disk, caches, and the accelerator that the kernel boots under.

    The first time, proving the accelerator takes a kernel and an image, which are fetched. The exit status is 1 when
    something that is needed is missing.
    """
    from harness.doctor import check, render

    settings = read_settings(given)

    def accelerator() -> tuple[str, str]:
        from harness.rig import Rig

        chosen = Rig(settings, Path.cwd(), say=say).accel(settings.kernels[0])
        return chosen.name, chosen.reason

    report = check(qemu=settings.qemu, accelerator=accelerator)
    click.echo(render(report).replace("--kr-", "--"))
    click.get_current_context().exit(0 if report.ok else 1)
