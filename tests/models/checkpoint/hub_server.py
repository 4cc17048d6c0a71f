"""A stand-in for the Hugging Face Hub: the few answers that a download needs, and a record."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMITS = {"main": "a" * 40, "v2": "b" * 40}


class StandInHub:
    """Serves repositories from memory on a free port of this machine.

    Attributes:
        repositories: repository id -> revision -> file name -> content.
        gated: ids whose files need the token "letmein".
        fetched: names of the files whose content was sent, in order.
        tokens: authorization headers seen.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.gated: set[str] = set()
        self.fetched: list[str] = []
        self.tokens: set[str | None] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub._answer(self, with_body=True)

            def do_HEAD(self) -> None:
                hub._answer(self, with_body=False)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop serving."""
        self.server.shutdown()
        self.server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler, *, with_body: bool) -> None:
        token = request.headers.get("authorization")
        self.tokens.add(token)
        parts = [unquote(part) for part in urlsplit(request.path).path.strip("/").split("/")]
        listing = parts[:2] == ["api", "models"]
        if listing:
            parts = parts[2:]
        repo_id, rest = "/".join(parts[:2]), parts[2:]
        revisions = self.repositories.get(repo_id)
        if revisions is None:
            return _error(request, 401, "RepoNotFound")
        revision = rest[1] if len(rest) > 1 else "main"
        by_commit = {commit: name for name, commit in COMMITS.items()}
        revision = by_commit.get(revision, revision)
        if revision not in revisions:
            return _error(request, 404, "RevisionNotFound")
        files, commit = revisions[revision], COMMITS[revision]
        if listing and rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
                for name, content in files.items()
            ]
            return _send(request, json.dumps(entries).encode(), {}, with_body)
        if listing:
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repo_id, "sha": commit, "siblings": siblings, "tags": []}
            return _send(request, json.dumps(info).encode(), {}, with_body)
        if repo_id in self.gated and token != "Bearer letmein":
            return _error(request, 403, "GatedRepo")
        name = "/".join(rest[2:])
        if name not in files:
            return _error(request, 404, "EntryNotFound")
        if with_body:
            self.fetched.append(name)
        headers = {"ETag": f'"{_digest(files[name])}"', "X-Repo-Commit": commit}
        return _send(request, files[name], headers, with_body)


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _send(
    request: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str], with_body: bool
) -> None:
    request.send_response(200)
    for key, value in {**headers, "Content-Length": str(len(content))}.items():
        request.send_header(key, value)
    request.end_headers()
    if with_body:
        request.wfile.write(content)


def _error(request: BaseHTTPRequestHandler, status: int, code: str) -> None:
    request.send_response(status)
    request.send_header("X-Error-Code", code)
    request.send_header("Content-Length", "0")
    request.end_headers()
