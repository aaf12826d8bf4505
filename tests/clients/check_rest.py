"""tritonclient and KServe's client over REST, unchanged, against one agent.

Called with the line of JSON that `rollcall-fleet` prints. Each check is a function; the
first that fails ends the run with its traceback.
"""

import asyncio
import json
import sys
from pathlib import Path

import numpy
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from tritonclient.utils import InferenceServerException

MODELS = Path(__file__).parent.parent / "models"
OUTPUTS = {"label": "INT64", "probabilities": "FP32"}


def cases(model, version):
    """Images, and the answers that the model's makers recorded for them."""
    smoke = json.loads((MODELS / model / version / "smoke.json").read_text())
    for case in smoke["cases"]:
        tensors = {}
        for tensor in case["inputs"] + case["outputs"]:
            dtype = triton_dtype(tensor["datatype"])
            tensors[tensor["name"]] = numpy.array(tensor["data"], dtype).reshape(tensor["shape"])
        tensors["label"] = numpy.argmax(tensors["probabilities"], axis=1)
        yield tensors, case["tolerance"]


def triton_dtype(name):
    return {"FP32": numpy.float32, "INT64": numpy.int64}[name]


def agrees(result, tensors, tolerance, names=OUTPUTS):
    for name in names:
        got = result.as_numpy(name)
        assert got is not None and got.dtype == triton_dtype(OUTPUTS[name]), (name, got)
        assert got.shape == tensors[name].shape, (name, got.shape)
        assert numpy.allclose(got, tensors[name], rtol=tolerance, atol=tolerance), (name, got)


def refused(call, words, status):
    try:
        call()
    except InferenceServerException as error:
        assert words in error.message(), error.message()
        # tritonclient says the status where it could read {"error"}.
        assert error.status() == str(status), (error.status(), status)
    else:
        raise AssertionError(f"this should have been refused: {words}")


def image(tensors, binary=True, name="input"):
    given = triton.InferInput(name, list(tensors["input"].shape), "FP32")
    return given.set_data_from_numpy(tensors["input"], binary_data=binary)


def triton_infers_in_every_form(client, fleet):
    model = fleet["model"]
    for tensors, tolerance in cases(model, fleet["version"]):
        for binary in (True, False):
            for packed in (None, "gzip", "deflate"):
                for asked in (None, True, False):
                    outputs = asked is not None and [
                        triton.InferRequestedOutput(name, binary_data=asked) for name in OUTPUTS
                    ]
                    result = client.infer(
                        model,
                        [image(tensors, binary)],
                        outputs=outputs or None,
                        request_compression_algorithm=packed,
                        response_compression_algorithm=packed,
                    )
                    agrees(result, tensors, tolerance)
        # Some outputs, in another order, each in its form.
        outputs = [
            triton.InferRequestedOutput("probabilities", binary_data=False),
            triton.InferRequestedOutput("label", binary_data=True),
        ]
        result = client.infer(model, [image(tensors)], outputs=outputs)
        agrees(result, tensors, tolerance)
        assert [one["name"] for one in result.get_response()["outputs"]] == ["probabilities", "label"]


def triton_reads_large_answers_packed(client, fleet):
    rows = numpy.concatenate([t["input"] for t, _ in cases(fleet["model"], fleet["version"])])
    rows = numpy.repeat(rows, 200, axis=0)
    plain = client.infer(fleet["model"], [image({"input": rows})]).as_numpy("probabilities")
    assert plain.shape == (len(rows), 10)
    for packed in ("gzip", "deflate"):
        answer = client.infer(
            fleet["model"],
            [image({"input": rows}, binary=False)],
            request_compression_algorithm=packed,
            response_compression_algorithm=packed,
        )
        assert answer.get_response()["outputs"], packed
        assert numpy.array_equal(answer.as_numpy("probabilities"), plain), packed


def triton_names_versions_ids_and_keys(client, fleet):
    model, version = fleet["model"], fleet["version"]
    tensors, _ = next(cases(model, version))
    result = client.infer(model, [image(tensors)], model_version=version, request_id="order-7")
    response = result.get_response()
    assert (response["id"], response["model_name"]) == ("order-7", model), response
    assert response["model_version"] == version, response
    # Parameters that no server must know.
    result = client.infer(
        model, [image(tensors)], priority=3, timeout=5_000_000, parameters={"colour": "red"},
        headers={"x-rollcall-key": "user-1"},
    )
    assert result.get_response()["id"], "an id is made where none came"


def triton_asks_what_is_there(client, fleet):
    model, version = fleet["model"], fleet["version"]
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(model) and client.is_model_ready(model, version)
    assert not client.is_model_ready(model, "9.9.9") and not client.is_model_ready("nobody")
    server = client.get_server_metadata()
    assert "binary_tensor_data" in server["extensions"], server
    for metadata in (client.get_model_metadata(model), client.get_model_metadata(model, version)):
        assert (metadata["name"], metadata["versions"]) == (model, [version]), metadata
        assert metadata["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, 64]}]
        assert {one["name"]: one["datatype"] for one in metadata["outputs"]} == OUTPUTS
    assert client.get_model_repository_index() == [
        {"name": model, "version": version, "state": "READY", "reason": ""}
    ]


def triton_is_refused_in_words(client, fleet):
    model = fleet["model"]
    tensors, _ = next(cases(model, fleet["version"]))
    good = [image(tensors)]
    short = {"input": tensors["input"][:, :63]}
    refused(lambda: client.infer("nobody", good), "no model nobody", 404)
    refused(lambda: client.infer(model, good, model_version="9.9.9"), "does not answer", 404)
    refused(lambda: client.infer(model, [image(short)]), "the model wants [-1, 64]", 400)
    refused(lambda: client.infer(model, [image(tensors, name="x")]), '"input" is missing', 400)
    refused(lambda: client.infer(model, good + good), "comes twice", 400)
    nan = {"input": numpy.full_like(tensors["input"], numpy.nan)}
    refused(lambda: client.infer(model, [image(nan)]), "only finite numbers", 400)
    unknown = [triton.InferRequestedOutput("colour")]
    refused(lambda: client.infer(model, good, outputs=unknown), 'no output "colour"', 400)
    classes = [triton.InferRequestedOutput("probabilities", class_count=3)]
    refused(lambda: client.infer(model, good, outputs=classes), "classification", 400)
    shared = triton.InferInput("input", [1, 64], "FP32")
    shared.set_shared_memory("region", 256)
    refused(lambda: client.infer(model, [shared]), "shared memory", 400)
    refused(lambda: client.load_model(model), "by rollouts only", 403)
    refused(lambda: client.unload_model(model), "by rollouts only", 403)
    refused(lambda: client.get_inference_statistics(model), "no such path", 404)


def triton_infers_from_many_threads(client, fleet):
    recorded = list(cases(fleet["model"], fleet["version"]))
    asked = [
        (client.async_infer(fleet["model"], [image(tensors)]), tensors, tolerance)
        for tensors, tolerance in recorded * 20
    ]
    for answer, tensors, tolerance in asked:
        agrees(answer.get_result(), tensors, tolerance)


async def triton_infers_asynchronously(fleet):
    async with triton_aio.InferenceServerClient(fleet["http"]) as client:
        assert await client.is_server_ready()
        for tensors, tolerance in cases(fleet["model"], fleet["version"]):
            for packed in (None, "gzip", "deflate"):
                given = [image(tensors)]
                answers = await asyncio.gather(
                    *(client.infer(
                        fleet["model"], given, request_compression_algorithm=packed,
                        response_compression_algorithm=packed,
                    ) for _ in range(10))
                )
                for answer in answers:
                    agrees(answer, tensors, tolerance)


async def kserve_infers_in_both_forms(fleet):
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    base, model = f"http://{fleet['http']}", fleet["model"]
    assert await client.is_server_live(base) and await client.is_server_ready(base)
    assert await client.is_model_ready(base, model)
    for tensors, tolerance in cases(model, fleet["version"]):
        for binary in (True, False):
            given = InferInput("input", list(tensors["input"].shape), "FP32")
            given.set_data_from_numpy(tensors["input"], binary_data=binary)
            request = InferRequest(
                model, [given], request_id="order-8", parameters={"binary_data_output": binary}
            )
            headers = {}
            answer = await client.infer(base, request, model, response_headers=headers)
            assert answer.id == "order-8", answer
            assert headers["x-rollcall-version"] == fleet["version"], headers
            assert headers["x-rollcall-arm"] == "stable", headers
            for output in answer.outputs:
                expected = tensors[output.name]
                got = output.as_numpy()
                assert numpy.allclose(got, expected, rtol=tolerance, atol=tolerance), output.name
    try:
        await client.infer(base, {"inputs": []}, model)
    except Exception as error:
        assert '"input" is missing' in str(error) and "400" in str(error), error
    else:
        raise AssertionError("a request without inputs was answered")


def main():
    fleet = json.loads(sys.argv[1])
    with triton.InferenceServerClient(fleet["http"], concurrency=8) as client:
        for check in (
            triton_infers_in_every_form,
            triton_reads_large_answers_packed,
            triton_names_versions_ids_and_keys,
            triton_asks_what_is_there,
            triton_is_refused_in_words,
            triton_infers_from_many_threads,
        ):
            check(client, fleet)
            print(f"ok {check.__name__}")
    for check in (triton_infers_asynchronously, kserve_infers_in_both_forms):
        asyncio.run(check(fleet))
        print(f"ok {check.__name__}")


if __name__ == "__main__":
    main()
