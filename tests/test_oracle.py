"""Real models through the server give what ONNX Runtime gives when it is called directly.

With ONNX Runtime as the engine and the same options, one row at a time, that is the same bits. Where the server
may choose threads and batches, and with the embedded engine, it is the same up to a share of the largest value of
the tensor.
"""

import threading

import numpy as np
import onnxruntime
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from server import Server, identity

MODELS = ["magika", "minilm-l3", "ppocr-cls", "ppocr-det", "ppocr-rec", "silero-vad"]
NAMES = {np.dtype(np.float32): "FP32", np.dtype(np.int32): "INT32", np.dtype(np.int64): "INT64"}

ORT_TOLERANCE = 1e-4
RTEN_TOLERANCE = 1e-3

SINGLE = """
[device]
probe_s = 0.2
[model_defaults]
width = 1
batching = "off"
"""
CHOSEN = """
[device]
probe_s = 0.5
"""
EMBEDDED = """
[device]
probe_s = 0.2
onnxruntime = "off"
"""


# -- inputs


def picture(random, height: int, width: int) -> np.ndarray:
    """Dark strokes like writing on a light page, as the models' own preparation would normalise it.

    On noise the detector's answer is close to zero everywhere, and a comparison would say nothing.
    """
    page = np.full((height, width), 0.95, np.float32)
    for top in range(6, max(height - 20, 7), 28):
        left = int(random.integers(2, 10))
        while left < width - 14:
            for _ in range(3):
                x, y = left + random.integers(0, 8), top + random.integers(0, 14)
                if random.random() < 0.5:
                    page[y : y + 2, left : left + 9] = 0.05
                else:
                    page[top : top + 16, x : x + 2] = 0.05
            left += int(random.integers(11, 20))
    page += random.normal(0, 0.01, page.shape).astype(np.float32)
    return np.stack([(page - 0.5) / 0.5] * 3)[None].astype(np.float32)


def pictures(random, rows: int, height: int, width: int) -> dict:
    return {"x": np.concatenate([picture(random, height, width) for _ in range(rows)])}


def file_bytes(random, rows: int) -> dict:
    """Beginnings of files: text-like, binary and padded (256)."""
    content = random.integers(0, 257, (rows, 2048))
    content[::2, :1024] = random.integers(32, 127, (len(content[::2]), 1024))
    return {"bytes": content.astype(np.int32)}


def sentences(random, rows: int, length: int) -> dict:
    """Token numbers, the last ones masked except in the first row."""
    mask = np.ones((rows, length), np.int64)
    mask[1:, length - 2 :] = 0
    return {"input_ids": random.integers(1000, 30_000, (rows, length)), "attention_mask": mask}


def speech(random, length: int) -> dict:
    state = lambda: random.normal(0, 0.3, (1, 1, 128)).astype(np.float32)  # noqa: E731
    tone = np.sin(np.arange(length * 576, dtype=np.float32) * 0.05).reshape(length, 576)
    sound = tone * 0.3 + random.normal(0, 0.05, (length, 576)).astype(np.float32)
    return {"input": sound.astype(np.float32), "h": state(), "c": state()}


# Model and the makers of its inputs; the first of each is one row.
INPUTS = {
    "magika": [lambda r: file_bytes(r, 1), lambda r: file_bytes(r, 3)],
    "minilm-l3": [lambda r: sentences(r, 1, 7), lambda r: sentences(r, 1, 40), lambda r: sentences(r, 3, 16)],
    "ppocr-cls": [lambda r: pictures(r, 1, 80, 160), lambda r: pictures(r, 3, 80, 160)],
    "ppocr-det": [lambda r: pictures(r, 1, 96, 96), lambda r: pictures(r, 1, 160, 320)],
    "ppocr-rec": [lambda r: pictures(r, 1, 48, 80), lambda r: pictures(r, 1, 48, 320), lambda r: pictures(r,
    2, 48, 160)],
    "silero-vad": [lambda r: speech(r, 1), lambda r: speech(r, 5)],
}  # fmt: skip
CASES = [(model, number) for model in MODELS for number in range(len(INPUTS[model]))]
cases = pytest.mark.parametrize("model, number", CASES, ids=lambda value: str(value))


def inputs_of(model: str, number: int, seed: int) -> dict:
    return INPUTS[model][number](np.random.default_rng([seed, number, MODELS.index(model)]))


# -- the two sides


@pytest.fixture(scope="module")
def oracle(assets):
    """ONNX Runtime called directly, with one thread; sessions are kept."""
    sessions = {}

    def compute(model: str, inputs: dict) -> dict:
        if model not in sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            sessions[model] = onnxruntime.InferenceSession(str(assets / "models" / f"{model}.onnx"), options)
        names = [output.name for output in sessions[model].get_outputs()]
        return dict(zip(names, sessions[model].run(names, inputs)))

    return compute


def real_models(assets, config: str, *args: str) -> Server:
    files = {f"{model}.onnx": assets / "models" / f"{model}.onnx" for model in MODELS}
    return Server(files, config, args)


def with_onnxruntime(assets) -> tuple[str, str]:
    return ("--onnxruntime", str(assets / "onnxruntime" / "libonnxruntime.so"))


@pytest.fixture(scope="module")
def single(assets):
    with real_models(assets, SINGLE, *with_onnxruntime(assets)) as server:
        yield server


@pytest.fixture(scope="module")
def chosen(assets):
    with real_models(assets, CHOSEN, *with_onnxruntime(assets)) as server:
        yield server


@pytest.fixture(scope="module")
def embedded(assets):
    with real_models(assets, EMBEDDED) as server:
        yield server


def ask(server: Server, model: str, inputs: dict, module=triton_http) -> dict:
    """The server's outputs."""
    address = server.http if module is triton_http else server.grpc
    # The embedded engine needs time for a picture.
    wait = {"network_timeout": 60.0, "connection_timeout": 60.0} if module is triton_http else {}
    with module.InferenceServerClient(address, **wait) as client:
        tensors = []
        for name, array in inputs.items():
            tensors.append(module.InferInput(name, list(array.shape), NAMES[array.dtype]))
            tensors[-1].set_data_from_numpy(array)
        result = client.infer(model, tensors)
        response = result.get_response(as_json=True) if module is triton_grpc else result.get_response()
        return {output["name"]: result.as_numpy(output["name"]) for output in response["outputs"]}


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference as a share of the largest expected value."""
    assert got.shape == expected.shape and got.dtype == expected.dtype
    largest = float(np.abs(expected).max()) or 1.0
    return float(np.abs(got.astype(np.float64) - expected.astype(np.float64)).max()) / largest


def assert_close(got: dict, expected: dict, tolerance: float) -> None:
    assert got.keys() == expected.keys()
    differences = {name: difference(got[name], expected[name]) for name in expected}
    assert all(value <= tolerance for value in differences.values()), differences


# -- tests


def test_inputs_are_telling(oracle):
    """Inputs that give nothing but zeros, or the same for every seed, would prove nothing."""
    for model, number in CASES:
        first, second = (oracle(model, inputs_of(model, number, seed)) for seed in (0, 1))
        floats = [name for name in first if first[name].dtype == np.float32]
        assert floats
        for name in floats:
            assert np.abs(first[name]).max() > 1e-5, (model, name)
            assert difference(first[name], second[name]) > 10 * RTEN_TOLERANCE, (model, name)


def test_engines_are_the_intended_ones(single, chosen, embedded):
    """Or else the comparisons below would compare something else."""
    for server, platform in ((single, "onnxruntime_onnx"), (chosen, "onnxruntime_onnx"), (embedded, "rten_onnx")):
        for model in MODELS:
            assert server.get(f"/v2/models/{model}").json["platform"] == platform


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
@cases
def test_onnxruntime_is_bitwise_the_same(single, oracle, model, number, module):
    """Same library, same options, nothing shared with other requests: the same bits, whatever the transport."""
    for seed in range(3):
        inputs = inputs_of(model, number, seed)
        got, expected = ask(single, model, inputs, module), oracle(model, inputs)
        assert got.keys() == expected.keys()
        for name in expected:
            assert got[name].dtype == expected[name].dtype and got[name].shape == expected[name].shape
            assert got[name].tobytes() == expected[name].tobytes(), f"{name}: {difference(got[name], expected[name])}"


@cases
def test_onnxruntime_as_the_server_chooses(chosen, oracle, model, number):
    """Threads and batches as measured at load."""
    for seed in range(3):
        inputs = inputs_of(model, number, seed)
        assert_close(ask(chosen, model, inputs), oracle(model, inputs), ORT_TOLERANCE)


@cases
def test_embedded_engine(embedded, oracle, model, number):
    """Without any library beside the server."""
    for seed in range(2):
        inputs = inputs_of(model, number, seed)
        assert_close(ask(embedded, model, inputs), oracle(model, inputs), RTEN_TOLERANCE)


def concurrently(count: int, work) -> None:
    """Runs `work(number)` on as many threads, and raises what they raised."""
    errors = []
    barrier = threading.Barrier(count)

    def run(number):
        try:
            barrier.wait(30)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("model, number", [("magika", 0), ("ppocr-cls", 0), ("minilm-l3", 0)])
def test_everybody_gets_their_own_answer(chosen, oracle, model, number):
    """Sixteen clients at once, every one with other rows."""
    inputs = {seed: inputs_of(model, number, seed) for seed in range(16 * 3)}
    expected = {seed: oracle(model, each) for seed, each in inputs.items()}

    def client(thread: int) -> None:
        for seed in range(thread * 3, thread * 3 + 3):
            module = triton_grpc if thread % 2 else triton_http
            assert_close(ask(chosen, model, inputs[seed], module), expected[seed], ORT_TOLERANCE)

    concurrently(16, client)


def test_batches_are_cut_apart_exactly():
    """With an identity that is worth batching, requests of different sizes do share steps and come back whole."""
    model = identity("INT32", latency='{ kind = "fixed", step_us = 5000, row_us = 1 }')
    config = "[models.identity]\ndelay_ms = 5\n"
    with Server({"identity.emulated.toml": model}, config) as server:

        def client(thread: int) -> None:
            with triton_http.InferenceServerClient(server.http) as http:
                for number in range(20):
                    rows = 1 + (thread + number) % 4
                    sent = np.full((rows, 8), thread * 1000 + number, np.int32)
                    tensor = triton_http.InferInput("x", list(sent.shape), "INT32")
                    tensor.set_data_from_numpy(sent)
                    assert np.array_equal(http.infer("identity", [tensor]).as_numpy("y"), sent)

        concurrently(16, client)
        steps = server.metric("nv_inference_exec_count", model="identity")
        rows = server.metric("nv_inference_count", model="identity")
        assert rows == sum(1 + (thread + number) % 4 for thread in range(16) for number in range(20))
        assert steps < 16 * 20 / 2, "requests should have shared steps"
