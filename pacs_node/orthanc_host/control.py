"""What is answered under ``/pacs-node/`` of Orthanc's REST API. The plugin passes requests on as they are."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import unquote

from pacs_node import __version__
from pacs_node.config import Config
from pacs_node.dicom.derivation import NOT_FOR_DIAGNOSIS
from pacs_node.engine.client import Client
from pacs_node.engine.job import STATUSES, UNFINISHED, UNSUCCESSFUL, Job
from pacs_node.errors import PacsNodeError, Refused
from pacs_node.orthanc_api import OrthancApi, OrthancError
from pacs_node.orthanc_host.changes import Follower, announce
from pacs_node.orthanc_host.intake import Intake
from pacs_node.pipeline.node import Node
from pacs_node.pipeline.serve import Child
from pacs_node.receive.identity import UnreadableError
from pacs_node.receive.incoming import TooLargeError
from pacs_node.route import decide
from pacs_node.route.explain import as_record
from pacs_node.tasks import Task

log = logging.getLogger(__name__)

_RESOURCE = re.compile(r"(studies|series|instances)/([A-Za-z0-9.-]{1,64})/(analyze|explain)\Z")
_LEVELS = {"studies": "Study", "series": "Series", "instances": "Instance"}
_MAX_JOBS = 1000

Answer = tuple[int, Any]


@dataclass(frozen=True)
class Control:
    """Answers requests, one at a time."""

    node: Node
    client: Client
    intake: Intake
    api: OrthancApi
    follower: Follower
    worker: Child
    current: Callable[[], Config]

    def answer(self, method: str, path: str, query: Mapping[str, str]) -> Answer:
        """HTTP status and JSON for a request; ``path`` is what follows ``/pacs-node/``."""
        try:
            return self._answer(method, path.strip("/"), query)
        except OrthancError as error:
            return error.status or 503, {"error": str(error)}
        except (PacsNodeError, OSError) as error:
            return 503, {"error": str(error)}
        # The request's boundary: whatever goes wrong with one must not end the process that follows Orthanc.
        except Exception as error:
            log.exception("request failed", extra={"error": type(error).__name__})
            return 500, {"error": type(error).__name__}

    def _answer(self, method: str, path: str, query: Mapping[str, str]) -> Answer:
        if path in ("", "status"):
            return (200, self._status()) if method == "GET" else (405, {"use": "GET"})
        if path == "jobs":
            return self._jobs(query) if method == "GET" else (405, {"use": "GET"})
        asked = _RESOURCE.match(path)
        if asked is None:
            there = "status, jobs, studies/{id}/analyze, studies/{id}/explain (series and instances likewise)"
            return 404, {"error": f"there is nothing here; there are {there}"}
        kind, resource, action = asked.groups()
        if method != ("POST" if action == "analyze" else "GET"):
            return 405, {"use": "POST" if action == "analyze" else "GET"}
        instances = self._instances(kind, resource)
        return self._analyze(instances) if action == "analyze" else self._explain(instances)

    def _status(self) -> dict[str, Any]:
        process, follower = self.worker.process, self.follower
        running = process is not None and process.poll() is None
        unsuccessful = self.client.find(status=UNSUCCESSFUL)
        config = self.current()
        return {
            "name": "pacs-node",
            "version": __version__,
            "purpose": NOT_FOR_DIAGNOSIS,
            "worker": {
                "running": running,
                "pid": process.pid if process is not None and running else None,
                "early_ends": self.worker.failures,
            },
            "changes": {
                "read": follower.read,
                "last": int(self.api.get("/changes?last")["Last"]),
                "instances": dict(follower.seen),
                "trouble": follower.trouble,
            },
            "jobs": {
                "unfinished": len(self.client.find(status=UNFINISHED)),
                **{status: sum(job.status == status for job in unsuccessful) for status in UNSUCCESSFUL},
            },
            "rules": [rule.name for rule in config.rules],
            "destinations": sorted(config.destinations),
            "state_dir": str(self.node.state_dir),
        }

    def _jobs(self, query: Mapping[str, str]) -> Answer:
        wanted = [status for status in STATUSES if status == query.get("status")]
        limit = query.get("limit", "100")
        if ("status" in query and not wanted) or not limit.isdecimal() or len(limit) > 6:
            return 400, {"error": f"status is one of {', '.join(STATUSES)}; limit is a number"}
        found = self.client.find(
            # Orthanc passes arguments on as they stand in the address.
            prefix=unquote(query["prefix"]) if "prefix" in query else None,
            status=wanted or None,
            limit=max(1, min(int(limit), _MAX_JOBS)),
            newest_first=True,
        )
        return 200, [_as_dict(job) for job in found]

    def _instances(self, kind: str, resource: str) -> list[str]:
        """Orthanc's ids of the instances; ``resource`` is Orthanc's id or the UID."""
        if kind == "instances" and "." not in resource:
            return [resource]
        if "." in resource:
            found = self.api.find(_LEVELS[kind], resource)
            if found is None:
                raise OrthancError(404, f"Orthanc has no such {_LEVELS[kind].lower()}")
            resource = found
        if kind == "instances":
            return [resource]
        return [str(instance["ID"]) for instance in self.api.get(f"/{kind}/{resource}/instances")]

    def _analyze(self, instances: list[str]) -> Answer:
        config = self.current()
        taken = []
        for instance in instances:
            became = self.intake.take(self.api, instance, config, again=True)
            announce(became)
            taken.append(became)
        return 200, {
            "taken": sum(t.outcome == "taken" for t in taken),
            "repeated": sum(t.outcome == "repeated" for t in taken),
            "instances": [asdict(t) for t in taken],
        }

    def _explain(self, instances: list[str]) -> Answer:
        from pacs_node.pipeline.models import models_by_task

        config = self.current()
        models = models_by_task(config)
        return 200, [self._explained(instance, config, models) for instance in instances]

    def _explained(
        self, instance: str, config: Config, models: Mapping[Task, tuple[str, str] | str]
    ) -> dict[str, Any]:
        try:
            with self.intake.fetched(self.api, instance, config) as fetched:
                decision = decide(config.rules, fetched.header, fetched.calling_ae, fetched.called_ae)
                return {"instance": instance, **as_record(decision, fetched.header, config, models)}
        except (Refused, UnreadableError, TooLargeError) as error:
            return {"instance": instance, "unreadable": str(error)}


def _as_dict(job: Job) -> dict[str, Any]:
    record = vars(job) | {"created": job.created.isoformat(), "updated": job.updated.isoformat()}
    return {key: value for key, value in record.items() if key != "payload"}
