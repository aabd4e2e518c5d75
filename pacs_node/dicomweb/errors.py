"""What a request can be told: a status, what is wrong, why, and what to do."""

from __future__ import annotations

from pacs_node.errors import PacsNodeError


class RequestError(PacsNodeError):
    """A request that is not done. ``status`` is the HTTP status; the texts go into the JSON body, and never
    quote a value of a header or of a query.
    """

    def __init__(self, status: int, error: str, reason: str, remedy: str) -> None:
        self.status, self.error, self.reason, self.remedy = status, error, reason, remedy
        super().__init__(f"{error}: {reason}. {remedy}")

    def body(self) -> dict[str, str | int]:
        """As JSON."""
        return {"status": self.status, "error": self.error, "reason": self.reason, "remedy": self.remedy}


def bad_request(reason: str, remedy: str) -> RequestError:
    """400."""
    return RequestError(400, "bad request", reason, remedy)


def not_found(reason: str, remedy: str = "Ask with QIDO-RS (/studies) what is held") -> RequestError:
    """404."""
    return RequestError(404, "not found", reason, remedy)


def not_acceptable(reason: str, remedy: str) -> RequestError:
    """406."""
    return RequestError(406, "not acceptable", reason, remedy)


def too_large(reason: str, remedy: str) -> RequestError:
    """413."""
    return RequestError(413, "payload too large", reason, remedy)


def unsupported(reason: str, remedy: str) -> RequestError:
    """415."""
    return RequestError(415, "unsupported media type", reason, remedy)
