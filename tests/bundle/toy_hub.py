"""A hub on this machine: data sets and models of one commit each, over the parts of its interface that clients use."""

from __future__ import annotations

import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

COMMITS = {"datasets": "d" * 40, "models": "e" * 40}


class ToyHub:
    """Serves ``root/datasets/OWNER/NAME`` and ``root/models/OWNER/NAME`` at :attr:`url`."""

    def __init__(self, root: Path) -> None:
        hub = self
        self.root, self.asked = root, []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_POST(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> ToyHub:
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler, *, body: bool) -> None:
        split = urlsplit(request.path)
        self.asked.append(f"{request.command} {request.path}")
        sent = request.rfile.read(int(request.headers.get("Content-Length") or 0)).decode()
        parts = [unquote(part) for part in split.path.strip("/").split("/")]
        if parts[0] == "api":
            found = self._api(parts[1:], sent, request.headers.get("Content-Type", ""))
        else:
            found = self._file(parts)
        if found is None:
            kind = "EntryNotFound" if "resolve" in parts or "tree" in parts else "RepoNotFound"
            self._send(request, 404, b"{}", body=body, headers={"X-Error-Code": kind})
        elif isinstance(found, tuple):
            path, commit = found
            headers = {"X-Repo-Commit": commit, "ETag": f'"{_sha(path)}"', "Accept-Ranges": "bytes"}
            self._send(request, 200, path.read_bytes(), body=body, headers=headers)
        else:
            self._send(
                request, 200, json.dumps(found).encode(), body=body, headers={"Content-Type": "application/json"}
            )

    def _send(self, request: BaseHTTPRequestHandler, code: int, content: bytes, *, body: bool, headers: dict) -> None:
        request.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(content)

    def _api(self, parts: list[str], sent: str, kind: str) -> object | None:
        folder = self.root.joinpath(*parts[:3])
        if len(parts) < 3 or parts[0] not in COMMITS or not folder.is_dir():
            return None
        commit = COMMITS[parts[0]]
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if parts[3:4] in ([], ["revision"]):
            return {"id": "/".join(parts[1:3]), "sha": commit, "siblings": [{"rfilename": name} for name in names],
                    "private": False, "gated": False, "tags": [], "downloads": 0, "lastModified": "2026-01-01T00:00:00.000Z"}  # fmt: skip
        if parts[3] == "tree":
            inner = "/".join(parts[5:])
            here = folder / inner if inner else folder
            if not here.is_dir():
                return None
            return [self._entry(folder, path) for path in sorted(here.rglob("*"))]
        if parts[3] == "paths-info":
            asked = json.loads(sent)["paths"] if "json" in kind else parse_qs(sent).get("paths", [])
            return [self._entry(folder, folder / name) for name in asked if (folder / name).exists()]
        return None

    def _entry(self, folder: Path, path: Path) -> dict[str, object]:
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            return {"type": "directory", "oid": "0" * 40, "size": 0, "path": name}
        return {"type": "file", "oid": _sha(path)[:40], "size": path.stat().st_size, "path": name}

    def _file(self, parts: list[str]) -> tuple[Path, str] | None:
        kind = "datasets" if parts[0] == "datasets" else "models"
        parts = parts[1:] if kind == "datasets" else parts
        if parts[2:3] != ["resolve"]:
            return None
        path = self.root.joinpath(kind, *parts[:2], *parts[4:])
        return (path, COMMITS[kind]) if path.is_file() else None


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
