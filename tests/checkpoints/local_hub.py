"""A stand-in for the Hugging Face hub on 127.0.0.1: just what snapshot_download asks for, and ways to go wrong."""

import contextlib
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class LocalHub:
    """`repositories`: name -> {file: bytes}. `gated`, `private`: names. `cut_after`: bytes of a file before the line is
    cut. `log`: what was asked for."""

    def __init__(self, repositories):
        self.repositories = repositories
        self.gated = set()
        self.private = set()
        self.cut_after = None
        self.status = None  # answer everything with this
        self.log = []

    @contextlib.contextmanager
    def running(self):
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def _handler(hub):  # the handler below has a self of its own
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer()

            def do_GET(self):
                self.answer()

            def answer(self):
                path = unquote(urlsplit(self.path).path).strip("/")
                hub.log.append((self.command, path))
                if hub.status is not None:
                    return self.fail(hub.status, None)
                parts = path.split("/")
                if parts[:2] == ["api", "models"]:
                    return self.api("/".join(parts[2:4]), parts[4:])
                if len(parts) > 4 and parts[2] == "resolve":
                    return self.resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
                if parts[0] == "blobs":
                    return self.blob("/".join(parts[1:3]), "/".join(parts[3:]))
                return self.fail(404, None)

            def known(self, name, revision):
                if name not in hub.repositories or name in hub.private:
                    self.fail(401, "RepoNotFound")
                elif revision not in ("main", COMMIT):
                    self.fail(404, "RevisionNotFound")
                else:
                    return True

            def api(self, name, rest):
                revision = rest[1] if len(rest) > 1 else "main"
                if not self.known(name, revision):
                    return None
                files = hub.repositories[name]
                if rest[:1] == ["tree"]:
                    tree = [
                        {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for file, data in files.items()
                    ]
                    return self.send(json.dumps(tree).encode())
                info = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
                return self.send(json.dumps(info).encode())

            def resolve(self, name, revision, file):
                if not self.known(name, revision):
                    return None
                if name in hub.gated:
                    return self.fail(403, "GatedRepo")
                data = hub.repositories[name].get(file)
                if data is None:
                    return self.fail(404, "EntryNotFound")
                headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
                if file.endswith(".safetensors"):  # large files lie elsewhere
                    headers |= {
                        "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                        "X-Linked-Size": str(len(data)),
                    }
                    return self.send(
                        b"",
                        302,
                        headers | {"Location": f"http://localhost:{self.server.server_address[1]}/blobs/{name}/{file}"},
                    )
                return self.send(data, 200, headers)

            def blob(self, name, file):
                data = hub.repositories[name][file]
                begin = 0
                if (wanted := self.headers.get("Range", "")).startswith("bytes="):
                    begin = int(wanted[6:].partition("-")[0])
                return self.send(data[begin:], 206 if begin else 200, cut=hub.cut_after)

            def fail(self, status, code):
                headers = {"X-Error-Code": code, "X-Error-Message": code} if code else {}
                return self.send(b"{}", status, headers)

            def send(self, data, status=200, headers=None, cut=None):
                self.send_response(status)
                for key, value in (headers or {}).items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[:cut])
                if cut is not None:
                    self.close_connection = True

        return Handler
