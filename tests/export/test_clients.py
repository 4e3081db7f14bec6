"""The client scripts and configuration files under export/, against TF Serving's real messages.

No TF Serving binary is installable here. The two servers below answer the same HTTP paths and gRPC
methods from the exported SavedModel, so what the clients send is parsed as TF Serving would.
"""

import argparse
import base64
import concurrent.futures
import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from PIL import Image

import fd_keras

EXPORT = Path(__file__).parents[2] / "export"

LABELS = [f"thing {index}" for index in range(5)]


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(8)
    layers = [keras.layers.Flatten(), keras.layers.Dense(5)]
    body = keras.Sequential([keras.Input((24, 24, 3)), *layers])
    return fd_keras.protect(body, fd_keras.FeatureDistillation("jpeg:50"))


@pytest.fixture(scope="module")
def home(model, tmp_path_factory):
    """The folder in which served/classifier lies."""
    folder = tmp_path_factory.mktemp("home")
    fd_keras.export_saved_model(
        model, folder / "served" / "classifier", labels=LABELS, verify=False
    )
    return folder


@pytest.fixture(scope="module")
def signatures(home):
    loaded = tf.saved_model.load(str(home / "served" / "classifier" / "1"))
    signatures = dict(loaded.signatures)
    signatures["keep"] = loaded  # it owns the variables
    return signatures


@pytest.fixture(scope="module")
def files(photos, tmp_path_factory):
    """Two PNG files of the model's size, and their pixels."""
    folder, pixels = tmp_path_factory.mktemp("images"), photos[:, 7:31, 406:430]
    paths = [folder / "china.png", folder / "flower.png"]
    for path, image in zip(paths, pixels):
        Image.fromarray(image).save(path)
    return paths, pixels.astype(np.float32)


def run_client(script, *arguments, cwd=None):
    command = [sys.executable, EXPORT / script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True).stdout


def expected_lines(model, files, names=LABELS):
    paths, images = files
    scores = np.asarray(model(images))
    named = [f" ({names[row.argmax()]})" if names else "" for row in scores]
    return [
        f"{p}: class {row.argmax()}{name}, score {row.max():.4g}"
        for p, row, name in zip(paths, scores, named)
    ]


def assert_same_lines(text, model, files, **names):
    for line, expected in zip(
        text.splitlines(), expected_lines(model, files, **names), strict=True
    ):
        found, _, score = line.rpartition(" ")
        wanted, _, wanted_score = expected.rpartition(" ")
        assert found == wanted
        assert float(score) == pytest.approx(float(wanted_score), rel=1e-3)


def test_rest_client(model, signatures, files, home, tmp_path):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/models/classifier:predict"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            # The row format: one object of named inputs for each instance.
            rows = [base64.b64decode(row["image_bytes"]["b64"]) for row in body["instances"]]
            outputs = signatures[body["signature_name"]](image_bytes=tf.constant(rows))
            answer = {"predictions": outputs["predictions"].numpy().tolist()}
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://localhost:{server.server_port}"
        arguments = ["rest_client.py", *files[0], "--url", url]
        text = run_client(*arguments, cwd=home)
        elsewhere = run_client(*arguments, cwd=tmp_path)
        (tmp_path / "mine.txt").write_text("a\nb\nc\nd\ne\n")
        mine = run_client(*arguments, "--labels", tmp_path / "mine.txt", cwd=home)
        (tmp_path / "mine.txt").write_text("a\nb\n")
        with pytest.raises(subprocess.CalledProcessError) as failed:
            run_client(*arguments, "--labels", tmp_path / "mine.txt")
        server.shutdown()
    assert_same_lines(text, model, files)
    assert_same_lines(elsewhere, model, files, names=None)
    assert_same_lines(mine, model, files, names="abcde")
    assert "names of 2 classes, and the model has 5; give --labels" in failed.value.stderr


sys.path.insert(0, str(EXPORT))
import decisions  # noqa: E402


def described(outputs, details, *options):
    parser = argparse.ArgumentParser()
    decisions.add_options(parser, "")
    return decisions.described(outputs, details, parser.parse_args(options))


@pytest.mark.parametrize(("activation", "threshold"), [("sigmoid", 0.5), (None, 0.0)])
def test_single_outputs_are_decided_at_the_threshold_of_the_export(activation, threshold, tmp_path):
    head = keras.layers.Dense(1, activation=activation)
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten(), head])
    fd_keras.export_saved_model(model, tmp_path, labels=["cat", "dog"], verify=False)
    details = decisions.exported_details(tmp_path)
    assert details["thresholds"] == {"predictions": threshold}
    rows = [[threshold + 0.2], [threshold - 0.2], [threshold]]
    rule = f"class 1 above {threshold:g}"
    expected = [
        f"class 1 (dog), output {threshold + 0.2:.4g}, {rule}",
        f"class 0 (cat), output {threshold - 0.2:.4g}, {rule}",
        f"class 0 (cat), output {threshold:.4g}, {rule}",
    ]
    assert described({"predictions": rows}, details) == expected
    # A flat list, and a name that the server does not say.
    assert described({"anything": [row[0] for row in rows]}, details) == expected
    assert described({"predictions": rows}, details, "--threshold", "9")[0].startswith("class 0")


@pytest.mark.parametrize(("row", "kind"), [([0.7], "probability"), ([7.0], "logit")])
def test_single_outputs_of_unknown_kind_are_told_by_their_values(row, kind, capsys):
    (line,) = described({"predictions": [row]}, {})
    assert line.startswith("class 1, output")
    assert f"taken for a {kind}" in capsys.readouterr().err


def test_several_outputs_are_chosen_by_name():
    outputs = {"size": [[5.0]], "kind": [[0.1, 0.9]]}
    with pytest.raises(SystemExit, match="--output must name one of kind, size"):
        described(outputs, {})
    assert described(outputs, {}, "--output", "kind") == ["class 1, score 0.9"]
    assert described({**outputs, "logits": [[2, 1]]}, {}) == ["class 0, score 2"]
    with pytest.raises(SystemExit, match="no scores of classes"):
        described({"predictions": [[[[0.1]]]]}, {})


def test_grpc_client(model, signatures, files, home):
    grpc = pytest.importorskip("grpc")
    service = pytest.importorskip("tensorflow_serving.apis.prediction_service_pb2_grpc")
    from tensorflow_serving.apis import predict_pb2

    class Servicer(service.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            assert request.model_spec.name == "classifier"
            inputs = {name: tf.constant(tf.make_ndarray(t)) for name, t in request.inputs.items()}
            answer = predict_pb2.PredictResponse()
            outputs = signatures[request.model_spec.signature_name](**inputs)
            for name, value in outputs.items():
                answer.outputs[name].CopyFrom(tf.make_tensor_proto(value.numpy()))
            return answer

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    service.add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    text = run_client("grpc_client.py", *files[0], "--address", f"localhost:{port}", cwd=home)
    server.stop(None)
    assert_same_lines(text, model, files)


def test_model_config_is_tf_servings():
    config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    text = (EXPORT / "serving" / "models.config").read_text()
    parsed = text_format.Parse(text, config.ModelServerConfig())
    (model,) = parsed.model_config_list.config
    assert (model.name, model.base_path) == ("classifier", "/models/classifier")
    assert model.model_version_policy.latest.num_versions == 2


# As in TF Serving's session_bundle_config.proto and monitoring_config.proto, which its Python
# package leaves out.
MESSAGES = {
    "Int64Value": {"value": "int64"},
    "BatchingParameters": {
        "max_batch_size": "Int64Value",
        "batch_timeout_micros": "Int64Value",
        "max_enqueued_batches": "Int64Value",
        "num_batch_threads": "Int64Value",
    },
    "PrometheusConfig": {"enable": "bool", "path": "string"},
    "MonitoringConfig": {"prometheus_config": "PrometheusConfig"},
}


def message(name):
    field_type = descriptor_pb2.FieldDescriptorProto
    scalars = {"int64": field_type.TYPE_INT64, "bool": field_type.TYPE_BOOL}
    scalars["string"] = field_type.TYPE_STRING
    file = descriptor_pb2.FileDescriptorProto(name="serving.proto", package="t", syntax="proto3")
    for message_name, fields in MESSAGES.items():
        described = file.message_type.add(name=message_name)
        for number, (field, kind) in enumerate(fields.items(), start=1):
            added = described.field.add(name=field, number=number, label=field_type.LABEL_OPTIONAL)
            added.type = scalars.get(kind, field_type.TYPE_MESSAGE)
            if kind not in scalars:
                added.type_name = f".t.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"t.{name}"))()


def test_batching_and_monitoring_configs_parse():
    text = (EXPORT / "serving" / "batching.config").read_text()
    batching = text_format.Parse(text, message("BatchingParameters"))
    assert batching.max_batch_size.value == 32
    text = (EXPORT / "serving" / "monitoring.config").read_text()
    monitoring = text_format.Parse(text, message("MonitoringConfig"))
    assert monitoring.prometheus_config.enable
    with pytest.raises(text_format.ParseError):
        text_format.Parse("max_batch_sizes { value: 1 }", message("BatchingParameters"))
