/*
 * What the parts of the extension know of each other.
 *
 *   session.c   stands before libfuse's fuse_session_new(): adds handlers, and settles FUSE_INIT
 *   requests.c  the handlers: each makes a request a Python object, which answers it exactly once
 *   wire.c      stands between libfuse and the device: what libfuse or pyfuse3 keep to themselves
 *   module.c    the Python module aspenfs.fuse_extension._native
 *
 * A process has one FUSE session, for pyfuse3 keeps it in a global variable; so do these files.
 */
#ifndef ASPENFS_FUSE_EXTENSION_H
#define ASPENFS_FUSE_EXTENSION_H

#define PY_SSIZE_T_CLEAN /* "#" in formats takes Py_ssize_t; Python.h comes before all others */
#include <Python.h>

#define FUSE_USE_VERSION 314 /* the first with fuse_session_custom_io() */
#include <fuse_lowlevel.h>

#include <stdbool.h>
#include <stdint.h>

/* The requests that the extension hands to Python; the names are in requests.c. */
enum operation {
    OPERATION_GETLK,
    OPERATION_SETLK,
    OPERATION_FLOCK,
    OPERATION_FALLOCATE,
    OPERATION_LSEEK,
    OPERATION_COPY_FILE_RANGE,
    OPERATION_COUNT
};

/* What the next session is to be like; all of it is set before pyfuse3 makes the session. */
struct settings {
    bool is_armed;                     /* false: leave sessions as they are */
    bool serves[OPERATION_COUNT];      /* the kernel does without the others */
    uint32_t want;                     /* FUSE_CAP_* to ask for, where the kernel has them */
    uint32_t do_not_want;              /* FUSE_CAP_* that libfuse or pyfuse3 ask for */
    unsigned int max_background;       /* requests; 0: as libfuse has it */
    unsigned int congestion_threshold; /* requests; 0: as libfuse has it */
    bool kill_privileges;              /* ask for FUSE_HANDLE_KILLPRIV_V2 */
    bool direct_mmap;                  /* ask for FUSE_DIRECT_IO_ALLOW_MMAP */
};

/* What the kernel said of the request that was read last. */
struct wire_request {
    uint64_t unique;     /* the kernel's number for it */
    uint32_t flags;      /* of WRITE, OPEN, CREATE, RELEASE; of SETATTR the field "valid"; else 0 */
    uint64_t lock_owner; /* of FLUSH, RELEASE and WRITE; else 0 */
};

/* session.c */
extern struct settings session_settings;
bool session_is_extended(void); /* from FUSE_INIT to the end of the session */
bool session_allows_direct_mmap(void);

/* requests.c */
extern PyTypeObject request_type;
extern const char *const operation_names[OPERATION_COUNT];
void requests_set_receiver(PyObject *receiver);              /* steals nothing; NULL: none */
void requests_add_handlers(struct fuse_lowlevel_ops *table, const bool serves[OPERATION_COUNT]);
void requests_abandon_all(void);                             /* the session ends */

/* wire.c */
void wire_set_interrupted(PyObject *interrupted);            /* steals nothing; NULL: none */
int wire_attach(struct fuse_session *session, uint64_t flags); /* of FUSE_INIT; 0, or -errno */
struct wire_request wire_last_request(void);

#endif
