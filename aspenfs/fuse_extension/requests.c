/*
 * The handlers that pyfuse3 lacks. Each makes the request a Python object and hands that to a
 * receiver, which must not block: it starts a task. The object answers exactly once, at the latest
 * when it is freed or when the session ends.
 *
 * Handlers run inside fuse_session_process_buf(), which pyfuse3 calls in the thread of its event
 * loop. They have no caller to report a Python error to, so they answer EIO.
 */
#include "extension.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define ERRNO_MAX 999 /* fuse_reply_err() refuses larger ones */

/* The most that one copy is asked for, in bytes: the answer has 32 bits, and what is left is asked
   for anew, from the start of a page. */
#define COPY_MAX (UINT32_MAX & ~(size_t)4095)

const char *const operation_names[OPERATION_COUNT] = {
    [OPERATION_GETLK] = "getlk",
    [OPERATION_SETLK] = "setlk",
    [OPERATION_FLOCK] = "flock",
    [OPERATION_FALLOCATE] = "fallocate",
    [OPERATION_LSEEK] = "lseek",
    [OPERATION_COPY_FILE_RANGE] = "copy_file_range",
};

/* One request. Those that are not answered are in a list, guarded like all here by the GIL. */
typedef struct request {
    PyObject_HEAD
    fuse_req_t handle; /* NULL: answered */
    enum operation operation;
    uint64_t unique;
    PyObject *arguments; /* a tuple */
    struct request *previous;
    struct request *next;
} Request;

static PyObject *receiver;
static Request *unanswered; /* the first of the list */

void requests_set_receiver(PyObject *callback)
{
    Py_XINCREF(callback);
    Py_XSETREF(receiver, callback);
}

/* --- answers ------------------------------------------------------------------------------- */

/* Return libfuse's handle, and take it from the request: whoever has it must answer. */
static fuse_req_t take_handle(Request *self)
{
    fuse_req_t handle = self->handle;

    self->handle = NULL;
    if (self->previous != NULL)
        self->previous->next = self->next;
    else
        unanswered = self->next;
    if (self->next != NULL)
        self->next->previous = self->previous;
    self->previous = self->next = NULL;
    return handle;
}

/* Raise RuntimeError and return false if the request was answered before. */
static bool can_answer(const Request *self)
{
    if (self->handle == NULL)
        PyErr_Format(PyExc_RuntimeError, "this %s was answered before",
                     operation_names[self->operation]);
    return self->handle != NULL;
}

/* Python gets what libfuse's functions return: 0, or the negated errno of the device. */
static PyObject *sent(int result)
{
    return PyLong_FromLong(result);
}

static PyObject *reply_error(PyObject *object, PyObject *arguments)
{
    Request *self = (Request *)object;
    int number;

    if (!PyArg_ParseTuple(arguments, "i:reply_error", &number) || !can_answer(self))
        return NULL;
    /* The kernel takes success in place of data badly, and libfuse no number out of range. */
    if (number <= 0 || number > ERRNO_MAX)
        number = EIO;
    return sent(fuse_reply_err(take_handle(self), number));
}

static PyObject *reply_done(PyObject *object, PyObject *no_arguments)
{
    Request *self = (Request *)object;

    (void)no_arguments;
    if (!can_answer(self))
        return NULL;
    return sent(fuse_reply_err(take_handle(self), 0)); /* libfuse's word for success */
}

static PyObject *reply_count(PyObject *object, PyObject *arguments)
{
    Request *self = (Request *)object;
    long long count;

    if (!PyArg_ParseTuple(arguments, "L:reply_count", &count) || !can_answer(self))
        return NULL;
    if (count < 0 || count > UINT32_MAX) { /* the field of the answer has 32 bits */
        PyErr_SetString(PyExc_OverflowError, "the count does not fit the answer");
        return NULL;
    }
    return sent(fuse_reply_write(take_handle(self), (size_t)count));
}

static PyObject *reply_offset(PyObject *object, PyObject *arguments)
{
    Request *self = (Request *)object;
    long long offset;

    if (!PyArg_ParseTuple(arguments, "L:reply_offset", &offset) || !can_answer(self))
        return NULL;
    return sent(fuse_reply_lseek(take_handle(self), offset));
}

static PyObject *reply_lock(PyObject *object, PyObject *arguments)
{
    Request *self = (Request *)object;
    struct flock lock = {.l_whence = SEEK_SET};
    long long start, end;
    int pid;

    if (!PyArg_ParseTuple(arguments, "hLLi:reply_lock", &lock.l_type, &start, &end, &pid) ||
        !can_answer(self))
        return NULL;
    lock.l_start = start;
    lock.l_len = end == LLONG_MAX ? 0 : end - start + 1; /* 0: to the end of the file, see fcntl(2) */
    lock.l_pid = pid;
    return sent(fuse_reply_lock(take_handle(self), &lock));
}

/* Answer all that is left: after this libfuse frees what they refer to. */
void requests_abandon_all(void)
{
    PyGILState_STATE state = PyGILState_Ensure();

    while (unanswered != NULL)
        fuse_reply_err(take_handle(unanswered), ENOTCONN);
    PyGILState_Release(state);
}

/* --- the Python type ----------------------------------------------------------------------- */

static void dealloc(PyObject *object)
{
    Request *self = (Request *)object;

    if (self->handle != NULL) /* a bug of the receiver must not leave a caller waiting for ever */
        fuse_reply_err(take_handle(self), EIO);
    Py_CLEAR(self->arguments);
    Py_TYPE(object)->tp_free(object);
}

static PyObject *get_operation(PyObject *object, void *closure)
{
    (void)closure;
    return PyUnicode_FromString(operation_names[((Request *)object)->operation]);
}

static PyObject *get_arguments(PyObject *object, void *closure)
{
    (void)closure;
    return Py_NewRef(((Request *)object)->arguments);
}

static PyObject *get_unique(PyObject *object, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((Request *)object)->unique);
}

static PyObject *get_is_answered(PyObject *object, void *closure)
{
    (void)closure;
    return PyBool_FromLong(((Request *)object)->handle == NULL);
}

static PyGetSetDef attributes[] = {
    {"operation", get_operation, NULL, "The name of the handler.", NULL},
    {"arguments", get_arguments, NULL, "What the handler is called with.", NULL},
    {"unique", get_unique, NULL, "The kernel's number for the request.", NULL},
    {"is_answered", get_is_answered, NULL, "Whether a reply_* method was called.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef methods[] = {
    {"reply_error", reply_error, METH_VARARGS, "Answer with an errno."},
    {"reply_done", reply_done, METH_NOARGS, "Answer that it was done."},
    {"reply_count", reply_count, METH_VARARGS, "Answer with a count of bytes."},
    {"reply_offset", reply_offset, METH_VARARGS, "Answer with an offset in bytes."},
    {"reply_lock", reply_lock, METH_VARARGS, "Answer with a lock: type, start, end, pid."},
    {NULL, NULL, 0, NULL},
};

PyTypeObject request_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "aspenfs.fuse_extension._native.Request",
    .tp_doc = "A request of the kernel, to be answered once.",
    .tp_basicsize = sizeof(Request),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .tp_dealloc = dealloc,
    .tp_getset = attributes,
    .tp_methods = methods,
};

/* --- the handlers -------------------------------------------------------------------------- */

/* Make a request an object with these arguments, which it takes; NULL with a Python error set. */
static Request *new_request(fuse_req_t handle, enum operation operation, PyObject *arguments)
{
    Request *self = arguments == NULL ? NULL : PyObject_New(Request, &request_type);

    if (self == NULL) {
        Py_XDECREF(arguments);
        return NULL;
    }
    self->handle = handle;
    self->operation = operation;
    self->unique = wire_last_request().unique;
    self->arguments = arguments;
    self->previous = NULL;
    self->next = unanswered;
    if (unanswered != NULL)
        unanswered->previous = self;
    unanswered = self;
    return self;
}

/* Hand a request to Python. `format` and the rest are those of Py_BuildValue() for a tuple. */
static void hand_over(fuse_req_t handle, enum operation operation, const char *format, ...)
{
    PyGILState_STATE state = PyGILState_Ensure(); /* held already by pyfuse3, as in wire.c */
    PyObject *arguments;
    Request *request;
    va_list values;

    va_start(values, format);
    arguments = Py_VaBuildValue(format, values);
    va_end(values);
    request = new_request(handle, operation, arguments);
    if (request == NULL) {
        PyErr_WriteUnraisable(receiver); /* out of memory */
        fuse_reply_err(handle, ENOMEM);
    } else if (receiver == NULL) {
        fuse_reply_err(take_handle(request), ENOTCONN); /* the mount is ending */
    } else {
        PyObject *result = PyObject_CallOneArg(receiver, (PyObject *)request);

        if (result == NULL)
            PyErr_WriteUnraisable(receiver); /* the request answers EIO when it is freed */
        Py_XDECREF(result);
    }
    Py_XDECREF(request);
    PyGILState_Release(state);
}

/* As 64-bit arguments of Py_BuildValue(), whatever the types of the platform are. */
#define SIGNED(value) ((long long)(value))
#define UNSIGNED(value) ((unsigned long long)(value))

/* The last byte of a lock, included; the largest offset stands for the end of the file. */
static long long last_byte(const struct flock *lock)
{
    return lock->l_len == 0 ? LLONG_MAX : SIGNED(lock->l_start) + SIGNED(lock->l_len) - 1;
}

static void handle_getlk(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *file,
                         struct flock *lock)
{
    hand_over(request, OPERATION_GETLK, "(KKKiLLi)", UNSIGNED(ino), UNSIGNED(file->fh),
              UNSIGNED(file->lock_owner), (int)lock->l_type, SIGNED(lock->l_start),
              last_byte(lock), (int)lock->l_pid);
}

static void handle_setlk(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *file,
                         struct flock *lock, int sleep)
{
    hand_over(request, OPERATION_SETLK, "(KKKiLLiO)", UNSIGNED(ino), UNSIGNED(file->fh),
              UNSIGNED(file->lock_owner), (int)lock->l_type, SIGNED(lock->l_start),
              last_byte(lock), (int)lock->l_pid, sleep ? Py_True : Py_False);
}

static void handle_flock(fuse_req_t request, fuse_ino_t ino, struct fuse_file_info *file,
                         int operation)
{
    hand_over(request, OPERATION_FLOCK, "(KKKi)", UNSIGNED(ino), UNSIGNED(file->fh),
              UNSIGNED(file->lock_owner), operation);
}

static void handle_fallocate(fuse_req_t request, fuse_ino_t ino, int mode, off_t offset,
                             off_t length, struct fuse_file_info *file)
{
    hand_over(request, OPERATION_FALLOCATE, "(KKiLL)", UNSIGNED(ino), UNSIGNED(file->fh), mode,
              SIGNED(offset), SIGNED(length));
}

static void handle_lseek(fuse_req_t request, fuse_ino_t ino, off_t offset, int whence,
                         struct fuse_file_info *file)
{
    hand_over(request, OPERATION_LSEEK, "(KKLi)", UNSIGNED(ino), UNSIGNED(file->fh),
              SIGNED(offset), whence);
}

static void handle_copy_file_range(fuse_req_t request, fuse_ino_t from_ino, off_t from_offset,
                                   struct fuse_file_info *from, fuse_ino_t to_ino,
                                   off_t to_offset, struct fuse_file_info *to, size_t length,
                                   int flags)
{
    hand_over(request, OPERATION_COPY_FILE_RANGE, "(KKLKKLKi)", UNSIGNED(from_ino),
              UNSIGNED(from->fh), SIGNED(from_offset), UNSIGNED(to_ino), UNSIGNED(to->fh),
              SIGNED(to_offset), UNSIGNED(length < COPY_MAX ? length : COPY_MAX), flags);
}

void requests_add_handlers(struct fuse_lowlevel_ops *table, const bool serves[OPERATION_COUNT])
{
    if (serves[OPERATION_GETLK])
        table->getlk = handle_getlk;
    if (serves[OPERATION_SETLK])
        table->setlk = handle_setlk;
    if (serves[OPERATION_FLOCK])
        table->flock = handle_flock;
    if (serves[OPERATION_FALLOCATE])
        table->fallocate = handle_fallocate;
    if (serves[OPERATION_LSEEK])
        table->lseek = handle_lseek;
    if (serves[OPERATION_COPY_FILE_RANGE])
        table->copy_file_range = handle_copy_file_range;
}
