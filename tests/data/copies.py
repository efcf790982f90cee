"""Small copies of CIFAR-10 on disk, and a server on this machine that is as bad as a test wants."""

import dataclasses
import hashlib
import http.server
import io
import threading

from PIL import Image

from cvattn.data import CIFAR10Data
from cvattn.data.images.cifar_facts import PARQUETS


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def change(monkeypatch, cls=CIFAR10Data, **facts):
    """Replace some facts of a data module's CIFAR for one test."""
    monkeypatch.setattr(cls, "cifar", dataclasses.replace(cls.cifar, **facts))


def parquet_bytes(pixels, labels, **changes) -> bytes:
    import pyarrow
    from pyarrow import parquet

    rows = []
    for image in pixels:
        out = io.BytesIO()
        Image.fromarray(image).save(out, format="PNG")
        rows.append({"bytes": out.getvalue(), "path": None})
    for row, data in changes.get("replace", {}).items():
        rows[row]["bytes"] = data
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    column = changes.get("label_column", "label")
    image = changes.get("image_column", "img")
    table = pyarrow.table({image: pyarrow.array(rows, kind), column: pyarrow.array(labels)})
    out = io.BytesIO()
    parquet.write_table(table, out)
    return out.getvalue()


def lay_out(tiny, root, form):
    """Write the small CIFAR below ``root`` in one form; returns the files written."""
    if form == "folder":
        files = {f"{tiny.folder}/{n}": d for n, d in tiny.batches.items()}
    elif form == "archive":
        files = {tiny.archive_name: tiny.archive}
    else:
        place = form.removeprefix("parquet").removeprefix(":")
        files = {f"{place}/{n}": tiny.parquets[s] for s, n in PARQUETS.items()}
    paths = []
    for name, data in files.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        paths.append(path)
    return paths


class Server:
    """Serves ``files`` (path -> bytes) on 127.0.0.1, as broken or as slow as a test wants.

    ``cut``: bytes after which a connection ends (once each time it is set); ``ranges``: whether
    ranges are honoured; ``delay``: seconds between pieces of 1 KiB; ``log``: (path, Range) of each
    request.
    """

    def __init__(self):
        self.files, self.log, self.cut, self.ranges, self.delay = {}, [], None, True, 0.0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def do_HEAD(self):
                outer.answer(self)

            def log_message(self, *args):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.stopped = threading.Event()
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.stopped.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, request):
        self.log.append((request.path, request.headers.get("Range")))
        data = self.files.get(request.path)
        if data is None:
            request.send_error(404)
            return
        tag, start, end = f'"{md5(data)}"', 0, len(data)
        asked = request.headers.get("Range")
        fresh = request.headers.get("If-Range") in (None, tag)
        if asked and self.ranges and fresh:
            start, last = asked.removeprefix("bytes=").split("-")
            start, end = int(start), min(end, int(last) + 1) if last else end
            if start >= len(data):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(data)}")
                request.end_headers()
                return
            request.send_response(206)
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        else:
            request.send_response(200)
        request.send_header("ETag", tag)
        request.send_header("Content-Length", str(end - start))
        request.end_headers()
        body = b"" if request.command == "HEAD" else data[start:end]
        if self.cut is not None:
            body, self.cut = body[: self.cut], None
        try:
            if not self.delay:
                request.wfile.write(body)
                return
            for at in range(0, len(body), 1024):
                request.wfile.write(body[at : at + 1024])
                if self.stopped.wait(self.delay):
                    return
        except OSError:
            pass  # the client left
