"""Synthetic chest radiographs with known bone and soft tissue, for the demonstration and the tests."""

from pacs_node.phantom.chest import Phantom, PhantomImages

__all__ = ["Phantom", "PhantomImages"]
