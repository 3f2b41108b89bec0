"""Pickles of strangers: plain data and arrays come back, everything else is refused in time."""

from __future__ import annotations

import collections
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from mutations import bounded

from divff_nerfstudio import plain_pickle
from divff_nerfstudio.plain_pickle import UnsafePickleError, restricted_unpickle

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)
ARRAYS = hnp.arrays(
    st.sampled_from((np.bool_, np.uint8, ">i4", "<f4", np.float64, np.complex64, "S5", "<U3", ">U3")),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@settings(max_examples=40)
@given(content=PLAIN, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_data_survives(tmp_path_factory: pytest.TempPathFactory, content: object, protocol: int) -> None:
    path = tmp_path_factory.getbasetemp() / "plain.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    assert restricted_unpickle(path) == content


@settings(max_examples=60)
@given(array=ARRAYS, fortran=st.booleans(), protocol=st.integers(0, pickle.HIGHEST_PROTOCOL), numpy_other=st.booleans())
def test_arrays_survive_as_either_numpy_wrote_them(
    tmp_path_factory: pytest.TempPathFactory, array: np.ndarray, fortran: bool, protocol: int, numpy_other: bool
) -> None:
    array = np.asfortranarray(array) if fortran else array
    content = pickle.dumps({"a": [array], "s": array.flat[0] if array.size else 0}, protocol)
    if numpy_other and protocol < 4:  # names are text here, without a length before them
        names = (b"numpy.core.", b"numpy._core.")
        old, new = names if names[0] in content else names[::-1]
        content = content.replace(old, new)
    path = tmp_path_factory.getbasetemp() / "array.pkl"
    path.write_bytes(content)
    read = restricted_unpickle(path)
    assert read["a"][0].dtype == array.dtype and read["a"][0].shape == array.shape
    np.testing.assert_array_equal(read["a"][0], array)
    if array.size:
        np.testing.assert_array_equal(read["s"], array.flat[0])
    assert read["a"][0].flags.writeable


def test_numpy_2_names_in_protocol_4_are_read(tmp_path: Path) -> None:
    written = pickle.dumps(np.arange(5, dtype=np.int16), 4)
    name = b"numpy.core.multiarray" if b"numpy.core.multiarray" in written else b"numpy._core.multiarray"
    for other in (b"numpy._core.multiarray", b"numpy.core.multiarray"):
        renamed = written.replace(bytes([len(name)]) + name, bytes([len(other)]) + other)
        size = int.from_bytes(renamed[3:11], "little") + len(other) - len(name)
        (tmp_path / "a.pkl").write_bytes(renamed[:3] + size.to_bytes(8, "little") + renamed[11:])
        assert restricted_unpickle(tmp_path / "a.pkl").tolist() == [0, 1, 2, 3, 4]


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("content", "word"),
    [
        (np.array([{}, 1], dtype=object), "object"),
        (np.zeros(2, dtype=[("x", "f4")]), "structured"),
        (collections.OrderedDict(a=1), "OrderedDict"),
        (collections.Counter("aa"), "Counter"),
        ({1, 2}, "set"),
        (Path("a"), "pathlib"),
        (np.datetime64("2020-01-01"), "datetime64"),
    ],
)
def test_everything_else_in_a_pickle_is_refused(tmp_path: Path, content: object, word: str, protocol: int) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps([content], protocol))
    with pytest.raises(UnsafePickleError, match=word) as error:
        restricted_unpickle(path)
    assert str(path) in str(error.value)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"images": Evil(tmp_path / "was here")}))
    with pytest.raises(UnsafePickleError):
        restricted_unpickle(path)
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "was here").encode() + b"'\ntR.")
    with pytest.raises(UnsafePickleError, match="system"):
        restricted_unpickle(path)
    assert not (tmp_path / "was here").exists()


@settings(max_examples=40)
@given(cut=st.integers(0, 150), garbage=st.binary(max_size=8).filter(lambda content: pickle.STOP not in content))
def test_damaged_pickles_give_our_error(tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.pkl"
    whole = pickle.dumps({"a": np.arange(20), "b": ["text", 1.0]})
    path.write_bytes(whole[:cut] + garbage)
    with pytest.raises(UnsafePickleError):
        restricted_unpickle(path)


def doubling(levels: int, mark: bytes, pair: bytes) -> bytes:
    """A pickle in which each level holds the one below twice."""
    content = b"\x80\x04" + mark + b"\x94"
    for level in range(levels):
        content += b"(h" + bytes([level]) + b"h" + bytes([level]) + pair + b"\x94"
    return content


BOMBS = {
    "shared lists": (doubling(40, b"]", b"l") + b".", "places"),
    "shared tuples": (doubling(40, b")", b"t") + b".", "places"),
    "shared tuples as a key": (doubling(60, b")", b"t") + b"}h\x3cK\x01s.", "tuple as key"),
    "shared tuples in a set": (b"\x80\x04\x8f(" + doubling(60, b")", b"t")[2:] + b"\x90.", "set"),
    "deep lists": (b"\x80\x04" + b"]" * 3000 + b"a" * 2999 + b".", "deep"),
    "a list in itself": (b"\x80\x04]\x94h\x00a.", "itself"),
    "bytes of gigabytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.", "pickle"),
    "text of gigabytes": (b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.", "pickle"),
    "a frame of gigabytes": (b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.", None),
    "a long number": (b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b".", "digits"),
    "a long number that is not there": (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x7f.", "pickle"),
    "a place in memory": (b"\x80\x02Nr" + struct.pack("<I", 2**32 - 1) + b".", "memory"),
    "bytes of a number": (b"\x80\x04cbuiltins\nbytes\n\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85R.", "bytes"),
    "an array of many": (
        b"\x80\x04cnumpy.core.numeric\n_frombuffer\n(C\x01xcnumpy\ndtype\nU\x02u1\x85R"
        b"(J\xff\xff\xff\x7fJ\xff\xff\xff\x7ftU\x01CtR.",
        "shape",
    ),
    "protocol 9": (b"\x80\x09N.", "protocol 9"),
    "an extension": (b"\x80\x02\x82\x01.", "ext1"),
    "a persistent id": (b"Pa\n.", "persid"),
    "no end": (b"\x80\x04N", "pickle"),
    "nothing left": (b"\x80\x04.", "step"),
    "a mark too few": (b"\x80\x04]e.", "step"),
    "an array never filled": (b"cnumpy.core.multiarray\n_reconstruct\n)R.", "content"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_do_not_go_off(tmp_path: Path, bomb: str) -> None:
    content, word = BOMBS[bomb]
    (tmp_path / "a.pkl").write_bytes(content)
    with bounded(more_bytes=2**30):
        if word is None:
            assert restricted_unpickle(tmp_path / "a.pkl") is None
            return
        with pytest.raises(UnsafePickleError, match=word) as error:
            restricted_unpickle(tmp_path / "a.pkl")
    assert str(tmp_path / "a.pkl") in str(error.value) and "\n" not in str(error.value)


def test_one_content_in_many_arrays_is_counted_as_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 10**6)
    raw, dtype = b"B" + struct.pack("<I", 10**5) + bytes(10**5) + b"\x94", b"cnumpy\ndtype\nU\x02u1\x85R\x94"
    array = b"cnumpy.core.numeric\n_frombuffer\n(h\x00h\x01J" + struct.pack("<i", 10**5) + b"\x85U\x01CtR"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + raw + dtype + b"(" + array * 30 + b"l.")
    with pytest.raises(UnsafePickleError, match="more arrays"):
        restricted_unpickle(tmp_path / "a.pkl")
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04" + raw + dtype + b"(" + array * 3 + b"l.")
    assert [len(each) for each in restricted_unpickle(tmp_path / "a.pkl")] == [10**5] * 3


def test_sharing_that_is_small_survives(tmp_path: Path) -> None:
    shared = ["a", np.arange(3)]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([shared] * 3))
    read = restricted_unpickle(tmp_path / "a.pkl")
    assert len(read) == 3 and read[2][1].tolist() == [0, 1, 2]


def test_what_is_no_file_of_bounded_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.pkl")
    (tmp_path / "folder.pkl").mkdir()
    (tmp_path / "large.pkl").write_bytes(pickle.dumps(bytes(2000)))
    monkeypatch.setattr(plain_pickle, "MAX_BYTES", 1000)
    for name in ("pipe.pkl", "folder.pkl", "large.pkl"):
        with bounded(), pytest.raises(UnsafePickleError, match=f"{name} is refused"):
            restricted_unpickle(tmp_path / name)
