"""The files of deploy/: valid by the tools and schemas of those who read them, and of one mind."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pacs_node import __version__
from pacs_node.config import Config
from pacs_node.config.check import check
from pacs_node.config.load import parse
from pacs_node.pipeline import metrics
from tests.conftest import ROOT, absent
from tests.orthanc.harness import PASSWORD, USER, Orthanc, section, until

DEPLOY = ROOT / "deploy"
NODES = {
    "docker": DEPLOY / "docker" / "pacs-node.yaml",
    "kubernetes": DEPLOY / "kubernetes/base/pacs-node.yaml",
}
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
SECRETS = {"POSTGRES_PASSWORD": "one", "GRAFANA_PASSWORD": "two"}


def yaml(path: Path) -> Any:
    return YAML(typ="safe").load(path)


def node(name: str) -> Config:
    return parse(NODES[name].read_text(), str(NODES[name]), NODES[name].parent, {})[0]


def composed(*files: str) -> dict[str, Any]:
    """The services as the client of Compose reads them, its own validation included."""
    words = ["docker", "compose"]
    if not shutil.which("docker") or subprocess.run([*words, "version"], capture_output=True).returncode:
        words = [shutil.which("docker-compose") or ""]
        if not words[0]:
            absent("neither docker compose nor docker-compose is installed (make system-tools)")
    for file in files:
        words += ["-f", str(DEPLOY / "docker" / file)]
    done = subprocess.run([*words, "config"], capture_output=True, text=True, env={**os.environ, **SECRETS})
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = YAML(typ="safe").load(done.stdout)["services"]
    return services


# -- the nodes' own configurations


@pytest.mark.parametrize("name", NODES)
def test_the_configurations_pass_check(name: str, tmp_path: Path) -> None:
    text = NODES[name].read_text().replace("/var/lib/pacs-node", str(tmp_path / "state"))
    problems = check(*parse(text, str(NODES[name]), NODES[name].parent, {}), environ={})
    # The names of a network that is not here are all that may be amiss.
    assert {problem.key for problem in problems} <= {f"destinations.{n}.host" for n in ("ORTHANC", "PACS")}
    assert "models" not in str(problems)


# -- compose


def test_compose_is_valid_and_agrees_with_the_node() -> None:
    services = composed("compose.yaml")
    assert set(services) == {"node", "orthanc", "postgres", "ohif", "prometheus", "grafana"}
    config = node("docker")
    assert config.metrics is not None
    compose = yaml(DEPLOY / "docker" / "compose.yaml")["services"]
    assert compose["node"]["ports"] == [f"{config.receive.port}:{config.receive.port}"]
    mounted = {volume.split(":")[1] for volume in compose["node"]["volumes"]}
    assert mounted == {str(config.node.state_dir), "/etc/pacs-node/pacs-node.yaml"}
    for service in compose.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DEPLOY / "docker" / source).exists(), volume
    archive = json.loads((DEPLOY / "docker" / "orthanc.json").read_text())
    (destination,) = config.destinations.values()
    assert destination.type == "dicom"
    assert (destination.ae_title, destination.host) == (archive["DicomAet"], "orthanc")
    assert destination.port == archive["DicomPort"]
    # It reports on storage commitments to whom it knows under our title.
    known = archive["DicomModalities"][config.node.ae_title]
    assert (known["AET"], known["Host"], known["Port"]) == (config.node.ae_title, "node", config.receive.port)
    assert destination.commitment
    assert known["AllowStorageCommitment"]
    nginx = (DEPLOY / "docker" / "nginx.conf").read_text()
    assert f"http://orthanc:{archive['HttpPort']}{archive['DicomWeb']['Root']}" in nginx
    assert f"'{archive['DicomWeb']['Root'].rstrip('/')}'" in (DEPLOY / "ohif" / "app-config.js").read_text()
    (scrape,) = yaml(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert scrape["static_configs"] == [{"targets": [f"node:{config.metrics.port}"]}]


def test_the_gpu_override_asks_for_a_gpu() -> None:
    service = composed("compose.yaml", "compose.gpu.yaml")["node"]
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert service["build"]["args"] == {"EXTRA": "gpu"}
    assert service["image"].endswith("-gpu")


def test_no_password_is_left_out_unnoticed() -> None:
    text = (DEPLOY / "docker" / "compose.yaml").read_text()
    for name in SECRETS:
        assert f"${{{name}:?" in text
        assert re.search(rf"(?m)^{name}=$", (DEPLOY / "docker" / ".env.example").read_text())


def test_images_are_pinned_and_the_versions_are_ours() -> None:
    images = [service["image"] for service in yaml(DEPLOY / "docker" / "compose.yaml")["services"].values()]
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    images += re.findall(r"(?m)^FROM (\S+:\S+)", dockerfile)
    assert len(images) == 10
    for image in images:
        assert re.search(r":v?[a-z]*-?\d+[\w.-]*\d", image), f"{image} is not pinned"
    own = [image for image in images if image.startswith("pacs-node")]
    assert [image.split(":")[1] for image in own] == [__version__] * 3
    targets = re.findall(r"(?m)^FROM \S+ AS (\S+)", dockerfile)
    for service in yaml(DEPLOY / "docker" / "compose.yaml")["services"].values():
        if "build" in service:
            assert service["build"]["target"] in targets


def test_the_dockerfile_copies_what_is_there() -> None:
    dockerfile = (DEPLOY / "docker" / "Dockerfile").read_text()
    let_in = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().split()
    copied = [word for line in re.findall(r"(?m)^COPY (?!--)(.*) \S+$", dockerfile) for word in line.split()]
    assert "pyproject.toml" in copied
    for source in copied:
        if source != "README.md":  # comes with the release
            assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in let_in, f"{source} is kept out of the build"
    port = node("docker").receive.port
    assert re.search(rf"(?m)^EXPOSE {port} ", dockerfile)


# -- figures


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "pacs-node.json").read_text())
    asked = set(re.findall(r"pacs_node_\w+", json.dumps(board)))
    described = set(re.findall(r"(?m)^    (pacs_node_\w+)", metrics.__doc__ or ""))
    assert {re.sub(r"_(sum|count|bucket)$", "", name) for name in asked} == described
    (source,) = yaml(DEPLOY / "grafana/provisioning/datasources.yaml")["datasources"]
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {source["uid"]}


# -- systemd


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_takes_the_units(unit: Path, tmp_path: Path, require_tool: Callable[[str], str]) -> None:
    tool = require_tool("systemd-analyze")
    # It wants the program to be there.
    text, count = re.subn("/opt/pacs-node/venv/bin/pacs-node", "/bin/true", unit.read_text())
    assert count
    copy = tmp_path / unit.name
    copy.write_text(text)
    done = subprocess.run([tool, "verify", str(copy)], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    command = [tool, "security", "--offline=true", "--threshold=25", str(copy)]
    rated = subprocess.run(command, capture_output=True, text=True)
    assert rated.returncode == 0, rated.stdout[-300:]
    assert "StateDirectory=pacs-node\n" in text  # /var/lib/pacs-node, the default of node.state_dir
    assert Config().node.state_dir == Path("/var/lib/pacs-node")


# -- Kubernetes


def test_the_manifests_fit_the_schemas_of_kubernetes() -> None:
    files = [DEPLOY / "kubernetes/base" / name for name in yaml(_base())["resources"]]
    for file in files:
        _validate(yaml(file))
    stateful = yaml(DEPLOY / "kubernetes/base/statefulset.yaml")["spec"]["template"]["spec"]
    (container,) = stateful["containers"]
    config = node("kubernetes")
    assert config.metrics is not None
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"dicom": config.receive.port, "metrics": config.metrics.port}
    assert str(config.node.state_dir) in {mount["mountPath"] for mount in container["volumeMounts"]}
    uid = re.search(r"--uid (\d+)", (DEPLOY / "docker" / "Dockerfile").read_text())
    assert uid is not None
    assert stateful["securityContext"]["runAsUser"] == int(uid[1])
    (image,) = yaml(_base())["images"]
    assert image["newTag"] == __version__


@pytest.mark.parametrize("overlay", ["base", "gpu"])
def test_kustomize_builds_the_manifests(overlay: str) -> None:
    tool = shutil.which("kubectl")
    if tool is None:  # in no package of Debian 12 that is recent enough
        pytest.skip("kubectl is not installed")
    command = [tool, "kustomize", str(DEPLOY / "kubernetes" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = list(YAML(typ="safe").load_all(done.stdout))
    assert {one["kind"] for one in built} == {"Namespace", "ConfigMap", "Service", "StatefulSet"}
    for one in built:
        _validate(one)
    (stateful,) = [one for one in built if one["kind"] == "StatefulSet"]
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    gpu = "nvidia.com/gpu" in container["resources"]["limits"]
    assert gpu == (overlay == "gpu") == container["image"].endswith("-gpu")


def _base() -> Path:
    return DEPLOY / "kubernetes/base/kustomization.yaml"


def _validate(manifest: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the schemas' own library
        import kubernetes_validate

        kubernetes_validate.validate(manifest, "1.32", strict=True)


# -- Orthanc


@pytest.mark.slow
def test_orthanc_runs_by_the_example(
    tmp_path: Path, require_tool: Callable[[str], str], free_port: Callable[[], int]
) -> None:
    """Only places, ports, passwords and models are other than in the file."""
    example = json.loads((DEPLOY / "orthanc.json").read_text())
    for plugin in example["Plugins"]:
        if not Path(plugin).exists():
            absent(f"{plugin} is not installed (make system-tools)")
    orthanc = Orthanc(require_tool("Orthanc"), tmp_path / "orthanc", free_port(), free_port())
    mine = section(tmp_path)
    node = {**example["PacsNode"], **{key: mine[key] for key in ("python", "node", "models", "receive")}}
    own = ("StorageDirectory", "IndexDirectory", "HttpPort", "DicomPort", "RegisteredUsers", "PythonScript")
    orthanc.settings = {
        **example,
        **{key: orthanc.settings[key] for key in own},
        "PacsNode": node,
    }
    assert orthanc.settings["RegisteredUsers"] == {USER: PASSWORD}
    assert (ROOT / "orthanc" / Path(example["PythonScript"]).name).exists()
    try:
        orthanc.start()
        status = until(lambda: orthanc.get("/pacs-node/status"), lambda: orthanc.log)
        assert "chest radiographs" in json.dumps(status), status
    finally:
        orthanc.close()
