"""Arrays on disk: what was damaged there is never taken for a result."""

import os
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fd_keras.evaluation.store import ArrayStore

PARTS = {"model": "f", "seed": 1}
ARRAY = np.linspace(0, 1, 16 * 10, dtype=np.float32).reshape(16, 10)
AGAIN = -ARRAY


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A store and the file of its only array."""
    store = ArrayStore(tmp_path_factory.mktemp("store"))
    store.array(PARTS, lambda: ARRAY)
    (path,) = store.directory.rglob("*.npy")
    return store, path, path.read_bytes()


def read(store):
    """The array, and the warnings about its file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        array = store.array(PARTS, lambda: AGAIN)
    return array, [str(warning.message) for warning in caught]


positions = st.integers(0, 10**6)
changes = st.one_of(
    st.tuples(st.just("flip"), positions, st.integers(1, 255)),
    st.tuples(st.just("cut"), positions, st.integers(1, 400)),
    st.tuples(st.just("insert"), positions, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("swap"), positions, positions),
)


def mutant(content, change):
    data, (how, position, argument) = bytearray(content), change
    position %= len(data)
    if how == "flip":
        data[position] ^= argument
    elif how == "cut":
        del data[position : position + argument]
    elif how == "insert":
        data[position:position] = argument
    else:
        other = argument % len(data)
        data[position], data[other] = data[other], data[position]
    return bytes(data)


@settings(max_examples=400)
@given(st.lists(changes, min_size=1, max_size=3))
def test_a_mutant_is_the_same_array_or_computed_again(stored, steps):
    """49 of 818 mutants used to give other numbers without a word."""
    store, path, content = stored
    data = content
    for change in steps:
        data = mutant(data, change) if data else data
    path.write_bytes(data)
    array, messages = read(store)
    if data == content:
        np.testing.assert_array_equal(array, ARRAY)
        assert messages == []
        return
    np.testing.assert_array_equal(array, AGAIN)
    assert messages == [f"{path} is damaged or of other origin; it is computed again and replaced"]
    array, messages = read(store)
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, AGAIN)
    assert messages == []


def numpy_file(path):
    np.save(path, ARRAY)


def pickle(path):
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)


def other_array(path):
    """A file of this store under the name of another."""
    store = ArrayStore(path.parents[2])
    before = set(store.directory.rglob("*.npy"))
    store.array({"other": 1}, lambda: AGAIN + 1)
    (other,) = set(store.directory.rglob("*.npy")) - before
    os.replace(other, path)


def empty(path):
    path.write_bytes(b"")


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def dangling_link(path):
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("replace", [numpy_file, pickle, other_array, empty, pipe, dangling_link])
def test_files_of_other_origin_are_computed_again(tmp_path, replace):
    store = ArrayStore(tmp_path)
    store.array(PARTS, lambda: ARRAY)
    (path,) = tmp_path.rglob("*.npy")
    replace(path)
    array, messages = read(store)
    np.testing.assert_array_equal(array, AGAIN)
    assert [str(path) in message for message in messages] == [True]
    array, messages = read(store)
    np.testing.assert_array_equal(array, AGAIN)
    assert messages == []


@pytest.mark.parametrize("array", [np.array(3), np.zeros((0, 4)), np.array([True]), ARRAY.T])
def test_any_array_is_read_back_as_it_was(tmp_path, array):
    store = ArrayStore(tmp_path)
    store.array(PARTS, lambda: array)
    again = store.array(PARTS, lambda: pytest.fail("it was kept"))
    assert again.dtype == array.dtype
    np.testing.assert_array_equal(again, array)
    assert again.flags.writeable
    (path,) = tmp_path.rglob("*.npy")
    np.testing.assert_array_equal(np.load(path), array)
