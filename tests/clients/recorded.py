"""Images for the test models, and the answers that the models' makers recorded."""

import json
from pathlib import Path

import numpy

MODELS = Path(__file__).parent.parent / "models"
DTYPES = {"FP32": numpy.float32, "INT64": numpy.int64}


def cases(fleet):
    """Tensors by name, and how far an answer may be from them."""
    smoke = json.loads((MODELS / fleet["model"] / fleet["version"] / "smoke.json").read_text())
    for case in smoke["cases"]:
        tensors = {}
        for tensor in case["inputs"] + case["outputs"]:
            data = numpy.array(tensor["data"], DTYPES[tensor["datatype"]])
            tensors[tensor["name"]] = data.reshape(tensor["shape"])
        tensors["label"] = numpy.argmax(tensors["probabilities"], axis=1)
        yield tensors, case["tolerance"]
