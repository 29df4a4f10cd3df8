# Part of _core.pyx: the class that owns memory of files, and how a tensor library takes it over.

# A tensor as DLPack (dmlc/dlpack, major version 0) hands it from one library to another.
cdef struct _DLTensor:
    void *data
    int32_t device_type
    int32_t device_id
    int32_t ndim
    uint8_t code
    uint8_t bits
    uint16_t lanes
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset


cdef struct _DLManagedTensor:
    _DLTensor tensor
    void *context
    void (*deleter)(_DLManagedTensor *) noexcept nogil

cdef const char *_DLTENSOR = "dltensor"
cdef int32_t _DL_CPU = 1

cdef enum:
    _DIMS_MAX = 64  # as many as torch and numpy know


cdef void _delete_tensor(_DLManagedTensor *managed) noexcept nogil:
    if Py_IsInitialized():  # a tensor may outlive the interpreter; its memory then goes with the process
        with gil:
            Py_DECREF(<object>managed.context)
    free(managed)


cdef void _delete_capsule(object capsule) noexcept:
    if PyCapsule_IsValid(capsule, _DLTENSOR):  # nobody took the tensor
        _delete_tensor(<_DLManagedTensor *>PyCapsule_GetPointer(capsule, _DLTENSOR))


cdef object _make_capsule(Mapping mapping, int code, size_t bits, const int64_t *dims, size_t ndim):
    """A capsule of the whole memory, which has as many bytes, and more than none."""
    cdef size_t i
    cdef _DLManagedTensor *managed = <_DLManagedTensor *>malloc(sizeof(_DLManagedTensor) + ndim * sizeof(int64_t))
    cdef _DLTensor *tensor
    if managed == NULL:
        raise MemoryError
    tensor = &managed.tensor
    tensor.data = mapping.address
    tensor.device_type, tensor.device_id = _DL_CPU, 0
    tensor.ndim, tensor.code, tensor.bits, tensor.lanes = <int32_t>ndim, <uint8_t>code, <uint8_t>bits, 1
    tensor.shape, tensor.strides, tensor.byte_offset = <int64_t *>(managed + 1), NULL, 0
    for i in range(ndim):
        tensor.shape[i] = dims[i]
    managed.context, managed.deleter = <void *>mapping, _delete_tensor
    try:
        capsule = PyCapsule_New(managed, _DLTENSOR, _delete_capsule)
    except BaseException:
        free(managed)
        raise
    Py_INCREF(mapping)
    return capsule


cdef object _take_over(Mapping mapping, object code, size_t bits, tuple shape):
    """The same for any shape."""
    cdef int64_t dims[_DIMS_MAX]
    cdef size_t left = mapping.size, ndim = 0
    for dim in shape:
        if ndim == _DIMS_MAX or dim < 1 or left % <size_t>dim:
            left = 0
            break
        left //= <size_t>dim
        dims[ndim] = dim
        ndim += 1
    if left * 8 != bits or bits > 128:
        raise ValueError(f"{mapping.size} bytes are no tensor of {shape} with {bits} bits an element")
    return _make_capsule(mapping, code, bits, dims, ndim)


cdef Mapping _part_of(Mapping whole, size_t offset, size_t size):
    if whole.block == NULL or offset > whole.size or size > whole.size - offset:
        raise ValueError(f"{size} bytes at {offset} are no part of shared memory of {whole.size} bytes")
    cdef Mapping part = Mapping.__new__(Mapping)
    part.address, part.size, part.block = <char *>whole.address + offset, size, fc_share_block(whole.block)
    return part


cdef int _lend(object owner, Py_buffer *view, void *address, size_t size, int flags) except -1:
    """Let a view have an owner's memory, writable."""
    return PyBuffer_FillInfo(view, owner, address if size > 0 else &_nothing, <Py_ssize_t>size, 0, flags)


@cython.final
cdef class Mapping:
    """A whole file as private, writable memory, through the buffer protocol (bytes, one dimension).

    Whoever uses the memory holds this object; when nobody does, it is unmapped. It outlives the file's name, and what
    is changed in it stays in memory. The bytes of small files are a part of memory that several of these share. Made by
    `map_files` and `scan`; one that was made otherwise is empty.
    """

    def __dealloc__(self):
        if self.block == NULL:
            fc_unmap(self.address, self.size)
        else:
            fc_release_block(self.block)

    def __len__(self):
        return self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        _lend(self, view, self.address, self.size, flags)

    def part(self, size_t offset, size_t size):
        """Give some of the bytes as an object of their own, of memory from `allocate` or of a small file.

        Parameters
        ----------
        offset, size : int
            Which, in bytes.
        """
        return _part_of(self, offset, size)

    def parts(self, dict places not None, dict sizes not None):
        """Give `part` for many: a dict of them, for places and sizes in bytes that have the same keys."""
        cdef dict parts = {}
        for key, at in places.items():
            parts[key] = _part_of(self, at, sizes[key])
        return parts

    def dlpack(self, int code, size_t bits, tuple shape not None):
        """Give the whole memory as a tensor in C order.

        Parameters
        ----------
        code, bits : int
            DLPack's code of the type, and how many bits an element has.
        shape : tuple of int
            With `bits`, exactly as many bytes as this has, and more than none.

        Returns
        -------
        capsule
            A "dltensor", for one ``from_dlpack``.
        """
        return _take_over(self, code, bits, shape)

    def advise(self, int advice, Py_ssize_t offset=0, length=None):
        """Tell the kernel how the memory will be used, or have it read in now (``MADV_POPULATE_READ``).

        Parameters
        ----------
        advice : int
            One of the ``MADV_*`` constants.
        offset : int
            Where it begins to hold.
        length : int, optional
            For how many bytes; to the end if not given.
        """
        cdef fc_error err
        cdef int rc
        cdef Py_ssize_t rest = <Py_ssize_t>self.size - offset
        cdef Py_ssize_t count = rest if length is None else length
        if offset < 0 or not 0 <= count <= rest:
            raise ValueError(f"{count} bytes at {offset} are not within a map of {self.size} bytes")
        if count == 0 or self.block != NULL:
            return
        with nogil:
            rc = fc_advise(self.address, <size_t>offset, <size_t>count, advice, &err)
        if rc < 0:
            _fail(&err, None)


@cython.final
cdef class Loan:
    """Memory that another object owns, writable, through the buffer protocol (bytes, one dimension).

    Parameters
    ----------
    address, size : int
        Where it is, and how many bytes; they are believed.
    owner : object
        Kept as long as this is.
    """

    def __cinit__(self, size_t address, size_t size, object owner):
        self.address, self.size, self.owner = <void *>address, size, owner

    def __getbuffer__(self, Py_buffer *view, int flags):
        _lend(self, view, self.address, self.size, flags)


def hand_over(buffers, metas, take):
    """Make tensors over memory, where nothing about them is unusual.

    Parameters
    ----------
    buffers : sequence of buffer
        The memory of each.
    metas : sequence of Meta
        As `fastckpt.meta.Meta`: shape and dtype, and six more fields.
    take : callable
        Makes a tensor of a capsule "dltensor".

    Returns
    -------
    list
        None for what is empty, no `Mapping`, or of a dtype without a ``dlpack`` code.
    """
    cdef list made = []
    for buffer, meta in zip(buffers, metas):
        tensor = None
        shape, dtype, _, _, _, _, _, _ = _fields(meta)
        if type(buffer) is Mapping and (<Mapping>buffer).size > 0 and (code := dtype.dlpack) is not None:
            tensor = take(_take_over(buffer, code, 8 * <size_t>dtype.itemsize, shape))
        made.append(tensor)
    return made


def copy(pairs, *, size_t threads=1):
    """Copy bytes without the GIL; large runs of them around the processor's caches.

    Parameters
    ----------
    pairs : iterable of tuple
        ``(to, source)`` each: C-contiguous buffers of as many bytes, all of them different memory; `to` is writable.
    threads : int
        How many share the bytes, at most; the caller's is one of them.
    """
    cdef list wanted = list(pairs)
    cdef size_t count = <size_t>len(wanted), taken = 0
    cdef _Room room = _Room(count, sizeof(fc_copy_job)), held = _Room(2 * count, sizeof(Py_buffer))
    cdef fc_copy_job *jobs = <fc_copy_job *>room.data
    cdef Py_buffer *views = <Py_buffer *>held.data
    try:
        for to, source in wanted:
            _take_buffer(to, &views[taken], PyBUF_WRITABLE)
            taken += 1
            _take_buffer(source, &views[taken], 0)
            taken += 1
            if views[taken - 1].len != views[taken - 2].len:
                raise ValueError("as many bytes are wanted on both sides")
            jobs[taken // 2 - 1].to, jobs[taken // 2 - 1].source = views[taken - 2].buf, views[taken - 1].buf
            jobs[taken // 2 - 1].length = <size_t>views[taken - 1].len
        with nogil:
            fc_copy_all(jobs, count, threads)
    finally:
        while taken > 0:
            taken -= 1
            PyBuffer_Release(&views[taken])


def hold_maps():
    """Keep some maps that the process may have free for memory, as `scan` does; False where there are not so many."""
    return fc_hold_maps()


def count_maps():
    """Count the maps that this module has made, of files and of memory."""
    return fc_count_maps()
