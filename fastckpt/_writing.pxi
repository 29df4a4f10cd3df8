# Part of _core.pyx: one file from pieces, and many small tensors.

cdef int _append(fc_writer *writer, object piece, object path) except -1:
    cdef Py_buffer view
    cdef fc_error err
    cdef int rc
    _take_buffer(piece, &view, 0)
    with nogil:
        rc = fc_append_piece(writer, view.buf, <size_t>view.len, &err)
    PyBuffer_Release(&view)
    if rc < 0:
        _fail(&err, path)
    return PyErr_CheckSignals()


def write(int dirfd, path, pieces, bint sync=True, off_t size_hint=0, bint writeback=True):
    """Write a new file from pieces of memory.

    Parameters
    ----------
    dirfd : int
        Open folder that `path` is relative to.
    path : str or bytes
        Must not exist.
    pieces : iterable of buffers
        C-contiguous; each is asked for when the one before it is written, and not looked at after that.
    sync : bool
        Whether the content must survive a power cut when this returns.
    size_hint : int
        How many bytes will come, so that a full disk is noticed at once; 0 if unknown.
    writeback : bool
        Whether the device begins at once, also without `sync`.

    Returns
    -------
    int
        Number of bytes written. After an error the file stays, of whatever length.
    """
    cdef fc_writer writer
    cdef fc_error err
    cdef int rc
    cdef bytes encoded = _encode(path)
    cdef const char *name = PyBytes_AS_STRING(encoded)
    source = iter(pieces)
    with nogil:
        rc = fc_open_writer(&writer, dirfd, name, size_hint, writeback, &err)
    if rc < 0:
        _fail(&err, path)
    try:
        for piece in source:
            _append(&writer, piece, path)
    except BaseException:
        with nogil:
            fc_abandon_writer(&writer)
        raise
    with nogil:
        rc = fc_finish_writer(&writer, sync, &err)
    if rc < 0:
        _fail(&err, path)
    return writer.size


def write_tensors(int dirfd, tensors, bint writeback=True):
    """Write small tensors, each a new folder with its ``out`` and ``meta``; durable are they with `syncfs` only.

    Parameters
    ----------
    dirfd : int
        Open folder that the new ones come into.
    tensors : iterable of tuple
        ``(folder, out, meta)`` each: a name, which must not exist; a C-contiguous buffer, which nobody else may move or
        free meanwhile; and bytes. All go through the page cache, in one call without the GIL.
    writeback : bool
        Whether the device begins at once.

    Raises
    ------
    OSError
        At the first tensor that could not be written, with the path of the folder or file. What was written stays.
    """
    cdef list wanted = list(tensors)
    cdef list names = _encode_firsts(wanted)
    cdef size_t count = <size_t>len(wanted), taken = 0, failed = 0
    cdef _Room room = _Room(count, sizeof(fc_tensor)), held = _Room(count, sizeof(Py_buffer))
    cdef fc_tensor *jobs = <fc_tensor *>room.data
    cdef Py_buffer *views = <Py_buffer *>held.data
    cdef const char *file = NULL
    cdef bytes meta
    cdef fc_error err
    cdef int rc
    try:
        while taken < count:
            _, out, meta = wanted[taken]
            _take_buffer(out, &views[taken], 0)
            jobs[taken].folder = PyBytes_AS_STRING(names[taken])
            jobs[taken].out, jobs[taken].out_size = views[taken].buf, <size_t>views[taken].len
            jobs[taken].meta, jobs[taken].meta_size = PyBytes_AS_STRING(meta), <size_t>PyBytes_GET_SIZE(meta)
            taken += 1
        with nogil:
            rc = fc_write_tensors(dirfd, jobs, count, writeback, &failed, &file, &err)
    finally:
        while taken > 0:
            taken -= 1
            PyBuffer_Release(&views[taken])
    if rc < 0:
        folder = os.fsdecode(names[failed])
        _fail(&err, folder if file == NULL else f"{folder}/{file.decode()}")
    PyErr_CheckSignals()
