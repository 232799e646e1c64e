/* Pretends the C interface to libxsp (resources/lambda/xl.h) and a Lambda behind it: a thread for each module fills its
 * ring; nothing of X-Spectrum's is in here.
 *
 * The configuration is a text file of lines `name value` or `name module value`; fake_xl does the same at any time, in
 * the program that has the library loaded. What a test can look at is told by fake_xl_get. Memory of a frame that was
 * given back is overwritten at once. The pixels of a frame: (3 * place + 101 * module), in row 0 its number, all cut to
 * the depth. Names:
 *
 *   modules, width, height, ring (frames), shared_dual, skip_zero, seed, cold (thresholds are not set)
 *   x, y, rotation (of a module), readout (ms, at 24 bit), ready_ms, ram_ms, settle_ms, begin_ms (start to busy)
 *   first_number (what the counter begins with), max_per_trigger, edge (how many come now), no_low_depth
 * Faults, of a module (detector-wide ones with module 0):
 *   unready, unsettled, no_ram, restart (after so many frames it is only connected), silent (after so many it says
 *   nothing), broken (after so many xl_frame fails), lag (ms, random up to this), lose (percent), lose_one (a frame, from
 *   1), incomplete, missing, failed (every so manieth), ignore_start, refuse_start (code), deaf (xl_status and xl_reset fail),
 *   refuse_set (code), cut (bytes that frames lack) */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "xl.h"

#define MODULES 16
#define LIST 8
#define COUNTER 0xffffffu

enum { FREE, BUSY, READY, TAKEN }; /* BUSY: its memory is written */

typedef struct slot {
    int state, status;
    uint64_t number, trigger;
    size_t size;
    unsigned char *data;
} slot;

typedef struct module {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    int index, running, busy, restarted;
    double x, y, rotation, voltage;
    int width, height, depth;
    slot *slots;
    size_t *queue; /* slots that are ready, oldest first */
    size_t ring, head, queued, bytes;
    unsigned char *base;
    unsigned random;
    uint64_t edges;
    struct timespec ready_at, ram_at, settled_at;
    double unready, unsettled, no_ram, restart, silent, broken, lag, lose, lose_one, incomplete, missing, failed, cut;
    uint64_t made, taken, released, overflowed, refused;
} module;

struct xl_handle {
    module modules[MODULES];
    int count;
    double width, height, ring, readout, ready_ms, ram_ms, settle_ms, begin_ms, first_number, max_per_trigger, no_low_depth;
    double shared_dual, skip_zero, seed, cold, ignore_start, refuse_start, deaf, refuse_set;
    int64_t bit_depth, n_frames, frames_per_trigger, roi_rows;
    double shutter_time, beam_energy, thresholds[LIST];
    size_t n_thresholds;
    char counter_mode[16], charge_summing[16], trigger_mode[16], gating_mode[16], interpolation[16], saturation_flag[16];
    char countrate_correction[16], flatfield_correction[16];
    uint64_t starts, stops, resets;
};

static xl_handle *opened; /* the last one: tests have one at a time */
static int64_t left_out;  /* frames that were in use when it was closed */
static __thread char words[256];

static int fail(int code, const char *format, ...)
{
    va_list list;
    va_start(list, format);
    vsnprintf(words, sizeof words, format, list);
    va_end(list);
    return code;
}

static struct timespec later(double ms)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    int64_t ns = at.tv_nsec + (int64_t)(ms * 1e6);
    at.tv_sec += ns / 1000000000;
    at.tv_nsec = ns % 1000000000;
    return at;
}

static int passed(struct timespec at)
{
    struct timespec now = later(0);
    return now.tv_sec > at.tv_sec || (now.tv_sec == at.tv_sec && now.tv_nsec >= at.tv_nsec);
}

static struct timespec after(struct timespec at, double ms)
{
    int64_t ns = at.tv_nsec + (int64_t)(ms * 1e6);
    at.tv_sec += ns / 1000000000;
    at.tv_nsec = ns % 1000000000;
    return at;
}

static int earlier(struct timespec one, struct timespec other)
{
    return one.tv_sec < other.tv_sec || (one.tv_sec == other.tv_sec && one.tv_nsec < other.tv_nsec);
}

/* --- the ring ------------------------------------------------------------------------------------------------------ */

static uint64_t pixel(const module *m, size_t place)
{
    return (3 * place + 101 * (size_t)m->index) & (m->depth == 24 ? 0xffffff : m->depth == 12 ? 0xfff : 0xff);
}

static void put(const module *m, unsigned char *data, size_t place, uint64_t value)
{
    if (m->depth == 24)
        ((uint32_t *)(void *)data)[place] = (uint32_t)value & 0xffffff;
    else if (m->depth == 12)
        ((uint16_t *)(void *)data)[place] = (uint16_t)(value & 0xfff);
    else
        data[place] = (unsigned char)value;
}

static void free_ring(module *m)
{
    for (size_t k = 0; m->slots && k < m->ring; k++)
        free(m->slots[k].data);
    free(m->slots);
    free(m->queue);
    free(m->base);
    m->slots = NULL, m->queue = NULL, m->base = NULL;
}

/* No frame may be in use. */
static int make_ring(xl_handle *h, module *m)
{
    size_t pixels = (size_t)m->width * (size_t)m->height;
    m->depth = (int)h->bit_depth;
    m->bytes = pixels * (m->depth == 24 ? 4 : m->depth == 12 ? 2 : 1);
    free_ring(m);
    m->ring = (size_t)h->ring, m->head = m->queued = 0;
    m->slots = calloc(m->ring, sizeof *m->slots);
    m->queue = calloc(m->ring, sizeof *m->queue);
    m->base = malloc(m->bytes);
    if (!m->slots || !m->queue || !m->base)
        return fail(XL_OUT_OF_MEMORY, "failed to allocate RAM buffer");
    for (size_t k = 0; k < m->ring; k++) {
        if (!(m->slots[k].data = malloc(m->bytes)))
            return fail(XL_OUT_OF_MEMORY, "failed to allocate RAM buffer");
        memset(m->slots[k].data, 0xaa, m->bytes);
    }
    for (size_t k = 0; k < pixels; k++)
        put(m, m->base, k, pixel(m, k));
    return XL_OK;
}

/* With the lock held. */
static void forget(module *m)
{
    while (m->queued) {
        m->slots[m->queue[m->head]].state = FREE;
        m->head = (m->head + 1) % m->ring, m->queued--;
    }
}

static int every(double period, uint64_t n)
{
    return period >= 1 && n % (uint64_t)period == 0;
}

/* A frame came from the module; with the lock held, but not while its pixels are copied. */
static void store(xl_handle *h, module *m, uint64_t n, uint64_t number, uint64_t trigger)
{
    m->made++;
    if ((double)n == m->lose_one || (m->lose > 0 && rand_r(&m->random) % 10000 < m->lose * 100))
        return;
    size_t k = 0;
    while (k < m->ring && m->slots[k].state != FREE)
        k++;
    if (k == m->ring) {
        m->overflowed++;
        return;
    }
    slot *s = &m->slots[k];
    s->state = BUSY;
    pthread_mutex_unlock(&m->lock);
    memcpy(s->data, m->base, m->bytes);
    for (size_t column = 0; column < (size_t)m->width; column++)
        put(m, s->data, column, number);
    pthread_mutex_lock(&m->lock);
    s->state = READY, s->number = number, s->trigger = trigger;
    s->size = m->bytes - (size_t)m->cut;
    s->status = every(m->missing, n) ? XL_FRAME_MISSING : every(m->failed, n) ? XL_FRAME_COMPRESSION_FAILED
        : every(m->incomplete, n) ? XL_FRAME_INCOMPLETE : XL_FRAME_OK;
    m->queue[(m->head + m->queued++) % m->ring] = k;
    pthread_cond_broadcast(&m->changed);
    (void)h;
}

/* The number that the module gives its n-th frame (from 1) of a start. */
static uint64_t numbered(const xl_handle *h, uint64_t n)
{
    uint64_t number = n + (uint64_t)h->first_number - 1;
    return h->skip_zero ? (number - 1) % COUNTER + 1 : number & COUNTER;
}

/* Wait with the lock held until `at`; 0: it is to stop. */
static int pause_until(module *m, struct timespec at)
{
    while (m->running && !passed(at))
        pthread_cond_timedwait(&m->changed, &m->lock, &at);
    return m->running;
}

struct task { xl_handle *h; module *m; };

static void *work(void *given)
{
    struct task task = *(struct task *)given;
    xl_handle *h = task.h;
    module *m = task.m;
    free(given);
    int dual = !strcmp(h->counter_mode, "DUAL"), external = strcmp(h->trigger_mode, "SOFTWARE");
    int gated = !strcmp(h->trigger_mode, "EXT_FRAMES");
    double period = h->shutter_time + (h->bit_depth == 24 ? h->readout : 0);
    pthread_mutex_lock(&m->lock);
    if (pause_until(m, later(h->begin_ms)))
        m->busy = 1;
    struct timespec due = later(0), emitted = due;
    uint64_t edges = 0, counter = 0;
    for (uint64_t n = 1; m->running && n <= (uint64_t)h->n_frames; n++) {
        if (external && (n == 1 || (gated && (n - 1) % (uint64_t)h->frames_per_trigger == 0))) {
            while (m->running && m->edges <= edges)
                pthread_cond_wait(&m->changed, &m->lock);
            edges++, due = later(0);
        }
        if ((m->restart && (double)n > m->restart) || (m->silent && (double)n > m->silent)) {
            m->restarted = m->restart && (double)n > m->restart;
            while (m->running && !m->restarted)
                pthread_cond_wait(&m->changed, &m->lock);
            break;
        }
        due = after(due, period);
        struct timespec at = m->lag > 0 ? after(due, m->lag * (rand_r(&m->random) % 1000) / 1000.0) : due;
        if (earlier(at, emitted))
            at = emitted;
        emitted = at;
        if (!pause_until(m, at))
            break;
        for (int second = 0; second <= dual; second++) {
            if (!second || !h->shared_dual)
                counter++;
            store(h, m, h->shared_dual && dual ? 2 * n - 1 + second : counter, numbered(h, counter), edges);
        }
    }
    m->busy = 0;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

static void halt(module *m)
{
    pthread_mutex_lock(&m->lock);
    int was = m->thread != 0;
    m->running = 0;
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    if (was)
        pthread_join(m->thread, NULL);
    m->thread = 0;
}

/* --- names --------------------------------------------------------------------------------------------------------- */

typedef struct place { const char *name; size_t at; } place;

#define OF(type, name) {#name, offsetof(type, name)}
static const place KNOBS[] = { OF(xl_handle, width), OF(xl_handle, height), OF(xl_handle, ring), OF(xl_handle, readout),
    OF(xl_handle, ready_ms), OF(xl_handle, ram_ms), OF(xl_handle, settle_ms), OF(xl_handle, begin_ms),
    OF(xl_handle, first_number), OF(xl_handle, max_per_trigger), OF(xl_handle, no_low_depth), OF(xl_handle, shared_dual),
    OF(xl_handle, skip_zero), OF(xl_handle, seed), OF(xl_handle, cold), OF(xl_handle, ignore_start),
    OF(xl_handle, refuse_start), OF(xl_handle, deaf), OF(xl_handle, refuse_set), {NULL, 0} };
static const place OF_MODULE[] = { OF(module, x), OF(module, y), OF(module, rotation), OF(module, unready),
    OF(module, unsettled), OF(module, no_ram), OF(module, restart), OF(module, silent), OF(module, broken),
    OF(module, lag), OF(module, lose), OF(module, lose_one), OF(module, incomplete), OF(module, missing),
    OF(module, failed), OF(module, cut), {NULL, 0} };
static const place COUNTS[] = { OF(module, made), OF(module, taken), OF(module, released), OF(module, overflowed),
    OF(module, refused), {NULL, 0} };
static const place INTS[] = { OF(xl_handle, bit_depth), OF(xl_handle, n_frames), OF(xl_handle, frames_per_trigger),
    OF(xl_handle, roi_rows), {NULL, 0} };
static const place DOUBLES[] = { OF(xl_handle, shutter_time), OF(xl_handle, beam_energy), {NULL, 0} };
static const place TEXTS[] = { OF(xl_handle, counter_mode), OF(xl_handle, charge_summing), OF(xl_handle, trigger_mode),
    OF(xl_handle, gating_mode), OF(xl_handle, interpolation), OF(xl_handle, saturation_flag),
    OF(xl_handle, countrate_correction), OF(xl_handle, flatfield_correction), {NULL, 0} };

static void *find(const place *places, const void *in, const char *name)
{
    for (; places->name; places++)
        if (!strcmp(places->name, name))
            return (char *)(uintptr_t)in + places->at;
    return NULL;
}

static int set_knob(xl_handle *h, const char *name, int k, double value)
{
    double *knob = find(KNOBS, h, name);
    if (!knob && k >= 0 && k < MODULES)
        knob = find(OF_MODULE, &h->modules[k], name);
    if (!knob)
        return 0;
    *knob = value;
    return 1;
}

/* The same as a line of the configuration, at any time; 0: no such name. `edge`: so many come now. */
int fake_xl(const char *name, int k, double value)
{
    if (!opened || strcmp(name, "edge"))
        return opened ? set_knob(opened, name, k, value) : 0;
    for (k = 0; k < opened->count; k++) {
        module *m = &opened->modules[k];
        pthread_mutex_lock(&m->lock);
        m->edges += (uint64_t)value;
        pthread_cond_broadcast(&m->changed);
        pthread_mutex_unlock(&m->lock);
    }
    return 1;
}

/* made, taken, released, overflowed, refused (releases) of a module; starts, stops, resets; left_out; -1: no such. */
int64_t fake_xl_get(const char *name, int k)
{
    if (!strcmp(name, "left_out"))
        return left_out;
    if (!opened)
        return -1;
    if (!strcmp(name, "starts"))
        return (int64_t)opened->starts;
    if (!strcmp(name, "stops"))
        return (int64_t)opened->stops;
    if (!strcmp(name, "resets"))
        return (int64_t)opened->resets;
    module *m = &opened->modules[k];
    pthread_mutex_lock(&m->lock);
    uint64_t *count = find(COUNTS, m, name);
    int64_t value = count ? (int64_t)*count : -1;
    pthread_mutex_unlock(&m->lock);
    return value;
}

static int read_config(xl_handle *h, const char *path)
{
    char line[256], name[64];
    double first, second;
    FILE *file = fopen(path, "r");
    if (!file)
        return fail(XL_CONFIG, "%s: %s", path, strerror(errno));
    int code = XL_OK;
    for (int n = 1; code == XL_OK && fgets(line, sizeof line, file); n++) {
        int found = sscanf(line, "%63s %lf %lf", name, &first, &second);
        if (found < 1 || name[0] == '#')
            continue;
        if (found == 2 && !strcmp(name, "modules") && first >= 1 && first <= MODULES)
            h->count = (int)first;
        else if (!(found == 2 ? set_knob(h, name, 0, first) : found == 3 && set_knob(h, name, (int)first, second)))
            code = fail(XL_CONFIG, "%s: line %d: %s is not understood", path, n, name);
    }
    fclose(file);
    return code;
}

/* --- the interface ------------------------------------------------------------------------------------------------- */

uint32_t xl_abi(void) { return XL_ABI; }

size_t xl_error(xl_handle *h, char *text, size_t size)
{
    (void)h;
    if (size)
        snprintf(text, size, "%s", words);
    return strlen(words);
}

int xl_open(const char *config, xl_handle **handle)
{
    *handle = NULL;
    xl_handle *h = calloc(1, sizeof *h);
    if (!h)
        return fail(XL_OUT_OF_MEMORY, "no memory");
    h->count = 1, h->width = 64, h->height = 32, h->ring = 32, h->readout = 1, h->first_number = 1;
    h->max_per_trigger = 1000, h->shared_dual = 1, h->ram_ms = 20, h->begin_ms = 5;
    h->bit_depth = 12, h->n_frames = 1, h->frames_per_trigger = 1, h->roi_rows = 256, h->shutter_time = 1;
    h->beam_energy = 10, h->n_thresholds = 1, h->thresholds[0] = 5;
    strcpy(h->counter_mode, "SINGLE"), strcpy(h->trigger_mode, "SOFTWARE"), strcpy(h->interpolation, "ON");
    strcpy(h->charge_summing, "OFF"), strcpy(h->gating_mode, "OFF"), strcpy(h->saturation_flag, "OFF");
    strcpy(h->countrate_correction, "OFF"), strcpy(h->flatfield_correction, "OFF");
    int code = config && *config ? read_config(h, config) : XL_OK;
    if (h->cold)
        h->n_thresholds = 0;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    for (int k = 0; k < MODULES; k++) {
        module *m = &h->modules[k];
        pthread_mutex_init(&m->lock, NULL);
        pthread_cond_init(&m->changed, &attributes);
        m->index = k, m->width = (int)h->width, m->height = (int)h->height, m->random = (unsigned)(h->seed + k);
        m->ready_at = later(h->ready_ms), m->ram_at = later(h->ram_ms), m->settled_at = later(h->settle_ms);
        if (code == XL_OK && k < h->count)
            code = make_ring(h, m);
    }
    pthread_condattr_destroy(&attributes);
    if (code != XL_OK) {
        xl_close(h);
        return code;
    }
    *handle = opened = h;
    left_out = 0;
    return XL_OK;
}

void xl_close(xl_handle *h)
{
    if (!h)
        return;
    opened = opened == h ? NULL : opened;
    for (int k = 0; k < MODULES; k++) {
        module *m = &h->modules[k];
        halt(m);
        for (size_t i = 0; m->slots && i < m->ring; i++)
            left_out += m->slots[i].state == TAKEN;
        free_ring(m);
        pthread_cond_destroy(&m->changed);
        pthread_mutex_destroy(&m->lock);
    }
    free(h);
}

static int no_name(const char *name) { return fail(XL_NAME, "%s", name); }

static module *of(xl_handle *h, int k) { return k >= 0 && k < h->count ? &h->modules[k] : NULL; }

int xl_get_int(xl_handle *h, int k, const char *name, int64_t *value)
{
    module *m = of(h, k);
    int64_t *found = m ? NULL : find(INTS, h, name);
    if (found)
        *value = *found;
    else if (!m && !strcmp(name, "n_modules"))
        *value = h->count;
    else if (m && !strcmp(name, "frame_width"))
        *value = m->width;
    else if (m && !strcmp(name, "frame_height"))
        *value = m->height;
    else if (m && !strcmp(name, "frame_depth"))
        *value = m->depth;
    else if (m && !strcmp(name, "max_frames"))
        *value = (int64_t)m->ring;
    else if (m && !strcmp(name, "features"))
        *value = h->no_low_depth ? 1 : 3;
    else if (m && !strcmp(name, "frames_queued"))
        *value = (int64_t)m->queued;
    else
        return no_name(name);
    return XL_OK;
}

int xl_get_double(xl_handle *h, int k, const char *name, double *value)
{
    module *m = of(h, k);
    double *found = find(DOUBLES, h, name);
    if (!m && found)
        *value = *found;
    else if (m && !strcmp(name, "position_x"))
        *value = m->x;
    else if (m && !strcmp(name, "position_y"))
        *value = m->y;
    else if (m && !strcmp(name, "rotation"))
        *value = m->rotation;
    else if (m && !strcmp(name, "voltage"))
        *value = m->voltage;
    else if (m && !strcmp(name, "humidity"))
        *value = 12.5;
    else if (m && !strcmp(name, "sensor_current"))
        *value = 0.25;
    else if (m && !strcmp(name, "saturation_threshold"))
        *value = 200000;
    else
        return no_name(name);
    return XL_OK;
}

int xl_get_doubles(xl_handle *h, int k, const char *name, double *values, size_t size, size_t *count)
{
    static const double temperature[] = {31.5, 40.25, 35};
    const double *found = temperature;
    *count = 3;
    if (k < 0 && !strcmp(name, "thresholds"))
        found = h->thresholds, *count = h->n_thresholds;
    else if (k < 0 || strcmp(name, "temperature"))
        return no_name(name);
    if (*count > size)
        return fail(XL_SPACE, "%zu values", *count);
    memcpy(values, found, *count * sizeof *values);
    return XL_OK;
}

int xl_get_string(xl_handle *h, int k, const char *name, char *text, size_t size, size_t *count)
{
    char made[512] = "";
    const char *found = k < 0 ? find(TEXTS, h, name) : NULL;
    if (found)
        strcpy(made, found);
    else if (k < 0 && !strcmp(name, "type"))
        strcpy(made, "Lambda");
    else if (k < 0 && !strcmp(name, "version"))
        strcpy(made, "0 (pretended)");
    else if (k >= 0 && !strcmp(name, "id"))
        sprintf(made, "lambda/%d", k + 1);
    else if (k >= 0 && !strcmp(name, "firmware_version"))
        strcpy(made, "2.2.11 [ctrl=v0, data=v3, feat=0x3]");
    else if (k >= 0 && !strcmp(name, "chip_ids"))
        for (int chip = 1; chip <= 12; chip++)
            sprintf(made + strlen(made), "%sW%d_chip-%02d", chip > 1 ? "," : "", k + 1, chip);
    else
        return no_name(name);
    *count = strlen(made) + 1;
    if (*count > size)
        return fail(XL_SPACE, "%zu bytes", *count);
    memcpy(text, made, *count);
    return XL_OK;
}

static int in_use(const module *m)
{
    for (size_t k = 0; k < m->ring; k++)
        if (m->slots[k].state == TAKEN)
            return 1;
    return 0;
}

static int may_set(xl_handle *h, const char *name)
{
    if (h->refuse_set)
        return fail((int)h->refuse_set, "%s was refused", name);
    for (int k = 0; k < h->count; k++)
        if (h->modules[k].busy)
            return fail(XL_BUSY, "module %d is acquiring", k + 1);
    return XL_OK;
}

static int resize(xl_handle *h)
{
    for (int k = 0; k < h->count; k++) {
        module *m = &h->modules[k];
        halt(m);
        if (in_use(m))
            return fail(XL_INTERNAL, "frames of module %d are in use", k + 1);
        int code = make_ring(h, m);
        if (code)
            return code;
        m->ram_at = later(h->ram_ms), m->ready_at = later(h->ram_ms);
    }
    return XL_OK;
}

int xl_set_int(xl_handle *h, int k, const char *name, int64_t value)
{
    int64_t *found = k < 0 ? find(INTS, h, name) : NULL;
    int code = may_set(h, name);
    if (code)
        return code;
    if (!found)
        return no_name(name);
    if (!strcmp(name, "bit_depth")) {
        if (value != 1 && value != 6 && value != 12 && value != 24)
            return fail(XL_INVALID, "bit depth %lld", (long long)value);
        if (value < 12 && h->no_low_depth)
            return fail(XL_NOT_SUPPORTED, "1 and 6 bit not supported");
        *found = value;
        return resize(h);
    }
    if (!strcmp(name, "n_frames") && (value < 1 || value > COUNTER))
        return fail(XL_OUT_OF_RANGE, "frame count exceeds %u", COUNTER);
    if (!strcmp(name, "frames_per_trigger") && (value < 1 || value > h->max_per_trigger))
        return fail(XL_NOT_SUPPORTED, "%g frames per trigger at most", h->max_per_trigger);
    *found = value;
    return XL_OK;
}

int xl_set_double(xl_handle *h, int k, const char *name, double value)
{
    module *m = of(h, k);
    double *found = k < 0 ? find(DOUBLES, h, name) : NULL;
    int code = may_set(h, name);
    if (code)
        return code;
    if (m && !strcmp(name, "voltage"))
        found = &m->voltage, m->settled_at = later(h->settle_ms);
    if (!found)
        return no_name(name);
    if (!(value >= 0 && value < 1e9))
        return fail(XL_OUT_OF_RANGE, "%s is %g", name, value);
    *found = value;
    return XL_OK;
}

int xl_set_doubles(xl_handle *h, int k, const char *name, const double *values, size_t count)
{
    int code = may_set(h, name);
    if (code)
        return code;
    if (k >= 0 || strcmp(name, "thresholds"))
        return no_name(name);
    if (count > LIST)
        return fail(XL_OUT_OF_RANGE, "%zu thresholds", count);
    memcpy(h->thresholds, values, count * sizeof *values);
    h->n_thresholds = count;
    return XL_OK;
}

int xl_set_string(xl_handle *h, int k, const char *name, const char *text)
{
    char *found = k < 0 ? find(TEXTS, h, name) : NULL;
    int code = may_set(h, name);
    if (code)
        return code;
    if (!found)
        return no_name(name);
    static const char *const modes[] = {"SOFTWARE", "EXT_SEQUENCE", "EXT_FRAMES"};
    int good = !strcmp(text, "ON") || !strcmp(text, "OFF");
    if (!strcmp(name, "counter_mode"))
        good = !strcmp(text, "SINGLE") || !strcmp(text, "DUAL");
    for (int n = 0; !strcmp(name, "trigger_mode") && n < 3; n++)
        good = good == 2 || !strcmp(text, modes[n]) ? 2 : 0;
    if (!good)
        return fail(XL_INVALID, "%s is %s", name, text);
    strcpy(found, text);
    if (!strcmp(name, "interpolation")) {
        for (int n = 0; n < h->count; n++) { /* wider pixels between chips, as two each */
            h->modules[n].width = (int)h->width - (strcmp(text, "ON") ? 4 : 0);
            h->modules[n].height = (int)h->height - (strcmp(text, "ON") ? 4 : 0);
        }
        return resize(h);
    }
    return XL_OK;
}

int xl_start(xl_handle *h)
{
    if (h->refuse_start)
        return fail((int)h->refuse_start, "start failed on module 1");
    for (int k = 0; k < h->count; k++) {
        xl_module_status status;
        int code = xl_status(h, k, &status);
        if (code)
            return code;
        if (status.busy)
            return fail(XL_BUSY, "module %d is acquiring", k + 1);
        if (!status.ready)
            return fail(XL_NOT_READY, "module %d not ready", k + 1);
    }
    h->starts++;
    for (int k = 0; k < h->count && !h->ignore_start; k++) {
        module *m = &h->modules[k];
        halt(m);
        struct task *task = malloc(sizeof *task);
        if (!task)
            return fail(XL_OUT_OF_MEMORY, "no memory");
        *task = (struct task){h, m};
        pthread_mutex_lock(&m->lock);
        forget(m);
        m->running = 1, m->edges = 0;
        m->busy = h->begin_ms == 0;
        pthread_mutex_unlock(&m->lock);
        if (pthread_create(&m->thread, NULL, work, task)) {
            free(task);
            m->thread = 0;
            return fail(XL_RESOURCE_UNAVAILABLE, "no thread");
        }
    }
    return XL_OK;
}

int xl_stop(xl_handle *h)
{
    h->stops++;
    for (int k = 0; k < h->count; k++)
        halt(&h->modules[k]);
    return XL_OK;
}

int xl_reset(xl_handle *h)
{
    if (h->deaf)
        return fail(XL_COMMUNICATION, "no answer from module 1");
    xl_stop(h);
    h->resets++, h->n_thresholds = 0;
    for (int k = 0; k < h->count; k++) {
        h->modules[k].restarted = 0;
        h->modules[k].ready_at = later(h->ready_ms);
    }
    return XL_OK;
}

int xl_status(xl_handle *h, int k, xl_module_status *status)
{
    module *m = of(h, k);
    if (!m)
        return fail(XL_NAME, "module %d", k + 1);
    if (h->deaf)
        return fail(XL_COMMUNICATION, "no answer from module %d", k + 1);
    pthread_mutex_lock(&m->lock);
    status->connected = 1;
    status->ready = !m->unready && !m->restarted && passed(m->ready_at);
    status->busy = m->busy;
    status->ram_allocated = !m->no_ram && passed(m->ram_at);
    status->voltage_settled = !m->unsettled && passed(m->settled_at);
    status->frames_queued = (int32_t)m->queued;
    pthread_mutex_unlock(&m->lock);
    return XL_OK;
}

int xl_frame(xl_handle *h, int k, int timeout_ms, xl_frame_info *frame)
{
    module *m = of(h, k);
    if (!m)
        return fail(XL_NAME, "module %d", k + 1);
    struct timespec end = later(timeout_ms);
    int code = XL_OK;
    pthread_mutex_lock(&m->lock);
    while (!m->queued && !passed(end))
        pthread_cond_timedwait(&m->changed, &m->lock, &end);
    if (m->broken && (double)m->taken >= m->broken) {
        code = fail(XL_COMMUNICATION, "connection to module %d was lost", k + 1);
    } else if (!m->queued) {
        code = XL_TIMEOUT;
    } else {
        size_t at = m->queue[m->head];
        slot *s = &m->slots[at];
        m->head = (m->head + 1) % m->ring, m->queued--, m->taken++;
        s->state = TAKEN;
        int there = s->status != XL_FRAME_MISSING;
        *frame = (xl_frame_info){s->number, s->trigger, at, there ? s->data : NULL, there ? s->size : 0, s->status, m->depth};
    }
    pthread_mutex_unlock(&m->lock);
    return code;
}

int xl_release(xl_handle *h, int k, uint64_t token)
{
    module *m = of(h, k);
    if (!m)
        return fail(XL_NAME, "module %d", k + 1);
    int code = XL_OK;
    pthread_mutex_lock(&m->lock);
    if (token >= m->ring || m->slots[token].state != TAKEN) {
        m->refused++;
        code = fail(XL_INVALID, "frame %llu is not out", (unsigned long long)token);
    } else {
        m->slots[token].state = BUSY;
        pthread_mutex_unlock(&m->lock);
        memset(m->slots[token].data, 0xaa, m->bytes);
        pthread_mutex_lock(&m->lock);
        m->slots[token].state = FREE, m->released++;
    }
    pthread_mutex_unlock(&m->lock);
    return code;
}
