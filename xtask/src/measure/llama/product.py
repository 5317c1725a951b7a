"""How fast ONNX Runtime multiplies unsigned with signed bytes: 1024 x 1024 by 1024 x 1024, on so many threads.

Prints operations per second, two for each pair of numbers: the best of 20 runs.
"""

import sys
import time

import numpy as np
import onnx
import onnxruntime

SIZE = 1024

rng = np.random.default_rng(1)
weights = rng.integers(-127, 128, (SIZE, SIZE), dtype=np.int8)
graph = onnx.helper.make_graph(
    [onnx.helper.make_node("MatMulInteger", ["a", "b"], ["c"])],
    "product",
    [onnx.helper.make_tensor_value_info("a", onnx.TensorProto.UINT8, [SIZE, SIZE])],
    [onnx.helper.make_tensor_value_info("c", onnx.TensorProto.INT32, [SIZE, SIZE])],
    [onnx.numpy_helper.from_array(weights, "b")],
)
model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[1])
session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
values = rng.integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
(product,) = session.run(None, {"a": values})
assert (product == values.astype(np.int32) @ weights.astype(np.int32)).all()
best = float("inf")
for _ in range(20):
    began = time.perf_counter()
    session.run(None, {"a": values})
    best = min(best, time.perf_counter() - began)
print(2 * SIZE**3 / best)
