"""The emptiest PredictionService on grpc.aio: it reads a PredictRequest and sends one ready PredictResponse.

python echo_rpc.py PORT uvloop|asyncio ANSWER.binpb
"""

import asyncio
import sys
from pathlib import Path

import grpc
import uvloop
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


class Echo(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, answer: predict_pb2.PredictResponse):
        self.answer = answer

    async def Predict(self, request, context):
        return self.answer


async def serve(port: str, answer: bytes) -> None:
    server = grpc.aio.server()
    echo = Echo(predict_pb2.PredictResponse.FromString(answer))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(echo, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    port, loop, answer = sys.argv[1:]
    run = uvloop.run if loop == "uvloop" else asyncio.run
    run(serve(port, Path(answer).read_bytes()))
