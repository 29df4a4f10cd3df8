# Part of _core.pyx: metas that say nothing unusual become tensors at once.

cdef enum:
    _TYPES = 32  # OneFlow's numbers are below


cdef struct _Kind:
    int code  # DLPack's
    int64_t itemsize  # 0: no tensor is made of this type here


cdef int _take_kinds(dict kinds, _Kind *table) except -1:
    cdef int number
    for number in range(_TYPES):
        table[number].itemsize = 0
    for number, (code, itemsize) in kinds.items():
        if not 0 <= number < _TYPES:
            raise ValueError(f"no type has the number {number}")
        table[number].code, table[number].itemsize = code, itemsize
    return 0


cdef bint _fits(const fc_meta *meta, const _Kind *kinds, int64_t nbytes) noexcept:
    """Whether a canonical meta is of a type that is made here, and gives so many bytes, which are some."""
    cdef int i
    if meta.number >= _TYPES:
        return False
    cdef int64_t size = kinds[meta.number].itemsize
    for i in range(meta.ndim):
        size *= meta.dims[i]
    return size == nbytes and size > 0


cdef object _key_of(
    object folder, const char *text, size_t length, int64_t nbytes, int64_t count, const _Kind *kinds, object note,
    fc_meta *meta, bint *tied
):
    """The key of the tensor, one of `count`, that the meta of a folder is of; `meta` has then its place too, and `tied`
    is whether it is another's. None: the meta is not ours, or says what `note` does not know."""
    tied[0] = False
    if not fc_parse_canon(text, length, meta) or not _fits(meta, kinds, nbytes):
        return None
    if meta.comment_at < 0:
        return folder if meta.place >= 0 and meta.count == count else None
    said = note(folder, PyBytes_FromStringAndSize(text, <Py_ssize_t>length), count)
    if said is None:
        return None
    key, meta.place, tied[0] = said
    return key if 0 <= meta.place < count else None


cdef object _tensor(Mapping mapping, const fc_meta *meta, const _Kind *kinds, object take):
    cdef const _Kind *kind = &kinds[meta.number]
    return take(_make_capsule(mapping, kind.code, 8 * <size_t>kind.itemsize, meta.dims, <size_t>meta.ndim))


def load_folders(
    int dirfd, list names not None, dict kinds not None, take, note, *, bint ahead=False, size_t threads=1,
    size_t most=0
):
    """Make all tensors of a flat snapshot without an index, where every folder of it is as we write it.

    Parameters
    ----------
    dirfd : int
        The snapshot.
    names : list of str
        All folders in it.
    kinds, take, note
        As for `load_plain`.
    ahead : bool
        As for `scan`.
    threads : int
        How many look into them, at most; the caller's is one of them.
    most : int
        How many maps there may be.

    Returns
    -------
    (dict, dict), or None
        The tensors in their order, by key; and the maps of those that can have huge pages. None as for `load_plain`.
    """
    cdef _Rest rest = _Rest()
    cdef _Kind table[_TYPES]
    cdef _Scan scan = _Scan()
    cdef size_t count = <size_t>len(names), i
    cdef list keys = [None] * len(names), tensors = [None] * len(names), maps = [None] * len(names)
    cdef fc_folder *folder
    cdef Mapping mapping
    cdef fc_meta meta
    cdef bint tied = False
    _take_kinds(kinds, table)
    scan.begin(dirfd, _encode_all(names), True, FC_COLD_ADVISE, True, ahead, threads, min(count, most))
    for i in range(count):
        folder, mapping = scan.take(i), scan.mappings[i]
        if folder.meta_size < 0 or mapping.size != <size_t>folder.out_size:
            return None
        key = _key_of(
            names[i], folder.meta, <size_t>folder.meta_size, folder.out_size, <int64_t>count, table, note, &meta, &tied
        )
        if key is None or keys[meta.place] is not None:
            return None
        keys[meta.place] = key
        if not tied:
            tensors[meta.place] = _tensor(mapping, &meta, table, take)
            maps[meta.place] = mapping if folder.out_size >= FC_HUGE_PAGE else None
    made = dict(zip(keys, tensors))
    if len(made) != len(names):
        return None
    return made, {key: mapping for key, mapping in zip(keys, maps) if mapping is not None}
