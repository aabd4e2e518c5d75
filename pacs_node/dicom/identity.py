"""Who the outputs say has made them, and how an own result is known when it comes back.

An own result is recognised by its equipment (General Equipment or Contributing Equipment), not by its UID or
by where it came from: that survives a PACS, another node and a change of AE title, and so ends export loops.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from pacs_node import __version__
from pacs_node.dicom import codes, uids
from pacs_node.dicom.derivation import Derivation

MANUFACTURER = "pacs-node"
"""Manufacturer (0008,0070) of every output."""

MODEL_NAME = "pacs-node"
"""Manufacturer's Model Name (0008,1090) of every output."""

SOFTWARE = f"{MODEL_NAME} {__version__}"
"""First value of Software Versions (0018,1020); the models follow."""


def software_versions(*derivations: Derivation) -> list[str]:
    """Values of Software Versions: the node's, then each model's; each at most 64 characters (LO)."""
    return [SOFTWARE, *sorted({_clean(f"{d.model_name} {d.model_version}") for d in derivations})]


def set_general_equipment(ds: Dataset, *derivations: Derivation) -> None:
    """Write the General Equipment module (PS3.3 C.7.5.1) of the node with the models of ``derivations``."""
    ds.Manufacturer = MANUFACTURER
    ds.ManufacturerModelName = MODEL_NAME
    ds.SoftwareVersions = software_versions(*derivations)
    ds.DeviceUID = uids.device(*(d.model_digest for d in derivations))


def contributing_equipment(source: Dataset, *derivations: Derivation) -> list[Dataset]:
    """Items of Contributing Equipment Sequence (PS3.3 C.12.1.1.5): the source's own, its modality, and
    this node.
    """
    items = list(source.get("ContributingEquipmentSequence") or [])
    modality = Dataset()
    modality.PurposeOfReferenceCodeSequence = [codes.item(codes.ACQUISITION_EQUIPMENT)]
    # Manufacturer is type 1 here but only type 2 in the source's General Equipment.
    modality.Manufacturer = source.get("Manufacturer") or "unknown"
    for keyword in (
        "InstitutionName",
        "StationName",
        "ManufacturerModelName",
        "DeviceSerialNumber",
        "SoftwareVersions",
        "DeviceUID",
    ):
        if source.get(keyword):
            modality[keyword] = source[keyword]
    node = Dataset()
    node.PurposeOfReferenceCodeSequence = [codes.item(codes.PROCESSING_EQUIPMENT)]
    set_general_equipment(node, *derivations)
    node.ContributionDescription = "; ".join(dict.fromkeys(d.title for d in derivations)) or "AI analysis"
    created = next((d.created for d in derivations if d.created), None)
    if created is not None:
        node.ContributionDateTime = created.strftime("%Y%m%d%H%M%S%z")
    return [*items, modality, node]


def is_own_result(ds: Dataset) -> bool:
    """Whether a node of this kind made ``ds`` or had a part in making it; a header is enough."""
    contributors = _value(ds, "ContributingEquipmentSequence")
    return _is_node(ds) or any(map(_is_node, contributors if isinstance(contributors, Sequence) else []))


def _is_node(ds: Dataset) -> bool:
    return (_value(ds, "Manufacturer"), _value(ds, "ManufacturerModelName")) == (MANUFACTURER, MODEL_NAME)


def _value(ds: Dataset, keyword: str) -> object:
    """A value of others, only to be compared: None where it does not even parse."""
    try:
        return ds.get(keyword)
    # pydicom raises ValueError, NotImplementedError, struct.error … for whatever is wrong with the bytes.
    except Exception:  # noqa: BLE001
        return None


def _clean(text: str) -> str:
    return text.replace("\\", "/")[:64]
