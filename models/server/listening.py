"""A socket, and uvicorn on it until a signal comes."""

import asyncio
import logging
import math
import resource
import socket
from typing import Any

from models.server.app import build
from models.server.service import Service
from utils.errors import UserError

try:
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as error:
    raise UserError(f"The server needs the package {error.name}: pip install -e .[serve].") from error

HEAD_SECONDS = 20  # for the head of a request, and between two requests
CONNECTIONS = 4096  # at once, if so many files may be open


def connections() -> int:
    """Connections at once: most of the files that this process may open."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return CONNECTIONS if files == resource.RLIM_INFINITY else min(CONNECTIONS, files * 3 // 4)


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; port 0 = any. Raises UserError where that is not possible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host!r} is no address of this machine: try 127.0.0.1.") from error
    listener = socket.socket(family, kind, protocol)  # asyncio sets TCP_NODELAY where it sees TCP here
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        listener.close()
        raise UserError(f"Port {port} of {host} cannot be used: choose another with --port.") from error
    return listener


def address(listener: socket.socket) -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(service: Service) -> "Server":
    """A server of a service."""
    config = uvicorn.Config(
        build(service), http=_Protocol, ws="none", lifespan="off", log_config=None, log_level=logging.ERROR,
        access_log=False, proxy_headers=False, server_header=False, timeout_keep_alive=HEAD_SECONDS,
        timeout_graceful_shutdown=math.ceil(service.limits.timeout) + 1,
    )  # fmt: skip
    return Server(config, service)


def serve(service: Service, listener: socket.socket) -> bool:
    """Serves until SIGINT or SIGTERM, and finishes what is queued; False if the model could not be ended."""
    server(service).run(sockets=[listener])
    return service.close()


class Server(uvicorn.Server):
    """Ends on a signal without raising it again: a server that is stopped has done its work."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        """A first signal: no more requests; a second one: the end."""
        if self.service.stopping:
            self.force_exit = True
        self.should_exit = True
        self.service.stop()

    async def shutdown(self, sockets: Any = None) -> None:
        """The end, for which requests that are not read yet are not awaited."""
        self.service.stop_reading()
        ending = asyncio.ensure_future(super().shutdown(sockets))
        while not ending.done():
            if self.force_exit:  # from Python 3.12 on, the end of a server waits for its connections
                for connection in list(self.server_state.connections):
                    connection.transport.abort()
            await asyncio.wait([ending], timeout=0.1)
        await ending


class _Protocol(H11Protocol):
    """Closes a connection whose client takes too long to send the head of a request, however often it sends a byte."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A new client."""
        super().connection_made(transport)
        if len(self.connections) > connections():
            transport.abort()
            return
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of a client."""
        self._forget_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some bytes."""
        super().data_received(data)
        if not self._idle:
            self._forget_timer()

    def on_response_complete(self) -> None:
        """An answer has been written."""
        super().on_response_complete()
        if self._idle:
            self._await_head()

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        self._forget_timer()
        self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if self._idle:
            self.transport.abort()
