"""How rocksdb is set up; docs/decisions/0002-rocksdb.md has the measurements."""

from __future__ import annotations

from typing import Final

from rocksdict import (
    BlockBasedOptions,
    Cache,
    ChecksumType,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    ReadOptions,
    WriteOptions,
)

from aspenkv.engine.rocksdb.layout import LARGE_VALUE_BYTES_MIN

WRITE_BUFFER_BYTES: Final = 64 * 1024 * 1024
WRITE_BUFFERS_MAX: Final = 2
RECYCLED_LOGS_MAX: Final = 1
BLOCK_CACHE_BYTES: Final = 32 * 1024 * 1024
BLOB_FILE_BYTES: Final = 128 * 1024 * 1024
BLOB_GC_FORCE_THRESHOLD: Final = 0.3
OPEN_FILES_MAX: Final = 512
INFO_LOG_FILES_MAX: Final = 4
INFO_LOG_BYTES_MAX: Final = 1024 * 1024
BLOOM_BITS_PER_KEY: Final = 10
BACKGROUND_JOBS_MAX: Final = 2
DELETION_WINDOW_KEYS: Final = 1024
DELETIONS_IN_WINDOW: Final = 256
DELETION_RATIO: Final = 0.5


def database_options() -> Options:
    """Return the options to open or create a database."""
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(WRITE_BUFFERS_MAX)
    options.set_advise_random_on_open(False)  # files are read in sequence as often as not
    options.set_max_background_jobs(BACKGROUND_JOBS_MAX)
    options.set_max_open_files(OPEN_FILES_MAX)
    options.set_keep_log_file_num(INFO_LOG_FILES_MAX)
    options.set_max_log_file_size(INFO_LOG_BYTES_MAX)
    options.set_recycle_log_file_num(RECYCLED_LOGS_MAX)
    options.set_compression_type(DBCompressionType.none())
    options.set_enable_blob_files(True)
    options.set_min_blob_size(LARGE_VALUE_BYTES_MIN)
    options.set_blob_file_size(BLOB_FILE_BYTES)
    options.set_enable_blob_gc(False)  # until BlobGarbage turns it on; then all files take part
    options.set_blob_gc_age_cutoff(1.0)
    options.set_blob_gc_force_threshold(BLOB_GC_FORCE_THRESHOLD)
    options.add_compact_on_deletion_collector_factory(
        DELETION_WINDOW_KEYS, DELETIONS_IN_WINDOW, DELETION_RATIO
    )
    tables = BlockBasedOptions()
    tables.set_block_cache(Cache(BLOCK_CACHE_BYTES))
    # Not CRC-32C, which the builds of rocksdict compute without the processor's instruction.
    tables.set_checksum_type(ChecksumType.xxh3())
    tables.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    tables.set_cache_index_and_filter_blocks(True)
    tables.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options.set_block_based_table_factory(tables)
    return options


def write_options(*, wait: bool) -> WriteOptions:
    """Return the options of a write that waits while rocksdb must catch up, or fails instead."""
    options = WriteOptions()
    options.no_slowdown = not wait
    return options


def range_read_options(end: bytes, skips_max: int = 0) -> ReadOptions:
    """Return the options to iterate below ``end``.

    Hold on to them until the iterator is gone: it points into them, and rocksdict 0.3.29 does not
    keep them. A lower bound is for the caller to check: rocksdict takes it for an upper one.

    Args:
        end: the key behind the last.
        skips_max: deleted keys to step over before the iterator gives up; 0 is no bound.
    """
    options = ReadOptions()
    options.set_iterate_upper_bound(end)
    if skips_max:
        options.set_max_skippable_internal_keys(skips_max)
    return options
