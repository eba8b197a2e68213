/*
 * Stands before libfuse's fuse_session_new(), which pyfuse3 calls with its table of handlers.
 *
 * This shared object is loaded with RTLD_GLOBAL before pyfuse3 is, so the dynamic linker finds the
 * functions of this file first. They hand on a copy of the table with our handlers added.
 */
#define _GNU_SOURCE /* RTLD_NEXT */
#include "extension.h"

#include <dlfcn.h>
#include <linux/fuse.h>
#include <string.h>

#define EXPORTED __attribute__((visibility("default"))) /* all else is hidden, see setup.py */

/* The minor version of the FUSE protocol that brought FUSE_HANDLE_KILLPRIV_V2 (Linux 5.11). */
#define KILLPRIV_V2_MINOR 33

/* The same for FUSE_DIRECT_IO_ALLOW_MMAP (Linux 6.6), which older headers do not name: bit 4 of
   the second word of flags. */
#define DIRECT_MMAP_MINOR 39
#define DIRECT_MMAP_FLAG (UINT64_C(1) << 36)

/* Since libfuse 3.17 a macro that calls fuse_session_new_versioned(); we define the function. */
#undef fuse_session_new

struct libfuse_version; /* since libfuse 3.17; only handed on here */

typedef struct fuse_session *new_function(struct fuse_args *args,
                                          const struct fuse_lowlevel_ops *table, size_t table_size,
                                          void *userdata);
typedef struct fuse_session *new_versioned_function(struct fuse_args *args,
                                                    const struct fuse_lowlevel_ops *table,
                                                    size_t table_size,
                                                    struct libfuse_version *version,
                                                    void *userdata);

struct settings session_settings;

static struct fuse_lowlevel_ops extended; /* pyfuse3's handlers and ours */
static void (*inner_init)(void *userdata, struct fuse_conn_info *conn);
static struct fuse_session *session;      /* NULL: none, or it is not ours to extend */
static bool is_extended;                  /* FUSE_INIT was answered as we want it */
static bool allows_direct_mmap;           /* so was it asked to share mappings of direct files */

bool session_is_extended(void)
{
    return is_extended;
}

bool session_allows_direct_mmap(void)
{
    return is_extended && allows_direct_mmap;
}

/* Answer FUSE_INIT: first as pyfuse3 does, then with what it leaves out. */
static void init(void *userdata, struct fuse_conn_info *conn)
{
    const struct settings *wanted = &session_settings;
    uint32_t locks = FUSE_CAP_POSIX_LOCKS | FUSE_CAP_FLOCK_LOCKS;
    uint64_t flags = 0; /* that only wire.c can set */

    if (inner_init != NULL)
        inner_init(userdata, conn);
    /* Like pyfuse3, use the field "want": libfuse 3.17 and newer honour it in place of want_ext if
       it alone was changed. */
    conn->want |= wanted->want & conn->capable;
    conn->want &= ~wanted->do_not_want;
    /* Requests that come through a pipe would pass wire.c by; libfuse offers splicing before it
       knows of that. Reading is no slower: pyfuse3 copies the data either way. */
    conn->want &= ~(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
    if (wanted->max_background != 0)
        conn->max_background = wanted->max_background;
    if (wanted->congestion_threshold != 0)
        conn->congestion_threshold = wanted->congestion_threshold;

    if (wanted->kill_privileges && conn->proto_minor >= KILLPRIV_V2_MINOR)
        flags |= FUSE_HANDLE_KILLPRIV_V2;
    allows_direct_mmap = wanted->direct_mmap && conn->proto_minor >= DIRECT_MMAP_MINOR;
    if (allows_direct_mmap)
        flags |= DIRECT_MMAP_FLAG;
    is_extended = wire_attach(session, flags) == 0;
    if (!is_extended)
        conn->want &= ~locks; /* without wire.c nobody learns the owner whose locks a close drops */
}

/* The last word of a session, from fuse_session_destroy(): its requests go with it. */
static void destroy(void *userdata)
{
    (void)userdata; /* pyfuse3 gives none, and has no handler of its own for this */
    requests_abandon_all();
    is_extended = false;
    session = NULL;
}

/* Return the table to hand to libfuse, and its size in bytes through *size. */
static const struct fuse_lowlevel_ops *extend(const struct fuse_lowlevel_ops *table, size_t *size)
{
    /* fuse_session_new() of libfuse 3.17 and newer calls fuse_session_new_versioned(): once is
       enough. */
    if (!session_settings.is_armed || table == &extended)
        return table;
    memset(&extended, 0, sizeof(extended));
    /* Built with other headers, its table may be longer or shorter than ours. */
    memcpy(&extended, table, *size < sizeof(extended) ? *size : sizeof(extended));
    inner_init = extended.init;
    extended.init = init;
    extended.destroy = destroy;
    requests_add_handlers(&extended, session_settings.serves);
    is_extended = false;
    *size = sizeof(extended);
    return &extended;
}

EXPORTED struct fuse_session *fuse_session_new(struct fuse_args *args,
                                               const struct fuse_lowlevel_ops *table,
                                               size_t table_size, void *userdata)
{
    const struct fuse_lowlevel_ops *handed_on = extend(table, &table_size);
    new_function *next = (new_function *)dlsym(RTLD_NEXT, "fuse_session_new");
    struct fuse_session *made = next == NULL ? NULL : next(args, handed_on, table_size, userdata);

    if (handed_on == &extended)
        session = made;
    return made;
}

/* What programs built with libfuse 3.17 or newer call. The older ones never do, and lack it. */
EXPORTED struct fuse_session *fuse_session_new_versioned(struct fuse_args *args,
                                                         const struct fuse_lowlevel_ops *table,
                                                         size_t table_size,
                                                         struct libfuse_version *version,
                                                         void *userdata)
{
    const struct fuse_lowlevel_ops *handed_on = extend(table, &table_size);
    new_versioned_function *next =
        (new_versioned_function *)dlsym(RTLD_NEXT, "fuse_session_new_versioned");
    struct fuse_session *made =
        next == NULL ? NULL : next(args, handed_on, table_size, version, userdata);

    if (handed_on == &extended)
        session = made;
    return made;
}
