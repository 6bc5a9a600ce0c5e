"""Serves Django's static files, also those of the versions before and after this one.

While a version replaces another one, and for as long as a browser shows a page of the old one, both
versions' hashed files are asked for. Each version copies its own to DATA_DIR, which all replicas share,
and looks there for a file that it does not have.
"""

import json
import logging
import os
import shutil
from http import HTTPStatus
from pathlib import Path

from django.conf import settings
from django.contrib.staticfiles.storage import staticfiles_storage
from whitenoise.middleware import WhiteNoiseMiddleware
from whitenoise.responders import Response, SlicedFile, StaticFile

logger = logging.getLogger(__name__)
# A version that was deployed and failed counts as well.
KEPT_VERSIONS = 5
COMPRESSED = (".br", ".gz", "")


def share(own: Path, shared: Path, version: str, names: list[str]) -> None:
    """Copy this version's hashed files, and remove files that none of the newest versions has."""
    files = shared / "files"
    for path in (name + suffix for name in names for suffix in COMPRESSED):
        if (own / path).exists() and not (files / path).exists():
            (files / path).parent.mkdir(parents=True, exist_ok=True)
            draft = files / f"{path}.{os.getpid()}"
            shutil.copy2(own / path, draft)
            draft.replace(files / path)
    (shared / version).with_suffix(".json").write_text(json.dumps(names))
    versions = sorted(shared.glob("*.json"), key=os.path.getmtime, reverse=True)
    listed = [set(json.loads(path.read_text())) for path in versions]
    for name in set().union(*listed[KEPT_VERSIONS:]) - set().union(*listed[:KEPT_VERSIONS]):
        for suffix in COMPRESSED:
            (files / (name + suffix)).unlink(missing_ok=True)
    for path in versions[KEPT_VERSIONS:]:
        path.unlink(missing_ok=True)


class StaticFileWithShortRanges(StaticFile):
    """A file that also answers a range of one byte, which WhiteNoise refuses (whitenoise#711)."""

    def get_range_response(self, range_header, base_headers, file_handle):
        """206 for `bytes=0-0` as well."""
        size = int(dict(base_headers)["Content-Length"])
        start, end = self.get_byte_range(range_header, size)
        if start != end:
            return super().get_range_response(range_header, base_headers, file_handle)
        headers = [(name, value) for name, value in base_headers if name != "Content-Length"]
        headers += [("Content-Range", f"bytes {start}-{end}/{size}"), ("Content-Length", "1")]
        body = file_handle and SlicedFile(file_handle, start, end)
        return Response(HTTPStatus.PARTIAL_CONTENT, headers, body)


class StaticFilesMiddleware(WhiteNoiseMiddleware):
    """WhiteNoise with the shared files of other versions."""

    def __init__(self, get_response=None, settings=settings):
        shared = Path(settings.DATA_DIR, "static")
        self.other_versions = f"{shared}/files/"
        super().__init__(get_response, settings)
        try:
            names = [*staticfiles_storage.hashed_files.values()]
        except ValueError:
            names = []  # a damaged manifest: /readyz says so
        # Without a manifest (`make dev`, or before collectstatic) there are no hashed names to share.
        if names and not self.autorefresh:
            self.directories = [(self.other_versions, self.static_prefix)]  # where find_file() looks
            try:
                share(Path(self.static_root), shared, staticfiles_storage.manifest_hash, names)
            except OSError as error:
                logger.warning("static files are not shared with other versions: %s", error)

    def __call__(self, request):
        """Serve a file of another version if this one does not have it."""
        path = request.path_info
        missing = path.startswith(self.static_prefix) and path not in self.files
        if missing and not self.autorefresh and (file := self.find_file(path)):
            return self.serve(file, request)
        return super().__call__(request)

    def immutable_file_test(self, path, url):
        """Only hashed files are shared, and they never change."""
        return path.startswith(self.other_versions) or super().immutable_file_test(path, url)

    def get_static_file(self, path, url, stat_cache=None):
        """WhiteNoise has no setting for the class of its files."""
        file = super().get_static_file(path, url, stat_cache)
        file.__class__ = StaticFileWithShortRanges
        return file
