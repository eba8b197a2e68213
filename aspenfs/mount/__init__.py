"""The composition root: everything a mount consists of is built here, and nowhere else.

:mod:`aspenfs.mount.serving` runs a mount; :mod:`aspenfs.mount.storage` opens a data directory and
needs no FUSE library, so that a look inside works on a machine without one.
"""

import aspenfs.fuse_extension  # noqa: F401  # before anything here imports pyfuse3: see there
