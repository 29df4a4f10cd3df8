# Part of _core.pyx: a large file that several threads write, and memory for what is read.

@cython.final
cdef class Gate:
    """Lets a few parts at a time go to the device; the next ones are made ready meanwhile.

    Parameters
    ----------
    places : int
        How many: those of all files together that are written with it.
    """

    cdef fc_gate gate
    cdef bint opened

    def __cinit__(self, unsigned int places):
        cdef fc_error err
        if places == 0:
            raise ValueError("a gate without places: nobody would ever pass")
        if fc_open_gate(&self.gate, places, &err) < 0:
            _fail(&err, None)
        self.opened = True

    def __dealloc__(self):
        if self.opened:
            fc_close_gate(&self.gate)


@cython.final
cdef class File:
    """A new file of known size, written in parts by any threads, past the page cache where that can be.

    Parameters
    ----------
    dirfd : int
        Open folder that `path` is relative to.
    path : str or bytes
        Must not exist.
    size : int
        How many bytes it will have; the space is there when this returns.
    direct : bool
        Whether to pass the page cache.
    writeback : bool
        Whether the device begins at once with what goes through the page cache.

    Attributes
    ----------
    size : int
        As given.
    direct : bool
        Whether parts pass the page cache; this may end when the file system refuses one.
    """

    cdef fc_blob blob
    cdef object path

    def __cinit__(self, int dirfd, path, off_t size, bint direct=True, bint writeback=True):
        cdef fc_error err
        cdef int rc
        cdef bytes encoded = _encode(path)
        cdef const char *name = PyBytes_AS_STRING(encoded)
        self.blob.fd = -1
        self.path = path
        if size < 0:
            raise ValueError(f"a file of {size} bytes")
        with nogil:
            rc = fc_create_blob(&self.blob, dirfd, name, size, direct, writeback, &err)
        if rc < 0:
            _fail(&err, path)

    def __dealloc__(self):
        fc_abandon_blob(&self.blob)

    @property
    def size(self):
        return self.blob.size

    @property
    def direct(self):
        return fc_is_direct(&self.blob)

    def write(self, piece, off_t offset, Mapping bounce=None, Gate gate=None):
        """Write one part.

        Parameters
        ----------
        piece : buffer
            C-contiguous; a multiple of ``DIRECT_ALIGN`` bytes unless it ends the file.
        offset : int
            Where it goes, a multiple of ``DIRECT_ALIGN``.
        bounce : Mapping, optional
            Memory that pieces which are not aligned are copied through, for this thread alone.
        gate : Gate, optional
            What goes past the page cache waits for a place there, when it is ready to be written.
        """
        cdef Py_buffer view
        cdef fc_error err
        cdef void *room = NULL
        cdef size_t length = 0
        cdef fc_gate *passed = NULL if gate is None else &gate.gate
        cdef int rc
        if bounce is not None:
            room, length = bounce.address, bounce.size - bounce.size % FC_DIRECT_ALIGN
            if length == 0 or <size_t>room % FC_DIRECT_ALIGN:
                raise ValueError("bounce must be aligned memory, as from allocate()")
        self._check_open()
        _take_buffer(piece, &view, 0)
        if offset < 0 or view.len > self.blob.size - offset:
            PyBuffer_Release(&view)
            raise ValueError(f"{piece!r:.80} at {offset} does not lie within {self.blob.size} bytes")
        with nogil:
            rc = fc_write_part(&self.blob, view.buf, <size_t>view.len, offset, room, length, passed, &err)
        PyBuffer_Release(&view)
        if rc < 0:
            _fail(&err, self.path)
        PyErr_CheckSignals()

    def finish(self, bint sync=True):
        """When everything is written: check the size, with `sync` make the content durable, and close."""
        cdef fc_error err
        cdef int rc
        self._check_open()
        with nogil:
            rc = fc_finish_blob(&self.blob, sync, &err)
        if rc < 0:
            _fail(&err, self.path)

    def abandon(self):
        """Close without finishing."""
        fc_abandon_blob(&self.blob)

    cdef int _check_open(self) except -1:
        if self.blob.fd < 0:
            raise ValueError(f"{self.path!r} is closed")
        return 0


def allocate(sizes, *, bint inherited=True):
    """Give fresh, zeroed memory, in huge pages where it is much and the system has them.

    Parameters
    ----------
    sizes : sequence of int
        In bytes.
    inherited : bool
        Whether a forked child has the content. Without, it has zeros, and neither process copies the pages of the other
        when it writes there.

    Returns
    -------
    list of Mapping
        One a size, in one run of memory that goes away with the last of them. Each begins at a multiple of
        ``DIRECT_ALIGN``, and the bytes behind it, up to the next such multiple, are nobody else's.
    """
    cdef list wanted = list(sizes)
    cdef list mappings = _owners(<size_t>len(wanted))
    cdef fc_block *block
    cdef fc_error err
    cdef void *address = NULL
    cdef size_t at = 0, i
    cdef int rc
    cdef Mapping mapping
    total = 0
    if min(wanted, default=0) < 0:
        raise ValueError(f"memory of {min(wanted)} bytes")
    for size in wanted:
        total += -(-size // FC_DIRECT_ALIGN) * FC_DIRECT_ALIGN
    if total == 0:
        return mappings
    cdef size_t room = total
    with nogil:
        rc = fc_make_block(room, &block, &address, &err)
        if rc == 0 and not inherited:
            fc_advise(address, 0, room, _WIPEONFORK, &err)  # a wish
    if rc < 0:
        raise MemoryError(f"{total} bytes: {os.strerror(err.code)}")
    for i in range(<size_t>len(wanted)):
        mapping = mappings[i]
        mapping.address, mapping.size, mapping.block = <char *>address + at, wanted[i], fc_share_block(block)
        at += (mapping.size + FC_DIRECT_ALIGN - 1) // FC_DIRECT_ALIGN * FC_DIRECT_ALIGN
    fc_release_block(block)
    return mappings


def device_of(int fd):
    """The number of the device that an open file lies on, of all that ``os.stat`` has."""
    cdef struct_stat status
    if fstat(fd, &status) < 0:
        PyErr_SetFromErrno(OSError)
    return status.st_dev
