/* Frame generator: binds one or several PUSH sockets and sends whole series, as fast as the receivers take them or at a
 * given rate, as STINS or as Dectris stream V1.
 *
 * Lines on stdout: "endpoint ADDRESS[,ADDRESS...]", "pool K", then per series "first T" (CLOCK_MONOTONIC, first frame)
 * and "sent FRAMES SECONDS". Ends with status 3 when nobody takes a message for the time limit.
 *
 * Pixel j of picture b is (31 * j + b) mod 65536, uint16; with -z R only the first of R parts of each block are noise and
 * the rest is 0; with -P all pictures are the content of a file. Over that, every frame carries a tag of 16 bytes: u64
 * frame, u32 series, u32 picture, little endian; at the start, or where -T says. The pictures are sent without a copy: one
 * that ZeroMQ still holds is not changed, the sender waits until one is free.
 *
 * Several senders (-k, or several endpoints) share each series: frame f is sent by sender f mod k, start and end message
 * by the first; the message numbers run over all. */

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#define POOL_BYTES (64L << 20) /* of all senders together */
#define POOL_MIN 7
#define POOL_MAX 997
#define SENDERS_MAX 64
#define BLOCK 4096 /* pixels; bitshuffle's block of uint16 */
#define ROUGH 100e-6 /* s; a shorter time is not slept away */
#define PAUSE 1e-3 /* s between looks for a free picture; waking for each costs up to half of sending it */
#define ENOUGH 4 /* a sender that had none goes on when one in so many is free */

static const char *usage =
    "usage: generator [-e endpoint[,endpoint...]] [-k senders] [-p stins|dectris1] [-r rows] [-c columns] [-n frames]\n"
    "                 [-s series] [-i first id] [-f filename] [-R frames/s] [-z ratio] [-P payload file] [-C compression]\n"
    "                 [-y type of a payload's pixels] [-T offset of the tag] [-q queue, messages] [-o I/O threads] [-d delay after the start message, s]\n"
    "                 [-t time limit, s]\n"
    "\"%ld\" in the filename becomes the series id; \"\" means that nothing is written\n";

struct tag {
    uint64_t frame;
    uint32_t series, picture;
};

struct buffer {
    atomic_long *free; /* of the sender's pictures, those that ZeroMQ does not hold */
    atomic_bool held;
    uint32_t number;
    unsigned char *data;
};

struct sender {
    void *socket;
    char endpoint[256];
    struct buffer *pool;
    long count, next;
    atomic_long free;
    long first; /* of its frames in each series */
    pthread_t thread;
};

/* what all senders share; only `serial` changes, between series */
static struct {
    const char *protocol, *filename, *compression, *type;
    long rows, columns, frames, queue, limit_ms, senders, serial, id;
    size_t size, tag_at;
    double rate, ratio, delay, start;
} job = {"stins", "", "none", "uint16", 250, 400, 1000, 100, 30000, 1, 0, 1, 0, 0, 0, 0, 0.3, 0};

static void die(const char *what)
{
    fprintf(stderr, "generator: %s: %s\n", what, zmq_strerror(errno));
    exit(errno == EAGAIN ? 3 : 1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void pause_for(double seconds)
{
    struct timespec t = {(time_t)seconds, (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&t, NULL);
}

static void keep_pace(long frame)
{
    double early = job.rate > 0 ? job.start + (double)frame / job.rate - now() : 0;
    if (early > ROUGH)
        pause_for(early);
}

/* --- pictures ---------------------------------------------------------------------------------------------------- */

/* Called by ZeroMQ's I/O thread when it has sent the picture. */
static void let_go(void *data, void *hint)
{
    struct buffer *buffer = hint;
    (void)data;
    atomic_store_explicit(&buffer->held, 0, memory_order_release);
    atomic_fetch_add(buffer->free, 1);
}

static void wait_for_free(struct sender *s)
{
    double until = now() + 1e-3 * (double)job.limit_ms;
    while (atomic_load(&s->free) < 1 + s->count / ENOUGH) {
        if (now() > until) {
            errno = EAGAIN;
            die("nobody takes the stream");
        }
        pause_for(PAUSE);
    }
}

/* The next picture that ZeroMQ does not hold. They come back in order, but for those of different connections. */
static struct buffer *take(struct sender *s)
{
    if (!atomic_load(&s->free))
        wait_for_free(s);
    atomic_fetch_sub(&s->free, 1);
    for (;; s->next++) {
        struct buffer *buffer = &s->pool[s->next % s->count];
        if (!atomic_load_explicit(&buffer->held, memory_order_acquire)) {
            s->next++;
            buffer->held = 1;
            return buffer;
        }
    }
}

static void draw(unsigned char *data, uint32_t number)
{
    long pixels = job.rows * job.columns;
    uint64_t noise = 0x9e3779b97f4a7c15u + number;
    for (long j = 0; j < pixels; j++) {
        uint16_t pixel = (uint16_t)(31 * j + number);
        if (job.ratio > 0) {
            noise ^= noise << 13, noise ^= noise >> 7, noise ^= noise << 17;
            pixel = (double)(j % BLOCK) * job.ratio < BLOCK ? (uint16_t)noise : 0;
        }
        memcpy(data + 2 * j, &pixel, 2);
    }
}

static void make_pool(struct sender *s, uint32_t first, const unsigned char *payload)
{
    long n = POOL_BYTES / job.senders / (long)job.size;
    s->count = n = n < POOL_MIN ? POOL_MIN : n > POOL_MAX ? POOL_MAX : n;
    if (!(s->pool = calloc((size_t)n, sizeof *s->pool)))
        die("memory for the pictures");
    atomic_store(&s->free, n);
    for (long b = 0; b < n; b++) {
        struct buffer *buffer = &s->pool[b];
        buffer->free = &s->free;
        buffer->number = first + (uint32_t)b;
        if (!(buffer->data = malloc(job.size)))
            die("memory for the pictures");
        if (payload)
            memcpy(buffer->data, payload, job.size);
        else
            draw(buffer->data, buffer->number);
    }
}

/* The content of a file, its length in job.size. */
static unsigned char *load(const char *path)
{
    FILE *file = fopen(path, "rb");
    unsigned char *data = NULL;
    long size = file && !fseek(file, 0, SEEK_END) ? ftell(file) : -1;
    if (size > 0 && (data = malloc((size_t)size)))
        rewind(file);
    if (!data || fread(data, 1, (size_t)size, file) != (size_t)size)
        die(path);
    fclose(file);
    job.size = (size_t)size;
    return data;
}

/* --- messages ---------------------------------------------------------------------------------------------------- */

static void send_text(struct sender *s, const char *text, int flags)
{
    if (zmq_send(s->socket, text, strlen(text), flags) < 0)
        die("nobody takes the stream");
}

static void send_picture(struct sender *s, long frame, int flags)
{
    struct buffer *buffer = take(s);
    struct tag tag = {(uint64_t)frame, (uint32_t)job.id, buffer->number};
    memcpy(buffer->data + job.tag_at, &tag, sizeof tag);
    zmq_msg_t msg;
    if (zmq_msg_init_data(&msg, buffer->data, job.size, let_go, buffer) || zmq_msg_send(&msg, s->socket, flags) < 0)
        die("nobody takes the stream");
}

static void stins_start(struct sender *s, const char *path)
{
    char text[8192];
    snprintf(text, sizeof text,
             "{\"htype\": \"header\", \"filename\": \"%s\", \"msg_number\": %ld, \"series\": %ld, \"nframes\": %ld, "
             "\"shape\": [%ld, %ld], \"type\": \"%s\", \"compression\": \"%s\"}",
             path, job.serial++, job.id, job.frames, job.rows, job.columns, job.type, job.compression);
    send_text(s, text, ZMQ_SNDMORE);
    send_text(s, "{\"exptime\": 0.001, \"frame_time\": 0.001, \"label\": \"benchmark\"}", 0);
}

static void stins_image(struct sender *s, long frame)
{
    char text[512];
    snprintf(text, sizeof text,
             "{\"htype\": \"image\", \"frame\": %ld, \"shape\": [%ld, %ld], \"type\": \"%s\", "
             "\"compression\": \"%s\", \"msg_number\": %ld}",
             frame, job.rows, job.columns, job.type, job.compression, job.serial + frame);
    send_text(s, text, ZMQ_SNDMORE);
    send_picture(s, frame, 0);
}

static void stins_end(struct sender *s)
{
    char text[128];
    snprintf(text, sizeof text, "{\"htype\": \"series_end\", \"msg_number\": %ld}", job.serial++);
    send_text(s, text, 0);
}

/* Detail "basic" with an appendix; keys in order and no blanks, as the detector does. */
static void dectris1_start(struct sender *s, const char *path)
{
    char text[8192];
    snprintf(text, sizeof text, "{\"header_detail\":\"basic\",\"htype\":\"dheader-1.0\",\"series\":%ld}", job.id);
    send_text(s, text, ZMQ_SNDMORE);
    snprintf(text, sizeof text,
             "{\"bit_depth_image\":16,\"bit_depth_readout\":16,\"compression\":\"%s\",\"count_time\":0.0009999,"
             "\"description\":\"benchmark\",\"frame_time\":0.001,\"nimages\":%ld,\"ntrigger\":1,"
             "\"trigger_mode\":\"ints\",\"x_pixels_in_detector\":%ld,\"y_pixels_in_detector\":%ld}",
             strcmp(job.compression, "none") ? job.compression : "", job.frames, job.columns, job.rows);
    send_text(s, text, ZMQ_SNDMORE);
    snprintf(text, sizeof text, "{\"filename\":\"%s\"}", path);
    send_text(s, text, 0);
}

/* `hash` is documented as an MD5 that nobody checks; here it is only as long as one. */
static void dectris1_image(struct sender *s, long frame)
{
    char text[512];
    snprintf(text, sizeof text, "{\"frame\":%ld,\"hash\":\"%032lx\",\"htype\":\"dimage-1.0\",\"series\":%ld}", frame, frame,
             job.id);
    send_text(s, text, ZMQ_SNDMORE);
    snprintf(text, sizeof text,
             "{\"encoding\":\"%s\",\"htype\":\"dimage_d-1.0\",\"shape\":[%ld,%ld],\"size\":%zu,\"type\":\"uint16\"}",
             strcmp(job.compression, "none") ? "bs16-lz4<" : "<", job.columns, job.rows, job.size);
    send_text(s, text, ZMQ_SNDMORE);
    send_picture(s, frame, ZMQ_SNDMORE);
    snprintf(text, sizeof text,
             "{\"htype\":\"dconfig-1.0\",\"real_time\":999900,\"start_time\":%ld,\"stop_time\":%ld}", 1000000 * frame,
             1000000 * frame + 999900);
    send_text(s, text, 0);
}

static void dectris1_end(struct sender *s)
{
    char text[128];
    snprintf(text, sizeof text, "{\"htype\":\"dseries_end-1.0\",\"series\":%ld}", job.id);
    send_text(s, text, 0);
}

static const struct protocol {
    const char *name;
    void (*start)(struct sender *, const char *path);
    void (*image)(struct sender *, long frame);
    void (*end)(struct sender *);
} protocols[] = {{"stins", stins_start, stins_image, stins_end}, {"dectris1", dectris1_start, dectris1_image, dectris1_end}};

static const struct protocol *protocol;

/* --- series ------------------------------------------------------------------------------------------------------ */

static void *send_share(void *argument)
{
    struct sender *s = argument;
    for (long k = s->first; k < job.frames; k += job.senders) {
        keep_pace(k);
        protocol->image(s, k);
    }
    return NULL;
}

static void send_series(struct sender *senders)
{
    char path[4096];
    const char *mark = strstr(job.filename, "%ld");
    if (mark)
        snprintf(path, sizeof path, "%.*s%ld%s", (int)(mark - job.filename), job.filename, job.id, mark + 3);
    else
        snprintf(path, sizeof path, "%s", job.filename);
    protocol->start(&senders[0], path);
    pause_for(job.delay); /* a detector, too, waits for "series opened" before it exposes */

    job.start = now();
    printf("first %.6f\n", job.start);
    fflush(stdout);
    for (long k = 1; k < job.senders; k++)
        if (pthread_create(&senders[k].thread, NULL, send_share, &senders[k]))
            die("a thread");
    send_share(&senders[0]);
    for (long k = 1; k < job.senders; k++)
        pthread_join(senders[k].thread, NULL);
    job.serial += job.frames;
    protocol->end(&senders[0]);
    printf("sent %ld %.6f\n", job.frames, now() - job.start);
    fflush(stdout);
}

static void bind_socket(struct sender *s, void *context, const char *endpoint)
{
    int hwm = (int)job.queue, limit = (int)job.limit_ms;
    size_t length = sizeof s->endpoint;
    s->socket = zmq_socket(context, ZMQ_PUSH);
    if (!s->socket || zmq_setsockopt(s->socket, ZMQ_SNDHWM, &hwm, sizeof hwm) ||
        zmq_setsockopt(s->socket, ZMQ_SNDTIMEO, &limit, sizeof limit) ||
        zmq_setsockopt(s->socket, ZMQ_LINGER, &limit, sizeof limit) || zmq_bind(s->socket, endpoint) ||
        zmq_getsockopt(s->socket, ZMQ_LAST_ENDPOINT, s->endpoint, &length))
        die(endpoint);
}

int main(int argc, char **argv)
{
    char *endpoints = NULL;
    const char *payload = NULL;
    long series = 1, io_threads = 1;
    int option;
    while ((option = getopt(argc, argv, "e:k:p:r:c:n:s:i:f:R:z:P:C:y:T:q:o:d:t:")) != -1) {
        switch (option) {
        case 'e': endpoints = optarg; break;
        case 'k': job.senders = atol(optarg); break;
        case 'p': job.protocol = optarg; break;
        case 'r': job.rows = atol(optarg); break;
        case 'c': job.columns = atol(optarg); break;
        case 'n': job.frames = atol(optarg); break;
        case 's': series = atol(optarg); break;
        case 'i': job.id = atol(optarg); break;
        case 'f': job.filename = optarg; break;
        case 'R': job.rate = atof(optarg); break;
        case 'z': job.ratio = atof(optarg); break;
        case 'P': payload = optarg; break;
        case 'C': job.compression = optarg; break;
        case 'y': job.type = optarg; break;
        case 'T': job.tag_at = (size_t)atol(optarg); break;
        case 'q': job.queue = atol(optarg); break;
        case 'o': io_threads = atol(optarg); break;
        case 'd': job.delay = atof(optarg); break;
        case 't': job.limit_ms = (long)(1000 * atof(optarg)); break;
        default: fputs(usage, stderr); return 2;
        }
    }
    for (size_t k = 0; k < sizeof protocols / sizeof *protocols; k++)
        if (!strcmp(job.protocol, protocols[k].name))
            protocol = &protocols[k];
    if (endpoints) {
        job.senders = 1;
        for (const char *c = endpoints; *c; c++)
            job.senders += *c == ',';
    }
    job.size = (size_t)(2 * job.rows * job.columns);
    if (!protocol || job.rows < 1 || job.columns < 1 || job.frames < 0 || series < 1 || job.queue < 1 || io_threads < 1 ||
        job.senders < 1 || job.senders > SENDERS_MAX || job.rate < 0 || job.ratio < 0 || job.delay < 0 ||
        job.limit_ms < 1 || optind < argc) {
        fputs(usage, stderr);
        return 2;
    }
    unsigned char *content = payload ? load(payload) : NULL;
    if (job.tag_at + sizeof(struct tag) > job.size) {
        fprintf(stderr, "generator: a tag of %zu bytes at %zu in a payload of %zu\n", sizeof(struct tag), job.tag_at, job.size);
        return 2;
    }

    static struct sender senders[SENDERS_MAX];
    void *context = zmq_ctx_new();
    if (!context || zmq_ctx_set(context, ZMQ_IO_THREADS, (int)io_threads))
        die("ZeroMQ context");
    uint32_t pictures = 0;
    for (long k = 0; k < job.senders; k++) {
        char *endpoint = endpoints ? strtok(k ? NULL : endpoints, ",") : "tcp://127.0.0.1:*";
        bind_socket(&senders[k], context, endpoint ? endpoint : "");
        senders[k].first = k;
        make_pool(&senders[k], pictures, content);
        pictures += (uint32_t)senders[k].count;
        printf("%s%s", k ? "," : "endpoint ", senders[k].endpoint);
    }
    printf("\npool %u\n", pictures);
    fflush(stdout);
    for (long i = 0; i < series; i++, job.id++)
        send_series(senders);

    for (long k = 0; k < job.senders; k++)
        zmq_close(senders[k].socket);
    zmq_ctx_term(context); /* waits, up to the limit, until all has left */
    for (long k = 0; k < job.senders; k++) {
        for (long b = 0; b < senders[k].count; b++)
            free(senders[k].pool[b].data);
        free(senders[k].pool);
    }
    free(content);
    return 0;
}
