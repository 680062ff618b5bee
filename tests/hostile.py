"""Requests that no honest client sends, for every route of a server: see `requests`."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Hostile", "Known", "requests", "text"]

DEEP = 3000
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Known:
    """What there is on the server, so that requests come as far as they can."""

    store: str
    file: str
    batch: str
    version: str
    reference: str


@dataclass
class Hostile:
    """One request.

    Attributes:
        hurt: the one field of the body that is wrong; None: several may be, or none.
        raw: bytes that are sent instead of all the others, piece by piece; whoever sends them hangs up behind them.
    """

    method: str = "GET"
    path: str = "/"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | None = None
    hurt: str | None = None
    raw: tuple[bytes, ...] = ()


class _Raw(str):
    """JSON as it stands."""


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 2**70, 10**4000, 0.5, -0.0, 1e308, 5e-324,
    float("nan"), float("inf"), float("-inf"), _Raw("1e999"), _Raw("9" * 5000), "", " ", "\ud800", "\x00", "\uffff\u202e",
    "a" * 6000, "1", "true", "nan", "../../etc/passwd", "tiny", "tiny@docs", "tiny@", "@", "tiny@../docs", "\u0661", [], {},
    [[]], [None], [{}], ["\x00"], ["x"] * 300, [1, "x"], [-1], [2**70], {"type": "x"}, {"": 1}, {"\ud800": "\ud800"},
    {"a": {"b": [{}] * 9}}, {"type": "eq", "key": "a", "value": float("inf")}, {"type": "and", "filters": [{"type": "and"}]},
    {"type": "and", "filters": [{"type": "eq", "key": "\ud800", "value": "\x00"}]}, {"a": [2**70]}, {"a": 1e308}, {"a": []},
    {"a": 2**63}, {"year": float("nan")}, {"year": [1874, "1874", True]}, _Raw("[" * 50 + "]" * 50),
    {"a": _Raw("[" * 900 + "]" * 900)}, {"a": float("nan")}, {"a": "\ud800"}, _Raw('{"a":' * 800 + "1" + "}" * 800),
    _Raw("[" * DEEP + "]" * DEEP), _Raw('{"a":' * DEEP + "1" + "}" * DEEP),
]  # fmt: skip
IDS = [
    "..", ".", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "..%5c..%5cx", "%00", "%0d%0aX-A:%20b", "%ff%fe",
    "%ed%a0%80",
    "a" * 3000, "%", "%zz", "-", "*", "~root", "con", "file-", "vs_", "file-../x", "%f0%9f%92%a5", "docs%00", "docs/../secret",
    "river%230", "river%23-1", "river%2399999999999999999999", "%23", ";", "&", "'", "%22", "{store}", "{file}",
]  # fmt: skip
QUERIES = [
    "limit=0", "limit=-1", "limit=1e3", "limit=%D9%A1", "limit=" + "9" * 400, "order=x", "after=%00", "before=%ff", "after=",
    "filter=x", "purpose=%00", "x=1", "version=%00", "version=" + "0" * 32, "version=" + "g" * 32, "mode=%00", "k=-1", "k=1e9",
    "k=" + "9" * 30, "gap=nan", "gap=inf", "gap=-1", "bank=%ff", "bank=docs&id=%00", "bank=docs&id=river%230&around=65",
    "bank=docs&id=river%230&around=" + "9" * 5000, "bank=docs&bank=secret&id=x", "&&&=", "%00=%00", "a" * 5000,
    "mode=text&mode=x",
]  # fmt: skip
RANGES = [
    "bytes=0-", "bytes=-5", "bytes=5-2", "bytes=0-0,2-3", "bytes=999999999999-", "bytes=-0", "bytes=-", "bytes=a-b",
    "items=0-5",
    "bytes", "bytes=", "=", "bytes=0-99999999999999999999", "bytes=--1", "bytes=" + ",".join(["0-"] * 500), "bytes=\xb2-\xb3",
    "bytes=" + "9" * 5000 + "-", "bytes= 0 - 1 ", "bytes=0-1;x", "bytes=,", "bytes=1-1,-1,1-",
]  # fmt: skip
TAGS = ["*", '"', "", 'W/"x"', "x" * 2000, ",,,", "\xff", "\x80", "Thu, 01 Jan 1970 00:00:00 GMT", '"a", *']
KINDS = [
    "", "text/plain", "application/json; charset=utf-16", "application/json; charset=\xff", "application/xml", "json",
    "multipart/form-data", "application/x-www-form-urlencoded", "application/json;" + "x" * 4000, "application/vnd.a+json",
    "/",
    "multipart/form-data; boundary=" + "b" * 200, "multipart/form-data; boundary=\xff",
]  # fmt: skip


def _bodies(known: Known) -> dict[str, dict[str, Any]]:
    """By path, a body that is right, with as many of the fields as go together."""
    talk = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
    memory = {"mode": "text", "k": 2, "gap": 0.5, "where": {"year": [1874]}}
    chat = {"model": "tiny@docs", "max_tokens": 1, "memory3": memory, "stream_options": None}
    named = {"version": known.version, "ids": [known.reference]}
    equal = {"type": "and", "filters": [{"type": "eq", "key": "a", "value": "b"}]}
    tool = {"type": "file_search", "vector_store_ids": [known.store], "max_num_results": 2, "filters": equal}
    store = f"/v1/vector_stores/{known.store}"
    return {
        "/v1/chat/completions": {**chat, "messages": talk, "logprobs": True, "top_logprobs": 1, "stop": ["x"]},
        "/v1/completions": {**chat, "prompt": "The bridge", "logprobs": 1},
        "/v1/responses": {"model": "tiny", "max_output_tokens": 1, "input": talk[0]["content"][0]["text"], "tools": [tool]},
        "/v1/embeddings": {"model": "tiny@docs", "input": ["x"], "encoding_format": "base64"},
        "/v1/vector_stores": {"name": "x", "metadata": {"a": "b"}, "file_ids": [known.file]},
        store: {"name": "x", "metadata": {"a": "b"}},
        f"{store}/search": {"query": "x", "max_num_results": 2, "filters": equal, "ranking_options": {"score_threshold": 0.0}},
        f"{store}/files": {"file_id": known.file, "attributes": {"a": 1}, "chunking_strategy": {"type": "auto"}},
        f"{store}/files/{known.file}": {"attributes": {"a": 1}},
        f"{store}/file_batches": {"files": [{"file_id": known.file, "attributes": {"a": 1}}]},
        "/banks/docs/search": {
            "version": known.version,
            "queries": ["x"],
            "k": 2,
            "gap": 2.0,
            "have": "",
            "where": {"year": 1874},
        },
        "/banks/docs/records": named,
        "/banks/docs/references": named,
        "/banks/docs/count": {"version": known.version, "where": {"year": [1874]}},
        "/banks/docs/metadata": {"version": known.version},
    }


def _fields(openapi: Mapping[str, Any]) -> dict[str, list[str]]:
    """By the pattern of a path, the fields of its body, from the server's own description."""
    found = {}
    for pattern, methods in openapi["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema", {})
        name = schema.get("$ref", "").rpartition("/")[2]
        found[pattern] = list(openapi["components"]["schemas"].get(name, {}).get("properties", {}))
    return found


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a body, at any depth."""
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield (*place, key)
        yield from _places(one, (*place, key))


def _put(body: Any, place: tuple[Any, ...], value: Any) -> None:
    for key in place[:-1]:
        body = body[key]
    body[place[-1]] = value


def text(value: Any) -> str:
    """JSON that may hold what JSON may not."""
    if isinstance(value, _Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(text(one) for one in value) + "]"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**300:
        return "1" + "0" * 4000  # Python writes no number of so many digits
    return json.dumps(value)


def requests(chance: random.Random, known: Known, openapi: Mapping[str, Any]) -> Iterator[Hostile]:
    """Requests for ever, each of a kind that ``chance`` takes."""
    bodies, fields = _bodies(known), _fields(openapi)
    routes = [(method.upper(), pattern) for pattern, methods in openapi["paths"].items() for method in methods]
    kinds = {_field: 10, _places_hurt: 4, _broken: 3, _addressed: 5, _ranged: 2, _uploaded: 4, _framed: 1}
    while True:
        (make,) = chance.choices(list(kinds), list(kinds.values()))
        yield make(chance, known, bodies, fields, routes)


def _filled(pattern: str, known: Known) -> str:
    path = pattern.replace("{store_id}", known.store).replace("{file_id}", known.file).replace("{batch_id}", known.batch)
    path = path.replace("{reference_id}", known.reference.replace("#", "%23")).replace("{model:path}", "tiny@docs")
    return path.replace("{name}", "docs").replace("{model}", "tiny@docs")


def _field(chance: Any, known: Known, bodies: Any, fields: Any, routes: Any) -> Hostile:
    """One field of a right body has a hostile value, or two have."""
    path = chance.choice(list(bodies))
    pattern = next((one for one in fields if fields[one] and _filled(one, known) == path), None)
    assert pattern is not None, f"{path} is no route any more"
    body = copy.deepcopy(bodies[path])
    names = [chance.choice([*fields[pattern], "\ud800", "", "__class__", "nix"]) for _ in range(chance.choice((1, 1, 1, 2)))]
    for name in names:
        body[name] = chance.choice(VALUES)
    return Hostile("POST", path, JSON, text(body).encode("utf-8", "surrogatepass"), names[0] if len(names) == 1 else None)


def _places_hurt(chance: Any, known: Known, bodies: Any, fields: Any, routes: Any) -> Hostile:
    """Something inside a right body has a hostile value."""
    path = chance.choice(list(bodies))
    body = copy.deepcopy(bodies[path])
    place = chance.choice(list(_places(body)))
    here: Any = body
    for key in place:
        here = here[key]
    of_kind = [one for one in VALUES if isinstance(one, str)] if isinstance(here, str) and chance.random() < 0.5 else VALUES
    _put(body, place, chance.choice(of_kind))
    return Hostile("POST", path, JSON, text(body).encode("utf-8", "surrogatepass"), str(place[0]))


def _broken(chance: Any, known: Known, bodies: Any, fields: Any, routes: Any) -> Hostile:
    """What is no JSON, has keys twice, or is called otherwise."""
    path = chance.choice(list(bodies))
    body = text(bodies[path]).encode()
    cut = chance.randrange(len(body))
    made = chance.choice(
        [
            body[:cut],
            body[:cut] + chance.choice([b'"', b"{", b"}", b"\\", b"\x00", b"\xff", b"\\ud800"]) + body[cut:],
            body[:-1] + b"," + body[1:],  # every key twice
            b"\xef\xbb\xbf" + body,
            body.decode().encode("utf-16"),
            body + body,
            chance.randbytes(chance.randrange(300)),
            b"[" * 100_000,
            b'{"a":' * 30_000,
            chance.choice([b"", b"null", b"[]", b'"x"', b"NaN", b"1" * 10_000, b"{}", b"-", b"[{}]", b"true"]),
            body,
        ]
    )
    headers = chance.choice([JSON, {"Content-Type": chance.choice(KINDS)}, {**JSON, "Content-Encoding": "gzip"}, {}])
    return Hostile("POST", path, headers, made)


def _addressed(chance: Any, known: Known, bodies: Any, fields: Any, routes: Any) -> Hostile:
    """An address with a hostile id, a hostile query, or a method that is not meant."""
    method, pattern = chance.choice(routes)
    parts = pattern.split("/")
    named = [n for n, part in enumerate(parts) if part.startswith("{")]
    hurt = bool(named) and (chance.random() < 0.7 or method == "DELETE")  # what is known must stay
    if hurt:
        parts[chance.choice(named)] = chance.choice(IDS).format(store=known.store, file=known.file)
    path = _filled("/".join(parts), known)
    if method == "DELETE" and known.store in path and known.file in path:
        path = path.replace(known.file, "file-x")
    if method == "DELETE" and path in (f"/v1/files/{known.file}", f"/v1/vector_stores/{known.store}"):
        path += "x"
    if not named or chance.random() < 0.4:
        path += "?" + chance.choice(QUERIES)
    if chance.random() < 0.15:
        method = chance.choice(["GET", "HEAD", "PUT", "PATCH", "OPTIONS", "TRACE", "NIX", "get"])
    body = text(bodies.get(_filled(pattern, known), {"x": 1})).encode() if method == "POST" else None
    return Hostile(method, path, JSON if body else {}, body)


def _ranged(chance: Any, known: Known, bodies: Any, fields: Any, routes: Any) -> Hostile:
    """Ranges and tags, and other headers."""
    reference = known.reference.replace("#", "%23")
    path = chance.choice(
        [f"/banks/docs/records/{reference}", "/banks/docs", "/banks/docs/codec", f"/v1/files/{known.file}/content", "/",
         f"/banks/docs/records/{reference}?version={known.version}"]
    )  # fmt: skip
    headers = {"Range": chance.choice(RANGES)}
    for name in ("If-None-Match", "If-Range", "If-Modified-Since", "X-Request-Id", "Authorization", "Host", "Accept"):
        if chance.random() < 0.2:
            headers[name] = chance.choice(TAGS)
    return Hostile(chance.choice(["GET", "GET", "HEAD"]), path, headers)


def _uploaded(chance: Any, known: Known, bodies: Any, fields: Any, routes: Any) -> Hostile:
    """An upload: cut, with parts too many or too few, and names that would lead elsewhere."""
    names = [
        "../../x.txt", "/etc/passwd", "x\x00.txt", "", ".", "..", "a" * 5000, "\udcff", '"; filename="y', "con",
        "x.tar.gz.zip",
        "C:\\x.txt", "\u202etxt.exe", "x.pdf", "x.parquet", "x.json.gz", "%2e%2e%2fx",
    ]  # fmt: skip
    name = chance.choice(names).encode("utf-8", "surrogateescape")
    boundary = chance.choice([b"b", b"b", b"b", b"-" * 70])
    data = chance.choice([b"", b"The bridge.", b"\x00" * 3000, b"--b", b"\r\n--b\r\n", b"[" * 5000, chance.randbytes(3000)])
    parts = [
        b'Content-Disposition: form-data; name="purpose"\r\n\r\n'
        + chance.choice([b"assistants", b"assistants", b"nix", b"\xff", b""]),
        b'Content-Disposition: form-data; name="file"; filename="' + name + b'"\r\n\r\n' + data,
    ]
    more = [
        parts[1], b"", b"\r\n", b"Content-Disposition: form-data\r\n\r\nx", b'Content-Disposition: x; name="x"\r\n\r\nx',
        b"X: y" * 999,
        b'Content-Disposition: form-data; name="y"; filename="z"\r\n\r\n', b"\xff: \xff\r\n\r\n",
        b"Content-Disposition: " + b";" * 9000,
        b'Content-Disposition: form-data; name="' + b"n" * 5000 + b'"\r\n\r\nx',
        b'Content-Disposition: form-data; name="expires_after[seconds]"\r\n\r\n1',
        b"Content-Disposition: form-data; name*=utf-8''%ff; filename*=utf-8''..%2f..%2fx\r\n\r\nx",
    ]  # fmt: skip
    for _ in range(chance.choice((0, 0, 1, 30))):
        parts.insert(chance.randrange(len(parts) + 1), chance.choice(more))
    chance.shuffle(parts)
    body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts) + b"--" + boundary + b"--\r\n"
    if chance.random() < 0.3:
        body = body[: chance.randrange(len(body))]
    kind = f"multipart/form-data; boundary={boundary.decode()}"
    return Hostile("POST", "/v1/files", {"Content-Type": kind if chance.random() < 0.9 else chance.choice(KINDS)}, body)


def _framed(chance: Any, known: Known, bodies: Any, fields: Any, routes: Any) -> Hostile:
    """Bytes that are no HTTP, or promise other than they hold."""
    path = chance.choice([*bodies, "/v1/files"])
    body = text(bodies.get(path, {})).encode()
    kind = (
        b"Content-Type: application/json\r\n" if path != "/v1/files" else b"Content-Type: multipart/form-data; boundary=b\r\n"
    )
    head = b"POST " + path.encode() + b" HTTP/1.1\r\nHost: x\r\n" + kind
    size = str(len(body)).encode()
    lengths = [
        b"",
        b"-1",
        b"+" + size,
        b"0x10",
        b"1e3",
        b"9" * 30,
        b"9" * 5000,
        size + b", " + size,
        b"\xb2",
        b"1" + size,
        b"1",
    ]
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    whole = b"%x\r\n%s\r\n" % (len(body), body)
    raws = [head + b"Content-Length: " + one + b"\r\n\r\n" + body for one in lengths]
    raws += [
        head + b"\r\n" + body, chunked, chunked + whole, chunked + b"zz\r\n" + body, chunked + b"f" * 40 + b"\r\n",
        chunked + b"-1\r\n",
        chunked + whole + b"0\r\nX: " + b"y" * 100_000, chunked + whole + b"0\r\n\r\n" + chunked + whole + b"0\r\n\r\n",
        head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body, chunked[:-2] + b"Content-Length: 5\r\n\r\n" + body,
        head + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + whole,
        head + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n",
        head + b"Upgrade: websocket\r\nConnection: Upgrade\r\n\r\n", head + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\r\n" * 99,
        b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /\x00 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", b"GET //x HTTP/1.0\r\n\r\n",
        b"X" * 40_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 20_000, chance.randbytes(500),
    ]  # fmt: skip
    raw = chance.choice(raws)
    late = [
        (chunked, b"zz\r\n"),
        (chunked.replace(b"/v1/", b"/nix/"), b"zz\r\n", b"\r\n"),
        (head + b"Content-Length: 0\r\n\r\n", raw),
    ]
    return Hostile(raw=chance.choice([(raw,), (raw,), (raw[:1], raw[1:]), (raw, raw), *late]))
