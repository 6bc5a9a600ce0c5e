"""A small JSON service in Flask."""

from typing import Any

from flask import Flask, Request, Response, jsonify, request
from werkzeug.exceptions import BadRequest, HTTPException, InternalServerError, RequestEntityTooLarge
from werkzeug.wsgi import LimitedStream

from serving.wsgi import Service


class Whole(Request):
    """Werkzeug 3.1 cuts a body in chunks off at the limit, in silence; here it is refused."""

    def get_data(self, *args: Any, **options: Any) -> Any:
        """All of the body; raises RequestEntityTooLarge when it goes on after MAX_CONTENT_LENGTH."""
        data = super().get_data(*args, **options)
        rest = LimitedStream(self.environ["wsgi.input"], 1, is_max=True)  # 400 for a client that left
        if self.environ.get("wsgi.input_terminated") and rest.read(1):
            raise RequestEntityTooLarge
        return data


app = Flask(__name__)
app.request_class = Whole
app.config["MAX_CONTENT_LENGTH"] = 1024 * 1024  # bytes; a longer body gets 413


@app.get("/")
def index() -> Response:
    """Say what this is and who is asking."""
    return jsonify(service="flask", client=request.remote_addr, scheme=request.scheme)


@app.post("/echo")
def echo() -> Response:
    """Return the request's JSON document."""
    return jsonify(echo=request.get_json())


@app.errorhandler(HTTPException)
def problem(error: HTTPException) -> Response:
    """Every error as a problem document (RFC 9457); Flask logs an exception's traceback itself."""
    if isinstance(error, InternalServerError):
        error = InternalServerError()
    response = jsonify(title=error.name, status=error.code, detail=error.description)
    response.status_code = error.code or 500
    response.content_type = "application/problem+json"
    response.headers.extend(h for h in error.get_headers() if h[0] == "Allow")
    return response


@app.errorhandler(RecursionError)
def too_deep(error: RecursionError) -> Response:
    """400 for JSON that is nested deeper than Python's parser goes."""
    return problem(BadRequest("The document is nested too deeply."))


application = Service(app)
