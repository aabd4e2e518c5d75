"""A decision as plain data and as lines for a person: what would be made of an object, what sent where, and
why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydicom.dataset import Dataset

from pacs_node.config.destinations import OrthancDestination
from pacs_node.config.model import Config, DicomDestination, StowDestination
from pacs_node.dicom.derivation import NOT_FOR_DIAGNOSIS, TITLES
from pacs_node.route.rules import Decision, RuleTrace
from pacs_node.tasks import Task

Line = tuple[str, str]  # a style's name and the text


def as_record(
    decision: Decision, header: Dataset, config: Config, models: Mapping[Task, tuple[str, str] | str]
) -> dict[str, Any]:
    """The decision as JSON. ``models``: name and version of each task's model, or why there is none."""
    refusal = decision.refusal
    return {
        "sop_instance_uid": str(header.get("SOPInstanceUID") or ""),
        "sop_class_uid": str(header.get("SOPClassUID") or ""),
        "rule": decision.rule,
        "own_result": decision.own_result,
        "refused": refusal and {"code": refusal.code, "reason": refusal.reason, "remedy": refusal.remedy},
        "asked": [task.value for task in decision.asked],
        "results": [_result(task, models[task]) for task in decision.tasks],
        "report": f"AI report - {NOT_FOR_DIAGNOSIS}" if decision.tasks else None,
        "destinations": [
            {"name": name, "type": config.destinations[name].type, "where": where(config, name)}
            for name in decision.destinations
        ],
        "forward_original": decision.forward_original,
        "rules": [
            {
                "name": rule.name,
                "matched": rule.matched,
                "fired": rule.fired,
                "conditions": [vars(condition) for condition in rule.conditions],
            }
            for rule in decision.trace
        ],
    }


def _result(task: Task, model: tuple[str, str] | str) -> dict[str, Any]:
    title = "AI anomaly heatmap" if task is Task.ANOMALY else TITLES[task]
    name, version = (None, None) if isinstance(model, str) else model
    return {
        "task": task.value,
        "series_description": f"{title} - {NOT_FOR_DIAGNOSIS}",
        "model": name,
        "version": version,
        "error": model if isinstance(model, str) else None,
    }


def where(config: Config, name: str) -> str:
    """A destination's address in words."""
    destination = config.destinations[name]
    if isinstance(destination, DicomDestination):
        calling = destination.calling_ae_title or config.node.ae_title
        address = f"{destination.host}:{destination.port}"
        return f"C-STORE to {destination.ae_title} at {address}, calling as {calling}"
    if isinstance(destination, StowDestination):
        return f"STOW-RS to {destination.url}"
    if isinstance(destination, OrthancDestination):
        onward = (
            f", and from there C-STORE to its modality {destination.modality}"
            if destination.modality
            else f", and from there STOW-RS to its server {destination.server}"
            if destination.server
            else ""
        )
        return f"Orthanc at {destination.url or 'the address of the one that runs this node'}{onward}"
    return f"files in {destination.path}"


def lines(decision: Decision, record: Mapping[str, Any]) -> Iterator[Line]:
    """The explanation, line by line; styles are ``good``, ``bad``, ``quiet``, ``head`` and ``plain``."""
    yield "head", "Rules, in their order"
    if not decision.trace:
        yield "quiet", "  (none: objects are only kept)"
    for rule in decision.trace:
        yield from _rule(rule)
    yield "head", "Outcome"
    yield from _outcome(decision)
    if record["results"]:
        yield "head", "Would be made"
        for result in record["results"]:
            if result["error"]:
                yield "bad", f"  {result['task']}: not possible: {result['error']}"
            else:
                model = f"model {result['model']} {result['version']}"
                yield "plain", f"  {result['task']}: series {result['series_description']!r}, {model}"
        yield "plain", f"  report of the study: series {record['report']!r}"
    yield from _sent(decision, record)


def _rule(rule: RuleTrace) -> Iterator[Line]:
    if rule.fired:
        yield "good", f"  FIRES          {rule.name}"
    elif rule.matched:
        yield "quiet", f"  too late       {rule.name} (it matches, but an earlier rule has fired)"
    else:
        yield "quiet", f"  does not match {rule.name}"
    if not rule.conditions:
        yield "quiet", "      always: it has no conditions"
    for condition in rule.conditions:
        mark, style = ("yes", "good") if condition.matched else ("no ", "bad")
        found = f"found {condition.found}" if condition.found else "found nothing"
        yield style, f"      {mark} {condition.key}: {condition.expected}; {found}"


def _outcome(decision: Decision) -> Iterator[Line]:
    if decision.rule is None:
        yield "bad", "  No rule matches: the object is kept, nothing is made of it and nothing is sent."
        return
    if decision.own_result:
        yield "plain", "  A node of this kind has made it: own results are never analysed."
    elif decision.refusal:
        yield "bad", f"  Not analysed ({decision.refusal.code}): {decision.refusal.reason}."
        yield "quiet", f"  {decision.refusal.remedy}."
    elif decision.tasks:
        yield "good", "  It will be analysed, unless its pixels turn out to be unusable."
    else:
        yield "plain", f"  Rule {decision.rule!r} asks for no tasks: nothing is made of it."


def _sent(decision: Decision, record: Mapping[str, Any]) -> Iterator[Line]:
    what = [
        *(["results"] if decision.tasks else []),
        *(["the original"] if decision.forward_original else []),
    ]
    yield "head", "Would be sent"
    if not what:
        yield "quiet", "  nothing"
    elif not record["destinations"]:
        yield "bad", f"  nothing: the rule has no destinations for {' and '.join(what)}"
    else:
        for destination in record["destinations"]:
            yield "plain", f"  {' and '.join(what)} to {destination['name']} ({destination['where']})"
