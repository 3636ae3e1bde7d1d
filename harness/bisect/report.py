# SPDX-License-Identifier: MIT
"""A finished search as text, JSON, and Markdown that is fit for a mailing list."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from harness.bisect.journal import Step
from harness.bisect.search import Result
from harness.bisect.trial import Judgement

_DETAIL_LINES = 60
_WIDTH = 75
_FORM = 1


@dataclass(frozen=True)
class Question:
    """What was asked: the tests as the user gave them, what is searched ("commit", "package", "option"), and the
    command that does it again."""

    tests: str
    kind: str
    command: str


def text(result: Result, question: Question) -> str:
    """For the terminal."""
    return "\n".join(_text(result, question))


def as_json(result: Result, question: Question) -> str:
    """Everything, for programs. `form` changes when a name in it does."""
    told = asdict(result)
    told["sought"] = [asdict(each) for each in sorted(result.sought.failures)]
    told["answer"]["unique"] = result.answer.unique
    return json.dumps({"form": _FORM, "question": asdict(question), **told}, indent=1)


def markdown(result: Result, question: Question) -> str:
    """For a mailing list or an issue: what, which commit, how sure, evidence from both sides, and how to see it
    again."""
    return "\n".join(_markdown(result, question))


def _text(result: Result, question: Question) -> Iterator[str]:
    yield f"{question.tests}: {_verdict(result, question)}"
    for each in result.answer.culprits:
        yield f"  {each.title or each.id}"
    yield ""
    lines = result.answer.detail.splitlines()
    yield from (f"  {line}".rstrip() for line in lines[:_DETAIL_LINES])
    if len(lines) > _DETAIL_LINES:
        yield f"  and {len(lines) - _DETAIL_LINES} more lines, in the other reports"
    yield ""
    for step in result.steps:
        yield f"  {step.judgement.value:4}  {step.candidate.title}: {step.trial} ({_time(step.trial.seconds)})"
    yield ""
    yield from _summary(result)
    bad, good = _last(result, Judgement.BAD), _last(result, Judgement.GOOD)
    if bad is not None and bad.trial.evidence:
        yield f"\nthe failure on {bad.candidate.title}:"
        yield from (f"  {line}".rstrip() for line in bad.trial.evidence.splitlines())
    if good is not None:
        yield f"\nno such failure on {good.candidate.title}: {good.trial}"


def _markdown(result: Result, question: Question) -> Iterator[str]:
    bad, good = _last(result, Judgement.BAD), _last(result, Judgement.GOOD)
    yield f"# {question.tests}: {_verdict(result, question)}"
    yield ""
    yield from (f"- {each.title or each.id}" for each in result.answer.culprits)
    yield ""
    detail = result.answer.detail
    long = len(detail.splitlines()) > _DETAIL_LINES
    if not long:
        yield from _block(detail)
    yield "## How sure"
    yield ""
    yield from textwrap.wrap(" ".join(_summary(result)), _WIDTH)
    yield ""
    if bad is not None:
        yield f"## Bad: {bad.candidate.title}"
        yield ""
        yield f"{bad.trial}:"
        yield ""
        yield from _block(bad.trial.evidence)
    if good is not None:
        yield f"## Good: {good.candidate.title}"
        yield ""
        yield f"{good.trial}."
        yield ""
    yield "## Steps"
    yield ""
    yield "| kernel | runs | judgement | time |"
    yield "| --- | --- | --- | --- |"
    for each in result.steps:
        title = each.candidate.title.replace("|", "\\|")
        told = str(each.trial).replace("|", "\\|")
        yield f"| {title} | {told} | {each.judgement.value} | {_time(each.trial.seconds)} |"
    yield ""
    if result.answer.log:
        yield "`git bisect log`:"
        yield ""
        yield from _block(result.answer.log)
    yield "To see it again:"
    yield ""
    yield f"    {question.command}"
    if long:
        yield ""
        yield "## What changed"
        yield ""
        yield from _block(detail)


def _block(text: str) -> Iterator[str]:
    """The text as it is, in a fence that it does not end."""
    fence = "```"
    while fence in text:
        fence += "`"
    yield fence
    yield text.rstrip()
    yield fence
    yield ""


def _verdict(result: Result, question: Question) -> str:
    found = result.answer.culprits
    if not result.answer.unique:
        return f"one of these {len(found)} {question.kind}s broke it; it is not known which, as not all could be tested"
    if question.kind == "option":
        return "the configuration breaks it by"
    return f"the first bad {question.kind} is"


def _summary(result: Result) -> Iterator[str]:
    yield f"{len(result.steps)} kernels were tried in {_time(result.seconds)}."
    at_bad = result.steps[0].trial
    yield (
        f"At the bad end {at_bad.failed} of {at_bad.runs} runs failed as sought, so at least "
        f"{100 * result.rate:.0f} % do (95 % bound); {result.runs} clean runs make a kernel good."
    )
    yield f"Confidence that no bad kernel passed for a good one: {_confidence(result.confidence)}."
    for each in sorted(result.sought.failures):
        yield f"Sought: {each}."


def _confidence(value: float) -> str:
    """In percent, never rounded up to certainty."""
    return "more than 99.99 %" if value > 0.9999 else f"{int(value * 10000) / 100:.2f} %"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _last(result: Result, judgement: Judgement) -> Step | None:
    """The step nearest to the answer with that judgement."""
    return next((each for each in reversed(result.steps) if each.judgement is judgement), None)
