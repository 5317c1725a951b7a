"""Models whose engines run in processes of their own: what kills one costs whoever killed it, and nobody else."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from server import Server, await_that, identity

ABORT, EXIT, HANG, LEAK = 201, 202, 203, 204
HARM = f"{{ abort = {ABORT}, exit = {EXIT}, hang = {HANG}, leak = {LEAK} }}"
LATENCY = '{ kind = "fixed", step_us = 3000, row_us = 500 }'
VICTIM = identity("UINT8", dims=("batch", 4), latency=LATENCY, harm=HARM)
OTHER = identity("UINT8", dims=("batch", 4), latency=LATENCY)
ENDS = "quadrant_engine_process_ends_total"

# How long a restart may take besides what the model takes to load, on a machine that does other things too.
BACK_S = 1.0


def serve(extra: str = "", files=None, stall_s: float = 60.0, **settings) -> Server:
    lines = [f"{key} = {json.dumps(value)}" for key, value in {"isolation": "process", **settings}.items()]
    config = "\n".join(
        ["[device]", 'onnxruntime = "off"', "probe_s = 0.1", "[limits]", f"stall_s = {stall_s}"]
        + ["[models.victim]", *lines, extra]
    )
    return Server(files or {"victim.emulated.toml": VICTIM, "other.emulated.toml": OTHER}, config)


def body(first: int = 1, **parameters) -> dict:
    tensor = {"name": "x", "datatype": "UINT8", "shape": [1, 4], "data": [first, 2, 3, 4]}
    return {"inputs": [tensor], "parameters": parameters}


def infer(server: Server, model: str = "victim", first: int = 1, **parameters):
    return server.post(f"/v2/models/{model}/infer", body(first, **parameters), timeout_s=60)


def processes(server: Server) -> list[int]:
    """The server's children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(") ")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == server.process.pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


class Load:
    """Clients that ask for one model without pause, and keep every answer that is not what was asked for."""

    def __init__(self, server: Server, model: str, clients: int = 3):
        self.answered = 0
        self.wrong: list = []
        self._stop = threading.Event()
        self._server, self._model = server, model
        self._threads = [threading.Thread(target=self._run, args=(client,)) for client in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, client: int) -> None:
        while not self._stop.is_set():
            reply = infer(self._server, self._model, first=10 + client)
            if reply.status == 200 and reply.json["outputs"][0]["data"][0] == 10 + client:
                self.answered += 1
            else:
                self.wrong.append(reply)

    def __enter__(self):
        await_that(lambda: self.answered >= 10, "the load runs")
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def goes_on(self) -> None:
        """Returns once there are new answers."""
        before = self.answered
        await_that(lambda: self.answered >= before + 10, f"`{self._model}` answers again")


def test_it_serves_from_a_process_of_its_own():
    with serve() as server:
        assert len(processes(server)) == 1
        assert infer(server).json["outputs"][0]["data"] == [1, 2, 3, 4]
        assert server.index()["victim"]["state"] == "READY"
        name = "quadrant_engine_process_resident_bytes"
        await_that(lambda: server.metric(name, process="victim") > 1 << 20, "its memory is seen")


def test_groups_share_a_process():
    files = {f"{name}.emulated.toml": VICTIM for name in ("victim", "second", "alone")}
    extra = (
        '[models.second]\nisolation = "process"\nisolation_group = "pair"\n[models.alone]\nisolation = "process"\n'
    )
    with serve(extra, files, isolation_group="pair") as server:
        assert len(processes(server)) == 2
        assert infer(server, first=ABORT).status == 400
        for model in ("victim", "second", "alone"):
            assert infer(server, model).status == 200
        assert server.metric(ENDS, process="pair") == 2 and server.metric(ENDS, process="alone") == 0


def test_a_kill_under_load_fails_nobody():
    with serve() as server, Load(server, "victim") as victim, Load(server, "other") as other:
        for kills in range(1, 4):
            (process,) = processes(server)
            os.kill(process, signal.SIGKILL)
            began = time.monotonic()
            await_that(lambda: server.metric(ENDS, cause="killed") == kills, "the end is counted")
            victim.goes_on()
            took_s = time.monotonic() - began
            assert took_s < BACK_S + 1.0, f"serving again after {took_s} s"
            other.goes_on()
        assert not victim.wrong and not other.wrong, (victim.wrong, other.wrong)


@pytest.mark.parametrize(("harm", "cause"), [(ABORT, "crashed"), (EXIT, "exited"), (LEAK, "memory")])
def test_only_what_kills_alone_fails(harm, cause):
    with serve(isolation_memory_mb=192) as server:
        with Load(server, "victim") as victim, Load(server, "other") as other:
            reply = infer(server, first=harm)
            assert reply.status == 400, reply
            assert reply.headers["x-quadrant-reason"] == "lethal" and "twice" in reply.error
            victim.goes_on()
            assert server.metric(ENDS, cause=cause) == 2, "once with the others, once alone"
            # From now on it is known.
            again = infer(server, first=harm)
            assert again.status == 400 and "refused" in again.error
            assert server.metric(ENDS) == 2
            other.goes_on()
        assert not victim.wrong and not other.wrong, (victim.wrong, other.wrong)


def test_a_hung_engine_is_killed():
    with serve(stall_s=0.3) as server:
        assert infer(server).status == 200
        reply = infer(server, first=HANG)
        assert reply.status == 400 and reply.headers["x-quadrant-reason"] == "lethal", reply
        assert server.metric(ENDS, cause="stalled") == 2
        await_that(lambda: server.metric("quadrant_lanes_stalled") == 0, "its lane is free again")
        assert infer(server).status == 200 and infer(server, "other").status == 200
        await_that(lambda: server.get("/v2/health/ready").status == 200, "the server is ready again")


def test_while_it_is_away():
    """It takes a second to load, so what happens meanwhile can be looked at."""
    files = {"victim.emulated.toml": VICTIM.replace("latency", "load_ms = 1000\nlatency", 1)}
    with serve(files=files) as server:
        assert infer(server).status == 200
        (process,) = processes(server)
        os.kill(process, signal.SIGKILL)
        line = await_that(
            lambda: (line := server.index()["victim"])["state"] == "UNAVAILABLE" and line, "the index says so"
        )
        assert "signal 9" in line["reason"]
        assert server.get("/v2/models/victim/ready").status != 200
        hurried = infer(server, timeout=100_000)
        assert hurried.status == 503 and int(hurried.headers["retry-after"]) >= 1, hurried
        assert hurried.headers["x-quadrant-reason"] == "engine_away" and "restarted" in hurried.error
        assert infer(server).status == 200, "who has time waits"
        assert server.get("/v2/models/victim/ready").status == 200
        assert server.index()["victim"]["state"] == "READY"


def test_what_cannot_be_loaded_there_says_why():
    files = {"victim.onnx": b"not a model", "other.emulated.toml": OTHER}
    with serve(files=files) as server:
        line = server.index()["victim"]
        assert line["state"] == "UNAVAILABLE" and "victim.onnx" in line["reason"], line
        assert infer(server, "other").status == 200
        await_that(lambda: not processes(server), "the process that served nothing is gone")


def test_no_process_outlives_the_server():
    with serve() as server:
        (process,) = processes(server)
        server.terminate()
        assert server.wait() == 0
        await_that(lambda: not is_alive(process), "it ended with the server")
    server = serve()
    (process,) = processes(server)
    server.kill()
    await_that(lambda: not is_alive(process), "it ended with a server that was killed")


def test_draining_finishes_what_runs_there():
    slow = identity("UINT8", dims=("batch", 4), latency='{ kind = "fixed", step_us = 700000 }')
    with serve(files={"victim.emulated.toml": slow}) as server:
        replies = []
        thread = threading.Thread(target=lambda: replies.append(infer(server)))
        before = server.metric("quadrant_requests_accepted_total")
        thread.start()
        await_that(lambda: server.metric("quadrant_requests_accepted_total") > before, "it is accepted")
        # As a service manager does, to every process at once.
        for process in processes(server):
            os.kill(process, signal.SIGTERM)
        server.terminate()
        thread.join()
        assert replies[0].status == 200
        assert server.wait() == 0


@pytest.mark.parametrize("engine", ["ort", "rten"])
def test_real_models_answer_the_same(assets, engine):
    model = assets / "models/magika.onnx"
    library = assets / "onnxruntime/libonnxruntime.so"
    config = f"""
[device]
onnxruntime = "{library}"
probe_s = 0.2
[model_defaults]
engine = "{engine}"
[models.apart]
isolation = "process"
isolation_memory_mb = 1024
"""
    with Server({"within.onnx": model, "apart.onnx": model}, config) as server:
        data = [(index * 7) % 250 for index in range(2048)]
        tensor = {"name": "bytes", "datatype": "INT32", "shape": [1, 2048], "data": data}
        replies = [server.post(f"/v2/models/{name}/infer", {"inputs": [tensor]}) for name in ("within", "apart")]
        assert [reply.status for reply in replies] == [200, 200], replies
        within, apart = (reply.json["outputs"][0]["data"] for reply in replies)
        assert within == pytest.approx(apart, rel=1e-5, abs=1e-6)
