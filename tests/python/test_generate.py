"""Calls Generate from Python: with stubs generated from the .proto files, and by server reflection alone.

    python tests/python/test_generate.py HOST:PORT MODEL

Run from the workspace's root with grpcio and grpcio-tools installed; tests/tests/python_client.rs does.
"""

import importlib
import sys
import tempfile
from pathlib import Path

import grpc
import grpc_tools
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_tools import protoc

PROTOS = Path("proto/proto")
TIMEOUT = 30


def generated(out: str, include: Path, files: list[str]):
    """Generates stubs of `files` into `out`, which is importable."""
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = ["protoc", f"-I{include}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}", *files]
    assert protoc.main(arguments) == 0, "protoc failed"


def check(responses, token_ids=None):
    """Checks the order of a generation's events and returns its token ids."""
    kinds, ids, text, usage = [], [], "", None
    for response in responses:
        kind = response.WhichOneof("event")
        kinds.append(kind)
        if kind == "delta":
            ids.extend(response.delta.token_ids)
            text += response.delta.text
        elif kind == "finished":
            usage = response.finished.usage
    assert kinds[0] == "started" and kinds[-1] == "finished", kinds
    assert all(kind == "delta" for kind in kinds[1:-1]), kinds
    assert usage.generated_tokens == len(ids) > 0, (usage, ids)
    assert token_ids is None or ids == token_ids, (ids, token_ids)
    return ids


def with_stubs(channel, model: str):
    """Streams an answer with generated stubs, and reads the field that an error names."""
    pb = importlib.import_module("rookery.v1.inference_pb2")
    rpc = importlib.import_module("rookery.v1.inference_pb2_grpc")
    stub = rpc.InferenceServiceStub(channel)
    request = pb.GenerateRequest(
        model=model,
        text="Why do rooks nest in elms?",
        sampling=pb.SamplingParams(max_tokens=12, temperature=0.8, seed=5),
    )
    ids = check(stub.Generate(request, timeout=TIMEOUT))
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="hi")])
    check(stub.Generate(pb.GenerateRequest(model=model, chat=chat, sampling=pb.SamplingParams(max_tokens=4)), timeout=TIMEOUT))
    bad = pb.GenerateRequest(model=model, text="x", sampling=pb.SamplingParams(temperature=-1))
    try:
        list(stub.Generate(bad, timeout=TIMEOUT))
        raise AssertionError("a negative temperature was accepted")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert "sampling.temperature" in error.details(), error
        details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        assert b"INVALID_FIELD" in details and b"rookery" in details, details
    return ids


def with_reflection(channel, model: str, expected: list[int]):
    """Streams the same answer knowing only the service's name and what reflection says about it."""
    reflection = importlib.import_module("reflection_pb2")
    stub = importlib.import_module("reflection_pb2_grpc").ServerReflectionStub(channel)
    service = "rookery.v1.InferenceService"
    request = reflection.ServerReflectionRequest(file_containing_symbol=service)
    answer = next(iter(stub.ServerReflectionInfo(iter([request]), timeout=TIMEOUT)))
    pool = descriptor_pool.DescriptorPool()
    for data in answer.file_descriptor_response.file_descriptor_proto:
        pool.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
    method = pool.FindServiceByName(service).FindMethodByName("Generate")
    request_class = message_factory.GetMessageClass(method.input_type)
    response_class = message_factory.GetMessageClass(method.output_type)
    call = channel.unary_stream(
        f"/{service}/{method.name}",
        request_serializer=request_class.SerializeToString,
        response_deserializer=response_class.FromString,
    )
    request = request_class(model=model, text="Why do rooks nest in elms?")
    request.sampling.max_tokens, request.sampling.temperature, request.sampling.seed = 12, 0.8, 5
    check(call(request, timeout=TIMEOUT), expected)


def main():
    address, model = sys.argv[1:]
    with tempfile.TemporaryDirectory() as out, grpc.insecure_channel(address) as channel:
        sys.path.insert(0, out)
        files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
        generated(out, PROTOS, files)
        ids = with_stubs(channel, model)
        print("stubs: ok", ids)
        here = Path(__file__).parent
        generated(out, here, ["reflection.proto"])
        with_reflection(channel, model, ids)
        print("reflection: ok")


if __name__ == "__main__":
    main()
