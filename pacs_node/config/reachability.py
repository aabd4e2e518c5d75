"""Which rules can never fire: their own conditions contradict each other, or earlier rules take every object
first.

A rule fires if its conditions hold and for each earlier rule at least one condition does not. The attributes
are independent of each other, so the question falls apart into one per attribute: is there a set of values
that fulfils these conditions and fails those? It is answered by trying representatives: absence, every
constant that the conditions mention, a value between and beyond any two of them, and one of another kind.
That is exact for equals, one_of, range, present and not. Of a pattern it is only known which constants it
finds; of all other values it is taken to find some and not others. So a rule reported here never fires; one
with patterns may go unreported.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, pairwise, product

from pydicom.datadict import dictionary_VR, tag_for_keyword

from pacs_node.config.attributes import ASSOCIATION, Kind, comparable, is_multi_valued, kind_of
from pacs_node.config.model import Condition, Rule

_BUDGET = 20_000  # attempts; beyond it a rule counts as reachable
_MAX_PATTERNS = 6  # free patterns per attribute; beyond it anything counts as possible
_MAX_VALUES = 3  # values of a multi-valued attribute that are tried together
_MAX_TRIALS = 50_000  # sets of values per attribute; beyond it anything counts as possible
_INTEGRAL = {"IS", "US", "UL", "SS", "SL", "UV", "SV"}

Literal = tuple[Condition, bool]  # a condition that must hold (True) or must fail (False)


@dataclass(frozen=True)
class Contradiction:
    """No value of ``key`` fulfils what rule number ``rule`` (from 0) demands of it."""

    rule: int
    key: str


@dataclass(frozen=True)
class Shadowed:
    """Every object that rule number ``rule`` (from 0) matches is taken before it by one of ``by``."""

    rule: int
    by: tuple[int, ...]


def unreachable(
    rules: Sequence[Rule], given: Mapping[str, Condition] | None = None
) -> Iterator[Contradiction | Shadowed]:
    """The rules that can never fire, each with the reason. ``given``: what holds for every object that
    arrives.
    """
    for index, rule in enumerate(rules):
        demands: dict[str, tuple[Literal, ...]] = {key: ((c, True),) for key, c in (given or {}).items()}
        for key, condition in rule.when.items():
            demands[key] = (*demands.get(key, ()), (condition, True))
        if contradicted := [key for key, literals in demands.items() if not satisfiable(key, literals)]:
            yield from (Contradiction(index, key) for key in contradicted)
        elif not _escapes(demands, rules[:index]):
            yield Shadowed(index, _needed(demands, rules[:index]))


def _needed(demands: dict[str, tuple[Literal, ...]], earlier: Sequence[Rule]) -> tuple[int, ...]:
    """The numbers of rules that together suffice to shadow: one if one does."""
    numbers = list(range(len(earlier)))
    for number in numbers:
        if not _escapes(demands, [earlier[number]]):
            return (number,)
    for number in list(numbers):
        without = [n for n in numbers if n != number]
        if not _escapes(demands, [earlier[n] for n in without]):
            numbers = without
    return tuple(numbers)


def _escapes(demands: dict[str, tuple[Literal, ...]], earlier: Sequence[Rule]) -> bool:
    """Whether an object can meet the demands and be matched by none of the earlier rules."""
    budget = _BUDGET

    def search(demands: dict[str, tuple[Literal, ...]], number: int) -> bool:
        nonlocal budget
        if number == len(earlier):
            return True
        for key, condition in earlier[number].when.items():
            budget -= 1
            if budget < 0:
                return True
            literals = (*demands.get(key, ()), (condition, False))
            if satisfiable(key, literals) and search({**demands, key: literals}, number + 1):
                return True
        return False

    return search(demands, 0)


def satisfiable(key: str, literals: Sequence[Literal]) -> bool:
    """Whether an attribute can have values (or none) for which every literal is as it must be."""
    atoms = list(chain.from_iterable(_atoms(condition) for condition, _ in literals))
    patterns = sorted({a.pattern for a in atoms if a.pattern is not None})
    if len(patterns) > _MAX_PATTERNS:
        return True
    values = list(_representatives(key, atoms, patterns))
    most = _MAX_VALUES if is_multi_valued(key) else 1
    if len(values) ** most > _MAX_TRIALS:
        return True
    for count in range(most + 1):
        for chosen in combinations(values, count):
            if all(_holds(key, condition, chosen) is wanted for condition, wanted in literals):
                return True
    # A multi-valued attribute may need one value for each comparison: then three values may be too few
    return most > 1 and min(len(values), _comparisons(key, atoms)) > most


def _comparisons(key: str, atoms: Sequence[Condition]) -> int:
    """How many different comparisons of values there are."""
    found: set[object] = set()
    for atom in atoms:
        for values in ((atom.equals,) if atom.equals is not None else (), atom.one_of or ()):
            found.add(frozenset(comparable(key, value) for value in values))
        found |= {part for part in (atom.pattern, atom.range) if part is not None}
    return len(found - {frozenset()})


@dataclass(frozen=True)
class _Value:
    """A representative: its comparable form (None: present, but not of the attribute's kind) and what finds
    it.
    """

    comparable: str | float | None
    patterns: frozenset[str]


def _atoms(condition: Condition) -> Iterator[Condition]:
    yield condition
    if condition.not_ is not None:
        yield from _atoms(condition.not_)


def _representatives(key: str, atoms: Sequence[Condition], patterns: Sequence[str]) -> Iterator[_Value]:
    kind = kind_of(key)
    constants: set[str | float] = set()
    for atom in atoms:
        mentioned = [
            *([] if atom.equals is None else [atom.equals]),
            *(atom.one_of or ()),
            *(atom.range or ()),
        ]
        constants |= {comparable(key, value) for value in mentioned if value is not None}
    if kind in (Kind.TEXT, Kind.CODE):
        texts = sorted(str(c) for c in constants)
        for text in texts:
            yield from (
                _Value(text, found) for found in _found_by(text, patterns, any_case=kind is Kind.CODE)
            )
        other: str | float | None = "\0"  # unlike every constant
    else:
        for number in _numbers(key, sorted(float(c) for c in constants)):
            yield _Value(number, frozenset())
        other = None  # text where a number should be
    for found in _subsets(patterns):
        yield _Value(other, found)


def _numbers(key: str, constants: list[float]) -> Iterator[float]:
    if not constants:
        yield 0.0
        return
    vr = "" if key in ASSOCIATION else dictionary_VR(tag_for_keyword(key) or 0)
    whole = vr in _INTEGRAL or vr == "DA"
    candidates = {*constants, constants[0] - 1, constants[-1] + 1}
    candidates |= (
        {number + 1 for number in constants} if whole else {(a + b) / 2 for a, b in pairwise(constants)}
    )
    for number in sorted(candidates):
        # Ages, dates and times are never negative
        if number >= 0 or kind_of(key) is Kind.NUMBER:
            yield number


def _found_by(text: str, patterns: Sequence[str], *, any_case: bool) -> Iterator[frozenset[str]]:
    """The sets of patterns that can find a constant: one, unless the case of the header's value is open."""
    if not any_case:
        yield frozenset(p for p in patterns if re.search(p, text))
        return
    spellings = {text, text.upper(), text.lower(), text.title()}
    choices = []
    for pattern in patterns:
        found = {bool(re.search(pattern, spelling)) for spelling in spellings}
        found.add(bool(re.search(pattern, text, re.IGNORECASE)))
        choices.append([(pattern, answer) for answer in found])
    for choice in product(*choices):
        yield frozenset(pattern for pattern, answer in choice if answer)


def _subsets(patterns: Sequence[str]) -> Iterator[frozenset[str]]:
    for count in range(len(patterns) + 1):
        yield from map(frozenset, combinations(patterns, count))


def _holds(key: str, condition: Condition, values: Sequence[_Value]) -> bool:
    """What route.rules.holds says of real values, of representatives."""
    if condition.present is not None and bool(values) != condition.present:
        return False
    if condition.not_ is not None and _holds(key, condition.not_, values):
        return False
    if condition.pattern is not None and not any(condition.pattern in v.patterns for v in values):
        return False
    known = {v.comparable for v in values if v.comparable is not None}
    if condition.equals is not None and comparable(key, condition.equals) not in known:
        return False
    if condition.one_of is not None and not known & {comparable(key, v) for v in condition.one_of}:
        return False
    if condition.range is not None:
        low, high = condition.range
        lowest = float("-inf") if low is None else float(comparable(key, low))
        highest = float("inf") if high is None else float(comparable(key, high))
        return any(lowest <= number <= highest for number in known if isinstance(number, float))
    return True
