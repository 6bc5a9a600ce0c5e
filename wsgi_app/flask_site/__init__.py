"""A small JSON service in Flask."""

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import BadRequest, HTTPException, InternalServerError

from serving import settings
from serving.wsgi import Service

app = Flask(__name__)
# Bytes of a request's body; a longer one gets 413.
app.config["MAX_CONTENT_LENGTH"] = settings.size("MAX_BODY", 1024 * 1024)


@app.get("/")
def index() -> Response:
    """Say which service this is, and which client and scheme it sees."""
    return jsonify(service="flask", client=request.remote_addr, scheme=request.scheme)


@app.post("/echo")
def echo() -> Response:
    """Return the request's JSON document."""
    return jsonify(echo=request.get_json())


@app.errorhandler(HTTPException)
def problem(error: HTTPException) -> Response:
    """Answer every error with a problem document (RFC 9457); Flask itself logs tracebacks."""
    if isinstance(error, InternalServerError):
        error = InternalServerError()
    response = jsonify(title=error.name, status=error.code, detail=error.description)
    response.status_code = error.code or 500
    response.content_type = "application/problem+json"
    response.headers.extend(h for h in error.get_headers() if h[0] == "Allow")
    return response


@app.errorhandler(RecursionError)
def too_deep(error: RecursionError) -> Response:
    """Answer JSON that is nested deeper than Python's parser goes with 400."""
    return problem(BadRequest("The document is nested too deeply."))


application = Service(app)
