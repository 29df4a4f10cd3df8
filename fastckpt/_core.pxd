"""What csrc/ offers (the contract of each function is in its header), and the class that owns a map."""

cimport cython
from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint32_t, uint64_t
from posix.types cimport off_t


cdef extern from "error.h" nogil:
    int FC_SIZE_CHANGED

    struct fc_error:
        int code
        const char *op
        long long wanted
        long long found


cdef extern from "io.h" nogil:
    unsigned int FC_RENAME_NOREPLACE
    unsigned int FC_RENAME_EXCHANGE
    int fc_open_file(int dirfd, const char *path, off_t *size, fc_error *err)
    int fc_stat_file(int dirfd, const char *path, off_t *size, fc_error *err)
    ssize_t fc_read_at(int fd, void *data, size_t length, off_t offset, fc_error *err)
    void fc_close_read(int fd)
    int fc_sync_file(int fd, fc_error *err)
    int fc_sync_system(int fd, fc_error *err)
    int fc_rename(int olddir, const char *old, int newdir, const char *new, unsigned int flags, fc_error *err)


cdef extern from "names.h" nogil:
    ssize_t fc_read_names(int fd, void *room, size_t size, fc_error *err)
    const char *fc_next_name(const void *room, size_t used, size_t *at)
    uint64_t fc_hash_name(const char *name, size_t length)


cdef extern from "writer.h" nogil:
    struct fc_writer:
        off_t size

    int fc_open_writer(fc_writer *writer, int dirfd, const char *path, off_t size_hint, bint writeback, fc_error *err)
    int fc_append_piece(fc_writer *writer, const void *data, size_t length, fc_error *err)
    int fc_finish_writer(fc_writer *writer, bint sync, fc_error *err)
    void fc_abandon_writer(fc_writer *writer)

    struct fc_tensor:
        const char *folder
        const void *out
        const void *meta
        size_t out_size
        size_t meta_size

    int fc_write_tensors(int dirfd, const fc_tensor *tensors, size_t count, bint writeback, size_t *failed,
                         const char **file, fc_error *err)


cdef extern from "direct.h" nogil:
    size_t FC_DIRECT_ALIGN

    struct fc_gate:
        pass
    int fc_open_gate(fc_gate *gate, unsigned places, fc_error *err)
    void fc_close_gate(fc_gate *gate)

    struct fc_blob:
        int fd
        off_t size

    int fc_create_blob(fc_blob *blob, int dirfd, const char *path, off_t size, bint direct, bint writeback,
                       fc_error *err)
    bint fc_is_direct(fc_blob *blob)
    int fc_write_part(fc_blob *blob, const void *data, size_t length, off_t offset, void *bounce, size_t room,
                      fc_gate *gate, fc_error *err)
    int fc_finish_blob(fc_blob *blob, bint sync, fc_error *err)
    void fc_abandon_blob(fc_blob *blob)


cdef extern from "pool.h" nogil:
    struct fc_turns:
        pass

    void fc_finish_turns(fc_turns *turns, size_t end)
    void fc_end_turns(fc_turns *turns)


cdef extern from "blocks.h" nogil:
    struct fc_block:
        pass

    int fc_make_block(size_t size, fc_block **block, void **address, fc_error *err)
    int fc_make_file_block(int dirfd, const char *path, off_t size, fc_block **block, void **address, off_t *found,
                           fc_error *err)
    int fc_make_open_block(int fd, off_t size, fc_block **block, void **address, fc_error *err)
    fc_block *fc_share_block(fc_block *block)
    void fc_release_block(fc_block *block)


cdef extern from "reader.h" nogil:
    struct fc_folder:
        const char *name
        bint ask
        bint cold
        const char *meta
        int64_t meta_size
        int64_t out_size
        void *address
        fc_block *meta_block
        fc_block *blob_block

    enum fc_what:
        FC_METAS_AND_SIZES
        FC_METAS
        FC_SIZES
        FC_BLOBS

    enum fc_cold:
        FC_COLD_MAP
        FC_COLD_LEAVE
        FC_COLD_HUGE
        FC_COLD_ADVISE

    struct fc_run:
        int dirfd
        fc_what what
        fc_cold cold
        bint ahead
        fc_folder *folders
        size_t maps
        size_t count

    void fc_scan_folders(fc_run *runs, size_t count, size_t threads)
    fc_turns *fc_begin_scan(fc_run *runs, size_t count, size_t threads)

    struct fc_part:
        const char *path
        off_t offset
        void *data
        size_t length
        size_t room
        off_t size
        off_t found
        fc_error err

    int fc_read_parts(int dirfd, fc_part *parts, size_t count, size_t threads, bint mapped, size_t *failed)


cdef extern from "copy.h" nogil:
    struct fc_copy_job:
        void *to
        const void *source "from"
        size_t length

    void fc_copy_all(fc_copy_job *jobs, size_t count, size_t threads)


cdef extern from "map.h" nogil:
    int64_t FC_HUGE_PAGE

    struct fc_map_job:
        const char *path
        off_t size
        off_t found
        void *address

    bint fc_hold_maps()
    size_t fc_count_maps()
    int fc_map_files(int dirfd, fc_map_job *jobs, size_t count, int advice, size_t *failed, fc_error *err)
    void fc_unmap(void *address, size_t size)
    int fc_advise(void *address, size_t offset, size_t length, int advice, fc_error *err)


cdef extern from "resident.h" nogil:
    bint fc_is_resident_at(int dirfd, const char *path)


cdef extern from "canon.h" nogil:
    size_t FC_DIGEST_LENGTH

    struct fc_meta:
        const int64_t *dims
        int ndim
        int number
        int64_t place
        int64_t count
        const char *digest
        int64_t comment_at

    bint fc_parse_canon(const char *data, size_t length, fc_meta *meta)


cdef extern from "table.h" nogil:
    int64_t FC_COPY_ALIGN

    struct fc_row:
        const char *folder
        size_t folder_length
        const char *meta
        size_t meta_length
        int64_t nbytes
        int64_t copy_at

    struct fc_table:
        pass

    struct fc_head:
        int64_t count
        int64_t table_length
        int64_t copies_at
        int64_t size
        size_t object_at
        size_t object_length
        size_t length
        size_t sealed
        uint32_t table_crc
        uint32_t seal

    bint fc_parse_head(const char *text, size_t length, fc_head *head)
    bint fc_open_table(fc_table *table, const char *text, size_t length, char *room)
    int fc_take_row(fc_table *table, fc_row *row)


@cython.final
cdef class Loan:
    cdef void *address
    cdef size_t size
    cdef object owner


@cython.final
cdef class Mapping:
    cdef void *address
    cdef size_t size
    cdef fc_block *block  # what the memory is a part of; NULL if it is a map
    cdef object __weakref__
