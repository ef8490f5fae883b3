"""A folder as an S3 endpoint on loopback, fast enough not to limit a measurement (it sends bytes by sendfile).

    python -m benchmarks.s3_files FOLDER    # prints its URL; the first part of a path is the bucket

It implements the requests of a store: GET of objects and ranges, HEAD, PUT (with If-None-Match), multipart
uploads, DELETE, and listings. It checks no signatures.
"""

import os
import shutil
import sys
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

ROOT = Path()
UPLOADS = ".uploads"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if "list-type" in self._query():
            return self._list()
        return self._send(body=True)

    def do_HEAD(self) -> None:
        self._send(body=False)

    def do_PUT(self) -> None:
        query = self._query()
        if "partNumber" in query:
            part = ROOT / UPLOADS / query["uploadId"][0] / f"{int(query['partNumber'][0]):05d}"
            self._receive(part)
            return self._answer(200, {"ETag": f'"{part.name}"'})
        target = self._path()
        temporary = ROOT / UPLOADS / uuid.uuid4().hex
        self._receive(temporary)
        return self._place(temporary, target)

    def do_POST(self) -> None:
        query = self._query()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "uploads" in query:
            upload = uuid.uuid4().hex
            (ROOT / UPLOADS / upload).mkdir(parents=True)
            text = f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
            return self._answer(200, {}, text.encode())
        folder = ROOT / UPLOADS / query["uploadId"][0]
        parts = sorted(folder.iterdir())
        with parts[0].open("ab") as whole:
            for part in parts[1:]:
                with part.open("rb") as source:
                    shutil.copyfileobj(source, whole, 8 << 20)
        text = b"<CompleteMultipartUploadResult><ETag>x</ETag></CompleteMultipartUploadResult>"
        self._place(parts[0], self._path(), text)
        return shutil.rmtree(folder)

    def do_DELETE(self) -> None:
        self._path().unlink(missing_ok=True)
        self._answer(204, {})

    def _query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    def _path(self) -> Path:
        return ROOT / unquote(urlsplit(self.path).path).lstrip("/")

    def _receive(self, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        left = int(self.headers.get("Content-Length", 0))
        with target.open("wb") as file:
            while left and (data := self.rfile.read(min(left, 1 << 20))):
                file.write(data)
                left -= len(data)

    def _place(self, temporary: Path, target: Path, text: bytes = b"") -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.headers.get("If-None-Match") == "*":
            try:
                os.link(temporary, target)
            except FileExistsError:
                return self._error(412, "PreconditionFailed")
            temporary.unlink()
        else:
            temporary.replace(target)
        return self._answer(200, {"ETag": '"x"'}, text)

    def _send(self, body: bool) -> None:
        path = self._path()
        if not path.is_file():
            return self._error(404, "NoSuchKey") if body else self._answer(404, {})
        size, start, end = path.stat().st_size, 0, path.stat().st_size
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if asked:
            first, _, last = asked.partition("-")
            start, end = int(first), min(size, int(last) + 1 if last else size)
            if start >= size:
                return self._error(416, "InvalidRange")
        self.send_response(206 if asked else 200)
        headers = {"Content-Length": end - start, "ETag": '"x"', "Last-Modified": "Thu, 01 Jan 1970 00:00:00 GMT"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        if body:
            with path.open("rb") as file:
                while start < end:
                    start += os.sendfile(self.connection.fileno(), file.fileno(), start, end - start)
        return None

    def _list(self) -> None:
        bucket = self._path()
        prefix, delimiter = (self._query().get(key, [""])[0] for key in ("prefix", "delimiter"))
        files, folders = [], set()
        for file in sorted(bucket.rglob("*")) if not delimiter else sorted((bucket / prefix).glob("*")):
            key = file.relative_to(bucket).as_posix()
            if file.is_dir():
                folders.add(f"{key}/")
            elif key.startswith(prefix):
                files.append(
                    f"<Contents><Key>{escape(key)}</Key><Size>{file.stat().st_size}</Size>"
                    "<LastModified>1970-01-01T00:00:00.000Z</LastModified><ETag>x</ETag></Contents>"
                )
        common = [f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders)]
        text = "".join(files + (common if delimiter else []))
        self._answer(
            200, {}, f"<ListBucketResult><IsTruncated>false</IsTruncated>{text}</ListBucketResult>".encode()
        )

    def _error(self, status: int, code: str) -> None:
        self._answer(status, {}, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _answer(self, status: int, headers: dict[str, str], text: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(text))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    ROOT = Path(sys.argv[1])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
