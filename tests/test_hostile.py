"""No request, however senseless, is our fault, ends the server, or leaves memory behind."""

import hostile
import numpy as np
import pytest
import tritonclient.http as triton_http
from server import Server

COUNT = 10_000
SEED = 1
MEMORY_GROWTH_BYTES_MAX = 2 << 20


@pytest.fixture(scope="module")
def server():
    with Server(hostile.MODELS, hostile.CONFIG) as server:
        yield server


def assert_still_right(server: Server) -> None:
    """The server answers as if nothing had happened."""
    assert server.get("/v2/health/ready").status == 200
    with triton_http.InferenceServerClient(server.http) as client:
        sent = np.arange(8, dtype=np.float32).reshape(2, 4)
        tensor = triton_http.InferInput("x", [2, 4], "FP32")
        tensor.set_data_from_numpy(sent)
        assert np.array_equal(client.infer("plain", [tensor]).as_numpy("y"), sent)


def test_requests_repeat():
    """The same seed and number is the same request, or else nothing here could be looked into."""
    for number in range(300):
        assert hostile.rest_case(5, number).content == hostile.rest_case(5, number).content
        assert hostile.grpc_case(5, number).message == hostile.grpc_case(5, number).message
        assert hostile.frames_case(5, number) == hostile.frames_case(5, number)
    assert hostile.rest_case(5, 0).content != hostile.rest_case(6, 0).content


def test_hostile_requests(server):
    """Identical runs: only the client's codes, everything whole answered, no growth from one run to the next.

    An allocator may take another page at any time, but a leak grows with every run: so a third run decides where
    the second has grown.
    """
    resident = []
    for attempt in range(3):
        report = hostile.run(server.http, server.grpc, COUNT, SEED)
        assert not report.mistakes, "\n".join(report.mistakes)
        assert_still_right(server)
        resident.append(server.resident_bytes())
        if attempt > 0 and resident[-1] - resident[-2] <= MEMORY_GROWTH_BYTES_MAX:
            break
    else:
        pytest.fail(f"resident memory grows: {resident}")
    # Requests were neither all refused for one trivial reason nor harmless.
    totals = report.by_status()
    for key in [("rest", "200"), ("rest", "400"), ("rest", "404"), ("rest", "405"), ("rest", "413"), ("rest", "415"),
                ("grpc", "OK"), ("grpc", "INVALID_ARGUMENT"), ("grpc", "NOT_FOUND"), ("grpc", "OUT_OF_RANGE"),
                ("grpc", "UNIMPLEMENTED"), ("frames", "answered")]:  # fmt: skip
        assert totals[key] > 0, key
    assert sum(totals.values()) == COUNT


def test_nothing_is_left_over(server):
    """After all that, nothing waits, runs, or is counted as in flight, and no invariant was broken."""
    accepted, ended = (server.metric(f"quadrant_requests_{name}_total") for name in ("accepted", "ended"))
    assert accepted == ended > 0
    assert server.metric("nv_inference_pending_request_count") == 0
    assert server.metric("quadrant_invariant_violations_total") == 0
    assert server.metric("quadrant_lanes_stalled") == 0
