"""Trains the test models and writes their bundles beside this file.

    python train.py            writes digits/, breast-cancer/, wine/, malformed/
    python train.py --check    rebuilds in memory and compares with the files

Every number that follows is seeded, and the linear algebra runs on one thread,
so that a second run on the same kind of machine gives the same bytes.
See README.md for what each version is for and what is wrong with it on purpose.
"""

import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"

import argparse
import copy
import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import sklearn
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).resolve().parent
SEED = 20261121
OPSET = {"": 21, "ai.onnx.ml": 1}
SMOKE_CASES = 5
SMOKE_TOLERANCE = 0.0001
OWNER = "rollcall-tests"


# --------------------------------------------------------------------- data


class Data:
    """One data set, split once: the rows to train on and the held-out rows."""

    def __init__(self, name, bunch, features, held_out):
        self.name = name
        self.features = features
        x = bunch.data.astype(np.float32)
        y = bunch.target.astype(np.int64)
        self.train_x, self.valid_x, self.train_y, self.valid_y = train_test_split(
            x, y, test_size=held_out, stratify=y, random_state=SEED
        )
        self.classes = len(np.unique(y))

    def snapshot(self, rows):
        """The digest that names the rows a version was trained on."""
        digest = hashlib.sha256()
        digest.update(self.train_x[:rows].tobytes())
        digest.update(self.train_y[:rows].tobytes())
        return "sha256:" + digest.hexdigest()


def slug(text):
    return text.replace(" ", "_").replace("/", "_")


def digits_data():
    bunch = load_digits()
    return Data("digits", bunch, [slug(n) for n in bunch.feature_names], 200)


def breast_cancer_data():
    bunch = load_breast_cancer()
    return Data("breast-cancer", bunch, [slug(n) for n in bunch.feature_names], 190)


def wine_data():
    bunch = load_wine()
    return Data("wine", bunch, [slug(n) for n in bunch.feature_names], 60)


# ------------------------------------------------------------ sklearn to ONNX


def convert(model, data, options=None):
    """skl2onnx with the fixed input and output names, shapes and opset."""
    made = to_onnx(
        model,
        name="model",
        initial_types=[("input", FloatTensorType([None, len(data.features)]))],
        target_opset=OPSET,
        options={"zipmap": False, **(options or {})},
    )
    graph = made.graph
    renames = {graph.output[0].name: "label", graph.output[1].name: "probabilities"}
    rename_values(graph, renames)
    # Say every dimension of the outputs: [-1] and [-1, classes].
    del graph.output[:]
    graph.output.extend(
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info(
                "probabilities", TensorProto.FLOAT, [None, data.classes]
            ),
        ]
    )
    del made.opset_import[:]
    made.opset_import.extend(helper.make_opsetid(*pair) for pair in OPSET.items())
    made.producer_name = "rollcall-tests"
    made.producer_version = ""
    made.doc_string = ""
    return made


def rename_values(graph, renames):
    for node in graph.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = renames.get(name, name)


def fold_scaler_into_mlp(model, mean, scale):
    """Makes an MLP trained on (x - mean) / scale take x itself."""
    first = model.coefs_[0] / scale[:, None]
    model.intercepts_[0] = model.intercepts_[0] - mean @ first
    model.coefs_[0] = first
    return model


def fold_scaler_into_linear(model, scaler):
    """The same for a linear model, because tract has no `Scaler` operator."""
    coefficients = model.coef_ / scaler.scale_
    model.intercept_ = model.intercept_ - coefficients @ scaler.mean_
    model.coef_ = coefficients
    return model


# --------------------------------------------------------- the digits versions


def digits_mlp(data, hidden, rows, epochs, alpha):
    model = MLPClassifier(
        hidden_layer_sizes=hidden,
        alpha=alpha,
        learning_rate_init=0.002,
        batch_size=32,
        max_iter=epochs,
        random_state=SEED,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(data.train_x[:rows].astype(np.float64) / 16.0, data.train_y[:rows])
    return fold_scaler_into_mlp(model, np.zeros(64), np.full(64, 16.0))


def digits_1(data):
    """Good: a small network on the first 700 training rows."""
    return convert(digits_mlp(data, (16,), 700, 60, 0.001), data)


def digits_2_classifier(data):
    return digits_mlp(data, (96, 48), None, 80, 0.001)


def digits_2(data):
    """Better: a larger network on every training row."""
    return convert(digits_2_classifier(data), data)


def digits_3(data):
    """Bad: the output heads of 2.0.0 wired to the wrong digits for eight classes."""
    model = digits_2_classifier(data)
    # Head d answers for WRONG[d]: 0 and 1 are right, 2..9 go round in a circle.
    wrong = [0, 1, 3, 4, 5, 6, 7, 8, 9, 2]
    heads, biases = model.coefs_[-1].copy(), model.intercepts_[-1].copy()
    model.coefs_[-1][:, wrong] = heads
    model.intercepts_[-1][wrong] = biases
    return convert(model, data)


def digits_4(better):
    """Slow: 2.0.0 plus a useless chain of matrix products on every call.

    The chain starts from the input, so that no engine can fold it away, and its
    bounded result is added to the pixels times 1e-30, which changes no answer.
    (An engine may drop a product with a constant 0, so it is not 0.)
    """
    made = copy.deepcopy(better)
    graph = made.graph
    width, steps = 192, 120
    rng = np.random.default_rng(SEED)
    orthogonal, _ = np.linalg.qr(rng.standard_normal((width, width)))
    add_constant(graph, "slow_axis", np.array([2], np.int64))
    add_constant(graph, "slow_axes", np.array([1, 2], np.int64))
    add_constant(graph, "slow_last", np.array([1], np.int64))
    add_constant(graph, "slow_spread", (rng.standard_normal((1, 1, width)) / 16).astype(np.float32))
    add_constant(graph, "slow_matrix", (orthogonal[None] * 1.5).astype(np.float32))
    add_constant(graph, "slow_tiny", np.array([[1e-30]], np.float32))

    nodes = [
        helper.make_node("Unsqueeze", ["input", "slow_axis"], ["slow_column"]),
        helper.make_node("Mul", ["slow_column", "slow_spread"], ["slow_0"]),
    ]
    for step in range(steps):
        product, after = f"slow_product_{step}", f"slow_{step + 1}"
        nodes.append(helper.make_node("MatMul", [f"slow_{step}", "slow_matrix"], [product]))
        nodes.append(helper.make_node("Tanh", [product], [after]))
    nodes += [
        helper.make_node("ReduceMean", [f"slow_{steps}", "slow_axes"], ["slow_mean"], keepdims=0),
        helper.make_node("Unsqueeze", ["slow_mean", "slow_last"], ["slow_mean_column"]),
        helper.make_node("Mul", ["slow_mean_column", "slow_tiny"], ["slow_nothing"]),
    ]
    add_to_input(graph, nodes, "slow_nothing")
    return made


def digits_5(data, better):
    """Fails at run time: 2.0.0 plus a correction table that is too short.

    The table is looked up by how much ink the image has, 8 units a row, and ends
    with the row of the image at 74 % of the held-out ones in order of ink. A heavier
    image reads past its end. Every row that is there holds a correction of 0.
    """
    made = copy.deepcopy(better)
    graph = made.graph
    rows = int(np.quantile(data.valid_x.sum(axis=1), 0.74)) // 8 + 1
    add_constant(graph, "ink_axis", np.array([1], np.int64))
    add_constant(graph, "ink_per_row", np.array([8.0], np.float32))
    add_constant(graph, "ink_table", np.zeros(rows, np.float32))
    nodes = [
        helper.make_node("ReduceSum", ["input", "ink_axis"], ["ink"], keepdims=1),
        helper.make_node("Div", ["ink", "ink_per_row"], ["ink_row"]),
        helper.make_node("Floor", ["ink_row"], ["ink_row_floor"]),
        helper.make_node("Cast", ["ink_row_floor"], ["ink_index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["ink_table", "ink_index"], ["ink_correction"], axis=0),
    ]
    add_to_input(graph, nodes, "ink_correction")
    return made


def add_constant(graph, name, value):
    graph.initializer.append(numpy_helper.from_array(value, name))


def add_to_input(graph, nodes, extra):
    """Puts `nodes` first, and `input` + `extra` where the graph reads `input`."""
    rename_values(graph, {"input": "input_corrected"})
    nodes.append(helper.make_node("Add", ["input", extra], ["input_corrected"]))
    for node in nodes:
        node.name = node.output[0]
    everything = nodes + list(graph.node)
    del graph.node[:]
    graph.node.extend(everything)


# ------------------------------------------------------------ the other models


def breast_cancer_1(data):
    scaler = StandardScaler().fit(data.train_x.astype(np.float64))
    model = LogisticRegression(C=1.0, max_iter=1000, random_state=SEED)
    model.fit(scaler.transform(data.train_x.astype(np.float64)), data.train_y)
    return convert(fold_scaler_into_linear(model, scaler), data)


def wine_1(data):
    model = GradientBoostingClassifier(
        n_estimators=30, max_depth=2, learning_rate=0.2, random_state=SEED
    )
    model.fit(data.train_x, data.train_y)
    return convert(model, data)


# -------------------------------------------------------------------- measuring


class Runner:
    def __init__(self, model_bytes):
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        self.session = ort.InferenceSession(
            model_bytes, options, providers=["CPUExecutionProvider"]
        )

    def run(self, x):
        return self.session.run(["label", "probabilities"], {"input": x.astype(np.float32)})

    def rows(self, x):
        """Row by row: labels, probabilities and which rows were answered."""
        labels, probabilities, answered = [], [], []
        for row in x:
            try:
                label, probability = self.run(row[None])
            except Exception:  # a run-time error of the model, as in digits 5.0.0
                answered.append(False)
                continue
            answered.append(True)
            labels.append(label[0])
            probabilities.append(probability[0])
        return np.array(labels), np.array(probabilities), np.array(answered)


def expected_calibration_error(probabilities, truth, bins=10):
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == truth
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    total = 0.0
    for b in range(bins):
        members = which == b
        if members.any():
            total += members.mean() * abs(right[members].mean() - confidence[members].mean())
    return float(total)


def measure(labels, probabilities, truth):
    return {
        "accuracy": float((labels == truth).mean()),
        "f1": float(f1_score(truth, labels, average="macro")),
        "ece": expected_calibration_error(probabilities, truth),
    }


# ------------------------------------------------------------------ bundle files


def number(value, places=7):
    """A float as short as it may be: 3.0 is written 3, the rest rounded."""
    value = round(float(value), places)
    return int(value) if value == int(value) else value


def input_number(value):
    """Shortest decimal that reads back as the same float32."""
    value = float(np.format_float_positional(np.float32(value), unique=True, trim="0"))
    return int(value) if value == int(value) else value


def tensor(name, array, convert_number):
    return {
        "name": name,
        "datatype": "FP32",
        "shape": list(array.shape),
        "data": [convert_number(v) for v in array.ravel()],
    }


def dump_json(value):
    return (json.dumps(value, separators=(",", ":")) + "\n").encode()


def smoke_json(runner, data, answered):
    """One held-out row a case: the first that the model answers, of each class in turn."""
    good = np.flatnonzero(answered)
    first_of_class = [good[data.valid_y[good] == c][0] for c in range(data.classes)]
    others = [row for row in good if row not in first_of_class]
    cases = []
    for row in (first_of_class + others)[:SMOKE_CASES]:
        x = data.valid_x[[row]]
        _, probabilities = runner.run(x)
        cases.append(
            {
                "name": f"held-out-row-{row}-class-{data.valid_y[row]}",
                "inputs": [tensor("input", x, input_number)],
                "outputs": [tensor("probabilities", probabilities, number)],
                "tolerance": SMOKE_TOLERANCE,
            }
        )
    return dump_json({"cases": cases})


def validation_json(data):
    return dump_json(
        {
            "inputs": [tensor("input", data.valid_x, input_number)],
            "labels": [int(v) for v in data.valid_y],
            "scores_output": "probabilities",
        }
    )


def toml_string(text):
    return json.dumps(text)


def metadata_toml(data, about, metrics):
    rows = about["rows"] or len(data.train_y)
    features = "".join(f"  {toml_string(n)},\n" for n in data.features)
    lines = [
        f"algorithm = {toml_string(about['algorithm'])}",
        f"training_data_version = {toml_string(f'scikit-learn-{sklearn.__version__}/{data.name}/first-{rows}')}",
        f"training_snapshot = {toml_string(data.snapshot(about['rows']))}",
        f"features = [\n{features}]",
        f"feature_version = {toml_string(data.name + '-raw-1')}",
        f"owner = {toml_string(OWNER)}",
        'git_commit = "unknown"',
        f"model_card = {toml_string(about['model_card'])}",
        f"expected_changes = {toml_string(about['expected_changes'])}",
        "",
        "[metrics]",
        *(f"{name} = {value:.6f}" for name, value in metrics.items()),
        "",
        "[labels]",
        *(f"{name} = {toml_string(value)}" for name, value in about["labels"].items()),
    ]
    return ("\n".join(lines) + "\n").encode()


# --------------------------------------------------------------------- all of it


def about(algorithm, rows, model_card, expected_changes, fixture):
    return {
        "algorithm": algorithm,
        "rows": rows,
        "model_card": model_card,
        "expected_changes": expected_changes,
        "labels": {"fixture": fixture, "framework": f"scikit-learn {sklearn.__version__}"},
    }


def versions():
    """Yields (data, version, model, what the metadata says)."""
    digits = digits_data()
    better = digits_2(digits)
    mlp = "MLPClassifier"
    yield digits, "1.0.0", digits_1(digits), about(
        f"{mlp} 64-16-10", 700,
        "A small network that reads a digit from an 8x8 image.",
        "First version.", "good",
    )
    yield digits, "2.0.0", better, about(
        f"{mlp} 64-96-48-10", None,
        "A larger network that reads a digit from an 8x8 image.",
        "More training rows and two hidden layers: fewer wrong digits.", "better",
    )
    yield digits, "3.0.0", digits_3(digits), about(
        f"{mlp} 64-96-48-10", None,
        "A larger network whose output heads are wired to the wrong digits.",
        "Answers differ from 2.0.0 for eight of the ten digits.", "wrong-answers",
    )
    yield digits, "4.0.0", digits_4(better), about(
        f"{mlp} 64-96-48-10 with a useless chain", None,
        "The network of 2.0.0 with several milliseconds of useless work a call.",
        "Same answers as 2.0.0, much slower.", "slow",
    )
    yield digits, "5.0.0", digits_5(digits, better), about(
        f"{mlp} 64-96-48-10 with an ink table", None,
        "The network of 2.0.0 behind a correction table that is too short.",
        "Same answers as 2.0.0, and a run-time error on images with much ink.", "run-time-error",
    )
    cancer = breast_cancer_data()
    yield cancer, "1.0.0", breast_cancer_1(cancer), about(
        "LogisticRegression", None,
        "A logistic regression that tells malignant (0) from benign (1) tumours.",
        "First version.", "good",
    )
    wine = wine_data()
    yield wine, "1.0.0", wine_1(wine), about(
        "GradientBoostingClassifier", None,
        "Boosted trees that tell three cultivars of wine from thirteen measurements.",
        "First version.", "good",
    )


def build():
    """Every file to write, by its path from here, and the report's lines."""
    files, report, labels_of = {}, [], {}
    for data, version, model, said in versions():
        onnx.checker.check_model(model, full_check=True)
        model_bytes = model.SerializeToString(deterministic=True)
        runner = Runner(model_bytes)
        labels, probabilities, answered = runner.rows(data.valid_x)
        metrics = measure(labels, probabilities, data.valid_y[answered])
        failed = int((~answered).sum())
        if failed:
            said["labels"]["metrics_measured_on"] = f"the {answered.sum()} answered rows"
            said["labels"]["failed_validation_rows"] = str(failed)

        base = f"{data.name}/{version}"
        files[f"{base}/model.onnx"] = model_bytes
        files[f"{base}/smoke.json"] = smoke_json(runner, data, answered)
        files[f"{base}/validation.json"] = validation_json(data)
        files[f"{base}/metadata.toml"] = metadata_toml(data, said, metrics)

        labels_of[base] = (labels, answered)
        line = f"{base:20} " + " ".join(f"{k} {v:.4f}" for k, v in metrics.items())
        line += f" bytes {len(model_bytes)} failed {failed}/{len(answered)}"
        if data.name == "digits" and version != "1.0.0":
            for other in ("1.0.0", "2.0.0"):
                theirs = labels_of[f"digits/{other}"][0][answered]
                line += f" agrees with {other} {(labels == theirs).mean():.4f}"
        report.append(line)

    first = files["digits/1.0.0/model.onnx"]
    files["malformed/truncated.onnx"] = first[: len(first) // 2]
    files["malformed/not-onnx.onnx"] = b"This is plain text, not an ONNX model.\n"
    files["malformed/empty.onnx"] = b""
    return files, report


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    files, report = build()
    print("\n".join(report))
    different = []
    for path, content in files.items():
        target = HERE / path
        if check:
            if not target.is_file() or target.read_bytes() != content:
                different.append(path)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    if check:
        print("different:", ", ".join(different) if different else "none")
        raise SystemExit(1 if different else 0)


if __name__ == "__main__":
    main()
