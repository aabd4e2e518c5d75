"""The section ``metrics``: what the node tells Prometheus."""

from __future__ import annotations

from pydantic import Field

from pacs_node.config.section import Section
from pacs_node.config.types import Host, Port


class Metrics(Section):
    """Figures for Prometheus, at http://HOST:PORT/metrics; no patient data. A change needs a restart."""

    host: Host = Field(
        "127.0.0.1",
        description="Address to listen on; the default is this machine only. There is no password.",
    )
    port: Port = Field(9109, description="TCP port.")
