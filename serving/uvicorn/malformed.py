"""Uvicorn's answer to a malformed request, with an id and an access line (Uvicorn 0.54).

See docs/patches.md. The stock answer is a plain text that no log line belongs to.
"""

import json
from typing import override

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving import logs, peers
from serving.uvicorn.supported import check_attributes, check_overrides


def bad_request(client: tuple[str, int] | None) -> bytes:
    """The response, which closes the connection; its access line is written."""
    identity = peers.request_id_for(None)
    token = peers.request_id.set(identity)
    body = json.dumps({"title": "Bad Request", "status": 400})
    logs.access(client[0] if client else "-", "-", "-", "", 400, len(body), 0)
    peers.request_id.reset(token)
    headers = {
        "Content-Type": "application/problem+json",
        "Content-Length": len(body),
        "X-Request-ID": identity,
        "Connection": "close",
    }
    lines = [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(["HTTP/1.1 400 Bad Request", *lines, "", body]).encode()


class HttpProtocol(HttpToolsProtocol):
    """`http` in uvicorn.json."""

    @override
    def send_400_response(self, msg: str) -> None:
        """Answer a request that the parser refused."""
        check_attributes(self, "client", "transport")
        self.transport.write(bad_request(self.client))
        self.transport.close()


check_overrides(HttpProtocol)
