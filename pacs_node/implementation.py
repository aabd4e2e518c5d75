"""Who this implementation says it is, in association negotiation and in the file meta of every file it
writes.

PS3.7 D.3.3.2 (Implementation Identification Notification) and PS3.10 7.1 (file meta information). The class
UID stays the same for every version of the node; the version name says which one.
"""

from __future__ import annotations

import uuid

from pacs_node import __version__

#: A UUID-derived UID (PS3.5 B.2) of the project's address, so it needs no registered root and never changes.
IMPLEMENTATION_CLASS_UID = (
    f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, 'https://github.com/pacs-node/pacs-node').int}"
)

#: At most 16 characters (SH).
IMPLEMENTATION_VERSION_NAME = f"PACSNODE_{__version__}"[:16]
