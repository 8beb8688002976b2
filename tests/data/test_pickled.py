"""The reader of pickles: what CIFAR's files hold comes out as Python's own pickle reads it, and nothing is ever run."""

import datetime
import os
import pickle
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcli.data.pickled import PickleError, read_pickle
from tests.prep.making_sets import python2_pickle

KEYS = st.text("abcdefgh_", min_size=1, max_size=8)
RECORDS = st.dictionaries(
    KEYS,
    st.one_of(
        st.lists(st.integers(0, 1000), max_size=5),
        st.lists(st.text("abc", max_size=9), max_size=3),
        st.tuples(st.integers(1, 4), st.integers(1, 9)).map(
            lambda s: np.arange(s[0] * s[1], dtype=np.uint8).reshape(s)
        ),
    ),
    max_size=5,
)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@settings(deadline=None)
@given(RECORDS)
def test_records_come_out_as_they_went_in_from_python_2_and_every_protocol_up_to_4(record: dict):
    assert same(read_pickle(python2_pickle(record)), record)
    for protocol in range(1, 5):
        assert same(read_pickle(pickle.dumps(record, protocol)), record)


def test_a_pickle_of_python_2_is_what_python_reads_with_latin1():
    record = {"data": np.arange(256, dtype=np.uint8).reshape(2, 128), "labels": [3, 300], "name": ["a.png", "b"]}
    assert same(read_pickle(python2_pickle(record)), pickle.loads(python2_pickle(record), encoding="latin1"))


class Malicious:
    def __init__(self, call: tuple) -> None:
        self.call = call

    def __reduce__(self) -> tuple:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_malicious_pickle_runs_nothing_and_is_named(tmp_path: Path, protocol: int):
    witness = tmp_path / "ran"
    data = pickle.dumps({"data": Malicious((os.system, (f"touch {witness}",)))}, protocol)
    with pytest.raises(PickleError, match=rf"{os.system.__module__}\.system"):
        read_pickle(data)
    assert not witness.exists()
    pickle.loads(data)
    assert witness.exists()  # the test can fail


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (pickle.dumps(datetime.date(2020, 1, 1)), r"datetime\.date"),
        (pickle.dumps({1, 2}), "opcode EMPTY_SET"),
        (pickle.dumps(np.zeros(2), 2), "array of type 'f8'"),
        (pickle.dumps(np.array([object()]), 2), "no plain data"),
        (pickle.dumps({1: 2}), "without names"),
        (pickle.dumps([1, 2])[:-1], "ends before|garbled"),
        (b"", "garbled"),
        (b"not a pickle", "garbled"),
        (b".", "stack is empty"),
        (b"cnumpy.core.multiarray\n_reconstruct\nK\x01R.", "calls what cannot be called"),
        (b"cnumpy\nndarray\n)R.", "calls what cannot be called"),
        (b"K\x01K\x02b.", "builds what is no array"),
        (b"K\x01K\x02a.", "adds to what is no list"),
        (b"h\x05.", "garbled"),
        (
            python2_pickle({"data": np.zeros((2, 3), np.uint8)}).replace(b"K\x02K\x03\x86", b"K\x02K\x04\x86"),
            "its shape",
        ),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_what_is_no_plain_data_is_refused_with_its_reason(data: bytes, told: str):
    with pytest.raises(PickleError, match=told):
        read_pickle(data)


OPCODES = st.sampled_from([bytes([byte]) for byte in b"()]}.0KUXctbRsuaeqhpg2NIJT\x80\x85\x86\x87\x88\x8c\x93\x94\x95"])
PIECES = st.one_of(OPCODES, st.binary(max_size=4), st.just(b"cnumpy\ndtype\n"), st.just(b"K\x01"), st.just(b"U\x01x"))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=60), st.lists(PIECES, max_size=20).map(b"".join)))
def test_any_bytes_are_data_or_refused(data: bytes):
    with suppress(PickleError):  # nothing else may come out of it
        read_pickle(data)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_file_is_data_or_refused(data: st.DataObject):
    whole = bytearray(python2_pickle({"labels": [1, 2], "data": np.arange(6, dtype=np.uint8).reshape(2, 3)}))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(PickleError):
        read_pickle(bytes(whole))
