# SPDX-License-Identifier: MIT
"""`kernrig behaviours`: what an id in a scenario's docstring means, and where it is named."""

from __future__ import annotations

from pathlib import Path

import click

from harness.errors import KernrigError


@click.command(short_help="what an id such as MPROG-ATTACH-008 means, and which scenarios name it")
@click.argument("what", default="")
@click.option("--uncovered", is_flag=True, help="only ids that neither a scenario nor the model names")
def behaviours(what: str, uncovered: bool) -> None:
    """List behaviours with the scenarios and model rules that name them.

    WHAT is a facility (mprog) or the beginning of an id (MPROG-ATTACH); without it all are listed.
    """
    from harness.behaviours import NAME, named, read_all

    root = Path.cwd()
    chosen = [
        (facility, behaviour)
        for facility in read_all(root)
        for behaviour in facility.behaviours
        if facility.name == what or behaviour.id.startswith(what)
    ]
    if not chosen:
        raise KernrigError(
            f"No scenarios/*/{NAME} in {root} has a behaviour of {what!r}."
            if what
            else f"There is no scenarios/*/{NAME} in {root}.",
            hint="run it at the root of the project with a facility such as mprog, or the beginning of an id",
        )
    places = named(root, [behaviour for _, behaviour in chosen])
    for facility, behaviour in chosen:
        reason = dict(facility.exemptions).get(behaviour.id)
        if uncovered and (reason or places[behaviour.id]):
            continue
        click.echo(f"{behaviour.id}  {behaviour.gist}")
        for place in places[behaviour.id]:
            click.echo(f"    {place}")
        if reason:
            click.echo(f"    exempt: {reason}")
