"""Types of the one door between Python and C; what each function does is in its docstring."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, final, overload, type_check_only

from typing_extensions import Buffer, Self

RENAME_NOREPLACE: Final[int]
RENAME_EXCHANGE: Final[int]
DIRECT_ALIGN: Final[int]
COLD_MAP: Final[int]
COLD_LEAVE: Final[int]
COLD_HUGE: Final[int]
COLD_ADVISE: Final[int]
MADV_NORMAL: Final[int]
MADV_RANDOM: Final[int]
MADV_SEQUENTIAL: Final[int]
MADV_WILLNEED: Final[int]
MADV_HUGEPAGE: Final[int]
MADV_POPULATE_READ: Final[int]
MADV_POPULATE_WRITE: Final[int]

@type_check_only
class _Array(Protocol):
    """What numpy's arrays have: their stubs call them buffers from Python 3.12 on only, though they always were."""

    @property
    def __array_interface__(self) -> dict[str, Any]: ...

_T = TypeVar("_T")
_Buffer: TypeAlias = Buffer | _Array
_Note: TypeAlias = Callable[[str, bytes, int], tuple[str, int, bool] | None]

class SizeChanged(ValueError):
    index: int
    found: int

@type_check_only
class _Exporter:
    """The buffer protocol, which has a Python name from Python 3.12 on only."""

    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Mapping(_Exporter):
    def __len__(self) -> int: ...
    def dlpack(self, code: int, bits: int, shape: tuple[int, ...]) -> Any: ...
    def part(self, offset: int, size: int) -> Mapping: ...
    def parts(self, places: dict[str, int], sizes: dict[str, int]) -> dict[str, Mapping]: ...
    def advise(self, advice: int, offset: int = 0, length: int | None = None) -> None: ...

@final
class Loan(_Exporter):
    def __new__(cls, address: int, size: int, owner: object) -> Self: ...

@final
class Gate:
    def __new__(cls, places: int) -> Self: ...

@final
class File:
    def __new__(cls, dirfd: int, path: str | bytes, size: int, direct: bool = True, writeback: bool = True) -> Self: ...
    @property
    def size(self) -> int: ...
    @property
    def direct(self) -> bool: ...
    def write(self, piece: _Buffer, offset: int, bounce: Mapping | None = None, gate: Gate | None = None) -> None: ...
    def finish(self, sync: bool = True) -> None: ...
    def abandon(self) -> None: ...

def allocate(sizes: Iterable[int], *, inherited: bool = True) -> list[Mapping]: ...
def parse_meta(data: bytes) -> tuple[tuple[int, ...], int, int, int, str | None, int] | None: ...
def parse_table(
    table: bytes, kind: type[object], types: dict[int, Any]
) -> tuple[dict[str, Any], dict[str, int], dict[str, int], list[str]] | None: ...
def in_order(metas: dict[str, Any], kind: type[_T]) -> tuple[dict[str, _T], list[_T], bool] | None: ...
def write(
    dirfd: int,
    path: str | bytes,
    pieces: Iterable[_Buffer],
    sync: bool = True,
    size_hint: int = 0,
    writeback: bool = True,
) -> int: ...
def write_tensors(
    dirfd: int, tensors: Iterable[tuple[str | bytes, _Buffer, bytes]], writeback: bool = True
) -> None: ...
def sync_dir(fd: int, path: str | bytes | None = None) -> None: ...
def syncfs(fd: int, path: str | bytes | None = None) -> None: ...
def renameat2(olddirfd: int, old: str | bytes, newdirfd: int, new: str | bytes, flags: int) -> None: ...
@overload
def scan(
    dirfd: int,
    folders: Sequence[str | bytes],
    *,
    map: Literal[False] = False,
    metas: bool = True,
    ahead: bool = False,
    threads: int = 1,
    most: int = -1,
) -> list[tuple[bytes | int, int]]: ...
@overload
def scan(
    dirfd: int,
    folders: Sequence[str | bytes],
    *,
    map: bool,
    cold: int = 0,
    metas: bool = True,
    ahead: bool = False,
    threads: int = 1,
    most: int = -1,
) -> list[tuple[bytes | int, int | Mapping]]: ...
@overload
def scan(
    dirfd: int,
    folders: Sequence[str | bytes],
    *,
    kind: type[_T] | None,
    types: dict[int, Any] | None,
    map: bool,
    cold: int = 0,
    metas: bool = True,
    ahead: bool = False,
    threads: int = 1,
    most: int = -1,
) -> list[tuple[_T | bytes | int, int | Mapping]]: ...
def load_plain(
    dirfd: int,
    marker: str,
    kinds: dict[int, tuple[int, int]],
    take: Callable[[Any], _T],
    note: _Note,
    crc32: Callable[[Any], int],
    *,
    others: Iterable[str] = (),
    few: int = 1,
    most_maps: int = 0,
    most_tensors: int = 0,
    most_bytes: int = 0,
    worth: int = 0,
) -> tuple[dict[str, _T] | None, list[Mapping], bytes | None] | None: ...
def load_folders(
    dirfd: int,
    names: list[str],
    kinds: dict[int, tuple[int, int]],
    take: Callable[[Any], _T],
    note: _Note,
    *,
    ahead: bool = False,
    threads: int = 1,
    most: int = 0,
) -> tuple[dict[str, _T], dict[str, Mapping]] | None: ...
def hand_over(buffers: Sequence[Any], metas: Sequence[Any], take: Callable[[Any], Any]) -> list[Any]: ...
def map_files(dirfd: int, paths: Sequence[str | bytes], sizes: Sequence[int], *, advice: int = 0) -> list[Mapping]: ...
def read_into(
    dirfd: int, path: str | bytes, offset: int, buffer: _Buffer, *, size: int = -1, room: int = 0
) -> None: ...
def read_parts(
    dirfd: int, parts: Iterable[tuple[str | bytes, int, _Buffer, int, int]], *, threads: int = 1, mapped: bool = False
) -> None: ...
def hold_maps() -> bool: ...
def device_of(fd: int) -> int: ...
def count_maps() -> int: ...
def copy(pairs: Iterable[tuple[_Buffer, _Buffer]], *, threads: int = 1) -> None: ...
def share_file(dirfd: int, path: str | bytes, size: int) -> Mapping: ...
def is_resident(dirfd: int, path: str | bytes) -> bool: ...
def call_off(todo: deque[Any], busy: set[int]) -> None: ...
