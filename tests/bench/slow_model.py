"""Makes digits slow: products of matrices before the model, which change no answer.

    python slow_model.py MODEL OUT MILLISECONDS

Sized by what one thread of onnxruntime takes here; prints what the made model takes.
"""

import sys
import time

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper

WIDTH = 192
TRIAL_STEPS = 100


def slow(model, steps):
    """Adds so many products. Their bounded result is added to the pixels times 1e-30: it
    depends on the input, so that no engine can fold it away."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    rng = np.random.default_rng(1)
    orthogonal, _ = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))
    constants = {
        "slow_last_axis": np.array([2], np.int64),
        "slow_axes": np.array([1, 2], np.int64),
        "slow_row_axis": np.array([1], np.int64),
        "slow_spread": (rng.standard_normal((1, 1, WIDTH)) / 16).astype(np.float32),
        "slow_matrix": (orthogonal[None] * 1.5).astype(np.float32),
        "slow_tiny": np.array([[1e-30]], np.float32),
    }
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items()
    )
    name = graph.input[0].name
    nodes = [
        helper.make_node("Unsqueeze", [name, "slow_last_axis"], ["slow_column"]),
        helper.make_node("Mul", ["slow_column", "slow_spread"], ["slow_0"]),
    ]
    for step in range(steps):
        product = f"slow_product_{step}"
        nodes.append(helper.make_node("MatMul", [f"slow_{step}", "slow_matrix"], [product]))
        nodes.append(helper.make_node("Tanh", [product], [f"slow_{step + 1}"]))
    nodes += [
        helper.make_node("ReduceMean", [f"slow_{steps}", "slow_axes"], ["slow_mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["slow_mean", "slow_row_axis"], ["slow_mean_column"]),
        helper.make_node("Mul", ["slow_mean_column", "slow_tiny"], ["slow_nothing"]),
        helper.make_node("Add", [name, "slow_nothing"], ["slow_input"]),
    ]
    for node in graph.node:
        for i, source in enumerate(node.input):
            if source == name:
                node.input[i] = "slow_input"
    for i, node in enumerate(nodes):
        graph.node.insert(i, node)
    onnx.checker.check_model(made)
    return made


def milliseconds(model):
    """The fastest of some runs: what else the machine does only adds."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    pixels = {model.graph.input[0].name: np.ones((1, 64), np.float32)}
    times = []
    for _ in range(11):
        began = time.perf_counter()
        session.run(None, pixels)
        times.append((time.perf_counter() - began) * 1e3)
    return min(times)


def main():
    source, target, wanted_ms = sys.argv[1], sys.argv[2], float(sys.argv[3])
    model = onnx.load(source)
    trial_ms = milliseconds(slow(model, TRIAL_STEPS))
    made = slow(model, max(1, round(TRIAL_STEPS * wanted_ms / trial_ms)))
    onnx.save(made, target)
    print(f"{milliseconds(made):.1f}")


if __name__ == "__main__":
    main()
