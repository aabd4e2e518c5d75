"""The configuration: what may stand in it (model), how it is read (load), what the machine tells of it
(check).
"""

from pacs_node.config.load import load
from pacs_node.config.model import Config

__all__ = ["Config", "load"]
