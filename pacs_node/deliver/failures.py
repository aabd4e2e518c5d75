"""What storage statuses mean, and how the failures of one delivery become one DeliveryError."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pacs_node.deliver import Report
from pacs_node.errors import DeliveryError

#: PS3.7 annex C, PS3.4 table B.2-1 and, of storage commitment, PS3.3 C.14.1.1; PS3.18 uses the same numbers
#: as Failure Reason. Ranges: the first match counts.
_MEANINGS: tuple[tuple[int, int, str, bool], ...] = (  # first, last, meaning, transient
    (0x0106, 0x0106, "invalid attribute value", False),
    (0x0110, 0x0110, "processing failure", True),
    (0x0112, 0x0112, "no such object instance", True),
    (0x0115, 0x0115, "invalid argument value", False),
    (0x0117, 0x0117, "invalid SOP instance", False),
    (0x0118, 0x0118, "no such SOP class", False),
    (0x0119, 0x0119, "another SOP class than that of the instance", False),
    (0x0122, 0x0122, "SOP class not supported", False),
    (0x0124, 0x0124, "not authorised", False),
    (0x0131, 0x0131, "duplicate transaction UID", True),
    (0x0210, 0x0212, "the request is not understood", False),
    (0x0213, 0x0213, "resource limitation", True),
    (0xA700, 0xA7FF, "out of resources", True),
    (0xA900, 0xA9FF, "the data set does not match its SOP class", False),
    (0xC000, 0xCFFF, "the data set cannot be understood", False),
)


def is_warning(status: int) -> bool:
    """Whether the destination has the object, if not as it was sent.

    0x0001, 0x0107, 0x0116 and 0xB000 to 0xBFFF by the standard; and 0x0111, duplicate SOP instance, with
    which some archives answer what they hold: our results have the same UID only if they are the same.
    """
    return status in (0x0001, 0x0107, 0x0111, 0x0116) or 0xB000 <= status <= 0xBFFF


def meaning(status: int) -> tuple[str, bool]:
    """A failure status in words, and whether it is transient. An unknown one is: retries end by
    themselves.
    """
    for first, last, words, transient in _MEANINGS:
        if first <= status <= last:
            return f"0x{status:04X} {words}", transient
    return f"0x{status:04X}", True


@dataclass(frozen=True)
class Failure:
    """Why one object was not taken.

    ``comment`` is what the destination wrote itself. It may quote the header, so it is for the eyes of who
    sends (the report) and not for the error, which is logged.
    """

    sop_instance_uid: str
    reason: str
    transient: bool
    comment: str = ""


class Failures:
    """Gathers what fails while the other files go on, and reports every file."""

    def __init__(self, destination: str, report: Report) -> None:
        self._destination, self._report = destination, report
        self._found: list[Failure] = []

    def taken(self, path: Path) -> None:
        """The destination has the file."""
        self._report(path, None)

    def add(self, path: Path, failure: Failure) -> None:
        """The destination does not have the file."""
        self._found.append(failure)
        comment = f" ({failure.comment})" if failure.comment else ""
        self._report(path, failure.reason + comment)

    def raise_if_any(self) -> None:
        """Raise DeliveryError naming them all."""
        if self._found:
            reasons = "; ".join(f"{f.sop_instance_uid}: {f.reason}" for f in self._found)
            raise DeliveryError(self._destination, reasons, transient=any(f.transient for f in self._found))
