"""Classify image files with TF Serving over gRPC; needs tensorflow-serving-api.

Usage: python grpc_client.py IMAGE... [--address localhost:8500] [--model classifier]
       [--labels served/classifier]
"""

import argparse
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from class_names import class_names, described
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def predict(address, model, files):
    """What the signature ``serving_bytes`` returns for all files, by output."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    request.model_spec.signature_name = "serving_bytes"
    contents = [Path(file).read_bytes() for file in files]
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(contents, tf.string))
    with grpc.insecure_channel(address) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer = service.Predict(request, timeout=30)
    return {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+")
    parser.add_argument("--address", default="localhost:8500")
    parser.add_argument("--model", default="classifier")
    parser.add_argument(
        "--labels", help="a text file, or the export; default: served/MODEL, where it is here"
    )
    arguments = parser.parse_args()
    scores = predict(arguments.address, arguments.model, arguments.images)["predictions"]
    names = class_names(arguments.labels or Path("served", arguments.model), scores.shape[-1])
    for image, row in zip(arguments.images, scores):
        best = int(np.argmax(row))
        print(f"{image}: {described(best, names)}, score {float(row[best]):.4g}")


if __name__ == "__main__":
    main()
