"""The resources of the DICOMweb service, under /dicom-web; each request in the threads of the pool."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_plus

import anyio
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount, Route

from pacs_node.config.model import Config
from pacs_node.dicomweb import accept, query, retrieve, stow
from pacs_node.dicomweb.access import Access, Secrets
from pacs_node.dicomweb.attributes import INSTANCE, SERIES, STUDY, tag_of
from pacs_node.dicomweb.errors import (
    RequestError,
    bad_request,
    not_acceptable,
    not_found,
    too_large,
    unsupported,
)
from pacs_node.dicomweb.index import Index, Instance
from pacs_node.dicomweb.multipart import MultipartError, Parser, TooManyPartsError, media_type
from pacs_node.dicomweb.pixels import view_of
from pacs_node.receive.spool import Spool, Stored

log = logging.getLogger(__name__)

ROOT = "/dicom-web"

_MB = 1 << 20
_FEED = 1 << 20
_MAX_FRAMES = 1000
_MAX_QUERY = 64 << 10


class Service:
    """The handlers. ``current`` gives the configuration as it is when a request comes."""

    def __init__(
        self,
        current: Callable[[], Config],
        spool: Spool,
        index: Index,
        on_stored: Callable[[Stored], None],
    ) -> None:
        self._current, self._spool, self._index, self._on_stored = current, spool, index, on_stored

    def routes(self) -> list[Route]:
        """Every resource that there is."""
        study, series, instance = (
            "/studies/{study}",
            "/studies/{study}/series/{series}",
            "/studies/{study}/series/{series}/instances/{instance}",
        )
        routes = [
            Route("/studies", self.store, methods=["POST"]),
            Route(study, self.store, methods=["POST"]),
        ]
        for level, paths in (
            (STUDY, ("/studies",)),
            (SERIES, ("/series", f"{study}/series")),
            (INSTANCE, ("/instances", f"{study}/instances", f"{series}/instances")),
        ):
            routes += [Route(path, self._searching(level)) for path in paths]
        for path in (study, series, instance):
            routes += [Route(f"{path}/metadata", self.metadata), Route(path, self.instances)]
        return [
            *routes,
            Route(f"{instance}/frames/{{frames}}", self.frames),
            Route(f"{instance}/frames/{{frames}}/rendered", self.rendered),
            Route(f"{instance}/rendered", self.rendered),
            Route(f"{instance}/bulkdata/{{value:path}}", self.bulk_data),
        ]

    # -- STOW-RS ---------------------------------------------------------------------------------------------

    async def store(self, request: Request) -> Response:
        """Store the instances of a request."""
        kind, parameters = media_type(request.headers.get("content-type", ""))
        if kind != "multipart/related" or parameters.get("type", "").lower() != accept.DICOM:
            raise unsupported(
                "only instances as DICOM files are taken",
                'Send multipart/related; type="application/dicom"; boundary=…',
            )
        if not any(w.takes(accept.JSON) or w.takes("application/json") for w in _accepted(request)):
            raise not_acceptable("the answer is DICOM JSON only", f"Accept {accept.JSON}")
        study = request.path_params.get("study", "")
        if study:
            _check_uid(study)
        config = self._current()
        limit = _web(config).max_request_mb * _MB
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            raise _over(limit)
        storing = stow.Storing(config, self._spool, self._on_stored, study)
        try:
            parser = Parser(parameters.get("boundary", ""), storing)
        except MultipartError as error:
            raise bad_request(str(error), "Give the boundary parameter of the Content-Type") from error
        broken = await self._take(request, parser, storing, limit)
        if broken is not None:
            log.warning(
                "STOW-RS request broke off: %s", broken.reason, extra={"whole_parts": len(storing.outcomes)}
            )
            if not any(outcome.code == 0 for outcome in storing.outcomes):
                raise broken
            # What is stored is reported as such, and what was still to come as not.
            reason = stow.OUT_OF_RESOURCES if broken.status == 413 else stow.CANNOT_UNDERSTAND
            storing.outcomes.append(stow.Outcome(code=reason, reason=broken.reason))
        elif not storing.outcomes:
            raise bad_request("the request holds no instance", "Send one part for each instance")
        status, body = stow.response(storing.outcomes, _root(request))
        self._index.stale()
        stored = sum(1 for outcome in storing.outcomes if not outcome.code)
        log.info("STOW-RS", extra={"stored": stored, "failed": len(storing.outcomes) - stored})
        headers = {"warning": f'299 pacs-node "{broken.reason}"'} if broken is not None else {}
        return _json(body, status, headers)

    async def _take(
        self, request: Request, parser: Parser, storing: stow.Storing, limit: int
    ) -> RequestError | None:
        """Read the body into the spool; what was wrong with it as a whole, if anything."""
        seconds = _web(self._current()).timeout
        stream = request.stream().__aiter__()
        buffer, total, more = bytearray(), 0, True
        try:
            while more:
                chunk = b""
                with anyio.fail_after(seconds):
                    try:
                        chunk = await stream.__anext__()
                    except StopAsyncIteration:
                        more = False
                total += len(chunk)
                if total > limit:
                    return _over(limit)
                buffer += chunk
                if len(buffer) >= _FEED or not more:
                    data = bytes(buffer)
                    buffer.clear()
                    await run_in_threadpool(parser.feed, data)
            parser.finish()
        except TooManyPartsError as error:
            return too_large(str(error), "Send the instances in several requests")
        except MultipartError as error:
            return bad_request(f"the multipart body is broken: {error}", "Send it again")
        except TimeoutError:
            return RequestError(
                408, "request timeout", f"nothing has come for {seconds:g} s", "Send it again"
            )
        except ClientDisconnect:
            return bad_request("the client has gone", "Send it again")
        finally:
            storing.abandon()
        return None

    # -- QIDO-RS ---------------------------------------------------------------------------------------------

    def _searching(self, level: str) -> Callable[[Request], Response]:
        def search(request: Request) -> Response:
            """Answer a search."""
            asked = query.parse(level, _parameters(request))
            _need(request, accept.JSON, "application/json")
            study, series, _ = _uids(request)
            tag = tag_of("StudyInstanceUID")
            wanted = asked.keys.get(tag, "")
            held = self._index.find(study or (wanted if re.fullmatch(r"[0-9.]+", wanted) else ""))
            root = _root(request)
            found = query.answer(
                asked,
                held,
                root,
                lambda instance: retrieve.metadata(instance, root) or {},
                series,
            )
            headers = {"warning": ", ".join(asked.warnings)} if asked.warnings else {}
            return _json(found, 200, headers)

        return search

    # -- WADO-RS ---------------------------------------------------------------------------------------------

    def instances(self, request: Request) -> Response:
        """Retrieve the instances of a study, of a series, or one."""
        return _stream(retrieve.instances(self._held(request), _accepted(request), _root(request)))

    def metadata(self, request: Request) -> Response:
        """Retrieve their metadata."""
        _need(request, accept.JSON, "application/json")
        root = _root(request)
        held = self._held(request)

        def chunks() -> Any:
            before = b"["
            for instance in held:
                found = retrieve.metadata(instance, root)
                if found is not None:
                    yield before + _encoded(found)
                    before = b","
            yield b"[]" if before == b"[" else b"]"

        return _stream(retrieve.Answer(accept.JSON, chunks()))

    def frames(self, request: Request) -> Response:
        """Retrieve frames by their numbers."""
        text = request.path_params["frames"]
        if not re.fullmatch(r"\d{1,9}(,\d{1,9})*", text) or text.count(",") >= _MAX_FRAMES:
            raise bad_request(
                "the frames are no list of numbers", "Ask for frames as /frames/1 or /frames/1,2"
            )
        numbers = [int(number) for number in text.split(",")]
        held = self._held(request)[0]
        return _stream(self._reader().frames(held, numbers, _accepted(request), _root(request)))

    def rendered(self, request: Request) -> Response:
        """Retrieve a picture of an instance or of one of its frames."""
        view = view_of(dict(_parameters(request)))
        number = request.path_params.get("frames", "1")
        if not re.fullmatch(r"\d{1,9}", number):
            raise bad_request("the frame is no number", "Ask for one frame, as /frames/1/rendered")
        return _stream(self._reader().picture(self._held(request)[0], int(number), view, _accepted(request)))

    def bulk_data(self, request: Request) -> Response:
        """Retrieve a value that the metadata left out."""
        text = request.path_params["value"].upper()
        if not re.fullmatch(r"[0-9A-F]{8}(/\d{1,6}/[0-9A-F]{8}){0,32}", text):
            raise bad_request("this is no address of a value", "Take the address from the metadata")
        held = self._held(request)[0]
        return _stream(self._reader().bulk(held, text.split("/"), _accepted(request), _root(request)))

    def _reader(self) -> retrieve.Reader:
        config = self._current()
        return retrieve.Reader(config.limits.max_pixels, config.receive.max_object_mb * _MB)

    def _held(self, request: Request) -> list[Instance]:
        held = self._index.find(*_uids(request))
        if not held:
            raise not_found("nothing of these UIDs is held")
        return held


def _uids(request: Request) -> tuple[str, str, str]:
    study, series, instance = (
        request.path_params.get(level, "") for level in ("study", "series", "instance")
    )
    for uid in filter(None, (study, series, instance)):
        _check_uid(uid)
    return study, series, instance


def _check_uid(uid: str) -> None:
    if not re.fullmatch(r"[0-9.]{1,64}", uid):
        raise bad_request("a UID of the address is no UID", "UIDs are digits and dots, at most 64 characters")


def _parameters(request: Request) -> list[tuple[str, str]]:
    text = request.scope["query_string"].decode("latin-1")
    if len(text) > _MAX_QUERY:
        raise bad_request(f"the query is longer than {_MAX_QUERY} characters", "Ask with fewer values")
    pairs = [pair.partition("=") for pair in text.split("&") if pair]
    return [(unquote_plus(name), unquote_plus(value)) for name, _, value in pairs]


def _accepted(request: Request) -> list[accept.Wanted]:
    """The Accept header, or the query parameter that stands for it (PS3.18 8.3.3.1)."""
    named = next((value for name, value in _parameters(request) if name == "accept"), None)
    return accept.parse(named if named is not None else request.headers.get("accept", ""))


def _need(request: Request, *kinds: str) -> None:
    if not any(wanted.takes(kind) for wanted in _accepted(request) for kind in kinds):
        raise not_acceptable(f"this is only given as {kinds[0]}", f"Accept {kinds[0]}")


def _over(limit: int) -> RequestError:
    return too_large(
        f"the request is larger than web.max_request_mb ({limit // _MB} MB)",
        "Send the instances in several requests",
    )


def _web(config: Config) -> Any:
    assert config.web is not None  # noqa: S101  the process runs only where it is configured
    return config.web


def _root(request: Request) -> str:
    return str(request.url.replace(path=ROOT, query="", fragment="")).rstrip("?#")


def _encoded(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _json(content: Any, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(_encoded(content), status, headers, accept.JSON)


def _stream(answer: retrieve.Answer) -> Response:
    return StreamingResponse(answer.chunks, media_type=answer.content_type)


# -- errors --------------------------------------------------------------------------------------------------


def _told(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)  # noqa: S101  registered for that
    return Response(_encoded(error.body()), error.status, media_type="application/json")


def _routing(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  registered for that
    if error.status_code == 405:
        told = RequestError(
            405, "method not allowed", "this resource has no such method", "See the conformance"
        )
    else:
        told = not_found("there is no such resource", f"The service is at {ROOT}: studies, series, instances")
    return Response(_encoded(told.body()), error.status_code, error.headers, "application/json")


def application(service: Service, origins: list[str], secrets: Secrets) -> Starlette:
    """The ASGI application."""
    middleware = [Middleware(Access, secrets=secrets)]
    if origins:
        # Before authentication: a browser asks for permission without credentials.
        middleware.insert(
            0,
            Middleware(
                CORSMiddleware,
                allow_origins=origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                expose_headers=["Warning"],
            ),
        )
    return Starlette(
        routes=[Mount(ROOT, routes=service.routes())],
        middleware=middleware,
        exception_handlers={RequestError: _told, HTTPException: _routing},
    )
