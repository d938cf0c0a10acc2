"""The service over HTTP: the only file that imports FastAPI."""

import asyncio
import contextlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from models.server.methods import METHODS, Method
from models.server.page import page
from models.server.service import Limits, Refused, Service
from utils.errors import UserError, one_sentence, quoted
from utils.files import json_object, parse_json

try:
    import python_multipart  # noqa: F401  (starlette's parser of forms needs it)
    from fastapi import Depends, FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
    from starlette.datastructures import Headers, UploadFile
    from starlette.exceptions import HTTPException
    from starlette.formparsers import MultiPartException, MultiPartParser
except ImportError as error:
    raise UserError(f"The server needs the package {error.name}: pip install -e .[serve].") from error

VALUES = 200_000  # commas, colons and brackets of a request: more would take long to read
DISCARDED = 4  # times --max-request-bytes: what is read of a request that is too large, so that its sender hears of it
DISCARD_SECONDS = 2.0
JSON, FORM = "application/json", "multipart/form-data"
STATUSES = {
    400: "not JSON, a key twice, or a broken form", 401: "no key, or a wrong one", 408: "not sent in time",
    413: "too large", 415: "neither JSON nor a form", 422: "a field that is missing, unknown or wrong",
    429: "too many requests: try again after Retry-After", 500: "a fault of the server",
    503: "stopping, or the model has failed", 504: "not answered in time",
}  # fmt: skip
ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
Message = MutableMapping[str, Any]
logger = logging.getLogger(__name__)


class _Gone(Exception):
    """The client has closed the connection."""


class _MemoryParser(MultiPartParser):
    """Never writes a client's files to the disk, and tells whether a form was whole."""

    spool_max_size = 2**62
    whole = False

    def on_end(self) -> None:
        """The boundary behind the last part."""
        self.whole = True


def build(service: Service) -> FastAPI:
    """The application of a service."""
    app = FastAPI(title="OFA", version="1", description=f"The model {service.name}.", docs_url=None, redoc_url=None)
    guarded = [Depends(_key_check(service.limits))]
    for method in METHODS.values():
        app.add_api_route(
            f"/{method.name}", _endpoint(service, method), methods=["POST"], summary=method.help,
            operation_id=method.name, dependencies=guarded, openapi_extra=_request_body(method),
            responses=_responses(method), response_class=JSONResponse,
        )  # fmt: skip

    async def health() -> Response:
        state = {"ready": service.ready, "model": service.name}
        return JSONResponse(state, 200 if service.ready else 503)

    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    async def docs() -> Response:
        return HTMLResponse(page(service.name))

    app.add_api_route("/health", health, methods=["HEAD"], include_in_schema=False)
    app.add_api_route("/health", health, summary="Whether requests are answered, and the model's name.")
    app.add_api_route("/metrics", metrics, summary="Counters, for Prometheus.", dependencies=guarded)
    app.add_api_route("/docs", docs, include_in_schema=False)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_exception_handler(Refused, _refuse)
    app.add_middleware(_Counting, service=service)
    return app


def _key_check(limits: Limits) -> Callable[..., Awaitable[None]]:
    bearer = HTTPBearer(auto_error=False, description="the key of --api-key") if limits.api_key else lambda: None

    async def check(request: Request, _: HTTPAuthorizationCredentials | None = Depends(bearer)) -> None:  # noqa: B008
        if limits.api_key is None:
            return
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = key.strip().encode("latin-1", "replace")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given, limits.api_key.encode()):
            try:
                await _Body(request, limits).discard()
            except _Gone:
                raise HTTPException(499) from None  # which nobody gets
            raise Refused(401, "The key is missing or wrong: send the header `Authorization: Bearer KEY`.")

    return check


def _request_body(method: Method) -> dict[str, Any]:
    kinds = {JSON: {"schema": method.request_schema}, FORM: {"schema": method.form_schema}}
    return {"requestBody": {"required": True, "content": kinds}}


def _responses(method: Method) -> dict[int | str, dict[str, Any]]:
    errors: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": {JSON: {"schema": ERROR}}} for status, text in STATUSES.items()
    }
    return {200: {"description": "the answer", "content": {JSON: {"schema": method.answer_schema}}}, **errors}


def _endpoint(service: Service, method: Method) -> Callable[[Request], Awaitable[Response]]:
    async def _respond(request: Request) -> Response:
        deadline = asyncio.get_running_loop().time() + service.limits.timeout
        try:
            return JSONResponse(await _answer(service, method, request, deadline))
        except UserError as error:
            path = service.predictor.description.source  # which is not for everyone
            raise Refused(422, one_sentence(error).replace(path, service.name)) from None
        except _Gone:
            return Response(status_code=499)  # which nobody gets
        except asyncio.CancelledError:  # see `Service.stop_reading`; or the time for stopping is over
            raise Refused(503, "The server is stopping: ask another one, or this one later.", True) from None
        except Refused:
            raise
        except Exception:
            logger.exception("%s: a request has failed", method.name)
            raise Refused(500, "The server has failed on this request: its log says why.") from None

    return _respond


async def _answer(service: Service, method: Method, request: Request, deadline: float) -> dict[str, Any]:
    body = _Body(request, service.limits)
    try:
        service.check_open()
    except Refused:
        await body.discard()
        raise
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in (JSON, FORM):
        await body.discard()
        raise Refused(415, f"The content type is {quoted(kind)}: send {JSON} or {FORM}.")
    task = asyncio.current_task()
    service.reading.add(task)
    try:
        data = await body.read(service, deadline)
    finally:
        service.reading.discard(task)
    try:
        if service.stopping:
            service.check_open()
        headers = request.headers
        read = (lambda: _from_json(data)) if kind == JSON else (lambda: _from_form(headers, data, method))
        work = asyncio.ensure_future(service.answer(method, read))
        return await _unless_gone(request, work, deadline)
    finally:
        service.hold(-len(data))


async def _unless_gone(request: Request, work: "asyncio.Future[dict[str, Any]]", deadline: float) -> dict[str, Any]:
    """The result of some work, which ends when the client is gone or the time is over."""
    work.add_done_callback(lambda done: done.cancelled() or done.exception())  # even where nobody asks for it
    watch: asyncio.Future[Any] = asyncio.ensure_future(_until_gone(request))
    left = deadline - asyncio.get_running_loop().time()
    try:
        await asyncio.wait((work, watch), timeout=left, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            return work.result()
        if watch.done():
            raise _Gone
        raise Refused(504, "The answer takes too long: try again later, or ask for less.", busy=True)
    finally:
        watch.cancel()
        work.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Body:
    """What follows the head of a request, read piece by piece."""

    def __init__(self, request: Request, limits: Limits) -> None:
        self.request, self.limits, self.more = request, limits, True

    async def part(self) -> bytes:
        """The next bytes; raises _Gone."""
        message = await self.request.receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        self.more = message.get("more_body", False)
        return message.get("body", b"")

    async def read(self, service: Service, deadline: float) -> bytes:
        """All of it, whatever the head says of the length; its bytes are held by the service.

        Raises Refused for one that is too large, too many at once, or too late.
        """
        most, body = self.limits.max_bytes, bytearray()
        large = Refused(413, f"The request is too large: {most:,} bytes are taken (--max-request-bytes).")
        try:
            if int(self.request.headers.get("content-length", 0)) > most:
                raise large
            async with asyncio.timeout_at(deadline):
                while self.more:
                    part = await self.part()
                    if len(body) + len(part) > most:
                        raise large
                    service.hold(len(part))
                    body += part
            return bytes(body)
        except BaseException as error:
            service.hold(-len(body))
            if isinstance(error, Refused):
                await self.discard()
            if isinstance(error, TimeoutError):
                raise Refused(408, "The request was not sent in time.") from None
            raise

    async def discard(self) -> None:
        """Reads some of the rest: a client that is still sending would not see the answer.

        Not where the client waits for a word before it sends.
        """
        size = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DISCARD_SECONDS):
                while self.more and size <= DISCARDED * self.limits.max_bytes and "expect" not in self.request.headers:
                    size += len(await self.part())


def _from_json(body: bytes) -> Mapping[str, Any]:
    if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > VALUES:
        raise Refused(413, f"The request has too many values: {VALUES:,} are taken.")
    try:
        return json_object(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The request cannot be read: {one_sentence(error)}.") from None


def _from_form(headers: Headers, body: bytes, method: Method) -> Mapping[str, Any]:
    kinds = {field.name: field.kind for field in method.fields}

    async def parts() -> AsyncIterator[bytes]:
        yield body

    parser = _MemoryParser(headers, parts(), max_files=1, max_fields=len(kinds))
    parser.max_part_size = len(body)
    try:
        form = asyncio.run(parser.parse())
    except (MultiPartException, ValueError, LookupError) as error:
        message = getattr(error, "message", "") or one_sentence(error)
        raise Refused(400, f"The form cannot be read: {message.rstrip('.')}.") from None
    if not parser.whole:
        raise Refused(400, "The form cannot be read: its end is missing.")
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in values:
            raise Refused(400, f"The form has the field {quoted(name)} twice: send it once.")
        if isinstance(value, UploadFile):
            if kinds.get(name, "image") != "image":
                raise UserError(f"{name} is a file: send it as a field of the form.")
            values[name] = value.file.read()
        elif kinds.get(name) in ("image", "text", None):
            values[name] = value
        else:
            values[name] = _json_field(name, value)
    return values


def _json_field(name: str, text: str) -> Any:
    if len(text) > VALUES:
        raise Refused(413, f"The field {name} is too long: {VALUES:,} characters are taken.")
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The field {name} is not JSON: {one_sentence(error)}.") from None


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    headers = {"Retry-After": "1"} if error.busy else {}
    if error.status in (400, 401, 408, 413, 415, 429, 503):  # the request may not have been read to its end
        headers["Connection"] = "close"
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error.message}, error.status, headers)


async def _refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {
        404: "There is nothing at this address: see /docs.",
        405: "This address does not take this method: see /docs.",
    }
    text = sentences.get(error.status_code, str(error.detail))
    return JSONResponse({"error": text}, error.status_code, error.headers)


class _Counting:
    """Counts every request with the status of its answer, and closes connections when the server stops."""

    def __init__(self, app: Callable[..., Awaitable[None]], service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Message, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, status = time.perf_counter(), 500

        async def sending(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            if self.service.stopping and message["type"] == "http.response.start":  # or the client sends another one
                message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            await send(message)

        path = scope["path"][1:]
        try:
            await self.app(scope, receive, sending)
        finally:
            known = path in METHODS or path in ("health", "metrics", "docs", "openapi.json")
            self.service.metrics.request(path if known else "other", status, time.perf_counter() - began)
