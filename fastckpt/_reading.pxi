# Part of _core.pyx: parts of files into memory that the caller owns.

cdef int _prepare_part(fc_part *part, bytes path, off_t offset, Py_buffer *view, off_t size, size_t room) except -1:
    part.path, part.offset, part.size = PyBytes_AS_STRING(path), offset, size
    part.data, part.length, part.room = view.buf, <size_t>view.len, room
    if offset < 0:
        raise ValueError(f"offset {offset} is negative")
    if room > 0 and (room < part.length or <size_t>offset % FC_DIRECT_ALIGN or <size_t>part.data % FC_DIRECT_ALIGN):
        raise ValueError(f"{part.length} bytes at {offset} are not aligned, or do not fit in {room}")
    return 0


def read_into(int dirfd, path, off_t offset, buffer, *, off_t size=-1, size_t room=0):
    """Fill memory with part of a file.

    Parameters
    ----------
    dirfd : int
        The snapshot.
    path : str or bytes
        A regular file in it, reached without any symbolic link.
    offset : int
        Where the part begins.
    buffer : writable buffer
        C-contiguous; filled to the end.
    size : int
        How many bytes the whole file must have; negative if that does not matter.
    room : int
        Not 0: read past the page cache where the file system lets us. `offset` and the address are then multiples of
        ``DIRECT_ALIGN``, and behind the address there are so many bytes, which may be overwritten to the next such
        multiple: more than the buffer has, if it is the beginning of larger memory.

    Raises
    ------
    SizeChanged
        The file has another size, or ends too early.
    """
    read_parts(dirfd, [(path, offset, buffer, size, room)])


def read_parts(int dirfd, parts, *, size_t threads=1, bint mapped=False):
    """Do what `read_into` does for many parts, in threads.

    Parameters
    ----------
    dirfd : int
        The snapshot.
    parts : sequence of tuple
        ``(path, offset, buffer, size, room)`` each. Nothing else may move or free the buffers meanwhile.
    threads : int
        How many share the parts, at most; the caller's is one of them.
    mapped : bool
        Copy parts that the page cache has in huge pages, or can bring in so, out of maps of them: faster. Whoever
        makes the file shorter meanwhile kills the process.

    Raises
    ------
    SizeChanged, OSError
        As for the first part that failed; others may not have been read.
    """
    cdef list wanted = list(parts)
    cdef list names = _encode_firsts(wanted)
    cdef size_t count = <size_t>len(wanted), failed = 0, taken = 0
    cdef _Room room = _Room(count, sizeof(fc_part)), held = _Room(count, sizeof(Py_buffer))
    cdef fc_part *jobs = <fc_part *>room.data
    cdef Py_buffer *views = <Py_buffer *>held.data
    cdef int rc
    try:
        while taken < count:
            _, offset, buffer, size, space = wanted[taken]
            _take_buffer(buffer, &views[taken], PyBUF_WRITABLE)
            taken += 1
            _prepare_part(&jobs[taken - 1], names[taken - 1], offset, &views[taken - 1], size, space)
        with nogil:
            rc = fc_read_parts(dirfd, jobs, count, threads, mapped, &failed)
    finally:
        while taken > 0:
            taken -= 1
            PyBuffer_Release(&views[taken])
    if rc < 0:
        path, offset, _, size, _ = wanted[failed]
        size = size if size >= 0 else offset + jobs[failed].length
        _fail_reading(&jobs[failed].err, path, failed, size, jobs[failed].found)
    PyErr_CheckSignals()


def share_file(int dirfd, path, off_t size):
    """Map a whole file privately, as memory that can be given away in parts (`Mapping.part`).

    Parameters
    ----------
    dirfd : int
        The snapshot.
    path : str or bytes
        A regular file in it, reached without any symbolic link.
    size : int
        How many bytes it must have, at least one.

    Raises
    ------
    SizeChanged
        It has another size.
    """
    cdef fc_error err
    cdef off_t found = 0
    cdef int rc
    cdef bytes encoded = _encode(path)
    cdef const char *name = PyBytes_AS_STRING(encoded)
    cdef Mapping mapping = Mapping.__new__(Mapping)
    cdef fc_block *block = NULL
    cdef void *address = NULL
    if size < 1:
        raise ValueError(f"a map of {size} bytes")
    with nogil:
        rc = fc_make_file_block(dirfd, name, size, &block, &address, &found, &err)
    if rc < 0:
        _fail_reading(&err, path, 0, size, found)
    mapping.address, mapping.size, mapping.block = address, <size_t>size, block
    return mapping


def is_resident(int dirfd, path):
    """Guess whether a file lies in the page cache, nearly whole; True for what cannot be opened, or where nobody knows.

    Parameters
    ----------
    dirfd : int
        The snapshot.
    path : str or bytes
        A file in it.
    """
    cdef bytes encoded = _encode(path)
    return fc_is_resident_at(dirfd, PyBytes_AS_STRING(encoded))
