"""The places that results can be sent to, as they stand under ``destinations`` in the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictStr

from pacs_node.config.section import Section
from pacs_node.config.types import AeTitle, Host, LocalPath, Port, Seconds, Url, Variable


class _Destination(Section):
    """What every kind of destination can be told about the reports that it gets."""

    sr: Literal["comprehensive3d", "comprehensive", "none"] = Field(
        "comprehensive3d",
        description="Reports as Comprehensive 3D SR, as Comprehensive SR (which older systems know), or not "
        "at all.",
    )
    report_page: StrictBool = Field(
        False,
        description="Send reports as pages of text too (Secondary Capture), for a system that cannot show "
        "an SR.",
    )


class CommittingDestination(_Destination):
    """A destination that can be asked for storage commitment."""

    commitment: StrictBool = Field(
        False,
        description="Ask for storage commitment: an object counts as delivered only when the destination "
        "has committed to keep it. It must know where to report: this node's AE title, address and "
        "receive.port (Orthanc: AllowStorageCommitment), or those of the Orthanc that sends it on.",
    )
    commitment_timeout: Seconds = Field(
        600.0,
        description="Seconds to wait for its report on a commitment before the object is sent again.",
    )


class DicomDestination(CommittingDestination):
    """A DICOM destination, reached by C-STORE."""

    type: Literal["dicom"] = Field(description="C-STORE to an AE.")
    ae_title: AeTitle = Field(description="AE title of the destination (called AE).")
    host: Host = Field(description="Its host name or address.")
    port: Port = Field(description="Its port.")
    calling_ae_title: AeTitle | None = Field(
        None, description="AE title that we call with, if not node.ae_title (Orthanc: LocalAet)."
    )
    timeout: Seconds = Field(30.0, description="Seconds to wait for it (Orthanc: DicomScuTimeout).")


class StowDestination(_Destination):
    """A DICOMweb destination, reached by STOW-RS."""

    type: Literal["stow"] = Field(description="STOW-RS to a DICOMweb server.")
    url: Url = Field(description="Address of the DICOMweb service, such as https://pacs.local/dicom-web.")
    username: StrictStr | None = Field(None, description="User name for HTTP Basic authentication.")
    password_env: Variable | None = Field(
        None,
        description="Environment variable with the password; the secret itself never stands in this file.",
    )
    token_env: Variable | None = Field(None, description="Environment variable with a bearer token.")
    timeout: Seconds = Field(60.0, description="Seconds to wait for the server.")
    verify: StrictBool | LocalPath = Field(
        True,
        description="Check the server's certificate: true, false, or the file of the certificate authority.",
    )


class FolderDestination(_Destination):
    """A folder that results are written to."""

    type: Literal["folder"] = Field(description="Write files to a folder.")
    path: LocalPath = Field(description="The folder; it is made if its parent exists.")


class OrthancDestination(CommittingDestination):
    """An Orthanc server, reached over its REST API; and from there, if named, one of its own peers."""

    type: Literal["orthanc"] = Field(description="Store in an Orthanc server.")
    url: Url | None = Field(
        None,
        description="Address of its REST API, such as http://127.0.0.1:8042; if not given, the Orthanc that "
        "runs this node as its plugin. Results of a study that was deleted there are then not written back.",
    )
    username: StrictStr | None = Field(None, description="User name for HTTP Basic authentication.")
    password_env: Variable | None = Field(
        None,
        description="Environment variable with the password; the secret itself never stands in this file.",
    )
    modality: StrictStr | None = Field(
        None, min_length=1, description="Have Orthanc send it on to this one of its DicomModalities."
    )
    server: StrictStr | None = Field(
        None, min_length=1, description="Have Orthanc send it on to this one of its DicomWeb Servers."
    )
    timeout: Seconds = Field(60.0, description="Seconds to wait for it.")


Destination = Annotated[
    DicomDestination | StowDestination | FolderDestination | OrthancDestination, Field(discriminator="type")
]
