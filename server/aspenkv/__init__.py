"""aspenkv: the transactional, ordered key-value server under aspenfs."""
