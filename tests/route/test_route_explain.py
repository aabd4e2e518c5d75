# ruff: noqa: E501  (tables and output, as they are)
"""`pacs-node explain` and `pacs-node conformance`, as they are read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
from typer.testing import CliRunner

from pacs_node.cli.main import app
from pacs_node.receive.contexts import STORAGE_SOP_CLASSES, TRANSFER_SYNTAXES

runner = CliRunner()

CONFIG = """\
node: {ae_title: NODE, state_dir: /nowhere}
destinations:
  PACS: {type: dicom, ae_title: PACS, host: 192.0.2.10, port: 104}
  WEB: {type: stow, url: https://pacs.example/dicom-web}
  DISK: {type: folder, path: /srv/disk}
rules:
  - name: trauma room
    when: {calling_ae: TRAUMA, Modality: [CR, DX]}
    tasks: [anomaly]
    destinations: [PACS, WEB]
    forward_original: true
  - name: adults
    when: {Modality: [CR, DX], PatientAge: {not: {range: [0, 17]}}, SeriesDescription: {not: {pattern: (?i)outside}}}
    tasks: [bone_suppression, restoration, anomaly]
    destinations: [PACS]
  - name: the rest
    destinations: [DISK]
    forward_original: true
"""

Explain = Callable[..., Any]


@pytest.fixture
def explain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Explain:
    """Runs the command in the folder tmp_path, with models whose names stay the same."""
    (tmp_path / "pacs-node.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACS_NODE_MODELS", str(Path(__file__).parents[1] / "infer" / "fixtures" / "models"))
    monkeypatch.setenv("PACS_NODE_CONFIG", str(tmp_path / "pacs-node.yaml"))
    for task in ("BONE", "RESTORATION", "ANOMALY"):
        monkeypatch.delenv(f"PACS_NODE_{task}", raising=False)
    text = (
        CONFIG
        + "models: {bone_suppression: tiny-bone, restoration: tiny-restoration, anomaly: tiny-anomaly}\n"
    )
    (tmp_path / "pacs-node.yaml").write_text(text)

    def run(*arguments: str, code: int = 0) -> str:
        result = runner.invoke(app, ["explain", *arguments])
        assert result.exit_code == code, result.output
        return result.stdout

    return run


def chest(**changes: Any) -> Dataset:
    """The header of an adult's PA chest radiograph, with other values where wanted; no pixels."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = DigitalXRayImageStorageForPresentation, "2.25.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = "2.25.2", "2.25.3"
    ds.Modality, ds.BodyPartExamined, ds.ViewPosition = "DX", "CHEST", "PA"
    ds.PatientAge, ds.SeriesDescription, ds.PatientOrientation = "055Y", "Chest PA (synthetic)", ["L", "F"]
    for keyword, value in changes.items():
        setattr(ds, keyword, value)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return ds


def saved(path: Path, **changes: Any) -> Path:
    chest(**changes).save_as(path, enforce_file_format=True)
    return path


def test_a_chest_radiograph(explain: Explain, tmp_path: Path) -> None:
    saved(tmp_path / "chest.dcm")
    assert (
        explain("chest.dcm")
        == """\
chest.dcm
Rules, in their order
  does not match trauma room
      no  calling_ae: TRAUMA; found nothing
      yes Modality: one of CR, DX; found DX
  FIRES          adults
      yes Modality: one of CR, DX; found DX
      yes PatientAge: not (from 0 to 17); found 055Y
      yes SeriesDescription: not (matches /(?i)outside/); found Chest PA (synthetic)
  too late       the rest (it matches, but an earlier rule has fired)
      always: it has no conditions
Outcome
  It will be analysed, unless its pixels turn out to be unusable.
Would be made
  bone_suppression: series 'AI bone suppression - not for diagnosis', model tiny-bone 1.0.0
  restoration: series 'AI restoration - not for diagnosis', model tiny-restoration 1.0.0
  anomaly: series 'AI anomaly heatmap - not for diagnosis', model tiny-anomaly 1.0.0
  report of the study: series 'AI report - not for diagnosis'
Would be sent
  results to PACS (C-STORE to PACS at 192.0.2.10:104, calling as NODE)

"""
    )


def test_as_sent_by_another_ae(explain: Explain, tmp_path: Path) -> None:
    saved(tmp_path / "chest.dcm")
    shown = explain("chest.dcm", "--calling-ae", "TRAUMA")
    assert "  FIRES          trauma room\n      yes calling_ae: TRAUMA; found TRAUMA\n" in shown
    assert "  results and the original to PACS (C-STORE" in shown
    assert "  results and the original to WEB (STOW-RS to https://pacs.example/dicom-web)\n" in shown
    assert "bone_suppression:" not in shown


def test_the_file_names_its_sender(explain: Explain, tmp_path: Path) -> None:
    ds = chest()
    ds.file_meta.SourceApplicationEntityTitle = "TRAUMA"
    ds.save_as(tmp_path / "chest.dcm", enforce_file_format=True)
    assert "FIRES          trauma room" in explain("chest.dcm")
    assert "FIRES          adults" in explain("chest.dcm", "--calling-ae", "WARD")


def test_a_lateral_view(explain: Explain, tmp_path: Path) -> None:
    saved(tmp_path / "lateral.dcm", ViewPosition="LL", PatientOrientation=["A", "F"])
    shown = explain("lateral.dcm")
    assert shown.endswith("""\
Outcome
  Not analysed (not-frontal): View Position is LL, a lateral view.
  If the header is wrong, correct it at the modality; the object is kept and forwarded as it is.
Would be sent
  nothing

""")


def test_an_own_result(explain: Explain, tmp_path: Path) -> None:
    saved(tmp_path / "own.dcm", Manufacturer="pacs-node", ManufacturerModelName="pacs-node")
    assert "own results are never analysed" in explain("own.dcm", "--calling-ae", "TRAUMA")


def test_json(explain: Explain, tmp_path: Path) -> None:
    saved(tmp_path / "a.dcm")
    saved(tmp_path / "b.dcm", BodyPartExamined="KNEE")
    (tmp_path / "c.dcm").write_text("no DICOM")
    a, b, c = json.loads(explain("--json", "a.dcm", "b.dcm", "c.dcm", code=1))["files"]
    assert a["rule"] == b["rule"] == "adults"
    assert [(r["task"], r["model"], r["version"]) for r in a["results"]] == [
        ("bone_suppression", "tiny-bone", "1.0.0"),
        ("restoration", "tiny-restoration", "1.0.0"),
        ("anomaly", "tiny-anomaly", "1.0.0"),
    ]
    assert a["refused"] is None
    assert b["refused"]["code"] == "not-chest"
    assert (b["results"], b["report"], b["asked"]) == (
        [],
        None,
        ["bone_suppression", "restoration", "anomaly"],
    )
    assert a["destinations"] == [
        {"name": "PACS", "type": "dicom", "where": "C-STORE to PACS at 192.0.2.10:104, calling as NODE"}
    ]
    assert [rule["fired"] for rule in a["rules"]] == [False, True, False]
    assert a["rules"][1]["conditions"][1] == {
        "key": "PatientAge",
        "expected": "not (from 0 to 17)",
        "found": "055Y",
        "matched": True,
    }
    assert c == {"path": "c.dcm", "unreadable": c["unreadable"]}
    assert c["unreadable"]["code"] == "not-dicom"


def test_control_characters_do_not_reach_the_terminal(explain: Explain, tmp_path: Path) -> None:
    saved(tmp_path / "a.dcm", SeriesDescription="\x1b]0;owned\x07")
    assert "\x1b" not in explain("a.dcm")


def test_a_file_that_is_not_there(explain: Explain) -> None:
    explain("absent.dcm", code=2)


FIXTURES = {
    "fuji_cr_pa_mono1_10bit_explicitLE_440px.dcm": """\
Rules, in their order
  does not match trauma room
      no  calling_ae: TRAUMA; found nothing
      yes Modality: one of CR, DX; found CR
  FIRES          adults
      yes Modality: one of CR, DX; found CR
      yes PatientAge: not (from 0 to 17); found nothing
      yes SeriesDescription: not (matches /(?i)outside/); found nothing
  too late       the rest (it matches, but an earlier rule has fired)
      always: it has no conditions
Outcome
  It will be analysed, unless its pixels turn out to be unusable.
Would be made
  bone_suppression: series 'AI bone suppression - not for diagnosis', model tiny-bone 1.0.0
  restoration: series 'AI restoration - not for diagnosis', model tiny-restoration 1.0.0
  anomaly: series 'AI anomaly heatmap - not for diagnosis', model tiny-anomaly 1.0.0
  report of the study: series 'AI report - not for diagnosis'
Would be sent
  results to PACS (C-STORE to PACS at 192.0.2.10:104, calling as NODE)
""",
    "NEG_hip_cr_mono2_rle_RG2.dcm": """\
Rules, in their order
  does not match trauma room
      no  calling_ae: TRAUMA; found CLUNIE1
      yes Modality: one of CR, DX; found CR
  FIRES          adults
      yes Modality: one of CR, DX; found CR
      yes PatientAge: not (from 0 to 17); found nothing
      yes SeriesDescription: not (matches /(?i)outside/); found nothing
  too late       the rest (it matches, but an earlier rule has fired)
      always: it has no conditions
Outcome
  Not analysed (not-chest): Body Part Examined is HIP.
  If the header is wrong, correct it at the modality; the object is kept and forwarded as it is.
Would be sent
  nothing
""",
    "NEG_canine_lateral_thorax_dx_mono1.dcm": """\
Rules, in their order
  does not match trauma room
      no  calling_ae: TRAUMA; found nothing
      yes Modality: one of CR, DX; found DX
  does not match adults
      yes Modality: one of CR, DX; found DX
      no  PatientAge: not (from 0 to 17); found 005Y
      yes SeriesDescription: not (matches /(?i)outside/); found CHEST
  FIRES          the rest
      always: it has no conditions
Outcome
  Rule 'the rest' asks for no tasks: nothing is made of it.
Would be sent
  the original to DISK (files in /srv/disk)
""",
}


@pytest.mark.parametrize("name", FIXTURES)
def test_real_fixtures(explain: Explain, data_dir: Path, name: str) -> None:
    path = data_dir / "dicom" / name
    assert explain(str(path.absolute())) == f"{path.absolute()}\n{FIXTURES[name]}\n"


# -- conformance


def statement(tmp_path: Path, text: str = CONFIG) -> str:
    (tmp_path / "c.yaml").write_text(text)
    result = runner.invoke(app, ["conformance", "--config", str(tmp_path / "c.yaml")])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_conformance_statement_says_what_is_offered_and_configured(tmp_path: Path) -> None:
    text = statement(tmp_path)
    for uid, name in {**STORAGE_SOP_CLASSES, **TRANSFER_SYNTAXES}.items():
        assert f"| {name} | {uid} |" in text
    for heading in (
        "## 1 Conformance Statement Overview",
        "### 4.1 Implementation Model",
        "### 4.2 AE Specifications",
        "### 4.3 Network Interfaces",
        "### 4.4 Configuration",
        "## 5 Media Interchange",
        "## 7 Support of Character Sets",
        "## 8 Security",
        "### 9.3 Coded Terminology and Templates",
    ):
        assert heading in text
    assert "| Receiver, Delivery | NODE | 0.0.0.0 | 11112 |" in text
    assert "| PACS | PACS | 192.0.2.10 | 104 | NODE | 30 s |" in text
    assert "| WEB | https://pacs.example/dicom-web |" in text
    assert "| Simultaneous associations as acceptor | 100 |" in text
    assert "99PACSNODE" in text


def test_the_conformance_statement_of_a_node_that_sends_nothing(tmp_path: Path) -> None:
    text = statement(tmp_path, "receive: {max_associations: 7, check_called_ae: false}\n")
    assert "No DICOM destination is configured: this AE opens no association." in text
    assert "The called AE title is not checked" in text
    assert "| Simultaneous associations as acceptor | 7 |" in text
    assert "STOW-RS" not in text
    rows = re.findall(r"(?m)^\| ([^|]+) \| [\d.]+ \| (Yes|No) \| (Yes|No) \|$", text)
    assert rows
    assert all(user == "No" for _, user, _ in rows)


def test_the_conformance_statement_says_who_is_asked_for_commitment(tmp_path: Path) -> None:
    destination = (
        "{type: dicom, ae_title: A, host: 127.0.0.1, port: 104, commitment: true, sr: comprehensive}"
    )
    text = statement(tmp_path, f"destinations:\n  KEEPER: {destination}\n")
    assert "| Storage Commitment Push Model | 1.2.840.10008.1.20.1 | Yes | No |" in text
    assert "Storage commitment is asked of KEEPER" in text
    assert "| Comprehensive SR Storage | 1.2.840.10008.5.1.4.1.1.88.33 |" in text
    assert "asked of" not in statement(tmp_path)


def test_the_statement_says_whether_the_node_commits(tmp_path: Path) -> None:
    caller = "{ae_title: XRAY_1, host: 192.0.2.21, port: 104}"
    text = statement(tmp_path, f"receive: {{commitment: true, callers: [{caller}]}}\n")
    assert "| Storage Commitment Push Model | 1.2.840.10008.1.20.1 | No | Yes |" in text
    assert "| XRAY_1 | 192.0.2.21 | 104 |" in text
    assert "Committed objects are kept for\n7 days" in text
    assert "Reports on storage commitment (4.2.1.4)" in text
    text = statement(tmp_path)
    assert "| Storage Commitment Push Model | 1.2.840.10008.1.20.1 | No | No |" in text
    assert "Committed objects" not in text


def test_every_table_of_the_statement_is_well_formed(tmp_path: Path) -> None:
    blocks = re.findall(r"(?m)(?:^\|.*\n)+", statement(tmp_path))
    assert len(blocks) > 10
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_conformance_statement_of_the_dicomweb_service(tmp_path: Path) -> None:
    text = statement(tmp_path, CONFIG + "\nweb: {port: 8081, token_env: TOKEN, max_request_mb: 77}\n")
    assert "http://127.0.0.1:8081/dicom-web. Authentication: bearer token." in text
    assert "77 MB" in text
    assert "#### 4.2.3 DICOMweb Origin Server" in text
    assert "| JPEG-LS Lossless | 1.2.840.10008.1.2.4.80 | image/jls |" in text
    assert re.search(r"(?m)^\| Study \| .*AccessionNumber.*ModalitiesInStudy", text)
    for block in re.findall(r"(?m)(?:^\|.*\n)+", text):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert "4.2.3" not in statement(tmp_path)
