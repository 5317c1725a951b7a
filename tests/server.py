"""Starts the built server for a test, and says what it serves.

Every server gets a folder of models of its own and ports chosen by the operating system, which it says itself in
its log. Nothing waits for a fixed time: everything awaits a condition with a deadline.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path

BINARY = Path(os.environ.get("QUADRANT_BIN", Path(__file__).parent.parent / "target/release/quadrant"))

START_S = 120.0
STOP_S = 40.0

DATATYPES = [
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES",
    "BF16",
]  # fmt: skip


def await_that(condition, what: str, timeout_s: float = 20.0):
    """Polls `condition` until it returns something true, which is returned."""
    deadline = time.monotonic() + timeout_s
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.005)


class Reply:
    """An answer over HTTP."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes):
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]

    def __repr__(self) -> str:
        return f"Reply({self.status}, {self.headers}, {self.body[:500]!r})"


def emulated(inputs, outputs, **extra: str) -> str:
    """The description of an emulated model.

    `inputs` are `(name, datatype, dims)`, `outputs` are `(name, the input it copies)`; `extra` holds TOML values.
    """
    lines = [f"{key} = {value}" for key, value in extra.items()]
    for name, datatype, dims in inputs:
        lines += ["[[inputs]]", f'name = "{name}"', f'datatype = "{datatype}"', f"dims = {json.dumps(dims)}"]
    for name, source in outputs:
        lines += ["[[outputs]]", f'name = "{name}"', f'from = "{source}"']
    return "\n".join(lines) + "\n"


def identity(datatype: str, dims=("batch", -1), **extra: str) -> str:
    """A model `x` -> `y` of one type."""
    return emulated([("x", datatype, list(dims))], [("y", "x")], **extra)


def identities() -> dict[str, str]:
    """A model for each data type, called `identity_fp32` and so on."""
    return {f"identity_{datatype.lower()}.emulated.toml": identity(datatype) for datatype in DATATYPES}


# The model that Triton's answers were recorded with; it does not add, because only the wire is of interest.
ADDSUB = emulated(
    [("INPUT0", "FP32", ["batch", 4]), ("INPUT1", "FP32", ["batch", 4])],
    [("OUTPUT0", "INPUT0"), ("OUTPUT1", "INPUT1")],
)

# Computes for as many milliseconds as it is given elements, so that each request says how long it takes.
SLEEPER = identity("UINT8", dims=(-1,), latency='{ kind = "fixed", step_us = 0, row_us = 1000 }')


class Server:
    """One running server."""

    def __init__(self, files: dict, config: str = "", args: tuple[str, ...] = ()):
        """Starts it. `files` are the models folder: paths to text, bytes, or the `Path` of a file to link."""
        self.folder = Path(tempfile.mkdtemp(prefix="quadrant-test-"))
        self.models = self.folder / "models"
        self.models.mkdir()
        for name, content in files.items():
            self._put(self.models / name, content)
        config_path = self.folder / "quadrant.toml"
        config_path.write_text(config)
        command = [str(BINARY), "--log-format", "json", "serve", str(self.models), "--config", str(config_path)]
        for port in ("http", "grpc", "metrics"):
            command += [f"--{port}-address", "127.0.0.1:0"]
        self.process = subprocess.Popen(
            command + list(args), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.log: list[dict] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            serving = self.await_log("serving")
            self.http, self.grpc, self.metrics = serving["http"], serving["grpc"], serving["metrics"]
            self.await_log("models loaded")
        except BaseException:
            self.kill()
            raise

    @staticmethod
    def _put(path: Path, content) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            path.symlink_to(content)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content)

    def _read_log(self) -> None:
        for line in self.process.stderr:
            text = line.decode(errors="replace").rstrip()
            try:
                self.log.append(json.loads(text))
            except ValueError:
                self.log.append({"message": text, "level": "RAW"})

    def await_log(self, message: str, timeout_s: float = START_S) -> dict:
        """The log line with this message."""

        def find():
            found = next((line for line in list(self.log) if line.get("message") == message), None)
            if found is None and self.process.poll() is not None and not self._reader.is_alive():
                raise AssertionError(f"the server ended with {self.process.returncode}:\n{self.log_text()}")
            return found

        return await_that(find, f"`{message}` in the log", timeout_s)

    def log_text(self) -> str:
        return "\n".join(json.dumps(line) for line in list(self.log)[-60:])

    # -- asking

    def request(self, method: str, path: str, body=None, headers=None, port: str = "http", timeout_s=30.0) -> Reply:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(getattr(self, port), timeout=timeout_s)
        try:
            if isinstance(body, (dict, list)):
                body = json.dumps(body).encode()
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Reply(response.status, names, response.read())
        finally:
            connection.close()

    def get(self, path: str, **kwargs) -> Reply:
        return self.request("GET", path, **kwargs)

    def post(self, path: str, body=None, headers=None, **kwargs) -> Reply:
        return self.request("POST", path, body, headers, **kwargs)

    def put(self, name: str, content) -> None:
        """Puts a file into the models folder, whole or not at all."""
        aside = self.folder / "aside"
        self._put(aside, content)
        (self.models / name).parent.mkdir(parents=True, exist_ok=True)
        aside.replace(self.models / name)

    def index(self) -> dict[str, dict]:
        """The repository index, by the models' names."""
        return {line["name"]: line for line in self.post("/v2/repository/index").json}

    def metrics_text(self) -> str:
        return self.get("/metrics", port="metrics").body.decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name that have these labels."""
        total = 0.0
        for line in self.metrics_text().splitlines():
            match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if match and match[1] == name:
                have = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
                if all(have.get(key) == value for key, value in labels.items()):
                    total += float(match[3])
        return total

    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    # -- ending

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Waits for the process to end, and kills it if it does not."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the server did not end within {timeout_s} s:\n{self.log_text()}") from None

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind, *_) -> None:
        """Ends it. A server that crashed or hangs fails the test, even if nobody noticed until now."""
        if kind is not None:
            print(f"--- log of the server\n{self.log_text()}")
        crashed = self.process.poll()
        try:
            if crashed is None:
                self.terminate()
                code = self.wait()
                assert kind is not None or code == 0, f"the server ended with {code}:\n{self.log_text()}"
            else:
                assert kind is not None or crashed == 0, f"the server had ended with {crashed}:\n{self.log_text()}"
            panics = [line for line in self.log if "panicked at" in str(line.get("message"))]
            assert kind is not None or not panics, panics
        finally:
            self.process.stderr.close() if not self._reader.is_alive() else None
            shutil.rmtree(self.folder, ignore_errors=True)
