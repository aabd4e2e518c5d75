# ruff: noqa: E501  (tables: one case a line)
"""What only the machine can tell, the command `check`, the example and the schema."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import CliRunner

from pacs_node.cli.main import app
from pacs_node.config.check import check, example
from pacs_node.config.load import parse
from pacs_node.config.machine import folder_trouble
from pacs_node.config.model import (
    Caller,
    Condition,
    Config,
    DicomDestination,
    FolderDestination,
    Retry,
    Rule,
    Samplers,
    Steps,
    StowDestination,
    Timeouts,
)
from pacs_node.config.schema import json_schema
from pacs_node.errors import Problem
from pacs_node.pipeline.serve import preflight

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "deploy" / "pacs-node.yaml"
MODELS = ROOT / "tests" / "infer" / "fixtures" / "models"
runner = CliRunner()


@pytest.fixture
def environ(tmp_path: Path, free_port: Callable[[], int]) -> dict[str, str]:
    """An environment in which nothing of this machine is in the way."""
    return {
        "PACS_NODE_STATE_DIR": str(tmp_path / "state"),
        "PACS_NODE_HOST": "127.0.0.1",
        "PACS_NODE_PORT": str(free_port()),
        "PACS_NODE_MODELS": str(MODELS),
    }


def checked(text: str, environ: dict[str, str]) -> list[Problem]:
    return check(*parse(text, "pacs-node.yaml", Path("/etc/pacs-node"), environ), environ)


RULE = "rules:\n  - name: chest\n    tasks: [anomaly]\n    destinations: [A]\n"  # lines 1 to 4


def only(problems: list[Problem]) -> Problem:
    (problem,) = problems
    assert problem.remedy
    return problem


# -- the example


def test_the_example_is_clean(environ: dict[str, str]) -> None:
    assert checked(EXAMPLE.read_text(), environ) == []
    assert not Path(environ["PACS_NODE_STATE_DIR"]).exists(), "check makes nothing"


def test_the_example_documents_every_key() -> None:
    text = EXAMPLE.read_text()
    sections = [Config, *(f.annotation for f in Config.model_fields.values())]
    sections += [
        Caller,
        Timeouts,
        Steps,
        Samplers,
        DicomDestination,
        StowDestination,
        FolderDestination,
        Rule,
        Retry,
    ]
    for section in sections:
        if isinstance(section, type) and issubclass(section, BaseModel):
            for name, field in section.model_fields.items():
                assert field.description, f"{section.__name__}.{name} has no description"
                assert re.search(rf"(?m)^[\s#-]*{name}:", text), (
                    f"{section.__name__}.{name} is not in the example"
                )
    for name, field in Condition.model_fields.items():
        word = field.alias or name
        assert re.search(rf"\b{word}\b", text.replace("one of ", "one_of ")), f"{word} is not in the example"


def test_the_example_shows_the_defaults() -> None:
    config = parse(EXAMPLE.read_text(), str(EXAMPLE), ROOT, {})[0]
    shown = config.model_copy(update={"destinations": {}, "rules": ()})
    assert shown == Config()


def test_what_the_example_has_in_comments_is_valid_too() -> None:
    text = EXAMPLE.read_text().replace("callers: []", "callers:").replace("StowDestination", "")
    lines = [line for line in text.splitlines() if "token_env" not in line]
    # "# key: value" and "#  - item", not prose
    uncommented = [re.sub(r"^(\s*)# ?(\s*(?:- )?[A-Za-z_]+:( |$))", r"\1\2", line) for line in lines]
    body = [u if line.startswith("  ") else line for line, u in zip(lines, uncommented, strict=True)]
    body = [line for line in body if not re.match(r"#   \S.*: ", line)]
    config = parse("\n".join(body), "example", ROOT, {})[0]
    assert [c.ae_title for c in config.receive.callers] == ["XRAY_1", "XRAY_2"]
    assert config.infer.providers == ("tensorrt", "cuda", "openvino", "cpu")
    assert config.infer.steps == Steps(bone_suppression=10, restoration=10)
    assert config.infer.samplers == Samplers(
        bone_suppression="dpmpp_multistep", restoration="dpmpp_multistep"
    )
    assert config.node.organisation == "St. Elsewhere"
    assert set(config.destinations) == {"PACS", "WEB", "ARCHIVE", "ORTHANC"}
    assert config.engine.database is not None


def test_the_example_is_found_by_the_installed_command() -> None:
    assert example() == EXAMPLE.read_text()
    result = runner.invoke(app, ["check", "--example"])
    assert (result.exit_code, result.stdout) == (0, EXAMPLE.read_text())


def test_the_conditions_that_the_example_explains_are_valid() -> None:
    found = re.findall(r"(?m)^#   ([A-Z]\w+: .*?)(?:   .*)?$", EXAMPLE.read_text())
    assert len(found) >= 9
    for n, condition in enumerate(found):
        parse(f"rules:\n  - name: r{n}\n    when:\n      {condition}\n", "example", ROOT, {})


# -- the machine


def test_port_in_use_names_the_process(environ: dict[str, str]) -> None:
    code = "import socket, time; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); "
    code += "print(s.getsockname()[1], flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            port = int(holder.stdout.readline())
            environ.pop("PACS_NODE_PORT")
            problem = only(checked(f"receive:\n  port: {port}\nrules: [{{name: all}}]\n", environ))
        finally:
            holder.kill()
    assert (problem.file, problem.line, problem.key) == ("pacs-node.yaml", 2, "receive.port")
    assert problem.value == str(port)
    assert f"in use by {Path(sys.executable).name} (process {holder.pid})" in problem.message
    assert "another port" in problem.remedy


def test_an_address_of_another_machine(environ: dict[str, str]) -> None:
    environ.pop("PACS_NODE_HOST")
    problem = only(checked("receive:\n  host: 192.0.2.77\nrules: [{name: all}]\n", environ))
    assert (problem.line, problem.key) == (2, "receive.host")
    assert "0.0.0.0" in problem.remedy


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run as nobody if we are root, to whom every folder is writable."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_folders_that_cannot_be_written_to() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        top = Path(name)
        closed = top / "closed"
        closed.mkdir(mode=0o555)
        (top / "file").touch()
        top.chmod(0o755)
        with unprivileged():
            troubles = {
                "write": folder_trouble(closed, parents=True),
                "make": folder_trouble(closed / "a" / "b", parents=True),
                "file": folder_trouble(top / "file", parents=True),
                "below a file": folder_trouble(top / "file" / "a", parents=True),
                "no parent": folder_trouble(top / "a" / "b", parents=False),
            }
        words = {
            "write": ("may not write", "chown"),
            "make": ("may not make it", "install -d"),
            "file": ("not a folder", "another folder"),
            "below a file": ("is not a folder", "Correct the path"),
            "no parent": ("does not exist", "mkdir -p"),
        }
        for case, (message, remedy) in words.items():
            trouble = troubles[case]
            assert trouble is not None, case
            assert message in trouble.message, case
            assert remedy in trouble.remedy, case
        assert folder_trouble(top / "new" / "er", parents=True) is None


def test_state_dir_below_a_file(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environ.pop("PACS_NODE_STATE_DIR")
    problem = only(checked(f"node:\n  state_dir: {tmp_path}/file/a\nrules: [{{name: all}}]\n", environ))
    assert (problem.line, problem.key, problem.value) == (2, "node.state_dir", f"{tmp_path}/file/a")
    assert "is not a folder" in problem.message


def test_too_little_disk(environ: dict[str, str]) -> None:
    problem = only(checked("receive:\n  min_free_disk_mb: 99999999999\nrules: [{name: all}]\n", environ))
    assert problem.key == "node.state_dir"
    assert "MB free" in problem.message


def test_unknown_model_names_those_that_exist(environ: dict[str, str], tmp_path: Path) -> None:
    text = f"{RULE}destinations:\n  A: {{type: folder, path: {tmp_path}}}\nmodels:\n  anomaly: tiny-anomly\n"
    problem = only(checked(text, environ))
    assert (problem.line, problem.key, problem.value) == (8, "models.anomaly", "tiny-anomly")
    assert "tiny-anomaly" in problem.remedy


def test_model_folder_that_does_not_exist(environ: dict[str, str]) -> None:
    environ.pop("PACS_NODE_MODELS")
    problem = only(checked("models:\n  folders:\n    - /nowhere/models\nrules: [{name: all}]\n", environ))
    assert (problem.line, problem.key) == (3, "models.folders.0")


def test_a_broken_model_is_named_and_stops_only_the_task_that_names_it(
    environ: dict[str, str], tmp_path: Path
) -> None:
    broken = tmp_path / "site" / "ours"
    broken.mkdir(parents=True)
    (broken / "card.toml").write_text('name = "ours"\ntask = "anomaly"\n')
    environ.pop("PACS_NODE_MODELS")
    text = f"models:\n  folders: [{broken.parent}]\n  anomaly: %s\nrules: [{{name: all, tasks: [anomaly]}}]\n"
    unnamed, named = (
        [p for p in checked(text % name, environ) if "card.toml" in p.message] for name in ("default", "ours")
    )
    assert {(p.key, p.severity) for p in unnamed} == {("models", "warning")}
    assert {(p.key, p.value, p.severity) for p in named} == {("models.anomaly", "ours", "error")}
    assert any("version: the key is missing" in p.message for p in named)
    file = tmp_path / "pacs-node.yaml"
    file.write_text(text % "ours")
    assert preflight(file).models.anomaly == "ours"  # the node starts; the task will say so on every image


def test_a_sampler_that_the_model_cannot_do_stops_only_its_task(
    environ: dict[str, str], tmp_path: Path
) -> None:
    text = "infer:\n  %s\nrules: [{name: all, tasks: [bone_suppression, restoration]}]\n"

    def found(asked: str) -> list[Problem]:
        return [p for p in checked(text % asked, environ) if p.key.startswith("infer")]

    problem = only(found("samplers: {bone_suppression: langevin}"))
    assert (problem.line, problem.key, problem.value) == (2, "infer.samplers.bone_suppression", "langevin")
    assert "cannot be sampled so" in problem.message
    assert problem.remedy == 'Use the sampler "ddpm" or "ddim"'
    problem = only(found("samplers: {restoration: lcm}\n  steps: {restoration: 60}"))
    assert problem.key == "infer.samplers.restoration"
    assert "50 steps at most" in problem.message
    assert found("samplers: {restoration: dpmpp_multistep}") == []
    file = tmp_path / "pacs-node.yaml"
    file.write_text(text % "samplers: {bone_suppression: langevin}")
    assert preflight(file).infer.samplers.bone_suppression == "langevin"  # the task says so on every image


def test_provider_that_is_not_installed(environ: dict[str, str]) -> None:
    problem = only(checked("infer:\n  providers: [tensorrt, cpu]\nrules: [{name: all}]\n", environ))
    assert (problem.line, problem.key, problem.severity) == (2, "infer.providers.0", "warning")
    problem = only(checked("infer:\n  providers: [tensorrt]\nrules: [{name: all}]\n", environ))
    assert problem.severity == "error"


DESTINATIONS = {
    "folder": ("{type: folder, path: /nowhere/at/all}", "A.path", "does not exist", "mkdir -p", "error"),
    "variable": (
        "{type: stow, url: 'https://127.0.0.1', token_env: PACS_NODE_NOT_SET}", "A.token_env",
        "PACS_NODE_NOT_SET is not set", "export PACS_NODE_NOT_SET", "error",
    ),
    "ca": ("{type: stow, url: 'https://127.0.0.1', verify: /nowhere.pem}", "A.verify", "cannot be read", "Correct", "error"),
    "unverified": ("{type: stow, url: 'https://127.0.0.1', verify: false}", "A.verify", "not checked", "authority", "warning"),
    "orthanc": ("{type: orthanc}", "A.type", "no Orthanc runs this node", "Add url", "error"),
    "host": ("{type: dicom, ae_title: A, host: no.such.host.invalid, port: 1}", "A.host", "resolve", "IP", "warning"),
}  # fmt: skip


@pytest.mark.parametrize("name", DESTINATIONS)
def test_destinations(name: str, environ: dict[str, str]) -> None:
    text, key, message, remedy, severity = DESTINATIONS[name]
    problem = only(checked(f"{RULE}destinations:\n  A: {text}\n", environ))
    assert (problem.line, problem.key, problem.severity) == (6, f"destinations.{key}", severity)
    assert message in problem.message
    assert remedy in problem.remedy


def test_sending_to_oneself(environ: dict[str, str]) -> None:
    text = f"{RULE}destinations:\n  A: {{type: dicom, ae_title: A, host: localhost, port: {environ['PACS_NODE_PORT']}}}\n"
    problem = only(checked(text, environ))
    assert (problem.line, problem.key) == (6, "destinations.A.port")
    assert "itself" in problem.message


# -- rules


def test_unreachable_rule_names_both_lines(environ: dict[str, str]) -> None:
    text = (
        "rules:\n  - name: all CR\n    when: {Modality: CR}\n"
        "  - name: chest CR\n    when: {Modality: CR, BodyPartExamined: CHEST}\n"
    )
    problem = only(checked(text, environ))
    assert (problem.line, problem.key, problem.severity) == (4, "rules.1.name", "error")
    assert "'chest CR' (line 4) can never fire" in problem.message
    assert "'all CR' (line 2)" in problem.message
    assert "Move it above 'all CR' (line 2)" in problem.remedy


def test_contradictory_conditions(environ: dict[str, str]) -> None:
    text = "rules:\n  - name: a\n    when:\n      Modality: {equals: CR, not: [CR, DX]}\n"
    problem = only(checked(text, environ))
    assert (problem.line, problem.key) == (4, "rules.0.when.Modality")
    assert "no value of Modality" in problem.message


def test_rule_for_an_ae_that_the_receiver_turns_away(environ: dict[str, str]) -> None:
    problem = only(checked("rules:\n  - name: a\n    when: {called_ae: OTHER}\n", environ))
    assert (problem.line, problem.key) == (3, "rules.0.when.called_ae")
    assert "receive.check_called_ae" in problem.message
    assert "PACS_NODE" in problem.message


def test_warnings_of_rules(environ: dict[str, str], tmp_path: Path) -> None:
    text = (
        "rules:\n  - {name: a, when: {Modality: CR}, tasks: [anomaly]}\n"
        "  - {name: b, when: {Modality: DX}, destinations: [A]}\n"
        "  - {name: c, when: {Modality: RG}, forward_original: true}\n"
        f"destinations:\n  A: {{type: folder, path: {tmp_path}}}\n  B: {{type: folder, path: {tmp_path}}}\n"
    )
    found = [(p.line, p.key, p.severity) for p in checked(text, environ)]
    assert found == [
        (2, "rules.0.tasks", "warning"),
        (3, "rules.1.destinations", "warning"),
        (4, "rules.2.forward_original", "warning"),
        (7, "destinations.B", "warning"),
    ]
    assert only(checked("rules: []\n", environ)).key == "rules"


# -- the commands


def invoke(environ: dict[str, str], *arguments: str) -> Any:
    return runner.invoke(app, list(arguments), env=environ)


def test_check_says_what_the_node_would_do(environ: dict[str, str]) -> None:
    result = invoke(environ, "check", "--config", str(EXAMPLE))
    assert result.exit_code == 0, result.output
    assert f"Listens as PACS_NODE on 127.0.0.1, port {environ['PACS_NODE_PORT']}" in result.stdout
    assert "makes bone_suppression, restoration, anomaly; results to PACS." in result.stdout
    assert "C-STORE to PACS at 192.0.2.10:104" in result.stdout


def test_check_tells_every_error_and_ends_with_2(environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("node:\n  ae_titel: A\nreceive:\n  max_pdu: 1\n")
    result = invoke(environ, "check", "--config", str(file))
    assert result.exit_code == 2
    assert f"{file}:2:3: error: node.ae_titel: this key is not known here\n    Did you mean" in result.stdout
    assert f"{file}:4:12: error: receive.max_pdu = 1: the number is out of range" in result.stdout
    assert result.stdout.endswith("2 errors, 0 warnings\n")
    as_json = invoke(environ, "check", "--json", "-c", str(file))
    assert as_json.exit_code == 2
    assert [(p["line"], p["key"]) for p in json.loads(as_json.stdout)] == [
        (2, "node.ae_titel"),
        (4, "receive.max_pdu"),
    ]


def test_check_without_any_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/etc/pacs-node/pacs-node.yaml").exists():
        pytest.skip("this machine has a configuration in /etc")
    monkeypatch.chdir(tmp_path)
    result = runner.invoke(app, ["check"], env={"PACS_NODE_CONFIG": None})
    assert result.exit_code == 2
    assert "pacs-node check --example > pacs-node.yaml" in result.stdout


def test_a_warning_alone_is_no_failure(environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "warn.yaml"
    file.write_text("rules: []\n")
    result = invoke(environ, "check", "--config", str(file))
    assert result.exit_code == 0
    assert "0 errors, 1 warning\n" in result.stdout


@pytest.mark.parametrize("command", ["check", "schema", "conformance", "explain"])
def test_help_has_an_example(command: str) -> None:
    result = runner.invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: pacs-node {command}" in result.stdout


def test_schema() -> None:
    result = runner.invoke(app, ["schema"])
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert schema == json_schema()
    assert set(schema["properties"]) == set(Config.model_fields)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Receive"]["properties"]["port"]["maximum"] == 65535
    when = schema["$defs"]["Rule"]["properties"]["when"]["anyOf"][0]
    keys = when["propertyNames"]["enum"]
    assert {"Modality", "PatientAge", "calling_ae"} <= set(keys)
    assert "ViewCodeSequence" not in keys
    for name, definition in schema["$defs"].items():
        for key, field in definition.get("properties", {}).items():
            assert field.get("description"), f"{name}.{key}"
    first = EXAMPLE.read_text().splitlines()[0]
    assert first == "# yaml-language-server: $schema=./pacs-node.schema.json"


def test_a_secret_is_never_shown(environ: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "secret.yaml"
    file.write_text(
        "destinations:\n  A: {type: stow, url: 'https://u:hunter2@a', password: hunter2, tokn: hunter2}\n"
    )
    for flag in ([], ["--json"]):
        result = invoke(environ, "check", "--config", str(file), *flag)
        assert result.exit_code == 2
        assert "hunter2" not in result.stdout


def test_what_a_busy_port_holder_is_called() -> None:
    from pacs_node.config.machine import _PACS_NODE

    assert _PACS_NODE.search("/opt/venv/bin/python /opt/venv/bin/pacs-node serve")
    assert _PACS_NODE.search("python3 -m pacs_node serve")
    assert not _PACS_NODE.search("/home/me/pacs-node/.venv/bin/python -m http.server")


def test_the_receiver_can_import_it_quickly() -> None:
    code = "import sys, pacs_node.config; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    heavy = {"onnxruntime", "rich", "cv2", "highdicom", "pynetdicom"} & set(loaded.stdout.split())
    assert not heavy


def test_port_probe_leaves_the_port_free(environ: dict[str, str]) -> None:
    checked("rules: [{name: all}]\n", environ)
    with socket.socket() as ours:
        ours.bind(("127.0.0.1", int(environ["PACS_NODE_PORT"])))


@pytest.mark.parametrize(
    ("callers", "forward", "messages"),
    [
        ("[{ae_title: A, host: 127.0.0.1, port: 104}]", "true", []),
        ("[{ae_title: A, host: 127.0.0.1}]", "true", ["only on the association of its request"]),
        (
            "[{ae_title: A, host: 127.0.0.1, port: 104}]",
            "false",
            ["removed after retention.days (7), and the rule 'all' does not forward it"],
        ),
    ],
)
def test_a_node_that_commits_is_told_where_it_could_not_keep_its_word(
    callers: str, forward: str, messages: list[str], environ: dict[str, str], tmp_path: Path
) -> None:
    text = (
        f"rules: [{{name: all, destinations: [F], forward_original: {forward}}}]\n"
        f"destinations: {{F: {{type: folder, path: {tmp_path}}}}}\n"
        f"receive: {{commitment: true, callers: {callers}}}\n"
    )
    found = [p for p in checked(text, environ) if p.key == "receive.commitment"]
    assert len(found) == len(messages)
    assert all(message in p.message for message, p in zip(messages, found, strict=True))
    assert {p.severity for p in found} <= {"warning"}


@pytest.mark.parametrize(
    ("more", "receive", "message"),
    [
        ("calling_ae_title: OTHER", "{}", "would call us OTHER"),
        ("timeout: 5", "{check_calling_ae: true, callers: [{ae_title: B}]}", "would come from A"),
        ("timeout: 5", "{check_calling_ae: true, callers: [{ae_title: A}]}", ""),
        ("calling_ae_title: OTHER", "{check_called_ae: false}", ""),
    ],
)
def test_a_commitment_whose_report_would_be_refused_is_an_error(
    more: str, receive: str, message: str, environ: dict[str, str]
) -> None:
    destination = f"{{type: dicom, ae_title: A, host: 127.0.0.1, port: 104, commitment: true, {more}}}"
    text = f"{RULE}destinations:\n  A: {destination}\nreceive: {receive}\n"
    found = [p for p in checked(text, environ) if p.key == "destinations.A.commitment"]
    if message:
        assert message in only(found).message
    else:
        assert not found
