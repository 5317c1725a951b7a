"""Loads, unloads, updates and inferences at random from four clients at once: what each of them saw must be what
some order of all of them, one after the other, would have shown, model by model.

Every operation lasts from its sending to its answer and takes effect at one moment between the two. The history is
checked as it unfolds: which states are possible, and which of the operations under way have taken effect in them
(Wing and Gong, 1993; Lowe, 2017). `QUADRANT_OPERATIONS=20000` does as many; the usual run does fewer.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import time
from dataclasses import dataclass

from server import Server, identity

OPERATIONS = int(os.environ.get("QUADRANT_OPERATIONS", "2000"))
CLIENTS = 4
MODELS = [f"m{index}" for index in range(6)]
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "UINT8", "data": [1]}]})


@dataclass
class Operation:
    """What one client did with one model, when, and what came of it."""

    kind: str
    model: str
    began: float
    ended: float
    # The version that was put, or that answered; `None` if none did.
    version: int | None = None
    failed: str = ""


# The highest version in the repository, and the one that is loaded.
State = tuple[int, int | None]


def after(state: State, operation: Operation) -> list[State]:
    """The states that an operation may leave behind; none if it could not have come out like this.

    The folder is no part of the server: a load takes what lay there at some moment since it was asked for.
    """
    there, loaded = state
    if operation.failed:
        return []
    if operation.kind == "put":
        return [(max(there, operation.version), loaded)]
    if operation.kind == "load":
        return [(there, version) for version in range(operation.version, there + 1)]
    if operation.kind == "unload":
        return [(there, None)]
    return [state] if operation.version == loaded else []


def with_floors(history: list[Operation], first: State) -> None:
    """Writes down for each load what lay in the folder when it was asked for."""
    puts = sorted((one.ended, one.version) for one in history if one.kind == "put")
    for one in history:
        if one.kind == "load":
            one.version = max([version for ended, version in puts if ended < one.began], default=first[0])


def impossible(history: list[Operation], first: State) -> Operation | None:
    """The first operation that no order explains."""
    with_floors(history, first)
    events = [(operation.began, 0, index) for index, operation in enumerate(history)]
    events += [(operation.ended, 1, index) for index, operation in enumerate(history)]
    # A state, and those under way that have taken effect in it.
    possible: set[tuple[State, frozenset[int]]] = {(first, frozenset())}
    under_way: set[int] = set()
    for _, is_end, index in sorted(events):
        if not is_end:
            under_way.add(index)
            continue
        seen, frontier, left = set(possible), list(possible), set()
        while frontier:
            state, done = frontier.pop()
            if index in done:
                left.add((state, done - {index}))
                continue
            for other in under_way - done:
                steps = {(then, done | {other}) for then in after(state, history[other])} - seen
                seen |= steps
                frontier.extend(steps)
        if not left:
            return history[index]
        possible = left
        under_way.remove(index)
    return None


class Client(threading.Thread):
    """Does things at random, one after the other."""

    def __init__(self, server: Server, seed: int, versions, count: int):
        super().__init__()
        self.history: list[Operation] = []
        self.error: BaseException | None = None
        self._server, self._versions, self._count = server, versions, count
        self._random = random.Random(seed)
        self._connection = http.client.HTTPConnection(server.http, timeout=60)

    def run(self):
        try:
            for _ in range(self._count):
                self._do(self._random.choice(MODELS))
        except BaseException as error:  # noqa: BLE001, it is raised again in the test
            self.error = error

    def _post(self, path: str, body: str = ""):
        self._connection.request("POST", path, body)
        reply = self._connection.getresponse()
        return reply.status, reply.read()

    def _do(self, model: str):
        kind = self._random.choices(["infer", "load", "unload", "update"], [12, 2, 2, 1])[0]
        if kind == "update":
            version = next(self._versions[model])
            began = time.monotonic()
            put(self._server, model, version)
            self.history.append(Operation("put", model, began, time.monotonic(), version))
            kind = "load"
        began = time.monotonic()
        operation = Operation(kind, model, began, began)
        if kind == "infer":
            status, body = self._post(f"/v2/models/{model}/infer", BODY)
            if status == 200:
                operation.version = int(json.loads(body)["model_version"])
            # While it is being loaded it is not there yet, and says so.
            elif status != 404 and not (status == 503 and b"is loading" in body):
                operation.failed = f"{status}: {body!r}"
        else:
            status, body = self._post(f"/v2/repository/models/{model}/{kind}")
            if status != 200:
                operation.failed = f"{status}: {body!r}"
        operation.ended = time.monotonic()
        self.history.append(operation)


def put(server: Server, model: str, version: int):
    """A new version, whole or not at all."""
    aside = server.folder / f"{model}-{version}"
    aside.mkdir()
    (aside / "model.emulated.toml").write_text(identity("UINT8", dims=("batch", 1), load_ms="1", memory_mb="1"))
    aside.rename(server.models / model / str(version))


def test_a_history_that_no_order_explains_is_found():
    infer = lambda began, ended, version: Operation("infer", "m", began, ended, version)  # noqa: E731
    unload = Operation("unload", "m", 2.0, 3.0)
    assert impossible([infer(0, 1, 1), unload, infer(2.1, 2.9, 1), infer(4, 5, None)], (1, 1)) is None
    assert impossible([unload, infer(4, 5, 1)], (1, 1)).began == 4
    assert impossible([infer(0, 1, None)], (1, 1)).began == 0
    update = [Operation("put", "m", 0, 1, 2), Operation("load", "m", 2, 3)]
    assert impossible([*update, infer(2.2, 2.4, 2), infer(2.5, 2.8, 1)], (1, 1)).began == 2.5
    assert impossible([Operation("load", "m", 0, 1, failed="500")], (1, 1)) is not None


def test_what_clients_see_is_what_some_order_shows():
    core = min(os.sched_getaffinity(0))
    config = f'[device]\ncores = [{core}]\nonnxruntime = "off"\nprobe_s = 0.01\nmemory_mb = 256\n[scheduler]\nload_threads = 2\n'
    description = identity("UINT8", dims=("batch", 1), load_ms="1", memory_mb="1")
    files = {f"{model}/1/model.emulated.toml": description for model in MODELS}
    with Server(files, config + "[limits]\nin_flight_bytes = 4000000\nbody_bytes = 1000000\n") as server:
        versions = {model: iter(range(2, 1 << 30)) for model in MODELS}
        clients = [Client(server, seed, versions, OPERATIONS // CLIENTS) for seed in range(CLIENTS)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
            if client.error is not None:
                raise client.error
        for model in MODELS:
            history = [one for client in clients for one in client.history if one.model == model]
            wrong = impossible(history, (1, 1))
            near = [one for one in history if wrong and one.ended > wrong.began and one.began < wrong.ended]
            assert wrong is None, f"{wrong}, while {near}"
