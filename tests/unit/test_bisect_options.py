# SPDX-License-Identifier: MIT
"""Which options of two configurations make the difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bisect.options import Difference, Mixed, Options, differences, mixture
from harness.bisect.trial import Judgement
from harness.errors import KernrigError
from harness.kernels.config import KernelConfig
from tests.unit.bisecting import Bench, find

Needs = Mapping[str, str]


def kconfig(needs: Needs, selects: Needs | None = None) -> Callable[[Sequence[Difference]], Mixed]:
    """A kconfig in which an option stays as it was unless the one that it needs has its new value, too."""

    def mix(part: Sequence[Difference]) -> Mixed:
        changed = {each.option: each for each in part}
        while lost := [option for option in changed if needs.get(option, option) not in changed]:
            for option in lost:
                del changed[option]
        for option in list(changed):
            if brought := (selects or {}).get(option):
                changed[brought] = Difference(brought, "n", "y")
        names = ",".join(sorted(changed))
        return Mixed(names or "good", names, tuple(changed[option] for option in sorted(changed)))

    return mix


def search(
    space: Options, guilty: set[str], broken: Callable[[str], bool] = lambda kernel: False
) -> list[str]:
    """The culprits' names, after a search in which all of `guilty` together are bad."""
    tried = []
    while (candidate := space.proposal()) is not None:
        assert candidate.kernel not in tried
        tried.append(candidate.kernel)
        verdict = Judgement.BAD if guilty <= set(candidate.kernel.split(",")) else Judgement.GOOD
        space.learn(candidate, Judgement.SKIP if broken(candidate.kernel) else verdict)
    return space.answer().culprits[0].id.split("+") + tried


def options(count: int) -> list[Difference]:
    names = [f"CONFIG_{number:02}" for number in range(count)]
    return differences(dict.fromkeys(names[::2], "m"), dict.fromkeys(names, "y"))


@given(st.integers(1, 60), st.data())
def test_options_that_make_the_difference_are_found_alone_or_together(
    count: int, data: st.DataObject
) -> None:
    found = options(count)
    names = [each.option for each in found]
    guilty = data.draw(st.sets(st.sampled_from(names), min_size=1, max_size=3))
    space = Options(found, kconfig({}))
    culprits = search(space, guilty)
    assert set(culprits[: len(guilty)]) == guilty
    assert len(space.answer().detail.splitlines()) == len(guilty) + (len(guilty) > 1)
    if len(guilty) == 1:
        assert len(culprits) - 1 <= 2 * max(1, (count - 1).bit_length())


@given(st.data())
def test_options_that_need_others_are_found_with_what_they_need(data: st.DataObject) -> None:
    found = options(24)
    names = [each.option for each in found]
    # Each option needs at most one before it, so there are no circles.
    needs = {
        option: data.draw(st.sampled_from(names[:place]))
        for place, option in enumerate(names)
        if place and data.draw(st.booleans())
    }
    culprit = data.draw(st.sampled_from(names))
    chain = {culprit}
    while (lower := {needs[each] for each in chain if each in needs}) - chain:
        chain |= lower
    space = Options(found, kconfig(needs))
    assert set(search(space, {culprit})[: len(chain)]) == chain


def test_mixtures_of_which_kconfig_makes_nothing_new_are_not_tried() -> None:
    found = options(16)
    # All but the first need the first: half of all parts are the good configuration again.
    needs = {each.option: "CONFIG_00" for each in found[1:]}
    culprits = search(Options(found, kconfig(needs)), {"CONFIG_09"})
    assert set(culprits[:2]) == {"CONFIG_00", "CONFIG_09"}
    assert all("CONFIG_00" in each for each in culprits[2:])
    with pytest.raises(KernrigError, match="the same of both"):
        Options(found, kconfig({each.option: "CONFIG_ELSE" for each in found}))
    with pytest.raises(KernrigError, match="configurations are the same"):
        Options([], kconfig({}))


def test_answer_tells_what_changed_along_and_what_could_not_be_tested() -> None:
    space = Options(options(4), kconfig({}, {"CONFIG_02": "CONFIG_HELPER"}))
    search(space, {"CONFIG_02", "CONFIG_03"}, lambda kernel: kernel.startswith("CONFIG_03"))
    detail = space.answer().detail
    assert detail.startswith("CONFIG_02: m -> y\nCONFIG_03: n -> y\nWithout any one of these")
    assert "  CONFIG_HELPER: n -> y" in detail
    assert "1 smaller mixtures could not be tested" in detail


def test_search_over_options_names_the_ends_by_what_they_are(tmp_path: Path) -> None:
    space = Options(options(8), kconfig({}))
    bench = Bench(lambda kernel: float("CONFIG_05" in kernel.split(",")))
    result = find(space, bench, tmp_path)
    assert [each.title for each in result.answer.culprits] == ["CONFIG_05: n -> y"]
    assert result.steps[0].candidate.title == "8 of 8 options from the bad configuration"
    assert result.steps[-1].candidate.title.startswith("with CONFIG_0")
    again = find(Options(options(8), kconfig({})), empty := Bench(lambda kernel: 0.0), tmp_path)
    assert (again, empty.asked) == (result, [])


def test_mixture_takes_options_from_the_bad_side(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_text('CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_S="x"\nCONFIG_AB=y\n')
    bad = {"CONFIG_B": "y", "CONFIG_S": 'a "b"', "CONFIG_AB": "y"}
    found = differences(KernelConfig.read(good), bad)
    assert [str(each) for each in found] == ["CONFIG_A: y -> n", "CONFIG_B: n -> y", 'CONFIG_S: x -> a "b"']
    assert KernelConfig.read(mixture(good, found, tmp_path))["CONFIG_S"] == 'a "b"'
    mixed = KernelConfig.read(mixture(good, found[:2], tmp_path))
    assert dict(mixed) == {"CONFIG_S": "x", "CONFIG_AB": "y", "CONFIG_A": "n", "CONFIG_B": "y"}
