"""Requests that no client should send, generated from a seed, over REST and gRPC.

    python tests/hostile.py --count 100000 --seed 1

starts a server, sends it the same requests twice, and prints how often each status was the answer and what memory
it holds after each run. With `--http 127.0.0.1:8000 --grpc 127.0.0.1:8001` they are sent once to a server that runs
already, with the models of `MODELS` and the limits of `CONFIG`. Every request is made from the seed and its own
number alone, so that a run can be repeated and a single request shown (`--show rest --number 7`).

A request is *whole* if its bytes, however senseless, are one complete message of the transport: it must get an
answer. Others are cut short, or break the framing: there the server may just as well hang up.
"""

from __future__ import annotations

import argparse
import collections
import copy
import gzip
import json
import random
import socket
import struct
import sys
import threading
import time
import zlib

import grpc
from server import Server, emulated, identity
from tritonclient.grpc import service_pb2

# What the requests are about; `pair` has two inputs that must agree.
MODELS = {
    "plain.emulated.toml": identity("FP32", dims=("batch", 4)),
    "text.emulated.toml": identity("BYTES"),
    "half.emulated.toml": identity("FP16"),
    "fixed.emulated.toml": identity("INT64", dims=(2, 3)),
    "pair.emulated.toml": emulated(
        [("a", "INT32", ["batch", "n"]), ("b", "BOOL", ["batch", "n"])], [("c", "a"), ("d", "b")]
    ),
}
BODY_BYTES_MAX = 1 << 20
# Small bounds, so that exceeding them is cheap.
CONFIG = f"""
[limits]
body_bytes = {BODY_BYTES_MAX}
response_bytes = {4 << 20}
in_flight_bytes = {64 << 20}
header_s = 2.0
body_s = 0.5
"""

ANSWER_S = 20.0

# None is ever the right answer to a client's mistake. 501 and 503 are not documented for any of these; 504 and
# its sister are right only for a request that says how soon it is too late.
HTTP_NEVER = {500, 501, 502, 503, 504}
GRPC_NEVER = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "DEADLINE_EXCEEDED", "ABORTED"}

# -- valid requests, from which the others are made


def valid_json(rng) -> tuple[str, dict]:
    """A model and a request that it answers."""
    model = rng.choice(["plain", "text", "fixed", "pair"])
    if model == "plain":
        rows = rng.randint(1, 3)
        inputs = [tensor("x", "FP32", [rows, 4], [rng.choice([0.5, 1, -2e3, 7]) for _ in range(4 * rows)])]
    elif model == "text":
        inputs = [tensor("x", "BYTES", [1, 3], [rng.choice(["", "a", "ü🦀", "long" * 50]) for _ in range(3)])]
    elif model == "fixed":
        inputs = [tensor("x", "INT64", [2, 3], [[1, 2, 3], [-4, 5, 2**62]])]
    else:
        inputs = [tensor("a", "INT32", [2, 2], [1, 2, 3, 4]), tensor("b", "BOOL", [2, 2], [True, False, True, False])]
    request = {"inputs": inputs}
    if rng.random() < 0.3:
        request["id"] = f"r{rng.randint(0, 99)}"
    if rng.random() < 0.3:
        request["parameters"] = {"priority": 1, "timeout": 15_000_000, "binary_data_output": rng.random() < 0.5}
    if rng.random() < 0.3:
        request["outputs"] = [{"name": "c" if model == "pair" else "y"}]
    return model, request


def tensor(name, datatype, shape, data) -> dict:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def valid_binary(rng) -> tuple[str, int, bytes]:
    """A model, the length of the JSON, and the body of a binary request."""
    if rng.random() < 0.5:
        content, head = struct.pack("<4f", 1, 2, 3, 4), {"name": "x", "shape": [1, 4], "datatype": "FP32"}
        model = "plain"
    else:
        content, head = b"\x01\0\0\0a\0\0\0\0\x02\0\0\0\xff\0", {"name": "x", "shape": [1, 3], "datatype": "BYTES"}
        model = "text"
    head["parameters"] = {"binary_data_size": len(content)}
    text = json.dumps({"inputs": [head]}).encode()
    return model, len(text), text + content


# -- ways to spoil

HOSTILE_VALUES = [
    None, True, False, 0, -1, 1, 4, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**400, -(2**63), 0.5, 1e308,
    -0.0, "", "x", "FP32", "BYTES", "BF16", "INT99", "\x00", "\ud800", "ü" * 200, "../../etc/passwd", "%n%s", [],
    {}, [[]],
    [-1], [0], [2**62, 2**62], [2**32, 2**32], [1] * 200, {"binary_data": True}, {"binary_data_size": 2**63},
    {"binary_data_size": -1}, {"classification": 10**9}, {"classification": -1}, {"classification": 2**64},
    {"priority": "x"},
    {"timeout": -1}, {"timeout": 1.5}, {"shared_memory_region": "r", "shared_memory_byte_size": 64}, {"sequence_id": 5},
]  # fmt: skip
HOSTILE_TOKENS = [
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\x00", b"\xff", b"NaN", b"-", b"1e999", b"Infinity",
    b"\\ud800", b"\\u00",
    b"\xf0\x9f", b"tru", b"null", b"0123", b"1.", b".5", b"--1", b"[" * 150, b'{"a":' * 150, b" " * 3000,
    b"9" * 5000, b"\xef\xbb\xbf",
]  # fmt: skip
KEYS = ["name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "id", "binary_data_size", "x" * 300, ""]


def spoil_bytes(rng, content: bytes) -> bytes:
    """Flips, cuts, repeats or inserts."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, len(content))
        kind = rng.randrange(5)
        if kind == 0 and at < len(content):
            content[at] = rng.randrange(256)
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            del content[at : at + rng.randint(1, 20)]
        elif kind == 3:
            content[at:at] = content[at : at + rng.randint(1, 60)] * rng.randint(1, 20)
        else:
            content[at:at] = rng.choice(HOSTILE_TOKENS)
    return bytes(content)


def spoil_json(rng, value):
    """Replaces, removes, doubles or adds something somewhere in a JSON value."""
    places = []

    def visit(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)):
                visit(node[key])

    visit(value)
    node, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind <= 1:
        node[key] = copy.deepcopy(rng.choice(HOSTILE_VALUES))
    elif kind == 2:
        del node[key]
    elif isinstance(node, list):
        node += [node[key]] * rng.randint(1, 300)
    elif kind == 3:
        node[rng.choice(KEYS)] = copy.deepcopy(node[key])
    else:
        node[rng.choice(KEYS)] = copy.deepcopy(rng.choice(HOSTILE_VALUES))
    return value


def nested(rng) -> bytes:
    """Far deeper than anybody may nest."""
    depth = rng.choice([99, 101, 500, 50_000])
    start, end = rng.choice([(b"[", b"]"), (b'{"a":', b"}"), (b'[{"x":', b"}]")])
    inner = start * depth + b"1" + (end * depth if rng.random() < 0.5 else b"")
    place = rng.choice([b"%s", b'{"inputs":%s}', b'{"inputs":[{"name":"x","shape":[1,4],"datatype":"FP32","data":%s}]}',
                        b'{"parameters":{"p":%s},"inputs":[]}'])  # fmt: skip
    return place.replace(b"%s", inner)


# -- REST


class Case:
    """One request over REST, as bytes."""

    def __init__(
        self, kind: str, content: bytes, whole: bool = True, only: int | None = None, half_close: bool = False
    ):
        self.kind = kind
        self.content = content
        # Must be answered.
        self.whole = whole
        # The only right status, if there is one.
        self.only = only
        # The client says that it sends no more.
        self.half_close = half_close


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def infer(model: str) -> str:
    return f"/v2/models/{model}/infer"


def rest_valid(rng) -> Case:
    model, request = valid_json(rng)
    return Case("valid", post(infer(model), json.dumps(request).encode()), only=200)


def rest_bytes(rng) -> Case:
    model, request = valid_json(rng)
    return Case("bytes", post(infer(model), spoil_bytes(rng, json.dumps(request).encode())))


def rest_json(rng) -> Case:
    model, request = valid_json(rng)
    for _ in range(rng.randint(1, 2)):
        if request:
            request = spoil_json(rng, request)
    return Case("json", post(infer(model), json.dumps(request).encode()))


def rest_nested(rng) -> Case:
    path = rng.choice([infer("plain"), "/v2/repository/index"])
    return Case("nested", post(path, nested(rng)))


def rest_binary(rng) -> Case:
    model, length, body = valid_binary(rng)
    kind = rng.randrange(4)
    if kind == 0:
        body = body[:length] + spoil_bytes(rng, body[length:])
    elif kind == 1:
        length = rng.choice(
            [0, 1, length - 1, length + 1, len(body), len(body) + 1, 2**31, 2**63, 2**64, 10**30, -1, "x", ""]
        )
    elif kind == 2:
        key = b'binary_data_size": '
        body = body[:length].replace(key, key + rng.choice([b"9", b"-", b"0.", b"1e"])) + body[length:]
    else:
        body += b"\xff" * rng.choice([1, 4, 5000])
    return Case("binary", post(infer(model), body, f"Inference-Header-Content-Length: {length}"))


def rest_coded(rng) -> Case:
    """Broken, wrong or explosive compression."""
    model, request = valid_json(rng)
    body = json.dumps(request).encode()
    coding = rng.choice(["gzip", "deflate"])
    packed = gzip.compress(body, mtime=0) if coding == "gzip" else zlib.compress(body)
    kind = rng.randrange(5)
    if kind == 0:
        packed = spoil_bytes(rng, packed)
    elif kind == 1:
        packed = body
    elif kind == 2:
        packed = gzip.compress(b" " * (BODY_BYTES_MAX * 8), 1, mtime=0) if rng.random() < 0.2 else packed + packed
    elif kind == 3:
        packed = packed[: rng.randint(0, len(packed))]
    else:
        coding = rng.choice(["br", "zstd", "gzip, gzip", "identity", "GZIP", "", "x" * 100])
    return Case("coded", post(infer(model), packed, f"Content-Encoding: {coding}"))


def rest_oversized(rng) -> Case:
    """More than the server takes, announced or really sent."""
    if rng.random() < 0.03:
        length = rng.choice([BODY_BYTES_MAX + 1, 2**31, 2**40, 2**63 - 1])
        head = f"POST {infer('plain')} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n".encode()
        return Case("oversized", head, only=413)
    return Case("oversized", post(infer("plain"), b" " * (BODY_BYTES_MAX + rng.randint(1, 1000))), only=413)


def rest_head(rng) -> Case:
    """Paths, methods and headers; with a body that the server must not take for the next request."""
    paths = ["/", "//", "/v2/models/%00/infer", "/v2/models/%/infer", "/v2/models/%ff%fe/infer", "/v2/models//infer",
             "/v2/models/plain/versions/99999999999999999999/infer", "/v2/models/plain/versions/-1/infer",
             "/v2/models/plain/versions//infer", "/v2/models/../../etc/passwd", "/v2/models/" + "x" * 3000 + "/infer",
             "/v2/models/plain/infer/infer", "/v2/models/plain/infer?x=" + "y" * 500, "*", "/v2/health/ready/",
             "/v2/models/plain/stats",
             "/v2/models/plain/generate", "/v2/systemsharedmemory/status",
             "/v1/chat/completions", infer("plain"), infer("nope")]  # fmt: skip
    methods = ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "FOO"]
    headers = ["X-A: " + "v" * 3000, "x-request-timeout-ms: -1", "x-request-timeout-ms: 99999999999999999999",
               "Inference-Header-Content-Length: 18446744073709551616", "Accept-Encoding: gzip;q=x, *;q=0",
               "Content-Type: \xff\xfe",
               "x-request-id: " + "i" * 2000, "x-request-id: \xff", "grpc-timeout: 1X",
               "Accept-Encoding: " + "gzip," * 200]  # fmt: skip
    body = rng.choice([b"", b"{}", b"GET / HTTP/1.1\r\n\r\n", json.dumps(valid_json(rng)[1]).encode()])
    chosen = rng.sample(headers, rng.randint(0, 2))
    lines = [f"{rng.choice(methods)} {rng.choice(paths)} HTTP/1.1", "Host: h", f"Content-Length: {len(body)}", *chosen]
    return Case("head", "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)


def rest_framing(rng) -> Case:
    """What is not HTTP, or HTTP that contradicts itself."""
    body = json.dumps(valid_json(rng)[1]).encode()
    start = f"POST {infer('plain')} HTTP/1.1\r\nHost: h\r\n".encode()
    chunked = start + b"Transfer-Encoding: chunked\r\n\r\n"
    content = rng.choice([
        rng.randbytes(rng.randint(1, 200)), b"\r\n" * 50, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/1.1\r\nBad Header\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
        start + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef", start + b"Content-Length: -5\r\n\r\nabc",
        start + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        chunked + b"zz\r\nabc\r\n", chunked + b"-1\r\n", chunked + b"fffffffffffffffff\r\n",
        chunked + b"5\r\nabcdefgh\r\n0\r\n\r\n",
        chunked + b"%x\r\n" % len(body) + body + b"\r\n0\r\nTrailer: x\r\n\r\n",
        chunked + (b"1;" + b"e" * 900 + b"\r\n{\r\n") * 30,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(60),
        start + b"Expect: 200-maybe\r\nContent-Length: 2\r\n\r\n{}",
    ])  # fmt: skip
    return Case("framing", content, whole=False, half_close=True)


def rest_truncated(rng) -> Case:
    """A client whose cable is pulled."""
    content = rest_valid(rng).content if rng.random() < 0.5 else rest_binary(rng).content
    return Case("truncated", content[: rng.randint(1, len(content) - 1)], whole=False, half_close=True)


REST = [
    (rest_valid, 5), (rest_bytes, 20), (rest_json, 30), (rest_nested, 4), (rest_binary, 14), (rest_coded, 8),
    (rest_oversized, 1),
    (rest_head, 10), (rest_framing, 4), (rest_truncated, 4),
]  # fmt: skip


def rest_case(seed: int, number: int) -> Case:
    rng = random.Random(f"rest {seed} {number}")
    make = rng.choices([make for make, _ in REST], [weight for _, weight in REST])[0]
    return make(rng)


class RestClient:
    """Sends on one connection for as long as the server keeps it."""

    def __init__(self, address: str):
        host, port = address.rsplit(":", 1)
        self._address = (host, int(port))
        self._socket = None
        self._held = b""

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._held = b""

    def send(self, case: Case):
        """The status of the answer; `closed` if there was none, `late` if the server did nothing at all."""
        for attempt in (0, 1):
            is_fresh = self._socket is None
            if is_fresh:
                self._socket = socket.create_connection(self._address, timeout=ANSWER_S)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            status = self._exchange(case)
            # A kept connection may have been closed meanwhile, as after every answer.
            if status == "closed" and not is_fresh and attempt == 0:
                continue
            return status

    def _exchange(self, case: Case):
        try:
            try:
                self._socket.sendall(case.content)
                if case.half_close:
                    self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # The answer may have come before the request was over.
            status, keep = self._answer()
            while status == 100:
                status, keep = self._answer()
        except TimeoutError:
            self.close()
            return "late"
        except (OSError, ValueError):
            self.close()
            return "closed"
        # Whatever else lies there belongs to no request.
        if case.half_close or not keep or self._held:
            self.close()
        return status

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("closed")
        self._held += data

    def _answer(self):
        while b"\r\n\r\n" not in self._held:
            if len(self._held) >= 9 and not self._held.startswith(b"HTTP/1."):
                raise ValueError("not HTTP/1")
            self._receive()
        head, self._held = self._held.split(b"\r\n\r\n", 1)
        lines = head.decode("latin-1").split("\r\n")
        headers = dict((name.lower(), value) for name, value in (line.split(": ", 1) for line in lines[1:]))
        length = int(headers.get("content-length", 0))
        if lines[0].split()[1] != "100":
            while len(self._held) < length:
                self._receive()
            self._held = self._held[length:]
        return int(lines[0].split()[1]), headers.get("connection") != "close"


# -- gRPC

METHODS = ["ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig", "RepositoryIndex",
           "ModelStatistics", "Nope", "SystemSharedMemoryStatus"]  # fmt: skip
SERVICE = "/inference.GRPCInferenceService/"


def valid_message(rng) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(id=rng.choice(["", "r1"]))
    if rng.random() < 0.6:
        request.model_name = "plain"
        request.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        if rng.random() < 0.6:
            request.raw_input_contents.append(struct.pack("<4f", 1, 2, 3, 4))
        else:
            request.inputs[0].contents.fp32_contents.extend([1, 2, 3, 4])
    else:
        request.model_name = "pair"
        request.inputs.add(name="a", datatype="INT32", shape=[1, 2])
        request.inputs.add(name="b", datatype="BOOL", shape=[1, 2])
        request.raw_input_contents.extend([struct.pack("<2i", 1, 2), b"\0\1"])
    return request


def spoil_message(rng, request) -> None:
    """Well-formed, but wrong."""
    numbers = [0, -1, 1, 5, 2**31, 2**62, 2**63 - 1, -(2**63)]
    tensor = rng.choice(request.inputs)
    kind = rng.randrange(14)
    if kind == 0 and tensor.shape:
        tensor.shape[rng.randrange(len(tensor.shape))] = rng.choice(numbers)
    elif kind == 1:
        del tensor.shape[:]
        tensor.shape.extend(rng.choice(numbers) for _ in range(rng.choice([0, 1, 3, 300])))
    elif kind == 2:
        tensor.datatype = rng.choice(["", "FP16", "BYTES", "INT64", "fp32", "X" * 1000])
    elif kind == 3:
        tensor.name = rng.choice(["", "y", "X", "\0", "ü" * 1000])
    elif kind == 4:
        request.raw_input_contents.append(rng.randbytes(rng.randint(0, 20)))
    elif kind == 5:
        del request.raw_input_contents[:]
    elif kind == 6:
        tensor.contents.fp32_contents.extend([1.0] * rng.choice([1, 4, 1000]))
    elif kind == 7:
        tensor.contents.int64_contents.append(2**63 - 1)
        tensor.contents.bytes_contents.append(b"\xff")
    elif kind == 8:
        for _ in range(rng.choice([1, 50])):
            request.inputs.add().CopyFrom(tensor)
    elif kind == 9:
        for _ in range(rng.choice([1, 500])):
            request.outputs.add(name=rng.choice(["y", "nope", ""])).parameters[
                "classification"
            ].int64_param = rng.choice(numbers)
    elif kind == 10:
        parameter = request.parameters[
            rng.choice(["priority", "timeout", "sequence_id", "triton_x", "", "binary_data_output"])
        ]
        name, value = rng.choice([("int64_param", -1), ("string_param", "x"), ("bool_param", True), ("double_param", float("nan")),
                                  ("uint64_param", 2**64 - 1), ("int64_param", 2**63 - 1)])  # fmt: skip
        setattr(parameter, name, value)
    elif kind == 11:
        request.model_name = rng.choice(["", "nope", "PLAIN", "../x", "\0", "x" * 5000])
    elif kind == 12:
        request.model_version = rng.choice(["0", "9", "-1", "x", "1.0", " 1", "9" * 400])
    else:
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.parameters["shared_memory_byte_size"].int64_param = rng.choice(numbers)


class Call:
    """One request over gRPC: a message of any bytes."""

    def __init__(self, kind: str, method: str, message: bytes, only: str | None = None):
        self.kind = kind
        self.method = method
        self.message = message
        self.only = only


def field(number: int, content: bytes) -> bytes:
    """A length-delimited field of protobuf."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def nested_message(rng) -> bytes:
    """Groups, or messages in messages, without end."""
    depth = rng.choice([50, 101, 5_000])
    if rng.random() < 0.5:
        return varint(100 << 3 | 3) * depth + (varint(100 << 3 | 4) * depth if rng.random() < 0.5 else b"")
    content = b""
    for _ in range(depth):
        content = field(5, content)
    return content


def grpc_case(seed: int, number: int) -> Call:
    rng = random.Random(f"grpc {seed} {number}")
    request = valid_message(rng)
    kind = rng.choices(["valid", "bytes", "wrong", "random", "nested", "other", "oversized"], [5, 30, 40, 8, 4, 12, 1])[
        0
    ]
    method = SERVICE + "ModelInfer"
    if kind == "valid":
        return Call(kind, method, request.SerializeToString(), "OK")
    if kind == "bytes":
        return Call(kind, method, spoil_bytes(rng, request.SerializeToString()))
    if kind == "wrong":
        for _ in range(rng.randint(1, 2)):
            spoil_message(rng, request)
        return Call(kind, method, request.SerializeToString())
    if kind == "random":
        return Call(kind, method, rng.randbytes(rng.randint(0, 300)))
    if kind == "nested":
        return Call(kind, method, nested_message(rng))
    if kind == "oversized":
        request.raw_input_contents.append(b"\0" * BODY_BYTES_MAX)
        return Call(kind, method, request.SerializeToString(), "OUT_OF_RANGE")
    path = rng.choice([SERVICE + rng.choice(METHODS), "/grpc.health.v1.Health/Check", "/x/y", "/"])
    name = field(1, rng.choice([b"plain", b"", b"nope", b"\xff\xfe", b"x" * 5000]))
    return Call(kind, path, rng.choice([name, b"", spoil_bytes(rng, name), rng.randbytes(30)]))


# -- gRPC below the messages: frames made by hand

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return struct.pack(">I", len(content))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + content


def header_block(headers) -> bytes:
    """HPACK without compression: literals that are not indexed."""
    block = b""
    for name, value in headers:
        assert len(name) < 127 and len(value) < 127
        block += b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
    return block


def frames_case(seed: int, number: int) -> tuple[bytes, bool]:
    """The bytes of a connection to the gRPC port, and whether stream 1 is whole and must be answered."""
    rng = random.Random(f"frames {seed} {number}")
    message = valid_message(rng).SerializeToString()
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", (SERVICE + "ModelInfer").encode()), (b":authority", b"h"),
               (b"te", b"trailers"), (b"content-type", b"application/grpc")]  # fmt: skip
    flag, length, tail, whole = 0, len(message), b"", True
    kind = rng.randrange(9)
    if kind == 0:
        length = rng.choice([0, length - 1, length + 1, 2**31, 2**32 - 1])
    elif kind == 1:
        flag = rng.choice([1, 2, 255])
    elif kind == 2:
        headers.append((b"grpc-timeout", rng.choice([b"", b"1", b"-1S", b"999999999S", b"1x", b"S", b"0n"])))
    elif kind == 3:
        headers.append((b"grpc-encoding", rng.choice([b"gzip", b"br", b"", b"deflate"])))
        flag = rng.choice([0, 1])
    elif kind == 4:
        headers[5] = (
            b"content-type",
            rng.choice([b"application/json", b"application/grpc+json", b"", b"application/grp"]),
        )
    elif kind == 5:
        tail = rng.choice([b"\0", b"\0" * 4, b"\0\0\0\0\0", rng.randbytes(40)])
    elif kind == 6:
        headers.pop(rng.randrange(len(headers)))
        whole = False
    elif kind == 7:
        whole = False
    else:
        message = message[: rng.randint(0, len(message))]
    start = PREFACE + frame(4, 0, 0, b"") + frame(1, 4, 1, header_block(headers))
    data = bytes([flag]) + struct.pack(">I", length) + message + tail
    content = start + frame(0, 1, 1, data)
    if kind == 7:
        content = PREFACE + spoil_bytes(rng, content[len(PREFACE) :])
    return content, whole


def send_frames(address: str, content: bytes, whole: bool) -> str:
    """`answered` if stream 1 had headers or was reset, `closed` if the connection ended before, or `late`.

    What is not whole ends with the client leaving: over HTTP/2 that takes the streams with it.
    """
    host, port = address.rsplit(":", 1)
    held = b""
    with socket.create_connection((host, int(port)), timeout=ANSWER_S) as connection:
        try:
            connection.sendall(content)
            if not whole:
                connection.shutdown(socket.SHUT_WR)
            while True:
                while len(held) >= 9:
                    length = int.from_bytes(held[:3], "big")
                    if len(held) < 9 + length:
                        break
                    kind, stream = held[3], int.from_bytes(held[5:9], "big") & 0x7FFFFFFF
                    held = held[9 + length :]
                    if stream == 1 and kind in (1, 3):
                        return "answered"
                    if kind == 7:
                        return "goaway"
                data = connection.recv(65536)
                if not data:
                    return "closed"
                held += data
        except TimeoutError:
            return "late"
        except OSError:
            return "closed"


# -- runs


class Report:
    """What came of a run."""

    def __init__(self):
        self.counts: collections.Counter = collections.Counter()
        # At most a few of each, for a person.
        self.mistakes: list[str] = []
        self._lock = threading.Lock()

    def note(self, transport: str, seed: int, number: int, kind: str, status, mistake: str | None) -> None:
        with self._lock:
            self.counts[transport, kind, str(status)] += 1
            if mistake and len(self.mistakes) < 50:
                self.mistakes.append(
                    f"--show {transport} --seed {seed} --number {number} ({kind}): {status}, {mistake}"
                )
            elif mistake:
                self.counts["", "mistakes that are not shown", ""] += 1

    def by_status(self) -> collections.Counter:
        totals = collections.Counter()
        for (transport, _, status), count in self.counts.items():
            totals[transport, status] += count
        return totals


def run_rest(address: str, seed: int, numbers, report: Report) -> None:
    client = RestClient(address)
    for number in numbers:
        case = rest_case(seed, number)
        status = client.send(case)
        mistake = None
        if status in HTTP_NEVER and not (status == 504 and b"timeout" in case.content):
            mistake = "not the client's fault?"
        elif status == "late":
            mistake = "no answer and not closed"
        elif case.whole and status == "closed":
            mistake = "a whole request without an answer"
        elif case.only and status != case.only:
            mistake = f"expected {case.only}"
        report.note("rest", seed, number, case.kind, status, mistake)
    client.close()


def run_grpc(address: str, seed: int, numbers, report: Report) -> None:
    with grpc.insecure_channel(
        address, [("grpc.max_receive_message_length", -1), ("grpc.enable_retries", 0)]
    ) as channel:
        calls = {}
        for number in numbers:
            case = grpc_case(seed, number)
            if case.method not in calls:
                calls[case.method] = channel.unary_unary(case.method)
            try:
                calls[case.method](case.message, timeout=ANSWER_S)
                status, details = "OK", ""
            except grpc.RpcError as error:
                status, details = error.code().name, error.details()
            expired = status == "DEADLINE_EXCEEDED" and b"timeout" in case.message
            mistake = f"not the client's fault? {details}" if status in GRPC_NEVER and not expired else None
            if case.only and status != case.only:
                mistake = f"expected {case.only}: {details}"
            report.note("grpc", seed, number, case.kind, status, mistake)


def run_frames(address: str, seed: int, numbers, report: Report) -> None:
    for number in numbers:
        content, whole = frames_case(seed, number)
        status = send_frames(address, content, whole)
        mistake = "no answer and not closed" if status == "late" else None
        if whole and status != "answered":
            mistake = "a whole request without an answer"
        report.note("frames", seed, number, "frames", status, mistake)


def run(http: str, grpc_address: str, count: int, seed: int) -> Report:
    """Sends `count` requests: six parts over REST, three over gRPC, one as frames."""
    report = Report()
    frames, calls = count // 10, count * 3 // 10
    rest = count - frames - calls
    parts = [
        (run_rest, http, range(0, rest, 2)),
        (run_rest, http, range(1, rest, 2)),
        (run_grpc, grpc_address, range(calls)),
        (run_frames, grpc_address, range(frames)),
    ]
    errors = []

    def guarded(part, address, numbers):
        try:
            part(address, seed, numbers, report)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=part) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return report


def show(transport: str, seed: int, number: int) -> None:
    if transport == "rest":
        case = rest_case(seed, number)
        print(case.kind, case.content)
    elif transport == "grpc":
        call = grpc_case(seed, number)
        print(call.kind, call.method, call.message)
    else:
        print(*frames_case(seed, number))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--http", help="the server's address; by default one is started, and its memory watched over two runs"
    )
    parser.add_argument("--grpc")
    parser.add_argument("--show", choices=["rest", "grpc", "frames"], help="print one request instead")
    parser.add_argument("--number", type=int, default=0)
    args = parser.parse_args()
    if args.show:
        show(args.show, args.seed, args.number)
        return 0
    if bool(args.http) != bool(args.grpc):
        parser.error("`--http` and `--grpc` go together")
    if args.http:
        return print_report(run(args.http, args.grpc, args.count, args.seed))
    with Server(MODELS, CONFIG) as server:
        failed, resident = 0, []
        for _ in range(2):
            began = time.monotonic()
            failed |= print_report(run(server.http, server.grpc, args.count, args.seed))
            resident.append(server.resident_bytes())
            print(f"{time.monotonic() - began:.1f} s, resident memory {resident[-1] / 2**20:.2f} MiB\n")
        print(f"second run: {(resident[1] - resident[0]) / 2**20:+.2f} MiB")
        return failed


def print_report(report: Report) -> int:
    for (transport, status), count in sorted(report.by_status().items()):
        print(f"{transport:8} {status:24} {count:8}")
    for mistake in report.mistakes:
        print(mistake)
    return 1 if report.mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
