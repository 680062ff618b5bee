"""A server of the S3 protocol (moto's) in a process of its own, on 127.0.0.1, with faults on demand. As a module: its client.

    python tests/object_store.py        prints its port; ends with its standard input

What a request asks is done by moto; in front of it stand a log of requests, the keys that it takes, and faults: see `Fault`.
One request that writes at a time, with its body read before: a condition (If-None-Match, If-Match) and its write are one.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

KEY, SECRET = "memory3", "secret-of-the-tests"
BUCKET = "banks"


@dataclass
class Fault:
    """What goes wrong with the requests that match.

    Attributes:
        kind: ``before``: an error, nothing was done; ``after``: an error, and it was done all the same; ``lost``: it was done,
            and the connection is cut; ``cut``: the connection is cut, nothing was done; ``slow``: the answer comes a byte at a
            time; ``late``: it is begun after ``seconds``; ``plain``: its conditions are not looked at.
        path: a regular expression that method, path and query (``PUT /banks/...``) must contain.
        status, code: of an error.
        times: of requests, the first so many; -1: all.
        skip: so many that match are let pass before.
        seconds: how late.
    """

    kind: str
    path: str
    status: int = 500
    code: str = "InternalError"
    times: int = -1
    skip: int = 0
    seconds: float = 0.0


class Server:
    """The client of a server that was started by `serving`."""

    def __init__(self, port: int) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self._places = 0

    def place(self) -> str:
        """A URL below which nothing is yet, in a bucket of its own: moto looks at every object of one to list some."""
        self._places += 1
        bucket = f"{BUCKET}-{self._places}"
        key = f"AWS4-HMAC-SHA256 Credential={KEY}/20200101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        made = urllib.request.Request(f"{self.endpoint}/{bucket}", data=b"", method="PUT", headers={"Authorization": key})
        urllib.request.urlopen(made, timeout=10).close()
        return f"s3://{bucket}/tests/bank"

    def environment(self, key: str = KEY) -> dict[str, str]:
        """The standard variables that lead to it."""
        return {
            "AWS_ACCESS_KEY_ID": key,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def fault(self, kind: str, path: str, **rest: Any) -> None:
        """From now on; see `Fault`."""
        self._ask("fault", asdict(Fault(kind, path, **rest)))

    def mend(self) -> list[int]:
        """No faults any more. How many requests each has met."""
        return list(self._ask("mend"))

    def requests(self) -> list[str]:
        """What was asked since this was last called: ``GET /banks/name bytes=0-3 206``."""
        return list(self._ask("log"))

    def waiting(self) -> list[str]:
        """Requests that are late now."""
        return list(self._ask("waiting"))

    def _ask(self, what: str, content: Any = None) -> Any:
        request = urllib.request.Request(f"{self.endpoint}/_tests/{what}", data=json.dumps(content).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


@contextmanager
def serving() -> Iterator[Server]:
    """A server with the empty bucket `BUCKET`, in a process of its own that ends with ``with``, or with this process."""
    command = [sys.executable, str(Path(__file__))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Server(int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.terminate()


# ---- the process ---------------------------------------------------------------------------------------------------------


class _Faulty:
    """A WSGI application around another one."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._faults: list[Fault] = []
        self._met: list[int] = []
        self._log: list[str] = []
        self._late: list[str] = []
        self._lock, self._writing = Lock(), Lock()

    def __call__(self, environ: dict[str, Any], start: Any) -> Any:
        path = environ["PATH_INFO"]
        if path.startswith("/_tests/"):
            body = json.dumps(self._told(path.rpartition("/")[2], json.loads(_body(environ)))).encode()
            start("200 OK", [("Content-Length", str(len(body)))])
            return [body]
        line = f"{environ['REQUEST_METHOD']} {path}" + (f"?{environ['QUERY_STRING']}" if environ["QUERY_STRING"] else "")
        body = _body(environ)
        fault = self._fault(line)
        if fault is not None and fault.kind == "late":
            self._late.append(line)
            time.sleep(fault.seconds)
            self._late.remove(line)
        if fault is not None and fault.kind == "plain":
            for condition in ("HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"):
                environ.pop(condition, None)
        if fault is not None and fault.kind in ("before", "cut"):
            return self._end(fault, environ, start, line)
        authorization = environ.get("HTTP_AUTHORIZATION", "")
        if f"Credential={KEY}/" not in authorization:
            code = "InvalidAccessKeyId" if authorization else "AccessDenied"
            return self._end(Fault("before", "", 403, code), environ, start, line)
        environ["wsgi.input"] = BytesIO(body)
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            answer = _Answer(self._app, environ)
        else:
            with self._writing:
                answer = _Answer(self._app, environ)
        if fault is not None and fault.kind in ("after", "lost"):
            return self._end(fault, environ, start, line)
        with self._lock:
            self._log.append(f"{line} {environ.get('HTTP_RANGE', '')} {answer.status[:3]}".replace("  ", " "))
        start(answer.status, answer.headers)
        if fault is not None and fault.kind == "slow":
            return _slowly(answer.content, fault.seconds)
        return [answer.content]

    def _fault(self, line: str) -> Fault | None:
        with self._lock:
            for number, fault in enumerate(self._faults):
                if re.search(fault.path, line):
                    fault.skip -= 1
                    if fault.skip < 0 and fault.times:
                        fault.times -= 1
                        self._met[number] += 1
                        return fault
        return None

    def _end(self, fault: Fault, environ: dict[str, Any], start: Any, line: str) -> Any:
        with self._lock:
            self._log.append(f"{line} {fault.kind}")
        if fault.kind in ("cut", "lost"):
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionError("cut")
        text = f"<?xml version='1.0'?><Error><Code>{fault.code}</Code><Message>of the tests</Message></Error>".encode()
        start(f"{fault.status} Fault", [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else text]

    def _told(self, what: str, content: Any) -> Any:
        with self._lock:
            if what == "fault":
                self._faults.append(Fault(**content))
                self._met.append(0)
                return None
            if what == "mend":
                met, self._faults, self._met = self._met, [], []
                return met
            if what == "waiting":
                return list(self._late)
            log, self._log = self._log, []
            return log


class _Answer:
    """The whole answer of an application."""

    def __init__(self, app: Any, environ: Mapping[str, Any]) -> None:
        self.status, self.headers = "", []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
            self.status, self.headers = status, headers

        self.content = b"".join(app(environ, start))


def _body(environ: Mapping[str, Any]) -> bytes:
    return bytes(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))


def _slowly(content: bytes, seconds: float) -> Iterator[bytes]:
    """Byte by byte, for so long."""
    for place in range(len(content)):
        time.sleep(seconds / len(content))
        yield content[place : place + 1]


def _serve() -> None:
    import logging
    from threading import Thread

    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = make_server("127.0.0.1", 0, _Faulty(DomainDispatcherApplication(create_backend_app)), threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET)
    client.create_bucket(Bucket=BUCKET)
    print(server.server_port, flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    _serve()
