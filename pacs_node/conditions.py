"""What a header says about the patient and the exposure that a model may be conditioned on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Conditions:
    """Age in years, Patient's Sex, View Position; ``None`` where the header does not say, never a guess."""

    age_years: float | None = None
    sex: Literal["M", "F"] | None = None
    view: Literal["PA", "AP"] | None = None
