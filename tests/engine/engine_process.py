"""A process of its own that runs jobs of the kinds that tests/engine/test_engine.py needs, until SIGTERM.

usage: engine_process.py DATABASE FOLDER
Every effect of a job is a line appended to FOLDER/log, so that the test sees what ran and how often.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from pacs_node.engine.engine import Engine, Run
from pacs_node.engine.job import JSON, NewJob

database, folder = sys.argv[1], Path(sys.argv[2])
stopped = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopped.set())


def note(line: str) -> str:
    with (folder / "log").open("a") as file:
        file.write(line + "\n")
    return line


def die_once(marker: str) -> None:
    """End the process as kill -9 does, the first time that ``marker`` is met."""
    path = folder / marker
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def five_steps(run: Run, payload: dict[str, object]) -> JSON:
    """Five steps and a child; dies before, in and after the steps that the payload names."""
    key = str(payload["key"])

    def step(number: int) -> str:
        note(f"{key} step {number}")
        if payload.get("die_in") == number:
            die_once(f"{key}-in-{number}")
        return f"{key}-{number}"

    results = []
    for number in range(5):
        if payload.get("die_before") == number:
            die_once(f"{key}-before-{number}")
        results.append(run.step(f"step {number}", step, number))
    run.enqueue(NewJob("note", f"note/{key}", {"key": key}, "light"))
    if payload.get("die_after"):
        die_once(f"{key}-after")
    return results


def poison(run: Run, payload: dict[str, object]) -> JSON:
    note(f"{payload['key']} start")
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def slow(run: Run, payload: dict[str, object]) -> JSON:
    def wait() -> str:
        note(f"{payload['key']} start")
        time.sleep(float(str(payload["seconds"])))
        return note(f"{payload['key']} end")

    return run.step("wait", wait)


if __name__ == "__main__":
    engine = Engine(database, "0123456789ab", {"light": 4, "heavy": 1})
    engine.register("five_steps", five_steps, max_starts=5)
    engine.register("note", lambda run, payload: run.step("note", note, f"{payload['key']} child"))
    engine.register("poison", poison, max_starts=2)
    engine.register("slow", slow)
    engine.start()
    note("ready")
    stopped.wait()
    clean = engine.stop(grace_seconds=1)
    note(f"stopped {clean}")
    os._exit(0)
