/* The minimal ring behind METH_FASTCALL: what a call from Python costs at the least. An End of a ring: put(bytes) -> bool, get() -> bytes (spins), get_many(n) -> list
 * of bytes, put_many(list) -> how many. The GIL is held all the time. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "minimal_ring.h"

/* One end of a ring: an address and a position of its own. */
typedef struct { PyObject_HEAD ring *r; uint64_t position; } End;

static int end_init(End *self, PyObject *args, PyObject *kwargs) {
    unsigned long long at;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "K", &at)) return -1;
    self->r = (ring *)(uintptr_t)at;
    return 0;
}
static PyObject *put(PyObject *op, PyObject *const *args, Py_ssize_t n) {
    if (n != 1 || !PyBytes_CheckExact(args[0])) { PyErr_SetString(PyExc_TypeError, "put(bytes)"); return NULL; }
    return PyBool_FromLong(ring_put(((End *)op)->r, PyBytes_AS_STRING(args[0]), (uint32_t)PyBytes_GET_SIZE(args[0])));
}
static PyObject *get(PyObject *op, PyObject *const *args, Py_ssize_t n) {
    End *self = (End *)op;
    const uint8_t *data;
    (void)args;
    (void)n;
    for (long turn = 1;; turn++) {
        int64_t bytes = ring_get(self->r, &self->position, &data);
        if (bytes >= 0) {
            PyObject *value = PyBytes_FromStringAndSize((const char *)data, bytes);
            ring_release(self->r, self->position);
            return value;
        }
        __builtin_ia32_pause();
        if ((turn & 0xfffff) == 0 && PyErr_CheckSignals() < 0) return NULL;
    }
}
static PyObject *put_many(PyObject *op, PyObject *const *args, Py_ssize_t n) {
    if (n != 1 || !PyList_CheckExact(args[0])) { PyErr_SetString(PyExc_TypeError, "put_many(list)"); return NULL; }
    Py_ssize_t count = PyList_GET_SIZE(args[0]), i;
    for (i = 0; i < count; i++) {
        PyObject *value = PyList_GET_ITEM(args[0], i);
        for (long turn = 1; !ring_put(((End *)op)->r, PyBytes_AS_STRING(value), (uint32_t)PyBytes_GET_SIZE(value)); turn++)
            if ((turn & 0xfffff) == 0 && PyErr_CheckSignals() < 0) return NULL;
    }
    return PyLong_FromSsize_t(i);
}
static PyObject *get_many(PyObject *op, PyObject *const *args, Py_ssize_t n) {
    End *self = (End *)op;
    if (n != 1) { PyErr_SetString(PyExc_TypeError, "get_many(n)"); return NULL; }
    Py_ssize_t most = PyLong_AsSsize_t(args[0]);
    PyObject *list = PyList_New(0);
    const uint8_t *data;
    int64_t bytes;
    while (list && PyList_GET_SIZE(list) < most && (bytes = ring_get(self->r, &self->position, &data)) >= 0) {
        PyObject *value = PyBytes_FromStringAndSize((const char *)data, bytes);
        if (!value || PyList_Append(list, value) < 0) Py_CLEAR(list);
        Py_XDECREF(value);
    }
    ring_release(self->r, self->position);
    return list;
}
#define FAST(f) (PyCFunction)(void (*)(void))f, METH_FASTCALL, NULL
static PyMethodDef methods[] = {{"put", FAST(put)}, {"get", FAST(get)}, {"put_many", FAST(put_many)}, {"get_many", FAST(get_many)}, {NULL, NULL, 0, NULL}};
static PyType_Slot slots[] = {{Py_tp_init, end_init}, {Py_tp_new, PyType_GenericNew}, {Py_tp_methods, methods}, {0, NULL}};
static PyType_Spec spec = {"minimal_ring_ext.End", sizeof(End), 0, Py_TPFLAGS_DEFAULT, slots};
static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, "minimal_ring_ext", NULL, -1, NULL, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_minimal_ring_ext(void) {
    PyObject *module = PyModule_Create(&def);
    if (!module || PyModule_AddIntConstant(module, "RING_BYTES", (long)sizeof(ring)) < 0) return NULL;
    PyObject *type = PyType_FromSpec(&spec);
    return type && PyModule_AddObject(module, "End", type) == 0 ? module : NULL;
}
