/*
 * The Python module aspenfs.fuse_extension._native: what Python may set and ask.
 */
#include "extension.h"

#include <string.h>

/* Set settings->serves from a sequence of names; false with a Python error set. */
static bool parse_operations(PyObject *names, struct settings *settings)
{
    PyObject *items = PySequence_Fast(names, "operations must be a sequence");

    if (items == NULL)
        return false;
    for (Py_ssize_t index = 0; index < PySequence_Fast_GET_SIZE(items); index++) {
        const char *name = PyUnicode_AsUTF8(PySequence_Fast_GET_ITEM(items, index));
        int operation = 0;

        if (name != NULL)
            while (operation < OPERATION_COUNT && strcmp(name, operation_names[operation]) != 0)
                operation++;
        if (name != NULL && operation == OPERATION_COUNT)
            PyErr_Format(PyExc_ValueError, "unknown operation: %s", name);
        if (PyErr_Occurred()) {
            Py_DECREF(items);
            return false;
        }
        settings->serves[operation] = true;
    }
    Py_DECREF(items);
    return true;
}

static PyObject *arm(PyObject *module, PyObject *arguments, PyObject *keywords)
{
    static char *names[] = {"receiver", "interrupted", "operations", "want", "do_not_want",
                            "max_background", "congestion_threshold", "kill_privileges",
                            "direct_mmap", NULL};
    struct settings settings = {.is_armed = true};
    PyObject *receiver, *interrupted, *operations;
    int kill_privileges, direct_mmap;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(arguments, keywords, "$OOOIIIIpp:arm", names, &receiver,
                                     &interrupted, &operations, &settings.want,
                                     &settings.do_not_want, &settings.max_background,
                                     &settings.congestion_threshold, &kill_privileges,
                                     &direct_mmap) ||
        !parse_operations(operations, &settings))
        return NULL;
    settings.kill_privileges = kill_privileges;
    settings.direct_mmap = direct_mmap;
    session_settings = settings;
    requests_set_receiver(receiver);
    wire_set_interrupted(interrupted);
    Py_RETURN_NONE;
}

static PyObject *disarm(PyObject *module, PyObject *no_arguments)
{
    (void)module;
    (void)no_arguments;
    session_settings.is_armed = false;
    requests_set_receiver(NULL);
    wire_set_interrupted(NULL);
    Py_RETURN_NONE;
}

static PyObject *is_extended(PyObject *module, PyObject *no_arguments)
{
    (void)module;
    (void)no_arguments;
    return PyBool_FromLong(session_is_extended());
}

static PyObject *allows_direct_mmap(PyObject *module, PyObject *no_arguments)
{
    (void)module;
    (void)no_arguments;
    return PyBool_FromLong(session_allows_direct_mmap());
}

static PyObject *last_request(PyObject *module, PyObject *no_arguments)
{
    struct wire_request last = wire_last_request();

    (void)module;
    (void)no_arguments;
    return Py_BuildValue("(KIK)", (unsigned long long)last.unique, (unsigned int)last.flags,
                         (unsigned long long)last.lock_owner);
}

static PyMethodDef functions[] = {
    /* A function with keywords is stored under the type of one without: CPython's convention. */
    {"arm", (PyCFunction)(void (*)(void))arm, METH_VARARGS | METH_KEYWORDS,
     "Extend the next session that pyfuse3 makes."},
    {"disarm", disarm, METH_NOARGS, "Leave later sessions as they are, and call Python no more."},
    {"is_extended", is_extended, METH_NOARGS,
     "Return whether a session is served that the extension has a part in."},
    {"allows_direct_mmap", allows_direct_mmap, METH_NOARGS,
     "Return whether files that bypass the page cache can be mapped shared."},
    {"last_request", last_request, METH_NOARGS,
     "Return unique, flags and lock owner of the request that was read last."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_native",
    .m_doc = "What pyfuse3 leaves out of libfuse.",
    .m_size = -1, /* its state is that of the process */
    .m_methods = functions,
};

PyMODINIT_FUNC PyInit__native(void)
{
    PyObject *module;

    if (PyType_Ready(&request_type) < 0)
        return NULL;
    module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    if (PyModule_AddObjectRef(module, "Request", (PyObject *)&request_type) < 0 ||
        PyModule_AddStringConstant(module, "LIBFUSE_VERSION", fuse_pkgversion()) < 0 ||
        PyModule_AddIntConstant(module, "INTERFACE", 1) < 0 || /* raised with every change of it */
        PyModule_AddIntConstant(module, "CAP_DONT_MASK", FUSE_CAP_DONT_MASK) < 0 ||
        PyModule_AddIntConstant(module, "CAP_CACHE_SYMLINKS", FUSE_CAP_CACHE_SYMLINKS) < 0 ||
        PyModule_AddIntConstant(module, "CAP_AUTO_INVAL_DATA", FUSE_CAP_AUTO_INVAL_DATA) < 0 ||
        PyModule_AddIntConstant(module, "CAP_EXPLICIT_INVAL_DATA", FUSE_CAP_EXPLICIT_INVAL_DATA) <
            0) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
