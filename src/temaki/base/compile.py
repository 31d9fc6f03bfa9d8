"""The one door to Numba: compiled kernels with a cache that can be trusted, threads, and vector helpers.

A kernel is a Python function compiled for this processor on first use and kept on disk (beside its source, or in the
user's cache folder where that cannot be written; where neither can, nothing is kept). Numba's own cache looks at the
file of the function alone; ours looks at every file of ours that it imports as well, so kernels may call kernels of
other files.

Work is spread over Python threads: a kernel releases the interpreter's lock, so no thread layer of Numba's is needed, a
child process can be spawned at any time, and torch's OpenMP is never met inside a parallel region. Vector helpers read
blocks of 64 bytes as bit masks, bit k for byte k; LLVM makes them what the processor has (AVX-512, AVX2, NEON).
"""
# pyright: basic

import hashlib
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba.core import caching, cgutils, types
from numba.extending import intrinsic

Result = TypeVar("Result")

_IMPORT = re.compile(r"^\s*(?:from\s+([\w.]+)\s+import\s+(\([^)]*\)|[^\n#]+)|import\s+([\w.]+))", re.MULTILINE)


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function on first use for the types it is called with; it releases the interpreter's lock.

    Division by zero gives what the processor gives, and indices are not checked: a kernel is given arrays that fit.
    """
    return kept(function, numba.njit(nogil=True, error_model="numpy")(function))


def bare_kernel(function: Callable[..., Any]) -> Any:
    """As `kernel`, for one that makes no array and gives none back: it keeps no count of who holds its arguments.

    That count costs two atomic steps for each array in each call that is not inlined.
    """
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "_nrt": False}
    return kept(function, numba.njit(**options)(function))


def kept(function: Callable[..., Any], compiled: Any) -> Any:
    """What Numba compiles a function to, with our cache on disk; where no folder can be written, each process compiles.

    compiled: a dispatcher or a C callback, not compiled yet.
    """
    try:
        compiled._cache = _Cache(function)
    except RuntimeError:  # what Numba says when it finds no folder
        warnings.warn(
            "no folder for compiled kernels can be written, so each process compiles them anew; set NUMBA_CACHE_DIR",
            stacklevel=1,
        )
    return compiled


def threads() -> int:
    """How many threads this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run(tasks: Sequence[Callable[[], Result]], at_once: int | None = None) -> list[Result]:
    """The results of all tasks in their order, `at_once` of them at a time (default: `threads()`).

    The first error is raised after the running tasks have ended; those that wait are left out.
    """
    workers = min(at_once or threads(), len(tasks))
    if workers <= 1:
        return [task() for task in tasks]
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def stamp(path: str) -> str:
    """sha256 over a source file and all files of its package and of ours that it imports, directly or not."""
    found: dict[Path, bytes] = {}
    waiting = [Path(path).resolve()]
    while waiting:
        file = waiting.pop()
        if file not in found:
            source = file.read_bytes()
            found[file] = source
            waiting += _imported(file, source.decode("utf-8"))
    whole = hashlib.sha256()
    for file in sorted(found):
        whole.update(hashlib.sha256(found[file]).digest())
    return whole.hexdigest()


def _imported(file: Path, source: str) -> list[Path]:
    """The files of `file`'s own package, and of ours, that its import lines name."""
    roots = {root.name: root for root in (_package(file), _package(Path(__file__).resolve()))}
    files: list[Path] = []
    for module, names, plain in _IMPORT.findall(source):
        first, *rest = (module or plain).split(".")
        if first not in roots:
            continue
        base = roots[first].joinpath(*rest)
        inner = [base / name.split()[0] for name in names.strip("()").replace("\n", " ").split(",") if name.split()]
        files += [one.with_suffix(".py") for one in (base, *inner) if one.with_suffix(".py").is_file()]
    return files


def _package(file: Path) -> Path:
    """The outermost folder with an `__init__.py` around a file; else the file without its suffix."""
    outer = file.with_suffix("")
    for folder in file.parents:
        if not (folder / "__init__.py").exists():
            return outer
        outer = folder
    return outer


_stamp = cache(stamp)


class _Stamped:
    """A locator whose source is a file and everything of ours that it imports."""

    _py_file: str

    def get_source_stamp(self) -> str:
        return _stamp(self._py_file)


class _Given(_Stamped, caching.UserProvidedCacheLocator):
    """In the folder that NUMBA_CACHE_DIR names."""


class _Beside(_Stamped, caching.InTreeCacheLocator):
    """In `__pycache__` beside the source."""


class _User(_Stamped, caching.UserWideCacheLocator):
    """In the user's cache folder."""


class _Compiled(caching.CompileResultCacheImpl):
    _locator_classes = [_Given, _Beside, _User]  # noqa: RUF012


class _Cache(caching.FunctionCache):
    _impl_class = _Compiled


# ---- vector helpers: for use inside kernels only ------------------------------------------------------------------


def _pointer(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> Any:
    """The address of item `at` of a one-dimensional C-contiguous array."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.gep(data, [at])


def _block(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """64 bytes of a uint8 array from place args[1] on, as a vector."""
    vector = ir.VectorType(ir.IntType(8), 64)
    pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
    return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=1)


def _splat(builder: Any, value: Any) -> Any:
    vector = ir.VectorType(ir.IntType(8), 64)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64)
    return builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), zeros)


@intrinsic
def equal64(_context, array, at, value):
    """`equal64(text, i, value)`: uint64 with bit k set where text[i + k] == value. Reads 64 bytes."""

    def generate(context, builder, signature, args):
        mask = builder.icmp_unsigned("==", _block(context, builder, signature, args), _splat(builder, args[2]))
        return builder.bitcast(mask, ir.IntType(64))

    return types.uint64(array, types.intp, types.uint8), generate


@intrinsic
def within64(_context, array, at, low, high):
    """`within64(text, i, low, high)`: uint64 with bit k set where low <= text[i + k] <= high. Reads 64 bytes."""

    def generate(context, builder, signature, args):
        block = _block(context, builder, signature, args)
        moved = builder.sub(block, _splat(builder, args[2]))
        width = _splat(builder, builder.sub(args[3], args[2]))
        return builder.bitcast(builder.icmp_unsigned("<=", moved, width), ir.IntType(64))

    return types.uint64(array, types.intp, types.uint8, types.uint8), generate


@intrinsic
def load64(_context, array, at):
    """`load64(bytes, i)`: the 8 bytes from place i on as a little-endian uint64, aligned or not."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        return builder.load(builder.bitcast(pointer, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(array, types.intp), generate


@intrinsic
def store64(_context, array, at, value):
    """`store64(bytes, i, value)`: write a uint64 as 8 little-endian bytes from place i on, aligned or not."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        builder.store(args[2], builder.bitcast(pointer, ir.IntType(64).as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.uint64), generate


@intrinsic
def prefetch(_context, array, at):
    """`prefetch(table, i)`: ask for the cache line of item i, which will be read soon."""

    def generate(context, builder, signature, args):
        pointer = _pointer(context, builder, signature.args[0], args[0], args[1])
        word, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [builder.bitcast(pointer, byte), *(ir.Constant(word, n) for n in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@intrinsic
def trailing(_context, value):
    """`trailing(mask)`: how many zero bits stand below the lowest set bit of a uint64; 64 for 0."""

    def generate(_context, builder, _signature, args):
        return builder.zext(builder.cttz(args[0], ir.Constant(ir.IntType(1), 0)), ir.IntType(64))

    return types.intp(types.uint64), generate


@intrinsic
def leading(_context, value):
    """`leading(mask)`: how many zero bits stand above the highest set bit of a uint64; 64 for 0."""

    def generate(_context, builder, _signature, args):
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.intp(types.uint64), generate


@intrinsic
def ones(_context, value):
    """`ones(mask)`: how many bits of a uint64 are set."""

    def generate(_context, builder, _signature, args):
        return builder.ctpop(args[0])

    return types.intp(types.uint64), generate


@intrinsic
def fold(_context, left, right):
    """`fold(a, b)`: the high half of the 128-bit product of two uint64, xor the low half: a fast mixing step."""

    def generate(_context, builder, _signature, args):
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        high = builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))
        return builder.xor(high, builder.trunc(product, ir.IntType(64)))

    return types.uint64(types.uint64, types.uint64), generate
