"""pacs-node: the AI node for chest radiographs that stands beside a PACS. Research software."""

__version__ = "0.1.0"
