# Part of _core.pyx: a snapshot with an index becomes tensors in one call, where nothing about it is unusual.

cdef enum:
    _FIRST = 32768  # bytes of a marker that are read first: the table of 200 tensors
    _NAMES = 1024  # times 8 bytes of names in the kernel's form that are read at a time


@cython.final
@cython.internal
cdef class _Rest:
    """The garbage collector rests while this is there: of what is made meanwhile, nothing is thrown away."""

    cdef bint was_on

    def __cinit__(self):
        self.was_on = PyGC_Disable()

    def __dealloc__(self):
        if self.was_on:
            PyGC_Enable()


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


cdef bytes _longer(int file, bytes text, size_t length):
    """The first so many bytes of a file, of which `text` are the first few; None where there are not so many."""
    cdef fc_error err
    cdef ssize_t count
    cdef size_t there = <size_t>PyBytes_GET_SIZE(text)
    cdef bytes longer = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>length)
    cdef char *data = PyBytes_AS_STRING(longer)
    memcpy(data, PyBytes_AS_STRING(text), there)
    with nogil:
        count = fc_read_at(file, data + there, length - there, <off_t>there, &err)
    return longer if count >= 0 and <size_t>count == length - there else None


cdef bytes _read_text(int file, size_t size, int64_t most_tensors, size_t most_bytes, object crc32, fc_head *head):
    """The text of a marker that is ours and unchanged, to the end of the table; None of any other."""
    cdef const char *end = NULL
    cdef size_t length = min(size, <size_t>_FIRST)
    cdef bytes text = _longer(file, b"", length)
    while text is not None:
        end = <const char *>memchr(PyBytes_AS_STRING(text), c"\n", length)
        if end != NULL or length == min(size, most_bytes):
            break
        length = min(8 * length, min(size, most_bytes))
        text = _longer(file, text, length)
    if text is None or end == NULL:
        return None
    if not fc_parse_head(PyBytes_AS_STRING(text), <size_t>(end - PyBytes_AS_STRING(text)) + 1, head):
        return None
    if head.size != <int64_t>size or head.count > head.table_length or head.count > most_tensors:
        return None
    length = head.length + <size_t>head.table_length
    if length > most_bytes or head.copies_at % FC_COPY_ALIGN:
        return None
    if length > <size_t>PyBytes_GET_SIZE(text):
        text = _longer(file, text, length)
        if text is None:
            return None
    view = memoryview(text)
    if crc32(view[:<Py_ssize_t>head.sealed]) != head.seal:
        return None
    return text if crc32(view[<Py_ssize_t>head.length:<Py_ssize_t>length]) == head.table_crc else None


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


cdef bint _take_rows(
    char *table, const fc_head *head, Mapping whole, const _Kind *kinds, object take, object note, object others,
    dict made, _Large large, uint64_t *names
) except -1:
    """Make the tensors that have copies, parts of `whole`, and note the others, which stand in `made` as None, as ties
    do; add the hashes of all folders' names. The texts of the table are then in their plain form. False if one is odd.
    """
    cdef fc_table at
    cdef fc_row row
    cdef fc_meta meta
    cdef int64_t place = 0, free = head.copies_at
    cdef bint tied = False
    cdef int more
    if not fc_open_table(&at, table, <size_t>head.table_length, table):
        return False
    while (more := fc_take_row(&at, &row)) > 0:
        folder = PyUnicode_DecodeASCII(row.folder, <Py_ssize_t>row.folder_length, NULL)
        if place == head.count or folder in others:
            return False
        key = _key_of(folder, row.meta, row.meta_length, row.nbytes, head.count, kinds, note, &meta, &tied)
        if key is None or meta.place != place:
            return False
        names[0] += fc_hash_name(row.folder, row.folder_length)
        place += 1
        if row.copy_at < 0:
            made[key] = None
            if not tied:
                large.add(key, &row)
            continue
        if tied or row.copy_at % FC_COPY_ALIGN or row.copy_at > head.size - head.copies_at:
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
    _look(dirfd, <fc_folder *>large.folders.data, mappings, FC_COLD_ADVISE, threads)
    for i in range(large.count):
        mapping = mappings[i]
        if mapping.size != <size_t>rows[i].nbytes:
            return None
        fc_parse_canon(rows[i].meta, rows[i].meta_length, &meta)
        made[large.keys[i]] = _tensor(mapping, &meta, kinds, take)
    return mappings


def load_plain(
    int dirfd, str marker not None, dict kinds not None, take, note, crc32, *, others=(), size_t few=1,
    size_t most_maps=0, int64_t most_tensors=0, size_t most_bytes=0, int64_t worth=0
):
    """Make all tensors of a snapshot with an index and digests, by maps, where all of it is as we write it.

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
    note : callable
        Given a folder, its meta, which says more than a place and a digest, and the number of tensors, it gives the
        tensor's key, its place, and whether it is another's: then `take` makes none. Or None, if that cannot be.
    crc32 : callable
        zlib's, of bytes.
    others : collection of str
        Names that no folder may have.
    few : int
        So many maps one thread makes; more, as many threads as there are processors, but each at least half as many.
    most_maps, most_tensors, most_bytes : int
        How many maps there may be, how many tensors, and bytes of the marker's text.
    worth : int
        How many bytes those that can have huge pages must have, to be asked whether they are cold.

    Returns
    -------
    (dict or None, list of Mapping, bytes or None), or None
        The tensors in their order, by key, None for those of others; what is to be brought into memory: the maps of
        those that are not copied, if of three that were asked most are cold, else nothing; and the record of the object
        that holds the tensors, as it stands in the marker, if there is one. No dict where the marker is empty: there is
        no index. None for whatever else there may be, damage too: nothing is left of it, and those judge who look
        closer.
    """
    cdef _Rest rest = _Rest()
    cdef _Kind table[_TYPES]
    cdef fc_error err
    cdef fc_head head
    cdef off_t size = 0
    cdef bytes text = None, record = None, name = _encode(marker)
    cdef const char *path = PyBytes_AS_STRING(name)
    cdef Mapping whole = None
    cdef dict made = {}
    cdef size_t threads = 1, asked, cold = 0, i
    cdef int file
    _take_kinds(kinds, table)
    with nogil:
        file = fc_open_file(dirfd, path, &size, &err)
    if file < 0:
        return None
    try:
        if size > 0:
            text = _read_text(file, <size_t>size, most_tensors, most_bytes, crc32, &head)
        if text is not None and head.copies_at < head.size:
            whole = _map_marker(file, &head)
    finally:
        fc_close_read(file)
    if size == 0:
        return None, [], None
    if text is None or (whole is None and head.copies_at < head.size):
        return None
    if head.object_at > 0:
        record = text[head.object_at:head.object_at + head.object_length]
    cdef _Large large = _Large(<size_t>head.count)
    cdef uint64_t names = fc_hash_name(path, strlen(path))
    cdef char *rows = PyBytes_AS_STRING(text) + head.length
    if not _take_rows(rows, &head, whole, table, take, note, others, made, large, &names) or large.count > most_maps:
        return None
    if not _are_all(dirfd, names, len(made) + 1):
        return None
    if large.count > few:
        threads = min(<size_t>len(os.sched_getaffinity(0)), (large.count + few - 1) // few)
    asked = large.ask(worth)
    maps = _take_large(dirfd, large, table, take, made, threads)
    if maps is None or fc_stat_file(dirfd, path, &size, &err) < 0:
        return None
    for i in range(large.count):
        cold += (<fc_folder *>large.folders.data)[i].cold
    return made, maps if 2 * cold > asked else [], record
