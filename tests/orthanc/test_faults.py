"""What goes wrong around the node inside Orthanc: nothing is lost or doubled, and the log says it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time
import urllib.error
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import absent
from tests.orthanc.harness import Orthanc, ended, kill, part10, processes_of, section, until
from tests.pipeline.conftest import chest

pytestmark = pytest.mark.slow


def host_of(orthanc: Orthanc) -> int:
    assert orthanc.process is not None
    (host,) = processes_of(orthanc.process.pid)
    return host


@contextmanager
def worker_paused(orthanc: Orthanc) -> Iterator[int]:
    """The worker stands still within the block, so that what happens there happens while work is pending."""
    pid = until(lambda: orthanc.status()["worker"]["pid"], lambda: orthanc.log)
    until(lambda: "worker working" in orthanc.log, lambda: orthanc.log)
    jobs = Path(orthanc.status()["state_dir"]) / "jobs.db"
    until(lambda: stopped(pid, jobs), "a moment in which the worker does not hold its database")
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGCONT)


def stopped(pid: int, jobs: Path) -> bool:
    """Stop the worker; not in the middle of a transaction, which would stop all who write to its database."""
    os.kill(pid, signal.SIGSTOP)
    with closing(sqlite3.connect(jobs, timeout=2)) as connection:
        try:
            connection.execute("begin immediate")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            return False
        connection.rollback()
    return True


def all_read(orthanc: Orthanc) -> bool:
    changes = orthanc.status()["changes"]
    return bool(changes["read"] == changes["last"])


def finish(orthanc: Orthanc, studies: range) -> None:
    """Every study has each of its results once."""
    for study in studies:
        uid = chest(study=study).StudyInstanceUID
        orthanc.wait_for_results(uid)
    orthanc.idle()
    for study in studies:
        assert len(orthanc.instances(chest(study=study).StudyInstanceUID)) == 5


def test_orthanc_killed_while_studies_are_in_work(make_orthanc: Callable[..., Orthanc]) -> None:
    orthanc, studies = make_orthanc().start().ready(), range(1, 5)
    for study in studies:
        orthanc.upload(chest(study=study))
    until(lambda: "task done" in orthanc.log, lambda: orthanc.log)
    host, worker = host_of(orthanc), orthanc.status()["worker"]["pid"]
    orthanc.kill()
    until(lambda: ended(host) and ended(worker), "the node to notice")
    orthanc.start()
    finish(orthanc, studies)


def test_stored_and_killed_before_the_node_saw_it(make_orthanc: Callable[..., Orthanc]) -> None:
    orthanc = make_orthanc().start().ready()
    os.kill(host_of(orthanc), signal.SIGSTOP)
    orthanc.upload(chest(study=1))
    host = host_of(orthanc)
    orthanc.kill()
    kill(host)
    orthanc.start()
    finish(orthanc, range(1, 2))


def test_worker_and_host_killed(make_orthanc: Callable[..., Orthanc]) -> None:
    orthanc, studies = make_orthanc().start().ready(), range(1, 5)
    for study in studies:
        orthanc.upload(chest(study=study))
    until(lambda: "task done" in orthanc.log, lambda: orthanc.log)
    kill(orthanc.status()["worker"]["pid"])
    until(lambda: "ended by itself" in orthanc.log and orthanc.status()["worker"]["running"])
    kill(host_of(orthanc))
    assert orthanc.get("/system")["Name"] == "Test"
    until(lambda: orthanc.status()["plugin"]["starts"] == 2, lambda: orthanc.log)
    assert "process has ended (-9)" in orthanc.log
    finish(orthanc, studies)


def test_a_study_deleted_while_in_work_is_not_revived(make_orthanc: Callable[..., Orthanc]) -> None:
    orthanc = make_orthanc().start().ready()
    image = chest(study=1)
    with worker_paused(orthanc):
        study = orthanc.upload(image)["ParentStudy"]
        until(lambda: all_read(orthanc), lambda: orthanc.log)
        orthanc.request("DELETE", f"/studies/{study}")
    until(lambda: orthanc.log.count("not wanted any more") >= 4, lambda: orthanc.log)
    orthanc.idle()
    assert orthanc.get("/studies") == []
    assert not orthanc.jobs(status="failed")
    # It was a mistake: the study comes again, and so do its results.
    orthanc.upload(image)
    finish(orthanc, range(1, 2))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_200_small_studies_at_once_and_the_worker_killed(make_orthanc: Callable[..., Orthanc]) -> None:
    orthanc, number = make_orthanc(), 200
    rule = {"name": "all", "tasks": ["anomaly"], "destinations": ["ORTHANC"]}
    orthanc.settings["PacsNode"] = section(orthanc.folder, rules=[rule])
    orthanc.start().ready()
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda study: orthanc.upload(chest(study=study + 1)), range(number)))
    stored = time.monotonic() - began
    kill(orthanc.status()["worker"]["pid"])
    until(lambda: all_read(orthanc), lambda: orthanc.log[-4000:])
    until(lambda: len(orthanc.get("/instances")) == 3 * number, lambda: orthanc.log[-4000:], 280)
    orthanc.idle()
    assert len(orthanc.get("/studies")) == number
    assert len(orthanc.get("/instances")) == 3 * number
    plugin = orthanc.status()["plugin"]
    held = (plugin["held"]["seconds"] + plugin["logging"]["seconds"]) / number
    print(f"{number} studies stored in {stored:.1f} s; Orthanc held {1000 * held:.2f} ms a study")
    assert held < 0.005


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    tool = shutil.which("mount")
    if (
        tool is None
        or subprocess.run([tool, "-t", "tmpfs", "-o", "size=32m", "none", folder], check=False).returncode
    ):
        absent("this account may not mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path, leave: int) -> Path:
    """A file that leaves so many bytes free."""
    filler = disk / "filler"
    with filler.open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - leave))
    return filler


@pytest.mark.parametrize("whose", ["orthanc", "node"])
def test_disk_full_while_results_are_written(
    make_orthanc: Callable[..., Orthanc], small_disk: Path, whose: str
) -> None:
    orthanc = make_orthanc()
    if whose == "orthanc":
        orthanc.settings["StorageDirectory"] = str(small_disk / "storage")
        said, leave = "not delivered", 0
    else:
        orthanc.settings["PacsNode"]["node"]["state_dir"] = str(small_disk / "state")
        said, leave = "the disk is full", 2 << 20
    orthanc.start().ready()
    with worker_paused(orthanc):
        orthanc.upload(chest(study=1))
        until(lambda: all_read(orthanc), lambda: orthanc.log)
        filler = fill(small_disk, leave)
    until(lambda: said in orthanc.log, lambda: orthanc.log)
    assert not orthanc.results(chest(study=1).StudyInstanceUID)
    filler.unlink()
    finish(orthanc, range(1, 2))


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": (
        {"nodes": {}},
        r"orthanc\.json: PacsNode\.nodes: this key is not known here\. Did you mean node",
    ),
    "unknown destination": (
        {"rules": [{"name": "all", "tasks": ["anomaly"], "destinations": ["NOWHERE"]}]},
        r"orthanc\.json: PacsNode\.rules\.0\.destinations\.0 \(NOWHERE\):",
    ),
    "no such model": ({"models": {"anomaly": "none-such"}}, r"PacsNode\.models\.anomaly \(none-such\):"),
    "file that is not there": ({"config": "none.yaml"}, r"none\.yaml: .*no such file"),
    "no such Python": ({"python": "/nowhere/python"}, r"/nowhere/python: .*Correct PacsNode\.python"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_configuration_is_logged_with_its_remedy_and_orthanc_runs(
    make_orthanc: Callable[..., Orthanc], name: str
) -> None:
    wrong, said = WRONG[name]
    orthanc = make_orthanc()
    own = section(orthanc.folder)
    if "config" in wrong:
        own = {"python": own["python"]}
    orthanc.settings["PacsNode"] = {**own, **wrong}
    orthanc.start()
    until(lambda: "not running: correct its configuration" in orthanc.log, lambda: orthanc.log)
    assert re.search(said, orthanc.log), orthanc.log
    orthanc.upload(chest())
    with pytest.raises(urllib.error.HTTPError) as raised:
        orthanc.status()
    with raised.value as answer:
        assert answer.code == 503
        assert re.search(said, "\n".join(json.loads(answer.read())["log"]))
    assert orthanc.stop() < 60


def test_the_nodes_own_file_is_taken_and_followed(
    make_orthanc: Callable[..., Orthanc], tmp_path: Path
) -> None:
    orthanc = make_orthanc()
    own = section(orthanc.folder)
    python, file = own.pop("python"), tmp_path / "pacs-node.yaml"
    own["rules"][0]["when"] = {"BodyPartExamined": "HAND"}
    file.write_text(json.dumps(own))
    orthanc.settings["PacsNode"] = {"python": python, "config": str(file)}
    orthanc.start().ready()
    assert orthanc.status()["destinations"] == ["ORTHANC"]
    study = orthanc.upload(chest(study=1))["ParentStudy"]
    until(lambda: all_read(orthanc))
    file.write_text("rules: nothing")
    until(lambda: "configuration not taken over" in orthanc.log, lambda: orthanc.log)
    del own["rules"][0]["when"]
    file.write_text(json.dumps(own))
    until(lambda: "working by the new configuration" in orthanc.log, lambda: orthanc.log)
    assert orthanc.post(f"/pacs-node/studies/{study}/analyze")["taken"] == 1
    finish(orthanc, range(1, 2))


def test_what_was_there_before_is_analysed_on_demand_only(make_orthanc: Callable[..., Orthanc]) -> None:
    orthanc = make_orthanc()
    with_plugin = dict(orthanc.settings)
    orthanc.settings = {**with_plugin, "Plugins": with_plugin["Plugins"][:1]}
    study = orthanc.start().post("/instances", part10(chest(study=1)))["ParentStudy"]
    orthanc.stop()
    orthanc.settings = with_plugin
    orthanc.start().ready()
    orthanc.idle()
    assert not orthanc.jobs()
    assert orthanc.post(f"/pacs-node/studies/{study}/analyze")["taken"] == 1
    finish(orthanc, range(1, 2))
