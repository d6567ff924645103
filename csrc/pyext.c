/* shmlog._fast: the calls that are made once a record, and what they return, as a thin CPython extension.
 *
 * A call by cffi costs 130-370 ns and a Python object made by Python code 300-600 ns, an append 50. So the calls that happen once a record are here: send,
 * send_many of a list, the step of iteration, poll, and the lists that batches make. Everything else is Python over cffi, in shmlog/client, and that is complete
 * without this file ($SHMLOG_BINDING=cffi, or not built).
 *
 * Invariant: nothing is decided here. Each call knows the plain case (bytes in, open handle, partition known, something to read) and does exactly what the
 * Python code does then; whatever else it meets, it has changed nothing, and calls the Python method of the same meaning (send -> _send_any, ...). So waiting,
 * errors, resets, signals are in Python only, and a reader of shmlog/client has seen all cases.
 *
 * No core code is linked in: connect() is handed the addresses of the functions in shmlog._core, which has the one copy of the core's statics.
 *
 * Threads. With a GIL it is held from the first look at the handle's state to the last change of it: no Python code, so no other thread and no signal
 * handler, runs in between. (Allocating an object may: the collector's finalizers. So objects are made before, or the state is consistent then.) A Consumer's
 * call that runs Python code says `busy`, which the Python side looks at. Without a GIL (not in an abi3 build): a producer's thread reaches its lanes by
 * references that it owns, `busy` is taken by an atomic exchange, and fields of Records and Deliveries are read and changed in critical sections. */
#ifdef SL_PYEXT /* setup.py's word: to whoever compiles all of csrc/ for the core, this file is empty */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>
#include <stddef.h>
#include <string.h>

#include "atomic.h"
#include "core.h"

#ifdef Py_GIL_DISABLED
#define BEGIN_LOCKED(o) Py_BEGIN_CRITICAL_SECTION(o);
#define END_LOCKED() Py_END_CRITICAL_SECTION();
#else
#define BEGIN_LOCKED(o) {
#define END_LOCKED() }
#endif

#define VIEWS 128            /* of one poll of a reader: 12 KiB, so that they are still in L1 when Records are made of them */
#define HELD_LOOKS 128       /* looks for a record with the GIL held, some 2-5 us, before _sleep() gives it up: a tenth of a percent of a switch interval */
#define SCRATCH_MAX_BYTES (4u << 20)

static struct {
    int (*append)(sl_appender *, const sl_record *, int64_t, int64_t, sl_append_result *);
    int64_t (*poll)(sl_reader *, sl_view *, size_t, uint64_t, int);
    uint64_t (*position)(sl_reader *);
    void (*done)(sl_reader *);
    int (*ready)(sl_reader *);
    uint32_t (*murmur2)(const void *, size_t);
    int64_t (*monotonic_ns)(void);
} core;

static int64_t generation;   /* as handle.generation: grows in each forked child */

static PyTypeObject *record_type, *delivery_type, *lane_type, *lanes_type, *assigned_type;
static PyObject *deliveries_type, *finish;   /* shmlog.client's Deliveries, and record_batch's finish() */

#define NAMES(X) X(topic) X(value) X(key) X(values) X(partition) X(timeout_ms) X(max_records) X(_local) X(thread) X(lanes) X(_send_any) X(_send_many_any) \
    X(_watch) X(_fetch_ready) X(_poll_any) X(_sleep) X(_check_open) X(_reader_array) X(_parts)
#define DECLARE(name) static PyObject *s_##name;
NAMES(DECLARE)

/* ---- fields --------------------------------------------------------------------------------------------------------------------------- */

/* An object field at offset `closure`. An object begins untracked by the collector, for bytes and str cannot make a cycle; the first store of something by
 * Python code tracks it. */
static PyObject *get_field(PyObject *self, void *closure) {
    PyObject **at = (PyObject **)((char *)self + (size_t)closure), *found;
    BEGIN_LOCKED(self)
    found = *at;
    Py_XINCREF(found);
    END_LOCKED()
    if (!found) PyErr_SetString(PyExc_AttributeError, "not set");
    return found;
}
static int set_field(PyObject *self, PyObject *to, void *closure) {
    PyObject **at = (PyObject **)((char *)self + (size_t)closure), *old;
    BEGIN_LOCKED(self)
    old = *at;
    Py_XINCREF(to);
    *at = to;
    if (!PyObject_GC_IsTracked(self)) PyObject_GC_Track(self);
    END_LOCKED()
    Py_XDECREF(old);
    return 0;
}
#define FIELD(type, name, field) {name, get_field, set_field, NULL, (void *)offsetof(type, field)}

#define VISIT_TYPE(self) Py_VISIT(Py_TYPE((PyObject *)(self)))

/* Records and Deliveries die as fast as they are made: a few of the dead are kept, untracked and with no references but to their type, and made alive again
 * with PyObject_Init(). Half the cost of malloc and of the collector's counting. With a GIL only. */
#define KEPT 256
typedef struct dead { PyObject *of[KEPT]; int count; } dead;
static inline PyObject *make_object(dead *kept, PyTypeObject *type, int *fresh) {
#ifndef Py_GIL_DISABLED
    if (sl_likely(kept->count > 0)) { *fresh = 0; return PyObject_Init(kept->of[--kept->count], type); }
#endif
    (void)kept;
    (void)type;
    *fresh = 1;
    return NULL;
}
static inline int keep_object(dead *kept, PyObject *self, PyTypeObject *type) {
#ifndef Py_GIL_DISABLED
    if (Py_TYPE(self) == type && kept->count < KEPT) {
        kept->of[kept->count++] = self;
        Py_DECREF((PyObject *)type);
        return 1;
    }
#endif
    (void)kept;
    (void)self;
    (void)type;
    return 0;
}

static void free_object(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* ---- Record --------------------------------------------------------------------------------------------------------------------------- */

/* The fields of shmlog.types.Record, which gives it its methods. headers NULL: none, and a list only if somebody looks. */
typedef struct Record {
    PyObject_HEAD
    PyObject *topic, *key, *value, *headers, *dtype, *shape;
    int64_t offset, timestamp_ns, leader_epoch;
    int partition, timestamp_type;
} Record;

static dead dead_records;

static int record_traverse(Record *self, visitproc visit, void *arg) {
    VISIT_TYPE(self);
    Py_VISIT(self->topic);
    Py_VISIT(self->key);
    Py_VISIT(self->value);
    Py_VISIT(self->headers);
    Py_VISIT(self->dtype);
    Py_VISIT(self->shape);
    return 0;
}
static int record_clear(Record *self) {
    Py_CLEAR(self->topic);
    Py_CLEAR(self->key);
    Py_CLEAR(self->value);
    Py_CLEAR(self->headers);
    Py_CLEAR(self->dtype);
    Py_CLEAR(self->shape);
    return 0;
}
static void record_dealloc(PyObject *op) {
    Record *self = (Record *)op;
    PyObject_GC_UnTrack(op);
    Py_XDECREF(self->topic);
    Py_XDECREF(self->key);
    Py_XDECREF(self->value);
    Py_XDECREF(self->headers);
    Py_XDECREF(self->dtype);
    Py_XDECREF(self->shape);
    if (!keep_object(&dead_records, op, record_type)) free_object(op);
}

static int record_init(Record *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"topic", "partition", "offset", "timestamp_ns", "timestamp_type", "key", "value", "headers", "leader_epoch", "dtype", "shape", NULL};
    PyObject *topic, *key = Py_None, *value = Py_None, *headers = NULL, *dtype = Py_None, *shape = Py_None;
    int partition, timestamp_type = 0;
    long long offset, timestamp_ns, leader_epoch = -1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OiLL|iOOOLOO:Record", names, &topic, &partition, &offset, &timestamp_ns, &timestamp_type, &key, &value,
                                     &headers, &leader_epoch, &dtype, &shape)) return -1;
    PyObject *empty = NULL;
    if (!headers && !(headers = empty = PyTuple_New(0))) return -1;
    set_field((PyObject *)self, topic, (void *)offsetof(Record, topic));
    set_field((PyObject *)self, key, (void *)offsetof(Record, key));
    set_field((PyObject *)self, value, (void *)offsetof(Record, value));
    set_field((PyObject *)self, headers, (void *)offsetof(Record, headers));
    set_field((PyObject *)self, dtype, (void *)offsetof(Record, dtype));
    set_field((PyObject *)self, shape, (void *)offsetof(Record, shape));
    self->partition = partition;
    self->offset = offset;
    self->timestamp_ns = timestamp_ns;
    self->timestamp_type = timestamp_type;
    self->leader_epoch = leader_epoch;
    Py_XDECREF(empty);
    return 0;
}

static PyObject *record_headers(PyObject *op, void *closure) {
    Record *self = (Record *)op;
    int none;
    BEGIN_LOCKED(op)
    none = self->headers == NULL;
    END_LOCKED()
    if (none) {
        PyObject *list = PyList_New(0);
        if (!list) return NULL;
        set_field(op, list, closure);
        Py_DECREF(list);
    }
    return get_field(op, closure);
}

static PyMemberDef record_members[] = {
    {"offset", T_LONGLONG, offsetof(Record, offset), 0, NULL},
    {"timestamp_ns", T_LONGLONG, offsetof(Record, timestamp_ns), 0, NULL},
    {"leader_epoch", T_LONGLONG, offsetof(Record, leader_epoch), 0, NULL},
    {"partition", T_INT, offsetof(Record, partition), 0, NULL},
    {"timestamp_type", T_INT, offsetof(Record, timestamp_type), 0, NULL},
    {NULL, 0, 0, 0, NULL}};
static PyGetSetDef record_fields[] = {
    FIELD(Record, "topic", topic), FIELD(Record, "key", key), FIELD(Record, "value", value),
    {"headers", record_headers, set_field, NULL, (void *)offsetof(Record, headers)},
    FIELD(Record, "dtype", dtype), FIELD(Record, "shape", shape), {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot record_slots[] = {
    {Py_tp_traverse, record_traverse}, {Py_tp_clear, record_clear}, {Py_tp_dealloc, record_dealloc}, {Py_tp_init, record_init},
    {Py_tp_new, PyType_GenericNew}, {Py_tp_members, record_members}, {Py_tp_getset, record_fields}, {0, NULL}};
static PyType_Spec record_spec = {"shmlog.types.Record", sizeof(Record), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, record_slots};

static inline PyObject *bytes_at(const uint8_t *at, uint32_t bytes) {
    if (at) return PyBytes_FromStringAndSize((const char *)at, bytes);
    Py_INCREF(Py_None);
    return Py_None;
}

/* What Python decodes: headers and dtype, which few records have. */
static int finish_record(PyObject *record, const sl_view *v) {
    PyObject *headers = bytes_at(v->headers_bytes ? v->headers : NULL, v->headers_bytes);
    PyObject *dtype = bytes_at(v->dtype_bytes ? v->dtype : NULL, v->dtype_bytes);
    PyObject *kafka = v->flags & SL_VIEW_KAFKA_HEADERS ? Py_True : Py_False, *done = NULL;
    if (headers && dtype) done = PyObject_CallFunctionObjArgs(finish, record, headers, kafka, dtype, NULL);
    Py_XDECREF(headers);
    Py_XDECREF(dtype);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* The record of a view, with bytes of its own. NULL with an exception. */
static PyObject *record_of(const sl_view *v, PyObject *topic, int partition, int timestamp_type) {
    int fresh;
    Record *r = (Record *)make_object(&dead_records, record_type, &fresh);
    if (fresh && !(r = PyObject_GC_New(Record, record_type))) return NULL;
    Py_INCREF(topic);
    Py_INCREF(Py_None);
    Py_INCREF(Py_None);
    r->topic = topic;
    r->dtype = r->shape = Py_None;
    r->headers = NULL;
    r->offset = v->offset;
    r->timestamp_ns = v->timestamp_ns;
    r->leader_epoch = v->leader_epoch;
    r->partition = partition;
    r->timestamp_type = v->flags & SL_FF_LOG_APPEND_TIME ? 1 : timestamp_type;
    r->key = bytes_at(v->key, v->key_bytes);
    r->value = bytes_at(v->value, v->value_bytes);
    if (sl_unlikely(!r->key || !r->value || ((v->headers_bytes || v->dtype_bytes) && finish_record((PyObject *)r, v) < 0))) {
        Py_DECREF((PyObject *)r);
        return NULL;
    }
    return (PyObject *)r;
}

/* Puts conversion(topic, field) in the place of a field that is not None. */
static int convert(PyObject *topic, PyObject **field, PyObject *conversion) {
    if (conversion == Py_None || *field == Py_None) return 0;
    PyObject *made = PyObject_CallFunctionObjArgs(conversion, topic, *field, NULL);
    if (!made) return -1;
    Py_DECREF(*field);
    *field = made;
    return 0;
}

/* records(rows, topic, partition, timestamp_type, key_of, value_of): Records of packed sl_views whose pointers are good. (list, None), or (list up to the record
 * that failed, exception). */
static PyObject *fast_records(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    (void)module;
    Py_buffer rows;
    if (n != 6) { PyErr_SetString(PyExc_TypeError, "records() takes 6 arguments"); return NULL; }
    PyObject *topic = args[1], *key_of = args[4], *value_of = args[5], *list = NULL, *result = NULL;
    int partition = (int)PyLong_AsLong(args[2]), timestamp_type = (int)PyLong_AsLong(args[3]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &rows, PyBUF_SIMPLE) < 0) return NULL;
    const sl_view *views = rows.buf;
    Py_ssize_t count = rows.len / (Py_ssize_t)sizeof *views, i;
    if (!(list = PyList_New(0))) goto out;
    for (i = 0; i < count; i++) {
        PyObject *record = record_of(&views[i], topic, partition, timestamp_type);
        if (record && (key_of != Py_None || value_of != Py_None)) {
            Record *r = (Record *)record;
            if (convert(topic, &r->value, value_of) < 0 || convert(topic, &r->key, key_of) < 0) Py_CLEAR(record);
            else if (!PyObject_GC_IsTracked(record)) PyObject_GC_Track(record); /* who knows what they returned */
        }
        if (!record) break;
        int rc = PyList_Append(list, record);
        Py_DECREF(record);
        if (rc < 0) goto out;
    }
    if (i == count) { result = PyTuple_Pack(2, list, Py_None); goto out; }
    if (!PyErr_ExceptionMatches(PyExc_Exception)) goto out; /* Ctrl-C in a deserializer */
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback) PyException_SetTraceback(error, traceback);
    result = PyTuple_Pack(2, list, error);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
out:
    Py_XDECREF(list);
    PyBuffer_Release(&rows);
    return result;
}

/* values(rows): the values of packed sl_views as a list of bytes, None for null. */
static PyObject *fast_values(PyObject *module, PyObject *arg) {
    (void)module;
    Py_buffer rows;
    if (PyObject_GetBuffer(arg, &rows, PyBUF_SIMPLE) < 0) return NULL;
    const sl_view *views = rows.buf;
    Py_ssize_t count = rows.len / (Py_ssize_t)sizeof *views;
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *value = bytes_at(views[i].value, views[i].value_bytes);
        if (!value || PyList_SetItem(list, i, value) < 0) Py_CLEAR(list);
    }
    PyBuffer_Release(&rows);
    return list;
}

/* value_views(rows, view, low): the same as slices of `view`, a memoryview whose first byte has address `low`. */
static PyObject *fast_value_views(PyObject *module, PyObject *const *args, Py_ssize_t n) {
    (void)module;
    Py_buffer rows;
    if (n != 3) { PyErr_SetString(PyExc_TypeError, "value_views() takes 3 arguments"); return NULL; }
    uintptr_t low = (uintptr_t)PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred() || PyObject_GetBuffer(args[0], &rows, PyBUF_SIMPLE) < 0) return NULL;
    const sl_view *views = rows.buf;
    Py_ssize_t count = rows.len / (Py_ssize_t)sizeof *views;
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list && i < count; i++) {
        PyObject *value = Py_None;
        if (!views[i].value) Py_INCREF(value);
        else {
            Py_ssize_t from = views[i].value_bytes ? (Py_ssize_t)((uintptr_t)views[i].value - low) : 0;
            value = PySequence_GetSlice(args[1], from, from + (Py_ssize_t)views[i].value_bytes);
        }
        if (!value || PyList_SetItem(list, i, value) < 0) Py_CLEAR(list);
    }
    PyBuffer_Release(&rows);
    return list;
}

/* ---- Delivery ------------------------------------------------------------------------------------------------------------------------- */

typedef struct Delivery {
    PyObject_HEAD
    PyObject *topic, *producer, *place, *error, *seen, *callbacks;
    int64_t partition, offset, timestamp_ns, count;
} Delivery;

static dead dead_deliveries;

static int delivery_traverse(Delivery *self, visitproc visit, void *arg) {
    VISIT_TYPE(self);
    Py_VISIT(self->topic);
    Py_VISIT(self->producer);
    Py_VISIT(self->place);
    Py_VISIT(self->error);
    Py_VISIT(self->seen);
    Py_VISIT(self->callbacks);
    return 0;
}
static int delivery_clear(Delivery *self) {
    Py_CLEAR(self->topic);
    Py_CLEAR(self->producer);
    Py_CLEAR(self->place);
    Py_CLEAR(self->error);
    Py_CLEAR(self->seen);
    Py_CLEAR(self->callbacks);
    return 0;
}
static void delivery_dealloc(PyObject *op) {
    Delivery *self = (Delivery *)op;
    PyObject_GC_UnTrack(op);
    Py_XDECREF(self->topic);
    Py_XDECREF(self->producer);
    Py_XDECREF(self->place);
    Py_XDECREF(self->error);
    Py_XDECREF(self->seen);
    Py_XDECREF(self->callbacks);
    if (!keep_object(&dead_deliveries, op, delivery_type)) free_object(op);
}
static int delivery_init(Delivery *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"topic", "partition", "offset", "timestamp_ns", "count", NULL};
    PyObject *topic;
    long long partition, offset, timestamp_ns, count = 1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OLLL|L:Delivery", names, &topic, &partition, &offset, &timestamp_ns, &count)) return -1;
    set_field((PyObject *)self, topic, (void *)offsetof(Delivery, topic));
    set_field((PyObject *)self, Py_None, (void *)offsetof(Delivery, producer));
    set_field((PyObject *)self, Py_None, (void *)offsetof(Delivery, error));
    self->partition = partition;
    self->offset = offset;
    self->timestamp_ns = timestamp_ns;
    self->count = count;
    return 0;
}
static PyMemberDef delivery_members[] = {
    {"partition", T_LONGLONG, offsetof(Delivery, partition), 0, NULL},
    {"offset", T_LONGLONG, offsetof(Delivery, offset), 0, NULL},
    {"timestamp_ns", T_LONGLONG, offsetof(Delivery, timestamp_ns), 0, NULL},
    {"count", T_LONGLONG, offsetof(Delivery, count), 0, NULL},
    {NULL, 0, 0, 0, NULL}};
static PyGetSetDef delivery_fields[] = {
    FIELD(Delivery, "topic", topic), FIELD(Delivery, "_producer", producer), FIELD(Delivery, "_place", place), FIELD(Delivery, "_error", error),
    FIELD(Delivery, "_seen", seen), FIELD(Delivery, "_callbacks", callbacks), {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot delivery_slots[] = {
    {Py_tp_traverse, delivery_traverse}, {Py_tp_clear, delivery_clear}, {Py_tp_dealloc, delivery_dealloc}, {Py_tp_init, delivery_init},
    {Py_tp_new, PyType_GenericNew}, {Py_tp_members, delivery_members}, {Py_tp_getset, delivery_fields}, {0, NULL}};
static PyType_Spec delivery_spec = {"shmlog.client.delivery.Delivery", sizeof(Delivery), 0,
                                    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, delivery_slots};

/* One whose append is still to come, so that no allocation can fail behind it. */
static Delivery *delivery_new(PyObject *topic, Py_ssize_t count) {
    int fresh;
    Delivery *d = (Delivery *)make_object(&dead_deliveries, delivery_type, &fresh);
    if (fresh && !(d = PyObject_GC_New(Delivery, delivery_type))) return NULL;
    Py_INCREF(topic);
    Py_INCREF(Py_None);
    Py_INCREF(Py_None);
    d->topic = topic;
    d->producer = d->error = Py_None;
    d->place = d->seen = d->callbacks = NULL;
    d->count = count;
    return d;
}

/* ---- Lane: one topic as one thread appends to it -------------------------------------------------------------------------------------- */

typedef struct way { sl_appender *appender; PyObject *place; /* if its acks are awaited */ } way;

/* Kept by append.Route, which opens the appenders and knows all about them; its places in the form that send() reads. Used by its thread alone. */
typedef struct Lane {
    PyObject_HEAD
    int64_t version;         /* of the cluster view that it was made from; -1: none */
    Py_ssize_t count, room;  /* partitions; ways allocated */
    way *ways;
    /* sticky, as partitioner.Sticky */
    uint64_t next, sticky_bytes;
    int64_t sticky, since_ns;
} Lane;

static int lane_traverse(Lane *self, visitproc visit, void *arg) {
    VISIT_TYPE(self);
    for (Py_ssize_t i = 0; i < self->room; i++) Py_VISIT(self->ways[i].place);
    return 0;
}
static int lane_clear(Lane *self) {
    for (Py_ssize_t i = 0; i < self->room; i++) Py_CLEAR(self->ways[i].place);
    return 0;
}
static void lane_dealloc(PyObject *op) {
    Lane *self = (Lane *)op;
    PyObject_GC_UnTrack(op);
    lane_clear(self);
    PyMem_Free(self->ways);
    free_object(op);
}
static int lane_init(Lane *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"start", NULL};
    unsigned long long start = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|K:Lane", names, &start)) return -1;
    self->version = self->sticky = -1;
    self->next = start;
    return 0;
}

#define STICKY_BYTES 65536
#define STICKY_NS INT64_C(1000000)
static Py_ssize_t lane_sticky(Lane *self, uint64_t bytes, int64_t now_ns, Py_ssize_t count) {
    if (self->sticky < 0 || self->sticky >= count || self->sticky_bytes >= STICKY_BYTES || now_ns - self->since_ns >= STICKY_NS) {
        self->sticky = (int64_t)(self->next % (uint64_t)count);
        self->next = (uint64_t)self->sticky + 1;
        self->sticky_bytes = 0;
        self->since_ns = now_ns;
    }
    self->sticky_bytes += bytes;
    return (Py_ssize_t)self->sticky;
}
static PyObject *lane_choose(PyObject *op, PyObject *args) {
    unsigned long long bytes;
    long long now_ns;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "KLn:choose", &bytes, &now_ns, &count)) return NULL;
    if (count < 1) { PyErr_SetString(PyExc_ValueError, "a topic has partitions"); return NULL; }
    return PyLong_FromSsize_t(lane_sticky((Lane *)op, bytes, now_ns, count));
}
/* refresh(version, count): by another view; what is open stays open. */
static PyObject *lane_refresh(PyObject *op, PyObject *args) {
    Lane *self = (Lane *)op;
    long long version;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "Ln:refresh", &version, &count)) return NULL;
    if (count > self->room) {
        way *ways = PyMem_Realloc(self->ways, (size_t)count * sizeof *ways);
        if (!ways) return PyErr_NoMemory();
        memset(ways + self->room, 0, (size_t)(count - self->room) * sizeof *ways);
        self->ways = ways;
        self->room = count;
    }
    self->count = count;
    self->version = version;
    Py_RETURN_NONE;
}
/* open(partition, appender's address, place or None): place if its acks are awaited. */
static PyObject *lane_open(PyObject *op, PyObject *args) {
    Lane *self = (Lane *)op;
    Py_ssize_t n;
    unsigned long long address;
    PyObject *place;
    if (!PyArg_ParseTuple(args, "nKO:open", &n, &address, &place)) return NULL;
    if (n < 0 || n >= self->room) { PyErr_SetString(PyExc_IndexError, "no such partition"); return NULL; }
    Py_CLEAR(self->ways[n].place);
    if (place != Py_None) { Py_INCREF(place); self->ways[n].place = place; }
    self->ways[n].appender = (sl_appender *)(uintptr_t)address;
    Py_RETURN_NONE;
}
static PyMethodDef lane_methods[] = {
    {"choose", lane_choose, METH_VARARGS, NULL}, {"refresh", lane_refresh, METH_VARARGS, NULL}, {"open", lane_open, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL}};
static PyType_Slot lane_slots[] = {
    {Py_tp_traverse, lane_traverse}, {Py_tp_clear, lane_clear}, {Py_tp_dealloc, lane_dealloc}, {Py_tp_init, lane_init}, {Py_tp_new, PyType_GenericNew},
    {Py_tp_methods, lane_methods}, {0, NULL}};
static PyType_Spec lane_spec = {"shmlog._fast.Lane", sizeof(Lane), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, lane_slots};

/* ---- Lanes: all of a thread's ----------------------------------------------------------------------------------------------------------- */

typedef struct Lanes {
    PyObject_HEAD
    PyObject *by_topic;          /* dict: str -> Lane */
    PyObject *last_topic;        /* the very str of the last send, and its lane, which by_topic keeps */
    Lane *last;
    const uint64_t *version;     /* of the cluster view in force */
    uint64_t records, nbytes;    /* sent by this file */
    uint8_t *scratch;
    size_t scratch_bytes;
} Lanes;

/* The lanes of this thread in the last few producers that it used, by Sender.serial, so that a send need not ask threading.local. A serial is never used again,
 * and an entry dies with its Lanes (lanes_close(), by this thread) or its producer (whose generation no longer fits). */
#define HERE 4
static __thread struct { uint64_t serial; Lanes *lanes; } here[HERE];

static void lanes_forget(Lanes *self) {
    for (int i = 0; i < HERE; i++) if (here[i].lanes == self) { here[i].serial = 0; here[i].lanes = NULL; }
    self->last = NULL;
    Py_CLEAR(self->last_topic);
}
static int lanes_traverse(Lanes *self, visitproc visit, void *arg) {
    VISIT_TYPE(self);
    Py_VISIT(self->by_topic);
    return 0;
}
static int lanes_clear(Lanes *self) {
    lanes_forget(self);
    Py_CLEAR(self->by_topic);
    return 0;
}
static void lanes_dealloc(PyObject *op) {
    Lanes *self = (Lanes *)op;
    PyObject_GC_UnTrack(op);
    lanes_clear(self);
    PyMem_Free(self->scratch);
    free_object(op);
}
static int lanes_init(Lanes *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"version_at", NULL};
    unsigned long long address;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "K:Lanes", names, &address)) return -1;
    self->version = (const uint64_t *)(uintptr_t)address;
    Py_XDECREF(self->by_topic);
    self->by_topic = PyDict_New();
    return self->by_topic ? 0 : -1;
}
/* add(topic, lane) */
static PyObject *lanes_add(PyObject *op, PyObject *args) {
    Lanes *self = (Lanes *)op;
    PyObject *topic, *lane;
    if (!PyArg_ParseTuple(args, "UO!:add", &topic, lane_type, &lane)) return NULL;
    lanes_forget(self);
    if (!self->by_topic || PyDict_SetItem(self->by_topic, topic, lane) < 0) return NULL;
    Py_RETURN_NONE;
}
/* close(): before the appenders are. */
static PyObject *lanes_close(PyObject *op, PyObject *unused) {
    (void)unused;
    Lanes *self = (Lanes *)op;
    lanes_forget(self);
    if (self->by_topic) PyDict_Clear(self->by_topic);
    Py_RETURN_NONE;
}
static PyMethodDef lanes_methods[] = {{"add", lanes_add, METH_VARARGS, NULL}, {"close", lanes_close, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};
static PyMemberDef lanes_members[] = {
    {"records", T_ULONGLONG, offsetof(Lanes, records), READONLY, NULL}, {"nbytes", T_ULONGLONG, offsetof(Lanes, nbytes), READONLY, NULL},
    {NULL, 0, 0, 0, NULL}};
static PyType_Slot lanes_slots[] = {
    {Py_tp_traverse, lanes_traverse}, {Py_tp_clear, lanes_clear}, {Py_tp_dealloc, lanes_dealloc}, {Py_tp_init, lanes_init}, {Py_tp_new, PyType_GenericNew},
    {Py_tp_methods, lanes_methods}, {Py_tp_members, lanes_members}, {0, NULL}};
static PyType_Spec lanes_spec = {"shmlog._fast.Lanes", sizeof(Lanes), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, lanes_slots};

/* ---- Sender: what Producer is made of --------------------------------------------------------------------------------------------------- */

typedef struct Sender {
    PyObject_HEAD
    int64_t generation;
    uint64_t serial;
    int plain;                   /* no serializers and no partitioner */
} Sender;

static uint64_t serials;

static PyObject *sender_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)args;
    (void)kwargs;
    Sender *self = (Sender *)PyType_GenericNew(type, NULL, NULL);
    if (!self) return NULL;
    self->generation = -1;
    self->serial = sl_fetch_add_relaxed(&serials, 1) + 1; /* a number only */
    return (PyObject *)self;
}
static void sender_dealloc(PyObject *op) {
    PyTypeObject *type = Py_TYPE(op);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(op);
    Py_DECREF(type);
}

/* Calls the Python method `name` with what a FASTCALL function was given. */
static PyObject *call_python(PyObject *self, PyObject *name, PyObject *const *args, Py_ssize_t n, PyObject *kwnames) {
    PyObject *method = PyObject_GetAttr(self, name), *tuple = PyTuple_New(n), *keywords = NULL, *result = NULL;
    if (!method || !tuple) goto out;
    for (Py_ssize_t i = 0; i < n; i++) { Py_INCREF(args[i]); PyTuple_SetItem(tuple, i, args[i]); }
    if (kwnames) {
        if (!(keywords = PyDict_New())) goto out;
        for (Py_ssize_t i = 0; i < PyTuple_Size(kwnames); i++)
            if (PyDict_SetItem(keywords, PyTuple_GetItem(kwnames, i), args[n + i]) < 0) goto out;
    }
    result = PyObject_Call(method, tuple, keywords);
out:
    Py_XDECREF(method);
    Py_XDECREF(tuple);
    Py_XDECREF(keywords);
    return result;
}

/* The lanes of the calling thread (owned reference in *owned, if one was needed), NULL without an exception: it has none, or none yet. */
static Lanes *lanes_of(Sender *self, PyObject **owned) {
    *owned = NULL;
#ifndef Py_GIL_DISABLED
    if (sl_likely(here[self->serial % HERE].serial == self->serial)) return here[self->serial % HERE].lanes;
#endif
    PyObject *local = PyObject_GetAttr((PyObject *)self, s__local), *thread = local ? PyObject_GetAttr(local, s_thread) : NULL;
    PyObject *lanes = thread ? PyObject_GetAttr(thread, s_lanes) : NULL;
    Py_XDECREF(local);
    Py_XDECREF(thread);
    if (!lanes) { PyErr_Clear(); return NULL; }
    if (Py_TYPE(lanes) != lanes_type) { Py_DECREF(lanes); return NULL; }
    *owned = lanes;
#ifndef Py_GIL_DISABLED
    here[self->serial % HERE].serial = self->serial;
    here[self->serial % HERE].lanes = (Lanes *)lanes;
#endif
    return (Lanes *)lanes;
}

/* The lane for a topic by the view in force, or NULL without an exception: Python makes or refreshes it. */
static inline Lane *lane_of(Lanes *lanes, PyObject *topic) {
    if (sl_unlikely(topic != lanes->last_topic)) {
        PyObject *found = lanes->by_topic && PyUnicode_CheckExact(topic) ? PyDict_GetItemWithError(lanes->by_topic, topic) : NULL;
        if (!found) { PyErr_Clear(); return NULL; }
        Py_INCREF(topic);
        Py_XDECREF(lanes->last_topic);
        lanes->last_topic = topic;
        lanes->last = (Lane *)found;
    }
    return lanes->last->version == (int64_t)sl_load_acquire(lanes->version) ? lanes->last : NULL;
}

/* The partition, -1: Python's case. */
static inline Py_ssize_t partition_of(Lane *lane, PyObject *partition, PyObject *key, uint64_t bytes) {
    if (partition != Py_None) {
        if (!PyLong_CheckExact(partition)) return -1;
        int overflow;
        long n = PyLong_AsLongAndOverflow(partition, &overflow);
        return overflow || n < 0 || n >= lane->count ? -1 : n;
    }
    if (lane->count == 1) return 0;
    if (lane->count < 1) return -1;
    if (key == Py_None) return lane_sticky(lane, bytes, core.monotonic_ns(), lane->count);
    return (Py_ssize_t)((core.murmur2(PyBytes_AsString(key), (size_t)PyBytes_Size(key)) & 0x7fffffff) % (uint64_t)lane->count);
}

/* send(topic, value=None, key=None, headers=None, partition=None, timestamp_ms=None, *, timestamp_ns=None, expected_offset=None) */
static PyObject *sender_send(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    Sender *self = (Sender *)op;
    PyObject *given[5] = {NULL, Py_None, Py_None, Py_None, Py_None}; /* topic, value, key, headers, partition */
    PyObject *owned = NULL;
    Delivery *d = NULL;
    if (self->generation != generation || !self->plain || nargs > 5) goto python;
    for (Py_ssize_t i = 0; i < nargs; i++) given[i] = args[i];
    if (kwnames) {
        Py_ssize_t n = PyTuple_Size(kwnames);
        for (Py_ssize_t i = 0; i < n; i++) {
            PyObject *name = PyTuple_GetItem(kwnames, i); /* interned, where the call is written out */
            int at = name == s_partition ? 4 : name == s_key ? 2 : name == s_value ? 1 : name == s_topic ? 0 : -1;
            if (at < 0 || at < nargs) goto python;
            given[at] = args[nargs + i];
        }
    }
    PyObject *topic = given[0], *value = given[1], *key = given[2];
    if (!topic || given[3] != Py_None) goto python;
    sl_record record = {.producer_id = -1};
    if (sl_likely(PyBytes_CheckExact(value))) {
        Py_ssize_t bytes = PyBytes_Size(value);
        if (bytes >= INT32_MAX) goto python;
        record.value = (const uint8_t *)PyBytes_AsString(value);
        record.value_bytes = (uint32_t)bytes;
    } else if (value != Py_None) goto python;
    if (key != Py_None) {
        if (!PyBytes_CheckExact(key) || PyBytes_Size(key) >= INT32_MAX) goto python;
        record.key = (const uint8_t *)PyBytes_AsString(key);
        record.key_bytes = (uint32_t)PyBytes_Size(key);
    }
    if (!(d = delivery_new(topic, 1))) return NULL;
    Lanes *lanes = lanes_of(self, &owned);
    /* From here on no Python code runs before the append has happened. In what was allocated above a finalizer may have, and with it another thread, which
     * closed the producer: then its lanes are gone, and `here` does not know. */
    if (sl_unlikely(self->generation != generation)) goto python;
    Lane *lane = lanes ? lane_of(lanes, topic) : NULL;
    if (!lane) goto python;
    Py_ssize_t n = partition_of(lane, given[4], key, record.value_bytes);
    if (n < 0 || !lane->ways[n].appender) goto python;
    sl_append_result result;
    if (sl_unlikely(core.append(lane->ways[n].appender, &record, -1, 0, &result) != SL_OK)) goto python;
    d->partition = n;
    d->offset = result.offset;
    d->timestamp_ns = result.timestamp_ns;
    lanes->records++;
    lanes->nbytes += record.value_bytes;
    PyObject *place = lane->ways[n].place;
    Py_XDECREF(owned);
    if (sl_unlikely(place != NULL)) {
        PyObject *watched = PyObject_CallMethodObjArgs(op, s__watch, d, place, NULL);
        if (!watched) { Py_DECREF((PyObject *)d); return NULL; }
        Py_DECREF(watched);
    }
    return (PyObject *)d;
python:
    Py_XDECREF((PyObject *)d);
    Py_XDECREF(owned);
    return call_python(op, s__send_any, args, nargs, kwnames);
}

/* send_many(topic, values, keys=None, *, partition=None, ...): a list of bytes of one size without keys is one array frame. */
static PyObject *sender_send_many(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    Sender *self = (Sender *)op;
    PyObject *topic, *values, *partition = Py_None, *owned = NULL, *list = NULL, *result = NULL;
    Delivery *d = NULL;
    if (self->generation != generation || !self->plain || nargs != 2) goto python;
    topic = args[0];
    values = args[1];
    if (kwnames) {
        if (PyTuple_Size(kwnames) != 1 || PyTuple_GetItem(kwnames, 0) != s_partition) goto python;
        partition = args[2];
    }
    if (!PyList_CheckExact(values)) goto python;
    Py_ssize_t rows = PyList_Size(values);
    if (rows < 2 || rows > SL_CELL_MAX_COUNT) goto python;
    PyObject *first = PyList_GetItem(values, 0);
    if (!PyBytes_CheckExact(first)) goto python;
    size_t size = (size_t)PyBytes_Size(first), total = size * (size_t)rows;
    if (size == 0 || size > SCRATCH_MAX_BYTES || total > SCRATCH_MAX_BYTES) goto python;
    if (!(d = delivery_new(topic, rows)) || !(list = PyList_New(1))) goto out;
    Py_INCREF((PyObject *)d);
    PyList_SetItem(list, 0, (PyObject *)d);
    if (!(result = PyObject_CallFunctionObjArgs(deliveries_type, list, NULL))) goto out;
    Lanes *lanes = lanes_of(self, &owned);
    if (self->generation != generation) goto python; /* as in send() */
    Lane *lane = lanes ? lane_of(lanes, topic) : NULL;
    if (!lane) goto python;
    if (lanes->scratch_bytes < total) {
        uint8_t *more = PyMem_Realloc(lanes->scratch, total);
        if (!more) goto python;
        lanes->scratch = more;
        lanes->scratch_bytes = total;
    }
    uint8_t *to = lanes->scratch;
    if (PyList_Size(values) != rows) goto python;
    for (Py_ssize_t i = 0; i < rows; i++, to += size) {
        PyObject *value = PyList_GetItem(values, i);
        if (!value || !PyBytes_CheckExact(value) || (size_t)PyBytes_Size(value) != size) goto python;
        memcpy(to, PyBytes_AsString(value), size);
    }
    Py_ssize_t n = partition_of(lane, partition, Py_None, total);
    if (n < 0 || !lane->ways[n].appender) goto python;
    sl_record record = {.producer_id = -1, .value = lanes->scratch, .value_bytes = (uint32_t)total, .rows = (uint32_t)rows, .row_bytes = (uint32_t)size,
                        .kind = SL_FF_ARRAY};
    sl_append_result appended;
    if (core.append(lane->ways[n].appender, &record, -1, 0, &appended) != SL_OK) goto python;
    d->partition = n;
    d->offset = appended.offset;
    d->timestamp_ns = appended.timestamp_ns;
    lanes->records += (uint64_t)rows;
    lanes->nbytes += total;
    PyObject *place = lane->ways[n].place;
    if (place) {
        PyObject *watched = PyObject_CallMethodObjArgs(op, s__watch, d, place, NULL);
        if (!watched) Py_CLEAR(result);
        Py_XDECREF(watched);
    }
out:
    Py_XDECREF((PyObject *)d);
    Py_XDECREF(list);
    Py_XDECREF(owned);
    return result;
python:
    Py_XDECREF((PyObject *)d);
    Py_XDECREF(list);
    Py_XDECREF(owned);
    Py_XDECREF(result);
    return call_python(op, s__send_many_any, args, nargs, kwnames);
}

static PyMethodDef sender_methods[] = {
    {"send", (PyCFunction)(void (*)(void))sender_send, METH_FASTCALL | METH_KEYWORDS, NULL},
    {"send_many", (PyCFunction)(void (*)(void))sender_send_many, METH_FASTCALL | METH_KEYWORDS, NULL},
    {NULL, NULL, 0, NULL}};
static PyMemberDef sender_members[] = {
    {"_generation", T_LONGLONG, offsetof(Sender, generation), 0, NULL}, {"_plain", T_INT, offsetof(Sender, plain), 0, NULL}, {NULL, 0, 0, 0, NULL}};
static PyType_Slot sender_slots[] = {
    {Py_tp_new, sender_new}, {Py_tp_dealloc, sender_dealloc}, {Py_tp_methods, sender_methods}, {Py_tp_members, sender_members}, {0, NULL}};
static PyType_Spec sender_spec = {"shmlog._fast.Sender", sizeof(Sender), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, sender_slots};

/* ---- Assigned: a partition that is being read -------------------------------------------------------------------------------------------- */

typedef struct Assigned {
    PyObject_HEAD
    PyObject *tp, *topic_id, *reader, *start, *topic, *directory;
    int64_t reader_at, position;
    uint64_t address;            /* of the sl_reader */
    int block, partition, timestamp_type;
    char spills, paused;
} Assigned;

static int assigned_traverse(Assigned *self, visitproc visit, void *arg) {
    VISIT_TYPE(self);
    Py_VISIT(self->tp);
    Py_VISIT(self->reader);
    return 0;
}
static int assigned_clear(Assigned *self) {
    Py_CLEAR(self->tp);
    Py_CLEAR(self->reader);
    return 0;
}
static void assigned_dealloc(PyObject *op) {
    Assigned *self = (Assigned *)op;
    PyObject_GC_UnTrack(op);
    assigned_clear(self);
    Py_XDECREF(self->topic_id);
    Py_XDECREF(self->start);
    Py_XDECREF(self->topic);
    Py_XDECREF(self->directory);
    free_object(op);
}
static int assigned_init(Assigned *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tp", "topic_id", "block", "spills", "timestamp_type", "reader", "start", NULL};
    PyObject *tp, *topic_id, *reader, *start, *number;
    int block, spills, timestamp_type;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOipiOO:Assigned", names, &tp, &topic_id, &block, &spills, &timestamp_type, &reader, &start)) return -1;
    if (!PyTuple_Check(tp) || PyTuple_Size(tp) != 2 || self->tp) { PyErr_SetString(PyExc_TypeError, "tp is a TopicPartition"); return -1; }
    number = PyTuple_GetItem(tp, 1);
    self->partition = (int)PyLong_AsLong(number);
    if (PyErr_Occurred()) return -1;
    self->topic = PyTuple_GetItem(tp, 0);
    self->tp = tp;
    self->topic_id = topic_id;
    self->reader = reader;
    self->start = start;
    Py_INCREF(self->topic);
    Py_INCREF(tp);
    Py_INCREF(topic_id);
    Py_INCREF(reader);
    Py_INCREF(start);
    self->block = block;
    self->spills = (char)spills;
    self->timestamp_type = timestamp_type;
    self->reader_at = self->position = -1;
    return 0;
}
static PyMemberDef assigned_members[] = {
    {"tp", T_OBJECT, offsetof(Assigned, tp), READONLY, NULL}, {"topic_id", T_OBJECT, offsetof(Assigned, topic_id), READONLY, NULL},
    {"reader", T_OBJECT, offsetof(Assigned, reader), 0, NULL}, {"start", T_OBJECT, offsetof(Assigned, start), 0, NULL},
    {"reader_at", T_LONGLONG, offsetof(Assigned, reader_at), 0, NULL}, {"position", T_LONGLONG, offsetof(Assigned, position), 0, NULL},
    {"address", T_ULONGLONG, offsetof(Assigned, address), 0, NULL}, {"block", T_INT, offsetof(Assigned, block), READONLY, NULL},
    {"timestamp_type", T_INT, offsetof(Assigned, timestamp_type), READONLY, NULL}, {"spills", T_BOOL, offsetof(Assigned, spills), READONLY, NULL},
    {"paused", T_BOOL, offsetof(Assigned, paused), 0, NULL}, {"directory", T_OBJECT, offsetof(Assigned, directory), 0, NULL}, {NULL, 0, 0, 0, NULL}};
static PyType_Slot assigned_slots[] = {
    {Py_tp_traverse, assigned_traverse}, {Py_tp_clear, assigned_clear}, {Py_tp_dealloc, assigned_dealloc}, {Py_tp_init, assigned_init},
    {Py_tp_new, PyType_GenericNew}, {Py_tp_members, assigned_members}, {0, NULL}};
static PyType_Spec assigned_spec = {"shmlog.client.consumer_row.Assigned", sizeof(Assigned), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, assigned_slots};

/* ---- Receiver: what Consumer is made of -------------------------------------------------------------------------------------------------- */

typedef struct Receiver {
    PyObject_HEAD
    PyObject *owner, *readers, *ready, *ready_part, *polled, *fifo; /* as Python names them, with a _ before; None as NULL */
    PyObject *active_of, *held;  /* the `readers` that `active` was made for; the list that keeps its members */
    Assigned **active;           /* those not paused */
    Py_ssize_t active_count;
    int64_t generation, version, turn, max_poll_records, fetch_bytes, timeout_ns, spin_ns, records, nbytes, polls;
    uint64_t version_at;         /* address of the version of the cluster view in force */
    unsigned long long busy;     /* thread in a call of this file that may run Python code; 0 none */
    int check, plain;            /* check_crcs; no deserializers */
    sl_view views[VIEWS];
} Receiver;

static int receiver_traverse(Receiver *self, visitproc visit, void *arg) {
    VISIT_TYPE(self);
    Py_VISIT(self->owner);
    Py_VISIT(self->readers);
    Py_VISIT(self->ready);
    Py_VISIT(self->ready_part);
    Py_VISIT(self->polled);
    Py_VISIT(self->fifo);
    Py_VISIT(self->active_of);
    Py_VISIT(self->held);
    return 0;
}
static int receiver_clear(Receiver *self) {
    self->active_count = 0;
    Py_CLEAR(self->owner);
    Py_CLEAR(self->readers);
    Py_CLEAR(self->ready);
    Py_CLEAR(self->ready_part);
    Py_CLEAR(self->polled);
    Py_CLEAR(self->fifo);
    Py_CLEAR(self->active_of);
    Py_CLEAR(self->held);
    return 0;
}
static void receiver_dealloc(PyObject *op) {
    Receiver *self = (Receiver *)op;
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    receiver_clear(self);
    PyMem_Free(self->active);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(op);
    Py_DECREF(type);
}
static PyObject *receiver_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)args;
    (void)kwargs;
    Receiver *self = (Receiver *)PyType_GenericNew(type, NULL, NULL);
    if (self) self->generation = -1;
    return (PyObject *)self;
}

static inline int is_none(PyObject *o) { return !o || o == Py_None; }
static inline sl_reader *reader_of(Assigned *part) { return (sl_reader *)(uintptr_t)part->address; }

/* Enters a call. 1; 0: Python's case (closed, another call is going on, fileno() was called, deserializers, the assignment has to be looked at). */
static int enter(Receiver *self) {
    if (self->generation != generation || !self->plain || !is_none(self->owner) || !is_none(self->fifo)) return 0;
    if (self->version != (int64_t)sl_load_acquire((const uint64_t *)(uintptr_t)self->version_at)) return 0;
    unsigned long long none = 0, me = PyThread_get_thread_ident();
#ifndef Py_GIL_DISABLED
    if (self->busy) return 0;
    self->busy = me;
    (void)none;
    return 1;
#else
    return __atomic_compare_exchange_n(&self->busy, &none, me, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED); /* pairs with leave(), by another thread */
#endif
}
static void unpin(Receiver *self) {
    if (is_none(self->polled)) return;
    core.done(reader_of((Assigned *)self->polled));
    Py_CLEAR(self->polled);
}
static void leave(Receiver *self) {
    unpin(self); /* no pin is held outside a call */
    __atomic_store_n(&self->busy, 0, __ATOMIC_RELEASE);
}

/* Fills `active`, if the readers have changed. -1 with an exception. */
static int activate(Receiver *self) {
    if (!is_none(self->readers) && self->active_of == self->readers) return 0;
    self->active_count = 0;
    Py_CLEAR(self->active_of);
    PyObject *array = PyObject_CallMethodObjArgs((PyObject *)self, s__reader_array, NULL), *parts = NULL, *list = NULL;
    if (array) parts = PyObject_GetAttr((PyObject *)self, s__parts);
    if (parts) list = PyDict_Values(parts);
    Py_XDECREF(parts);
    if (!list) { Py_XDECREF(array); return -1; }
    Py_ssize_t n = PyList_Size(list), used = 0;
    Assigned **active = PyMem_Realloc(self->active, (size_t)(n ? n : 1) * sizeof *active);
    if (!active) { Py_DECREF(array); Py_DECREF(list); PyErr_NoMemory(); return -1; }
    self->active = active;
    for (Py_ssize_t i = 0; i < n; i++) {
        Assigned *part = (Assigned *)PyList_GetItem(list, i);
        if (Py_TYPE((PyObject *)part) == assigned_type && !part->paused) active[used++] = part;
    }
    Py_XDECREF(self->held);
    self->held = list;
    self->active_of = array;
    self->active_count = used;
    return 0;
}

#define PYTHON (-1000)       /* a case for Python; nothing was changed but the reader, which is set back */

/* Views of up to `most` records at the position of a partition in self->views. 0 nothing there; PYTHON. */
static inline int64_t fetch(Receiver *self, Assigned *part, size_t most) {
    if (sl_unlikely(part->position < 0 || part->reader_at != part->position)) return PYTHON;
    if (self->polled != (PyObject *)part) {
        unpin(self);
        Py_XDECREF(self->polled);
        Py_INCREF((PyObject *)part);
        self->polled = (PyObject *)part;
    }
    int64_t n = core.poll(reader_of(part), self->views, most < VIEWS ? most : VIEWS, (uint64_t)self->fetch_bytes, self->check);
    if (sl_likely(n > 0)) { part->reader_at = (int64_t)core.position(reader_of(part)); return n; }
    if (n == 0) { part->position = part->reader_at = (int64_t)core.position(reader_of(part)); return 0; } /* past markers */
    part->reader_at = -1;
    return PYTHON;
}

/* Nothing was there: looks a little longer with the GIL held, if the consumer spins at all. 1 there may be something. */
static int look_again(Receiver *self) {
    if (self->spin_ns == 0 || self->active_count == 0) return 0;
    for (Py_ssize_t looks = 0; looks < HELD_LOOKS; looks += self->active_count) {
        for (Py_ssize_t i = 0; i < self->active_count; i++) if (core.ready(reader_of(self->active[i]))) return 1;
        sl_pause();
    }
    return 0;
}

/* A slice of waiting in Python, which gives the GIL up, runs signal handlers and finds out what is wrong. 1 look again, 0 the time is over, -1. */
static int sleep_slice(Receiver *self, int64_t deadline_ns) {
    PyObject *deadline = PyLong_FromLongLong(deadline_ns), *again = NULL;
    unpin(self);
    if (deadline) again = PyObject_CallMethodObjArgs((PyObject *)self, s__sleep, deadline, NULL);
    Py_XDECREF(deadline);
    if (!again) return -1;
    int yes = PyObject_IsTrue(again);
    Py_DECREF(again);
    return yes;
}

/* May the call go on after Python code ran? The assignment may have changed, the consumer cannot have been closed: it is busy. */
static int still(Receiver *self) {
    return self->version == (int64_t)sl_load_acquire((const uint64_t *)(uintptr_t)self->version_at) && is_none(self->fifo);
}

static PyObject *pop_ready(Receiver *self) {
    if (is_none(self->ready)) return NULL;
    PyObject *record = PyIter_Next(self->ready);
    if (!record) { Py_CLEAR(self->ready); return NULL; }
    if (!is_none(self->ready_part) && Py_TYPE(record) == record_type)
        ((Assigned *)self->ready_part)->position = ((Record *)record)->offset + 1;
    return record;
}

static void set_object(PyObject **at, PyObject *to) {
    PyObject *old = *at;
    Py_XINCREF(to);
    *at = to;
    Py_XDECREF(old);
}

/* n > 0 views as Records: the first is handed out, the others are ready. NULL: decoding failed, and nothing has moved. */
static PyObject *hand_out(Receiver *self, Assigned *part, int64_t n) {
    PyObject *first = record_of(&self->views[0], part->topic, part->partition, part->timestamp_type), *rest = NULL, *list = NULL;
    if (!first) return NULL;
    uint64_t bytes = self->views[0].value_bytes + self->views[0].key_bytes + self->views[0].headers_bytes + self->views[0].dtype_bytes;
    if (n > 1) {
        if (!(list = PyList_New(n - 1))) { Py_DECREF(first); return NULL; }
        for (int64_t i = 1; i < n; i++) {
            const sl_view *v = &self->views[i];
            PyObject *record = record_of(v, part->topic, part->partition, part->timestamp_type);
            if (!record) { Py_DECREF(first); Py_DECREF(list); return NULL; }
            PyList_SetItem(list, i - 1, record);
            bytes += v->value_bytes + v->key_bytes + v->headers_bytes + v->dtype_bytes;
        }
        rest = PyObject_GetIter(list);
        Py_DECREF(list);
        if (!rest) { Py_DECREF(first); return NULL; }
    }
    set_object(&self->ready, rest);
    Py_XDECREF(rest);
    if (self->ready_part != (PyObject *)part) set_object(&self->ready_part, (PyObject *)part);
    self->turn++;
    self->records += n;
    self->nbytes += (int64_t)bytes;
    part->position = ((Record *)first)->offset + 1;
    return first;
}

/* The next record of any partition. */
static PyObject *receiver_next(PyObject *op) {
    Receiver *self = (Receiver *)op;
    if (sl_unlikely(self->generation != generation)) {
        PyObject *open = PyObject_CallMethodObjArgs(op, s__check_open, NULL); /* raises */
        Py_XDECREF(open);
        return NULL;
    }
    PyObject *record = pop_ready(self);
    if (record || PyErr_Occurred()) return record;
    if (!enter(self)) goto python;
    if (!is_none(self->ready_part)) { /* all was handed out; what lies between is markers */
        Assigned *part = (Assigned *)self->ready_part;
        if (part->reader_at > part->position) part->position = part->reader_at;
        Py_CLEAR(self->ready_part);
    }
    int64_t deadline = 0;
    for (;;) {
        if (activate(self) < 0) { leave(self); return NULL; }
        Py_ssize_t count = self->active_count, at = count ? (Py_ssize_t)(self->turn % count) : 0;
        for (Py_ssize_t i = 0; i < count; i++) {
            Assigned *part = self->active[at];
            if (++at == count) at = 0;
            int64_t n = fetch(self, part, (size_t)self->max_poll_records);
            if (n == 0) continue;
            if (n < 0) goto leave;
            record = hand_out(self, part, n);
            if (!record) { part->reader_at = -1; if (!PyErr_ExceptionMatches(PyExc_Exception)) { leave(self); return NULL; } PyErr_Clear(); goto leave; }
            leave(self);
            return record;
        }
        if (look_again(self)) continue;
        if (deadline == 0) deadline = core.monotonic_ns() + self->timeout_ns;
        int again = sleep_slice(self, deadline);
        if (again <= 0) { leave(self); return NULL; } /* StopIteration, or what was raised */
        if (!still(self)) goto leave;
    }
leave:
    leave(self);
python:;
    PyObject *fetched = PyObject_CallMethodObjArgs(op, s__fetch_ready, NULL);
    if (!fetched) return NULL;
    Py_DECREF(fetched);
    return pop_ready(self);
}

/* Records of one partition, up to *left and about fetch_bytes. The list; NULL with *error 0 nothing there, PYTHON, -1 an exception. */
static PyObject *gather(Receiver *self, Assigned *part, int64_t *left, int64_t *error) {
    PyObject *list = NULL;
    int64_t bytes = 0, got = 0;
    *error = 0;
    while (*left > got && bytes < self->fetch_bytes) {
        int64_t position = part->position, after = part->reader_at;
        if (got) part->position = after; /* goes on where the reader is; the position moves when the records are handed over */
        int64_t n = fetch(self, part, (size_t)(*left - got));
        if (got) part->position = position;
        if (n == 0) break;
        if (n < 0) {
            if (got) part->reader_at = after; /* it comes again with the next call */
            else *error = PYTHON;
            break;
        }
        if (!list && !(list = PyList_New(0))) goto failed;
        for (int64_t i = 0; i < n; i++) {
            const sl_view *v = &self->views[i];
            PyObject *record = record_of(v, part->topic, part->partition, part->timestamp_type);
            if (!record) goto failed;
            int rc = PyList_Append(list, record);
            Py_DECREF(record);
            if (rc < 0) goto failed;
            bytes += v->value_bytes + v->key_bytes + v->headers_bytes + v->dtype_bytes;
        }
        got += n;
    }
    *left -= got;
    self->records += got;
    self->nbytes += bytes;
    return list;
failed:
    part->reader_at = -1;
    Py_XDECREF(list);
    *error = PyErr_ExceptionMatches(PyExc_Exception) ? PYTHON : -1;
    if (*error == PYTHON) PyErr_Clear();
    return NULL;
}

/* poll(timeout_ms=0, max_records=None, update_offsets=True) */
static PyObject *receiver_poll(PyObject *op, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    Receiver *self = (Receiver *)op;
    PyObject *timeout = NULL, *max_records = Py_None;
    if (nargs > 2) goto python;
    if (nargs > 0) timeout = args[0];
    if (nargs > 1) max_records = args[1];
    if (kwnames)
        for (Py_ssize_t i = 0, n = PyTuple_Size(kwnames); i < n; i++) {
            PyObject *name = PyTuple_GetItem(kwnames, i);
            if (name == s_timeout_ms && !timeout) timeout = args[nargs + i];
            else if (name == s_max_records && max_records == Py_None) max_records = args[nargs + i];
            else goto python;
        }
    int64_t most = self->max_poll_records;
    if (max_records != Py_None) {
        if (!PyLong_CheckExact(max_records)) goto python;
        most = PyLong_AsLongLong(max_records);
        if (most < 1) { PyErr_Clear(); goto python; }
    }
    double ms = 0;
    if (timeout) {
        if (!PyLong_CheckExact(timeout) && !PyFloat_CheckExact(timeout)) goto python;
        ms = PyFloat_AsDouble(timeout);
        if (PyErr_Occurred() || ms != ms) { PyErr_Clear(); goto python; }
        if (!(ms < 1e12)) ms = 1e12;
    }
    if (!enter(self)) goto python;
    Py_CLEAR(self->ready);
    Py_CLEAR(self->ready_part);
    PyObject *found = PyDict_New();
    if (!found) { leave(self); return NULL; }
    int64_t deadline = 0;
    for (;;) {
        if (activate(self) < 0) goto failed;
        int64_t left = most, error = 0;
        Py_ssize_t count = self->active_count, at = count ? (Py_ssize_t)(self->turn % count) : 0, with = 0;
        for (Py_ssize_t i = 0; i < count && left > 0; i++) {
            Assigned *part = self->active[at];
            if (++at == count) at = 0;
            PyObject *list = gather(self, part, &left, &error);
            if (error == -1) goto failed;
            if (error) break;
            if (!list) continue;
            int rc = PyDict_SetItem(found, part->tp, list);
            Py_DECREF(list);
            if (rc < 0) { part->reader_at = -1; goto failed; }
            with++;
        }
        if (with) {
            /* All is made; now the positions move, of those that were found. */
            for (Py_ssize_t i = 0; i < count; i++) {
                Assigned *part = self->active[i];
                if (part->reader_at > part->position && PyDict_GetItemWithError(found, part->tp)) part->position = part->reader_at;
            }
            self->turn++;
            self->polls++;
            leave(self);
            return found;
        }
        if (error) { leave(self); Py_DECREF(found); goto python; }
        if (ms <= 0) break;
        if (look_again(self)) continue;
        if (deadline == 0) deadline = core.monotonic_ns() + (int64_t)(ms * 1e6);
        int again = sleep_slice(self, deadline);
        if (again < 0) goto failed;
        if (again == 0) break;
        if (!still(self)) { /* the rest of the time is Python's */
            leave(self);
            Py_DECREF(found);
            double rest = (double)(deadline - core.monotonic_ns()) / 1e6;
            PyObject *method = PyObject_GetAttr(op, s__poll_any);
            found = method ? PyObject_CallFunction(method, "dO", rest > 0 ? rest : 0.0, max_records) : NULL;
            Py_XDECREF(method);
            return found;
        }
    }
    self->polls++;
    leave(self);
    return found;
failed:
    for (Py_ssize_t i = 0; i < self->active_count; i++)
        if (self->active[i]->reader_at > self->active[i]->position) self->active[i]->reader_at = -1;
    leave(self);
    Py_DECREF(found);
    return NULL;
python:
    return call_python(op, s__poll_any, args, nargs, kwnames);
}

static PyMethodDef receiver_methods[] = {
    {"poll", (PyCFunction)(void (*)(void))receiver_poll, METH_FASTCALL | METH_KEYWORDS, NULL}, {NULL, NULL, 0, NULL}};
#define OBJECT(name, field) {name, T_OBJECT, offsetof(Receiver, field), 0, NULL}
#define NUMBER(name, field) {name, T_LONGLONG, offsetof(Receiver, field), 0, NULL}
static PyMemberDef receiver_members[] = {
    OBJECT("_owner", owner), OBJECT("_readers", readers), OBJECT("_ready", ready), OBJECT("_ready_part", ready_part), OBJECT("_polled", polled),
    OBJECT("_fifo", fifo), NUMBER("_generation", generation), NUMBER("_version", version), NUMBER("_turn", turn),
    NUMBER("_max_poll_records", max_poll_records), NUMBER("_fetch_bytes", fetch_bytes), NUMBER("_timeout_ns", timeout_ns), NUMBER("_spin_ns", spin_ns),
    NUMBER("_records_total", records), NUMBER("_bytes_total", nbytes), NUMBER("_polls_total", polls),
    {"_version_at", T_ULONGLONG, offsetof(Receiver, version_at), 0, NULL}, {"_busy", T_ULONGLONG, offsetof(Receiver, busy), READONLY, NULL},
    {"_check", T_INT, offsetof(Receiver, check), 0, NULL}, {"_plain", T_INT, offsetof(Receiver, plain), 0, NULL}, {NULL, 0, 0, 0, NULL}};
static PyType_Slot receiver_slots[] = {
    {Py_tp_traverse, receiver_traverse}, {Py_tp_clear, receiver_clear}, {Py_tp_dealloc, receiver_dealloc}, {Py_tp_new, receiver_new},
    {Py_tp_iter, PyObject_SelfIter}, {Py_tp_iternext, receiver_next}, {Py_tp_methods, receiver_methods}, {Py_tp_members, receiver_members}, {0, NULL}};
static PyType_Spec receiver_spec = {"shmlog._fast.Receiver", sizeof(Receiver), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE,
                                    receiver_slots};

/* ---- the module -------------------------------------------------------------------------------------------------------------------------- */

/* connect({name of a core function: its address}) */
static PyObject *fast_connect(PyObject *module, PyObject *addresses) {
    (void)module;
    struct { const char *name; void **to; } wanted[] = {
        {"sl_append", (void **)&core.append}, {"sl_reader_poll", (void **)&core.poll}, {"sl_reader_position", (void **)&core.position},
        {"sl_reader_done", (void **)&core.done}, {"sl_reader_ready", (void **)&core.ready}, {"sl_murmur2", (void **)&core.murmur2},
        {"sl_monotonic_ns", (void **)&core.monotonic_ns}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        PyObject *address = PyMapping_GetItemString(addresses, wanted[i].name);
        if (!address) return NULL;
        *wanted[i].to = PyLong_AsVoidPtr(address);
        Py_DECREF(address);
        if (!*wanted[i].to) return NULL;
    }
    Py_RETURN_NONE;
}
/* forked(generation): handle.generation has this value now. */
static PyObject *fast_forked(PyObject *module, PyObject *arg) {
    (void)module;
    generation = PyLong_AsLongLong(arg);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}
/* use(deliveries=class, finish=function) */
static PyObject *fast_use(PyObject *module, PyObject *args, PyObject *kwargs) {
    (void)module;
    static char *names[] = {"deliveries", "finish", NULL};
    PyObject *given[2] = {NULL, NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|OO:use", names, &given[0], &given[1])) return NULL;
    if (given[0]) set_object(&deliveries_type, given[0]);
    if (given[1]) set_object(&finish, given[1]);
    Py_RETURN_NONE;
}
/* describe(name, text): the docstring of a method, which Python has. */
static PyObject *fast_describe(PyObject *module, PyObject *args) {
    (void)module;
    const char *name, *text;
    if (!PyArg_ParseTuple(args, "ss:describe", &name, &text)) return NULL;
    PyMethodDef *tables[] = {sender_methods, receiver_methods};
    for (size_t t = 0; t < 2; t++)
        for (PyMethodDef *m = tables[t]; m->ml_name; m++)
            if (strcmp(m->ml_name, name) == 0) { m->ml_doc = strdup(text); Py_RETURN_NONE; }
    PyErr_SetString(PyExc_KeyError, name);
    return NULL;
}

static PyMethodDef module_methods[] = {
    {"connect", fast_connect, METH_O, NULL}, {"forked", fast_forked, METH_O, NULL},
    {"use", (PyCFunction)(void (*)(void))fast_use, METH_VARARGS | METH_KEYWORDS, NULL}, {"describe", fast_describe, METH_VARARGS, NULL},
    {"records", (PyCFunction)(void (*)(void))fast_records, METH_FASTCALL, NULL}, {"values", fast_values, METH_O, NULL},
    {"value_views", (PyCFunction)(void (*)(void))fast_value_views, METH_FASTCALL, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "shmlog._fast", "The calls that are made once a record.", -1, module_methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void);
PyMODINIT_FUNC PyInit__fast(void) {
    PyObject *module = PyModule_Create(&module_def);
    if (!module) return NULL;
    /* No Py_mod_gil: a free-threaded interpreter turns its GIL on when it imports this, until the tests have run on one without. */
#define INTERN(name) if (!(s_##name = PyUnicode_InternFromString(#name))) return NULL;
    NAMES(INTERN)
    struct { const char *name; PyType_Spec *spec; PyTypeObject **to; } types[] = {
        {"Record", &record_spec, &record_type}, {"Delivery", &delivery_spec, &delivery_type}, {"Lane", &lane_spec, &lane_type},
        {"Lanes", &lanes_spec, &lanes_type}, {"Sender", &sender_spec, NULL}, {"Assigned", &assigned_spec, &assigned_type}, {"Receiver", &receiver_spec, NULL}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        PyObject *type = PyType_FromSpec(types[i].spec);
        if (!type) return NULL;
        if (types[i].to) { *types[i].to = (PyTypeObject *)type; Py_INCREF(type); }
        if (PyModule_AddObject(module, types[i].name, type) < 0) return NULL;
    }
    return module;
}
#endif
