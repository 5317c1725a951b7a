"""Beginning and end: of the server, of requests that come too late, and of clients that leave.

The model `sleeper` computes for as many milliseconds as it is given elements, on one lane, so that what is running
and what is waiting is known exactly.
"""

import http.client
import json
import os
import socket
import struct
import threading
import time

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from server import SLEEPER, Server, await_that, identity
from tritonclient.utils import InferenceServerException

SHUTDOWN_S = 5.0
# What the process may take beyond that to close its ports and leave its threads.
SLACK_S = 4.0


def one_lane(shutdown_s: float = SHUTDOWN_S, queue: int = 64, stall_s: float = 60.0) -> str:
    """One core computes, one request a step, and nothing is taken for stalled."""
    core = min(os.sched_getaffinity(0))
    return f"""
[server]
shutdown_s = {shutdown_s}
[device]
cores = [{core}]
onnxruntime = "off"
probe_s = 0.05
[limits]
stall_s = {stall_s}
[models.sleeper]
batching = "off"
width = 1
queue = {queue}
# What cannot be in time is tried all the same, so that there is something to expire.
unmet = "demote"
"""


def start(**config) -> Server:
    return Server({"sleeper.emulated.toml": SLEEPER}, one_lane(**config))


@pytest.fixture(scope="module")
def sleeper():
    with start() as server:
        yield server


def body(milliseconds: int, **parameters) -> bytes:
    """A request that computes for so long."""
    tensor = {"name": "x", "shape": [milliseconds], "datatype": "UINT8", "data": [7] * milliseconds}
    return json.dumps({"inputs": [tensor], "parameters": parameters}).encode()


INFER = "/v2/models/sleeper/infer"


def raw_request(milliseconds: int) -> bytes:
    content = body(milliseconds)
    return f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


class InBackground:
    """One request on a thread of its own."""

    def __init__(self, server: Server, milliseconds: int, headers=None, **parameters):
        self.reply = None
        self.error = None
        self.took_s = None
        self._server = server
        self._request = (body(milliseconds, **parameters), headers)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        began = time.monotonic()
        try:
            self.reply = self._server.post(INFER, *self._request, timeout_s=60)
        except (OSError, http.client.HTTPException) as error:
            self.error = error
        self.took_s = time.monotonic() - began

    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def join(self):
        self._thread.join(60)
        assert self.is_over()
        return self.reply


def accepted(server: Server) -> float:
    return server.metric("quadrant_requests_accepted_total")


def ended(server: Server) -> float:
    return server.metric("quadrant_requests_ended_total")


def waiting(server: Server) -> float:
    return server.metric("nv_inference_pending_request_count", model="sleeper")


def steps(server: Server) -> float:
    return server.metric("nv_inference_exec_count", model="sleeper")


def failures(server: Server, reason: str) -> float:
    return server.metric("nv_inference_request_failure", model="sleeper", reason=reason)


def occupy(server: Server, milliseconds: int) -> InBackground:
    """Keeps the only lane busy; returns once it is."""
    await_that(lambda: accepted(server) == ended(server), "an idle server")
    before = accepted(server)
    blocker = InBackground(server, milliseconds)
    await_that(lambda: accepted(server) == before + 1 and waiting(server) == 0, "the blocker runs")
    return blocker


# -- the end of the server


class KeepAliveLoad:
    """A client that sends one request after the other on one connection, and notes what became of each."""

    def __init__(self, server: Server, milliseconds: int):
        self.outcomes: list[tuple[float, object]] = []
        self._address = server.http
        self._body = body(milliseconds)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=30)
        sent_at = 0.0
        try:
            while True:
                sent_at = float("inf")
                connection.request("POST", INFER, self._body, {"Content-Type": "application/json"})
                sent_at = time.monotonic()
                response = connection.getresponse()
                response.read()
                self.outcomes.append((sent_at, response.status))
                if response.will_close:
                    return
        except (OSError, http.client.HTTPException) as error:
            self.outcomes.append((sent_at, error))

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


class GrpcLoad:
    """Several requests at once on one gRPC connection."""

    def __init__(self, server: Server, milliseconds: int):
        self.outcomes: list[tuple[float, object]] = []
        self._thread = threading.Thread(target=self._run, args=(server.grpc, milliseconds), daemon=True)
        self._thread.start()

    def _run(self, address: str, milliseconds: int) -> None:
        with grpc.insecure_channel(address) as channel:
            stub = triton_grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel)
            request = triton_grpc.service_pb2.ModelInferRequest(model_name="sleeper")
            request.inputs.add(name="x", datatype="UINT8", shape=[milliseconds])
            request.raw_input_contents.append(b"\x07" * milliseconds)
            while True:
                calls = [(time.monotonic(), stub.ModelInfer.future(request)) for _ in range(4)]
                codes = [(sent, call.code()) for sent, call in calls]
                self.outcomes += codes
                if any(code != grpc.StatusCode.OK for _, code in codes):
                    return

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


def test_sigterm_under_load():
    """Whatever was sent before the signal is answered, as if nothing had happened."""
    with start() as server:
        loads = [KeepAliveLoad(server, 10) for _ in range(8)] + [GrpcLoad(server, 10) for _ in range(2)]
        await_that(lambda: all(len(load.outcomes) >= 3 for load in loads), "every client has answers")
        told = time.monotonic()
        server.terminate()
        code = server.wait(SHUTDOWN_S + SLACK_S)
        took_s = time.monotonic() - told
        for load in loads:
            load.join()
    assert code == 0
    assert took_s < SHUTDOWN_S + 1.0
    outcomes = [outcome for load in loads for outcome in load.outcomes]
    answers = (200, 503, grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)
    assert not [outcome for sent, outcome in outcomes if sent < told and outcome not in answers]
    # What was sent in the last moment may come too late to be accepted; the rest gets what it asked for.
    early = [outcome for sent, outcome in outcomes if sent < told - 0.05]
    assert len(early) >= len(loads)
    assert not [outcome for outcome in early if outcome not in (200, grpc.StatusCode.OK)]
    # What came later may be refused, in words or by a closed connection, and never as our fault.
    assert not [outcome for _, outcome in outcomes if outcome in (500, grpc.StatusCode.INTERNAL)]


@pytest.mark.parametrize("has_history", [False, True], ids=["new connections", "kept connections"])
def test_sigterm_meets_requests_on_their_way(has_history):
    """Requests that still lie in buffers of the operating system when the signal comes are read and answered, too."""
    with start() as server:
        host, port = server.http.split(":")
        connections = [socket.create_connection((host, int(port)), timeout=20) for _ in range(60)]
        if has_history:
            for connection in connections:
                connection.sendall(raw_request(1))
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        for connection in connections:
            connection.sendall(raw_request(1))
        server.terminate()
        answers = [connection.recv(65536)[:12] for connection in connections]
        for connection in connections:
            connection.close()
        assert set(answers) <= {b"HTTP/1.1 200", b"HTTP/1.1 503"}, answers
        assert server.wait(SHUTDOWN_S + SLACK_S) == 0


def test_unready_while_draining():
    """Load balancers learn at once; the answer in the making still arrives."""
    with start() as server:
        blocker = occupy(server, 2_000)
        queued = InBackground(server, 300)
        await_that(lambda: waiting(server) == 1, "one request waits")
        watched = []
        channel = grpc.insecure_channel(server.grpc)
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        watched.append(next(watch))

        def read_watch():
            try:
                watched.extend(watch)
            except grpc.RpcError:
                pass

        reader = threading.Thread(target=read_watch, daemon=True)
        reader.start()
        assert server.get("/v2/health/ready").status == 200
        server.terminate()

        def is_unready() -> bool:
            try:
                return server.get("/v2/health/ready").status != 200
            except OSError:
                return True

        await_that(is_unready, "unready", timeout_s=1.0)
        assert not blocker.is_over(), "the server is unready while it still computes"
        assert blocker.join().status == 200
        assert queued.join().status == 200
        assert server.wait(SHUTDOWN_S + SLACK_S) == 0
        reader.join(10)
        channel.close()
    # Field 1: 1 is SERVING, 2 is NOT_SERVING.
    assert watched[0] == b"\x08\x01"
    assert watched[-1] == b"\x08\x02"


def test_stuck_step_does_not_hold_up_the_end():
    """A step that does not end is left behind when the stated time is over."""
    with start(shutdown_s=0.5) as server:
        blocker = occupy(server, 60_000)
        told = time.monotonic()
        server.terminate()
        code = server.wait(0.5 + SLACK_S)
        took_s = time.monotonic() - told
        blocker.join()
    assert code >= 0, "no crash"
    assert took_s >= 0.4
    assert blocker.reply is None or blocker.reply.status in (503, 504)


def test_second_signal_ends_at_once():
    """Whoever asks twice does not want to wait."""
    with start(shutdown_s=60) as server:
        blocker = occupy(server, 60_000)
        server.terminate()
        server.await_log("draining: no new requests, accepted ones are finished")
        server.terminate()
        assert server.wait(SLACK_S) >= 0
        blocker.join()


def test_sigterm_while_idle():
    """With nothing to do, the end does not take the time that it might."""
    with start() as server:
        idle = http.client.HTTPConnection(server.http)
        idle.request("GET", "/v2/health/live")
        idle.getresponse().read()
        told = time.monotonic()
        server.terminate()
        assert server.wait() == 0
        assert time.monotonic() - told < 2.0
        idle.close()


# -- late requests


@pytest.mark.parametrize(
    "headers, parameters",
    [({}, {"timeout": 50_000}), ({"x-request-timeout-ms": "50"}, {})],
    ids=["parameter", "header"],
)
def test_expired_while_waiting_http(sleeper, headers, parameters):
    """Nobody waits for a step to learn that it is too late, and what is too late is not computed."""
    blocker = occupy(sleeper, 1_000)
    before = steps(sleeper)
    late = InBackground(sleeper, 5, headers, **parameters)
    assert late.join().status == 504
    assert late.took_s < 0.6 and not blocker.is_over()
    assert "retry-after" not in late.reply.headers
    assert blocker.join().status == 200
    await_that(lambda: accepted(sleeper) == ended(sleeper), "everything ended")
    assert steps(sleeper) == before + 1


def test_expired_while_waiting_grpc(sleeper):
    """The same, with the code of gRPC, by parameter and by the deadline of the call."""
    blocker = occupy(sleeper, 1_000)
    before = steps(sleeper)
    with triton_grpc.InferenceServerClient(sleeper.grpc) as client:
        tensor = triton_grpc.InferInput("x", [5], "UINT8")
        tensor.set_data_from_numpy(np.zeros(5, np.uint8))
        for late in (dict(timeout=50_000), dict(client_timeout=0.05)):
            with pytest.raises(InferenceServerException) as raised:
                client.infer("sleeper", [tensor], **late)
            assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert not blocker.is_over()
    assert blocker.join().status == 200
    await_that(lambda: accepted(sleeper) == ended(sleeper), "everything ended")
    assert steps(sleeper) == before + 1


def test_expired_while_computing(sleeper):
    """The answer comes when the time is over, not when the step is."""
    late = InBackground(sleeper, 1_500, timeout=200_000)
    assert late.join().status == 504
    assert 0.15 < late.took_s < 1.0
    await_that(lambda: accepted(sleeper) == ended(sleeper), "everything ended")


# -- too many requests


def test_queue_full():
    """Full is an answer that says when to come back, and those who wait are served."""
    with start(queue=2) as server:
        blocker = occupy(server, 1_000)
        queued = [InBackground(server, 5) for _ in range(2)]
        await_that(lambda: waiting(server) == 2, "two requests wait")
        refused = server.post(INFER, body(5))
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) >= 1
        with triton_grpc.InferenceServerClient(server.grpc) as client:
            tensor = triton_grpc.InferInput("x", [5], "UINT8")
            tensor.set_data_from_numpy(np.zeros(5, np.uint8))
            with pytest.raises(InferenceServerException) as raised:
                client.infer("sleeper", [tensor])
        assert raised.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        assert not blocker.is_over()
        assert [request.join().status for request in [blocker, *queued]] == [200] * 3
        assert failures(server, "REJECTED") == 2
        assert server.get("/v2/health/ready").status == 200


# -- clients that leave


def send_and_leave(server: Server, how: str) -> None:
    """Sends a whole request and hangs up, politely or not."""
    host, port = server.http.split(":")
    before = waiting(server)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(raw_request(5))
        await_that(lambda: waiting(server) == before + 1, "the request waits")
        if how == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize("how", ["close", "reset"])
def test_nothing_is_computed_for_a_client_that_left(sleeper, how):
    """Requests whose clients hang up while they wait never reach the engine."""
    blocker = occupy(sleeper, 1_500)
    before, cancelled = steps(sleeper), failures(sleeper, "CANCELED")
    for _ in range(5):
        send_and_leave(sleeper, how)
        await_that(lambda: waiting(sleeper) == 0, "the request is forgotten")
    assert not blocker.is_over()
    assert blocker.join().status == 200
    assert sleeper.post(INFER, body(1)).status == 200
    assert steps(sleeper) == before + 2
    assert failures(sleeper, "CANCELED") == cancelled + 5


def test_nothing_is_computed_for_a_cancelled_call(sleeper):
    """gRPC clients cancel by name."""
    blocker = occupy(sleeper, 1_500)
    before = steps(sleeper)
    with grpc.insecure_channel(sleeper.grpc) as channel:
        stub = triton_grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = triton_grpc.service_pb2.ModelInferRequest(model_name="sleeper", raw_input_contents=[b"\0" * 5])
        request.inputs.add(name="x", datatype="UINT8", shape=[5])
        calls = [stub.ModelInfer.future(request) for _ in range(5)]
        await_that(lambda: waiting(sleeper) == 5, "the requests wait")
        for call in calls:
            call.cancel()
        await_that(lambda: waiting(sleeper) == 0, "the requests are forgotten")
        assert not blocker.is_over()
    assert blocker.join().status == 200
    await_that(lambda: accepted(sleeper) == ended(sleeper), "everything ended")
    assert steps(sleeper) == before + 1


# -- a step that does not end


def test_stalled_lane_makes_unready():
    """A step far over its prediction fails its request, and the server says that it cannot serve."""
    # The fault lies behind the steps that the model is tried out with.
    faults = "{ stall_every = 300, stall_ms = 3000 }"
    latency = '{ kind = "fixed", step_us = 1000 }'
    files = {"sleeper.emulated.toml": identity("UINT8", dims=(-1,), latency=latency, faults=faults)}
    with Server(files, one_lane(stall_s=0.3)) as server:
        for _ in range(300):
            began = time.monotonic()
            reply = server.post(INFER, body(1))
            if reply.status != 200:
                break
        assert reply.status in (500, 503), "a step stalled"
        assert time.monotonic() - began < 2.0, "the client does not wait for the step"
        assert server.get("/v2/health/ready").status == 503
        assert server.get("/v2/health/live").status == 200
        assert server.metric("quadrant_lanes_stalled") == 1
        await_that(lambda: server.get("/v2/health/ready").status == 200, "the lane recovers")
        assert server.post(INFER, body(1)).status == 200
