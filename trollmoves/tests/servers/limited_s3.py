"""A small S3 service that rejects what its rules name, as services and keys with few rights do."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from trollmoves.tests.servers.process import HOST

OLD = "2020-01-01T00:00:00.000Z"
RECENT = "2999-01-01T00:00:00.000Z"

Reply = tuple[int, Mapping[str, str], str]


class LimitedS3:
    """The service, in threads of this process.

    ``rules`` maps an operation to the status and code of an error: ``PUT``, ``HEAD``, ``LIST``, ``create``, ``part``,
    ``complete``, ``abort``, ``uploads``. With ``sums`` False, uploads with checksums are rejected. With ``location``
    each upload is redirected. Signatures are not checked.
    """

    def __init__(
        self,
        rules: Mapping[str, tuple[int, str]] | None = None,
        *,
        sums: bool = True,
        tag: str = "",
        location: str = "",
        redirect: tuple[int, str] = (307, "TemporaryRedirect"),
        uploads: Mapping[str, str] | None = None,
    ) -> None:
        self.rules = dict(rules or {})
        self.sums = sums
        self.tag = tag
        self.location = location
        self.redirect = redirect
        self.uploads = dict(uploads or {})  # unfinished uploads: the time of their begin, by key
        self.objects: dict[str, bytes] = {}
        self.parts: dict[int, bytes] = {}
        self.operations: list[str] = []
        self.headers: list[str] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Print nothing."""

            def _serve(self) -> None:
                status, headers, body = service.reply(self.command, self.path, self.headers, _body(self))
                self.send_response(status)
                data = b"" if self.command == "HEAD" else body.encode()
                for name, value in {"Content-Length": str(len(data)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815

        self._server = ThreadingHTTPServer((HOST, 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://{HOST}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> LimitedS3:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reply(self, method: str, target: str, headers: Any, body: bytes) -> Reply:
        """Return status, headers and body of the reply to a request."""
        url = urlsplit(target)
        query, key = parse_qs(url.query, keep_blank_values=True), unquote(url.path).lstrip("/")
        operation = _operation(method, query)
        self.operations.append(operation)
        self.headers.append(f"{method} {target}\n{headers}")
        if operation in self.rules:
            return _error(*self.rules[operation])
        if self.location and method in ("PUT", "POST"):
            status, _, text = _error(*self.redirect)
            return status, {"Location": f"{self.location}{target}"}, text
        if not self.sums and any("checksum" in name.lower() or name.lower() == "x-amz-trailer" for name in headers):
            return _error(501, "NotImplemented")
        return self._perform(operation, key, query, body)

    def _perform(self, operation: str, key: str, query: dict[str, list[str]], body: bytes) -> Reply:
        if operation == "PUT":
            self.objects[key] = body
            return 200, {"ETag": f'"{self.tag or _md5(body)}"'}, ""
        if operation == "HEAD":
            return self._described(key)
        if operation == "create":
            self.parts.clear()
            return 200, {}, "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
        if operation == "part":
            self.parts[int(query["partNumber"][0])] = body
            return 200, {"ETag": '"part"'}, ""
        if operation == "complete":
            self.objects[key] = b"".join(self.parts[number] for number in sorted(self.parts))
            return 200, {}, '<CompleteMultipartUploadResult><ETag>"x-2"</ETag></CompleteMultipartUploadResult>'
        if operation == "uploads":
            return 200, {}, self._listed(query["prefix"][0])
        if operation == "abort":
            self.uploads.pop(key.partition("/")[2], None)
        return 204, {}, ""

    def _described(self, key: str) -> Reply:
        found = self.objects.get(key)
        if found is None:
            return _error(404, "")
        return 200, {"Content-Length": str(len(found)), "ETag": f'"{_md5(found)}"'}, ""

    def _listed(self, prefix: str) -> str:
        uploads = "".join(
            f"<Upload><Key>{escape(key)}</Key><UploadId>9</UploadId><Initiated>{begun}</Initiated></Upload>"
            for key, begun in self.uploads.items()
            if key.startswith(prefix) and "/" not in key.removeprefix(prefix)
        )
        return f"<ListMultipartUploadsResult>{uploads}</ListMultipartUploadsResult>"


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _operation(method: str, query: dict[str, list[str]]) -> str:
    if method == "POST":
        return "create" if "uploads" in query else "complete"
    if method == "GET":
        return "uploads" if "uploads" in query else "LIST"
    if "uploadId" in query:
        return "abort" if method == "DELETE" else "part"
    return method


def _error(status: int, code: str) -> Reply:
    return status, {}, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>" if code else ""


def _body(request: BaseHTTPRequestHandler) -> bytes:
    """Return the data of a request, without the framing of ``aws-chunked``."""
    if request.headers.get("Transfer-Encoding") == "chunked":
        data = b"".join(iter(lambda: _chunk(request.rfile), b""))
        request.rfile.readline()
    else:
        data = request.rfile.read(int(request.headers.get("Content-Length", 0)))
    if "aws-chunked" not in request.headers.get("Content-Encoding", ""):
        return data
    found = b""
    while True:
        size, _, data = data.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        if not length:
            return found
        found, data = found + data[:length], data[length + 2 :]


def _chunk(stream: Any) -> bytes:
    size = int(stream.readline(), 16)
    data: bytes = stream.read(size)
    if size:
        stream.readline()
    return data
