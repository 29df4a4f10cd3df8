# Part of _core.pyx: the folders of a snapshot, looked into in threads.

cdef enum:
    _WIDTH = 512  # folders that one thread looks into at a time, at most

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
    fc_run *runs, int dirfd, fc_folder *folders, size_t count, fc_what blobs, fc_cold cold, bint metas, bint ahead,
    size_t width, size_t most
) noexcept nogil:
    """Cut the folders into runs; where blobs are mapped, one for metas and one for them: so threads hinder less."""
    cdef size_t at = 0, filled = 0
    if blobs == FC_BLOBS:
        fc_hold_maps()  # without them nothing is mapped
    while at < count:
        runs[filled].dirfd, runs[filled].folders = dirfd, folders + at
        runs[filled].count = min(width, count - at)
        runs[filled].maps = most * runs[filled].count // count
        runs[filled].what, runs[filled].cold, runs[filled].ahead = blobs, cold, ahead
        if metas and blobs == FC_BLOBS:
            runs[filled + 1] = runs[filled]
            runs[filled + 1].what = FC_METAS
            filled += 1
        filled += 1
        at += width
    return filled


cdef int _look(int dirfd, fc_folder *found, list mappings, int cold, size_t threads) except -1:
    """Map the blobs of as many folders as there are mappings, which own what is mapped."""
    cdef size_t count = <size_t>len(mappings), i, planned
    cdef size_t share = 1 if threads < 2 else 2 * min(threads, _THREADS_MAX)  # two each: who is late does less
    cdef size_t width = (count + share - 1) // share
    cdef _Room room = _Room(share, sizeof(fc_run))
    cdef fc_run *runs = <fc_run *>room.data
    with nogil:
        planned = _plan_runs(runs, dirfd, found, count, FC_BLOBS, <fc_cold>cold, False, False, width, count)
        fc_scan_folders(runs, planned, threads)
    for i in range(count):
        _own_out(mappings[i], found + i)
    return 0


@cython.final
@cython.internal
cdef class _Scan:
    """Folders that are looked into while the caller takes one after the other; what is found lasts as long as this."""

    cdef list names, mappings
    cdef _Room room, runs
    cdef fc_folder *found
    cdef fc_turns *turns
    cdef size_t count, width, each, ready, owned
    cdef bint map

    def __dealloc__(self):
        cdef size_t i
        fc_end_turns(self.turns)
        for i in range(self.count):
            fc_release_block(self.found[i].meta_block)
        for i in range(self.owned, self.count):
            if self.found[i].blob_block != NULL:
                fc_release_block(self.found[i].blob_block)
            elif self.found[i].address != NULL:
                fc_unmap(self.found[i].address, <size_t>self.found[i].out_size)

    cdef int begin(
        self, int dirfd, list names, bint map, int cold, bint metas, bint ahead, size_t threads, size_t maps
    ) except -1:
        """Do what `scan` says; once."""
        cdef size_t count = <size_t>len(names), i, planned, most = max(<size_t>1, min(threads, _THREADS_MAX))
        cdef fc_what blobs = FC_BLOBS if map else FC_METAS_AND_SIZES if metas else FC_SIZES
        self.names, self.map, self.room = names, map, _Room(count, sizeof(fc_folder))
        self.mappings = _owners(count) if map else [None] * len(names)
        self.width = max(<size_t>1, min(<size_t>_WIDTH, (count + 2 * most - 1) // (2 * most)))  # who is late does less
        self.each = 2 if map and metas else 1
        self.runs = _Room(self.each * (count // self.width + 1), sizeof(fc_run))
        self.found = <fc_folder *>self.room.data
        for i in range(count):
            self.found[i].name, self.found[i].ask = PyBytes_AS_STRING(names[i]), False
            self.found[i].meta_size, self.found[i].meta_block = 0, NULL
            self.found[i].out_size, self.found[i].address, self.found[i].blob_block = 0, NULL, NULL
        self.count = count
        with nogil:
            planned = _plan_runs(
                <fc_run *>self.runs.data, dirfd, self.found, count, blobs, <fc_cold>cold, metas, ahead, self.width, maps
            )
            self.turns = fc_begin_scan(<fc_run *>self.runs.data, planned, threads)
        if self.turns == NULL:
            raise MemoryError
        return 0

    cdef fc_folder *take(self, size_t i) noexcept:
        """What was found in a folder, when it has been looked into; they are to be taken in order."""
        if i >= self.ready:
            self.ready = min(self.count, (i // self.width + 1) * self.width)
            with nogil:
                fc_finish_turns(self.turns, self.each * (i // self.width + 1))
        if self.map:
            _own_out(self.mappings[i], self.found + i)
        self.owned = i + 1
        return self.found + i


def scan(
    int dirfd, folders, *, bint map=False, int cold=FC_COLD_MAP, bint metas=True, type kind=None, dict types=None,
    bint ahead=False, size_t threads=1, Py_ssize_t most=-1
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
    ahead : bool
        Begin to read several small files before the first is waited for, as they must come from the disk.
    threads : int
        How many share the folders, at most; the caller's is one of them.
    most : int
        How many blobs may be mapped, about; of those that are not small, the others give their size only, as all do
        from when the process has no maps to spare. Negative: all.

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
    cdef fc_folder *folder
    scan.begin(dirfd, names, map, cold, metas, ahead, threads, count if most < 0 else min(<size_t>most, count))
    for i in range(count):
        folder = scan.take(i)
        results.append((_take_meta(folder, kind, types), _take_out(folder, scan.mappings[i])))
    return results
