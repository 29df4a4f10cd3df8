# Part of _core.pyx: the table of an index.

cdef object _make_plain(const fc_row *row, type kind, dict types):
    """The `kind` of a row whose meta says nothing but a type, a shape, its place and its digest; else its text."""
    cdef fc_meta meta
    cdef int64_t size = 1
    cdef int i
    if fc_parse_canon(row.meta, row.meta_length, &meta) and meta.comment_at < 0 and meta.place >= 0:
        dtype = types[meta.number]
        for i in range(meta.ndim):
            size *= meta.dims[i]
        if size * <int64_t>dtype.itemsize == row.nbytes:
            digest = PyUnicode_DecodeASCII(meta.digest, <Py_ssize_t>FC_DIGEST_LENGTH, NULL) if meta.digest[0] else None
            return tuple.__new__(kind, (_dims_of(&meta), dtype, meta.place, meta.count, None, digest, None, None))
    return PyBytes_FromStringAndSize(row.meta, <Py_ssize_t>row.meta_length)


def parse_table(bytes table not None, type kind not None, dict types not None):
    """Parse the table of an index, as we write it.

    Parameters
    ----------
    table : bytes
        The line, with its end.
    kind : type
        A named tuple, as `fastckpt.meta.Meta`: for each meta that says no more than the first six of its eight fields.
    types : dict of int to object
        What has each of OneFlow's numbers; its ``itemsize`` is asked for.

    Returns
    -------
    list of tuple, or None
        ``(folder, meta, nbytes, copy_at)`` each. The meta is a `kind` if it is canonical and gives `nbytes`, and its
        text, as bytes, for the caller to judge, if not; `copy_at` may be None. None in all when the line is not exactly
        what we write, or has copies that overlap or are not aligned: that is for a parser of JSON.
    """
    cdef fc_table at
    cdef fc_row row
    cdef Py_ssize_t length = PyBytes_GET_SIZE(table)
    cdef _Room room = _Room(<size_t>length + 1, 1)
    cdef list rows = []
    cdef uint64_t free = 0
    cdef int more
    if not fc_open_table(&at, PyBytes_AS_STRING(table), <size_t>length, <char *>room.data):
        return None
    while True:
        more = fc_take_row(&at, &row)
        if more <= 0:
            return rows if more == 0 else None
        folder = PyUnicode_DecodeASCII(row.folder, <Py_ssize_t>row.folder_length, NULL)
        copy_at = None
        if row.copy_at >= 0:
            if <uint64_t>row.copy_at < free or row.copy_at % 64:
                return None
            free = <uint64_t>row.copy_at + <uint64_t>row.nbytes
            copy_at = row.copy_at
        rows.append((folder, _make_plain(&row, kind, types), row.nbytes, copy_at))
