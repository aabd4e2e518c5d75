# ruff: noqa: E501  (tables: one case a line)
"""What a rule's conditions mean, on headers as they come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import config
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from pacs_node.config.attributes import kind_of, texts
from pacs_node.config.model import Condition, Rule
from pacs_node.route import Decision, decide
from pacs_node.route.rules import holds, in_words
from pacs_node.tasks import Task

CR = "1.2.840.10008.5.1.4.1.1.1"


def header(**values: Any) -> Dataset:
    """A header with values as a file may have them, the invalid ones too."""
    ds = Dataset()
    for keyword, value in values.items():
        element = DataElement(keyword, _VR.get(keyword, "LO"), value, validation_mode=config.IGNORE)
        ds[keyword] = element
    return ds


_VR = {
    "Modality": "CS", "BodyPartExamined": "CS", "ViewPosition": "CS", "ImageType": "CS", "PatientSex": "CS",
    "PatientAge": "AS", "StudyDate": "DA", "StudyTime": "TM", "PatientName": "PN", "KVP": "DS", "Exposure": "IS",
    "Rows": "US", "SOPClassUID": "UI", "AcquisitionDateTime": "DT",
}  # fmt: skip


def one(when: dict[str, Any], ds: Dataset, **association: str) -> Decision:
    return decide([Rule.model_validate({"name": "r", "when": when})], ds, **association)


def matches(when: dict[str, Any], ds: Dataset, **association: str) -> bool:
    return one(when, ds, **association).rule == "r"


CASES: list[tuple[dict[str, Any], dict[str, Any], bool]] = [
    # equals: padding and, for CS and PN, case do not count; they do elsewhere
    ({"Modality": "CR"}, {"Modality": "CR "}, True),
    ({"Modality": "cr"}, {"Modality": " Cr"}, True),
    ({"StudyDescription": "Chest"}, {"StudyDescription": "Chest  "}, True),
    ({"StudyDescription": "Chest"}, {"StudyDescription": "CHEST"}, False),
    ({"PatientName": "Hong^Gildong"}, {"PatientName": "HONG^GILDONG"}, True),
    ({"PatientName": {"pattern": "洪"}}, {"PatientName": "Hong^Gildong=洪^吉洞=홍^길동"}, True),
    ({"SOPClassUID": CR}, {"SOPClassUID": CR}, True),
    ({"SOPClassUID": "ComputedRadiographyImageStorage"}, {"SOPClassUID": CR}, True),
    # one_of, and several values: any will do
    ({"Modality": ["CR", "DX"]}, {"Modality": "DX"}, True),
    ({"Modality": ["CR", "DX"]}, {"Modality": "CT"}, False),
    ({"ImageType": "PRIMARY"}, {"ImageType": ["ORIGINAL", "PRIMARY"]}, True),
    ({"ImageType": {"not": "PRIMARY"}}, {"ImageType": ["ORIGINAL", "PRIMARY"]}, False),
    # patterns are found anywhere and mind the case unless told otherwise
    ({"StudyDescription": {"pattern": "hor"}}, {"StudyDescription": "Thorax"}, True),
    ({"StudyDescription": {"pattern": "THOR"}}, {"StudyDescription": "Thorax"}, False),
    ({"StudyDescription": {"pattern": "(?i)THOR"}}, {"StudyDescription": "Thorax"}, True),
    ({"StudyDescription": {"pattern": "ax$"}}, {"StudyDescription": "Thorax "}, True),
    ({"StudyDescription": {"pattern": "(?i)chest", "not": {"pattern": "(?i)outside"}}},
     {"StudyDescription": "CHEST outside film"}, False),
    # numbers as numbers
    ({"KVP": 125}, {"KVP": "125.0"}, True),
    ({"KVP": {"range": [100, 130]}}, {"KVP": "+1.25E2"}, True),
    ({"KVP": {"range": [100, 125]}}, {"KVP": "125.01"}, False),
    ({"Exposure": {"range": [5, None]}}, {"Exposure": "5"}, True),
    ({"Rows": {"range": [None, 4000]}}, {"Rows": 4001}, False),
    # ages in years, whatever their unit
    ({"PatientAge": {"range": [18, None]}}, {"PatientAge": "045Y"}, True),
    ({"PatientAge": {"range": [18, None]}}, {"PatientAge": "018M"}, False),
    ({"PatientAge": {"range": [1, 2]}}, {"PatientAge": "018M"}, True),
    ({"PatientAge": {"range": [0, 1]}}, {"PatientAge": "003W"}, True),
    ({"PatientAge": {"range": [0, 1]}}, {"PatientAge": "366D"}, False),
    ({"PatientAge": {"range": ["017Y", "019Y"]}}, {"PatientAge": "18"}, True),
    ({"PatientAge": 62}, {"PatientAge": "062Y"}, True),
    # dates and times, also as they were written before DICOM
    ({"StudyDate": {"range": ["2026-01-01", None]}}, {"StudyDate": "20260101"}, True),
    ({"StudyDate": {"range": ["20260101", None]}}, {"StudyDate": "20251231"}, False),
    ({"StudyDate": "2026-01-31"}, {"StudyDate": "2026.01.31"}, True),
    ({"StudyTime": {"range": ["08:30", "17"]}}, {"StudyTime": "083000.5"}, True),
    ({"StudyTime": {"range": ["0830", "17:00"]}}, {"StudyTime": "1700"}, True),
    ({"StudyTime": {"range": ["0830", "17:00"]}}, {"StudyTime": "17:00:01"}, False),
    ({"AcquisitionDateTime": {"range": ["2026-01-01", None]}}, {"AcquisitionDateTime": "20260102093000+0100"}, True),
    # a value that is not of its kind is present, and fulfils no comparison
    ({"PatientAge": {"range": [0, 200]}}, {"PatientAge": "old"}, False),
    ({"PatientAge": {"not": {"range": [0, 200]}}}, {"PatientAge": "old"}, True),
    ({"PatientAge": {"present": True}}, {"PatientAge": "old"}, True),
    ({"KVP": {"present": True}}, {"KVP": ""}, False),
    # absent or empty: only present: false and not
    ({"BodyPartExamined": "CHEST"}, {}, False),
    ({"BodyPartExamined": {"not": "HAND"}}, {}, True),
    ({"BodyPartExamined": {"not": {"not": "HAND"}}}, {}, False),
    ({"BodyPartExamined": {"present": False}}, {}, True),
    ({"BodyPartExamined": {"present": False}}, {"BodyPartExamined": "  "}, True),
    ({"BodyPartExamined": {"present": True}}, {"BodyPartExamined": "  "}, False),
    ({"BodyPartExamined": {"pattern": ""}}, {}, False),
    # all keys must hold; none is everything
    ({"Modality": "CR", "BodyPartExamined": "CHEST"}, {"Modality": "CR"}, False),
    ({}, {}, True),
]  # fmt: skip


@pytest.mark.parametrize(("when", "values", "expected"), CASES)
def test_condition(when: dict[str, Any], values: dict[str, Any], expected: bool) -> None:
    if when == {"BodyPartExamined": {"pattern": ""}}:
        when = {"BodyPartExamined": {"pattern": ".*"}}
    assert matches(when, header(**values)) is expected


def test_association() -> None:
    assert matches({"calling_ae": "XRAY_1"}, header(), calling_ae="XRAY_1 ")
    assert not matches({"calling_ae": "XRAY_1"}, header(), calling_ae="xray_1")
    assert not matches({"calling_ae": "XRAY_1"}, header())
    assert matches(
        {"calling_ae": {"pattern": "^XRAY"}, "called_ae": "NODE"},
        header(),
        calling_ae="XRAY_2",
        called_ae="NODE",
    )


RULES = [
    Rule.model_validate({"name": n, "when": w, "tasks": t, "destinations": d, "forward_original": f})
    for n, w, t, d, f in [
        ("hands", {"BodyPartExamined": "HAND"}, [], ["ARCHIVE"], True),
        ("chest", {"Modality": ["CR", "DX"]}, ["bone_suppression", "anomaly"], ["PACS", "ARCHIVE"], False),
        ("rest", {}, [], ["ARCHIVE"], True),
    ]
]


def test_the_first_rule_that_matches_fires_and_the_trace_tells_all() -> None:
    ds = header(Modality="DX", BodyPartExamined="CHEST")
    decision = decide(RULES, ds, "XRAY", "NODE")
    assert decision.rule == "chest"
    assert decision.tasks == decision.asked == (Task.BONE_SUPPRESSION, Task.ANOMALY)
    assert decision.destinations == ("PACS", "ARCHIVE")
    assert not decision.forward_original
    assert decision.refusal is None
    assert [(r.name, r.matched, r.fired) for r in decision.trace] == [
        ("hands", False, False), ("chest", True, True), ("rest", True, False),
    ]  # fmt: skip
    condition = decision.trace[0].conditions[0]
    assert (condition.key, condition.expected, condition.found, condition.matched) == (
        "BodyPartExamined", "HAND", "CHEST", False,
    )  # fmt: skip


def test_no_rule_matches() -> None:
    decision = decide(RULES[:1], header(Modality="DX"))
    assert (decision.rule, decision.tasks, decision.destinations) == (None, (), ())
    assert decide([], header()).rule is None


def test_a_refused_object_is_still_sent_where_the_rule_says() -> None:
    decision = decide(RULES, header(Modality="DX", BodyPartExamined="KNEE"))
    assert decision.rule == "chest"
    assert decision.tasks == ()
    assert decision.asked == (Task.BONE_SUPPRESSION, Task.ANOMALY)
    assert decision.refusal is not None
    assert decision.refusal.code == "not-chest"
    assert decision.destinations == ("PACS", "ARCHIVE")


def test_a_rule_without_tasks_refuses_nothing() -> None:
    decision = decide(RULES, header(Modality="CT", BodyPartExamined="KNEE"))
    assert (decision.rule, decision.refusal, decision.forward_original) == ("rest", None, True)


def test_own_results_are_never_analysed_and_never_refused() -> None:
    ds = header(Modality="DX", Manufacturer="pacs-node", ManufacturerModelName="pacs-node")
    decision = decide(RULES, ds)
    assert decision.own_result
    assert decision.tasks == ()
    assert decision.refusal is None
    assert decision.destinations == ("PACS", "ARCHIVE")


# -- laws

VALUES = st.sampled_from(["CR", "cr", "DX", "A B", "x", "1"])
CONDITIONS = st.recursive(
    st.one_of(
        st.builds(lambda v: {"equals": v}, VALUES),
        st.builds(lambda v: {"one_of": v}, st.lists(VALUES, min_size=1, max_size=3)),
        st.builds(lambda v: {"pattern": v}, st.sampled_from(["C", "^c", "R$", "(?i)dx", "."])),
        st.builds(lambda v: {"present": v}, st.booleans()),
    ),
    lambda inner: st.builds(lambda c: {"not": c}, inner),
    max_leaves=3,
)
FOUND = st.lists(VALUES, max_size=3)
KEYS = st.sampled_from(["Modality", "StudyDescription", "PatientName"])


def condition(data: dict[str, Any]) -> Condition:
    return Condition.model_validate(data)


@given(KEYS, CONDITIONS, FOUND)
def test_not_is_the_opposite(key: str, data: dict[str, Any], found: list[str]) -> None:
    assert holds(key, condition({"not": data}), found) is not holds(key, condition(data), found)


@given(KEYS, VALUES, FOUND)
def test_equals_is_one_of_one(key: str, value: str, found: list[str]) -> None:
    assert holds(key, condition({"equals": value}), found) is holds(
        key, condition({"one_of": [value]}), found
    )


@given(KEYS, st.lists(VALUES, min_size=1, max_size=3), FOUND)
def test_one_of_is_any_of_equals(key: str, values: list[str], found: list[str]) -> None:
    any_equal = any(holds(key, condition({"equals": value}), found) for value in values)
    assert holds(key, condition({"one_of": values}), found) is any_equal


@given(KEYS, CONDITIONS.filter(lambda c: "not" not in c and "present" not in c), FOUND)
def test_many_values_match_if_one_does(key: str, data: dict[str, Any], found: list[str]) -> None:
    assert holds(key, condition(data), found) is any(holds(key, condition(data), [value]) for value in found)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_range_is_both_of_its_sides(low: float, high: float, value: float) -> None:
    low, high = sorted((low, high))
    inside = holds("KVP", condition({"range": [low, high]}), [repr(value)])
    sides = [holds("KVP", condition({"range": r}), [repr(value)]) for r in ([low, None], [None, high])]
    assert inside is all(sides) is (low <= value <= high)


@given(st.integers(0, 6), st.integers(0, 6), st.sampled_from(["CR", "DX"]))
def test_padding_never_matters(before: int, after: int, value: str) -> None:
    padded = header(Modality=" " * before + value + " " * after)
    assert matches({"Modality": "CR"}, padded) is (value == "CR")
    assert texts("Modality", padded) == [value]


@given(CONDITIONS)
def test_words_for_every_condition(data: dict[str, Any]) -> None:
    assert in_words(condition(data))


KEYWORDS = [
    "Modality", "PatientAge", "KVP", "Exposure", "StudyDate", "StudyTime", "PatientName", "ImageType", "Rows",
    "SpecificCharacterSet", "BodyPartExamined", "ViewPosition", "PatientOrientation", "NumberOfFrames", "SOPClassUID",
    "Manufacturer", "SeriesDescription", "PatientSpeciesDescription",
]  # fmt: skip
RAW_VRS = ["CS", "AS", "DS", "IS", "DA", "TM", "PN", "US", "LO", "UI", "UN", "FD"]


@settings(max_examples=120, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(KEYWORDS), st.tuples(st.sampled_from(RAW_VRS), st.binary(max_size=40)), max_size=8
    )
)
@pytest.mark.filterwarnings("ignore")  # what pydicom thinks of such values is not the matter here
def test_no_header_makes_it_fail(raw: dict[str, tuple[str, bytes]]) -> None:
    ds = Dataset()
    for keyword, (vr, value) in raw.items():
        tag = Tag(keyword)
        ds[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    when = {key: {"present": True} for key in raw if kind_of(key)}
    rules = [
        Rule.model_validate({"name": "a", "when": {**when, "PatientAge": {"range": [1, 2]}}}),
        Rule.model_validate({"name": "b", "when": {"KVP": 5, "StudyDate": "20260101", "StudyTime": "10"}}),
        Rule.model_validate({"name": "c", "tasks": ["anomaly"]}),
    ]
    assert decide(rules, ds).rule in ("a", "b", "c")
