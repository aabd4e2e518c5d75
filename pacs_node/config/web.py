"""The section ``web``: the node's own DICOMweb service."""

from __future__ import annotations

from pydantic import Field, StrictInt, StrictStr

from pacs_node.config.section import Section
from pacs_node.config.types import Host, Origin, Port, Seconds, Variable


class Web(Section):
    """The node's DICOMweb service (STOW-RS, QIDO-RS, WADO-RS), at http://HOST:PORT/dicom-web."""

    host: Host = Field(
        "127.0.0.1",
        description="Address to listen on; the default is this machine only. 0.0.0.0 is every IPv4 "
        "interface: then ask for a password or a token, and put a reverse proxy with TLS before it.",
    )
    port: Port = Field(8080, description="TCP port.")
    origins: tuple[Origin, ...] = Field(
        (),
        description="Origins of viewers that may ask (CORS), such as https://viewer.local; '*' is any.",
    )
    username: StrictStr | None = Field(
        None, min_length=1, max_length=256, description="User name that is asked for (HTTP Basic)."
    )
    password_env: Variable | None = Field(
        None,
        description="Environment variable with its password; the secret itself never stands in this file.",
    )
    token_env: Variable | None = Field(
        None, description="Environment variable with a bearer token that is taken as well, or instead."
    )
    max_request_mb: StrictInt = Field(
        2048,
        ge=1,
        le=1 << 20,
        description="Largest STOW-RS request; receive.max_object_mb bounds each instance in it.",
    )
    timeout: Seconds = Field(60.0, description="Seconds to wait for the rest of a request that has begun.")
