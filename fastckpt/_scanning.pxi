# Part of _core.pyx: the folders of a snapshot, looked into in threads.

cdef void _own_out(Mapping mapping, const fc_folder *folder) noexcept:
    mapping.block = folder.blob_block
    if folder.address != NULL and folder.out_size > 0:
        mapping.address = folder.address
        mapping.size = <size_t>folder.out_size


cdef object _take_meta(fc_folder *folder, type kind, dict types):
    if folder.meta_size < 0 or folder.meta_block == NULL:
        return folder.meta_size
    if kind is not None:
        meta = _plain_meta(folder.meta, <size_t>folder.meta_size, folder.out_size, kind, types)
        if meta is not None:
            return meta
    return PyBytes_FromStringAndSize(folder.meta, folder.meta_size)


cdef object _take_out(const fc_folder *folder, Mapping mapping):
    if mapping is None or min(folder.out_size, folder.meta_size) < 0 or mapping.size != <size_t>folder.out_size:
        return folder.out_size
    return mapping


cdef size_t _plan_runs(
    fc_run *runs, int dirfd, fc_folder *folders, size_t count, fc_what blobs, fc_cold cold, bint metas, size_t width,
    size_t most
) noexcept nogil:
    """Cut the folders into runs; where blobs are mapped, one for metas and one for them: so threads hinder less."""
    cdef size_t at = 0, filled = 0
    while at < count:
        runs[filled].dirfd, runs[filled].folders = dirfd, folders + at
        runs[filled].count = min(width, count - at)
        runs[filled].maps = most * runs[filled].count // count
        runs[filled].what, runs[filled].cold = blobs, cold
        if metas and blobs == FC_BLOBS:
            runs[filled + 1] = runs[filled]
            runs[filled + 1].what = FC_METAS
            filled += 1
        filled += 1
        at += width
    return filled


cdef int _look(
    int dirfd, fc_folder *found, list mappings, fc_what blobs, int cold, bint metas, size_t threads, size_t maps
) except -1:
    """Look into as many folders as there are mappings, which own what is mapped."""
    cdef size_t count = <size_t>len(mappings), i, planned
    cdef size_t share = 1 if threads < 2 else 2 * min(threads, _THREADS_MAX)  # two each: who is late does less
    cdef size_t width = (count + share - 1) // share
    cdef _Room room = _Room(2 * share, sizeof(fc_run))
    cdef fc_run *runs = <fc_run *>room.data
    with nogil:
        planned = _plan_runs(runs, dirfd, found, count, blobs, <fc_cold>cold, metas, width, maps)
        fc_scan_folders(runs, planned, threads)
    if blobs == FC_BLOBS:
        for i in range(count):
            _own_out(mappings[i], found + i)
    return 0


@cython.final
@cython.internal
cdef class _Scan:
    """Folders that were looked into, and what was found there, as long as this lives."""

    cdef list names, mappings
    cdef _Room room
    cdef fc_folder *found
    cdef size_t count

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.count):
            fc_release_block(self.found[i].meta_block)

    cdef int look(self, int dirfd, list names, bint map, int cold, bint metas, size_t threads, size_t maps) except -1:
        """Do what `scan` says; once."""
        cdef size_t count = <size_t>len(names), i
        cdef fc_what blobs = FC_BLOBS if map else FC_METAS_AND_SIZES if metas else FC_SIZES
        self.names, self.room = names, _Room(count, sizeof(fc_folder))
        self.mappings = _owners(count) if map else [None] * len(names)
        self.found = <fc_folder *>self.room.data
        for i in range(count):
            self.found[i].name, self.found[i].ask = PyBytes_AS_STRING(names[i]), False
            self.found[i].meta_size, self.found[i].meta_block = 0, NULL
        self.count = count
        return _look(dirfd, self.found, self.mappings, blobs, cold, metas, threads, maps)


def scan(
    int dirfd, folders, *, bint map=False, int cold=FC_COLD_MAP, bint metas=True, type kind=None, dict types=None,
    size_t threads=1, Py_ssize_t most=-1
):
    """Read the ``meta`` and ask for the size of the ``out`` of many folders.

    Parameters
    ----------
    dirfd : int
        The snapshot.
    folders : sequence of str or bytes
        Names in it.
    map : bool
        Also map every ``out`` whose ``meta`` could be read, or read it into shared memory if it is small.
    cold : int
        What to do, with `map`, where a blob is neither small nor in the page cache: ``COLD_MAP``, map it as any other;
        ``COLD_LEAVE``, give its size only; ``COLD_HUGE``, map it so that, if it is large, a touch brings in 2 MiB;
        ``COLD_ADVISE``, the same, and if it is not large begin to read it now.
    metas : bool
        False: leave the metas alone; theirs is then 0.
    kind, types : type and dict, optional
        As in `parse_table`: what to make of a meta that says nothing unusual, and gives the size of its out.
    threads : int
        How many share the folders, at most; the caller's is one of them.
    most : int
        How many blobs may be mapped, about; of those that are not small, the others give their size only. Negative:
        all.

    Returns
    -------
    list of (kind, bytes or int, int or Mapping)
        For each folder its meta, or the first 65,537 bytes of it, or minus the errno; and the size of its out, or its
        bytes, or minus the errno. What is no regular file counts as ELOOP (a link), EISDIR or EINVAL. Never waits for a
        FIFO.
    """
    cdef _Scan scan = _Scan()
    cdef list results = [], names = _encode_all(list(folders))
    cdef size_t i, count = <size_t>len(names)
    scan.look(dirfd, names, map, cold, metas, threads, count if most < 0 else min(<size_t>most, count))
    for i in range(count):
        results.append((_take_meta(scan.found + i, kind, types), _take_out(scan.found + i, scan.mappings[i])))
    return results
