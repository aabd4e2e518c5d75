"""Derived images and reports in a real Orthanc, seen through its DICOMweb plugin."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset

from pacs_node.config.destinations import DicomDestination, StowDestination
from pacs_node.deliver import open_destination
from tests.deliver.conftest import PASSWORD, USER, Orthanc, orthanc
from tests.dicom import radiographs
from tests.pipeline.harness import Bench, encoded

__all__ = ["orthanc"]

FRAMES = (("application/octet-stream", "1.2.840.10008.1.2.1"),)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sop_class", "photometric", "by"),
    [(radiographs.DX, "MONOCHROME2", "stow"), (radiographs.CR, "MONOCHROME1", "dicom")],
)
def test_results_are_found_fetched_and_shown(
    orthanc: Orthanc,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sop_class: str,
    photometric: str,
    by: str,
) -> None:
    study = f"1.2.826.0.1.3680043.10.8.{len(by)}"
    original = radiographs.radiograph(
        sop_class,
        photometric=photometric,
        image=radiographs.chest(160, 128),
        StudyInstanceUID=study,
        SeriesInstanceUID=f"{study}.1",
        SOPInstanceUID=f"{study}.1.1",
    )
    bench = Bench(tmp_path / "node")
    bench.receive(original)
    bench.work_off()
    files = {path.stem: path for path in (bench.folder / "delivered").rglob("*.dcm")}
    made = {uid: dcmread(path) for uid, path in files.items()}
    assert len(made) == 5

    if by == "stow":
        monkeypatch.setenv("ORTHANC_PASSWORD", PASSWORD)
        web = {"type": "stow", "url": orthanc.dicomweb, "username": USER, "password_env": "ORTHANC_PASSWORD"}
        settings: StowDestination | DicomDestination = StowDestination.model_validate(web)
    else:
        peer = {"type": "dicom", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": orthanc.dicom}
        settings = DicomDestination.model_validate(peer)
    open_destination("ORTHANC", settings, "PACS_NODE").send(list(files.values()))

    client = DICOMwebClient(orthanc.dicomweb, session=create_session_from_user_pass(USER, PASSWORD))
    series = client.search_for_series(study)
    assert {result["0020000E"]["Value"][0] for result in series} == {
        ds.SeriesInstanceUID for ds in made.values()
    }
    (found,) = client.search_for_studies(search_filters={"StudyInstanceUID": study})
    assert "SR" in found["00080061"]["Value"]
    metadata = {m["00080018"]["Value"][0]: m for m in client.retrieve_study_metadata(study)}
    assert metadata.keys() == made.keys()
    for uid, ds in made.items():
        if "SeriesDescription" in ds:
            assert metadata[uid]["0008103E"]["Value"] == [ds.SeriesDescription]
        address = (study, ds.SeriesInstanceUID, uid)
        assert encoded(client.retrieve_instance(*address)) == encoded(ds)
        if "PixelData" not in ds:
            assert metadata[uid]["00080060"]["Value"] == ["SR"]
            assert metadata[uid]["0040A730"]["Value"]
            continue
        (frame,) = client.retrieve_instance_frames(*address, [1], media_types=FRAMES)
        assert frame == ds.PixelData
        picture = client.retrieve_instance_rendered(*address, media_types=("image/png",))
        _is_shown_as(ds, np.asarray(Image.open(io.BytesIO(picture))))


def _is_shown_as(ds: Dataset, picture: np.ndarray) -> None:
    assert picture.shape[:2] == (ds.Rows, ds.Columns)
    if ds.SamplesPerPixel == 3:
        assert np.array_equal(picture, ds.pixel_array)
        return
    bright = ds.pixel_array.astype(float)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        bright = -bright
    # The same order from dark to bright, bone being bright in each of them.
    assert np.corrcoef(bright.ravel(), picture.astype(float).ravel())[0, 1] > 0.95
    assert picture[:, 54:74].mean() > picture[40:100, 26:46].mean()
