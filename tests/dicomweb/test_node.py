"""The DICOMweb process beside the worker and the purge; killed, secured, and in serve."""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import random
import re
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from pacs_node.receive.spool import uid_hash
from tests.dicom_objects import radiograph
from tests.dicomweb.conftest import TYPE, Served, body, part10
from tests.pipeline.conftest import chest, start
from tests.pipeline.harness import Process, encoded, until

__all__ = ["start"]

EXPLICIT = "1.2.840.10008.1.2.1"


def found(served: Served, path: str) -> list[dict[str, Any]]:
    status, answer, _ = served.get(path)
    assert status == 200, answer
    results: list[dict[str, Any]] = json.loads(answer)
    return results


@pytest.mark.slow
def test_a_study_that_comes_by_stow_is_analysed_and_its_results_fetched(
    serve: Callable[..., Served],
) -> None:
    served = serve()
    image = chest(1, 1)
    assert served.post(body(part10(image)))[0] == 200
    assert len(found(served, "/instances")) == 1
    served.work_off()
    (study,) = found(served, "/studies")
    assert study["00080061"]["Value"] == ["CR", "SR"]
    instances = served.web.search_for_instances(image.StudyInstanceUID)
    assert len(instances) == 5
    retrieved = {ds.SOPInstanceUID: ds for ds in served.web.retrieve_study(image.StudyInstanceUID)}
    # What the destination was sent is what is fetched here.
    delivered = {uid: dcmread(io.BytesIO(content)) for uid, content in served.delivered().items()}
    assert retrieved.keys() == delivered.keys()
    assert all(encoded(retrieved[uid]) == encoded(delivered[uid]) for uid in retrieved)
    assert len(served.web.retrieve_study_metadata(image.StudyInstanceUID)) == 5
    for uid, ds in retrieved.items():
        address = (ds.StudyInstanceUID, ds.SeriesInstanceUID, uid)
        path = "/studies/{}/series/{}/instances/{}/rendered".format(*address)
        status, picture, _ = served.get(path, Accept="image/png")
        if "PixelData" not in ds:
            assert (status, json.loads(picture)["reason"]) == (404, "the instance has no pixels")
            continue
        (frame,) = served.web.retrieve_instance_frames(
            *address, [1], media_types=(("application/octet-stream", EXPLICIT),)
        )
        assert frame == ds.PixelData
        shown = np.asarray(Image.open(io.BytesIO(picture)))
        assert shown.shape[:2] == (ds.Rows, ds.Columns)
        if ds.get("SamplesPerPixel") == 3:
            assert np.array_equal(shown, ds.pixel_array)
    # A second image: the next generation of the report is served beside its predecessor.
    assert served.post(body(part10(chest(2, 1))))[0] == 200
    served.work_off()
    reports = found(served, f"/studies/{image.StudyInstanceUID}/instances?Modality=SR")
    assert len(reports) == 2
    assert served.stop() == 0
    assert "Phantom" not in served.log


@pytest.mark.slow
def test_the_index_follows_the_spool(serve: Callable[..., Served]) -> None:
    served = serve()
    first, second = chest(1, 1), chest(1, 2)
    # By the receiver's way, while the server runs.
    served.receive(first)
    served.until(lambda: len(found(served, "/studies")) == 1, "the first study")
    served.receive(second)
    assert len(found(served, f"/studies/{second.StudyInstanceUID}/instances")) == 1
    served.until(lambda: len(found(served, "/studies")) == 2, "the second study")
    # An object that is no use here, and a result that is not finished.
    broken = served.node.spool.root / uid_hash("broken") / uid_hash("object")
    broken.mkdir(parents=True)
    (broken / "received.dcm").write_bytes(b"not dicom")
    (broken / "received.json").write_text('{"received_at": "2026-01-01T00:00:00+00:00"}')
    results = (
        served.node.spool.folder(served.node.spool.objects(uid_hash(first.StudyInstanceUID))[0]) / "results"
    )
    results.mkdir()
    (results / "anomaly.dcm").write_bytes(part10(chest(9, 1)))
    time.sleep(1.1)
    assert len(found(served, "/instances")) == 2
    (results / "anomaly.json").write_text('{"status": "done"}')
    served.until(lambda: len(found(served, "/instances")) == 3, "the result")

    # Purged while it runs.
    removed = served.node.spool.purge(
        datetime.now(UTC) + timedelta(days=1), lambda key: uid_hash(second.StudyInstanceUID) in key
    )
    assert removed
    served.until(lambda: len(found(served, "/studies")) == 1, "the purge")
    assert served.get(f"/studies/{first.StudyInstanceUID}")[0] == 404

    # Restarted, and with an index that is damaged, of another version, or away.
    index = served.node.state_dir / "dicomweb.db"
    for damage in (lambda: None, lambda: index.write_bytes(b"damaged" * 1000), index.unlink):
        served.stop()
        for beside in ("-wal", "-shm"):
            index.with_name(index.name + beside).unlink(missing_ok=True)
        damage()
        served.start()
        assert len(found(served, "/studies")) == 1
        assert index.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_senders_readers_and_a_purge_at_the_same_time(serve: Callable[..., Served]) -> None:
    served = serve()
    wrong: list[str] = []
    ended = threading.Event()

    def send(number: int) -> None:
        for n in range(6):
            status, _ = served.post(body(part10(chest(n, number)), part10(chest(n, number))))
            if status != 200:
                wrong.append(f"STOW {status}")

    def read() -> None:
        while not ended.is_set():
            for study in range(3):
                uid = chest(0, study).StudyInstanceUID
                for path in ("/studies", f"/studies/{uid}/metadata", f"/studies/{uid}"):
                    status, answer, _ = served.get(path)
                    if status not in (200, 404):
                        wrong.append(f"{path} {status} {answer[:200]!r}")

    def purge() -> None:
        while not ended.is_set():
            served.node.spool.purge(
                datetime.now(UTC) - timedelta(seconds=0.5), lambda key: random.random() < 0.5
            )

    senders = [threading.Thread(target=send, args=(number,)) for number in range(3)]
    others = [threading.Thread(target=target) for target in (read, read, purge)]
    for thread in (*senders, *others):
        thread.start()
    for thread in senders:
        thread.join()
    ended.set()
    for thread in others:
        thread.join()
    assert wrong == []
    held = sum(len(served.node.spool.objects(study)) for study in served.node.spool.studies())
    served.until(lambda: len(found(served, "/instances")) == held, "what is held to be found")
    assert "request failed" not in served.log


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_was_reported_stored_before_a_kill_is_analysed(serve: Callable[..., Served]) -> None:
    served = serve(rules=[{"name": "all", "destinations": ["FOLDER"], "forward_original": True}])
    chance = random.Random(3)
    images = [radiograph(rows=500, columns=400, seed=n) for n in range(16)]
    reported: set[str] = set()
    kills = 0
    for first in range(0, len(images), 2):
        pair = images[first : first + 2]
        content = body(*map(part10, pair))
        killer = None
        if first % 4 == 0:
            kills += 1
            killer = threading.Timer(chance.random() * 0.15, lambda: served.stop(signal.SIGKILL))
            killer.start()
        try:
            status, _, _ = served.ask("POST", "/studies", content, Content_Type=TYPE)
        except (OSError, EOFError, http.client.HTTPException):
            status = 0
        if status == 200:
            reported |= {str(image.SOPInstanceUID) for image in pair}
        if killer is not None:
            killer.join()
            served.start()
    assert kills == 4
    assert len(reported) >= 8
    # The others are sent again, as a sender does.
    for image in images:
        if image.SOPInstanceUID not in reported:
            assert served.post(body(part10(image)))[0] == 200
    assert list((served.node.spool.root / "incoming").glob("*/*")) == []
    served.work_off()
    delivered = served.delivered()
    assert delivered.keys() == {image.SOPInstanceUID for image in images}
    assert len(found(served, "/instances")) == len(images)
    for image in images:
        assert dcmread(io.BytesIO(delivered[image.SOPInstanceUID])).PixelData == image.PixelData


def test_who_may_ask(serve: Callable[..., Served]) -> None:
    served = serve(
        {"DW_PASSWORD": "pass:wörd", "DW_TOKEN": "token-1"},
        web={
            "username": "viewer",
            "password_env": "DW_PASSWORD",
            "token_env": "DW_TOKEN",
            "origins": ["https://viewer.example"],
        },
    )

    def basic(text: str) -> str:
        return "Basic " + base64.b64encode(text.encode()).decode()

    status, answer, headers = served.get("/studies")
    assert (status, json.loads(answer)["status"], headers["www-authenticate"]) == (
        401,
        401,
        'Basic realm="pacs-node"',
    )
    for wrong in (basic("viewer:no"), basic("x"), "Basic %%%", "Bearer no", "Bearer", "nonsense"):
        assert served.get("/studies", Authorization=wrong)[0] == 401, wrong
    assert served.ask("POST", "/studies", b"x", Content_Type=TYPE)[0] == 401
    origin = "https://viewer.example"
    for right in (basic("viewer:pass:wörd"), "Bearer token-1"):
        status, _, headers = served.get("/studies", Authorization=right, Origin=origin)
        assert (status, headers["access-control-allow-origin"]) == (200, origin)
    # A browser asks for permission first, without credentials.
    preflight = {"Origin": origin, "Access_Control_Request_Method": "GET"}
    assert served.ask("OPTIONS", "/studies", None, **preflight)[0] == 200
    preflight["Origin"] = "https://elsewhere.example"
    assert served.ask("OPTIONS", "/studies", None, **preflight)[0] == 400
    assert served.stop() == 0
    assert "token-1" not in served.log

    served.environment = {"DW_PASSWORD": "x"}
    with pytest.raises(AssertionError, match="DW_TOKEN is not set"):
        served.start()


def test_the_log_has_no_query_no_uid_and_no_patient(serve: Callable[..., Served]) -> None:
    served = serve()
    assert served.get("/studies?PatientName=Secret^Person&PatientID=S-77")[0] == 200
    assert served.get("/studies?PatientName=Secret&limit=x")[0] == 400
    assert served.get("/studies/1.2.77/series?Modality=S-77")[0] == 200
    assert served.get("/Secret^Person")[0] == 404
    assert served.get("/studies/Secret^Person")[0] == 400
    served.until(lambda: served.log.count(" request ") >= 5, "the log")
    assert "Secret" not in served.log
    assert "77" not in re.sub(r"(seconds|bytes|port|pid)=\S+|^\S+Z", "", served.log, flags=re.M)
    assert " status=400 " in served.log
    assert re.search(r"resource=\S*studies", served.log)


def test_a_changed_address_is_taken_over_without_a_restart(
    serve: Callable[..., Served], free_port: Callable[[], int]
) -> None:
    served = serve()
    assert served.process is not None
    served.port = free_port()
    served.configure()
    served.process.send_signal(signal.SIGHUP)
    served.until(lambda: served.get("/studies")[0] == 200, "the new port")
    assert served.stop() == 0


@pytest.mark.slow
def test_serve_keeps_it_running(
    serve: Callable[..., Served], start: Callable[..., Process], free_port: Callable[[], int]
) -> None:
    served = serve(receive={"host": "127.0.0.1", "port": free_port(), "min_free_disk_mb": 1})
    served.stop()
    node = start(served, "pacs_node", "serve")
    for times in (1, 2):
        node.wait_for("serving DICOMweb", times)
        until(lambda: served.get("/studies")[0] == 200, "the server")
        pid = int(re.findall(r"child=web pid=(\d+)", node.log)[-1])
        os.kill(pid, signal.SIGKILL)
    node.wait_for("serving DICOMweb", 3)
    assert node.end() == 0
    assert node.log.count("started child=receiver") == 1
