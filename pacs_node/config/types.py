"""The values that recur in the configuration, each with its rule, the source of the rule and the remedy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr
from pydantic import ValidationInfo as Info
from pydantic_core import PydanticCustomError

# The type of every error that already speaks the administrator's language; load.py passes it on as it is.
OWN = "pacs_node"


def problem(message: str, remedy: str) -> PydanticCustomError:
    """An error of a value: what is wrong with it, and what to do."""
    # The context's names stand in the template, because a message may itself hold braces.
    return PydanticCustomError(OWN, "{message}", {"message": message, "remedy": remedy})


def ae_title(text: str) -> str:
    """An AE title without its outer spaces, which are not significant (PS3.5 Table 6.2-1, VR AE).

    Raises PydanticCustomError with the rule that the text breaks.
    """
    title = text.strip(" ")
    remedy = "Give 1 to 16 ASCII characters such as PACS_NODE, the same as at the other system"
    if not title:
        raise problem(
            "the AE title is empty; PS3.5 (VR AE) asks for one character other than a space", remedy
        )
    if len(title) > 16:
        message = f"the AE title has {len(title)} characters; PS3.5 (VR AE) allows 16"
        raise problem(message, f"Shorten it, for example to {title[:16].rstrip(' _-')}")
    for character in title:
        if character == "\\":
            raise problem(
                "the AE title holds a backslash, which PS3.5 (VR AE) reserves as the separator", remedy
            )
        if not character.isascii():
            raise problem(
                f"the AE title holds {character!r}; PS3.5 (VR AE) allows ASCII characters only", remedy
            )
        if not character.isprintable():
            raise problem("the AE title holds a control character, which PS3.5 (VR AE) excludes", remedy)
    return title


def _path(value: Any, info: Info) -> Path:
    """A path; a relative one counts from the configuration file's folder (validation context ``folder``)."""
    if isinstance(value, Path):
        path = value
    elif isinstance(value, str) and value.strip() and "\0" not in value:
        path = Path(value)
    else:
        raise problem("this is not a path", "Give a path such as /var/lib/pacs-node")
    try:
        path = path.expanduser()
    except RuntimeError:
        raise problem(
            "the home folder of that user is not known", "Give the path from the root, /…"
        ) from None
    folder = (info.context or {}).get("folder")
    return path if path.is_absolute() or folder is None else Path(folder) / path


def _url(text: str) -> str:
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise problem("this is not an http or https address", "Give it as http://host:8042/dicom-web")
    if parts.username or parts.password:
        raise problem(
            "the address holds a user name or password",
            "Write them as username and password_env (the name of an environment variable)",
        )
    return text.rstrip("/")


def _database(text: str) -> str:
    if not text.startswith(("postgresql://", "postgresql+psycopg://", "sqlite:///")):
        raise problem(
            "this is not the address of a database",
            "Give postgresql://user@host/database, or leave the key out for a file in node.state_dir",
        )
    return text


def _host(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]{1,253}", text):
        raise problem("this is not a host name or IP address", "Give a name such as pacs.local or 192.0.2.10")
    return text


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,127}", text):
        raise problem(
            "this is not the name of an environment variable",
            "Give the variable's name, such as PACS_NODE_STOW_PASSWORD, never the secret itself",
        )
    return text


def _origin(text: str) -> str:
    if text == "*" or re.fullmatch(r"https?://[A-Za-z0-9.-]{1,253}(:\d{1,5})?", text):
        return text
    raise problem(
        "this is not the origin of a web page",
        "Give scheme, host and port as the browser shows them, such as https://viewer.local:3000, "
        "without a path",
    )


def _destination_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}", text):
        raise problem(
            "a destination's name has 1 to 32 letters, digits, _ or -, and begins with a letter or digit",
            "Rename it, for example PACS or archive-2",
        )
    return text


def _rule_name(text: str) -> str:
    if not text.strip() or len(text) > 100 or not text.isprintable():
        raise problem("a rule's name has 1 to 100 printable characters", "Name it after what it is for")
    return text


AeTitle = Annotated[StrictStr, AfterValidator(ae_title)]
LocalPath = Annotated[Path, BeforeValidator(_path)]
Url = Annotated[StrictStr, AfterValidator(_url)]
DatabaseUrl = Annotated[StrictStr, AfterValidator(_database)]
Host = Annotated[StrictStr, AfterValidator(_host)]
Origin = Annotated[StrictStr, AfterValidator(_origin)]
Variable = Annotated[StrictStr, AfterValidator(_variable)]
DestinationName = Annotated[StrictStr, AfterValidator(_destination_name)]
RuleName = Annotated[StrictStr, AfterValidator(_rule_name)]
Port = Annotated[StrictInt, Field(ge=1, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400, strict=True)]
Scalar = StrictBool | StrictInt | StrictFloat | StrictStr
