"""What only this machine and the configuration as a whole can tell: ports, folders, models, rules that never
fire.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pacs_node.config.destinations import OrthancDestination
from pacs_node.config.machine import (
    ORTHANC_URL,
    Trouble,
    folder_trouble,
    free_mb,
    host_trouble,
    is_this_machine,
    port_trouble,
)
from pacs_node.config.model import (
    Condition,
    Config,
    DicomDestination,
    FolderDestination,
    StowDestination,
)
from pacs_node.config.reachability import Contradiction, unreachable
from pacs_node.config.source import Source, Where
from pacs_node.errors import ModelError, PacsNodeError, Problem
from pacs_node.tasks import Task

if TYPE_CHECKING:
    from pacs_node.infer.cards import Card


def check(config: Config, source: Source, environ: Mapping[str, str] | None = None) -> list[Problem]:
    """Every problem of a configuration that loads, in the order of lines. Makes nothing, sends nothing."""
    environ = os.environ if environ is None else environ
    problems = [
        *_receive(config, source),
        *_web(config, source, environ),
        *_state(config, source),
        *_models(config, source),
        *_providers(config, source),
        *_destinations(config, source, environ),
        *_rules(config, source),
    ]
    return sorted(problems, key=lambda p: (p.line or 0, p.column or 0))


def example() -> str:
    """The documented example configuration. Raises PacsNodeError if it was not installed."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_deploy", package.parent / "deploy"):
        if (folder / "pacs-node.yaml").is_file():
            return (folder / "pacs-node.yaml").read_text(encoding="utf-8")
    raise PacsNodeError(f"The example is not in {package / '_deploy'}. Install pacs-node again.")


def _told(source: Source, where: Where, trouble: Trouble) -> Problem:
    return source.problem(where, trouble.message, trouble.remedy, trouble.severity)


def _receive(config: Config, source: Source) -> Iterator[Problem]:
    if trouble := port_trouble(config.receive.host, config.receive.port):
        about_host = "not an address" in trouble.message
        yield _told(source, ("receive", "host" if about_host else "port"), trouble)
    for index, caller in enumerate(config.receive.callers):
        if caller.host and (trouble := host_trouble(caller.host)):
            yield _told(source, ("receive", "callers", index, "host"), trouble)
    if config.receive.commitment:
        yield from _committing(config, source)


def _committing(config: Config, source: Source) -> Iterator[Problem]:
    """Whether the node can report on what it commits to, and keep its word."""
    where: Where = ("receive", "commitment")
    if not any(caller.host and caller.port for caller in config.receive.callers):
        message = "no caller has an address, so a report can go out only on the association of its request"
        yield source.problem(where, message, "Add host and port in receive.callers", "warning")
    dropping = [r.name for r in config.rules if not (r.forward_original and r.destinations)]
    if dropping or not config.rules:
        rule = f"the rule {dropping[0]!r}" if dropping else "no rule"
        message = (
            f"what the node commits to is removed after retention.days ({config.retention.days}), and {rule} "
            f"{'does not forward' if dropping else 'forwards'} it"
        )
        remedy = "Set forward_original: true with an archive among the destinations"
        yield source.problem(where, message, remedy, "warning")


def _web(config: Config, source: Source, environ: Mapping[str, str]) -> Iterator[Problem]:
    web = config.web
    if web is None:
        return
    if trouble := port_trouble(web.host, web.port):
        yield _told(source, ("web", "host" if "not an address" in trouble.message else "port"), trouble)
    for key in ("password_env", "token_env"):
        yield from _variable(("web", key), getattr(web, key), source, environ)
    if not web.password_env and not web.token_env and web.host not in ("127.0.0.1", "::1", "localhost"):
        message = "everybody who reaches this address can read all images and send more"
        yield source.problem(
            ("web", "host"), message, "Ask for username and password_env, or for token_env", "warning"
        )


def _variable(
    where: Where, name: str | None, source: Source, environ: Mapping[str, str]
) -> Iterator[Problem]:
    if name and not environ.get(name):
        message = f"the environment variable {name} is not set"
        yield source.problem(where, message, f"Set it where the node is started, e.g. export {name}=…")


def _state(config: Config, source: Source) -> Iterator[Problem]:
    where: Where = ("node", "state_dir")
    if trouble := folder_trouble(config.node.state_dir, parents=True):
        yield _told(source, where, trouble)
    elif (free := free_mb(config.node.state_dir)) < config.receive.min_free_disk_mb:
        yield source.problem(
            where,
            f"its disk has {free} MB free, less than receive.min_free_disk_mb "
            f"({config.receive.min_free_disk_mb}), "
            "so nothing would be accepted",
            "Free space on it, choose another disk, or lower receive.min_free_disk_mb",
        )


def _models(config: Config, source: Source) -> Iterator[Problem]:
    # ONNX Runtime and numpy are not needed to read cards; still, only check pays for the import
    from pacs_node.infer.catalog import Catalog

    for index, folder in enumerate(config.models.folders):
        if not folder.is_dir():
            remedy = "Correct the path, or make the folder with: pacs-node models add"
            yield source.problem(("models", "folders", index), "there is no such folder", remedy)
    try:
        catalog = Catalog([folder for folder in config.models.folders if folder.is_dir()])
    except ModelError as error:
        yield source.problem(("models",), str(error).rstrip("."), "See: pacs-node models list")
        return
    asked = {config.models.name_for(task) for task in Task}
    for problem in catalog.problems:
        for line in str(problem).splitlines() if problem.name not in asked else ():
            remedy = "No task asks for it by name, so the others run. See: pacs-node models list"
            yield source.problem(("models",), line.rstrip("."), remedy, "warning")
    wanted = {task for rule in config.rules for task in rule.tasks}
    for task in Task:
        name = config.models.name_for(task)
        if name is None and task not in wanted:
            continue
        try:
            yield from _sampling(config, catalog.card(task, name), source)
        except ModelError as error:
            there = [card.name for card in catalog.cards if card.task is task]
            if name in {problem.name for problem in catalog.problems}:
                for line in str(error).splitlines():
                    remedy = "Until then this task fails on every image; the others run"
                    yield source.problem(("models", task.value), line.rstrip("."), remedy)
                continue
            remedy = (
                f"Name one of: default, {', '.join(there)}"
                if there
                else "Add one with: pacs-node models add FOLDER"
            )
            yield source.problem(("models", task.value), str(error).split(". ")[0].rstrip("."), remedy)


def _sampling(config: Config, card: Card, source: Source) -> Iterator[Problem]:
    """Whether the model can do the sampler and the number of steps that are asked for in place of its own."""
    from pacs_node.infer.sampling.rules import trouble
    from pacs_node.infer.tables import asked_for

    name, steps = (getattr(part, card.task, None) for part in (config.infer.samplers, config.infer.steps))
    if card.sampler is None or card.diffusion is None or (name is None and steps is None):
        return
    asked = asked_for(card.sampler, name, steps)
    if found := trouble(card.diffusion, asked, asked.steps):
        key = "steps" if name is None else "samplers"
        message = f"the model {card.name} cannot be sampled so: {found.message}"
        yield source.problem(("infer", key, card.task.value), message, found.remedy)


def _providers(config: Config, source: Source) -> Iterator[Problem]:
    if "providers" not in config.infer.model_fields_set:
        return
    from pacs_node.infer.providers import available

    where: Where = ("infer", "providers")
    try:
        there = available()
    except ModelError as error:
        yield source.problem(
            where, str(error).rstrip("."), "pip install 'pacs-node[cpu]' or 'pacs-node[gpu]'"
        )
        return
    usable = [name for name in config.infer.providers if name in there]
    for index, name in enumerate(config.infer.providers):
        if name not in there:
            yield source.problem(
                (*where, index),
                "the installed ONNX Runtime does not have this provider",
                f"It has {', '.join(there)}; remove this one, or install pacs-node[cpu] or pacs-node[gpu]",
                "warning" if usable else "error",
            )


def _destinations(config: Config, source: Source, environ: Mapping[str, str]) -> Iterator[Problem]:
    used = {name for rule in config.rules for name in rule.destinations}
    for name, destination in config.destinations.items():
        where: Where = ("destinations", name)
        if name not in used:
            message, remedy = "no rule sends anything to this destination", "Name it in a rule, or remove it"
            yield source.problem(where, message, remedy, "warning", at_key=True)
        match destination:
            case FolderDestination():
                if trouble := folder_trouble(destination.path, parents=False):
                    yield _told(source, (*where, "path"), trouble)
            case DicomDestination():
                if trouble := host_trouble(destination.host):
                    yield _told(source, (*where, "host"), trouble)
                elif destination.port == config.receive.port and is_this_machine(destination.host):
                    message = "this is the node's own receiver: results would be sent to the node itself"
                    yield source.problem((*where, "port"), message, "Give the address of the PACS")
                yield from _commitment(where, destination, config, source)
            case StowDestination():
                yield from _stow(where, destination, source, environ)
            case OrthancDestination():
                yield from _orthanc(where, destination, source, environ)


def _commitment(
    where: Where, destination: DicomDestination, config: Config, source: Source
) -> Iterator[Problem]:
    """Whether its report, on an association of its own, would be let in."""
    if not destination.commitment:
        return
    called = destination.calling_ae_title or config.node.ae_title
    if config.receive.check_called_ae and called != config.node.ae_title:
        message = f"its reports would call us {called}, which receive.check_called_ae refuses"
        remedy = "Leave calling_ae_title out, or set receive.check_called_ae to false"
        yield source.problem((*where, "commitment"), message, remedy)
    known = {caller.ae_title for caller in config.receive.callers}
    if config.receive.check_calling_ae and destination.ae_title not in known:
        message = f"its reports would come from {destination.ae_title}, which is not in receive.callers"
        yield source.problem((*where, "commitment"), message, "Add it there, or set commitment to false")


def _stow(
    where: Where, stow: StowDestination, source: Source, environ: Mapping[str, str]
) -> Iterator[Problem]:
    for key in ("password_env", "token_env"):
        yield from _variable((*where, key), getattr(stow, key), source, environ)
    if isinstance(stow.verify, Path) and not os.access(stow.verify, os.R_OK):
        message = "the certificate authority's file cannot be read"
        yield source.problem((*where, "verify"), message, "Correct the path or the file's permissions")
    if stow.verify is False:
        message = "the server's certificate is not checked, so anyone on the way can read what is sent"
        yield source.problem((*where, "verify"), message, "Give the certificate authority's file", "warning")
    if (stow.username or stow.token_env) and stow.url.startswith("http://"):
        message = "a secret would be sent unencrypted"
        yield source.problem((*where, "url"), message, "Use https://", "warning")


def _orthanc(
    where: Where, orthanc: OrthancDestination, source: Source, environ: Mapping[str, str]
) -> Iterator[Problem]:
    if orthanc.url is None and not environ.get(ORTHANC_URL):
        message = "no Orthanc runs this node as its plugin, so there is none without an address"
        yield source.problem((*where, "type"), message, "Add url, such as http://127.0.0.1:8042")
    yield from _variable((*where, "password_env"), orthanc.password_env, source, environ)
    if orthanc.username and orthanc.url and orthanc.url.startswith("http://"):
        message = "a secret would be sent unencrypted"
        if not is_this_machine(urlsplit(orthanc.url).hostname or ""):
            yield source.problem((*where, "url"), message, "Use https://", "warning")


def _rules(config: Config, source: Source) -> Iterator[Problem]:
    if not config.rules:
        message = "there are no rules: objects are kept, and nothing is made of them or sent"
        yield source.problem(("rules",), message, "Add a rule, as in pacs-node check --example", "warning")
    given = _given(config)
    for found in unreachable(config.rules, given):
        rule = config.rules[found.rule]
        if isinstance(found, Contradiction):
            yield _contradiction(config, source, found, given)
            continue
        by = [f"{config.rules[n].name!r} (line {source.place(('rules', n, 'name'))[0]})" for n in found.by]
        line = source.place(("rules", found.rule, "name"))[0]
        yield source.problem(
            ("rules", found.rule, "name"),
            f"rule {rule.name!r} (line {line}) can never fire: every object that it matches is taken "
            "before it by "
            f"{' or '.join(by)}",
            f"Move it above {by[0]}, or narrow the conditions of "
            f"{'that rule' if len(by) == 1 else 'those rules'}",
        )
    for index, rule in enumerate(config.rules):
        if rule.tasks and not rule.destinations:
            message = "the rule makes results but has no destinations: they stay on this node"
            yield source.problem(("rules", index, "tasks"), message, "Add destinations", "warning")
        if rule.destinations and not rule.tasks and not rule.forward_original:
            message = "nothing is sent there: the rule has no tasks and does not forward the original"
            remedy = "Add tasks or forward_original: true, or remove destinations"
            yield source.problem(("rules", index, "destinations"), message, remedy, "warning")
        if rule.forward_original and not rule.destinations:
            message = "the original is to be forwarded, but the rule has no destinations"
            yield source.problem(("rules", index, "forward_original"), message, "Add destinations", "warning")


def _given(config: Config) -> dict[str, Condition]:
    """What the receiver makes sure of for every object."""
    given = {}
    if config.receive.check_called_ae:
        given["called_ae"] = Condition(equals=config.node.ae_title)
    if config.receive.check_calling_ae and config.web is None:  # by DICOMweb nobody has an AE title
        given["calling_ae"] = Condition(one_of=tuple(caller.ae_title for caller in config.receive.callers))
    return given


def _contradiction(
    config: Config, source: Source, found: Contradiction, given: Mapping[str, Condition]
) -> Problem:
    rule = config.rules[found.rule]
    where: Where = ("rules", found.rule, "when", found.key)
    if found.key in given and not any(unreachable([rule])):
        key = "check_called_ae" if found.key == "called_ae" else "check_calling_ae"
        allowed = config.node.ae_title if found.key == "called_ae" else "those in receive.callers"
        message = (
            f"rule {rule.name!r} can never fire: receive.{key} (line {source.place(('receive', key))[0]}) "
            "lets in only "
            f"{allowed}"
        )
        return source.problem(
            where, message, f"Correct the AE title, or set receive.{key}: false", at_key=True
        )
    message = f"rule {rule.name!r} can never fire: no value of {found.key} fulfils all of these at once"
    return source.problem(where, message, "Remove one of the conditions that exclude each other", at_key=True)
