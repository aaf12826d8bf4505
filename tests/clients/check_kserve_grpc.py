"""KServe's client over gRPC, unchanged, against one agent.

A process of its own: its messages and tritonclient's have the same names, which protobuf
does not allow beside each other. Called with the line of JSON that `rollcall-fleet` prints.
"""

import asyncio
import json
import sys

import numpy
from kserve import InferInput, InferRequest
from kserve.inference_client import InferenceGRPCClient
from recorded import cases


async def kserve_infers_raw_and_typed(fleet):
    client = InferenceGRPCClient(fleet["grpc"])
    model = fleet["model"]
    assert await client.is_server_live() and await client.is_server_ready()
    assert await client.is_model_ready(model)
    for tensors, tolerance in cases(fleet):
        for raw in (True, False):
            given = InferInput("input", list(tensors["input"].shape), "FP32")
            given.set_data_from_numpy(tensors["input"], binary_data=raw)
            answer = await client.infer(InferRequest(model, [given], request_id="order-8"))
            assert answer.id == "order-8" and answer.model_version == fleet["version"]
            for output in answer.outputs:
                expected = tensors[output.name]
                got = output.as_numpy()
                assert numpy.allclose(got, expected, rtol=tolerance, atol=tolerance), output.name
    await client.close()


def main():
    fleet = json.loads(sys.argv[1])
    asyncio.run(kserve_infers_raw_and_typed(fleet))
    print("ok kserve_infers_raw_and_typed")


if __name__ == "__main__":
    main()
