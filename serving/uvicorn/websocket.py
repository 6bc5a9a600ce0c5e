"""Uvicorn's WebSocket protocol without its gaps (Uvicorn 0.54; see docs/patches.md).

- A text message that is not UTF-8 gets one line with the request's id; the stock class logs a
  traceback for each.
- A request to upgrade that the parser refuses (another method than GET, too many or too long
  headers) is answered with 400; the stock class leaves the connection open and silent.
- The stock class logs each handshake with its query string, which may contain a token, and each
  opened and closed connection; serving/asgi.py writes one access line instead.
"""

import logging
from typing import override

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from serving import peers
from serving.uvicorn.malformed import bad_request
from serving.uvicorn.supported import check_attributes, check_overrides

INVALID_TEXT = 1007  # the close code for "not UTF-8" (RFC 6455, section 7.4.1)

logger = logging.getLogger(__name__)
# Without the stock class's lines at level info.
logger.setLevel(logging.WARNING)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """`ws` in uvicorn.json."""

    @override
    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]  # Uvicorn's own
        check_attributes(
            self, "client", "logger", "frames", "curr_msg_data_type", "conn", "handshake_initiated"
        )
        check_attributes(self.conn, "handshake_exc", "logger")
        self.logger = self.conn.logger = logger

    @override
    def data_received(self, data: bytes) -> None:
        """Answer a malformed request to upgrade as well."""
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.logger.warning("Invalid WebSocket request received.")
            self.transport.write(bad_request(self.client))
            self.transport.close()

    @override
    def send_receive_event_to_app(self) -> None:
        """Pass a whole message to the application, or close with 1007 when its text is not UTF-8."""
        if self.curr_msg_data_type == "text" and not self.close_sent:
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                self.refuse_text()
                return
        super().send_receive_event_to_app()

    def refuse_text(self) -> None:
        """Close the connection and log one line."""
        self.frames = []
        headers = dict(self.scope["headers"])
        # serving/asgi.py adds the header for the application.
        token = peers.request_id.set(headers.get(b"x-request-id", b"-").decode("latin-1"))
        self.logger.warning("WebSocket closed with %d: the text is not UTF-8", INVALID_TEXT)
        peers.request_id.reset(token)
        self.conn.send_close(INVALID_TEXT)
        self.handle_parser_exception()


check_overrides(WebSocketProtocol)
