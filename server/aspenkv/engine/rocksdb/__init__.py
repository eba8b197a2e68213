"""The rocksdb engine: one directory, one process."""

from aspenkv.engine.rocksdb.engine import RocksdbEngine

__all__ = ["RocksdbEngine"]
