"""Reads pickles as data: builds dicts, lists, strings, numbers and byte arrays, and runs no code.

A pickle is a program; Python's `pickle` imports and calls whatever it names. Here the opcodes come from `pickletools.genops`,
which only splits them, and the five names that a numpy array is pickled with stand for what is built below. Any other name,
and any opcode that such files do not need, is refused. Source: the opcode documentation in CPython's Lib/pickletools.py.
"""

import math
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Value = Any  # None, bool, int, float, str, bytes, list, tuple, dict, Array and, on the way, Global
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
INTEGERS = frozenset({"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1"})
TEXTS = frozenset(
    {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
)
LITERALS = INTEGERS | TEXTS | {"FLOAT", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
MARK = object()
MAX_DIMENSIONS, MAX_SIDE = 4, 1 << 32


class PickleError(ValueError):
    """Not a pickle of plain data; the text says why."""


class Global(NamedTuple):
    """A name in a pickle; it is never imported."""

    name: str


class Array:
    """A numpy array on its way: `_reconstruct` makes an empty one, BUILD gives it its shape and bytes."""

    def __init__(self) -> None:
        self.value: np.ndarray = np.empty(0, np.uint8)


class Dtype(NamedTuple):
    """The dtype of an array: its code, such as 'u1'."""

    code: str


def read_pickle(data: bytes) -> Value:
    """The dict, list or value in a pickle; arrays are uint8. Raises PickleError for anything that is not plain data."""
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name == "STOP":
                return _finished(machine.pop())
            machine.do(opcode.name, argument)
    except PickleError:
        raise
    except (ValueError, TypeError, LookupError, OverflowError) as error:
        raise PickleError(f"it is garbled: {error}") from error
    raise PickleError("it ends before its last opcode")


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Value] = []
        self.memo: dict[int, Value] = {}

    def pop(self) -> Value:
        if not self.stack or self.stack[-1] is MARK:
            raise PickleError("it is garbled: its stack is empty")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Value]:
        for place in range(len(self.stack) - 1, -1, -1):
            if self.stack[place] is MARK:
                values = self.stack[place + 1 :]
                del self.stack[place:]
                return values
        raise PickleError("it is garbled: it has no mark")

    def top(self, kind: type) -> Value:
        if not self.stack or not isinstance(self.stack[-1], kind):
            raise PickleError(f"it is garbled: it adds to what is no {kind.__name__}")
        return self.stack[-1]

    def do(self, name: str, argument: Value) -> None:
        """One opcode."""
        push = self.stack.append
        match name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                push(MARK)
            case _ if name in CONSTANTS:
                push(CONSTANTS[name])
            case _ if name in LITERALS:
                push(argument)
            case "PUT" | "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.top(object)
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "GLOBAL":
                push(_admitted(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = self.pop(), self.pop()
                push(_admitted(f"{module}.{attribute}"))
            case "REDUCE":
                arguments, function = self.pop(), self.pop()
                push(_call(function, arguments))
            case "BUILD":
                state = self.pop()
                _build(self.top(object), state)
            case _:
                self.collect(name)

    def collect(self, name: str) -> None:
        """One opcode that makes or fills a list, a tuple or a dict."""
        push = self.stack.append
        match name:
            case _ if name in TUPLES:
                push(tuple([self.pop() for _ in range(TUPLES[name])][::-1]))
            case "TUPLE":
                push(tuple(self.pop_to_mark()))
            case "EMPTY_LIST":
                push([])
            case "LIST":
                push(self.pop_to_mark())
            case "APPEND" | "APPENDS":
                values = [self.pop()] if name == "APPEND" else self.pop_to_mark()
                self.top(list).extend(values)
            case "EMPTY_DICT":
                push({})
            case "DICT":
                push(_pairs(self.pop_to_mark()))
            case "SETITEM" | "SETITEMS":
                values = [self.pop(), self.pop()][::-1] if name == "SETITEM" else self.pop_to_mark()
                self.top(dict).update(_pairs(values))
            case _:
                raise PickleError(f"it uses the opcode {name}, which plain data does not need")


def _reconstruct(arguments: tuple[Value, ...]) -> Array:
    return Array()


def _dtype(arguments: tuple[Value, ...]) -> Dtype:
    code = arguments[0]
    return Dtype(code.decode() if isinstance(code, bytes) else code)


def _encode(arguments: tuple[Value, ...]) -> bytes:
    """Bytes as Python 3 pickles them for Python 2: as text in latin-1."""
    return _latin1(arguments[0])


CALLS: dict[str, Callable[[tuple[Value, ...]], Value]] = {
    "numpy.core.multiarray._reconstruct": _reconstruct,
    "numpy._core.multiarray._reconstruct": _reconstruct,
    "numpy.dtype": _dtype,
    "_codecs.encode": _encode,
}
ADMITTED = frozenset({*CALLS, "numpy.ndarray"})


def _admitted(name: str) -> Global:
    if name not in ADMITTED:
        raise PickleError(
            f"it names {name[:80]}, which is no plain data: loading it with Python's pickle could run code"
        )
    return Global(name)


def _call(function: Value, arguments: Value) -> Value:
    if not isinstance(function, Global) or function.name not in CALLS or not isinstance(arguments, tuple):
        raise PickleError("it is garbled: it calls what cannot be called")
    return CALLS[function.name](arguments)


def _build(target: Value, state: Value) -> None:
    """The state of an array is (version, shape, dtype, Fortran order, bytes); that of a dtype says nothing about uint8."""
    match target, state:
        case Dtype(), tuple():
            return
        case Array(), (_, tuple() as shape, Dtype(str() as code), fortran, (str() | bytes()) as content):
            if code not in ("u1", "|u1"):
                raise PickleError(f"it holds an array of type '{code[:20]}', not of bytes")
            pixels = np.frombuffer(_latin1(content), np.uint8)
            sides = [side for side in shape if isinstance(side, int) and 0 <= side < MAX_SIDE]
            if len(shape) > MAX_DIMENSIONS or len(sides) != len(shape) or math.prod(sides) != len(pixels):
                raise PickleError(f"it holds {len(pixels)} bytes, which are not an array of its shape")
            target.value = pixels.reshape(shape, order="F" if fortran else "C")
        case _:
            raise PickleError("it is garbled: it builds what is no array")


def _latin1(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


def _pairs(values: list[Value]) -> dict[str, Value]:
    """A dict of keys and values in turn; keys of Python 2 and 3 both become str."""
    keys, others = values[::2], values[1::2]
    if len(keys) != len(others) or not all(isinstance(key, str | bytes) for key in keys):
        raise PickleError("it is garbled: a dict without names for its values")
    return {
        key.decode("latin-1") if isinstance(key, bytes) else key: value for key, value in zip(keys, others, strict=True)
    }


def _finished(value: Value) -> Value:
    """The value with its arrays in place; they lie at the top of a dict, where there are any."""
    if isinstance(value, dict):
        return {key: each.value if isinstance(each, Array) else each for key, each in value.items()}
    return value.value if isinstance(value, Array) else value
