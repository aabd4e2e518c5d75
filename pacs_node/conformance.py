"""The DICOM conformance statement of a configuration, by the template of PS3.2 Annex N.

Made of the same tables that the receiver offers and the outputs are coded with, so that it says what the node
does. Sections that the product has nothing for say so, as the template asks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydicom.sr.coding import Code
from pydicom.uid import UID

from pacs_node import __version__
from pacs_node.config.model import Config, DicomDestination, StowDestination
from pacs_node.dicom import codes, uids
from pacs_node.dicom.derived import SUPPORTED
from pacs_node.implementation import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME
from pacs_node.pipeline.node import DELIVER_SLOTS
from pacs_node.receive.contexts import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES, VERIFICATION

_HEATMAP = "1.2.840.10008.5.1.4.1.1.7"  # Secondary Capture
_REPORT = "1.2.840.10008.5.1.4.1.1.88.34"  # Comprehensive 3D SR
_UNCOMPRESSED = list(TRANSFER_SYNTAXES)[:2]

# Statuses of the receiver (PS3.4 Table B.2-1, PS3.7 Annex C)
_STATUSES = (
    (
        "Success",
        "0000",
        "The object is durable on disk and its work is queued; also for one that is held already",
    ),
    ("Warning", "B007", "Stored, but a UID of the data set is missing or malformed"),
    (
        "Refused",
        "A700",
        "Disk full or failing, object larger than configured, or its work could not be queued: send again",
    ),
    ("Error", "A900", "SOP Class or Instance UID of the request and of the data set differ"),
    ("Refused", "0122", "SOP Class of the request is not that of its presentation context"),
    ("Error", "C000", "The data set cannot be understood"),
)
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
    ("1500", "Measurement Report (root)"),
    ("1204", "Language of Content Item and Descendants"),
    ("1002, 1004", "Observer Context (device)"),
    ("1600, 1602, 1603", "Image Library and its entries"),
    ("1501", "Measurement and Qualitative Evaluation Group"),
    ("4019", "Algorithm Identification"),
)


def statement(config: Config) -> str:
    """The statement as Markdown."""
    parts = (_overview, _introduction, _model, _specification, _interfaces, _configuration, _rest, _annexes)
    return "\n".join(line for part in parts for line in part(config)) + "\n"


def _table(head: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
    yield ""


def _made() -> dict[str, str]:
    """SOP classes of the node's own objects."""
    images = {str(uid): UID(uid).name for uid in SUPPORTED}
    return {**images, _HEATMAP: UID(_HEATMAP).name, _REPORT: UID(_REPORT).name}


def _overview(config: Config) -> Iterator[str]:
    yield from (
        f"# DICOM Conformance Statement: pacs-node {__version__}, {config.node.ae_title}",
        "",
        "Generated from the configuration; after the template of DICOM PS3.2 Annex N.",
        "",
        "## 1 Conformance Statement Overview",
        "",
        "pacs-node receives chest radiographs, makes derived images (bone suppression, restoration, "
        "anomaly heatmap) and "
        "a structured report with anomaly scores, and sends them on. It is research software; its results "
        "are not for "
        "diagnosis.",
        "",
    )
    made = _made()
    scu = {**STORAGE_SOP_CLASSES, **made} if _dicom(config) else {}
    rows = [
        (name, uid, "Yes" if uid in scu else "No", "Yes" if uid in STORAGE_SOP_CLASSES else "No")
        for uid, name in sorted({**STORAGE_SOP_CLASSES, **made}.items(), key=lambda pair: pair[1])
    ]
    rows.append(("Verification", VERIFICATION, "Yes" if _dicom(config) else "No", "Yes"))
    yield "Table 1-1: Network services"
    yield ""
    yield from _table(("SOP Class", "UID", "User (SCU)", "Provider (SCP)"), rows)
    if _stow(config):
        yield "DICOMweb: STOW-RS Store Instances (PS3.18 10.5), user agent."
        yield ""
    yield "Media services: none. Print, query/retrieve, worklist, MPPS, storage commitment: not supported."
    yield ""


def _introduction(config: Config) -> Iterator[str]:
    yield from (
        "## 2 Table of Contents",
        "",
        "1 Overview, 2 Contents, 3 Introduction, 4 Networking, 5 Media Interchange, 6 Transformation to CDA, "
        "7 Character Sets, 8 Security, 9 Annexes",
        "",
        "## 3 Introduction",
        "",
        f"Revision: made from the configuration of {config.node.ae_title} by pacs-node {__version__}. "
        "Audience: those who "
        "connect it to modalities and archives. Conformance to DICOM does not by itself make two systems "
        "work "
        "together: test the connection. Terms and abbreviations are those of DICOM PS3.",
        "",
    )


def _model(config: Config) -> Iterator[str]:
    yield from (
        "## 4 Networking",
        "",
        "### 4.1 Implementation Model",
        "",
        "#### 4.1.1 Application Data Flow",
        "",
        "A remote AE stores objects (C-STORE) to the **Receiver AE**. Rules on the header decide what is "
        "made of an object "
        "and where it goes. The **Delivery AE** sends results, and if so configured the received objects, "
        "to the "
        "configured destinations. Both use the AE title of the node, unless a destination is configured "
        "otherwise.",
        "",
        "#### 4.1.2 Functional Definition of AEs",
        "",
        "- *Receiver AE*: waits for associations; writes each data set as it came, bit for bit, to disk; "
        "answers "
        "success only when the object and its work are durable.",
        "- *Delivery AE*: opens an association when there is something to send. A delivery that failed for "
        "a transient "
        f"reason is tried again after {config.deliver.retry.first_seconds:g} s, doubling up to "
        f"{config.deliver.retry.max_seconds:g} s, {config.deliver.retry.attempts} times.",
        "",
        "#### 4.1.3 Sequencing of Real-World Activities",
        "",
        "Images are analysed as they arrive. The report of a study is made when nothing has come for it for "
        f"{config.study.quiet_seconds:g} s, and again, naming its predecessor, when a later image changes "
        "it.",
        "",
    )


def _specification(config: Config) -> Iterator[str]:
    receive = config.receive
    yield from (
        "### 4.2 AE Specifications",
        "",
        "#### 4.2.1 Receiver AE",
        "",
        "##### 4.2.1.1 SOP Classes",
        "",
        "This AE provides Standard Conformance, as SCP, to:",
        "",
    )
    yield from _table(
        ("SOP Class", "UID"),
        [("Verification", VERIFICATION), *((n, u) for u, n in STORAGE_SOP_CLASSES.items())],
    )
    yield from (
        "##### 4.2.1.2 Association Policies",
        "",
        "Application context: 1.2.840.10008.3.1.1.1.",
        "",
    )
    yield from _table(
        ("Policy", "Value"),
        (
            ("Simultaneous associations as acceptor", str(receive.max_associations)),
            ("Maximum PDU length offered", f"{receive.max_pdu} bytes"),
            ("Asynchronous operations window", "not supported (one outstanding operation)"),
            ("Timeout for association messages", f"{receive.timeouts.acse:g} s"),
            ("Timeout for DIMSE messages", f"{receive.timeouts.dimse:g} s"),
            ("Idle association is aborted after", f"{receive.timeouts.network:g} s"),
            ("Implementation class UID", IMPLEMENTATION_CLASS_UID),
            ("Implementation version name", IMPLEMENTATION_VERSION_NAME),
        ),
    )
    yield from (
        "##### 4.2.1.3 Association Initiation Policy",
        "",
        "This AE does not initiate associations.",
        "",
    )
    yield from ("##### 4.2.1.4 Association Acceptance Policy", "")
    called = "must be that of the node" if receive.check_called_ae else "is not checked"
    calling = "must be configured (see 4.4.1)" if receive.check_calling_ae else "is not checked"
    yield f"The called AE title {called}; the calling AE title {calling}. Rejections:"
    yield ""
    yield from _table(("Result", "Source", "Reason", "When"), _REJECTIONS)
    yield "Presentation contexts, role SCP, no extended negotiation; for each Storage SOP Class of 4.2.1.1:"
    yield ""
    yield from _table(("Transfer Syntax", "UID"), [(name, uid) for uid, name in TRANSFER_SYNTAXES.items()])
    yield "Verification: " + " and ".join(TRANSFER_SYNTAXES[uid] for uid in _UNCOMPRESSED) + "."
    yield ""
    yield "Storage is Level 2 (Full): every attribute, also private ones, is kept. C-STORE responses:"
    yield ""
    yield from _table(("Status", "Code", "Meaning"), _STATUSES)
    yield from _delivery(config)


def _delivery(config: Config) -> Iterator[str]:
    yield from ("#### 4.2.2 Delivery AE", "", "##### 4.2.2.1 SOP Classes", "")
    if not _dicom(config):
        yield from ("No DICOM destination is configured: this AE opens no association.", "")
        return
    yield "As SCU: Verification; for received objects the Storage SOP Classes of 4.2.1.1; for its own:"
    yield ""
    yield from _table(("SOP Class", "UID"), [(name, uid) for uid, name in _made().items()])
    yield from (
        "##### 4.2.2.2 Association Policies",
        "",
        f"One association for each delivery, at most {DELIVER_SLOTS} at a time to one destination. "
        "Implementation identification as in 4.2.1.2.",
        "",
        "##### 4.2.2.3 Association Initiation Policy",
        "",
        "For each SOP Class and transfer syntax among the objects one presentation context proposes that "
        "transfer syntax, and a second one "
        + " and ".join(TRANSFER_SYNTAXES[uid] for uid in _UNCOMPRESSED)
        + ". Own objects are in Explicit VR Little Endian. A compressed object whose syntax is not taken is "
        "sent decoded.",
        "",
        "Responses to C-STORE: 0000 and warnings (Bxxx) are success. Out of resources (A7xx), processing "
        "failure (0110), resource limitation (0213), unknown statuses, rejections and lost associations are "
        "transient: the delivery is tried again. All others are final, and the delivery is kept as failed.",
        "",
        "##### 4.2.2.4 Association Acceptance Policy",
        "",
        "This AE does not accept associations.",
        "",
    )


def _interfaces(config: Config) -> Iterator[str]:
    yield from (
        "### 4.3 Network Interfaces",
        "",
        "TCP/IP, IPv4 and IPv6 as configured. Any physical medium that the operating system supports.",
        "",
    )


def _configuration(config: Config) -> Iterator[str]:
    yield from ("### 4.4 Configuration", "", "#### 4.4.1 AE Title / Presentation Address Mapping", "")
    yield from _table(
        ("Local AE", "AE title", "Address", "Port"),
        [("Receiver, Delivery", config.node.ae_title, config.receive.host, str(config.receive.port))],
    )
    if config.receive.callers:
        rows = [(caller.ae_title, caller.host or "any") for caller in config.receive.callers]
        yield from _table(("Known caller", "Host"), rows)
    if _dicom(config):
        yield from _table(
            ("Destination", "AE title", "Host", "Port", "Called as", "Timeout"),
            [
                (
                    name,
                    d.ae_title,
                    d.host,
                    str(d.port),
                    d.calling_ae_title or config.node.ae_title,
                    f"{d.timeout:g} s",
                )
                for name, d in _dicom(config)
            ],
        )
    if _stow(config):
        yield from _table(("DICOMweb destination", "Address"), [(name, d.url) for name, d in _stow(config)])
    yield from (
        "#### 4.4.2 Parameters",
        "",
        "Everything in 4.2 with a number is configurable in pacs-node.yaml.",
        "",
    )


def _rest(config: Config) -> Iterator[str]:
    web = (
        " DICOMweb destinations with an https address are reached through TLS, with the server's "
        "certificate checked "
        "unless configured otherwise; HTTP Basic or bearer token authentication."
        if _stow(config)
        else ""
    )
    yield from (
        "## 5 Media Interchange",
        "",
        "None.",
        "",
        "## 6 Transformation of DICOM to CDA",
        "",
        "None.",
        "",
        "## 7 Support of Character Sets",
        "",
        "Received objects are kept in whatever Specific Character Set they came. Results carry the "
        "patient's and the "
        "study's attributes in the character set of their source (single-byte and ISO 2022 sets including "
        "ISO 2022 IR 87 "
        "and IR 149, GB18030, GBK, ISO_IR 192); all text of the node's own is ASCII.",
        "",
        "## 8 Security",
        "",
        "No secure transport connection profile (TLS) of PS3.15 for DIMSE: use it in a protected network. "
        "Associations "
        "can be limited to configured AE titles and hosts. No audit trail profile, no digital signatures, no "
        f"attribute confidentiality profile.{web}",
        "",
    )


def _annexes(config: Config) -> Iterator[str]:
    yield from (
        "## 9 Annexes",
        "",
        "### 9.1 IOD Contents",
        "",
        "Created objects: derived images in the SOP Class of their source (Image Type DERIVED\\SECONDARY, "
        "new Series and "
        "SOP Instance UIDs, Source Image, Derivation Code and Contributing Equipment Sequences, Content "
        "Qualification); "
        "an anomaly heatmap as RGB Secondary Capture (Burned In Annotation YES); a report as Comprehensive "
        "3D SR "
        "(Completion Flag COMPLETE, or PARTIAL if a task failed; Verification Flag UNVERIFIED). SOP "
        "Instance and Series Instance UIDs are "
        "derived (2.25, PS3.5 B.2) from the source's UID, the task and the model, so the same analysis is "
        "the same "
        "object. Manufacturer and Manufacturer's Model Name are those of the node.",
        "",
        "### 9.2 Data Dictionary of Private Attributes",
        "",
        "No private attributes are created.",
        "",
        "### 9.3 Coded Terminology and Templates",
        "",
    )
    yield from _table(("Template", "Use"), [(f"TID {number}", use) for number, use in _TEMPLATES])
    yield (
        f"Terminology: DCM, SNOMED CT (SCT), UCUM, UMLS as PS3.16 uses them; and the private scheme "
        f"{codes.SCHEME} "
        f"(Coding Scheme UID {uids.CODING_SCHEME}), identified in each object that uses it:"
    )
    yield ""
    private = [c for c in vars(codes).values() if isinstance(c, Code) and c.scheme_designator == codes.SCHEME]
    rows = [(code.value, code.meaning) for code in sorted(private, key=lambda c: c.value)]
    rows.append(("SCORE + 10 digits", "Score of a finding; the meaning begins with the finding's name"))
    yield from _table(("Code value", "Meaning"), rows)
    yield from (
        "### 9.4 Grayscale Image Consistency",
        "",
        "Nothing is displayed. Derived images keep the source's Photometric Interpretation and "
        "presentation attributes.",
        "",
        "### 9.5 Standard Extended, Specialized and Private SOP Classes",
        "",
        "None.",
        "",
        "### 9.6 Private Transfer Syntaxes",
        "",
        "None.",
    )


def _dicom(config: Config) -> list[tuple[str, DicomDestination]]:
    return [(name, d) for name, d in config.destinations.items() if isinstance(d, DicomDestination)]


def _stow(config: Config) -> list[tuple[str, StowDestination]]:
    return [(name, d) for name, d in config.destinations.items() if isinstance(d, StowDestination)]
