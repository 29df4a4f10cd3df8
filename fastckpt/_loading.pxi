# Part of _core.pyx: a flat snapshot becomes tensors in one call, where nothing about it is unusual.

cdef enum:
    _FIRST = 32768  # bytes of a marker that are read first: the table of 200 tensors
    _NAMES = 1024  # times 8 bytes of names in the kernel's form that are read at a time
    _TYPES = 32  # OneFlow's numbers are below


cdef struct _Kind:
    int code  # DLPack's
    int64_t itemsize  # 0: no tensor is made of this type here


@cython.final
@cython.internal
cdef class _Large:
    """The blobs that an index does not copy: how to look for them, and what they are."""

    cdef _Room folders, rows
    cdef list keys
    cdef size_t count

    def __cinit__(self, size_t most):
        self.folders, self.rows = _Room(most, sizeof(fc_folder)), _Room(most, sizeof(fc_row))
        self.keys = []

    cdef int add(self, object key, const fc_row *row) except -1:
        cdef fc_folder *folder = <fc_folder *>self.folders.data + self.count
        folder.name, folder.ask, folder.cold = row.folder, False, False
        (<fc_row *>self.rows.data)[self.count] = row[0]
        self.keys.append(key)
        self.count += 1
        return 0

    cdef size_t ask(self, int64_t worth) noexcept:
        """Have three of those that can have huge pages asked whether they are cold, where all of them have so many
        bytes; give how many are asked."""
        cdef fc_folder *folders = <fc_folder *>self.folders.data
        cdef fc_row *rows = <fc_row *>self.rows.data
        cdef size_t i, asked = 0, huge = 0, first = 0, middle = 0, largest = 0
        cdef int64_t total = 0
        for i in range(self.count):
            if rows[i].nbytes >= FC_HUGE_PAGE:
                first = i if total == 0 else first
                largest = i if total == 0 or rows[i].nbytes > rows[largest].nbytes else largest
                total += rows[i].nbytes
                huge += 1
        if total == 0 or total < worth:
            return 0
        huge //= 2
        for i in range(self.count):
            if rows[i].nbytes >= FC_HUGE_PAGE:
                if huge == 0:
                    middle = i
                    break
                huge -= 1
        folders[first].ask = folders[middle].ask = folders[largest].ask = True
        for i in range(self.count):
            asked += folders[i].ask
        return asked


cdef bytes _read_table(int file, off_t size, int64_t most_tensors, int64_t most_bytes, object crc32, fc_head *head):
    """The table of a marker that is ours, unchanged and plain; None of any other."""
    cdef char first[_FIRST]
    cdef fc_error err
    cdef ssize_t count, there
    cdef size_t rest
    with nogil:
        count = fc_read_at(file, first, <size_t>min(size, <off_t>sizeof(first)), 0, &err)
    if count < 0 or not fc_parse_head(first, <size_t>count, head) or head.size != size:
        return None
    if head.table_length > most_bytes or head.count > head.table_length or head.count > most_tensors:
        return None
    if head.copies_at % 64:
        return None
    if crc32(first[:head.sealed]) != head.seal:
        return None
    cdef bytes table = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>head.table_length)
    cdef char *data = PyBytes_AS_STRING(table)
    there = min(count - <ssize_t>head.length, <ssize_t>head.table_length)
    memcpy(data, first + head.length, <size_t>there)
    if there < head.table_length:
        rest = <size_t>(head.table_length - there)
        with nogil:
            count = fc_read_at(file, data + there, rest, <off_t>head.length + there, &err)
        if count < 0 or <size_t>count != rest:
            return None
    return table if crc32(table) == head.table_crc else None


cdef Mapping _map_marker(int file, const fc_head *head):
    """A map of all of it; None where it cannot be mapped."""
    cdef fc_error err
    cdef fc_block *block = NULL
    cdef void *address = NULL
    cdef Mapping whole = Mapping.__new__(Mapping)
    if fc_make_open_block(file, head.size, &block, &address, &err) < 0:
        return None
    whole.address, whole.size, whole.block = address, <size_t>head.size, block
    return whole


cdef int _take_kinds(dict kinds, _Kind *table) except -1:
    cdef int number
    for number in range(_TYPES):
        table[number].itemsize = 0
    for number, (code, itemsize) in kinds.items():
        if not 0 <= number < _TYPES:
            raise ValueError(f"no type has the number {number}")
        table[number].code, table[number].itemsize = code, itemsize
    return 0


cdef bint _is_plain(const fc_meta *meta, const _Kind *kinds, int64_t count, int64_t nbytes) noexcept:
    """Whether a canonical meta is of one of so many tensors, says no more, and gives as many bytes, which are some."""
    cdef int i
    if meta.comment_at >= 0 or meta.place < 0 or meta.count != count or meta.number >= _TYPES:
        return False
    cdef int64_t size = kinds[meta.number].itemsize
    for i in range(meta.ndim):
        size *= meta.dims[i]
    return size == nbytes and size > 0


cdef object _tensor(Mapping mapping, const fc_meta *meta, const _Kind *kinds, object take):
    cdef const _Kind *kind = &kinds[meta.number]
    return take(_make_capsule(mapping, kind.code, 8 * <size_t>kind.itemsize, meta.dims, <size_t>meta.ndim))


cdef bint _take_rows(
    char *table, const fc_head *head, Mapping whole, const _Kind *kinds, object take, dict made, _Large large,
    uint64_t *names
) except -1:
    """Make the tensors that have copies, parts of `whole`, and note the others, which stand in `made` as None; add
    the hashes of all names. The texts of the table are then in their plain form. False if one is odd."""
    cdef fc_table at
    cdef fc_row row
    cdef fc_meta meta
    cdef int64_t place = 0, free = head.copies_at
    cdef int more
    if not fc_open_table(&at, table, <size_t>head.table_length, table):
        return False
    while (more := fc_take_row(&at, &row)) > 0:
        if place == head.count or not fc_parse_canon(row.meta, row.meta_length, &meta):
            return False
        if meta.place != place or not _is_plain(&meta, kinds, head.count, row.nbytes):
            return False
        key = PyUnicode_DecodeASCII(row.folder, <Py_ssize_t>row.folder_length, NULL)
        names[0] += fc_hash_name(row.folder, row.folder_length)
        place += 1
        if row.copy_at < 0:
            made[key] = None
            large.add(key, &row)
            continue
        if row.copy_at % 64 or row.copy_at > head.size - head.copies_at:
            return False
        if head.copies_at + row.copy_at < free:
            return False
        free = head.copies_at + row.copy_at
        if row.nbytes > head.size - free:
            return False
        made[key] = _tensor(_part_of(whole, <size_t>free, <size_t>row.nbytes), &meta, kinds, take)
        free += row.nbytes
    return more == 0 and place == head.count


cdef bint _are_all(int dirfd, uint64_t names, Py_ssize_t wanted):
    """Whether the folder has so many names, whose hashes have this sum. A name added twice is found out too."""
    cdef int64_t room[_NAMES]
    cdef fc_error err
    cdef size_t at
    cdef const char *name
    cdef Py_ssize_t count = 0
    cdef ssize_t used = 1
    with nogil:
        while used > 0:
            at = 0
            used = fc_read_names(dirfd, room, sizeof(room), &err)
            while used > 0 and (name := fc_next_name(room, <size_t>used, &at)) != NULL:
                names -= fc_hash_name(name, strlen(name))
                count += 1
    return used == 0 and count == wanted and names == 0


cdef list _take_large(int dirfd, _Large large, const _Kind *kinds, object take, dict made, size_t threads):
    """Map the others and make their tensors; give the maps, or None where one is missing or has another size."""
    cdef fc_row *rows = <fc_row *>large.rows.data
    cdef list mappings = _owners(large.count)
    cdef Mapping mapping
    cdef fc_meta meta
    cdef size_t i
    _look(
        dirfd, <fc_folder *>large.folders.data, mappings, FC_BLOBS, FC_COLD_ADVISE, False, threads, large.count
    )
    for i in range(large.count):
        mapping = mappings[i]
        if mapping.size != <size_t>rows[i].nbytes:
            return None
        fc_parse_canon(rows[i].meta, rows[i].meta_length, &meta)
        made[large.keys[i]] = _tensor(mapping, &meta, kinds, take)
    return mappings


cdef tuple _load_plain(
    int dirfd, str marker, const _Kind *kinds, object take, object crc32, object others, size_t few,
    size_t most_maps, int64_t most_tensors, int64_t most_bytes, int64_t worth
):
    cdef fc_error err
    cdef fc_head head
    cdef off_t size = 0
    cdef bytes name = _encode(marker)
    cdef const char *path = PyBytes_AS_STRING(name)
    cdef Mapping whole = None
    cdef dict made = {}
    cdef size_t threads = 1, asked, cold = 0, i
    cdef int file
    with nogil:
        file = fc_open_file(dirfd, path, &size, &err)
    if file < 0:
        return None
    if size == 0:
        fc_close_read(file)
        return None, []
    try:
        table = _read_table(file, size, most_tensors, most_bytes, crc32, &head)
        if table is not None and head.copies_at < head.size:
            whole = _map_marker(file, &head)
    finally:
        fc_close_read(file)
    if table is None or (whole is None and head.copies_at < head.size):
        return None
    cdef _Large large = _Large(<size_t>head.count)
    cdef uint64_t names = fc_hash_name(path, strlen(path))
    if not _take_rows(PyBytes_AS_STRING(table), &head, whole, kinds, take, made, large, &names):
        return None
    if large.count > most_maps:
        return None
    for other in others:
        if other in made:
            return None
    if not _are_all(dirfd, names, len(made) + 1):
        return None
    if large.count > few:
        threads = min(<size_t>len(os.sched_getaffinity(0)), (large.count + few - 1) // few)
    asked = large.ask(worth)
    maps = _take_large(dirfd, large, kinds, take, made, threads)
    if maps is None or fc_stat_file(dirfd, path, &size, &err) < 0:
        return None
    for i in range(large.count):
        cold += (<fc_folder *>large.folders.data)[i].cold
    return made, maps if 2 * cold > asked else []


def load_plain(
    int dirfd, str marker not None, dict kinds not None, take, crc32, *, others=(), size_t few=1, size_t most_maps=0,
    int64_t most_tensors=0, int64_t most_bytes=0, int64_t worth=0
):
    """Make all tensors of a flat snapshot with an index and digests, by maps, where all of it is as we write it.

    Parameters
    ----------
    dirfd : int
        The snapshot; its names are read from where the descriptor stands.
    marker : str
        Name of the file with the index.
    kinds : dict of int to tuple of int
        DLPack's code, and bytes an element, by OneFlow's number; no other types are plain.
    take : callable
        Makes a tensor of a capsule "dltensor".
    crc32 : callable
        zlib's, of bytes.
    others : collection of str
        Names that no tensor may have.
    few : int
        So many maps one thread makes; more, as many threads as there are processors, but each at least half as many.
    most_maps, most_tensors, most_bytes : int
        How many maps there may be, how many tensors, and bytes of the table.
    worth : int
        How many bytes those that can have huge pages must have, to be asked whether they are cold.

    Returns
    -------
    (dict or None, list of Mapping), or None
        The tensors in their order, by name; and what is to be brought into memory: the maps of those that are not
        copied, if of three that were asked most are cold, else nothing. No dict where the marker is empty: there is no
        index. None for whatever else there may be, damage too: nothing is left of it, and those judge who look closer.
    """
    cdef _Kind table[_TYPES]
    _take_kinds(kinds, table)
    was_on = PyGC_Disable()
    try:
        return _load_plain(
            dirfd, marker, table, take, crc32, others, few, most_maps, most_tensors, most_bytes, worth
        )
    finally:
        if was_on:
            PyGC_Enable()


cdef tuple _load_folders(int dirfd, list names, const _Kind *kinds, object take, size_t threads, size_t most):
    cdef _Scan scan = _Scan()
    cdef size_t count = <size_t>len(names), i
    cdef list keys = [None] * len(names), tensors = [None] * len(names), maps = [None] * len(names)
    cdef fc_folder *folder
    cdef Mapping mapping
    cdef fc_meta meta
    scan.look(dirfd, _encode_all(names), True, FC_COLD_ADVISE, True, threads, min(count, most))
    for i in range(count):
        folder, mapping = scan.found + i, scan.mappings[i]
        if folder.meta_size < 0 or not fc_parse_canon(folder.meta, <size_t>folder.meta_size, &meta):
            return None
        if not _is_plain(&meta, kinds, <int64_t>count, folder.out_size) or mapping.size != <size_t>folder.out_size:
            return None
        if keys[meta.place] is not None:
            return None
        keys[meta.place], tensors[meta.place] = names[i], _tensor(mapping, &meta, kinds, take)
        maps[meta.place] = mapping if folder.out_size >= FC_HUGE_PAGE else None
    return dict(zip(keys, tensors)), {key: mapping for key, mapping in zip(keys, maps) if mapping is not None}


def load_folders(int dirfd, list names not None, dict kinds not None, take, *, size_t threads=1, size_t most=0):
    """Make all tensors of a flat snapshot without an index, where every folder of it is as we write it.

    Parameters
    ----------
    dirfd : int
        The snapshot.
    names : list of str
        All folders in it.
    kinds, take
        As for `load_plain`.
    threads : int
        How many look into them, at most; the caller's is one of them.
    most : int
        How many maps there may be.

    Returns
    -------
    (dict, dict), or None
        The tensors in their order, by name; and the maps of those that can have huge pages. None as for `load_plain`.
    """
    cdef _Kind table[_TYPES]
    _take_kinds(kinds, table)
    was_on = PyGC_Disable()
    try:
        return _load_folders(dirfd, names, table, take, threads, most)
    finally:
        if was_on:
            PyGC_Enable()
