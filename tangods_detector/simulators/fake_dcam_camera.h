/* The simulated camera behind the library: models, properties whose limits follow each other, images that are signed.
   Part of fake_dcam.c. */
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "fake_dcam.h"

#define MAX_PROPERTIES 64
#define MAX_CHOICES 6
#define MAX_LOST 256

enum { /* of a property */
    MODE = 1,
    LONG = 2,
    REAL = 3,
    TYPE = 0xF,
    EFFECTIVE = 0x200,
    ACCESSBUSY = 0x1000,
    ACCESSREADY = 0x2000,
    READABLE = 0x10000,
    WRITABLE = 0x20000,
    VOLATILE = 0x80000,
    AUTOROUNDING = 0x800000,
    HASVALUETEXT = 0x10000000,
    HASDEFAULT = 0x20000000,
    HASSTEP = 0x40000000,
};
#define HASRANGE ((int32_t)0x80000000)

struct choice {
    double value;
    const char *text;
};

struct property {
    int32_t id, attribute, unit;
    const char *name;
    double value, low, high, step, initial;
    struct choice choices[MAX_CHOICES]; /* of a mode; text NULL: no more */
};

struct model {
    const char *key, *name, *series;
    int width, height, speeds;
    double row_time[3]; /* s for one row, or pair of rows, at each read-out speed */
    int rows_at_once;   /* 2: both halves of the sensor are read at the same time */
    double shortest, longest; /* exposure, s */
    int mono12p, mono8, cooler, target, multiframe, camerastamp, interval;
};

static const struct model MODELS[] = {
    {.key = "flash4", .name = "C13440-20CU", .series = "ORCA-Flash4.0 V3", .width = 2048, .height = 2048, .speeds = 2,
     .row_time = {32.4812e-6, 9.74436e-6}, .rows_at_once = 2, .shortest = 1e-3, .longest = 10.0, .mono8 = 1,
     .cooler = 1, .interval = 1},
    {.key = "fusion", .name = "C14440-20UP", .series = "ORCA-Fusion", .width = 2304, .height = 2304, .speeds = 3,
     .row_time = {81.128e-6, 18.648e-6, 4.8676e-6}, .rows_at_once = 1, .shortest = 17e-6, .longest = 10.0, .mono8 = 1,
     .cooler = 1, .target = 1, .camerastamp = 1},
    {.key = "lightning", .name = "C14120-20P", .series = "ORCA-Lightning", .width = 4608, .height = 2592, .speeds = 1,
     .row_time = {3.188e-6}, .rows_at_once = 1, .shortest = 6.376e-6, .longest = 1.8, .mono12p = 1, .multiframe = 1,
     .camerastamp = 1, .interval = 1},
};

struct waiter;

struct stamp {
    DCAM_TIMESTAMP time;
    int32_t framestamp, camerastamp;
};

struct camera {
    const struct model *model;
    char serial[32];
    int plugged, opened, dead; /* dead: unplugged while it was open */
    struct property properties[MAX_PROPERTIES];
    int nproperties;
    double temperature, felt; /* degC, and when it was so */
    double started; /* when dcamcap_start was called: it heeds triggers from then on */

    int status; /* STATUS_... */
    void **buffers;
    int nbuffers, own_buffers;
    struct stamp *stamps; /* of each buffer */
    pthread_t thread;
    int has_thread, stopping, stopped, snap;
    int software;    /* triggers that wait: 0 or 1 */
    int waiting;     /* for a trigger */
    int32_t count;   /* frames transferred since the start */
    int32_t exposed; /* frames taken since the start, lost ones, too */
    int32_t powered; /* frames since power-up */
    int lost, missing; /* that dcamwait_start has to tell */
    struct waiter *waiters;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards everything */
static pthread_cond_t changed;

/* --- what is wished for ------------------------------------------------------------------------------------------ */

static struct {
    const char *name;
    double value, none;
} knobs[] = {
    {"init_error", 0, 0},      /* code that dcamapi_init returns, once */
    {"open_error", 0, 0},      /* dcamdev_open, once */
    {"alloc_error", 0, 0},     /* dcambuf_alloc and dcambuf_attach, once */
    {"start_error", 0, 0},     /* dcamcap_start, once */
    {"wait_error", 0, 0},      /* dcamwait_start, once, when frame wait_error_at has come */
    {"wait_error_at", 0, 0},
    {"refuse", 0, 0},          /* id of a property that cannot be written, until it is 0 again */
    {"refuse_code", (double)(int32_t)0x80000821, (double)(int32_t)0x80000821},
    {"vanish", 0, 0},          /* id of a property that is not there any more */
    {"wrong", 0, 0},           /* id of a property that takes another value than it was given, by wrong_by */
    {"wrong_by", 0, 0},
    {"stall_at", -1, -1},      /* the camera falls silent before this frame */
    {"unplug_at", -1, -1},     /* the cable is pulled before this frame */
    {"jump_at", -1, -1},       /* before this frame jump frames are lost at once */
    {"jump", 0, 0},
    {"missing", 0, 0},         /* lost frames are told as MISSINGFRAME_TROUBLE instead of LOSTFRAME */
    {"untold", 0, 0},          /* lost frames are not told at all: only the stamps jump */
    {"skip_edges", 0, 0},      /* so many edges do not arrive */
    {"cooling_stuck", 0, 0},   /* the sensor gets no colder than this, degC; 0: it does */
    {"cooling_speed", 20, 20}, /* degC in a second */
    {"row_alignment", 0, 0},   /* bytes; rows are padded to a multiple */
    {"pace", 1, 1},            /* factor of all times in a series; 0: frame after frame without a pause */
    {"edges_ignored", 0, 0},   /* edges that found the camera busy: only to be read */
    {"allocated", 0, 0},       /* buffers, stamps, waiters and threads in use: only to be read */
    {"frames", 0, 0},          /* transferred since the last start: only to be read */
};

static int32_t lose[MAX_LOST]; /* frames of the next series that are lost on their way */
static int nlose;

static struct {
    long left;             /* edges that are still to come */
    double period, width;  /* s; period 0: each waits until the camera is ready; width 0: the exposure time */
    double next;
} edges;

static double *knob_at(const char *name)
{
    for (size_t i = 0; i < sizeof knobs / sizeof *knobs; i++)
        if (!strcmp(knobs[i].name, name))
            return &knobs[i].value;
    fprintf(stderr, "fake DCAM: no knob %s\n", name);
    abort();
}

static double knob(const char *name) { return *knob_at(name); }

static double used_up(const char *name, double none)
{
    double value = knob(name);
    *knob_at(name) = none;
    return value;
}

static void allocated(int by) { *knob_at("allocated") += by; }

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* --- properties -------------------------------------------------------------------------------------------------- */

static struct property *find(struct camera *c, int32_t id)
{
    if (id == (int32_t)knob("vanish"))
        return NULL;
    for (int i = 0; i < c->nproperties; i++)
        if (c->properties[i].id == id)
            return &c->properties[i];
    return NULL;
}

static double get(struct camera *c, int32_t id)
{
    for (int i = 0; i < c->nproperties; i++)
        if (c->properties[i].id == id)
            return c->properties[i].value;
    return 0;
}

static void put(struct camera *c, int32_t id, double value)
{
    for (int i = 0; i < c->nproperties; i++)
        if (c->properties[i].id == id)
            c->properties[i].value = value;
}

static void range(struct camera *c, int32_t id, double low, double high, double step)
{
    for (int i = 0; i < c->nproperties; i++) {
        struct property *p = &c->properties[i];
        if (p->id != id)
            continue;
        p->low = low, p->high = high, p->step = step;
        p->value = fmin(high, fmax(low, p->value));
    }
}

static struct property *add(struct camera *c, int32_t id, const char *name, int32_t attribute, double value)
{
    struct property *p = &c->properties[c->nproperties++];
    *p = (struct property){.id = id, .name = name, .value = value, .low = value, .high = value, .initial = value};
    p->attribute = attribute | READABLE | EFFECTIVE | HASRANGE | HASDEFAULT;
    return p;
}

static void add_mode(struct camera *c, int32_t id, const char *name, int32_t attribute, double value,
                     const struct choice *choices)
{
    struct property *p = add(c, id, name, attribute | MODE | HASVALUETEXT | HASSTEP, value);
    p->step = 1;
    for (int i = 0; i < MAX_CHOICES && choices[i].text; i++) {
        p->choices[i] = choices[i];
        p->low = i ? fmin(p->low, choices[i].value) : choices[i].value;
        p->high = i ? fmax(p->high, choices[i].value) : choices[i].value;
    }
}

static void add_number(struct camera *c, int32_t id, const char *name, int32_t attribute, double value, double low,
                       double high, double step, int32_t unit)
{
    struct property *p = add(c, id, name, attribute | (step ? HASSTEP : 0), value);
    p->low = low, p->high = high, p->step = step, p->unit = unit;
}

#define CHOICES(...) ((struct choice[MAX_CHOICES + 1]){__VA_ARGS__})
#define IDLE_ONLY WRITABLE
#define ALWAYS (WRITABLE | ACCESSREADY | ACCESSBUSY)
#define WHEN_READY (WRITABLE | ACCESSREADY)

static void make_properties(struct camera *c)
{
    const struct model *m = c->model;
    c->nproperties = 0;
    add_mode(c, TRIGGERSOURCE, "TRIGGER SOURCE", IDLE_ONLY, 1,
             CHOICES({1, "INTERNAL"}, {2, "EXTERNAL"}, {3, "SOFTWARE"}));
    add_mode(c, TRIGGERACTIVE, "TRIGGER ACTIVE", IDLE_ONLY, 1, CHOICES({1, "EDGE"}, {2, "LEVEL"}, {3, "SYNCREADOUT"}));
    add_mode(c, TRIGGER_MODE, "TRIGGER MODE", IDLE_ONLY, 1,
             m->multiframe ? CHOICES({1, "NORMAL"}, {6, "START"}, {8, "MULTI FRAME"})
                           : CHOICES({1, "NORMAL"}, {6, "START"}));
    add_mode(c, TRIGGERPOLARITY, "TRIGGER POLARITY", WHEN_READY, 1, CHOICES({1, "NEGATIVE"}, {2, "POSITIVE"}));
    add_number(c, TRIGGERTIMES, "TRIGGER TIMES", IDLE_ONLY | LONG, 1, 1, 10000, 1, 0);
    add_number(c, TRIGGERDELAY, "TRIGGER DELAY", WHEN_READY | REAL, 0, 0, 10, 0, 1);
    if (m->multiframe)
        add_number(c, TRIGGERMULTIFRAME_COUNT, "TRIGGER MULTI FRAME COUNT", IDLE_ONLY | LONG, 1, 1, 65535, 1, 0);
    add_number(c, EXPOSURETIME, "EXPOSURE TIME", ALWAYS | REAL | AUTOROUNDING, 0.01, m->shortest, m->longest, 0, 1);
    add_mode(c, TRIGGER_GLOBALEXPOSURE, "TRIGGER GLOBAL EXPOSURE", IDLE_ONLY, 3,
             CHOICES({3, "DELAYED"}, {5, "GLOBAL RESET"}));
    if (m->cooler) {
        add_number(c, SENSORTEMPERATURE, "SENSOR TEMPERATURE", VOLATILE | REAL, 25, -100, 100, 0, 2);
        add_mode(c, SENSORCOOLER, "SENSOR COOLER", ALWAYS, 1, CHOICES({1, "OFF"}, {2, "ON"}, {4, "MAX"}));
        add_mode(c, SENSORCOOLERSTATUS, "SENSOR COOLER STATUS", VOLATILE, 1,
                 CHOICES({-1, "ERROR1"}, {0, "NONE"}, {1, "OFF"}, {2, "READY"}, {3, "BUSY"}));
    } else {
        add_mode(c, SENSORCOOLERSTATUS, "SENSOR COOLER STATUS", VOLATILE, 4, CHOICES({4, "ALWAYS"}));
    }
    if (m->target)
        add_number(c, SENSORTEMPERATURETARGET, "SENSOR TEMPERATURE TARGET", ALWAYS | REAL, -10, -40, 10, 1, 2);
    add_mode(c, DEFECTCORRECT_MODE, "DEFECT CORRECT MODE", WHEN_READY, 2, CHOICES({1, "OFF"}, {2, "ON"}));
    add_mode(c, HOTPIXELCORRECT_LEVEL, "HOT PIXEL CORRECT LEVEL", WHEN_READY, 1,
             CHOICES({1, "STANDARD"}, {2, "MINIMUM"}, {3, "AGGRESSIVE"}));
    add_number(c, READOUTSPEED, "READOUT SPEED", (m->speeds > 1 ? IDLE_ONLY : 0) | LONG, m->speeds, 1, m->speeds, 1, 0);
    add_mode(c, SENSORMODE, "SENSOR MODE", IDLE_ONLY, 1, CHOICES({1, "AREA"}, {12, "PROGRESSIVE"}));
    add_mode(c, BINNING, "BINNING", IDLE_ONLY, 1, CHOICES({1, "1X1"}, {2, "2X2"}, {4, "4X4"}));
    add_number(c, SUBARRAYHPOS, "SUBARRAY HPOS", IDLE_ONLY | LONG, 0, 0, m->width - 4, 4, 0);
    add_number(c, SUBARRAYHSIZE, "SUBARRAY HSIZE", IDLE_ONLY | LONG, m->width, 4, m->width, 4, 0);
    add_number(c, SUBARRAYVPOS, "SUBARRAY VPOS", IDLE_ONLY | LONG, 0, 0, m->height - 4, 4, 0);
    add_number(c, SUBARRAYVSIZE, "SUBARRAY VSIZE", IDLE_ONLY | LONG, m->height, 4, m->height, 4, 0);
    add_mode(c, SUBARRAYMODE, "SUBARRAY MODE", IDLE_ONLY, 1, CHOICES({1, "OFF"}, {2, "ON"}));
    add_number(c, TIMING_READOUTTIME, "TIMING READOUT TIME", REAL, 0, 0, 0, 0, 1);
    add_number(c, TIMING_MINTRIGGERINTERVAL, "TIMING MIN TRIGGER INTERVAL", REAL, 0, 0, 0, 0, 1);
    if (m->interval) {
        add_number(c, INTERNALFRAMERATE, "INTERNAL FRAME RATE", ALWAYS | REAL | AUTOROUNDING, 1, 0, 1e5, 0, 5);
        add_number(c, INTERNAL_FRAMEINTERVAL, "INTERNAL FRAME INTERVAL", ALWAYS | REAL | AUTOROUNDING, 0, 0, 10, 0, 1);
    } else {
        add_number(c, INTERNALFRAMERATE, "INTERNAL FRAME RATE", REAL, 1, 0, 1e5, 0, 5);
    }
    if (m->mono12p)
        add_mode(c, BITSPERCHANNEL, "BIT PER CHANNEL", IDLE_ONLY, 16, CHOICES({12, "12BIT"}, {16, "16BIT"}));
    else
        add_mode(c, BITSPERCHANNEL, "BIT PER CHANNEL", IDLE_ONLY, 16,
                 CHOICES({8, "8BIT"}, {12, "12BIT"}, {16, "16BIT"}));
    add_mode(c, IMAGE_PIXELTYPE, "IMAGE PIXEL TYPE", IDLE_ONLY, MONO16,
             m->mono12p ? CHOICES({MONO16, "MONO16"}, {MONO12P, "MONO12P"})
                        : CHOICES({MONO8, "MONO8"}, {MONO16, "MONO16"}));
    add_number(c, IMAGE_WIDTH, "IMAGE WIDTH", LONG, 0, 0, m->width, 1, 0);
    add_number(c, IMAGE_HEIGHT, "IMAGE HEIGHT", LONG, 0, 0, m->height, 1, 0);
    add_number(c, IMAGE_ROWBYTES, "IMAGE ROWBYTES", LONG, 0, 0, 1e6, 1, 0);
    add_number(c, IMAGE_FRAMEBYTES, "IMAGE FRAMEBYTES", LONG, 0, 0, 1e9, 1, 0);
    add_number(c, BUFFER_ROWBYTES, "BUFFER ROWBYTES", LONG, 0, 0, 1e6, 1, 0);
    add_number(c, BUFFER_FRAMEBYTES, "BUFFER FRAMEBYTES", LONG, 0, 0, 1e9, 1, 0);
    add_number(c, BUFFER_TOPOFFSETBYTES, "BUFFER TOP OFFSET BYTES", LONG, 0, 0, 0, 1, 0);
    add_mode(c, BUFFER_PIXELTYPE, "BUFFER PIXEL TYPE", 0, MONO16,
             CHOICES({MONO8, "MONO8"}, {MONO16, "MONO16"}, {MONO12P, "MONO12P"}));
    if (m->mono12p)
        add_mode(c, FRAMEBUNDLE_MODE, "FRAME BUNDLE MODE", IDLE_ONLY, 2, CHOICES({1, "OFF"}, {2, "ON"}));
    add_mode(c, TIMESTAMP_PRODUCER, "TIME STAMP PRODUCER", 0, 3, CHOICES({3, "KERNELDRIVER"}));
    add_mode(c, FRAMESTAMP_PRODUCER, "FRAME STAMP PRODUCER", 0, 3, CHOICES({3, "KERNELDRIVER"}));
    add_mode(c, CAMERASTATUS_INPUTTRIGGER, "CAMERA STATUS INPUT TRIGGER", VOLATILE, 2,
             CHOICES({1, "GOOD"}, {2, "NONE"}, {3, "TOO FREQUENT"}));
    add_mode(c, SYSTEM_ALIVE, "SYSTEM ALIVE", VOLATILE, 2, CHOICES({1, "OFFLINE"}, {2, "ONLINE"}));
    add_number(c, CONVERSIONFACTOR_COEFF, "CONVERSION FACTOR COEFF", REAL, 0.46, 0.46, 0.46, 0, 0);
    add_number(c, CONVERSIONFACTOR_OFFSET, "CONVERSION FACTOR OFFSET", REAL, 100, 100, 100, 0, 0);
}

static double row_time(struct camera *c) { return c->model->row_time[(int)get(c, READOUTSPEED) - 1]; }

static double rounded(double value, double step) { return step * floor(value / step + 0.5); }

/* Everything that follows from what was written; called after each write. */
static void recalculate(struct camera *c)
{
    const struct model *m = c->model;
    int part = get(c, SUBARRAYMODE) == 2, bin = (int)get(c, BINNING);
    int width = (int)(part ? get(c, SUBARRAYHSIZE) : m->width), height = (int)(part ? get(c, SUBARRAYVSIZE) : m->height);
    double line = row_time(c), readout = line * ((height + m->rows_at_once - 1) / m->rows_at_once);
    range(c, TIMING_READOUTTIME, readout, readout, 0);
    double shortest = fmax(rounded(m->shortest + line / 2, line), line);
    double longest = line * floor(m->longest / line);
    range(c, EXPOSURETIME, shortest, longest, line);
    put(c, EXPOSURETIME, fmax(shortest, rounded(get(c, EXPOSURETIME), line)));
    double exposure = get(c, EXPOSURETIME), fastest = fmax(exposure, readout);
    range(c, TIMING_MINTRIGGERINTERVAL, exposure + readout, exposure + readout, 0);
    range(c, INTERNAL_FRAMEINTERVAL, fastest, longest, 0);
    range(c, INTERNALFRAMERATE, 1 / longest, 1 / fastest, 0);
    if (!m->interval)
        range(c, INTERNALFRAMERATE, 1 / fastest, 1 / fastest, 0);
    put(c, INTERNALFRAMERATE, 1 / fmax(fastest, get(c, INTERNAL_FRAMEINTERVAL)));
    int type = (int)get(c, IMAGE_PIXELTYPE), pixels = width / bin;
    int row = type == MONO8 ? pixels : type == MONO12P ? (3 * pixels + 1) / 2 : 2 * pixels;
    int alignment = (int)knob("row_alignment");
    if (alignment)
        row = (row + alignment - 1) / alignment * alignment;
    int rows = height / bin;
    range(c, IMAGE_WIDTH, pixels, pixels, 1);
    range(c, IMAGE_HEIGHT, rows, rows, 1);
    range(c, IMAGE_ROWBYTES, row, row, 1);
    range(c, IMAGE_FRAMEBYTES, (double)row * rows, (double)row * rows, 1);
    range(c, BUFFER_ROWBYTES, row, row, 1);
    range(c, BUFFER_FRAMEBYTES, (double)row * rows, (double)row * rows, 1);
    put(c, BUFFER_PIXELTYPE, type);
}

/* The sensor gets colder, or warmer, as time goes by. */
static void feel_temperature(struct camera *c)
{
    if (!c->model->cooler)
        return;
    double now = now_s(), cooler = get(c, SENSORCOOLER), stuck = knob("cooling_stuck");
    double goal = cooler == 1 ? 25 : c->model->target ? get(c, SENSORTEMPERATURETARGET) : cooler == 2 ? -10 : -30;
    double limit = stuck ? fmax(goal, stuck) : goal, step = knob("cooling_speed") * (now - c->felt);
    c->temperature += fmax(-step, fmin(step, limit - c->temperature));
    c->felt = now;
    put(c, SENSORTEMPERATURE, c->temperature);
    put(c, SENSORCOOLERSTATUS, cooler == 1 ? 1 : fabs(c->temperature - goal) < 1 ? 2 : 3);
}

/* --- images: each row begins with the frame's number, 12 bits (mono8: 8) in each of four pixels ---------------------
   Other pixels are (4 * row + column) & 4095 (mono8: & 255); padding is 0xEE. */

static void put12(uint8_t *row, int pair, unsigned first, unsigned second)
{
    row[3 * pair] = first & 255;
    row[3 * pair + 1] = first >> 8 | (second & 15) << 4;
    row[3 * pair + 2] = second >> 4;
}

static void put_row(int type, uint8_t *to, int width, int r)
{
    unsigned begin = 4 * r;
    if (type == MONO8)
        for (int x = 0; x < width; x++)
            to[x] = begin + x;
    else if (type == MONO16)
        for (int x = 0; x < width; x++)
            ((uint16_t *)to)[x] = (begin + x) & 4095;
    else
        for (int x = 0; x < width; x += 2) {
            uint8_t three[3];
            put12(three, 0, (begin + x) & 4095, x + 1 < width ? (begin + x + 1) & 4095 : 0);
            memcpy(to + x / 2 * 3, three, x + 1 < width ? 3 : 2);
        }
}

struct layout {
    int type, width, rows, rowbytes, pixels_bytes;
};

static struct layout layout_of(struct camera *c)
{
    struct layout l = {(int)get(c, IMAGE_PIXELTYPE), (int)get(c, IMAGE_WIDTH), (int)get(c, IMAGE_HEIGHT),
                       (int)get(c, BUFFER_ROWBYTES), 0};
    l.pixels_bytes = l.type == MONO8 ? l.width : l.type == MONO16 ? 2 * l.width : (3 * l.width + 1) / 2;
    return l;
}

/* All of an image but its number. Nothing is done where it is there already: it takes longer than a frame lasts. */
static void paint(const struct layout *l, uint8_t *image)
{
    uint8_t row[l->rowbytes];
    int looked = 12 < l->pixels_bytes ? 12 : l->pixels_bytes; /* behind the number */
    int same = 1;
    for (int r = 0; r < l->rows && same; r += l->rows > 64 ? 61 : 1) {
        memset(row, 0xEE, l->rowbytes);
        put_row(l->type, row, l->width, r);
        same = !memcmp(image + (size_t)r * l->rowbytes + looked, row + looked, l->rowbytes - looked);
    }
    if (same)
        return;
    for (int r = 0; r < l->rows; r++) {
        uint8_t *to = image + (size_t)r * l->rowbytes;
        memset(to + l->pixels_bytes, 0xEE, l->rowbytes - l->pixels_bytes);
        put_row(l->type, to, l->width, r);
    }
}

/* Row by row, as a camera writes. */
static void sign(const struct layout *l, uint8_t *image, uint32_t number)
{
    uint8_t tag[8];
    size_t size = l->type == MONO8 ? 4 : l->type == MONO16 ? 8 : 6;
    uint64_t n = number;
    for (int i = 0; i < 4; i++)
        if (l->type == MONO8)
            tag[i] = n >> 8 * i;
        else if (l->type == MONO16)
            ((uint16_t *)tag)[i] = n >> 12 * i & 4095;
    if (l->type == MONO12P) {
        put12(tag, 0, n & 4095, n >> 12 & 4095);
        put12(tag, 1, n >> 24 & 4095, 0);
    }
    if (size > (size_t)l->pixels_bytes)
        size = l->pixels_bytes;
    for (int r = 0; r < l->rows; r++)
        memcpy(image + (size_t)r * l->rowbytes, tag, size);
}
