"""The DICOM conformance statement of a configuration, by the template of PS3.2 Annex N.

Made of the same tables that the receiver offers and the outputs are coded with, so that it says what the node
does; the words around them are in statement.md.j2.
"""

from __future__ import annotations

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from pydicom.datadict import keyword_for_tag
from pydicom.sr.coding import Code
from pydicom.uid import UID, ComprehensiveSRStorage

from pacs_node import __version__
from pacs_node.commitment import STORAGE_COMMITMENT
from pacs_node.config.model import Config, DicomDestination, Receive, StowDestination
from pacs_node.dicom import codes, uids
from pacs_node.dicom.derived import SUPPORTED
from pacs_node.dicomweb.attributes import COMPUTED, LEVEL_TAGS, LEVELS, MATCHABLE
from pacs_node.dicomweb.multipart import MAX_PARTS
from pacs_node.dicomweb.pixels import MEDIA_TYPES
from pacs_node.dicomweb.query import MAX_RESULTS
from pacs_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.pipeline.node import DELIVER_SLOTS
from pacs_node.receive.contexts import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES, VERIFICATION

_HEATMAP = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture
_REPORT = "1.2.840.10008.5.1.4.1.1.88.34"  # Comprehensive 3D SR

# The receiver's answers to C-STORE (PS3.4 Table B.2-1, PS3.7 Annex C)
_STATUSES = (
    ("Success", "0000", "The object is durable on disk and its work is queued; also if it is held already"),
    ("Warning", "B007", "Stored, but a UID of the data set is missing or malformed"),
    (
        "Refused",
        "A700",
        "Disk full or failing, object too large, or its work could not be queued: send again",
    ),
    ("Error", "A900", "SOP Class or Instance UID of the request and of the data set differ"),
    ("Refused", "0122", "SOP Class of the request is not that of its presentation context"),
    ("Error", "C000", "The data set cannot be understood"),
)
# Its rejections of associations (PS3.8 Table 9-21)
_REJECTIONS = (
    (
        "1 (permanent)",
        "1",
        "3",
        "Calling AE title is not configured, or calls from another host (if checked)",
    ),
    ("1 (permanent)", "1", "7", "Called AE title is not ours (if checked)"),
    ("2 (transient)", "3", "1", "Too little free disk space, or the receiver is stopping"),
    ("2 (transient)", "3", "2", "The limit of associations is reached"),
)
_TEMPLATES = (
    ("TID 1500", "Measurement Report (root)"),
    ("TID 1204", "Language of Content Item and Descendants"),
    ("TID 1002, 1004", "Observer Context (device)"),
    ("TID 1600, 1602, 1603", "Image Library and its entries"),
    ("TID 1501", "Measurement and Qualitative Evaluation Group"),
    ("TID 4019", "Algorithm Identification"),
)

Rows = list[tuple[str, ...]]


def statement(config: Config) -> str:
    """The statement as Markdown."""
    environment = Environment(  # noqa: S701  Markdown, which has no use for HTML escapes; cells are escaped below
        loader=PackageLoader("pacs_node.conformance", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = lambda value: str(value).replace("|", "\\|")
    return environment.get_template("statement.md.j2").render(_content(config))


def _content(config: Config) -> dict[str, Any]:
    made = {**{str(uid): UID(uid).name for uid in SUPPORTED}, _REPORT: UID(_REPORT).name}
    made.setdefault(_HEATMAP, UID(_HEATMAP).name)
    if any(destination.sr == "comprehensive" for destination in config.destinations.values()):
        made[str(ComprehensiveSRStorage)] = ComprehensiveSRStorage.name
    return {
        "config": config,
        "version": __version__,
        "services": _services(config, made),
        "committing": _committing(config),
        "received": [("Verification", VERIFICATION), *_by_name(STORAGE_SOP_CLASSES)],
        "made": _by_name(made),
        "policies": _policies(config.receive),
        "rejections": _REJECTIONS,
        "syntaxes": _by_name(TRANSFER_SYNTAXES),
        "uncompressed": list(TRANSFER_SYNTAXES.values())[:2],
        "statuses": _STATUSES,
        "slots": DELIVER_SLOTS,
        "addresses": [
            ("Receiver, Delivery", config.node.ae_title, config.receive.host, str(config.receive.port))
        ],
        "callers": [(c.ae_title, c.host or "any", str(c.port or "none")) for c in config.receive.callers],
        "dicom": _dicom(config),
        "web": [(name, d.url) for name, d in config.destinations.items() if isinstance(d, StowDestination)],
        "served": _served(config),
        "templates": _TEMPLATES,
        "scheme": codes.SCHEME,
        "scheme_uid": uids.CODING_SCHEME,
        "private_codes": _private_codes(),
    }


def _by_name(names: dict[str, str]) -> Rows:
    return [(name, uid) for uid, name in names.items()]


def _services(config: Config, made: dict[str, str]) -> Rows:
    """SOP class, UID, whether we are its SCU, whether its SCP."""
    sends = bool(_dicom(config))
    every = sorted({**STORAGE_SOP_CLASSES, **made}.items(), key=lambda pair: pair[1])
    rows = [(name, uid, _yes(sends), _yes(uid in STORAGE_SOP_CLASSES)) for uid, name in every]
    asks, commits = _yes(bool(_committing(config))), _yes(config.receive.commitment)
    commitment = ("Storage Commitment Push Model", STORAGE_COMMITMENT, asks, commits)
    return [*rows, ("Verification", VERIFICATION, _yes(sends), "Yes"), commitment]


def _committing(config: Config) -> list[str]:
    """The destinations that are asked for storage commitment."""
    return [n for n, d in config.destinations.items() if isinstance(d, DicomDestination) and d.commitment]


def _yes(value: bool) -> str:
    return "Yes" if value else "No"


def _policies(receive: Receive) -> Rows:
    return [
        ("Simultaneous associations as acceptor", str(receive.max_associations)),
        ("Maximum PDU length offered", f"{receive.max_pdu} bytes"),
        ("Asynchronous operations window", "not supported (one outstanding operation)"),
        ("Timeout for association messages", f"{receive.timeouts.acse:g} s"),
        ("Timeout for DIMSE messages", f"{receive.timeouts.dimse:g} s"),
        ("Idle association is aborted after", f"{receive.timeouts.network:g} s"),
        ("Implementation class UID", IMPLEMENTATION_CLASS_UID),
        ("Implementation version name", IMPLEMENTATION_VERSION_NAME),
    ]


def _dicom(config: Config) -> Rows:
    return [
        (
            name,
            d.ae_title,
            d.host,
            str(d.port),
            d.calling_ae_title or config.node.ae_title,
            f"{d.timeout:g} s",
        )
        for name, d in config.destinations.items()
        if isinstance(d, DicomDestination)
    ]


def _served(config: Config) -> dict[str, Any] | None:
    """What the node's own DICOMweb service offers."""
    if config.web is None:
        return None
    web = config.web
    host = f"[{web.host}]" if ":" in web.host else web.host
    named = {level: [keyword_for_tag(int(tag, 16)) for tag in tags] for level, tags in LEVEL_TAGS.items()}
    asked = {"user name and password": web.password_env, "bearer token": web.token_env}
    return {
        "address": f"http://{host}:{web.port}/dicom-web",
        "authentication": " or ".join(how for how, given in asked.items() if given) or "none",
        "origins": ", ".join(web.origins) or "none",
        "keys": [
            (
                level.capitalize(),
                ", ".join(keyword_for_tag(int(tag, 16)) for tag, at in MATCHABLE.items() if at == level),
            )
            for level in LEVELS
        ],
        "returned": [
            (level.capitalize(), ", ".join(sorted({*named[level], *COMPUTED[level]}))) for level in LEVELS
        ],
        "frames": [(TRANSFER_SYNTAXES[uid], uid, kind) for uid, kind in MEDIA_TYPES.items()],
        "max_results": MAX_RESULTS,
        "max_parts": MAX_PARTS,
    }


def _private_codes() -> Rows:
    known = [c for c in vars(codes).values() if isinstance(c, Code) and c.scheme_designator == codes.SCHEME]
    rows: Rows = sorted((code.value, code.meaning) for code in known)
    return [*rows, ("SCORE + 10 digits", "Score of a finding; the meaning begins with the finding's name")]
