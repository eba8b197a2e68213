"""aspenfs: a POSIX filesystem whose every byte lives in a transactional key-value cluster."""
