"""What the worker tells Prometheus while it works, and that none of it is about a patient."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import ROOT
from tests.pipeline.conftest import chest
from tests.pipeline.harness import Bench

Figures = dict[tuple[str, tuple[str, ...]], float]
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "pacs-node.json"


def scraped(port: int) -> tuple[Figures, str]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {
        (s.name, tuple(s.labels[k] for k in sorted(s.labels))): s.value for f in families for s in f.samples
    }, text


def test_the_worker_serves_what_the_dashboard_shows(tmp_path: Path, free_port: Callable[[], int]) -> None:
    port, nobody = free_port(), free_port()
    down = {"type": "dicom", "ae_title": "DOWN", "host": "127.0.0.1", "port": nobody}
    folder = {"type": "folder", "path": str(tmp_path / "delivered")}
    bench = Bench(
        tmp_path / "node",
        {
            "metrics": {"host": "127.0.0.1", "port": port},
            "destinations": {"FOLDER": folder, "DOWN": down},
            "rules": [{"name": "all", "tasks": ["anomaly"], "destinations": ["FOLDER", "DOWN"]}],
            "deliver": {"retry": {"first_seconds": 3600.0, "max_seconds": 3600.0, "attempts": 5}},
        },
    )
    bench.receive(chest())
    bench.receive(chest(2, BodyPartExamined="HAND"))
    child = bench.work()
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                figures, text = scraped(port)
                if figures.get(("pacs_node_deliveries_waiting", ("DOWN",)), 0) >= 2:
                    break
            except OSError:
                pass  # it does not listen yet
            assert time.monotonic() < deadline
            time.sleep(0.2)
    finally:
        assert child.stop() == 0
    assert figures["pacs_node_objects_routed_total", ("analysed",)] == 1
    assert figures["pacs_node_objects_routed_total", ("refused",)] == 1
    assert figures["pacs_node_task_seconds_count", ("done", "anomaly")] == 1
    assert figures["pacs_node_jobs", ("deliver", "delayed")] >= 1
    assert figures["pacs_node_spool_free_bytes", ()] > 1 << 20
    for value in (chest().PatientName, chest().PatientID, chest().StudyInstanceUID):
        assert str(value) not in text
    # Every metric that the dashboard asks for is one that was served here.
    names = {name for name, _ in figures}
    asked = {
        word
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", [])
        for word in target["expr"].replace("(", " ").replace("[", " ").replace("{", " ").split()
        if word.startswith("pacs_node_")
    }
    assert asked
    assert asked <= names, asked - names


def test_a_taken_port_is_no_reason_not_to_work(tmp_path: Path, free_port: Callable[[], int]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        rules = [{"name": "all", "tasks": [], "destinations": ["FOLDER"], "forward_original": True}]
        bench = Bench(tmp_path / "node", {"metrics": {"host": "127.0.0.1", "port": port}, "rules": rules})
        bench.receive(chest())
        bench.work_off()
        assert len(bench.delivered()) == 1
        assert "change metrics.port" in (bench.folder / "worker.log").read_text()
