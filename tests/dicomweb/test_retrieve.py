"""QIDO-RS and WADO-RS against the running process: what was sent comes back, and is found by every key."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian

from pacs_node.dicom.pixels import read_radiograph
from tests.dicom import radiographs
from tests.dicom_objects import ENCODERS, LOSSY, data_set_bytes, write_in
from tests.dicomweb.conftest import Served, body, part10
from tests.pipeline.harness import encoded

EXPLICIT = "1.2.840.10008.1.2.1"
STUDY = "1.2.826.0.1.3680043.10.7"


def study_of_three(served: Served) -> list[Dataset]:
    """A DX and a CR of MONOCHROME1 in one series each, and another study; sent once."""
    made = []
    for number, (sop_class, photometric, study, name) in enumerate(
        [
            (radiographs.DX, "MONOCHROME2", STUDY, "korean"),
            (radiographs.CR, "MONOCHROME1", STUDY, "korean"),
            (radiographs.CR, "MONOCHROME2", f"{STUDY}.9", None),
        ]
    ):
        made.append(_image(sop_class, photometric, study, name, number))
    if served.get(f"/studies/{STUDY}/metadata")[0] == 404:
        status, _ = served.post(body(*map(part10, made)))
        assert status == 200
    return made


def _image(sop_class: str, photometric: str, study: str, name: str | None, number: int) -> Dataset:
    first = study == STUDY
    return radiographs.radiograph(
        sop_class,
        photometric=photometric,
        charset=name,
        image=radiographs.chest(96, 80, number),
        StudyInstanceUID=study,
        SeriesInstanceUID=f"{study}.{number}",
        SOPInstanceUID=f"{study}.{number}.1",
        InstanceNumber=number + 1,
        SeriesNumber=number + 1,
        StudyDate="20260102" if first else "20251231",
        AccessionNumber="A1" if first else "A2",
        PatientID="P-1" if first else "P-2",
        StudyDescription="Chest",
        SeriesDescription=f"Series {number}",
    )


def values(results: list[dict[str, Any]], tag: str) -> list[Any]:
    return [result[tag]["Value"][0] for result in results]


STUDY_UID, SERIES_UID, INSTANCE_UID = "0020000D", "0020000E", "00080018"


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ("StudyInstanceUID={0}", [0]),
        ("0020000D={0},{1}", [0, 1]),
        ("StudyInstanceUID={0}%5C{1}", [0, 1]),
        ("StudyDate=20260102", [0]),
        ("StudyDate=20251201-20260101", [1]),
        ("StudyDate=20260101-", [0]),
        ("StudyDate=-20251231", [1]),
        ("StudyDate=20260103-", []),
        ("StudyTime=1011-1012", [0, 1]),
        ("AccessionNumber=A1", [0]),
        ("AccessionNumber=A?", [0, 1]),
        ("AccessionNumber=a1", []),
        ("PatientID=P-*", [0, 1]),
        ("PatientID=*-2", [1]),
        ("PatientID=", [0, 1]),
        ("PatientID=P.*", []),
        ("PatientName=hong*", [0]),
        ("PatientName=*%ED%99%8D*", [0]),
        ("PatientName=HONG%5EGILDONG", [0]),
        ("PatientName=test*", [1]),
        ("PatientBirthDate=19700102", [0, 1]),
        ("PatientSex=F", [0, 1]),
        ("PatientSex=M", []),
        ("ModalitiesInStudy=DX", [0]),
        ("ModalitiesInStudy=DX,MG", [0]),
        ("ModalitiesInStudy=CR", [0, 1]),
        ("SOPClassesInStudy=1.2.840.10008.5.1.4.1.1.1.1", [0]),
        ("NumberOfStudyRelatedInstances=2", [0]),
        ("StudyDescription=Chest&AccessionNumber=A2", [1]),
        ("StudyID=S1&limit=1", [0]),
        ("StudyID=S1&limit=1&offset=1", [1]),
        ("StudyID=S1&offset=5", []),
    ],
)
def test_studies_are_found_by_every_key(shared: Served, keys: str, found: list[int]) -> None:
    study_of_three(shared)
    studies = [STUDY, f"{STUDY}.9"]
    # Other tests' studies are in the same node.
    status, answer, headers = shared.get("/studies?" + keys.format(*studies))
    assert (status, headers["content-type"]) == (200, "application/dicom+json")
    mine = [uid for uid in values(json.loads(answer), STUDY_UID) if uid in studies]
    assert mine == [studies[n] for n in found]


def test_the_levels_of_a_search_and_what_they_answer(shared: Served) -> None:
    made = study_of_three(shared)
    (study,) = shared.web.search_for_studies(search_filters={"StudyInstanceUID": STUDY})
    assert study["00080061"]["Value"] == ["CR", "DX"]
    assert (study["00201206"]["Value"], study["00201208"]["Value"]) == ([2], [2])
    assert study["00100010"]["Value"] == [
        {"Alphabetic": "Hong^Gildong", "Ideographic": "洪^吉洞", "Phonetic": "홍^길동"}
    ]
    # The client leaves the port out of its Host header.
    assert study["00081190"]["Value"][0].endswith(f"/dicom-web/studies/{STUDY}")

    series = shared.web.search_for_series(STUDY)
    assert set(values(series, SERIES_UID)) == {made[0].SeriesInstanceUID, made[1].SeriesInstanceUID}
    assert values(series, "00201209") == [1, 1]
    by_modality = shared.web.search_for_series(STUDY, search_filters={"Modality": "DX"})
    assert values(by_modality, "0008103E") == ["Series 0"]
    everywhere = shared.web.search_for_series(
        search_filters={"SeriesDescription": "Series ?", "Modality": "CR"}
    )
    assert set(values(everywhere, SERIES_UID)) == {made[1].SeriesInstanceUID, made[2].SeriesInstanceUID}
    assert values(shared.web.search_for_series(search_filters={"SeriesNumber": "3"}), "0020000D") == [
        f"{STUDY}.9"
    ]

    instances = shared.web.search_for_instances(STUDY, made[1].SeriesInstanceUID)
    assert values(instances, INSTANCE_UID) == [made[1].SOPInstanceUID]
    assert (instances[0]["00280010"]["Value"], instances[0]["00280011"]["Value"]) == ([96], [80])
    found = shared.web.search_for_instances(search_filters={"SOPInstanceUID": made[2].SOPInstanceUID})
    assert values(found, INSTANCE_UID) == [made[2].SOPInstanceUID]
    assert values(
        shared.web.search_for_instances(STUDY, search_filters={"InstanceNumber": "2"}), SERIES_UID
    ) == [made[1].SeriesInstanceUID]

    # What the index does not hold is read for whoever asks for it.
    plain = shared.web.search_for_instances(STUDY, search_filters={"InstanceNumber": "1"})
    assert "00180060" not in plain[0]
    assert "00185100" not in plain[0]
    more = shared.web.search_for_instances(STUDY, fields=["SoftwareVersions", "00080061"])
    assert {tuple(result["00181020"]["Value"]) for result in more} == {("1.0",)}
    whole = shared.web.search_for_instances(STUDY, fields=["all"])
    assert {tuple(result["00280030"]["Value"]) for result in whole if "00280030" in result} == {(0.8, 0.8)}


def test_searches_that_are_not_understood_or_not_literal(shared: Served) -> None:
    study_of_three(shared)
    for asked, remedy in (
        ("/studies?PatientNam=x", "PatientName"),
        ("/studies?limit=ten", "limit"),
        ("/studies?Modality=CR", "ModalitiesInStudy"),
        ("/studies?includefield=Nothing", "keyword"),
        ("/series?SOPInstanceUID=1.2", "SeriesInstanceUID"),
        (f"/studies?PatientID={'x' * 5000}", "fewer"),
        (f"/studies?{'PatientID=x&' * 6000}", "fewer"),
        ("/studies/..%5Cetc/series", "digits"),
        (f"/studies/{'1' * 65}/series", "digits"),
        ("/studies/1;drop/instances", "digits"),
    ):
        status, answer, _ = shared.get(asked)
        assert status == 400, asked
        assert remedy in json.loads(answer)["remedy"]
    status, answer, headers = shared.get("/studies?fuzzymatching=true&PatientName=Hong*")
    assert (status, headers["warning"][:14]) == (200, "299 pacs-node ")
    assert "warning" not in shared.get("/studies?fuzzymatching=false")[2]
    assert shared.get("/studies", Accept="application/dicom+xml")[0] == 406
    assert shared.get("/studies?accept=text/html")[0] == 406
    assert json.loads(shared.get("/studies?PatientID=nobody")[1]) == []


def test_instances_come_back_as_they_were_sent(shared: Served) -> None:
    made = study_of_three(shared)
    study = shared.web.retrieve_study(STUDY)
    assert {ds.SOPInstanceUID: encoded(ds) for ds in study} == {
        ds.SOPInstanceUID: encoded(ds) for ds in made[:2]
    }
    series = shared.web.retrieve_series(STUDY, made[1].SeriesInstanceUID)
    assert [ds.PixelData for ds in series] == [made[1].PixelData]
    path = f"/studies/{STUDY}/series/{made[0].SeriesInstanceUID}/instances/{made[0].SOPInstanceUID}"
    status, single, headers = shared.get(path, Accept="application/dicom")
    assert (status, headers["content-type"]) == (200, "application/dicom")
    assert encoded(dcmread(io.BytesIO(single))) == encoded(made[0])
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "private, no-store")


def test_metadata(shared: Served) -> None:
    made = study_of_three(shared)
    found = shared.web.retrieve_study_metadata(STUDY)
    assert len(found) == 2
    one = shared.web.retrieve_instance_metadata(STUDY, made[0].SeriesInstanceUID, made[0].SOPInstanceUID)
    assert one["00080005"]["Value"] == ["ISO_IR 192"]
    pixels = one.pop("7FE00010")
    assert pixels["vr"] == "OW"
    back = Dataset.from_json(one)
    assert str(back.PatientName) == "Hong^Gildong=洪^吉洞=홍^길동"
    for keyword in (
        "Rows",
        "WindowCenter",
        "PhotometricInterpretation",
        "ImagerPixelSpacing",
        "PatientOrientation",
    ):
        assert back.get(keyword) == made[0].get(keyword)
    status, data, headers = shared.get(pixels["BulkDataURI"].partition("/dicom-web")[2])
    assert (status, headers["content-type"], data) == (200, "application/octet-stream", made[0].PixelData)


@pytest.mark.parametrize("number", [0, 1])
def test_frames_are_the_pixels_that_were_sent(shared: Served, number: int) -> None:
    image = study_of_three(shared)[number]
    (frame,) = shared.web.retrieve_instance_frames(
        STUDY,
        image.SeriesInstanceUID,
        image.SOPInstanceUID,
        [1],
        media_types=(("application/octet-stream", EXPLICIT),),
    )
    assert frame == image.PixelData
    # As OHIF asks.
    path = f"/studies/{STUDY}/series/{image.SeriesInstanceUID}/instances/{image.SOPInstanceUID}/frames"
    status, found, headers = shared.get(
        f"{path}/1", Accept="multipart/related; type=application/octet-stream; transfer-syntax=*"
    )
    assert status == 200
    assert f"application/octet-stream; transfer-syntax={EXPLICIT}".encode() in found
    assert image.PixelData in found
    assert headers["content-type"].startswith('multipart/related; type="application/octet-stream"; boundary=')
    assert shared.get(f"{path}/2")[0] == 404
    assert shared.get(f"{path}/0")[0] == 404
    assert shared.get(f"{path}/one")[0] == 400
    assert shared.get(f"{path}/1", Accept='multipart/related; type="image/jp2"')[0] == 406


@pytest.mark.parametrize("number", [0, 1])
def test_pictures_show_bone_bright_in_both_polarities(shared: Served, number: int) -> None:
    image = study_of_three(shared)[number]
    shown = read_radiograph(image, 1_000_000).image
    path = f"/studies/{STUDY}/series/{image.SeriesInstanceUID}/instances/{image.SOPInstanceUID}"
    picture = np.asarray(Image.open(io.BytesIO(shared.get(f"{path}/rendered", Accept="image/png")[1])))
    assert np.abs(picture / 255 - shown).max() <= 0.5 / 255 + 1e-6
    # And against the pixels themselves: 12 bits, the whole range as its window.
    expected = image.pixel_array / 4095
    if image.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    assert np.abs(picture / 255 - expected).max() < 0.01
    jpeg = np.asarray(Image.open(io.BytesIO(shared.get(f"{path}/frames/1/rendered")[1])))
    assert np.abs(jpeg.astype(float) - picture).mean() < 3

    # A window of the client's: all that is brighter is white.
    windowed = shared.get(f"{path}/rendered?window=1000,500,linear", Accept="image/png")[1]
    stored = image.pixel_array.astype(float)
    expected = np.clip((stored - 999.5) / 499 + 0.5, 0, 1)
    if image.PhotometricInterpretation == "MONOCHROME1":
        expected = 1 - expected
    assert np.abs(np.asarray(Image.open(io.BytesIO(windowed))) / 255 - expected).max() < 0.003
    small = Image.open(io.BytesIO(shared.get(f"{path}/rendered?viewport=40,40&quality=80")[1]))
    assert small.size == (33, 40)
    for wrong in ("window=1", "window=x,y", "window=5,0", "viewport=0,4", "quality=101", "zoom=2"):
        assert shared.get(f"{path}/rendered?{wrong}")[0] == 400, wrong
    assert shared.get(f"{path}/rendered", Accept="image/gif")[0] == 406


@pytest.mark.parametrize("syntax", ENCODERS)
def test_every_transfer_syntax_as_stored_and_decoded(
    shared: Served, tmp_path: Path, require_tool: Callable[[str], str], syntax: str
) -> None:
    path = write_in(tmp_path, syntax, require_tool)
    assert shared.post(body(path.read_bytes()))[0] == 200
    sent = dcmread(path)
    address = (sent.StudyInstanceUID, sent.SeriesInstanceUID, sent.SOPInstanceUID)
    url = "/studies/{}/series/{}/instances/{}".format(*address)
    status, stored, _ = shared.get(
        url, Accept='multipart/related; type="application/dicom"; transfer-syntax=*'
    )
    assert status == 200
    assert data_set_bytes(path) in stored

    status, converted, _ = shared.get(url, Accept="application/dicom")
    plain = dcmread(io.BytesIO(converted))
    assert (status, plain.file_meta.TransferSyntaxUID) == (200, ExplicitVRLittleEndian)
    pixels = plain.pixel_array
    if syntax not in LOSSY:
        assert np.array_equal(pixels, sent.pixel_array)
    status, frame, _ = shared.get(
        f"{url}/frames/1", Accept=f"application/octet-stream; transfer-syntax={EXPLICIT}"
    )
    assert status == 200
    assert np.array_equal(np.frombuffer(frame, pixels.dtype).reshape(pixels.shape), pixels)
    if sent.file_meta.TransferSyntaxUID.is_encapsulated:
        status, frame, _ = shared.get(f"{url}/frames/1", Accept='multipart/related; type="image/*"')
        assert status == 200
        assert f"transfer-syntax={syntax}".encode() in frame
    other = "1.2.840.10008.1.2.4.202"
    status, answer, _ = shared.get(
        url, Accept=f'multipart/related; type="application/dicom"; transfer-syntax={other}'
    )
    assert (status, json.loads(answer)["status"]) == (406, 406)


def test_what_is_not_there_and_what_is_no_image(shared: Served) -> None:
    image = study_of_three(shared)[0]
    series = f"/studies/{STUDY}/series/{image.SeriesInstanceUID}"
    for path in (
        "/studies/1.2.3",
        "/studies/1.2.3/metadata",
        f"/studies/{STUDY}/series/1.2",
        f"{series}/instances/1.2/frames/1",
    ):
        status, answer, _ = shared.get(path)
        assert (status, set(json.loads(answer))) == (404, {"status", "error", "reason", "remedy"})
    instance = f"{series}/instances/{image.SOPInstanceUID}"
    assert shared.get(f"{instance}/bulkdata/00100010")[0] == 404
    assert shared.get(f"{instance}/bulkdata/../../../etc/passwd")[0] in (400, 404)
    assert shared.get(f"{instance}/bulkdata/00400555/0/00100010")[0] == 404
    assert shared.get("/nothing")[0] == 404
    assert shared.ask("DELETE", f"/studies/{STUDY}")[0] == 405
    assert shared.get(f"/studies/{STUDY}", Accept="text/html")[0] == 406
    assert shared.get(instance.replace("/studies", "/STUDIES"))[0] == 404
