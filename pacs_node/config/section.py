"""What every section of the configuration has in common."""

from __future__ import annotations

from typing import Any, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic import model_validator as validator


def _has_parts(annotation: Any) -> bool:
    return get_origin(annotation) in (dict, tuple) or (
        isinstance(annotation, type) and issubclass(annotation, BaseModel)
    )


class Section(BaseModel):
    """A part of the file: strict, frozen, and known to editors by its descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @validator(mode="before")
    @classmethod
    def _without_emptied_parts(cls, data: Any) -> Any:
        """A section or list whose every line is commented out is null in YAML: it is as if left out."""
        if not isinstance(data, dict):
            return data
        fields = cls.model_fields
        return {
            key: value
            for key, value in data.items()
            if value is not None or key not in fields or not _has_parts(fields[key].annotation)
        }
