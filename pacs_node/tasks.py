"""The names of the three tasks, as they stand in configuration, file names and reports."""

from __future__ import annotations

from enum import StrEnum


class Task(StrEnum):
    """What the node can make of a frontal chest radiograph."""

    BONE_SUPPRESSION = "bone_suppression"
    RESTORATION = "restoration"
    ANOMALY = "anomaly"
