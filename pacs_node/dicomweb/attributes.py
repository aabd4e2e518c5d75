"""The attributes that QIDO-RS knows, by level (PS3.18 Tables 10.6.1-5, 10.6.3-3 to 10.6.3-5)."""

from __future__ import annotations

from pydicom.datadict import dictionary_VR, tag_for_keyword

STUDY, SERIES, INSTANCE = "study", "series", "instance"
LEVELS = (STUDY, SERIES, INSTANCE)

_HEADER: dict[str, tuple[str, ...]] = {
    STUDY: (
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "ReferringPhysicianName",
        "StudyDescription",
        "InstitutionName",
        "PatientName",
        "PatientID",
        "IssuerOfPatientID",
        "PatientBirthDate",
        "PatientSex",
        "PatientAge",
        "StudyInstanceUID",
        "StudyID",
    ),
    SERIES: (
        "SeriesDate",
        "SeriesTime",
        "Modality",
        "Manufacturer",
        "ManufacturerModelName",
        "StationName",
        "SeriesDescription",
        "BodyPartExamined",
        "Laterality",
        "ProtocolName",
        "SeriesInstanceUID",
        "SeriesNumber",
        "PerformedProcedureStepStartDate",
        "PerformedProcedureStepStartTime",
        "RequestAttributesSequence",
    ),
    INSTANCE: (
        "ImageType",
        "SOPClassUID",
        "SOPInstanceUID",
        "ContentDate",
        "ContentTime",
        "AcquisitionDate",
        "AcquisitionTime",
        "InstanceNumber",
        "ViewPosition",
        "ImageLaterality",
        "NumberOfFrames",
        "Rows",
        "Columns",
        "BitsAllocated",
        "PhotometricInterpretation",
        "CompletionFlag",
        "VerificationFlag",
        "ConceptNameCodeSequence",
    ),
}

#: Counted or made here, from more than one object.
COMPUTED: dict[str, tuple[str, ...]] = {
    STUDY: (
        "InstanceAvailability",
        "ModalitiesInStudy",
        "SOPClassesInStudy",
        "RetrieveURL",
        "NumberOfStudyRelatedSeries",
        "NumberOfStudyRelatedInstances",
    ),
    SERIES: ("RetrieveURL", "NumberOfSeriesRelatedInstances"),
    INSTANCE: ("InstanceAvailability", "RetrieveURL"),
}


def tag_of(keyword: str) -> str:
    """The tag of a keyword as DICOM JSON writes it."""
    return f"{tag_for_keyword(keyword):08X}"


#: Tags of the header that the index keeps, and those of each level with their VR.
LEVEL_TAGS: dict[str, tuple[str, ...]] = {
    level: tuple(map(tag_of, keywords)) for level, keywords in _HEADER.items()
}
INDEXED = frozenset(tag for tags in LEVEL_TAGS.values() for tag in tags)

_COUNTED = {
    "ModalitiesInStudy": STUDY,
    "SOPClassesInStudy": STUDY,
    "NumberOfStudyRelatedSeries": STUDY,
    "NumberOfStudyRelatedInstances": STUDY,
    "NumberOfSeriesRelatedInstances": SERIES,
}
#: Tag to level, of everything that can be matched (sequences cannot).
MATCHABLE: dict[str, str] = {
    **{
        tag_of(keyword): level
        for level, keywords in _HEADER.items()
        for keyword in keywords
        if dictionary_VR(keyword) != "SQ"
    },
    **{tag_of(keyword): level for keyword, level in _COUNTED.items()},
}
