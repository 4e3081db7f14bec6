"""Running exported files in the runtimes that the tests compare."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

_WITHOUT_FD_KERAS = """
import pickle, sys
sys.modules["fd_keras"] = sys.modules["keras"] = None  # importing either now raises
import tensorflow as tf
directory, inputs, outputs = sys.argv[1:]
serve = tf.saved_model.load(directory).signatures["serving_default"]
images = tf.constant(pickle.load(open(inputs, "rb")))
results = {name: value.numpy() for name, value in serve(images=images).items()}
pickle.dump(results, open(outputs, "wb"))
"""


def assert_same_images(actual, expected, name=""):
    """At least 99.99 % of the pixels within 1 grey level, none beyond 2."""
    assert np.shape(actual) == np.shape(expected)
    difference = np.abs(np.asarray(actual, np.float32) - np.asarray(expected)).max(axis=-1)
    share, largest = (difference > 1).mean(), difference.max()
    assert share <= 1e-4, f"{name}: {share:.3%} of the pixels differ by more than 1"
    assert largest <= 2, f"{name}: a pixel differs by {largest}"


def run_without_fd_keras(saved_model, images, folder):
    """Outputs by name, from a new Python process in which fd_keras cannot be imported."""
    inputs, outputs = folder / "inputs.pickle", folder / "outputs.pickle"
    inputs.write_bytes(pickle.dumps(images))
    _run([sys.executable, "-c", _WITHOUT_FD_KERAS, saved_model, inputs, outputs])
    return pickle.loads(outputs.read_bytes())


def compile_c_program(folder):
    """Build c_api/run_saved_model.c against the TensorFlow wheel; skip without a compiler."""
    import tensorflow as tf

    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("there is no C compiler (set CC)")
    source = Path(__file__).parent / "c_api" / "run_saved_model.c"
    program, library = folder / "run_saved_model", tf.sysconfig.get_lib()
    headers = ["-isystem", tf.sysconfig.get_include()]
    libraries = ["-l:libtensorflow_cc.so.2", "-l:libtensorflow_framework.so.2"]
    linking = [f"-L{library}", f"-Wl,-rpath,{library}", *libraries]
    _run([compiler, "-std=c99", source, "-o", program, *headers, *linking])
    return program


def run_c_api(program, saved_model, request, folder, name="serving_default"):
    """Outputs of a signature by name, from the C program.

    The request is a batch of images, or the content of one file.
    """
    from tensorflow.core.framework.types_pb2 import DT_BOOL

    signature = _signature(saved_model, name)
    (source,) = signature.inputs.values()
    if isinstance(request, bytes):
        dims = "string"
        (folder / "input.raw").write_bytes(request)
    else:
        dims = ",".join(map(str, request.shape))
        (folder / "input.raw").write_bytes(np.ascontiguousarray(request, np.float32).tobytes())
    files = {name: folder / f"{name}.raw" for name in signature.outputs}
    arguments = [program, saved_model, source.name, dims, folder / "input.raw"]
    for name, file in files.items():
        arguments += [signature.outputs[name].name, file]
    shapes = [tuple(map(int, line.split(","))) for line in _run(arguments).split()]
    types = {name: signature.outputs[name].dtype for name in files}
    return {
        name: np.fromfile(file, bool if types[name] == DT_BOOL else np.float32).reshape(shape)
        for (name, file), shape in zip(files.items(), shapes)
    }


def interpreter(tflite_file, *, delegates=True):
    """LiteRT's interpreter of a file; without delegates, XNNPACK takes no part."""
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    resolver = litert.OpResolverType
    return litert.Interpreter(
        os.fspath(tflite_file),
        num_threads=1,
        experimental_op_resolver_type=(
            resolver.AUTO if delegates else resolver.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        ),
    )


def run_tflite(tflite_file, images, *, delegates=True):
    """Outputs by name, from LiteRT."""
    runner = interpreter(tflite_file, delegates=delegates).get_signature_runner("serving_default")
    return runner(images=images)


def tflite_model(tflite_file):
    """The flatbuffer as objects."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    content = Path(tflite_file).read_bytes()
    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(content))


def tflite_operations(tflite_file):
    """Names of the operations in a file, such as "BATCH_MATMUL"; custom ones as "CUSTOM"."""
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if name.isupper()}
    # Old files keep the code in the deprecated field and leave the other at 0, which is ADD.
    return {
        names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        for code in tflite_model(tflite_file).operatorCodes
    }


def _signature(saved_model, name):
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    content = (Path(saved_model) / "saved_model.pb").read_bytes()
    (graph,) = SavedModel.FromString(content).meta_graphs
    return graph.signature_def[name]


def _run(arguments):
    done = subprocess.run([os.fspath(a) for a in arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
