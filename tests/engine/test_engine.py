"""The engine on a real database: SQLite, and PostgreSQL where it is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pacs_node.engine.client import Client, sqlite_url
from pacs_node.engine.engine import Engine, Run
from pacs_node.engine.job import JSON, EngineError, Job, NewJob, Status
from tests.conftest import SEARCH_PATH

NODE = "0123456789ab"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def database(tmp_path: Path) -> str:
    return sqlite_url(tmp_path / "engine.db")


@pytest.fixture
def client(database: str) -> Iterator[Client]:
    client = Client(database, NODE)
    yield client
    client.close()


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def ended(client: Client, job_id: str, status: Status = "done", seconds: float = 120) -> Job:
    wait_for(lambda: (job := client.get(job_id)) is not None and job.status == status, seconds)
    job = client.get(job_id)
    assert job is not None
    return job


class Worker:
    """``engine_process.py``, started again whenever it dies, as the supervisor does."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database, self.folder, self.starts = database, folder, 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.engine.engine_process", self.database, str(self.folder)]
        self.process = subprocess.Popen(command, cwd=ROOT)
        self.starts += 1

    def keep_alive(self) -> bool:
        if self.process.poll() is not None:
            self.start()
        return True

    def lines(self) -> list[str]:
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(120)


@pytest.fixture
def worker(database: str, tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(database, tmp_path)
    yield worker
    if worker.process.poll() is None:
        worker.stop()


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    engine = Engine(database, NODE, {"light": 4, "heavy": 1})
    yield engine
    engine.stop(grace_seconds=2)


def test_an_id_is_enqueued_once_and_its_job_is_known_before_any_worker_runs(client: Client) -> None:
    for _ in range(3):
        client.enqueue(NewJob("note", "note/a", {"key": "a"}, "light", priority=1))
    client.enqueue(NewJob("note", "note/b", {"key": "b"}, "light", delay=3600))
    jobs = client.find(prefix="note/")
    assert [(job.id, job.key, job.status, job.queue, job.priority) for job in jobs] == [
        ("note/a", "a", "queued", "light", 1),
        ("note/b", "b", "delayed", "light", 5),
    ]
    assert client.get("note/c") is None
    assert abs(jobs[0].created - datetime.now(UTC)) < timedelta(minutes=1)


def test_a_payload_is_kept_as_json(client: Client, tmp_path: Path) -> None:
    client.enqueue(NewJob("note", "note/a", {"key": "a", "number": 3, "text": "Ä"}, "light"))
    content = b"".join(path.read_bytes() for path in tmp_path.glob("engine.db*"))
    assert '"text":"Ä"'.encode() in content
    with pytest.raises(TypeError, match="not portable JSON"):
        client.enqueue(NewJob("note", "note/b", {"key": object()}, "light"))


def test_a_prefix_is_a_plain_string_not_a_pattern(client: Client) -> None:
    client.enqueue(NewJob("note", "note/a_b", {"key": "a_b"}, "light"))
    assert client.find(prefix="note/aXb") == []
    assert len(client.find(prefix=["note/a_", "other/"])) == 1


@pytest.mark.parametrize(
    "database", ["postgresql://node:secret@127.0.0.1:1/jobs", "sqlite:////nowhere/jobs.db"]
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(database: str) -> None:
    with pytest.raises(EngineError, match=r"cannot be used: .*\. Check that it is there") as raised:
        Client(database, NODE)
    assert "secret" not in str(raised.value)


def test_steps_and_results_are_recorded(engine: Engine, client: Client) -> None:
    def handler(run: Run, payload: dict[str, object]) -> JSON:
        # A tuple comes back as JSON has it, on the first run too.
        return [run.step("one", lambda: (1, 2)), run.step("two", str.upper, "x"), payload["word"]]

    engine.register("count", handler)
    client.enqueue(NewJob("count", "count/a", {"key": "a", "word": "w"}, "light"))
    engine.start()
    job = ended(client, "count/a")
    assert job.result == [[1, 2], "X", "w"]
    assert job.attempts == 1
    assert [(step.name, step.result) for step in client.steps("count/a")] == [("one", [1, 2]), ("two", "X")]


def test_urgent_jobs_go_first_and_a_heavy_queue_runs_one_at_a_time(engine: Engine, client: Client) -> None:
    order: list[str] = []
    running: list[int] = [0]

    def handler(run: Run, payload: dict[str, object]) -> JSON:
        running[0] += 1
        assert running[0] == 1
        order.append(run.job_id)
        time.sleep(0.05)
        running[0] -= 1
        return None

    engine.register("heavy", handler)
    for name in ("a", "b", "c"):
        client.enqueue(NewJob("heavy", f"heavy/{name}", {"key": name}, "heavy"))
    client.enqueue(NewJob("heavy", "heavy/stat", {"key": "stat"}, "heavy", priority=1))
    engine.start()
    ended(client, "heavy/c")
    assert order == ["heavy/stat", "heavy/a", "heavy/b", "heavy/c"]


def test_a_failed_job_is_retried_from_the_step_that_failed(engine: Engine, client: Client) -> None:
    calls: list[str] = []

    def second() -> str:
        calls.append("second")
        if len(calls) < 3:
            raise ValueError("the second step fails the first time")
        return "second"

    def handler(run: Run, payload: dict[str, object]) -> JSON:
        run.step("first", lambda: calls.append("first"))
        return run.step("second", second)

    engine.register("twice", handler)
    client.enqueue(NewJob("twice", "twice/a", {"key": "a"}, "light"))
    engine.start()
    job = ended(client, "twice/a", "failed")
    assert job.error == "ValueError: the second step fails the first time"
    assert client.retry("twice/a") is not None
    job = ended(client, "twice/a")
    assert calls == ["first", "second", "second"]
    assert (job.result, job.error) == ("second", None)
    again = client.retry("twice/a")
    assert again is not None
    assert again.status == "done"  # nothing to retry
    assert client.retry("twice/none") is None


def test_a_cancelled_job_does_not_run_until_it_is_retried(engine: Engine, client: Client) -> None:
    engine.register("note", lambda run, payload: payload["key"])
    client.enqueue(NewJob("note", "note/a", {"key": "a"}, "light"))
    cancelled = client.cancel("note/a")
    assert cancelled is not None
    assert (cancelled.status, cancelled.queue) == ("cancelled", "light")
    client.enqueue(NewJob("note", "note/b", {"key": "b"}, "light"))
    engine.start()
    ended(client, "note/b")
    assert ended(client, "note/a", "cancelled").result is None
    client.retry("note/a")
    assert ended(client, "note/a").result == "a"
    assert client.cancel("note/none") is None
    done_already = client.cancel("note/b")
    assert done_already is not None
    assert done_already.status == "done"


def test_a_failed_job_can_be_given_up(engine: Engine, client: Client) -> None:
    def handler(run: Run, payload: dict[str, object]) -> JSON:
        raise ValueError("always")

    engine.register("fail", handler)
    client.enqueue(NewJob("fail", "fail/a", {"key": "a"}, "light"))
    engine.start()
    ended(client, "fail/a", "failed")
    given_up = client.cancel("fail/a")
    assert given_up is not None
    assert (given_up.status, given_up.queue) == ("cancelled", "light")


def test_a_queue_can_be_added_while_running_and_an_unnamed_one_is_emptied_then_forgotten(
    engine: Engine, client: Client
) -> None:
    engine.register("note", lambda run, payload: payload["key"])
    client.register_queue("old", 2, 0.1)
    client.register_queue("idle", 2, 0.1)
    client.enqueue(NewJob("note", "note/old", {"key": "old"}, "old"))
    engine.start()
    engine.add_queue("new", 2)
    client.enqueue(NewJob("note", "note/new", {"key": "new"}, "new"))
    ended(client, "note/old")
    ended(client, "note/new")
    engine.client.remove_idle_queues({"light", "heavy", "new"})
    assert sorted(queue.name for queue in client._dbos.list_queues()) == ["heavy", "light", "new"]


@pytest.mark.slow
def test_a_delayed_job_runs_when_its_time_has_come(engine: Engine, client: Client) -> None:
    engine.register("note", lambda run, payload: time.time())
    engine.start()
    began = time.time()
    client.enqueue(NewJob("note", "note/a", {"key": "a"}, "light", delay=1.5))
    ran = ended(client, "note/a").result
    assert isinstance(ran, float)
    assert 1.5 <= ran - began < 60


def test_ended_jobs_are_purged_with_their_steps(engine: Engine, client: Client) -> None:
    engine.register("note", lambda run, payload: run.step("one", lambda: 1))
    engine.start()
    client.enqueue(NewJob("note", "note/a", {"key": "a"}, "light"))
    client.enqueue(NewJob("note", "note/b", {"key": "b"}, "light", delay=3600))
    ended(client, "note/a")
    now = datetime.now(UTC) + timedelta(seconds=1)
    old = client.find(status=["done"], ended_before=now)
    assert [job.id for job in old] == ["note/a"]
    assert client.find(status=["done"], ended_before=now - timedelta(hours=1)) == []
    client.purge([job.id for job in old])
    assert [job.id for job in client.find()] == ["note/b"]
    assert client.steps("note/a") == []


def test_an_error_is_logged_by_type_and_place_without_its_text(
    engine: Engine, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(run: Run, payload: dict[str, object]) -> JSON:
        raise ValueError("Patient's Name Doe^Jane is too long")

    engine.register("leak", handler)
    client.enqueue(NewJob("leak", "leak/a", {"key": "a"}, "light"))
    engine.start()
    job = ended(client, "leak/a", "failed")
    assert "Doe^Jane" in str(job.error)
    time.sleep(0.2)
    assert "Doe" not in caplog.text
    record = next(record for record in caplog.records if record.message == "job failed")
    assert (record.job, record.error) == ("leak/a", "ValueError")  # type: ignore[attr-defined]


def test_a_job_whose_process_is_killed_resumes_at_the_step_where_it_was(
    worker: Worker, client: Client
) -> None:
    payloads: list[dict[str, JSON]] = [
        {"key": "plain"},
        {"key": "before", "die_before": 2},
        {"key": "in", "die_in": 3},
        {"key": "after", "die_after": True},
    ]
    # One at a time: a kill might meet the child of the job before in the middle of its step.
    for payload in payloads:
        client.enqueue(NewJob("five_steps", f"five/{payload['key']}", payload, "heavy"))
        both = [f"note/{payload['key']}", f"five/{payload['key']}"]
        wait_for(lambda both=both: worker.keep_alive() and all(done(client, job) for job in both))
    assert worker.starts == 4
    lines = worker.lines()
    for payload in payloads:
        key = payload["key"]
        steps = [line for line in lines if line.startswith(f"{key} step")]
        # Only the step that was interrupted half-way ran twice.
        again = [f"{key} step 3"] if payload.get("die_in") else []
        assert sorted(steps) == sorted([f"{key} step {n}" for n in range(5)] + again)
        # The last job is killed when its child may already be in the middle of its step.
        assert lines.count(f"{key} child") in ((1, 2) if payload.get("die_after") else (1,))
        assert ended(client, f"five/{key}").result == [f"{key}-{n}" for n in range(5)]


def done(client: Client, job_id: str) -> bool:
    job = client.get(job_id)
    return job is not None and job.status == "done"


def test_a_job_that_kills_its_process_is_parked_and_the_others_go_on(worker: Worker, client: Client) -> None:
    client.enqueue(NewJob("poison", "poison/a", {"key": "poison"}, "heavy"))
    client.enqueue(NewJob("five_steps", "five/b", {"key": "b"}, "heavy"))
    wait_for(lambda: worker.keep_alive() and done(client, "note/b"))
    job = ended(client, "poison/a", "dead")
    assert worker.lines().count("poison start") == 2
    assert job.queue == "heavy"  # kept, so that it can be retried
    client.retry("poison/a")
    wait_for(lambda: worker.keep_alive() and worker.lines().count("poison start") == 4)


@pytest.mark.slow
def test_a_clean_stop_hands_running_jobs_back_with_no_start_counted(
    worker: Worker, client: Client, database: str, tmp_path: Path
) -> None:
    client.enqueue(NewJob("slow", "slow/short", {"key": "short", "seconds": 0.8}, "light"))
    client.enqueue(NewJob("slow", "slow/long", {"key": "long", "seconds": 300}, "heavy"))
    wait_for(lambda: {"short start", "long start"} <= set(worker.lines()))
    began = time.monotonic()
    worker.stop()
    assert time.monotonic() - began < 60
    assert "stopped False" in worker.lines()
    assert ended(client, "slow/short").attempts == 1
    handed_back = ended(client, "slow/long", "queued")
    assert (handed_back.attempts, handed_back.queue) == (0, "heavy")


@pytest.mark.slow
def test_on_postgresql_as_on_sqlite(
    require_tool: Callable[[str], str], tmp_path: Path, free_port: Callable[[], int]
) -> None:
    require_tool("initdb")
    with postgresql(tmp_path, free_port()) as url:
        client, folder = Client(url, NODE), tmp_path / "work"
        folder.mkdir()
        worker = Worker(url, folder)
        try:
            client.enqueue(NewJob("five_steps", "five/a", {"key": "a", "die_in": 1}, "heavy"))
            client.enqueue(NewJob("poison", "poison/b", {"key": "b"}, "heavy", delay=0.5))
            wait_for(lambda: worker.keep_alive() and done(client, "note/a"))
            wait_for(lambda: worker.keep_alive() and client.find(status=["dead"]))
            assert worker.lines().count("a step 1") == 2
            # Another node's jobs in the same database are not seen, nor run.
            other = Client(url, "ba9876543210")
            assert other.find() == []
            other.close()
        finally:
            worker.stop()
            client.close()


@contextmanager
def postgresql(folder: Path, port: int) -> Iterator[str]:
    """A PostgreSQL of its own; it refuses to run as root, so root lends it to ``nobody``."""

    def tool(name: str) -> list[str]:
        return [*as_nobody, str(shutil.which(name, path=SEARCH_PATH))]

    as_nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.getuid() == 0 else []
    data = Path(tempfile.mkdtemp(prefix="pacs-node-postgresql-"))
    if as_nobody:
        shutil.chown(data, "nobody")
    try:
        subprocess.run(
            [*tool("initdb"), "-D", data, "-U", "node", "-A", "trust", "-N"],
            check=True,
            cwd="/",
            capture_output=True,
        )
        settings = f"-h 127.0.0.1 -p {port} -k {data} -c fsync=off"
        subprocess.run(
            [*tool("pg_ctl"), "-D", data, "-o", settings, "-l", data / "log", "-w", "start"],
            check=True,
            cwd="/",
            stdout=subprocess.DEVNULL,
        )
        try:
            yield f"postgresql://node@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run(
                [*tool("pg_ctl"), "-D", data, "-m", "immediate", "stop"],
                check=True,
                cwd="/",
                stdout=subprocess.DEVNULL,
            )
    finally:
        shutil.rmtree(data)
