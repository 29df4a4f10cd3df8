# Part of _core.pyx: metas and entries made in C, where nothing about them is unusual.

cdef object _plain_meta(const char *data, size_t length, int64_t nbytes, type kind, dict types):
    """The `kind` of a meta that says nothing but a type, a shape, its place and its digest, and gives `nbytes`; None
    for any other."""
    cdef fc_meta meta
    cdef int64_t size = 1
    cdef int i
    if not fc_parse_canon(data, length, &meta) or meta.comment_at >= 0 or meta.place < 0:
        return None
    dtype = types[meta.number]
    for i in range(meta.ndim):
        size *= meta.dims[i]
    if size * <int64_t>dtype.itemsize != nbytes:
        return None
    digest = PyUnicode_DecodeASCII(meta.digest, <Py_ssize_t>FC_DIGEST_LENGTH, NULL) if meta.digest[0] else None
    return tuple.__new__(kind, (_dims_of(&meta), dtype, meta.place, meta.count, None, digest, None, None))


cdef tuple _fields(object meta):
    """The eight fields of a Meta; a cast to tuple alone would believe anything, and a checked one no named tuple."""
    if not isinstance(meta, tuple):
        raise TypeError(f"a Meta is wanted, not {type(meta).__name__}")
    return <tuple>meta


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
    (metas, sizes, copies, odd), or None
        Three dicts in the order of the rows, by folder: the meta, a `kind` if it is canonical and gives the row's size;
        the size in bytes; and, of those that have one, where the copy lies. `odd` has the folders of the other metas,
        which are texts, as bytes, for the caller to judge. None in all when the line is not exactly what we write,
        names a folder twice, or has copies that overlap or are not aligned: that is for a parser of JSON.
    """
    cdef fc_table at
    cdef fc_row row
    cdef Py_ssize_t length = PyBytes_GET_SIZE(table), count = 0
    cdef _Room room = _Room(<size_t>length + 1, 1)
    cdef dict metas = {}, sizes = {}, copies = {}
    cdef list odd = []
    cdef uint64_t free = 0
    cdef int more
    if not fc_open_table(&at, PyBytes_AS_STRING(table), <size_t>length, <char *>room.data):
        return None
    while True:
        more = fc_take_row(&at, &row)
        if more <= 0:
            return (metas, sizes, copies, odd) if more == 0 and len(metas) == count else None
        count += 1
        folder = PyUnicode_DecodeASCII(row.folder, <Py_ssize_t>row.folder_length, NULL)
        meta = _plain_meta(row.meta, row.meta_length, row.nbytes, kind, types)
        if meta is None:
            odd.append(folder)
            meta = PyBytes_FromStringAndSize(row.meta, <Py_ssize_t>row.meta_length)
        metas[folder] = meta
        sizes[folder] = row.nbytes
        if row.copy_at >= 0:
            if <uint64_t>row.copy_at < free or row.copy_at % FC_COPY_ALIGN:
                return None
            free = <uint64_t>row.copy_at + <uint64_t>row.nbytes
            copies[folder] = row.copy_at


def in_order(dict metas not None, type kind not None):
    """Make the entries of metas, by key, in the order of their places.

    Parameters
    ----------
    metas : dict of str to Meta
        By folder.
    kind : type
        A named tuple, as `fastckpt.entries.Entry`: key, folder, meta, and the folder again.

    Returns
    -------
    (dict, list, bool), or None
        The entries; those of them whose meta says of what tensor they are a tie; and whether each names as many tensors
        as there are. None unless each of as many places is taken once, and no key twice.
    """
    cdef Py_ssize_t count = len(metas), place
    cdef list found = [None] * count, ties = []
    cdef dict entries = {}
    cdef bint whole = True
    for folder, meta in metas.items():
        _, _, at, of, name, _, same_as, _ = _fields(meta)
        if at is None or not 0 <= at < count:
            return None
        place = at
        if found[place] is not None:
            return None
        found[place] = tuple.__new__(kind, (folder if name is None else name, folder, meta, folder))
        whole = whole and of == count
        if same_as is not None:
            ties.append(found[place])
    for entry in found:
        entries[(<tuple>entry)[0]] = entry
    return (entries, ties, whole) if len(entries) == count else None
