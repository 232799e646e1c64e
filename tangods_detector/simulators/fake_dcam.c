/* A library that behaves as Hamamatsu's libdcamapi.so does, with simulated cameras behind it; all symbols of DCAM-API 4
   that drive a camera.

   Test only: commands, one a line. They come from the file `<this library>.conf` when the library is first initialised,
   through the FIFO `<this library>.control` from then on (if that is there), or by fake_dcam_command in the same process:
     camera MODEL SERIAL      one more camera: flash4, fusion, lightning; only in the file
     edge N [PERIOD [WIDTH]]  N edges, or gates, come at the trigger input
     set KNOB VALUE           something goes wrong, or differs; the knobs are in fake_dcam_camera.h
     get KNOB                 only by fake_dcam_command
     lose N N ...             these frames of the next series get lost on their way
     reset                    all knobs as at the beginning
     pull, plug               the cable of the first camera */
#define _GNU_SOURCE
#include "fake_dcam_camera.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>

struct waiter {
    struct waiter *next;
    struct camera *camera;
    int aborted, waiting;
    int32_t seen;
    int stop_seen;
};

#define MAX_CAMERAS 8
static struct camera cameras[MAX_CAMERAS];
static int ncameras, initialised;

/* --- time -------------------------------------------------------------------------------------------------------- */

static void once(void) __attribute__((constructor));
static void once(void)
{
    pthread_condattr_t how;
    pthread_condattr_init(&how);
    pthread_condattr_setclock(&how, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &how);
    pthread_condattr_destroy(&how);
}

/* Until then (s), or until something changes; the lock is held. False: it is then. */
static int wait_until(double then)
{
    struct timespec t = {(time_t)then, (long)((then - floor(then)) * 1e9)};
    return pthread_cond_timedwait(&changed, &lock, &t) != ETIMEDOUT;
}

/* --- a series ---------------------------------------------------------------------------------------------------- */

static int over(struct camera *c) { return c->stopping || c->dead; }

static int sleep_till(struct camera *c, double then)
{
    while (!over(c) && now_s() < then)
        wait_until(then);
    return !over(c);
}

/* When the next edge comes that a camera, busy until `ready`, heeds; -1: none has come, and `next` says when to look. */
static double take_edge(struct camera *c, double ready, double *next)
{
    double now = now_s();
    *next = now + 1;
    while (edges.left) {
        double at = edges.period ? edges.next : fmax(edges.next, ready);
        if (at > now) {
            *next = at;
            return -1;
        }
        edges.left--;
        edges.next = edges.period ? at + edges.period : at;
        if (used_up("skip_edges", fmax(0, knob("skip_edges") - 1)) > 0)
            continue;
        if (at >= ready) {
            put(c, CAMERASTATUS_INPUTTRIGGER, 1);
            return at;
        }
        *knob_at("edges_ignored") += 1;
        put(c, CAMERASTATUS_INPUTTRIGGER, 3);
    }
    return -1;
}

/* Waits for an edge or a software trigger; returns when it came, -1: stopped. */
static double next_start(struct camera *c, double ready)
{
    int software = get(c, TRIGGERSOURCE) == 3;
    c->waiting = 1;
    double start = -1;
    while (!over(c) && start < 0) {
        double next = now_s() + 1;
        if (software && c->software) {
            c->software = 0;
            start = fmax(ready, now_s());
        } else if (!software) {
            start = take_edge(c, ready, &next);
        }
        if (start < 0 && !over(c))
            wait_until(next);
    }
    c->waiting = 0;
    return start;
}

static int is_lost(int32_t frame)
{
    int at = (int)knob("jump_at");
    if (at >= 0 && frame >= at && frame < at + knob("jump"))
        return 1;
    for (int i = 0; i < nlose; i++)
        if (lose[i] == frame)
            return 1;
    return 0;
}

/* One frame is exposed and read: into its buffer with it, unless it gets lost. */
static void transfer(struct camera *c, const struct layout *l)
{
    int32_t frame = c->exposed;
    if (frame == (int)knob("unplug_at")) {
        *knob_at("unplug_at") = -1;
        c->dead = 1, c->plugged = 0;
        pthread_cond_broadcast(&changed);
        return;
    }
    if (frame == (int)knob("stall_at"))
        while (!over(c))
            wait_until(now_s() + 1);
    if (over(c))
        return;
    c->powered++;
    if (!is_lost(frame)) {
        int slot = c->count % c->nbuffers;
        uint8_t *to = c->buffers[slot];
        pthread_mutex_unlock(&lock);
        sign(l, to, frame);
        pthread_mutex_lock(&lock);
        struct timespec t;
        clock_gettime(CLOCK_REALTIME, &t);
        c->stamps[slot] = (struct stamp){{(uint32_t)t.tv_sec, (int32_t)(t.tv_nsec / 1000)}, frame, c->powered};
        c->count++;
        *knob_at("frames") = c->count;
    } else if (!knob("untold")) {
        *(knob("missing") ? &c->missing : &c->lost) += 1;
    }
    c->exposed++;
    if (c->snap && c->count >= c->nbuffers)
        c->stopping = 1;
    pthread_cond_broadcast(&changed);
}

static void *series(void *of)
{
    struct camera *c = of;
    pthread_mutex_lock(&lock);
    struct layout l = layout_of(c);
    for (int i = 0; i < c->nbuffers; i++)
        paint(&l, c->buffers[i]);
    int source = (int)get(c, TRIGGERSOURCE), active = (int)get(c, TRIGGERACTIVE), mode = (int)get(c, TRIGGER_MODE);
    int triggered = source != 1, free_run = mode == 6;
    int burst = mode == 8 ? (int)get(c, TRIGGERMULTIFRAME_COUNT) : 1;
    int left = 0; /* frames of this trigger */
    double ready = triggered ? c->started : now_s(), start = ready;
    if (active == 3 && triggered && (start = next_start(c, ready)) >= 0)
        ready = start; /* the first edge ends nothing */
    while (!over(c)) {
        double pace = knob("pace"), exposure = pace * get(c, EXPOSURETIME), readout = pace * get(c, TIMING_READOUTTIME);
        double period = fmax(pace * get(c, INTERNAL_FRAMEINTERVAL), fmax(exposure, readout));
        int begins = triggered && !left;
        if (begins) {
            start = next_start(c, ready);
            if (start < 0)
                break;
            left = free_run ? -1 : burst;
            start += get(c, TRIGGERDELAY);
        } else {
            start = ready;
        }
        if (triggered && active == 2)
            exposure = edges.width ? edges.width : exposure;
        if (triggered && active == 3)
            exposure = 0; /* this edge has ended it */
        if (!sleep_till(c, start + exposure))
            break;
        transfer(c, &l);
        if (left > 0)
            left--;
        ready = start + (triggered && !left ? exposure + readout : period);
        if (triggered && active == 3)
            ready = start + readout;
    }
    c->stopped = 1;
    if (c->status == STATUS_BUSY)
        c->status = STATUS_READY;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return NULL;
}

/* --- who asks ---------------------------------------------------------------------------------------------------- */

#define API __attribute__((visibility("default")))
#define ENTER(c, handle)                                                                                               \
    struct camera *c = (handle);                                                                                       \
    pthread_mutex_lock(&lock);                                                                                         \
    DCAMERR answer = check_handle(c);                                                                                  \
    if (answer < 0)                                                                                                    \
    return leave(answer)

static DCAMERR leave(DCAMERR answer)
{
    pthread_mutex_unlock(&lock);
    return answer;
}

static DCAMERR check_handle(struct camera *c)
{
    if (!initialised || c < cameras || c >= cameras + ncameras || !c->opened)
        return INVALIDHANDLE;
    return c->dead ? NOCONNECTION : SUCCESS;
}

static void copy_text(char *to, int32_t bytes, const char *text)
{
    if (to && bytes > 0)
        snprintf(to, (size_t)bytes, "%s", text);
}

/* --- control ----------------------------------------------------------------------------------------------------- */

static void reset_knobs(void)
{
    for (size_t i = 0; i < sizeof knobs / sizeof *knobs; i++)
        if (strcmp(knobs[i].name, "allocated"))
            knobs[i].value = knobs[i].none;
    nlose = 0;
    edges.left = 0, edges.period = edges.width = 0;
}

static int knob_exists(const char *name)
{
    for (size_t i = 0; i < sizeof knobs / sizeof *knobs; i++)
        if (!strcmp(knobs[i].name, name))
            return 1;
    return 0;
}

API const char *fake_dcam_command(const char *text)
{
    static __thread char answer[64];
    char word[32] = "", name[32] = "";
    double value = 0;
    int rest = 0;
    snprintf(answer, sizeof answer, "done");
    sscanf(text, "%31s %n", word, &rest);
    pthread_mutex_lock(&lock);
    if (!strcmp(word, "edge")) {
        double n = 1, period = 0, width = 0;
        sscanf(text + rest, "%lf %lf %lf", &n, &period, &width);
        edges.left += (long)n, edges.period = period, edges.width = width, edges.next = now_s();
    } else if (!strcmp(word, "set") && sscanf(text + rest, "%31s %lf", name, &value) == 2 && knob_exists(name)) {
        *knob_at(name) = value;
        for (int i = 0; i < ncameras; i++)
            if (cameras[i].nproperties)
                recalculate(&cameras[i]);
    } else if (!strcmp(word, "get") && sscanf(text + rest, "%31s", name) == 1 && knob_exists(name)) {
        snprintf(answer, sizeof answer, "%.17g", knob(name));
    } else if (!strcmp(word, "lose")) {
        for (const char *p = text + rest; *p && nlose < MAX_LOST; nlose++) {
            char *end;
            lose[nlose] = (int32_t)strtol(p, &end, 10);
            if (end == p)
                break;
            p = end;
        }
    } else if (!strcmp(word, "reset")) {
        reset_knobs();
    } else if (!strcmp(word, "pull")) {
        cameras[0].plugged = 0;
        cameras[0].dead = cameras[0].opened;
        put(&cameras[0], SYSTEM_ALIVE, 1);
    } else if (!strcmp(word, "plug")) {
        cameras[0].plugged = 1;
    } else {
        snprintf(answer, sizeof answer, "not known: %.40s", text);
    }
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return answer;
}

static FILE *beside(const char *ending, const char *mode)
{
    char path[4096];
    Dl_info self;
    if (!dladdr(&ncameras, &self))
        return NULL;
    snprintf(path, sizeof path, "%s%s", self.dli_fname, ending);
    int fd = open(path, (mode[1] ? O_RDWR : O_RDONLY) | O_NONBLOCK | O_CLOEXEC);
    return fd < 0 ? NULL : fdopen(fd, mode);
}

static void obey(char *line)
{
    line[strcspn(line, "\n")] = 0;
    const char *answer = *line ? fake_dcam_command(line) : "";
    if (!strncmp(answer, "not known", 9))
        fprintf(stderr, "fake libdcamapi: %s\n", answer);
}

static void *listen_to_orders(void *of)
{
    FILE *fifo = of;
    char line[512];
    size_t used = 0;
    struct pollfd one = {fileno(fifo), POLLIN, 0};
    while (poll(&one, 1, -1) >= 0 || errno == EINTR)
        while (read(fileno(fifo), line + used, 1) == 1) {
            if (line[used] != '\n' && used + 2 < sizeof line) {
                used++;
                continue;
            }
            line[used] = 0, used = 0;
            obey(line);
        }
    fclose(fifo);
    return NULL;
}

/* From the first initialisation on, as long as the process lives: a camera can be plugged in when there is none. */
static void begin_control(void)
{
    pthread_t thread;
    FILE *fifo = beside(".control", "r+");
    if (!fifo)
        return;
    if (pthread_create(&thread, NULL, listen_to_orders, fifo))
        fclose(fifo);
    else
        pthread_detach(thread);
}

/* --- library and cameras ----------------------------------------------------------------------------------------- */

static void add_camera(const char *model, const char *serial)
{
    for (size_t m = 0; m < sizeof MODELS / sizeof *MODELS; m++)
        if (!strcmp(MODELS[m].key, model) && ncameras < MAX_CAMERAS) {
            struct camera *c = &cameras[ncameras++];
            memset(c, 0, sizeof *c);
            c->model = &MODELS[m], c->plugged = 1;
            snprintf(c->serial, sizeof c->serial, "%s", serial);
        }
}

static void find_cameras(void)
{
    FILE *file = beside(".conf", "r");
    char line[512], model[32], serial[32];
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "camera %31s %31s", model, serial) == 2)
            add_camera(model, serial);
        else
            obey(line);
    if (file)
        fclose(file);
    if (!ncameras)
        add_camera("flash4", "000123"), add_camera("lightning", "000456"), add_camera("fusion", "000789");
}

API DCAMERR dcamapi_init(DCAMAPI_INIT *p)
{
    if (p && p->size != (int32_t)sizeof *p)
        return INVALIDPARAM;
    if (!ncameras)
        find_cameras(), begin_control();
    pthread_mutex_lock(&lock);
    DCAMERR answer = (DCAMERR)used_up("init_error", 0);
    int there = 0;
    for (int i = 0; i < ncameras; i++)
        there += cameras[i].plugged;
    if (answer < 0 || !there)
        return leave(answer < 0 ? answer : NOCAMERA);
    initialised = 1;
    if (p)
        p->iDeviceCount = ncameras;
    return leave(SUCCESS);
}

API DCAMERR dcamdev_close(HDCAM h);

API DCAMERR dcamapi_uninit(void)
{
    for (int i = 0; i < ncameras; i++)
        if (cameras[i].opened)
            dcamdev_close(&cameras[i]);
    pthread_mutex_lock(&lock);
    initialised = 0;
    return leave(SUCCESS);
}

API DCAMERR dcamdev_open(DCAMDEV_OPEN *p)
{
    pthread_mutex_lock(&lock);
    if (!p || p->size != (int32_t)sizeof *p)
        return leave(INVALIDPARAM);
    if (!initialised || p->index < 0 || p->index >= ncameras || !cameras[p->index].plugged)
        return leave(INVALIDCAMERA);
    DCAMERR wished = (DCAMERR)used_up("open_error", 0);
    if (wished < 0)
        return leave(wished);
    struct camera *c = &cameras[p->index];
    if (c->opened)
        return leave(EXCLUDED);
    make_properties(c);
    recalculate(c);
    c->opened = 1, c->dead = 0, c->status = STATUS_STABLE;
    c->temperature = 25, c->felt = now_s();
    p->hdcam = c;
    return leave(SUCCESS);
}

static void free_buffers(struct camera *c)
{
    if (!c->buffers)
        return;
    for (int i = 0; i < c->nbuffers && c->own_buffers; i++)
        free(c->buffers[i]);
    free(c->buffers);
    free(c->stamps);
    allocated(-2 - (c->own_buffers ? c->nbuffers : 0));
    c->buffers = NULL, c->stamps = NULL, c->nbuffers = 0;
}

static void halt(struct camera *c)
{
    if (!c->has_thread)
        return;
    c->stopping = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    pthread_join(c->thread, NULL);
    pthread_mutex_lock(&lock);
    c->has_thread = 0;
    allocated(-1);
}

API DCAMERR dcamdev_close(HDCAM h)
{
    pthread_mutex_lock(&lock);
    if (check_handle(h) == INVALIDHANDLE)
        return leave(INVALIDHANDLE);
    halt(h);
    free_buffers(h);
    while (h->waiters) {
        struct waiter *w = h->waiters;
        h->waiters = w->next;
        free(w);
        allocated(-1);
    }
    h->opened = 0, h->dead = 0;
    return leave(SUCCESS);
}

API DCAMERR dcamdev_getcapability(HDCAM h, DCAMDEV_CAPABILITY *p)
{
    ENTER(c, h);
    if (!p || p->size != (int32_t)sizeof *p)
        return leave(INVALIDPARAM);
    p->capflag = p->domain ? 0 : CAPFLAG_TIMESTAMP | CAPFLAG_FRAMESTAMP | (c->model->camerastamp ? CAPFLAG_CAMERASTAMP : 0);
    return leave(SUCCESS);
}

static const char *error_text(int32_t code)
{
    switch (code) {
    case NOCAMERA: return "no cameras";
    case EXCLUDED: return "already opened by another process";
    case NOMEMORY: return "not enough memory";
    case NOCONNECTION: return "no connection to the camera";
    case OUTOFRANGE: return "value is out of range";
    case INVALIDVALUE: return "invalid property value";
    case INVALIDSUBARRAY: return "the combination of subarray values are invalid";
    case ACCESSDENY: return "the property cannot be accessed during this status";
    }
    return NULL;
}

API DCAMERR dcamdev_getstring(HDCAM h, DCAMDEV_STRING *p)
{
    pthread_mutex_lock(&lock);
    if (!p || p->size != (int32_t)sizeof *p)
        return leave(INVALIDPARAM);
    if (p->iString < 0) {
        const char *text = error_text(p->iString);
        copy_text(p->text, p->textbytes, text ? text : "");
        return leave(text ? SUCCESS : INVALIDPARAM);
    }
    struct camera *c = h;
    if ((intptr_t)h >= 0 && (intptr_t)h < ncameras) /* the index of a camera that is not open */
        c = &cameras[(intptr_t)h];
    else if (check_handle(h) == INVALIDHANDLE)
        return leave(INVALIDHANDLE);
    if (!c->plugged)
        return leave(NOCONNECTION);
    char text[64];
    switch (p->iString) {
    case 0x04000101: snprintf(text, sizeof text, "%s", c->model->mono12p ? "CoaXPress" : "USB3"); break;
    case 0x04000102: snprintf(text, sizeof text, "S/N: %s", c->serial); break;
    case 0x04000103: snprintf(text, sizeof text, "Hamamatsu"); break;
    case 0x04000104: snprintf(text, sizeof text, "%s", c->model->name); break;
    case 0x04000105: snprintf(text, sizeof text, "4.20.B"); break;
    case 0x04000106: case 0x04000107: snprintf(text, sizeof text, "22.10.6613"); break;
    case 0x04000108: snprintf(text, sizeof text, "4.00"); break;
    case 0x0400012c: snprintf(text, sizeof text, "%s", c->model->series); break;
    default: return leave(NOTSUPPORT);
    }
    copy_text(p->text, p->textbytes, text);
    return leave(SUCCESS);
}

/* --- properties -------------------------------------------------------------------------------------------------- */

API DCAMERR dcamprop_getattr(HDCAM h, DCAMPROP_ATTR *a)
{
    ENTER(c, h);
    if (!a || a->cbSize != (int32_t)sizeof *a)
        return leave(INVALIDPARAM);
    struct property *p = find(c, a->iProp);
    if (!p)
        return leave(INVALIDPROPERTYID);
    a->attribute = p->attribute, a->iUnit = p->unit, a->attribute2 = 0;
    a->valuemin = p->low, a->valuemax = p->high, a->valuestep = p->step, a->valuedefault = p->initial;
    return leave(SUCCESS);
}

API DCAMERR dcamprop_getvalue(HDCAM h, int32_t id, double *value)
{
    ENTER(c, h);
    struct property *p = find(c, id);
    if (!p)
        return leave(INVALIDPROPERTYID);
    if (p->attribute & VOLATILE)
        feel_temperature(c);
    *value = p->value;
    return leave(SUCCESS);
}

static DCAMERR write_property(struct camera *c, int32_t id, double *value)
{
    struct property *p = find(c, id);
    if (!p)
        return INVALIDPROPERTYID;
    if (!(p->attribute & WRITABLE))
        return NOTWRITABLE;
    if ((c->status == STATUS_BUSY && !(p->attribute & ACCESSBUSY)) ||
        (c->status == STATUS_READY && !(p->attribute & ACCESSREADY)))
        return ACCESSDENY;
    if (id == (int32_t)knob("refuse"))
        return (DCAMERR)knob("refuse_code");
    double v = *value, slack = 1e-9 * fabs(v);
    if (id == READOUTSPEED && v == 0x7FFFFFFF)
        v = p->high;
    if (v < p->low - slack || v > p->high + slack)
        return OUTOFRANGE;
    if ((p->attribute & TYPE) == MODE) {
        int known = 0;
        for (int i = 0; i < MAX_CHOICES && p->choices[i].text; i++)
            known |= p->choices[i].value == v;
        if (!known)
            return INVALIDVALUE;
    } else if (!(p->attribute & AUTOROUNDING) && p->step && fabs(v - rounded(v, p->step)) > 1e-6 * p->step) {
        return INVALIDVALUE;
    }
    int32_t beyond = id == SUBARRAYHPOS || id == SUBARRAYHSIZE
                         ? (int32_t)(v + get(c, id == SUBARRAYHPOS ? SUBARRAYHSIZE : SUBARRAYHPOS)) - c->model->width
                     : id == SUBARRAYVPOS || id == SUBARRAYVSIZE
                         ? (int32_t)(v + get(c, id == SUBARRAYVPOS ? SUBARRAYVSIZE : SUBARRAYVPOS)) - c->model->height
                         : 0;
    if (beyond > 0)
        return INVALIDSUBARRAY;
    feel_temperature(c);
    p->value = v + (id == (int32_t)knob("wrong") ? knob("wrong_by") : 0);
    if (id == IMAGE_PIXELTYPE)
        put(c, BITSPERCHANNEL, v == MONO8 ? 8 : v == MONO12P ? 12 : fmax(12, get(c, BITSPERCHANNEL)));
    if (id == BITSPERCHANNEL && (v == 8 || get(c, IMAGE_PIXELTYPE) == MONO8))
        put(c, IMAGE_PIXELTYPE, v == 8 ? MONO8 : MONO16);
    if (id == BITSPERCHANNEL && v == 16)
        put(c, IMAGE_PIXELTYPE, MONO16);
    if (id == INTERNALFRAMERATE)
        put(c, INTERNAL_FRAMEINTERVAL, 1 / v);
    if (id == EXPOSURETIME || id == BINNING || id == READOUTSPEED)
        put(c, INTERNAL_FRAMEINTERVAL, 0); /* as fast as it can */
    recalculate(c);
    *value = p->value;
    pthread_cond_broadcast(&changed);
    return SUCCESS;
}

API DCAMERR dcamprop_setvalue(HDCAM h, int32_t id, double value)
{
    ENTER(c, h);
    return leave(write_property(c, id, &value));
}

API DCAMERR dcamprop_setgetvalue(HDCAM h, int32_t id, double *value, int32_t option)
{
    (void)option;
    ENTER(c, h);
    return leave(write_property(c, id, value));
}

API DCAMERR dcamprop_queryvalue(HDCAM h, int32_t id, double *value, int32_t option)
{
    ENTER(c, h);
    struct property *p = find(c, id);
    if (!p)
        return leave(INVALIDPROPERTYID);
    double v = *value, best = 0;
    int found = 0;
    for (int i = 0; i < MAX_CHOICES && p->choices[i].text; i++) {
        double one = p->choices[i].value;
        int fits = option == 0x01000000 ? one > v : option == (int32_t)0xFF000000 ? one < v : 1;
        if (fits && (!found || fabs(one - v) < fabs(best - v)))
            best = one, found = 1;
    }
    if (!p->choices[0].text && p->step) {
        best = option == 0x01000000 ? v + p->step : option == (int32_t)0xFF000000 ? v - p->step : rounded(v, p->step);
        found = best >= p->low && best <= p->high;
    }
    if (found)
        *value = best;
    return leave(found ? SUCCESS : OUTOFRANGE);
}

API DCAMERR dcamprop_getnextid(HDCAM h, int32_t *id, int32_t option)
{
    (void)option;
    ENTER(c, h);
    int i = 0;
    if (*id)
        for (i = 0; i < c->nproperties; i++)
            if (c->properties[i].id == *id) {
                i++;
                break;
            }
    if (i < c->nproperties && c->properties[i].id == (int32_t)knob("vanish"))
        i++;
    if (i >= c->nproperties)
        return leave(NOPROPERTY);
    *id = c->properties[i].id;
    return leave(SUCCESS);
}

API DCAMERR dcamprop_getname(HDCAM h, int32_t id, char *text, int32_t bytes)
{
    ENTER(c, h);
    struct property *p = find(c, id);
    if (!p)
        return leave(INVALIDPROPERTYID);
    copy_text(text, bytes, p->name);
    return leave(SUCCESS);
}

API DCAMERR dcamprop_getvaluetext(HDCAM h, DCAMPROP_VALUETEXT *t)
{
    ENTER(c, h);
    if (!t || t->cbSize != (int32_t)sizeof *t)
        return leave(INVALIDPARAM);
    struct property *p = find(c, t->iProp);
    if (!p)
        return leave(INVALIDPROPERTYID);
    for (int i = 0; i < MAX_CHOICES && p->choices[i].text; i++)
        if (p->choices[i].value == t->value) {
            copy_text(t->text, t->textbytes, p->choices[i].text);
            return leave(SUCCESS);
        }
    return leave(NOVALUETEXT);
}

/* --- buffers ----------------------------------------------------------------------------------------------------- */

static DCAMERR take_buffers(struct camera *c, void **given, int n)
{
    if (c->status == STATUS_BUSY)
        return BUSY;
    if (c->status != STATUS_STABLE)
        return NOTSTABLE;
    if (n < 1)
        return INVALIDPARAM;
    DCAMERR wished = (DCAMERR)used_up("alloc_error", 0);
    if (wished < 0)
        return wished;
    c->buffers = calloc(n, sizeof *c->buffers);
    c->stamps = calloc(n, sizeof *c->stamps);
    c->nbuffers = n, c->own_buffers = !given;
    for (int i = 0; i < n; i++)
        c->buffers[i] = given ? given[i] : calloc(1, (size_t)get(c, BUFFER_FRAMEBYTES));
    allocated(2 + (given ? 0 : n));
    c->status = STATUS_READY;
    c->count = 0;
    return SUCCESS;
}

API DCAMERR dcambuf_alloc(HDCAM h, int32_t n)
{
    ENTER(c, h);
    return leave(take_buffers(c, NULL, n));
}

API DCAMERR dcambuf_attach(HDCAM h, const DCAMBUF_ATTACH *p)
{
    ENTER(c, h);
    if (!p || p->size != (int32_t)sizeof *p || p->iKind)
        return leave(INVALIDPARAM);
    for (int i = 0; i < p->buffercount; i++)
        if (!p->buffer[i])
            return leave(INVALIDPARAM);
    return leave(take_buffers(c, p->buffer, p->buffercount));
}

API DCAMERR dcambuf_release(HDCAM h, int32_t kind)
{
    (void)kind;
    ENTER(c, h);
    if (c->status == STATUS_BUSY)
        return leave(BUSY);
    free_buffers(c);
    c->status = STATUS_STABLE;
    return leave(SUCCESS);
}

API DCAMERR dcambuf_lockframe(HDCAM h, DCAMBUF_FRAME *f)
{
    ENTER(c, h);
    if (!f || f->size != (int32_t)sizeof *f)
        return leave(INVALIDPARAM);
    if (!c->buffers)
        return leave(NOTREADY);
    int32_t newest = (c->count + c->nbuffers - 1) % c->nbuffers, i = f->iFrame == -1 ? newest : f->iFrame;
    if (i < 0 || i >= c->nbuffers || i >= c->count)
        return leave(INVALIDFRAMEINDEX);
    struct layout l = layout_of(c);
    f->buf = c->buffers[i];
    f->rowbytes = l.rowbytes, f->type = l.type, f->width = l.width, f->height = l.rows, f->left = f->top = 0;
    f->timestamp = c->stamps[i].time, f->framestamp = c->stamps[i].framestamp;
    f->camerastamp = c->model->camerastamp ? c->stamps[i].camerastamp : 0;
    return leave(SUCCESS);
}

API DCAMERR dcambuf_copyframe(HDCAM h, DCAMBUF_FRAME *f)
{
    if (!f || f->size != (int32_t)sizeof *f || !f->buf)
        return INVALIDPARAM;
    DCAMBUF_FRAME found = *f;
    DCAMERR answer = dcambuf_lockframe(h, &found);
    if (answer < 0)
        return answer;
    int bytes = found.rowbytes < f->rowbytes || !f->rowbytes ? found.rowbytes : f->rowbytes;
    int step = f->rowbytes ? f->rowbytes : found.rowbytes;
    for (int r = 0; r < found.height; r++)
        memcpy((char *)f->buf + (size_t)r * step, (char *)found.buf + (size_t)r * found.rowbytes, bytes);
    f->timestamp = found.timestamp, f->framestamp = found.framestamp, f->camerastamp = found.camerastamp;
    f->type = found.type, f->width = found.width, f->height = found.height;
    return answer;
}

/* --- capture ----------------------------------------------------------------------------------------------------- */

API DCAMERR dcamcap_start(HDCAM h, int32_t mode)
{
    ENTER(c, h);
    if (c->status != STATUS_READY)
        return leave(c->status == STATUS_BUSY ? BUSY : NOTREADY);
    DCAMERR wished = (DCAMERR)used_up("start_error", 0);
    if (wished < 0)
        return leave(wished);
    halt(c);
    c->snap = mode == 0;
    c->stopping = c->stopped = c->software = c->waiting = 0;
    c->count = c->exposed = 0;
    c->lost = c->missing = 0;
    edges.left = 0; /* what came before does not count */
    *knob_at("edges_ignored") = *knob_at("frames") = 0;
    for (struct waiter *w = c->waiters; w; w = w->next)
        w->seen = w->stop_seen = 0;
    c->status = STATUS_BUSY;
    c->started = now_s();
    if (pthread_create(&c->thread, NULL, series, c))
        return leave(NOMEMORY);
    c->has_thread = 1;
    allocated(1);
    return leave(SUCCESS);
}

API DCAMERR dcamcap_stop(HDCAM h)
{
    ENTER(c, h);
    halt(c);
    nlose = 0;
    if (c->status == STATUS_BUSY)
        c->status = STATUS_READY;
    return leave(SUCCESS);
}

API DCAMERR dcamcap_status(HDCAM h, int32_t *status)
{
    ENTER(c, h);
    *status = c->status;
    return leave(SUCCESS);
}

API DCAMERR dcamcap_transferinfo(HDCAM h, DCAMCAP_TRANSFERINFO *p)
{
    ENTER(c, h);
    if (!p || p->size != (int32_t)sizeof *p)
        return leave(INVALIDPARAM);
    if (!c->buffers)
        return leave(NOTREADY);
    p->nFrameCount = c->count;
    p->nNewestFrameIndex = c->count ? (c->count - 1) % c->nbuffers : -1;
    return leave(SUCCESS);
}

API DCAMERR dcamcap_firetrigger(HDCAM h, int32_t kind)
{
    (void)kind;
    ENTER(c, h);
    if (c->status != STATUS_BUSY)
        return leave(NOTBUSY);
    if (!c->waiting || c->software)
        return leave(TOOFREQUENTTRIGGER);
    c->software = 1;
    pthread_cond_broadcast(&changed);
    return leave(SUCCESS);
}

/* --- waiting ----------------------------------------------------------------------------------------------------- */

API DCAMERR dcamwait_open(DCAMWAIT_OPEN *p)
{
    if (!p || p->size != (int32_t)sizeof *p)
        return INVALIDPARAM;
    ENTER(c, p->hdcam);
    struct waiter *w = calloc(1, sizeof *w);
    w->camera = c, w->next = c->waiters, w->seen = c->count;
    c->waiters = w;
    allocated(1);
    p->hwait = w;
    p->supportevent = EVENT_TRANSFERRED | EVENT_FRAMEREADY | EVENT_CYCLEEND | EVENT_EXPOSUREEND | EVENT_STOPPED;
    return leave(SUCCESS);
}

static struct waiter **place_of(struct waiter *w)
{
    for (int i = 0; i < ncameras; i++)
        for (struct waiter **p = &cameras[i].waiters; *p; p = &(*p)->next)
            if (*p == w)
                return p;
    return NULL;
}

API DCAMERR dcamwait_close(HDCAMWAIT w)
{
    pthread_mutex_lock(&lock);
    struct waiter **place = place_of(w);
    if (!place)
        return leave(INVALIDWAITHANDLE);
    w->aborted = 1;
    pthread_cond_broadcast(&changed);
    while (w->waiting)
        wait_until(now_s() + 1);
    if ((place = place_of(w))) {
        *place = w->next;
        free(w);
        allocated(-1);
    }
    return leave(SUCCESS);
}

/* What there is to tell of a wait; 0: nothing yet. */
static DCAMERR news(struct waiter *w, DCAMWAIT_START *p)
{
    struct camera *c = w->camera;
    if (w->aborted)
        return ABORT;
    if (c->dead)
        return NOCONNECTION;
    if (knob("wait_error") < 0 && c->count >= knob("wait_error_at"))
        return (DCAMERR)used_up("wait_error", 0);
    if (c->lost || c->missing) {
        int lost = c->lost;
        *(lost ? &c->lost : &c->missing) = 0;
        return lost ? LOSTFRAME : MISSINGFRAME_TROUBLE;
    }
    if (w->seen != c->count && (p->eventmask & (EVENT_FRAMEREADY | EVENT_TRANSFERRED))) {
        w->seen = c->count;
        p->eventhappened = p->eventmask & (EVENT_FRAMEREADY | EVENT_TRANSFERRED);
        return SUCCESS;
    }
    if (c->stopped && !w->stop_seen && (p->eventmask & EVENT_STOPPED)) {
        w->stop_seen = 1;
        p->eventhappened = EVENT_STOPPED;
        return SUCCESS;
    }
    return 0;
}

API DCAMERR dcamwait_start(HDCAMWAIT w, DCAMWAIT_START *p)
{
    if (!p || p->size != (int32_t)sizeof *p)
        return INVALIDPARAM;
    pthread_mutex_lock(&lock);
    if (!place_of(w) || w->aborted)
        return leave(INVALIDWAITHANDLE);
    double end = p->timeout == INT32_MIN ? now_s() + 1e9 : now_s() + 1e-3 * p->timeout;
    DCAMERR answer;
    w->waiting++;
    while (!(answer = news(w, p)))
        if (now_s() >= end) {
            answer = TIMEOUT;
            break;
        } else {
            wait_until(end);
        }
    w->waiting--;
    pthread_cond_broadcast(&changed);
    return leave(answer);
}

API DCAMERR dcamwait_abort(HDCAMWAIT w)
{
    pthread_mutex_lock(&lock);
    if (!place_of(w))
        return leave(INVALIDWAITHANDLE);
    w->aborted = 1;
    pthread_cond_broadcast(&changed);
    return leave(SUCCESS);
}
