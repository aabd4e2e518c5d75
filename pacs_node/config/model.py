"""The configuration as it stands in ``pacs-node.yaml``: every key, its meaning, its range and its default.

The descriptions are the reference: ``pacs-node schema`` prints them as a JSON Schema for editors. The models
are strict (an unknown key is an error) and frozen. Names follow DICOM and Orthanc. Read a file with
``config.load``, which gives every problem a line and a remedy; a model built by hand raises pydantic's
ValidationError.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StrictBool, StrictInt, StrictStr
from pydantic import model_validator as validator

from pacs_node.config.consistency import inconsistencies
from pacs_node.config.destinations import Destination, DicomDestination, FolderDestination, StowDestination
from pacs_node.config.metrics import Metrics
from pacs_node.config.section import Section
from pacs_node.config.types import (
    AeTitle,
    DatabaseUrl,
    DestinationName,
    Host,
    LocalPath,
    Port,
    RuleName,
    Scalar,
    Seconds,
    problem,
)
from pacs_node.config.web import Web
from pacs_node.tasks import SamplerName, Task

__all__ = [
    "Caller",
    "Condition",
    "Config",
    "Deliver",
    "Destination",
    "DicomDestination",
    "Engine",
    "FolderDestination",
    "Infer",
    "Limits",
    "Models",
    "Node",
    "Receive",
    "Retention",
    "Retry",
    "Rule",
    "Samplers",
    "Scalar",
    "Steps",
    "StowDestination",
    "Study",
    "Timeouts",
    "Web",
]

Provider = Literal["tensorrt", "cuda", "openvino", "cpu"]


class Node(Section):
    """Who this node is and where it keeps its state."""

    ae_title: AeTitle = Field("PACS_NODE", description="The node's own AE title (Orthanc: DicomAet).")
    state_dir: LocalPath = Field(
        Path("/var/lib/pacs-node"),
        description="Folder of everything received, made and queued; a local disk with room for some days. "
        "Environment: PACS_NODE_STATE_DIR.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is logged. Patients' names, IDs and dates of birth never are."
    )
    organisation: StrictStr | None = Field(
        None,
        max_length=64,
        description="Institution that runs the node, written to the equipment of results (optional).",
    )


class Caller(Section):
    """A system that may call the node."""

    ae_title: AeTitle = Field(description="The calling AE title.")
    host: Host | None = Field(
        None,
        description="If given, the call must also come from this address (Orthanc: DicomCheckModalityHost).",
    )
    port: Port | None = Field(
        None,
        description="With a host: where it listens for the reports on storage commitments that it asks for.",
    )


class Timeouts(Section):
    """How long the receiver waits, in seconds."""

    acse: Seconds = Field(30.0, description="For association messages (request, release).")
    dimse: Seconds = Field(60.0, description="For the rest of a DIMSE message that has begun.")
    network: Seconds = Field(
        60.0,
        description="For anything at all on an idle association, before it is closed "
        "(Orthanc: DicomScpTimeout).",
    )


class Receive(Section):
    """The DICOM receiver (Storage and Verification SCP)."""

    host: Host = Field(
        "0.0.0.0",  # noqa: S104  modalities are on the network; the check of callers is what limits them
        description="Address to listen on; 0.0.0.0 is every IPv4 interface. Environment: PACS_NODE_HOST.",
    )
    port: Port = Field(
        11112,
        description="TCP port (Orthanc: DicomPort); below 1024 it needs a privilege. Environment: "
        "PACS_NODE_PORT.",
    )
    check_called_ae: StrictBool = Field(
        True, description="Refuse callers that do not call us node.ae_title (Orthanc: DicomCheckCalledAet)."
    )
    check_calling_ae: StrictBool = Field(
        False,
        description="Refuse callers that are not in receive.callers (Orthanc: DicomAlwaysAllowStore false).",
    )
    callers: tuple[Caller, ...] = Field(
        (), description="The known callers; each an ae_title and, if wanted, a host, and a port there."
    )
    commitment: StrictBool = Field(
        False,
        description="Commit to keep what is held, if a caller asks for it (Storage Commitment SCP). Objects "
        "are held until retention.days have passed and everything was delivered.",
    )
    max_associations: StrictInt = Field(
        100,
        ge=1,
        le=1000,
        description="Associations open at once; more are refused as a transient condition.",
    )
    max_pdu: StrictInt = Field(
        131_072,
        ge=4096,
        le=16_777_216,
        description="Largest PDU that we offer to receive, in bytes (Orthanc: MaximumPduLength).",
    )
    timeouts: Timeouts = Field(Timeouts(), description="How long the receiver waits.")
    min_free_disk_mb: StrictInt = Field(
        1024,
        ge=0,
        description="With less free space on the state folder's disk, new objects are refused (0xA700), so "
        "that "
        "the sender tries again.",
    )
    max_object_mb: StrictInt = Field(512, ge=1, le=4096, description="Larger objects are refused.")


class Limits(Section):
    """Bounds on what is analysed, so that no input can exhaust the machine."""

    max_pixels: StrictInt = Field(
        100_000_000,
        ge=4096,
        le=2_000_000_000,
        description="Largest image that is analysed, in rows x columns.",
    )
    check_content: StrictBool = Field(
        True,
        description="Refuse an image whose pixels do not look like an upright frontal chest, whatever its "
        "header says.",
    )


class Study(Section):
    """When a study counts as complete."""

    quiet_seconds: float = Field(
        30.0,
        ge=0,
        le=86_400,
        strict=True,
        description="The report is made when nothing has come for this study for so long (Orthanc: "
        "StableAge). "
        "It is made again, naming its predecessor, when a late image changes it.",
    )


class Models(Section):
    """Which model does each task. ``default`` is the only or the shipped one (``pacs-node models list``)."""

    folders: tuple[LocalPath, ...] = Field(
        (),
        description="Folders of further models, beside the shipped ones. Environment: PACS_NODE_MODELS.",
    )
    bone_suppression: StrictStr = Field("default", min_length=1, description="Model for bone suppression.")
    restoration: StrictStr = Field("default", min_length=1, description="Model for restoration.")
    anomaly: StrictStr = Field("default", min_length=1, description="Model for anomaly scores.")

    def name_for(self, task: Task) -> str | None:
        """The configured model of a task; None means the default one."""
        name: str = getattr(self, task.value)
        return None if name == "default" else name


class Steps(Section):
    """Sampling steps per task, in place of those on the model's card: fewer are faster, and less faithful."""

    bone_suppression: StrictInt | None = Field(None, ge=1, le=1000, description="Steps of bone suppression.")
    restoration: StrictInt | None = Field(None, ge=1, le=1000, description="Steps of restoration.")


class Samplers(Section):
    """The sampler of a task's model, in place of that on its card; not every model can do each."""

    bone_suppression: SamplerName | None = Field(None, description="The sampler of bone suppression.")
    restoration: SamplerName | None = Field(None, description="The sampler of restoration.")


class Infer(Section):
    """How the models run."""

    providers: tuple[Provider, ...] = Field(
        ("tensorrt", "cuda", "openvino", "cpu"),
        min_length=1,
        description="ONNX Runtime execution providers in order of preference; if not given, the fastest "
        "that is there (tensorrt where its engines were built: pacs-node models verify --build).",
    )
    threads: StrictInt = Field(
        0, ge=0, le=1024, description="Processor threads of a model; 0 is one per core."
    )
    precision: Literal["auto", "f32", "bf16", "f16", "int8"] = Field(
        "auto",
        description="auto: the fastest arithmetic that a model and the hardware have (for a model of "
        "over 1 GiB bf16 even where f32 is faster, as it needs less memory); f32: no other; bf16 "
        "(OpenVINO), f16 (GPU) and int8 (processors): this one, where the model has it.",
    )
    steps: Steps = Field(Steps(), description="Sampling steps, where they differ from the model's card.")
    samplers: Samplers = Field(Samplers(), description="Samplers, where they differ from the model's card.")


def _shorthand(value: Any) -> Any:
    """A scalar means equals, a list means one_of."""
    if isinstance(value, Condition | dict):
        return value
    if isinstance(value, list | tuple):
        return {"one_of": value}
    if isinstance(value, str | int | float):
        return {"equals": value}
    raise problem(
        "there is no value to compare with",
        "Give a value, a list, or one of equals, one_of, pattern, range, present, not",
    )


class Condition(Section):
    """What an attribute's value must be; where several operators are given, all must hold.

    An absent or empty attribute fulfils only ``present: false`` and ``not``. A multi-valued one matches if
    any of its values does.
    """

    equals: Scalar | None = Field(None, description="Equal to this value.")
    one_of: Annotated[tuple[Scalar, ...], Field(min_length=1)] | None = Field(
        None, description="Equal to one of these values."
    )
    pattern: StrictStr | None = Field(
        None,
        min_length=1,
        max_length=500,
        description="A Python regular expression, found anywhere in the value; (?i) at its start ignores "
        "case.",
    )
    range: tuple[Scalar | None, Scalar | None] | None = Field(
        None,
        description="From the first to the second value, both included; null leaves a side open. For "
        "numbers, "
        "ages in years, dates and times.",
    )
    present: StrictBool | None = Field(None, description="true: there with a value. false: absent or empty.")
    not_: Annotated[Condition, BeforeValidator(_shorthand)] | None = Field(
        None, alias="not", description="The opposite of this condition: a value, a list or operators."
    )

    @validator(mode="after")
    def _says_something(self) -> Self:
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise problem(
                "the condition says nothing", "Use one of equals, one_of, pattern, range, present, not"
            )
        return self


When = Annotated[Condition, BeforeValidator(_shorthand)]


class Rule(Section):
    """What is done with an object. The first rule whose conditions all hold is the one that fires."""

    name: RuleName = Field(description="The rule's name, as explain and the logs give it; unique.")
    when: dict[StrictStr, When] = Field(
        default_factory=dict,
        description="Conditions, all of which must hold: a DICOM keyword (such as BodyPartExamined), "
        "calling_ae or "
        "called_ae; then a value, a list of values, or operators. Without any, the rule matches every "
        "object.",
    )
    tasks: tuple[Task, ...] = Field(
        (), description="What to make of it: bone_suppression, restoration, anomaly. None: only forward."
    )
    destinations: tuple[StrictStr, ...] = Field(
        (), description="Where results (and the original, if forwarded) go; names from destinations."
    )
    forward_original: StrictBool = Field(
        False,
        description="Send the received object on too, unchanged; also one that is refused for analysis.",
    )


class Retry(Section):
    """When a delivery that failed is tried again: the wait doubles from first_seconds up to max_seconds."""

    first_seconds: Seconds = Field(5.0, description="The first wait.")
    max_seconds: Seconds = Field(600.0, description="The longest wait.")
    attempts: StrictInt = Field(
        600,
        ge=1,
        le=1_000_000,
        description="Attempts before a delivery is given up as a dead letter (600 is about four days).",
    )

    def wait(self, attempt: int) -> float:
        """Seconds from an attempt, the first being 1, to the next."""
        return min(self.max_seconds, self.first_seconds * 2.0 ** min(attempt - 1, 30))


class Deliver(Section):
    """Delivery of results and originals."""

    retry: Retry = Field(Retry(), description="When a failed delivery is tried again.")


class Engine(Section):
    """The durable queue."""

    database: DatabaseUrl | None = Field(
        None,
        description="postgresql://… to keep jobs there; null is an SQLite file in node.state_dir. "
        "Environment: PACS_NODE_DATABASE.",
    )


class Retention(Section):
    """How long finished objects stay on this node."""

    days: StrictInt = Field(
        7, ge=1, le=3650, description="Days that an object and its results stay after all is delivered."
    )


class Config(Section):
    """The configuration of a pacs-node."""

    node: Node = Field(Node(), description="Who this node is and where it keeps its state.")
    receive: Receive = Field(Receive(), description="The DICOM receiver.")
    web: Web | None = Field(
        None, description="The node's own DICOMweb service; without this section there is none."
    )
    metrics: Metrics | None = Field(
        None, description="Figures for Prometheus; without this section there are none."
    )
    limits: Limits = Field(Limits(), description="Bounds on what is analysed.")
    study: Study = Field(Study(), description="When a study counts as complete.")
    models: Models = Field(Models(), description="Which model does each task.")
    infer: Infer = Field(Infer(), description="How the models run.")
    destinations: dict[DestinationName, Destination] = Field(
        default_factory=dict, description="Named places that results are sent to."
    )
    rules: tuple[Rule, ...] = Field(
        (),
        description="What is done with which object; the first that matches fires. None: objects are kept "
        "only.",
    )
    deliver: Deliver = Field(Deliver(), description="Delivery of results and originals.")
    engine: Engine = Field(Engine(), description="The durable queue.")
    retention: Retention = Field(Retention(), description="How long finished objects stay on this node.")

    @validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        for found in inconsistencies(self.model_dump(by_alias=True)):
            raise problem(f"{'.'.join(map(str, found.where))}: {found.message}", found.remedy)
        return self
