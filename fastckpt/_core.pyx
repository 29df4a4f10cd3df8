# cython: language_level=3, binding=True, freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""The one door between Python and C.

Every function here does the same three things: it turns what Python gave it into C arrays, makes one call without the
GIL, and raises what went wrong. The C code knows paths relative to an open folder, addresses and lengths; names, types
and trees are Python's. A refusal of the system is an ``OSError`` with errno and path.
"""

cimport cython
from cpython.buffer cimport PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_IsContiguous, PyBuffer_Release
from cpython.buffer cimport PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals, PyErr_SetFromErrno
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.unicode cimport PyUnicode_DecodeASCII
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.errno cimport EIO
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, strlen
from posix.stat cimport fstat, struct_stat
from posix.types cimport off_t
from posix.unistd cimport usleep

import os

cdef extern from *:
    """
    /* Only for the C that Cython makes of this file: none of these can be met in the .pyx. */
    #pragma GCC diagnostic ignored "-Wunused-parameter"
    #pragma GCC diagnostic ignored "-Wmissing-field-initializers"

    #include <sys/mman.h>
    #ifndef MADV_POPULATE_READ /* Linux 5.14; an older kernel answers EINVAL */
    #define MADV_POPULATE_READ 22
    #define MADV_POPULATE_WRITE 23
    #endif
    """
    int _NORMAL "MADV_NORMAL"
    int _RANDOM "MADV_RANDOM"
    int _SEQUENTIAL "MADV_SEQUENTIAL"
    int _WILLNEED "MADV_WILLNEED"
    int _HUGEPAGE "MADV_HUGEPAGE"
    int _POPULATE_READ "MADV_POPULATE_READ"
    int _POPULATE_WRITE "MADV_POPULATE_WRITE"
    int _WIPEONFORK "MADV_WIPEONFORK"

cdef extern from "Python.h":
    int PyUnicode_FSConverter(object path, void *result) except 0
    bint Py_IsInitialized() nogil
    bint PyGC_Disable()
    bint PyGC_Enable()


RENAME_NOREPLACE = FC_RENAME_NOREPLACE
RENAME_EXCHANGE = FC_RENAME_EXCHANGE
DIRECT_ALIGN = FC_DIRECT_ALIGN
COLD_MAP = FC_COLD_MAP
COLD_LEAVE = FC_COLD_LEAVE
COLD_HUGE = FC_COLD_HUGE
COLD_ADVISE = FC_COLD_ADVISE
MADV_NORMAL = _NORMAL
MADV_RANDOM = _RANDOM
MADV_SEQUENTIAL = _SEQUENTIAL
MADV_WILLNEED = _WILLNEED
MADV_HUGEPAGE = _HUGEPAGE
MADV_POPULATE_READ = _POPULATE_READ
MADV_POPULATE_WRITE = _POPULATE_WRITE

cdef size_t _THREADS_MAX = 16
cdef char _nothing = 0  # what the buffer of an empty file points at: NULL would surprise some consumers


class SizeChanged(ValueError):
    """A file does not have the size that the caller knows.

    Attributes
    ----------
    index : int
        Which of the paths, 0 where there is one.
    found : int
        How many bytes the file has.
    """

    index: int = 0
    found: int = 0


cdef int _fail(const fc_error *err, object path, object other=None) except -1:
    """Raise what C noted; the only place where an errno becomes an exception."""
    if err.code == FC_SIZE_CHANGED:  # of what was just written; readers have `_fail_reading`
        sizes = f"wanted {err.wanted} bytes, found {err.found}"
        remedy = "somebody changed the file, or the file system lost writes; save again"
        raise OSError(EIO, f"{err.op.decode()}: {sizes}; {remedy}", path)
    raise OSError(err.code, f"{err.op.decode()}: {os.strerror(err.code)}", path, None, other)


cdef int _fail_reading(const fc_error *err, object path, size_t index, object wanted, off_t found) except -1:
    """`_fail`, for functions that know which size the file should have."""
    if err.code != FC_SIZE_CHANGED:
        _fail(err, path)
    error = SizeChanged(f"{os.fsdecode(path)!r}: wanted {wanted} bytes, found {found}")
    error.index = index
    error.found = found
    raise error


cdef bytes _encode(object path):
    """The bytes of a file name, as ``os.fsencode`` gives them; refuses NUL."""
    cdef PyObject *result = NULL
    PyUnicode_FSConverter(path, &result)
    encoded = <bytes>result
    Py_DECREF(encoded)
    return encoded


# Lists grow by append here: where one cannot grow, a comprehension of Cython 3.3 lets go twice of what it was to take.

cdef list _encode_all(list paths):
    cdef list names = []
    for path in paths:
        names.append(_encode(path))
    return names


cdef list _encode_firsts(list rows):
    cdef list names = []
    for row in rows:
        names.append(_encode(row[0]))
    return names


cdef list _owners(size_t count):
    """Owners of maps, before there is anything to own: between a map and its owner nothing can fail."""
    cdef list mappings = []
    cdef size_t _
    for _ in range(count):
        mappings.append(Mapping.__new__(Mapping))
    return mappings


cdef tuple _dims_of(const fc_meta *meta):
    cdef list dims = []
    cdef int i
    for i in range(meta.ndim):
        dims.append(meta.dims[i])
    return tuple(dims)


@cython.final
@cython.internal
cdef class _Room:
    """Memory for C, freed with its owner."""

    cdef void *data

    def __cinit__(self, size_t count, size_t size):
        self.data = PyMem_Malloc(count * size)
        if self.data == NULL:
            raise MemoryError

    def __dealloc__(self):
        PyMem_Free(self.data)


def parse_meta(bytes data not None):
    """Parse the canonical bytes of a ``meta``.

    Parameters
    ----------
    data : bytes
        The whole file.

    Returns
    -------
    tuple or None
        ``(dims, enum number, place, count, digest, comment_at)``. Place and count are -1 unless the comment line says
        them and nothing else but perhaps the digest, which is else None, and behind it the seal, which is not checked;
        ``comment_at`` is the offset of the comment's JSON where it says anything else, or -1.
        None when the bytes are not exactly what every protobuf writes: that is for the tolerant parser to judge.
        Where this is not None, the product of all dims that are not 0, times 16 bytes, is below 2**63.
    """
    cdef fc_meta meta
    if not fc_parse_canon(PyBytes_AS_STRING(data), <size_t>PyBytes_GET_SIZE(data), &meta):
        return None
    digest = PyUnicode_DecodeASCII(meta.digest, <Py_ssize_t>FC_DIGEST_LENGTH, NULL) if meta.digest[0] else None
    return _dims_of(&meta), meta.number, meta.place, meta.count, digest, meta.comment_at


include "_index.pxi"


cdef int _take_buffer(object source, Py_buffer *view, int flags) except -1:
    PyObject_GetBuffer(source, view, PyBUF_STRIDES | flags)
    if not PyBuffer_IsContiguous(view, b"C"):
        PyBuffer_Release(view)
        raise BufferError(f"memory of {type(source).__name__} is not C-contiguous: copy it first")
    return 0


include "_writing.pxi"
include "_file.pxi"


def sync_dir(int fd, path=None):
    """Make an open folder (or file) durable. After an error: never call it again, throw away what was written.

    Parameters
    ----------
    fd : int
        The folder.
    path : str or bytes, optional
        Its name, for the error.
    """
    cdef fc_error err
    cdef int rc
    with nogil:
        rc = fc_sync_file(fd, &err)
    if rc < 0:
        _fail(&err, path)


def syncfs(int fd, path=None):
    """Make the whole file system durable that `fd` lies on. After an error: as in `sync_dir`.

    Parameters
    ----------
    fd : int
        Any open file or folder of it; only errors since it was opened are reported.
    path : str or bytes, optional
        Its name, for the error.
    """
    cdef fc_error err
    cdef int rc
    with nogil:
        rc = fc_sync_system(fd, &err)
    if rc < 0:
        _fail(&err, path)


def renameat2(int olddirfd, old, int newdirfd, new, unsigned int flags):
    """Rename, exchange, or rename only to a free name, as one step.

    Parameters
    ----------
    olddirfd, newdirfd : int
        Open folders that `old` and `new` are relative to.
    old, new : str or bytes
        The names.
    flags : int
        0, `RENAME_NOREPLACE` or `RENAME_EXCHANGE`. Not every file system has the last two (EINVAL).
    """
    cdef fc_error err
    cdef int rc
    cdef bytes encoded_old = _encode(old), encoded_new = _encode(new)
    cdef const char *old_name = PyBytes_AS_STRING(encoded_old)
    cdef const char *new_name = PyBytes_AS_STRING(encoded_new)
    with nogil:
        rc = fc_rename(olddirfd, old_name, newdirfd, new_name, flags, &err)
    if rc < 0:
        _fail(&err, old, new)


include "_mapping.pxi"


cdef void _own(Mapping mapping, const fc_map_job *job) noexcept:
    mapping.address = job.address
    mapping.size = <size_t>job.size


include "_scanning.pxi"
include "_plain.pxi"
include "_loading.pxi"


def map_files(int dirfd, paths, sizes, *, int advice=0):
    """Map whole files.

    Parameters
    ----------
    dirfd : int
        The snapshot.
    paths : sequence of str or bytes
        Regular files in it, reached without any symbolic link.
    sizes : sequence of int
        How many bytes each must have; an empty file gives an empty `Mapping`.
    advice : int
        A ``MADV_*`` constant for every map; ignored by kernels that do not know it.

    Returns
    -------
    list of Mapping
        One a path. On error none is left mapped.

    Raises
    ------
    SizeChanged
        A file has another size.
    OSError
        A file can not be opened, is no regular file, or can not be mapped (ENOMEM: too many maps).
    """
    cdef list shown = list(paths), wanted = list(sizes)
    cdef list names = _encode_all(shown)
    cdef size_t count = <size_t>len(names), failed = 0, i
    cdef _Room room = _Room(count, sizeof(fc_map_job))
    cdef fc_map_job *jobs = <fc_map_job *>room.data
    cdef fc_error err
    cdef int rc
    if <size_t>len(wanted) != count:
        raise ValueError(f"{count} paths but {len(wanted)} sizes")
    cdef list mappings = _owners(count)
    for i in range(count):
        jobs[i].path = PyBytes_AS_STRING(names[i])
        jobs[i].size = wanted[i]
    with nogil:
        rc = fc_map_files(dirfd, jobs, count, advice, &failed, &err)
    if rc < 0:
        _fail_reading(&err, shown[failed], failed, jobs[failed].size, jobs[failed].found)
    for i in range(count):
        _own(mappings[i], &jobs[i])
    return mappings


include "_reading.pxi"


def call_off(todo not None, set busy not None):
    """Let no job be begun any more, and wait for those who are at one. No signal is noticed meanwhile: an interrupt
    comes when nobody uses any more what the jobs use.

    Parameters
    ----------
    todo : deque
        The jobs, which threads take out of it.
    busy : set
        Has an item for each of them, from before it takes a job until it takes no other.
    """
    todo.clear()
    while busy:
        with nogil:
            usleep(1000)
