/*
 * Stands between libfuse and the FUSE device: notes of each request what libfuse or pyfuse3 do not
 * hand on, and sets flags in the answer to FUSE_INIT that libfuse has no word for before 3.17.
 *
 * The numbers and structures are those of <linux/fuse.h>, the kernel's stable interface. Noting is
 * a few loads and stores a request, next to the system call that reads it.
 */
#include "extension.h"

#include <errno.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

/* A request as it is read: the header, then what belongs to its opcode. */
struct message {
    struct fuse_in_header header;
    union {
        struct fuse_setattr_in setattr;
        struct fuse_open_in open;
        struct fuse_create_in create;
        struct fuse_write_in write;
        struct fuse_flush_in flush;
        struct fuse_release_in release;
        struct fuse_interrupt_in interrupt;
    } body;
};

static PyObject *interrupted; /* called with the number of a request whose caller was signalled */
static struct wire_request last;
static uint64_t init_flags; /* to be set in the next answer, which is that to FUSE_INIT; 0: none */

void wire_set_interrupted(PyObject *callback)
{
    Py_XINCREF(callback);
    Py_XSETREF(interrupted, callback);
}

struct wire_request wire_last_request(void)
{
    return last;
}

/* Tell Python that the caller of a request was signalled. */
static void tell_interrupted(uint64_t unique)
{
    /* pyfuse3 holds the lock here; that it always will is not promised anywhere. */
    PyGILState_STATE state = PyGILState_Ensure();

    if (interrupted != NULL) {
        PyObject *result = PyObject_CallFunction(interrupted, "K", (unsigned long long)unique);

        if (result == NULL)
            PyErr_WriteUnraisable(interrupted); /* the caller waits on, as if nobody had told */
        Py_XDECREF(result);
    }
    PyGILState_Release(state);
}

/* Note what a request of `size` bytes says. What is too short is libfuse's to refuse. */
static void note(const struct message *message, size_t size)
{
    size_t body_size = size - sizeof(message->header);

#define HAS(member) (body_size >= sizeof(message->body.member))
    if (message->header.opcode == FUSE_INTERRUPT) {
        /* It is about another request, and none itself. */
        if (HAS(interrupt))
            tell_interrupted(message->body.interrupt.unique);
        return;
    }
    last.unique = message->header.unique;
    last.flags = 0;
    last.lock_owner = 0;
    switch (message->header.opcode) {
    case FUSE_SETATTR:
        if (HAS(setattr))
            last.flags = message->body.setattr.valid;
        break;
    case FUSE_OPEN:
        if (HAS(open))
            last.flags = message->body.open.open_flags;
        break;
    case FUSE_CREATE:
        if (HAS(create))
            last.flags = message->body.create.open_flags;
        break;
    case FUSE_WRITE:
        if (HAS(write)) {
            last.flags = message->body.write.write_flags;
            last.lock_owner = message->body.write.lock_owner;
        }
        break;
    case FUSE_FLUSH:
        if (HAS(flush))
            last.lock_owner = message->body.flush.lock_owner;
        break;
    case FUSE_RELEASE:
        if (HAS(release)) {
            last.flags = message->body.release.release_flags;
            last.lock_owner = message->body.release.lock_owner;
        }
        break;
    default:
        break;
    }
#undef HAS
}

/* Read a request for libfuse, as read(2). */
static ssize_t read_request(int fd, void *buffer, size_t size, void *userdata)
{
    ssize_t count = read(fd, buffer, size);

    (void)userdata; /* pyfuse3 gives none */
    if (count >= (ssize_t)sizeof(struct fuse_in_header))
        note(buffer, (size_t)count);
    return count;
}

/* Set flags in the answer to FUSE_INIT. */
static void patch_init(const struct iovec *parts, int count, uint64_t flags)
{
    const struct fuse_out_header *header = parts[0].iov_base;
    struct fuse_init_out *init;

    /* An answer has its header in the first part and its body in the second: libfuse's
       send_reply_iov(). An error has no body. */
    if (count < 2 || parts[0].iov_len != sizeof(*header) || header->error != 0 ||
        parts[1].iov_len < offsetof(struct fuse_init_out, flags2) + sizeof(init->flags2))
        return;
    init = parts[1].iov_base;
    init->flags |= (uint32_t)flags;
    init->flags2 |= (uint32_t)(flags >> 32);
    if (init->flags2 != 0)
        init->flags |= FUSE_INIT_EXT; /* else the kernel does not look at them */
}

/* Send an answer or a notification for libfuse, as writev(2). Any thread may. */
static ssize_t send_answer(int fd, struct iovec *parts, int count, void *userdata)
{
    (void)userdata;
    if (init_flags != 0) { /* only before FUSE_INIT is answered, when there is one thread */
        patch_init(parts, count, init_flags);
        init_flags = 0;
    }
    return writev(fd, parts, count);
}

int wire_attach(struct fuse_session *session, uint64_t flags)
{
    static const struct fuse_custom_io io = {.writev = send_answer, .read = read_request};
    int error;

    memset(&last, 0, sizeof(last));
    /* Meant for sessions that libfuse has not mounted itself, but the descriptor may be any. */
    error = fuse_session_custom_io(session, &io, fuse_session_fd(session));
    init_flags = error == 0 ? flags : 0;
    return error;
}
