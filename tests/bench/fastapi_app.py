"""The least that serves the model by the Open Inference Protocol: FastAPI, orjson and
onnxruntime, with nothing checked, counted or logged."""

import os

import numpy as np
import onnxruntime
import orjson
from fastapi import FastAPI, Request, Response

VERSION = os.environ["BENCH_VERSION"]
DATATYPES = {"int64": "INT64", "float32": "FP32"}

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(
    os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"]
)
names = [output.name for output in session.get_outputs()]
app = FastAPI()


@app.get("/v2/health/ready")
async def ready():
    return {"ready": True}


@app.post("/v2/models/digits/infer")
async def infer(request: Request):
    asked = orjson.loads(await request.body())
    tensor = asked["inputs"][0]
    rows = np.asarray(tensor["data"], np.float32).reshape(tensor["shape"])
    outputs = [
        {
            "name": name,
            "shape": value.shape,
            "datatype": DATATYPES[value.dtype.name],
            "data": value.ravel(),
        }
        for name, value in zip(names, session.run(names, {tensor["name"]: rows}))
    ]
    body = orjson.dumps(
        {"model_name": "digits", "model_version": VERSION, "outputs": outputs},
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    return Response(body, media_type="application/json", headers={"x-version": VERSION})
