# SPDX-License-Identifier: MIT
"""A finished search as text, JSON, and Markdown that is fit for a mailing list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from harness.bisect.search import Result, Step
from harness.bisect.trial import Judgement


def text(result: Result, tests: str) -> str:
    """For the terminal."""
    return "\n".join(_text(result, tests))


def as_json(result: Result, tests: str) -> str:
    """Everything, for programs."""
    told = asdict(result)
    return json.dumps({"tests": tests, "unique": result.answer.unique, **told}, indent=1)


def markdown(result: Result, tests: str, command: str) -> str:
    """For a mailing list or an issue: what, which commit, how sure, evidence from both sides, and how to see it
    again."""
    bad, good = _last(result, Judgement.BAD), _last(result, Judgement.GOOD)
    lines = [f"# {tests}: {_verdict(result)}", ""]
    for each in result.answer.culprits:
        lines.append(f"- `{each.title or each.id}`")
    lines += ["", "```", result.answer.detail.rstrip(), "```", "", "## How it was found", ""]
    lines += ["| kernel | runs | judgement |", "| --- | --- | --- |"]
    lines += [f"| {each.candidate.title} | {each.trial} | {each.judgement.value} |" for each in result.steps]
    lines += ["", _summary(result), "", f"Run: `{command}`", ""]
    if bad is not None:
        lines += [
            f"## On the bad side: {bad.candidate.title}",
            "",
            "```",
            bad.trial.evidence.rstrip(),
            "```",
            "",
        ]
    if good is not None:
        lines += [f"## On the good side: {good.candidate.title}", "", f"{good.trial}", ""]
    return "\n".join(lines)


def _text(result: Result, tests: str) -> Iterator[str]:
    yield f"{tests}: {_verdict(result)}"
    for each in result.answer.culprits:
        yield f"  {each.title or each.id}"
    yield ""
    yield from (f"  {line}".rstrip() for line in result.answer.detail.splitlines())
    yield ""
    for step in result.steps:
        yield f"  {step.judgement.value:4}  {step.candidate.title}: {step.trial} ({step.trial.seconds:.0f} s)"
    yield ""
    yield _summary(result)
    bad = _last(result, Judgement.BAD)
    if bad is not None and bad.trial.evidence:
        yield f"\nthe failure on {bad.candidate.title}:"
        yield from (f"  {line}" for line in bad.trial.evidence.splitlines())


def _verdict(result: Result) -> str:
    if result.answer.unique:
        return "what broke it"
    return f"one of these {len(result.answer.culprits)} broke it; those between could not be tested"


def _summary(result: Result) -> str:
    return (
        f"{len(result.steps)} kernels in {result.seconds:.0f} s, {result.runs} runs per step; it fails in at least "
        f"{100 * result.rate:.0f} % of the runs on a bad kernel; confidence {100 * result.confidence:.2f} %."
    )


def _last(result: Result, judgement: Judgement) -> Step | None:
    """The step nearest to the answer with that judgement."""
    return next((each for each in reversed(result.steps) if each.judgement is judgement), None)
