/* A libatcore without a camera: the functions of Andor's SDK3, cameras with their features, time, images and faults.
 *
 * What it pretends is said by commands, one a line: in the file `<this library>.conf` when the library is initialised,
 * through the FIFO `<this library>.control` while it is (if that is there), or by SIM_Command in the same process.
 *
 *   camera MODEL SERIAL       one more; without any there are the SDK's own two SIMCAM. Models: fake_atcore_models.h
 *   edge N [PERIOD [WIDTH]]   edges or gates at the trigger input, s; period 0: each waits until the camera is ready
 *   padding BYTES             rows begin at multiples of it
 *   speed N                   the sensor is read out N times as fast, and the link as fast as needed
 *   fail FUNCTION[:FEATURE] CODE [SKIP [COUNT]]     calls after the first SKIP give that error, COUNT of them (1)
 *   slow FUNCTION[:FEATURE] SECONDS [COUNT]         calls last so much longer
 *   lose N                    the next N frames are lost in the camera, AT_WaitBuffer tells of an overflow
 *   burst HOW                 after a frame was lost the camera `goes` on, `ends` the acquisition, `hangs` (no frame any
 *                             more, it says that it acquires), or `repeats` (so, and AT_WaitBuffer tells of it for ever)
 *   stall SECONDS             frames come late, once
 *   linger SECONDS            AT_Command:SoftwareTrigger returns so long after the camera was triggered
 *   tail SECONDS              the last frame is delivered so long after the camera has stopped by itself
 *   silent 0|1                no frame comes any more, nothing else tells
 *   unplug [quiet], plug      all calls fail; quiet: AT_WaitBuffer times out only
 *   busy SERIAL               another process has that camera; "busy" alone: no more
 *   size N                    ImageSizeBytes is wrong by so much
 *   corrupt 0|1               metadata are nonsense
 *   ramp SECONDS              time constant of the sensor's temperature; `ramp never`: it stays 5 degrees too warm
 *   cooler fault|good
 *   calm                      what was injected is over
 *   report                    counts into the file `<this library>.report`
 *
 * Pixel (x, y) of the sensor is (37 x + 1031 y) modulo 2^depth; of binned pixels the first. The first four pixels of
 * the first and of the last row are: number of the exposure (low 12 bits, high 12 bits), 0xACE, 0x5A5. A buffer that
 * is queued again loses these at once, so that whoever still reads it is found out. Images are painted once for each
 * buffer, as a camera's DMA takes no processor time. */

#define _GNU_SOURCE
#include "fake_atcore.h"
#include "fake_atcore_models.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CAMERAS 4
#define FEATURES 80
#define QUEUE 4096
#define INJECTIONS 32
#define FIRST_HANDLE 48 /* anything but 1 */

enum burst { GOES, ENDS, HANGS, REPEATS };
enum kind { INT, FLOAT, BOOL, ENUM, STRING, COMMAND };

struct feature {
    const wchar_t *name;
    enum kind kind;
    int writable; /* 0 never, 1 unless acquiring, 2 always */
    long long value, low, high;
    double real, least, most;
    const wchar_t *const *items;
    int count;
    unsigned available;
    wchar_t text[64];
    FeatureCallback callback;
    void *context;
};

struct buffer {
    AT_U8 *data;
    int size;
};

struct ring {
    struct buffer each[QUEUE];
    unsigned begin, end;
};

struct camera {
    const struct model *model;
    char serial[32];
    int open, present, acquiring, abort, overflow;
    struct feature features[FEATURES];
    int count;
    struct ring queued, done;
    pthread_t thread;
    int has_thread;
    double started, epoch, changed, temperature; /* clock's zero; temperature was `temperature` when `changed` */
    long software, exposed, delivered, lost, ignored;
    long row_bytes, image_bytes;
    AT_U8 *painted[QUEUE];
    int paintings;
    uint64_t look; /* of what is painted */
};

struct injection {
    char what[80];
    int code;
    long skip, count;
    double seconds;
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t control;
    int users, control_runs, control_pipe[2], silent, corrupt, gone, quiet, cooler_fault, never_cold;
    struct camera *cameras[CAMERAS];
    int count;
    char busy[32];
    long padding, wrong_size, lose;
    enum burst burst;
    double stall, linger, tail, ramp, speed;
    long edges;
    double edge_at, edge_period, edge_width;
    struct injection injections[INJECTIONS];
} sim = {.lock = PTHREAD_MUTEX_INITIALIZER, .control_pipe = {-1, -1}, .ramp = 1, .speed = 1};

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_condition(void)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&sim.changed, &attributes);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static struct timespec when(double at)
{
    struct timespec t = {(time_t)at, (long)((at - floor(at)) * 1e9)};
    return t;
}

/* --- features ---------------------------------------------------------------------------------------------------- */

static struct feature *find(struct camera *c, const wchar_t *name)
{
    for (int i = 0; i < c->count; i++)
        if (!wcscmp(c->features[i].name, name))
            return &c->features[i];
    return NULL;
}

static struct feature *add(struct camera *c, const wchar_t *name, enum kind kind, int writable)
{
    struct feature *f = &c->features[c->count++];
    *f = (struct feature){.name = name, .kind = kind, .writable = writable, .available = ~0u};
    return f;
}

static void add_int(struct camera *c, const wchar_t *name, long long value, long long low, long long high, int writable)
{
    struct feature *f = add(c, name, INT, writable);
    f->value = value, f->low = low, f->high = high;
}

static void add_float(struct camera *c, const wchar_t *name, double value, double least, double most, int writable)
{
    struct feature *f = add(c, name, FLOAT, writable);
    f->real = value, f->least = least, f->most = most;
}

static void add_bool(struct camera *c, const wchar_t *name, int value, int writable)
{
    add(c, name, BOOL, writable)->value = value;
}

static void add_enum(struct camera *c, const wchar_t *name, const wchar_t *const *items, unsigned available,
                     int writable)
{
    struct feature *f = add(c, name, ENUM, writable);
    f->items = items, f->available = available;
    while (items[f->count])
        f->count++;
    while (f->value < f->count && !(available >> f->value & 1))
        f->value++;
}

static void add_string(struct camera *c, const wchar_t *name, const wchar_t *text)
{
    wcsncpy(add(c, name, STRING, 0)->text, text, 63);
}

static long long int_of(struct camera *c, const wchar_t *name) { return find(c, name)->value; }
static double real_of(struct camera *c, const wchar_t *name) { return find(c, name)->real; }

static const wchar_t *text_of(struct camera *c, const wchar_t *name)
{
    struct feature *f = find(c, name);
    return f->items[f->value];
}

static int is(struct camera *c, const wchar_t *name, const wchar_t *text) { return !wcscmp(text_of(c, name), text); }

static int twelve(struct camera *c) { return wcsstr(text_of(c, c->model->gain), L"12-bit") != NULL; }

static void bins(struct camera *c, int *x, int *y)
{
    if (c->model->binning_list) {
        static const int sizes[] = {1, 2, 3, 4, 8};
        *x = *y = sizes[int_of(c, L"AOIBinning")];
    } else {
        *x = (int)int_of(c, L"AOIHBin"), *y = (int)int_of(c, L"AOIVBin");
    }
}

static double clip(double value, double low, double high) { return value < low ? low : value > high ? high : value; }

/* Everything that follows from what was set. */
static void follow(struct camera *c)
{
    const struct model *m = c->model;
    int bx, by, packed = is(c, L"PixelEncoding", L"Mono12Packed"), wide = is(c, L"PixelEncoding", L"Mono32");
    struct feature *w = find(c, L"AOIWidth"), *h = find(c, L"AOIHeight"), *f;
    bins(c, &bx, &by);
    w->high = m->width / bx / m->step_x * m->step_x;
    h->high = m->height / by / m->step_y * m->step_y;
    w->value = w->value > w->high ? w->high : w->value, h->value = h->value > h->high ? h->high : h->value;
    f = find(c, L"AOILeft"), f->high = m->width - w->value * bx + 1, f->value = f->value > f->high ? f->high : f->value;
    f = find(c, L"AOITop"), f->high = m->height - h->value * by + 1, f->value = f->value > f->high ? f->high : f->value;

    f = find(c, L"PixelEncoding"); /* Mono12, Mono12Packed, Mono16, Mono32 */
    f->available = twelve(c) ? 3 : 12;
    if (!(f->available >> f->value & 1))
        f->value = twelve(c) ? 0 : 2, packed = wide = 0;
    find(c, L"BitDepth")->value = !twelve(c);
    find(c, L"BytesPerPixel")->real = packed ? 1.5 : wide ? 4 : 2;
    c->row_bytes = packed ? (3 * w->value + 1) / 2 : (wide ? 4 : 2) * w->value;
    if (sim.padding > 1)
        c->row_bytes = (c->row_bytes + sim.padding - 1) / sim.padding * sim.padding;
    find(c, L"AOIStride")->value = c->row_bytes;
    long size = (c->row_bytes * h->value + 7) / 8 * 8;
    if (int_of(c, L"MetadataEnable")) /* a chunk is its data, its id and its length */
        size += 8 + 16 * (int_of(c, L"MetadataFrameInfo") + int_of(c, L"MetadataTimestamp"));
    c->image_bytes = size;
    find(c, L"ImageSizeBytes")->value = size + sim.wrong_size;

    double row = m->row / sim.speed * (1 + (double)int_of(c, L"PixelReadoutRate"));
    double readout = row * (double)(h->value * by) / 2, exposure;
    int global = m->global && is(c, L"ElectronicShutteringMode", L"Global"), overlap = int_of(c, L"Overlap") != 0;
    find(c, L"RowReadTime")->real = row;
    find(c, L"ReadoutTime")->real = readout;
    f = find(c, L"ExposureTime"), f->most = 1800;
    f->least = !global ? row : overlap ? readout + 2 * row : 2 * row; /* the reference frame is read in the exposure */
    f->real = clip(row * floor(f->real / row + 0.5), f->least, f->most);
    exposure = f->real;
    f = find(c, L"FrameRate");
    f->most = 1 / (overlap && !global ? fmax(exposure, readout) : exposure + (global ? 2 : 1) * readout);
    f->least = overlap ? 1 / (exposure + (global ? 2 : 1) * readout + row) : 0.0005;
    f->real = clip(f->real, f->least, f->most);
    f->writable = is(c, L"TriggerMode", L"Internal") || is(c, L"TriggerMode", L"External Start") ? 2 : 0;
    find(c, L"MaxInterfaceTransferRate")->real = 1.7e9 * sim.speed / (double)size;
}

/* In a function, for as long as the library is there. */
#define WORDS(...)                                                                                                     \
    ({                                                                                                                 \
        static const wchar_t *const words[] = {__VA_ARGS__, NULL};                                                     \
        words;                                                                                                         \
    })

static struct camera *make_camera(const struct model *m, const char *serial)
{
    struct camera *c = calloc(1, sizeof *c);
    wchar_t wide[32] = {0};
    c->model = m, c->present = 1, c->temperature = 20, c->epoch = c->changed = now();
    snprintf(c->serial, sizeof c->serial, "%s", serial);
    for (int i = 0; i < 31 && serial[i]; i++)
        wide[i] = (wchar_t)serial[i];
    add_string(c, L"SerialNumber", wide);
    add_string(c, L"CameraModel", m->name);
    add_string(c, L"CameraName", m->name);
    add_string(c, L"FirmwareVersion", L"21.3.1.0");
    add_string(c, L"InterfaceType", m->width > 4000 ? L"CoaXPress" : L"CL 10 Tap");
    add_int(c, L"SensorWidth", m->width, 1, m->width, 0);
    add_int(c, L"SensorHeight", m->height, 1, m->height, 0);
    add_float(c, L"PixelWidth", m->pixel, 0, 100, 0);
    add_float(c, L"PixelHeight", m->pixel, 0, 100, 0);
    add_enum(c, L"TriggerMode",
             WORDS(L"Internal", L"External Start", L"External Exposure", L"Software", L"Advanced", L"External"),
             m->triggers, 1);
    add_enum(c, L"CycleMode", WORDS(L"Fixed", L"Continuous"), 3, 1);
    if (m->global)
        add_enum(c, L"ElectronicShutteringMode", WORDS(L"Rolling", L"Global"), 3, 1);
    else
        add_enum(c, L"ElectronicShutteringMode", WORDS(L"Rolling"), 1, 1);
    add_enum(c, m->gain, m->gains, ~0u, 1);
    add_enum(c, L"PixelReadoutRate", m->rates, m->rates_available, 1);
    add_enum(c, L"PixelEncoding", WORDS(L"Mono12", L"Mono12Packed", L"Mono16", L"Mono32"), 15, 1);
    add_enum(c, L"BitDepth", WORDS(L"12 Bit", L"16 Bit"), 3, 0);
    add_float(c, L"BytesPerPixel", 2, 1.5, 4, 0);
    if (m->binning_list) {
        add_enum(c, L"AOIBinning", WORDS(L"1x1", L"2x2", L"3x3", L"4x4", L"8x8"), 31, 1);
    } else {
        add_int(c, L"AOIHBin", 1, 1, 8, 1);
        add_int(c, L"AOIVBin", 1, 1, 8, 1);
    }
    add_int(c, L"AOIWidth", m->width, 64, m->width, 1);
    add_int(c, L"AOILeft", 1, 1, 1, 1);
    add_int(c, L"AOIHeight", m->height, 8, m->height, 1);
    add_int(c, L"AOITop", 1, 1, 1, 1);
    add_int(c, L"AOIStride", 0, 0, 1 << 20, 0);
    add_int(c, L"ImageSizeBytes", 0, 0, 1 << 30, 0);
    add_bool(c, L"Overlap", 0, 1);
    add_float(c, L"ExposureTime", 0.01, 0, 0, 2);
    add_float(c, L"FrameRate", 10, 0, 0, 2);
    add_int(c, L"FrameCount", 1, 1, 2147483647, 1);
    add_float(c, L"ReadoutTime", 0, 0, 10, 0);
    add_float(c, L"RowReadTime", 0, 0, 1, 0);
    add_float(c, L"MaxInterfaceTransferRate", 0, 0, 1e6, 0);
    add_bool(c, L"SensorCooling", 0, 1);
    add_float(c, L"SensorTemperature", 20, -100, 100, 0);
    add_enum(c, L"TemperatureStatus",
             WORDS(L"Cooler Off", L"Stabilised", L"Cooling", L"Drift", L"Not Stabilised", L"Fault"), 63, 0);
    add_enum(c, L"FanSpeed", WORDS(L"Off", L"Low", L"On"), 7, 1);
    if (m->target)
        add_float(c, L"TargetSensorTemperature", m->target == 2 ? -5 : 0, m->target_min, m->target_max, m->target - 1);
    add_bool(c, L"MetadataEnable", 0, 1);
    add_bool(c, L"MetadataTimestamp", 1, 1);
    add_bool(c, L"MetadataFrameInfo", 1, 1);
    add_int(c, L"TimestampClock", 0, 0, 1LL << 62, 0);
    add_int(c, L"TimestampClockFrequency", m->clock, 1, 1 << 30, 0);
    add(c, L"TimestampClockReset", COMMAND, 2);
    if (m->filter)
        add_bool(c, L"SpuriousNoiseFilter", 1, 1);
    add_bool(c, L"StaticBlemishCorrection", 1, 1);
    add_bool(c, L"CameraAcquiring", 0, 0);
    add_int(c, L"BufferOverflowEvent", 0, 0, 1LL << 62, 0);
    add_enum(c, L"EventSelector", WORDS(L"ExposureEndEvent", L"BufferOverflowEvent"), 3, 2);
    add_bool(c, L"EventEnable", 0, 2);
    add_enum(c, L"AuxiliaryOutSource", WORDS(L"FireRow1", L"FireRowN", L"FireAll", L"FireAny"), 15, 2);
    add(c, L"AcquisitionStart", COMMAND, 1);
    add(c, L"AcquisitionStop", COMMAND, 2);
    add(c, L"SoftwareTrigger", COMMAND, 2);
    follow(c);
    return c;
}

/* --- temperature ------------------------------------------------------------------------------------------------- */

static double target(struct camera *c)
{
    struct feature *f = find(c, L"TargetSensorTemperature");
    if (!int_of(c, L"SensorCooling"))
        return 20;
    return (f ? f->real : 0) + (sim.never_cold ? 5 : 0);
}

static double temperature(struct camera *c)
{
    return target(c) + (c->temperature - target(c)) * exp((c->changed - now()) / fmax(1e-3, sim.ramp));
}

static int temperature_status(struct camera *c)
{
    if (sim.cooler_fault)
        return 5;
    if (!int_of(c, L"SensorCooling"))
        return 0;
    if (fabs(temperature(c) - target(c)) > 0.5)
        return 2;
    return sim.never_cold ? 4 : 1;
}

/* --- images ------------------------------------------------------------------------------------------------------ */

struct frame { /* as it was when the acquisition began */
    long width, height, stride, left, top, bin_x, bin_y;
    int packed, wide, info, stamp;
    unsigned mask;
    uint64_t look;
};

static struct frame frame_of(struct camera *c)
{
    int bx, by;
    bins(c, &bx, &by);
    struct frame f = {.width = int_of(c, L"AOIWidth"), .height = int_of(c, L"AOIHeight"), .stride = c->row_bytes,
                      .left = int_of(c, L"AOILeft"), .top = int_of(c, L"AOITop"), .bin_x = bx, .bin_y = by,
                      .packed = is(c, L"PixelEncoding", L"Mono12Packed"), .wide = is(c, L"PixelEncoding", L"Mono32"),
                      .mask = twelve(c) ? 0xfff : 0xffff};
    f.info = int_of(c, L"MetadataEnable") && int_of(c, L"MetadataFrameInfo");
    f.stamp = int_of(c, L"MetadataEnable") && int_of(c, L"MetadataTimestamp");
    const uint64_t parts[] = {f.width, f.height, f.stride, f.left, f.top, bx, by, f.packed, f.wide, f.mask};
    f.look = 1469598103934665603ull;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        f.look = (f.look ^ parts[i]) * 1099511628211ull;
    return f;
}

static void put(const struct frame *f, AT_U8 *row, long x, unsigned value)
{
    if (f->wide) {
        uint32_t v = value;
        memcpy(row + 4 * x, &v, 4);
    } else if (!f->packed) {
        uint16_t v = (uint16_t)value;
        memcpy(row + 2 * x, &v, 2);
    } else {
        AT_U8 *b = row + x / 2 * 3;
        if (x % 2)
            b[2] = (AT_U8)(value >> 4), b[1] = (AT_U8)((b[1] & 0x0f) | (value & 15) << 4);
        else
            b[0] = (AT_U8)(value >> 4), b[1] = (AT_U8)((b[1] & 0xf0) | (value & 15));
    }
}

static void paint(const struct frame *f, AT_U8 *data)
{
    for (long y = 0; y < f->height; y++) {
        AT_U8 *row = data + y * f->stride;
        long used = f->packed ? (3 * f->width + 1) / 2 : (f->wide ? 4 : 2) * f->width;
        unsigned sy = 1031u * (unsigned)(f->top - 1 + y * f->bin_y);
        for (long x = 0; x < f->width; x++)
            put(f, row, x, (37u * (unsigned)(f->left - 1 + x * f->bin_x) + sy) & f->mask);
        memset(row + used, 0xEE, (size_t)(f->stride - used));
    }
}

static void tag(const struct frame *f, AT_U8 *data, long number)
{
    unsigned values[4] = {(unsigned)number & 0xfff, (unsigned)(number >> 12) & 0xfff, 0xACE, 0x5A5};
    for (long x = 0; x < 4; x++) {
        put(f, data, x, values[x]);
        put(f, data + (f->height - 1) * f->stride, x, values[x]);
    }
}

static AT_U8 *chunk(AT_U8 *at, uint32_t id, const void *content, uint32_t size)
{
    uint32_t length = size + 4;
    if (content)
        memcpy(at, content, size);
    memcpy(at + size, &id, 4);
    memcpy(at + size + 4, &length, 4);
    return at + size + 8;
}

static void describe(const struct frame *f, AT_U8 *data, uint64_t ticks)
{
    uint32_t image = (uint32_t)((f->stride * f->height + 7) / 8 * 8);
    AT_U8 info[8] = {0}, *at;
    uint16_t sizes[3] = {(uint16_t)f->stride, (uint16_t)f->width, (uint16_t)f->height};
    if (!f->info && !f->stamp)
        return;
    memcpy(info, sizes, 2), memcpy(info + 4, sizes + 1, 4);
    info[2] = f->packed ? 1 : f->wide ? 3 : f->mask == 0xfff ? 0 : 2;
    at = chunk(data, 0, NULL, image);
    if (f->info)
        at = chunk(at, 7, info, 8);
    if (f->stamp)
        at = chunk(at, 1, &ticks, 8);
    if (sim.corrupt)
        memset(at - 16, 0xFF, 16);
}

/* Once for each buffer and what it shows. Locked, but for the painting. */
static void paint_once(struct camera *c, const struct frame *f, AT_U8 *data)
{
    int there = 0;
    if (c->look != f->look)
        c->look = f->look, c->paintings = 0;
    for (int i = 0; i < c->paintings && !there; i++)
        there = c->painted[i] == data;
    if (!there) {
        pthread_mutex_unlock(&sim.lock);
        paint(f, data);
        pthread_mutex_lock(&sim.lock);
        if (c->paintings < QUEUE)
            c->painted[c->paintings++] = data;
    }
}

static void fill(struct camera *c, const struct frame *f, AT_U8 *data, long number, double at)
{
    paint_once(c, f, data);
    tag(f, data, number);
    describe(f, data, (uint64_t)((at - c->epoch) * c->model->clock));
}

/* --- the acquisition --------------------------------------------------------------------------------------------- */

static int wait_until(struct camera *c, double at) /* 0: stopped */
{
    struct timespec t = when(at);
    while (!c->abort && !sim.gone)
        if (pthread_cond_timedwait(&sim.changed, &sim.lock, &t) == ETIMEDOUT)
            return !c->abort && !sim.gone;
    return 0;
}

/* When the next edge comes that a camera, busy until `ready`, heeds; waits for it. Negative: stopped. */
static double next_edge(struct camera *c, double ready)
{
    while (!c->abort && !sim.gone) {
        if (!sim.edges) {
            pthread_cond_wait(&sim.changed, &sim.lock);
            continue;
        }
        double at = sim.edge_period > 0 ? sim.edge_at : fmax(sim.edge_at, ready);
        if (at > now()) {
            if (!wait_until(c, at))
                return -1;
            continue;
        }
        sim.edges--, sim.edge_at = at + (sim.edge_period > 0 ? sim.edge_period : 0);
        if (at >= ready - 1e-9)
            return at;
        c->ignored++;
    }
    return -1;
}

static double next_software(struct camera *c)
{
    while (!c->software && !c->abort && !sim.gone)
        pthread_cond_wait(&sim.changed, &sim.lock);
    if (c->abort || sim.gone)
        return -1;
    return now();
}

static void tell(struct camera *c, const wchar_t *name)
{
    struct feature *f = find(c, name);
    FeatureCallback callback = f->callback;
    void *context = f->context;
    AT_H h = -1;
    for (int i = 0; i < sim.count; i++)
        if (sim.cameras[i] == c)
            h = FIRST_HANDLE + i;
    if (!callback || !int_of(c, L"EventEnable"))
        return;
    pthread_mutex_unlock(&sim.lock);
    callback(h, name, context);
    pthread_mutex_lock(&sim.lock);
}

/* 0: the frame is lost. */
static int deliver(struct camera *c, const struct frame *f, long number, double at)
{
    struct ring *q = &c->queued, *d = &c->done;
    if (sim.silent)
        return 1;
    if (sim.lose) {
        sim.lose--, c->lost++, c->overflow = 1;
        pthread_cond_broadcast(&sim.changed);
        return 0;
    }
    if (q->begin == q->end) {
        c->lost++, find(c, L"BufferOverflowEvent")->value++;
        tell(c, L"BufferOverflowEvent");
        return 0;
    }
    struct buffer b = q->each[q->begin++ % QUEUE];
    fill(c, f, b.data, number, at);
    if (c->abort)
        return 1;
    d->each[d->end++ % QUEUE] = b;
    c->delivered++;
    pthread_cond_broadcast(&sim.changed);
    return 1;
}

static void *expose(void *argument)
{
    struct camera *c = argument;
    pthread_mutex_lock(&sim.lock);
    const struct frame f = frame_of(c);
    const double readout = real_of(c, L"ReadoutTime");
    const int internal = is(c, L"TriggerMode", L"Internal"), start = is(c, L"TriggerMode", L"External Start");
    const int software = is(c, L"TriggerMode", L"Software"), gate = is(c, L"TriggerMode", L"External Exposure");
    const long total = is(c, L"CycleMode", L"Fixed") ? (long)int_of(c, L"FrameCount") : -1;
    const int edges = gate && int_of(c, L"Overlap"); /* each ends an exposure and begins the next */
    double begin = c->started, ready = begin, last = edges ? next_edge(c, begin) : 0;
    for (long n = 0; n != total; n++) {
        double exposure = real_of(c, L"ExposureTime"), period = 1 / real_of(c, L"FrameRate");
        if (internal || (start && n))
            begin = n ? begin + period : begin;
        else if (software)
            begin = next_software(c);
        else if (edges && last >= 0 && (ready = next_edge(c, last + readout)) >= 0)
            exposure = ready - last, begin = last, last = ready;
        else
            begin = edges ? -1 : next_edge(c, ready);
        if (begin < 0)
            break;
        if (gate && !edges && sim.edge_width > 0)
            exposure = sim.edge_width;
        ready = begin + exposure + readout;
        if (!wait_until(c, ready))
            break;
        if (software)
            c->software = 0;
        if (sim.stall > 0) {
            double late = now() + sim.stall;
            sim.stall = 0;
            if (!wait_until(c, late))
                break;
        }
        c->exposed++;
        if (sim.tail > 0 && n + 1 == total) {
            find(c, L"CameraAcquiring")->value = c->acquiring = 0;
            if (!wait_until(c, now() + sim.tail))
                break;
        }
        if (!deliver(c, &f, n, begin) && sim.burst) {
            while (sim.burst != ENDS && !c->abort && !sim.gone)
                pthread_cond_wait(&sim.changed, &sim.lock);
            break;
        }
        if (c->abort || sim.gone)
            break;
    }
    find(c, L"CameraAcquiring")->value = 0;
    c->acquiring = 0;
    pthread_cond_broadcast(&sim.changed);
    pthread_mutex_unlock(&sim.lock);
    return NULL;
}

static void halt(struct camera *c)
{
    if (!c->has_thread)
        return;
    c->abort = 1;
    pthread_cond_broadcast(&sim.changed);
    pthread_mutex_unlock(&sim.lock);
    pthread_join(c->thread, NULL);
    pthread_mutex_lock(&sim.lock);
    c->has_thread = c->abort = c->acquiring = 0;
}

static int begin(struct camera *c)
{
    if (c->acquiring)
        return AT_ERR_NOTWRITABLE;
    halt(c); /* of one that has come to its end */
    c->software = c->exposed = c->delivered = c->lost = c->ignored = c->overflow = 0;
    sim.edges = 0;
    c->acquiring = 1, c->started = now();
    find(c, L"CameraAcquiring")->value = 1;
    find(c, L"BufferOverflowEvent")->value = 0;
    if (pthread_create(&c->thread, NULL, expose, c)) {
        c->acquiring = 0;
        return AT_ERR_NOMEMORY;
    }
    c->has_thread = 1;
    return 0;
}

/* --- commands ---------------------------------------------------------------------------------------------------- */

static void own_path(char *path, size_t size, const char *ending)
{
    Dl_info info;
    if (!dladdr((void *)own_path, &info) || !info.dli_fname)
        info.dli_fname = "libatcore.so";
    snprintf(path, size, "%s%s", info.dli_fname, ending);
}

static long total(const char *what)
{
    long sum = 0;
    for (int i = 0; i < sim.count; i++) {
        struct camera *c = sim.cameras[i];
        if (!c->open)
            continue;
        sum += !strcmp(what, "exposed")     ? c->exposed
               : !strcmp(what, "delivered") ? c->delivered
               : !strcmp(what, "lost")      ? c->lost
               : !strcmp(what, "ignored")   ? c->ignored
               : !strcmp(what, "queued")    ? (long)(c->queued.end - c->queued.begin)
                                            : -1;
    }
    return sum;
}

static int report(void)
{
    static const char *const names[] = {"exposed", "delivered", "lost", "ignored", "queued"};
    char path[4096], other[4200];
    own_path(path, sizeof path, ".report");
    snprintf(other, sizeof other, "%s.new", path);
    FILE *file = fopen(other, "w");
    if (!file)
        return AT_ERR_COMM;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        fprintf(file, "%s %ld\n", names[i], total(names[i]));
    fclose(file);
    return rename(other, path) ? AT_ERR_COMM : 0;
}

static int inject(const char *what, int code, double seconds, long skip, long count)
{
    for (int i = 0; i < INJECTIONS; i++)
        if (!sim.injections[i].count) {
            struct injection *one = &sim.injections[i];
            *one = (struct injection){.code = code, .seconds = seconds, .skip = skip, .count = count};
            snprintf(one->what, sizeof one->what, "%s", what);
            return 0;
        }
    return AT_ERR_NOMEMORY;
}

static void keep_temperature(void)
{
    for (int i = 0; i < sim.count; i++)
        sim.cameras[i]->temperature = temperature(sim.cameras[i]), sim.cameras[i]->changed = now();
}

static int obey(const char *line)
{
    char word[80] = "", text[80] = "";
    double a = 0, b = 0, d = 0;
    int n = sscanf(line, "%79s %79s %lf %lf %lf", word, text, &a, &b, &d);
    if (n < 1 || *word == '#')
        return 0;
    double value = atof(text);
    if (!strcmp(word, "camera")) {
        char serial[32] = "";
        sscanf(line, "%*s %*s %31s", serial);
        for (size_t i = 0; i < sizeof MODELS / sizeof *MODELS && sim.count < CAMERAS; i++)
            if (!strcmp(MODELS[i].word, text)) {
                sim.cameras[sim.count++] = make_camera(&MODELS[i], serial);
                return 0;
            }
        return AT_ERR_OUTOFRANGE;
    }
    if (!strcmp(word, "edge"))
        sim.edges = (long)value, sim.edge_at = now(), sim.edge_period = a, sim.edge_width = b;
    else if (!strcmp(word, "padding"))
        sim.padding = (long)value;
    else if (!strcmp(word, "fail"))
        return inject(text, (int)a, 0, (long)b, n > 4 ? (long)d : 1);
    else if (!strcmp(word, "slow"))
        return inject(text, 0, a, 0, n > 3 ? (long)b : 1);
    else if (!strcmp(word, "speed"))
        sim.speed = value > 0 ? value : 1;
    else if (!strcmp(word, "lose"))
        sim.lose = (long)value;
    else if (!strcmp(word, "stall"))
        sim.stall = value;
    else if (!strcmp(word, "burst")) {
        static const char *const hows[] = {"goes", "ends", "hangs", "repeats"};
        for (int i = 0; i < 4; i++)
            if (!strcmp(hows[i], text))
                sim.burst = (enum burst)i;
    } else if (!strcmp(word, "tail"))
        sim.tail = value;
    else if (!strcmp(word, "linger"))
        sim.linger = value;
    else if (!strcmp(word, "silent"))
        sim.silent = (int)value;
    else if (!strcmp(word, "unplug"))
        sim.gone = 1, sim.quiet = !strcmp(text, "quiet");
    else if (!strcmp(word, "plug"))
        sim.gone = sim.quiet = 0;
    else if (!strcmp(word, "busy"))
        snprintf(sim.busy, sizeof sim.busy, "%.31s", text);
    else if (!strcmp(word, "size"))
        sim.wrong_size = (long)value;
    else if (!strcmp(word, "corrupt"))
        sim.corrupt = (int)value;
    else if (!strcmp(word, "ramp"))
        keep_temperature(), sim.never_cold = !strcmp(text, "never"), sim.ramp = sim.never_cold ? sim.ramp : value;
    else if (!strcmp(word, "cooler"))
        sim.cooler_fault = !strcmp(text, "fault");
    else if (!strcmp(word, "calm")) {
        memset(sim.injections, 0, sizeof sim.injections);
        keep_temperature();
        sim.lose = sim.wrong_size = sim.silent = sim.corrupt = sim.gone = sim.quiet = sim.cooler_fault = 0;
        sim.never_cold = 0, sim.stall = sim.linger = sim.tail = 0, sim.burst = GOES, *sim.busy = 0;
    } else if (!strcmp(word, "report"))
        return report();
    else
        return AT_ERR_NOTIMPLEMENTED;
    for (int i = 0; i < sim.count; i++)
        follow(sim.cameras[i]);
    pthread_cond_broadcast(&sim.changed);
    return 0;
}

static void obey_all(FILE *file)
{
    char line[256];
    while (fgets(line, sizeof line, file))
        if (obey(line))
            fprintf(stderr, "fake libatcore: not understood: %s", line);
}

static void *control(void *argument)
{
    char path[4096], line[256];
    size_t used = 0;
    (void)argument;
    own_path(path, sizeof path, ".control");
    int fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
    struct pollfd both[2] = {{fd, POLLIN, 0}, {sim.control_pipe[0], POLLIN, 0}};
    while (fd >= 0 && poll(both, 2, -1) >= 0 && !both[1].revents) {
        char c;
        while (read(fd, &c, 1) == 1) {
            if (c != '\n' && used + 1 < sizeof line) {
                line[used++] = c;
                continue;
            }
            line[used] = 0, used = 0;
            if (SIM_Command(line))
                fprintf(stderr, "fake libatcore: not understood: %s\n", line);
        }
    }
    if (fd >= 0)
        close(fd);
    return NULL;
}

int SIM_Command(const char *words)
{
    pthread_once(&once, make_condition);
    pthread_mutex_lock(&sim.lock);
    int code = obey(words);
    pthread_mutex_unlock(&sim.lock);
    return code;
}

long long SIM_Count(const char *what)
{
    pthread_mutex_lock(&sim.lock);
    long long n = sim.count ? total(what) : 0;
    pthread_mutex_unlock(&sim.lock);
    return n;
}

/* --- what every call begins with --------------------------------------------------------------------------------- */

/* Locked when it returns; what was injected for this function. */
static int enter(const char *function, const wchar_t *feature)
{
    char whole[160];
    double seconds = 0;
    int code = 0;
    snprintf(whole, sizeof whole, feature ? "%s:%ls" : "%s", function, feature);
    pthread_mutex_lock(&sim.lock);
    for (int i = 0; i < INJECTIONS; i++) {
        struct injection *one = &sim.injections[i];
        if (!one->count || (strcmp(one->what, whole) && strcmp(one->what, function)))
            continue;
        if (one->skip) {
            one->skip--;
            continue;
        }
        one->count--;
        code = one->code ? one->code : code;
        seconds += one->seconds;
    }
    if (seconds > 0) {
        pthread_mutex_unlock(&sim.lock);
        usleep((useconds_t)(1e6 * seconds));
        pthread_mutex_lock(&sim.lock);
    }
    return code;
}

static int leave(int code)
{
    pthread_mutex_unlock(&sim.lock);
    return code;
}

static int camera_of(AT_H h, struct camera **c)
{
    *c = NULL;
    if (!sim.users)
        return AT_ERR_NOTINITIALISED;
    if (h < FIRST_HANDLE || h >= FIRST_HANDLE + sim.count || !sim.cameras[h - FIRST_HANDLE]->open)
        return AT_ERR_INVALIDHANDLE;
    *c = sim.cameras[h - FIRST_HANDLE];
    return sim.gone ? AT_ERR_CONNECTION : 0;
}

static int feature_of(AT_H h, const wchar_t *name, int kind, struct camera **c, struct feature **f)
{
    static struct feature system[2] = {{.name = L"DeviceCount", .kind = INT, .high = CAMERAS},
                                       {.name = L"SoftwareVersion", .kind = STRING, .text = L"3.15.30092.2"}};
    *f = NULL;
    if (!sim.users)
        return AT_ERR_NOTINITIALISED;
    if (!name)
        return AT_ERR_NULL_FEATURE;
    if (h == AT_HANDLE_SYSTEM) {
        *c = NULL;
        system[0].value = sim.gone ? 0 : sim.count;
        for (int i = 0; i < 2; i++)
            if (!wcscmp(system[i].name, name) && (kind < 0 || kind == (int)system[i].kind))
                *f = &system[i];
        return *f ? 0 : AT_ERR_NOTIMPLEMENTED;
    }
    int code = camera_of(h, c);
    if (code)
        return code;
    *f = find(*c, name);
    return *f && (kind < 0 || (int)(*f)->kind == kind) ? 0 : AT_ERR_NOTIMPLEMENTED;
}

static int writable(struct camera *c, struct feature *f)
{
    return c && (f->writable == 2 || (f->writable == 1 && !c->acquiring));
}

#define ENTER(h, name, kind)                                                                                           \
    struct camera *c = NULL;                                                                                           \
    struct feature *f;                                                                                                 \
    int code = enter(__func__, name);                                                                                  \
    if (code || (code = feature_of(h, name, kind, &c, &f)))                                                            \
    return leave(code)

#define NEED(pointer, code)                                                                                            \
    if (!(pointer))                                                                                                    \
    return leave(code)

#define MAY_WRITE                                                                                                      \
    if (!writable(c, f))                                                                                               \
    return leave(f->writable ? AT_ERR_NOTWRITABLE : AT_ERR_READONLY)

/* --- the library ------------------------------------------------------------------------------------------------- */

int AT_InitialiseLibrary(void)
{
    pthread_once(&once, make_condition);
    int code = enter(__func__, NULL);
    if (code || sim.users++)
        return leave(code);
    char path[4096];
    own_path(path, sizeof path, ".conf");
    FILE *file = fopen(path, "r");
    if (file) {
        obey_all(file);
        fclose(file);
    }
    if (!sim.count)
        obey("camera simcam SFT-0"), obey("camera simcam SFT-1");
    own_path(path, sizeof path, ".control");
    sim.control_runs = !access(path, R_OK | W_OK) && !pipe2(sim.control_pipe, O_CLOEXEC) &&
                       !pthread_create(&sim.control, NULL, control, NULL);
    return leave(0);
}

int AT_FinaliseLibrary(void)
{
    int code = enter(__func__, NULL);
    if (code || !sim.users)
        return leave(code ? code : AT_ERR_NOTINITIALISED);
    if (--sim.users)
        return leave(0);
    if (sim.control_runs) {
        sim.control_runs = 0;
        if (write(sim.control_pipe[1], "", 1) < 0)
            perror("fake libatcore");
        pthread_mutex_unlock(&sim.lock);
        pthread_join(sim.control, NULL);
        pthread_mutex_lock(&sim.lock);
        close(sim.control_pipe[0]), close(sim.control_pipe[1]);
    }
    for (int i = 0; i < sim.count; i++) {
        halt(sim.cameras[i]);
        free(sim.cameras[i]);
    }
    sim.count = 0;
    return leave(0);
}

int AT_Open(int index, AT_H *h)
{
    int code = enter(__func__, NULL);
    NEED(h, AT_ERR_NULL_HANDLE);
    *h = AT_HANDLE_UNINITIALISED;
    if (code || !sim.users)
        return leave(code ? code : AT_ERR_NOTINITIALISED);
    if (index < 0 || index >= sim.count || sim.gone)
        return leave(AT_ERR_DEVICENOTFOUND);
    struct camera *c = sim.cameras[index];
    if (c->open || (*sim.busy && !strcmp(sim.busy, c->serial)))
        return leave(AT_ERR_DEVICEINUSE);
    c->open = 1;
    *h = FIRST_HANDLE + index;
    return leave(0);
}

int AT_Close(AT_H h)
{
    struct camera *c;
    int code = enter(__func__, NULL);
    if (code || ((code = camera_of(h, &c)) && !c))
        return leave(code);
    halt(c);
    c->open = 0;
    c->queued.begin = c->queued.end = c->done.begin = c->done.end = 0;
    for (int i = 0; i < c->count; i++)
        c->features[i].callback = NULL;
    return leave(code);
}

int AT_IsImplemented(AT_H h, const AT_WC *name, AT_BOOL *out)
{
    struct camera *c;
    struct feature *f;
    int code = enter(__func__, name);
    NEED(out, AT_ERR_NULL_IMPLEMENTED_VAR);
    if (!code)
        code = feature_of(h, name, -1, &c, &f);
    *out = !code;
    return leave(code == AT_ERR_NOTIMPLEMENTED ? 0 : code);
}

int AT_IsReadable(AT_H h, const AT_WC *name, AT_BOOL *out)
{
    ENTER(h, name, -1);
    NEED(out, AT_ERR_NULL_READABLE_VAR);
    *out = f->kind != COMMAND;
    return leave(0);
}

int AT_IsWritable(AT_H h, const AT_WC *name, AT_BOOL *out)
{
    ENTER(h, name, -1);
    NEED(out, AT_ERR_NULL_WRITABLE_VAR);
    *out = writable(c, f);
    return leave(0);
}

int AT_IsReadOnly(AT_H h, const AT_WC *name, AT_BOOL *out)
{
    ENTER(h, name, -1);
    NEED(out, AT_ERR_NULL_READONLY_VAR);
    *out = !f->writable;
    return leave(0);
}

int AT_SetInt(AT_H h, const AT_WC *name, AT_64 value)
{
    ENTER(h, name, INT);
    MAY_WRITE;
    int step = !wcscmp(name, L"AOIWidth") ? c->model->step_x : !wcscmp(name, L"AOIHeight") ? c->model->step_y : 1;
    if (value < f->low || value > f->high || value % step)
        return leave(AT_ERR_OUTOFRANGE);
    f->value = value;
    follow(c);
    return leave(0);
}

int AT_GetInt(AT_H h, const AT_WC *name, AT_64 *value)
{
    ENTER(h, name, INT);
    NEED(value, AT_ERR_NULL_VALUE);
    *value = f->value;
    if (c && !wcscmp(name, L"TimestampClock"))
        *value = (AT_64)((now() - c->epoch) * c->model->clock);
    return leave(0);
}

int AT_GetIntMin(AT_H h, const AT_WC *name, AT_64 *value)
{
    ENTER(h, name, INT);
    NEED(value, AT_ERR_NULL_MINVALUE);
    *value = f->low;
    return leave(0);
}

int AT_GetIntMax(AT_H h, const AT_WC *name, AT_64 *value)
{
    ENTER(h, name, INT);
    NEED(value, AT_ERR_NULL_MAXVALUE);
    *value = f->high;
    return leave(0);
}

int AT_SetFloat(AT_H h, const AT_WC *name, double value)
{
    ENTER(h, name, FLOAT);
    MAY_WRITE;
    double slack = 1e-9 * fabs(value);
    if (!(value >= f->least - slack && value <= f->most + slack))
        return leave(AT_ERR_OUTOFRANGE);
    keep_temperature();
    f->real = clip(value, f->least, f->most);
    follow(c);
    return leave(0);
}

int AT_GetFloat(AT_H h, const AT_WC *name, double *value)
{
    ENTER(h, name, FLOAT);
    NEED(value, AT_ERR_NULL_VALUE);
    *value = !wcscmp(name, L"SensorTemperature") ? temperature(c) : f->real;
    return leave(0);
}

int AT_GetFloatMin(AT_H h, const AT_WC *name, double *value)
{
    ENTER(h, name, FLOAT);
    NEED(value, AT_ERR_NULL_MINVALUE);
    *value = f->least;
    return leave(0);
}

int AT_GetFloatMax(AT_H h, const AT_WC *name, double *value)
{
    ENTER(h, name, FLOAT);
    NEED(value, AT_ERR_NULL_MAXVALUE);
    *value = f->most;
    return leave(0);
}

int AT_SetBool(AT_H h, const AT_WC *name, AT_BOOL value)
{
    ENTER(h, name, BOOL);
    MAY_WRITE;
    keep_temperature();
    f->value = value != 0;
    follow(c);
    return leave(0);
}

int AT_GetBool(AT_H h, const AT_WC *name, AT_BOOL *value)
{
    ENTER(h, name, BOOL);
    NEED(value, AT_ERR_NULL_VALUE);
    *value = (AT_BOOL)f->value;
    return leave(0);
}

static int choose(struct camera *c, struct feature *f, int index, int missing, int unavailable)
{
    if (index < 0 || index >= f->count)
        return missing;
    if (!(f->available >> index & 1))
        return unavailable;
    f->value = index;
    follow(c);
    return 0;
}

int AT_SetEnumIndex(AT_H h, const AT_WC *name, int value)
{
    ENTER(h, name, ENUM);
    MAY_WRITE;
    return leave(choose(c, f, value, AT_ERR_INDEXNOTIMPLEMENTED, AT_ERR_INDEXNOTAVAILABLE));
}

int AT_SetEnumString(AT_H h, const AT_WC *name, const AT_WC *text)
{
    ENTER(h, name, ENUM);
    NEED(text, AT_ERR_NULL_STRING);
    MAY_WRITE;
    int index = 0;
    while (index < f->count && wcscmp(f->items[index], text))
        index++;
    return leave(choose(c, f, index, AT_ERR_STRINGNOTIMPLEMENTED, AT_ERR_STRINGNOTAVAILABLE));
}

int AT_GetEnumIndex(AT_H h, const AT_WC *name, int *value)
{
    ENTER(h, name, ENUM);
    NEED(value, AT_ERR_NULL_VALUE);
    *value = !wcscmp(name, L"TemperatureStatus") ? temperature_status(c) : (int)f->value;
    return leave(0);
}

int AT_GetEnumCount(AT_H h, const AT_WC *name, int *count)
{
    ENTER(h, name, ENUM);
    NEED(count, AT_ERR_NULL_COUNT_VAR);
    *count = f->count;
    return leave(0);
}

static int copy(const wchar_t *from, AT_WC *text, int length)
{
    if (length < 1 || wcslen(from) >= (size_t)length)
        return AT_ERR_EXCEEDEDMAXSTRINGLENGTH;
    wcscpy(text, from);
    return 0;
}

int AT_GetEnumStringByIndex(AT_H h, const AT_WC *name, int index, AT_WC *text, int length)
{
    ENTER(h, name, ENUM);
    NEED(text, AT_ERR_NULL_STRING);
    if (index < 0 || index >= f->count)
        return leave(AT_ERR_INDEXNOTIMPLEMENTED);
    return leave(copy(f->items[index], text, length));
}

int AT_IsEnumIndexAvailable(AT_H h, const AT_WC *name, int index, AT_BOOL *out)
{
    ENTER(h, name, ENUM);
    NEED(out, AT_ERR_NULL_ISAVAILABLE_VAR);
    if (index < 0 || index >= f->count)
        return leave(AT_ERR_INDEXNOTIMPLEMENTED);
    *out = f->available >> index & 1;
    return leave(0);
}

int AT_IsEnumIndexImplemented(AT_H h, const AT_WC *name, int index, AT_BOOL *out)
{
    ENTER(h, name, ENUM);
    NEED(out, AT_ERR_NULL_IMPLEMENTED_VAR);
    *out = index >= 0 && index < f->count;
    return leave(0);
}

int AT_SetEnumerated(AT_H h, const AT_WC *f, int value) { return AT_SetEnumIndex(h, f, value); }
int AT_SetEnumeratedString(AT_H h, const AT_WC *f, const AT_WC *text) { return AT_SetEnumString(h, f, text); }
int AT_GetEnumerated(AT_H h, const AT_WC *f, int *value) { return AT_GetEnumIndex(h, f, value); }
int AT_GetEnumeratedCount(AT_H h, const AT_WC *f, int *count) { return AT_GetEnumCount(h, f, count); }
int AT_GetEnumeratedString(AT_H h, const AT_WC *f, int index, AT_WC *text, int length)
{
    return AT_GetEnumStringByIndex(h, f, index, text, length);
}
int AT_IsEnumeratedIndexAvailable(AT_H h, const AT_WC *f, int index, AT_BOOL *out)
{
    return AT_IsEnumIndexAvailable(h, f, index, out);
}
int AT_IsEnumeratedIndexImplemented(AT_H h, const AT_WC *f, int index, AT_BOOL *out)
{
    return AT_IsEnumIndexImplemented(h, f, index, out);
}

int AT_SetString(AT_H h, const AT_WC *name, const AT_WC *text)
{
    ENTER(h, name, STRING);
    NEED(text, AT_ERR_NULL_STRING);
    MAY_WRITE;
    wcsncpy(f->text, text, 63);
    return leave(0);
}

int AT_GetString(AT_H h, const AT_WC *name, AT_WC *text, int length)
{
    ENTER(h, name, STRING);
    NEED(text, AT_ERR_NULL_STRING);
    return leave(copy(f->text, text, length));
}

int AT_GetStringMaxLength(AT_H h, const AT_WC *name, int *length)
{
    ENTER(h, name, STRING);
    NEED(length, AT_ERR_NULL_MAXSTRINGLENGTH);
    *length = 64;
    return leave(0);
}

int AT_Command(AT_H h, const AT_WC *name)
{
    ENTER(h, name, COMMAND);
    if (!wcscmp(name, L"AcquisitionStart"))
        return leave(begin(c));
    if (!wcscmp(name, L"AcquisitionStop"))
        halt(c);
    else if (!wcscmp(name, L"TimestampClockReset"))
        c->epoch = now();
    else if (!wcscmp(name, L"SoftwareTrigger")) {
        if (!c->acquiring || !is(c, L"TriggerMode", L"Software"))
            return leave(AT_ERR_NOTWRITABLE);
        if (c->software)
            c->ignored++; /* too early: the camera does not see it */
        c->software = 1;
        pthread_cond_broadcast(&sim.changed);
        double linger = sim.linger;
        pthread_mutex_unlock(&sim.lock);
        usleep((useconds_t)(1e6 * linger));
        return 0;
    }
    return leave(0);
}

int AT_QueueBuffer(AT_H h, AT_U8 *data, int size)
{
    struct camera *c;
    int code = enter(__func__, NULL);
    NEED(data, AT_ERR_NULL_QUEUE_PTR);
    if (code || (code = camera_of(h, &c)))
        return leave(code);
    if ((uintptr_t)data % 8)
        return leave(AT_ERR_INVALIDALIGNMENT);
    if (size != c->image_bytes)
        return leave(AT_ERR_INVALIDSIZE);
    if (c->queued.end - c->queued.begin >= QUEUE)
        return leave(AT_ERR_BUFFERFULL);
    if (!c->acquiring) {
        struct frame f = frame_of(c);
        paint_once(c, &f, data);
    }
    memset(data, 0xEE, 6); /* three pixels, or four that are packed */
    c->queued.each[c->queued.end++ % QUEUE] = (struct buffer){data, size};
    return leave(0);
}

int AT_WaitBuffer(AT_H h, AT_U8 **data, int *size, unsigned int timeout)
{
    struct camera *c;
    int code = enter(__func__, NULL);
    double until = now() + 1e-3 * timeout;
    NEED(data, AT_ERR_NULL_WAIT_PTR);
    NEED(size, AT_ERR_NULL_PTRSIZE);
    while (!code) {
        code = camera_of(h, &c);
        if (code == AT_ERR_CONNECTION && sim.quiet)
            code = 0;
        if (code)
            break;
        if (c->overflow) {
            c->overflow = sim.burst == REPEATS;
            code = AT_ERR_HARDWARE_OVERFLOW;
        } else if (c->done.begin != c->done.end) {
            struct buffer b = c->done.each[c->done.begin++ % QUEUE];
            *data = b.data, *size = b.size;
            break;
        } else if ((!c->acquiring || c->queued.begin == c->queued.end) && !sim.gone) {
            code = AT_ERR_NODATA;
        } else {
            struct timespec t = when(until);
            if (timeout == AT_INFINITE)
                pthread_cond_wait(&sim.changed, &sim.lock);
            else if (pthread_cond_timedwait(&sim.changed, &sim.lock, &t) == ETIMEDOUT)
                code = AT_ERR_TIMEDOUT;
        }
    }
    return leave(code);
}

int AT_Flush(AT_H h)
{
    struct camera *c;
    int code = enter(__func__, NULL);
    if (code || (code = camera_of(h, &c)))
        return leave(code);
    c->queued.begin = c->queued.end = c->done.begin = c->done.end = 0;
    pthread_cond_broadcast(&sim.changed);
    return leave(0);
}

int AT_RegisterFeatureCallback(AT_H h, const AT_WC *name, FeatureCallback callback, void *context)
{
    ENTER(h, name, -1);
    NEED(callback, AT_ERR_NULL_EVCALLBACK);
    f->callback = callback, f->context = context;
    pthread_mutex_unlock(&sim.lock);
    callback(h, name, context);
    return 0;
}

int AT_UnregisterFeatureCallback(AT_H h, const AT_WC *name, FeatureCallback callback, void *context)
{
    ENTER(h, name, -1);
    (void)context;
    if (f->callback != callback)
        return leave(AT_ERR_NULL_EVCALLBACK);
    f->callback = NULL;
    return leave(0);
}
