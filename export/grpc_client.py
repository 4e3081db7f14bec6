"""Classify image files with TF Serving over gRPC; needs tensorflow-serving-api.

Usage: python grpc_client.py IMAGE... [--address localhost:8500] [--model classifier]
       [--labels served/classifier] [--output predictions] [--threshold 0.5]
"""

import argparse
from pathlib import Path

import grpc
import tensorflow as tf
from decisions import add_options, described, exported_details
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
    return {name: tf.make_ndarray(tensor).tolist() for name, tensor in answer.outputs.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+")
    parser.add_argument("--address", default="localhost:8500")
    parser.add_argument("--model", default="classifier")
    add_options(parser, "a text file, or the export; default: served/MODEL, where it is here")
    arguments = parser.parse_args()
    outputs = predict(arguments.address, arguments.model, arguments.images)
    details = exported_details(arguments.labels or "") or exported_details(
        Path("served", arguments.model)
    )
    for image, line in zip(arguments.images, described(outputs, details, arguments)):
        print(f"{image}: {line}")


if __name__ == "__main__":
    main()
