"""Existing clients work unchanged: `tritonclient`, over HTTP and gRPC, synchronous and not.

The models are emulated identities, so every answer is known exactly. Messages and codes of errors are those that a
real Triton 2.51.0 gave, with 400 where it answers a client's mistake with 500.
"""

import asyncio
import gzip
import queue
import zlib
from functools import partial

import grpc
import ml_dtypes
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.grpc.aio as triton_grpc_aio
import tritonclient.http as triton_http
import tritonclient.http.aio as triton_http_aio
from server import DATATYPES, Server, identity
from tritonclient.utils import InferenceServerException

FLOATS = [0.0, -0.0, 1.5, -2.25, 65504.0, 6.1e-5]
TEXTS = ["", "plain", "größer als ü", "日本語", "🦀 crab", 'quotes " and \\ and \n\t', ""]
BYTES = [text.encode() for text in TEXTS]
NUMPY = {
    "BOOL": np.bool_, "UINT8": np.uint8, "UINT16": np.uint16, "UINT32": np.uint32, "UINT64": np.uint64,
    "INT8": np.int8, "INT16": np.int16, "INT32": np.int32, "INT64": np.int64, "FP16": np.float16,
    "FP32": np.float32, "FP64": np.float64, "BF16": ml_dtypes.bfloat16,
}  # fmt: skip
NO_JSON = ["FP16", "BF16"]


def values(datatype: str) -> np.ndarray:
    """A row of values with the extremes of a type, as a batch of one."""
    if datatype == "BYTES":
        return np.array([BYTES], dtype=np.object_)
    kind = NUMPY[datatype]
    if datatype == "BOOL":
        return np.array([[True, False, True]])
    if datatype == "BF16":
        return np.array([[0.0, -1.0, 1.5, 3.0e38]], dtype=kind)
    if np.issubdtype(kind, np.floating):
        return np.array([FLOATS], dtype=kind)
    limits = np.iinfo(kind)
    return np.array([[limits.min, 0, 1, 17, limits.max]], dtype=kind)


def same(answer: np.ndarray, expected: np.ndarray) -> bool:
    """Bitwise for numbers; for BYTES the elements, which a client may give as text."""
    if expected.dtype == np.object_:
        texts = [text if isinstance(text, bytes) else text.encode() for text in answer.flatten()]
        return answer.shape == expected.shape and texts == list(expected.flatten())
    return answer.shape == expected.shape and answer.dtype == expected.dtype and answer.tobytes() == expected.tobytes()


class Http:
    """The two protocols behind one face, so that most tests are written once."""

    name = "http"
    module = triton_http
    aio = triton_http_aio

    @staticmethod
    def client(server):
        return triton_http.InferenceServerClient(server.http, concurrency=4)

    @staticmethod
    def aio_client(server):
        return triton_http_aio.InferenceServerClient(server.http)

    @staticmethod
    def tensor(name, datatype, array, binary=True):
        tensor = triton_http.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array, binary_data=binary)
        return tensor

    @staticmethod
    def wanted(name, binary=True, classes=0):
        return triton_http.InferRequestedOutput(name, binary_data=binary, class_count=classes)

    @staticmethod
    def response(result) -> dict:
        return result.get_response()


class Grpc:
    name = "grpc"
    module = triton_grpc
    aio = triton_grpc_aio

    @staticmethod
    def client(server):
        return triton_grpc.InferenceServerClient(server.grpc)

    @staticmethod
    def aio_client(server):
        return triton_grpc_aio.InferenceServerClient(server.grpc)

    @staticmethod
    def tensor(name, datatype, array, binary=True):
        tensor = triton_grpc.InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        return tensor

    @staticmethod
    def wanted(name, binary=True, classes=0):
        return triton_grpc.InferRequestedOutput(name, class_count=classes)

    @staticmethod
    def response(result) -> dict:
        return result.get_response(as_json=True)


PROTOCOLS = [Http, Grpc]
both = pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda protocol: protocol.name)


@pytest.fixture
def client(protocol, echo):
    with protocol.client(echo) as client:
        yield client


def addsub_inputs(protocol, shape=(1, 4), datatype="FP32", names=("INPUT0", "INPUT1")):
    array = np.arange(np.prod(shape)).reshape(shape).astype(NUMPY[datatype])
    return [protocol.tensor(name, datatype, array) for name in names]


# -- data


@both
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_type_as_binary(protocol, client, datatype, rows):
    """Every value comes back bit by bit, alone and as a batch."""
    sent = np.repeat(values(datatype), rows, axis=0)
    result = client.infer(f"identity_{datatype.lower()}", [protocol.tensor("x", datatype, sent)])
    assert same(result.as_numpy("y"), sent)


@pytest.mark.parametrize("answer_binary", [False, True])
@pytest.mark.parametrize("datatype", [datatype for datatype in DATATYPES if datatype not in NO_JSON])
def test_every_type_as_json(echo, datatype, answer_binary):
    """JSON carries every type but the half floats, including the largest integers."""
    sent = values(datatype)
    with Http.client(echo) as client:
        inputs = [Http.tensor("x", datatype, sent, binary=False)]
        result = client.infer(f"identity_{datatype.lower()}", inputs, outputs=[Http.wanted("y", answer_binary)])
    assert same(result.as_numpy("y"), sent)
    assert ("data" in result.get_output("y")) == (not answer_binary)


@pytest.mark.parametrize("datatype", NO_JSON)
def test_half_floats_as_json_are_refused(echo, datatype):
    """Triton's clients rely on this being an error, not a guess."""
    body = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": datatype, "data": [1.0]}]}
    reply = echo.post(f"/v2/models/identity_{datatype.lower()}/infer", body)
    assert reply.status == 400
    assert datatype in reply.error


@both
def test_bytes_that_are_not_text(protocol, client):
    """BYTES are bytes: zeros, high bytes and long elements survive."""
    sent = np.array([[b"\x00", bytes(range(256)), b"x" * 70_000, b""]], dtype=np.object_)
    result = client.infer("identity_bytes", [protocol.tensor("x", "BYTES", sent)])
    assert same(result.as_numpy("y"), sent)


@both
def test_empty_and_large_tensors(protocol, client):
    """No element at all, and more than any single buffer on the way."""
    for elements in (0, 3_000_000):
        sent = np.arange(elements, dtype=np.float32).reshape(1, elements)
        result = client.infer("identity_fp32", [protocol.tensor("x", "FP32", sent)])
        assert same(result.as_numpy("y"), sent)


def test_typed_contents(echo):
    """gRPC clients without numpy send `contents` rather than raw bytes."""
    pb = triton_grpc.service_pb2
    cases = [
        ("FP32", "fp32_contents", [1.5, -2.0]), ("FP64", "fp64_contents", [1e300]), ("BOOL", "bool_contents",
        [True, False]),
        ("INT8", "int_contents", [-128, 127]), ("INT16", "int_contents", [-32768]), ("INT32", "int_contents",
        [-(2**31)]),
        ("INT64", "int64_contents", [-(2**63)]), ("UINT8", "uint_contents", [255]), ("UINT16", "uint_contents",
        [65535]),
        ("UINT32", "uint_contents", [2**32 - 1]), ("UINT64", "uint64_contents", [2**64 - 1]),
        ("BYTES", "bytes_contents", [b"", "ü".encode()]),
    ]  # fmt: skip
    with grpc.insecure_channel(echo.grpc) as channel:
        stub = triton_grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for datatype, field, elements in cases:
            request = pb.ModelInferRequest(model_name=f"identity_{datatype.lower()}")
            tensor = request.inputs.add(name="x", datatype=datatype, shape=[1, len(elements)])
            getattr(tensor.contents, field).extend(elements)
            response = stub.ModelInfer(request)
            array = np.array([elements], dtype=NUMPY.get(datatype, np.object_))
            raw = triton_grpc.InferResult(response).as_numpy("y")
            assert same(raw, array), datatype


def test_raw_body(echo):
    """`Inference-Header-Content-Length: 0` makes the whole body the only input, of batch one."""
    sent = np.arange(5, dtype=np.float32)
    headers = {"Inference-Header-Content-Length": "0"}
    reply = echo.post("/v2/models/identity_fp32/infer", sent.tobytes(), headers)
    assert reply.status == 200, reply
    length = int(reply.headers.get("inference-header-content-length", len(reply.body)))
    assert reply.body[length:] == sent.tobytes() or reply.json["outputs"][0]["data"] == sent.tolist()


def test_json_numbers_print_as_triton_prints_them(echo):
    """Whole floats keep their point, as recorded."""
    body = {
        "id": "r1",
        "inputs": [
            {"name": "INPUT0", "shape": [1, 4], "datatype": "FP32", "data": [2, 3, 4, 5]},
            {"name": "INPUT1", "shape": [1, 4], "datatype": "FP32", "data": [[0, 1, 2, 3]]},
        ],
    }
    reply = echo.post("/v2/models/addsub/infer", body)
    assert reply.body == (
        b'{"id":"r1","model_name":"addsub","model_version":"1","outputs":['
        b'{"name":"OUTPUT0","datatype":"FP32","shape":[1,4],"data":[2.0,3.0,4.0,5.0]},'
        b'{"name":"OUTPUT1","datatype":"FP32","shape":[1,4],"data":[0.0,1.0,2.0,3.0]}]}'
    )


def test_binary_answer_is_tritons_byte_for_byte(echo):
    """One output as JSON and one as bytes, as recorded."""
    tensor = {"shape": [1, 4], "datatype": "FP32"}
    body = {
        "inputs": [
            {"name": "INPUT0", "data": [2, 3, 4, 5], **tensor},
            {"name": "INPUT1", "data": [0, 1, 2, 3], **tensor},
        ],
        "outputs": [{"name": "OUTPUT0"}, {"name": "OUTPUT1", "parameters": {"binary_data": True}}],
    }
    reply = echo.post("/v2/models/addsub/infer", body)
    head = (
        b'{"model_name":"addsub","model_version":"1","outputs":['
        b'{"name":"OUTPUT0","datatype":"FP32","shape":[1,4],"data":[2.0,3.0,4.0,5.0]},'
        b'{"name":"OUTPUT1","datatype":"FP32","shape":[1,4],"parameters":{"binary_data_size":16}}]}'
    )
    assert reply.headers["content-type"] == "application/octet-stream"
    assert reply.headers["inference-header-content-length"] == str(len(head))
    assert reply.body == head + np.arange(4, dtype=np.float32).tobytes()


def test_binary_data_output(echo):
    """The request-level switch, and an output that overrides it."""
    tensor = {"shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}
    body = {
        "parameters": {"binary_data_output": True},
        "inputs": [{"name": "INPUT0", **tensor}, {"name": "INPUT1", **tensor}],
    }
    reply = echo.post("/v2/models/addsub/infer", body)
    length = int(reply.headers["inference-header-content-length"])
    assert len(reply.body) == length + 32
    body["outputs"] = [{"name": "OUTPUT0", "parameters": {"binary_data": False}}, {"name": "OUTPUT1"}]
    reply = echo.post("/v2/models/addsub/infer", body)
    length = int(reply.headers["inference-header-content-length"])
    assert len(reply.body) == length + 16
    assert b'"name":"OUTPUT0","datatype":"FP32","shape":[1,4],"data":' in reply.body[:length]


# -- what a request asks for


@both
def test_requested_outputs(protocol, client):
    """Only what was asked for is sent."""
    result = client.infer("addsub", addsub_inputs(protocol), outputs=[protocol.wanted("OUTPUT1")])
    assert [output["name"] for output in protocol.response(result)["outputs"]] == ["OUTPUT1"]
    assert result.as_numpy("OUTPUT0") is None


@both
def test_inputs_in_any_order(protocol, client):
    """Inputs are told apart by name."""
    first, second = np.full((1, 4), 1, np.float32), np.full((1, 4), 2, np.float32)
    inputs = [protocol.tensor("INPUT1", "FP32", second), protocol.tensor("INPUT0", "FP32", first)]
    result = client.infer("addsub", inputs)
    assert same(result.as_numpy("OUTPUT0"), first)
    assert same(result.as_numpy("OUTPUT1"), second)


@both
@pytest.mark.parametrize("request_id", ["", "r1", "ü-日本", "x" * 500])
def test_request_ids(protocol, client, request_id):
    """An id comes back unchanged."""
    result = client.infer("addsub", addsub_inputs(protocol), request_id=request_id)
    assert protocol.response(result).get("id", "") == request_id


@both
def test_schedule_parameters(protocol, client):
    """`priority` out of range is clamped, a generous `timeout` changes nothing, own parameters are accepted."""
    inputs = addsub_inputs(protocol)
    for priority in (0, 1, 9, 2**63):
        result = client.infer("addsub", inputs, priority=priority, timeout=20_000_000, parameters={"mine": "x"})
        assert result.as_numpy("OUTPUT0").shape == (1, 4)


@both
def test_versions(protocol, client):
    """The version that is served can be named."""
    result = client.infer("addsub", addsub_inputs(protocol), model_version="1")
    assert protocol.response(result)["model_version"] == "1"


@both
def test_classification(protocol, client):
    """`value:index`, best first; with three rows, three times."""
    sent = np.array([[1, 4, 3, 2], [9, 8, 7, 6], [0, 0, 1, 0]], np.float32)
    inputs = [protocol.tensor(name, "FP32", sent) for name in ("INPUT0", "INPUT1")]
    result = client.infer("addsub", inputs, outputs=[protocol.wanted("OUTPUT0", classes=2)])
    expected = [[b"4.000000:1", b"3.000000:2"], [b"9.000000:0", b"8.000000:1"], [b"1.000000:2", b"0.000000:0"]]
    rows = result.as_numpy("OUTPUT0")
    assert rows.shape == (3, 2)
    got = [[text if isinstance(text, bytes) else text.encode() for text in row] for row in rows]
    assert got[:2] == expected[:2]
    assert got[2][0] == expected[2][0]


def test_labels():
    """The third part of a class is its label."""
    files = {
        "named/1/model.emulated.toml": identity("FP32", dims=("batch", 3)),
        "named/labels.txt": "cat\ndog\nüber\n",
    }
    sent = np.array([[0.25, 0.5, 0.75]], np.float32)
    with Server(files) as server:
        for protocol in PROTOCOLS:
            with protocol.client(server) as client:
                inputs = [protocol.tensor("x", "FP32", sent)]
                result = client.infer("named", inputs, outputs=[protocol.wanted("y", classes=3)])
            got = [text if isinstance(text, bytes) else text.encode() for text in result.as_numpy("y").flatten()]
            assert got == ["0.750000:2:über".encode(), b"0.500000:1:dog", b"0.250000:0:cat"]


# -- compression


@pytest.mark.parametrize("request_coding", [None, "gzip", "deflate"])
@pytest.mark.parametrize("response_coding", [None, "gzip", "deflate"])
def test_compression_over_http(echo, request_coding, response_coding):
    """Both directions, each on its own."""
    sent = np.zeros((4, 5_000), np.float32)
    with Http.client(echo) as client:
        result = client.infer(
            "identity_fp32",
            [Http.tensor("x", "FP32", sent)],
            request_compression_algorithm=request_coding,
            response_compression_algorithm=response_coding,
        )
    assert same(result.as_numpy("y"), sent)


@pytest.mark.parametrize("coding, inflate", [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_answers_are_really_compressed(echo, coding, inflate):
    """A client that accepts a coding is sent fewer bytes."""
    body = {"inputs": [{"name": "x", "shape": [1, 5_000], "datatype": "FP32", "data": [0.0] * 5_000}]}
    reply = echo.post("/v2/models/identity_fp32/infer", body, {"Accept-Encoding": coding})
    assert reply.headers["content-encoding"] == coding
    assert len(reply.body) < 2_000
    assert b'"name":"y"' in inflate(reply.body)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_compression_over_grpc(echo, coding):
    sent = np.zeros((4, 5_000), np.float32)
    with Grpc.client(echo) as client:
        result = client.infer("identity_fp32", [Grpc.tensor("x", "FP32", sent)], compression_algorithm=coding)
    assert same(result.as_numpy("y"), sent)


# -- not waiting


def test_async_infer_over_http(echo):
    """Many at once, each with its own answer."""
    with Http.client(echo) as client:
        sent = [np.full((1, 8), number, np.int32) for number in range(20)]
        pending = [client.async_infer("identity_int32", [Http.tensor("x", "INT32", one)]) for one in sent]
        for one, handle in zip(sent, pending):
            assert same(handle.get_result().as_numpy("y"), one)


def test_callbacks_over_grpc(echo):
    """Answers and errors both reach the callback."""
    answers = queue.Queue()
    with Grpc.client(echo) as client:
        for number in range(20):
            sent = np.full((1, 8), number, np.int32)
            callback = partial(lambda number, result, error: answers.put((number, result, error)), number)
            client.async_infer("identity_int32", [Grpc.tensor("x", "INT32", sent)], callback)
        got = dict((number, (result, error)) for number, result, error in (answers.get(timeout=20) for _ in range(20)))
        for number, (result, error) in got.items():
            assert error is None
            assert same(result.as_numpy("y"), np.full((1, 8), number, np.int32))
        client.async_infer("nope", [Grpc.tensor("x", "INT32", sent)], lambda result, error: answers.put(error))
        assert answers.get(timeout=20).status() == "StatusCode.NOT_FOUND"


def test_streaming_over_grpc(echo):
    """One stream, many requests; an error in it ends only its own request."""
    answers = queue.Queue()
    with Grpc.client(echo) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(20):
            sent = np.full((1, 8), number, np.int32)
            client.async_stream_infer("identity_int32", [Grpc.tensor("x", "INT32", sent)], request_id=str(number))
        got = {}
        for _ in range(20):
            result, error = answers.get(timeout=20)
            assert error is None
            got[int(result.get_response().id)] = result.as_numpy("y")
        for number in range(20):
            assert same(got[number], np.full((1, 8), number, np.int32))
        client.async_stream_infer("nope", [Grpc.tensor("x", "INT32", sent)], request_id="bad")
        result, error = answers.get(timeout=20)
        assert "unknown model: 'nope'" in str(error)
        client.async_stream_infer("identity_int32", [Grpc.tensor("x", "INT32", sent)], request_id="after")
        result, error = answers.get(timeout=20)
        assert error is None and result.get_response().id == "after"
        client.stop_stream()


@both
def test_asyncio(protocol, echo):
    """Thirty at once from one event loop, then an error, then health."""

    async def go():
        client = protocol.aio_client(echo)
        try:
            sent = [np.full((2, 4), number, np.float64) for number in range(30)]
            calls = [client.infer("identity_fp64", [protocol.tensor("x", "FP64", one)]) for one in sent]
            for one, result in zip(sent, await asyncio.gather(*calls)):
                assert same(result.as_numpy("y"), one)
            with pytest.raises(InferenceServerException, match="Request for unknown model: 'nope' is not found"):
                await client.infer("nope", [protocol.tensor("x", "FP64", sent[0])])
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("addsub")
            metadata = await client.get_model_metadata("addsub")
            assert (metadata["name"] if protocol is Http else metadata.name) == "addsub"
        finally:
            await client.close()

    asyncio.run(go())


@both
@pytest.mark.parametrize("datatype", DATATYPES)
def test_every_type_with_asyncio(protocol, echo, datatype):
    async def go():
        client = protocol.aio_client(echo)
        try:
            sent = values(datatype)
            inputs = [protocol.tensor("x", datatype, sent)]
            result = await client.infer(f"identity_{datatype.lower()}", inputs)
            assert same(result.as_numpy("y"), sent)
        finally:
            await client.close()

    asyncio.run(go())


def test_asyncio_streaming(echo):
    async def go():
        async with triton_grpc_aio.InferenceServerClient(echo.grpc) as client:

            async def requests():
                for number in range(10):
                    sent = np.full((1, 4), number, np.float32)
                    yield {
                        "model_name": "identity_fp32",
                        "inputs": [Grpc.tensor("x", "FP32", sent)],
                        "request_id": str(number),
                    }

            seen = set()
            async for result, error in client.stream_infer(requests()):
                assert error is None
                number = int(result.get_response().id)
                assert same(result.as_numpy("y"), np.full((1, 4), number, np.float32))
                seen.add(number)
            assert seen == set(range(10))

    asyncio.run(go())


# -- what the server says about itself


@both
def test_health(protocol, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("addsub")
    assert client.is_model_ready("addsub", "1")
    assert not client.is_model_ready("nope")
    assert not client.is_model_ready("addsub", "9")


@pytest.mark.parametrize("path", ["/health", "/healthz", "/livez", "/readyz", "/live", "/ready", "/ping", "/v1/health"])
def test_health_under_other_names(echo, path):
    """Load balancers and orchestrators each have their own."""
    assert echo.get(path).status == 200


def test_grpc_health(echo):
    """The standard protocol: one byte field, 1 for serving."""
    with grpc.insecure_channel(echo.grpc) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        assert check(b"") == b"\x08\x01"
        service = b"inference.GRPCInferenceService"
        assert check(b"\x0a" + bytes([len(service)]) + service) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as raised:
            check(b"\x0a\x04nope")
        assert raised.value.code() == grpc.StatusCode.NOT_FOUND


@both
def test_server_metadata(protocol, client):
    """Extensions are promises: only what is implemented."""
    metadata = client.get_server_metadata(as_json=True) if protocol is Grpc else client.get_server_metadata()
    assert metadata["name"] == "quadrant"
    assert set(metadata["extensions"]) >= {"classification", "schedule_policy", "binary_tensor_data"}
    assert not set(metadata["extensions"]) & {"system_shared_memory", "cuda_shared_memory", "trace", "logging"}


@both
def test_model_metadata(protocol, client):
    """The shape includes the batch, as -1."""
    metadata = (
        client.get_model_metadata("addsub", as_json=True) if protocol is Grpc else client.get_model_metadata("addsub")
    )
    assert metadata["name"] == "addsub"
    assert metadata["versions"] == ["1"]
    shapes = {
        tensor["name"]: (tensor["datatype"], [int(dim) for dim in tensor["shape"]])
        for tensor in metadata["inputs"] + metadata["outputs"]
    }
    assert shapes == dict.fromkeys(["INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1"], ("FP32", [-1, 4]))


@both
def test_model_config(protocol, client):
    """A batching model's configuration has its dimensions without the batch."""
    config = (
        client.get_model_config("addsub", as_json=True)["config"]
        if protocol is Grpc
        else client.get_model_config("addsub")
    )
    assert config["name"] == "addsub"
    assert config["max_batch_size"] > 1
    assert [int(dim) for dim in config["input"][0]["dims"]] == [4]
    assert config["input"][0]["data_type"] == "TYPE_FP32"


@both
def test_repository_index(protocol, client):
    index = (
        client.get_model_repository_index(as_json=True)["models"]
        if protocol is Grpc
        else client.get_model_repository_index()
    )
    states = {(model["name"], model["version"], model["state"]) for model in index}
    assert states == {(f"identity_{datatype.lower()}", "1", "READY") for datatype in DATATYPES} | {
        ("addsub", "1", "READY")
    }


@both
def test_what_is_not_implemented_is_said(protocol, client):
    """Never 500: a client that probes for an extension learns that it is not there."""
    calls = [
        lambda: client.get_inference_statistics("addsub"),
        lambda: client.get_system_shared_memory_status(),
        lambda: client.get_trace_settings(),
        lambda: client.get_log_settings(),
    ]
    for call in calls:
        with pytest.raises(InferenceServerException) as raised:
            call()
        assert raised.value.status() in ("404", "StatusCode.UNIMPLEMENTED")


# -- errors

MISSING_INPUT = (
    "[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'addsub'. Got input(s) ['INPUT0'], but "
    "missing required input(s) ['INPUT1']. Please provide all required input(s)."
)
WRONG_SHAPE = (
    "[request id: <id_unknown>] unexpected shape for input 'INPUT0' for model 'addsub'. Expected [-1,4], got [1,5]. "
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try "
    "setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)
WRONG_TYPE = (
    "[request id: <id_unknown>] inference input 'INPUT0' data-type is 'INT32', but model 'addsub' expects 'FP32'"
)

# Name, arguments of `infer`, HTTP status, gRPC status, Triton's message.
ERRORS = [
    ("unknown model", dict(model="nope"), "404", "NOT_FOUND", "Request for unknown model: 'nope' is not found"),
    (
        "unknown version",
        dict(version="7"),
        "404",
        "NOT_FOUND",
        "Request for unknown model: 'addsub' version 7 is not found",
    ),
    ("missing input", dict(names=("INPUT0",)), "400", "INVALID_ARGUMENT", MISSING_INPUT),
    ("wrong shape", dict(shape=(1, 5)), "400", "INVALID_ARGUMENT", WRONG_SHAPE),
    ("wrong type", dict(datatype="INT32"), "400", "INVALID_ARGUMENT", WRONG_TYPE),
    (
        "unknown output",
        dict(output="NOPE"),
        "400",
        "INVALID_ARGUMENT",
        "unexpected inference output 'NOPE' for model 'addsub'",
    ),
]


@both
@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case[0])
def test_errors_are_tritons(protocol, client, case):
    """Message and code, as recorded."""
    _, wrong, http_status, grpc_status, message = case
    names = wrong.get("names", ("INPUT0", "INPUT1"))
    inputs = addsub_inputs(protocol, wrong.get("shape", (1, 4)), wrong.get("datatype", "FP32"), names)
    outputs = [protocol.wanted(wrong["output"])] if "output" in wrong else None
    with pytest.raises(InferenceServerException) as raised:
        client.infer(wrong.get("model", "addsub"), inputs, wrong.get("version", ""), outputs)
    assert raised.value.message() == message
    assert raised.value.status() == (http_status if protocol is Http else f"StatusCode.{grpc_status}")


@both
def test_errors_name_the_request(protocol, client):
    """A request with an id finds it in its error."""
    with pytest.raises(InferenceServerException) as raised:
        client.infer("addsub", addsub_inputs(protocol, names=("INPUT0",)), request_id="r7")
    assert raised.value.message().startswith("[request id: r7] expected 2 inputs")


TENSOR = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
MISMATCH = "Unable to parse 'data': Shape does not match true shape of 'data' field"
INFER = "/v2/models/identity_fp32/infer"

# Method, path, body, status, the message or its beginning.
RAW_ERRORS = [
    ("POST", INFER, {"inputs": [{**TENSOR, "shape": [1, 4]}]}, 400, MISMATCH),
    ("POST", INFER, {"inputs": [{**TENSOR, "shape": [16, 4], "data": []}]}, 400, MISMATCH),
    ("POST", INFER, b"{bad", 400, "failed to parse the request JSON buffer: "),
    ("POST", INFER, b"", 400, ""),
    ("POST", "/v2/models/nope/infer", {"inputs": [TENSOR]}, 404, "Request for unknown model: 'nope' is not found"),
    ("GET", INFER, None, 405, "Method Not Allowed"),
    ("GET", "/v2/repository/index", None, 405, "Method Not Allowed"),
    ("GET", "/nope", None, 404, "Not Found"),
    ("GET", "/metrics", None, 404, "Not Found"),
    ("GET", "/v2/models/nope", None, 404, "Request for unknown model: 'nope' is not found"),
    ("GET", "/v2/models/nope/config", None, 404, "Request for unknown model: 'nope' is not found"),
    ("GET", "/v2/models/nope/ready", None, 400, "Model version not ready"),
    ("GET", "/v2/models/addsub/versions/9/ready", None, 400, "Model version not ready"),
]


@pytest.mark.parametrize("method, path, body, status, message", RAW_ERRORS)
def test_errors_of_raw_requests(echo, method, path, body, status, message):
    """What a client library would not let through."""
    reply = echo.request(method, path, body)
    assert reply.status == status
    assert reply.error.startswith(message)
    assert reply.error == message or message.endswith(": ") or not message


def test_unavailable_model():
    """A model that exists but could not be loaded: Triton's words, and then the reason."""
    with Server({"broken.onnx": b"not a model"}) as server:
        for protocol in PROTOCOLS:
            with protocol.client(server) as client, pytest.raises(InferenceServerException) as raised:
                client.infer("broken", addsub_inputs(protocol))
            words = "Request for unknown model: 'broken' has no available versions: "
            assert raised.value.message().startswith(words)
            assert "is not a complete ONNX model" in raised.value.message()
            assert raised.value.status() in ("404", "StatusCode.NOT_FOUND")
