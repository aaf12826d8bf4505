"""tritonclient over gRPC, unchanged, against one agent.

Called with the line of JSON that `rollcall-fleet` prints. Each check is a function; the
first that fails ends the run with its traceback.
"""

import asyncio
import json
import queue
import sys

import grpc
import numpy
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from recorded import DTYPES, cases
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

OUTPUTS = {"label": "INT64", "probabilities": "FP32"}


def image(tensors, name="input"):
    given = triton.InferInput(name, list(tensors["input"].shape), "FP32")
    return given.set_data_from_numpy(tensors["input"])


def agrees(result, tensors, tolerance, names=OUTPUTS):
    for name in names:
        got = result.as_numpy(name)
        assert got is not None and got.dtype == DTYPES[OUTPUTS[name]], (name, got)
        assert got.shape == tensors[name].shape, (name, got.shape)
        assert numpy.allclose(got, tensors[name], rtol=tolerance, atol=tolerance), (name, got)


def refused(call, words, code):
    try:
        call()
    except InferenceServerException as error:
        assert words in error.message(), error.message()
        assert error.status() == f"StatusCode.{code}", (error.status(), code)
    else:
        raise AssertionError(f"this should have been refused: {words}")


def triton_infers(client, fleet):
    for tensors, tolerance in cases(fleet):
        agrees(client.infer(fleet["model"], [image(tensors)]), tensors, tolerance)
        wanted = [triton.InferRequestedOutput(name) for name in ("probabilities", "label")]
        result = client.infer(fleet["model"], [image(tensors)], outputs=wanted)
        agrees(result, tensors, tolerance)
        names = [output.name for output in result.get_response().outputs]
        assert names == ["probabilities", "label"], names


def triton_sends_large_batches(client, fleet):
    rows = numpy.concatenate([tensors["input"] for tensors, _ in cases(fleet)])
    many = numpy.tile(rows, (8_000 // len(rows), 1))
    few = client.infer(fleet["model"], [image({"input": rows})]).as_numpy("label")
    all_of_them = client.infer(fleet["model"], [image({"input": many})]).as_numpy("label")
    assert numpy.array_equal(all_of_them, numpy.tile(few, 8_000 // len(rows)))


def triton_packs_its_messages(client, fleet):
    rows = numpy.concatenate([tensors["input"] for tensors, _ in cases(fleet)])
    many = numpy.tile(rows, (4_000 // len(rows), 1))
    for batch in (rows[:1], many):
        plain = client.infer(fleet["model"], [image({"input": batch})])
        for algorithm in ("gzip", "deflate"):
            given = [image({"input": batch})]
            packed = client.infer(fleet["model"], given, compression_algorithm=algorithm)
            for name in OUTPUTS:
                assert numpy.array_equal(packed.as_numpy(name), plain.as_numpy(name)), algorithm


def triton_names_versions_ids_and_keys(client, fleet):
    model, version = fleet["model"], fleet["version"]
    tensors, _ = next(cases(fleet))
    result = client.infer(model, [image(tensors)], model_version=version, request_id="order-7")
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("order-7", model, version)
    # Parameters that no server must know.
    result = client.infer(
        model, [image(tensors)], priority=3, timeout=5_000_000, client_timeout=10,
        parameters={"colour": "red"}, headers={"x-rollcall-key": "user-1"},
    )
    assert result.get_response().id, "an id is made where none came"


def triton_asks_what_is_there(client, fleet):
    model, version = fleet["model"], fleet["version"]
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(model) and client.is_model_ready(model, version)
    assert not client.is_model_ready(model, "9.9.9") and not client.is_model_ready("nobody")
    assert client.get_server_metadata(as_json=True)["name"] == "rollcall-agent"
    for metadata in (client.get_model_metadata(model), client.get_model_metadata(model, version)):
        assert (metadata.name, list(metadata.versions)) == (model, [version]), metadata
        (taken,) = metadata.inputs
        assert (taken.name, taken.datatype, list(taken.shape)) == ("input", "FP32", [-1, 64])
        assert {one.name: one.datatype for one in metadata.outputs} == OUTPUTS
    config = client.get_model_config(model).config
    assert (config.name, config.max_batch_size) == (model, 0), config
    assert [list(one.dims) for one in config.input] == [[-1, 64]], config
    index = client.get_model_repository_index().models
    assert [(one.name, one.version, one.state) for one in index] == [(model, version, "READY")]


def triton_is_refused_in_words(client, fleet):
    model = fleet["model"]
    tensors, _ = next(cases(fleet))
    good = [image(tensors)]
    short = {"input": tensors["input"][:, :63]}
    nan = {"input": numpy.full_like(tensors["input"], numpy.nan)}
    infer = client.infer
    refused(lambda: infer("nobody", good), "no model nobody", "NOT_FOUND")
    refused(lambda: infer(model, good, model_version="9.9.9"), "does not answer", "NOT_FOUND")
    bad = "INVALID_ARGUMENT"
    refused(lambda: infer(model, [image(short)]), "the model wants [-1, 64]", bad)
    refused(lambda: infer(model, [image(tensors, name="x")]), '"input" is missing', bad)
    refused(lambda: infer(model, good + good), "comes twice", bad)
    refused(lambda: infer(model, [image(nan)]), "only finite numbers", bad)
    unknown = [triton.InferRequestedOutput("colour")]
    refused(lambda: infer(model, good, outputs=unknown), 'no output "colour"', bad)
    classes = [triton.InferRequestedOutput("probabilities", class_count=3)]
    refused(lambda: infer(model, good, outputs=classes), "classification", bad)
    shared = triton.InferInput("input", [1, 64], "FP32")
    shared.set_shared_memory("region", 256)
    refused(lambda: infer(model, [shared]), "shared memory", bad)
    rows = {"input": numpy.zeros((300_000, 64), numpy.float32)}
    refused(lambda: infer(model, [image(rows)]), "split it", "RESOURCE_EXHAUSTED")
    refused(lambda: client.load_model(model), "by rollouts only", "PERMISSION_DENIED")
    refused(lambda: client.unload_model(model), "by rollouts only", "PERMISSION_DENIED")
    refused(lambda: client.get_inference_statistics(model), "there is no", "UNIMPLEMENTED")


def triton_infers_beside_itself(client, fleet):
    """Many calls at a time on one connection, more than an agent takes at once."""
    recorded = list(cases(fleet)) * 100
    answers = queue.SimpleQueue()
    for tensors, tolerance in recorded:
        def answered(result, error, tensors=tensors, tolerance=tolerance):
            answers.put((result, error, tensors, tolerance))
        client.async_infer(fleet["model"], [image(tensors)], answered)
    for _ in recorded:
        result, error, tensors, tolerance = answers.get(timeout=30)
        # A node may say that it has too much to do; what it answers is right.
        if error is None:
            agrees(result, tensors, tolerance)
        else:
            assert error.status() == "StatusCode.UNAVAILABLE", error


def typed_contents_and_metadata_as_any_client_sends_them(fleet):
    with grpc.insecure_channel(fleet["grpc"]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for tensors, tolerance in cases(fleet):
            request = service_pb2.ModelInferRequest(model_name=fleet["model"])
            given = request.inputs.add(
                name="input", datatype="FP32", shape=list(tensors["input"].shape)
            )
            given.contents.fp32_contents.extend(tensors["input"].ravel().tolist())
            request.parameters["segment"].string_param = "eu"
            response, call = stub.ModelInfer.with_call(
                request, timeout=10, metadata=[("x-rollcall-key", "user-1"), ("x-request-id", "a-1")]
            )
            agrees(triton.InferResult(response), tensors, tolerance)
            told = dict(call.initial_metadata())
            assert told["x-rollcall-version"] == fleet["version"], told
            assert told["x-rollcall-arm"] == "stable", told
            assert told["x-request-id"] == response.id == "a-1", told


async def triton_infers_asynchronously(fleet):
    async with triton_aio.InferenceServerClient(fleet["grpc"]) as client:
        assert await client.is_server_ready()
        for tensors, tolerance in cases(fleet):
            given = [image(tensors)]
            asked = (client.infer(fleet["model"], given) for _ in range(20))
            for answer in await asyncio.gather(*asked):
                agrees(answer, tensors, tolerance)


def main():
    fleet = json.loads(sys.argv[1])
    with triton.InferenceServerClient(fleet["grpc"]) as client:
        for check in (
            triton_infers,
            triton_sends_large_batches,
            triton_packs_its_messages,
            triton_names_versions_ids_and_keys,
            triton_asks_what_is_there,
            triton_is_refused_in_words,
            triton_infers_beside_itself,
        ):
            check(client, fleet)
            print(f"ok {check.__name__}")
    typed_contents_and_metadata_as_any_client_sends_them(fleet)
    print("ok typed_contents_and_metadata_as_any_client_sends_them")
    asyncio.run(triton_infers_asynchronously(fleet))
    print("ok triton_infers_asynchronously")


if __name__ == "__main__":
    main()
