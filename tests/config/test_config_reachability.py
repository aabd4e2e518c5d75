# ruff: noqa: E501  (tables: one case a line)
"""Rules that can never fire: found exactly where no pattern is involved, and never claimed of one that can."""

from __future__ import annotations

from itertools import combinations, product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from pacs_node.config.model import Condition, Rule
from pacs_node.config.reachability import Contradiction, Shadowed, satisfiable, unreachable
from pacs_node.route import decide


def rules(*whens: dict[str, Any]) -> list[Rule]:
    return [Rule.model_validate({"name": str(n), "when": when}) for n, when in enumerate(whens)]


@pytest.mark.parametrize(
    ("whens", "expected"),
    [
        ([{}, {"Modality": "CR"}], Shadowed(1, (0,))),
        ([{"Modality": "CR"}, {"Modality": "cr"}], Shadowed(1, (0,))),
        ([{"Modality": "CR"}, {"Modality": "DX"}, {"Modality": ["CR", "DX"]}], Shadowed(2, (0, 1))),
        ([{"Modality": "CR"}, {"Modality": {"not": "CR"}}, {"Rows": 1}], Shadowed(2, (0, 1))),
        ([{"Modality": {"present": True}}, {"Modality": {"present": False}}, {}], Shadowed(2, (0, 1))),
        (
            [{"PatientAge": {"range": [18, None]}}, {"PatientAge": {"range": ["020Y", "030Y"]}}],
            Shadowed(1, (0,)),
        ),
        (
            [{"Rows": {"range": [None, 5]}}, {"Rows": {"range": [6, None]}}, {"Rows": {"present": True}}],
            None,  # a Rows that is no number is present and in no range
        ),
        ([{"Rows": {"range": [None, 5]}}, {"Rows": {"range": [6, None]}}, {"Rows": [5, 7]}], Shadowed(2, (0, 1))),
        (
            [{"Modality": "CR", "PatientSex": "M"}, {"PatientSex": "F"}, {"Modality": "CR", "PatientSex": ["F", "M"]}],
            Shadowed(2, (0, 1)),
        ),
        ([{"Modality": "CR", "PatientSex": "M"}, {"Modality": "CR"}], None),
        ([{"StudyDescription": {"pattern": "a"}}, {"StudyDescription": {"pattern": "a"}}], Shadowed(1, (0,))),
        ([{"StudyDescription": {"pattern": "a"}}, {"StudyDescription": "chest ap"}], Shadowed(1, (0,))),
        ([{"StudyDescription": {"pattern": "a"}}, {"StudyDescription": {"pattern": "ab"}}], None),
        ([{"ImageType": "ORIGINAL"}, {"ImageType": ["ORIGINAL", "PRIMARY"]}], None),
        ([{"ImageType": ["ORIGINAL", "PRIMARY"]}, {"ImageType": "PRIMARY"}], Shadowed(1, (0,))),
        ([{"Modality": {"equals": "CR", "not": "CR"}}], Contradiction(0, "Modality")),
        ([{"Modality": {"equals": "CR", "present": False}}], Contradiction(0, "Modality")),
        ([{"Modality": {"equals": "CR", "one_of": ["DX", "DR"]}}], Contradiction(0, "Modality")),
        ([{"Rows": {"range": [1, 2], "not": [1, 2]}}], Contradiction(0, "Rows")),
        ([{"PatientAge": {"range": [1, 2], "not": [1, 2]}}], None),
        ([{"PatientAge": {"range": [18, 40], "not": {"range": [10, 50]}}}], Contradiction(0, "PatientAge")),
        ([{"PatientID": {"equals": "A7", "pattern": "^B"}}], Contradiction(0, "PatientID")),
        ([{"PatientID": {"pattern": "x", "not": {"pattern": "x"}}}], Contradiction(0, "PatientID")),
        ([{"ImageType": {"equals": "A", "one_of": ["B"]}}], None),  # multi-valued: both can be there
    ],
)  # fmt: skip
def test_known_cases(whens: list[dict[str, Any]], expected: Contradiction | Shadowed | None) -> None:
    assert list(unreachable(rules(*whens))) == ([] if expected is None else [expected])


def test_what_the_receiver_makes_sure_of_counts() -> None:
    given_ = {"called_ae": Condition(equals="NODE")}
    assert list(unreachable(rules({"called_ae": "OTHER"}), given_)) == [Contradiction(0, "called_ae")]
    assert list(unreachable(rules({"called_ae": "NODE"}, {}), given_)) == [Shadowed(1, (0,))]


def test_many_rules_take_no_long_time() -> None:
    many = [{"StationName": f"ROOM{n}", "Modality": ["CR", "DX"]} for n in range(60)]
    found = list(unreachable(rules(*many, {"StationName": "ROOM7", "Modality": "CR"})))
    assert found == [Shadowed(60, (7,))]


def test_a_long_list_of_a_multi_valued_attribute_is_not_claimed_unsatisfiable() -> None:
    condition = Condition.model_validate({"one_of": [f"V{n}" for n in range(300)]})
    assert satisfiable("ImageType", [(condition, True), (Condition(equals="W"), True)])


# Exactness against every header of a small world. Constants lie inside of it.

MODALITIES = ["A", "B", "OTHER"]
TYPES = ["X", "Y", "OTHER"]


def _headers() -> list[Dataset]:
    headers = []
    kinds = [subset for count in range(4) for subset in combinations(TYPES, count)]
    for modality, rows, types in product([None, *MODALITIES], [None, *range(6)], kinds):
        header = Dataset()
        if modality:
            header.Modality = modality
        if rows is not None:
            header.Rows = rows
        if types:
            header.ImageType = list(types)
        headers.append(header)
    return headers


HEADERS = _headers()


def conditions(values: list[Any], *, ranges: bool) -> st.SearchStrategy[dict[str, Any]]:
    simple = [
        st.fixed_dictionaries({"equals": st.sampled_from(values)}),
        st.fixed_dictionaries({"one_of": st.lists(st.sampled_from(values), min_size=1, max_size=2)}),
        st.fixed_dictionaries({"present": st.booleans()}),
    ]
    if ranges:
        pairs = st.tuples(st.sampled_from([None, 1, 2]), st.sampled_from([None, 2, 3, 4]))
        simple.append(st.fixed_dictionaries({"range": pairs.filter(lambda p: p != (None, None)).map(list)}))
    one = st.one_of(simple)
    return st.one_of(
        one, one.map(lambda c: {"not": c}), st.tuples(one, one).map(lambda cc: {**cc[0], "not": cc[1]})
    )


when = st.fixed_dictionaries(
    {},
    optional={
        "Modality": conditions(["A", "B"], ranges=False),
        "Rows": conditions([1, 2, 3, 4], ranges=True),
        "ImageType": conditions(["X", "Y"], ranges=False),
    },
)


@settings(max_examples=60, deadline=None)
@given(st.lists(when, min_size=1, max_size=4))
def test_exact_in_a_small_world(whens: list[dict[str, Any]]) -> None:
    made = rules(*whens)
    firing = {decide(made, header).rule for header in HEADERS}
    claimed = {str(found.rule) for found in unreachable(made)}
    # Where Rows is no number (present, in no range) is outside of the small world, so "not fired" can be wrong
    header = Dataset()
    header["Rows"] = DataElement("Rows", "LO", "many")
    for modality, types in product([None, *MODALITIES], [None, *TYPES]):
        header.Modality, header.ImageType = modality, types
        firing.add(decide(made, header).rule)
    names = {rule.name for rule in made}
    assert claimed.isdisjoint(firing), "a rule that can fire was claimed not to"
    assert claimed == names - firing


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["StudyDescription", "BodyPartExamined"]),
            st.one_of(
                st.sampled_from(["chest", "CHEST", "hand"]),
                st.fixed_dictionaries({"pattern": st.sampled_from(["c", "(?i)chest", "^C", "T$", "[^a]"])}),
                st.fixed_dictionaries({"not": st.fixed_dictionaries({"pattern": st.sampled_from(["c", "^C"])})}),
            ),
            max_size=2,
        ),
        min_size=2,
        max_size=4,
    ),
    st.lists(st.tuples(*[st.sampled_from(["", "chest", "CHEST", "Chest", "hand", "xcT", "a"])] * 2), min_size=5),
)  # fmt: skip
def test_with_patterns_never_claimed_of_a_rule_that_fires(
    whens: list[dict[str, Any]], values: list[tuple[str, str]]
) -> None:
    made = rules(*whens)
    claimed = {str(found.rule) for found in unreachable(made)}
    for description, part in values:
        header = Dataset()
        header.StudyDescription = description
        header["BodyPartExamined"] = DataElement(
            "BodyPartExamined", "CS", part, validation_mode=config.IGNORE
        )
        assert decide(made, header).rule not in claimed
