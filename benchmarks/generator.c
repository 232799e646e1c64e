/* STINS frame generator: binds a PUSH socket and sends whole series as fast as the receiver takes them.
 *
 * Lines on stdout: "endpoint ADDRESS", "pool K", then per series "first T" (CLOCK_MONOTONIC, first frame) and
 * "sent FRAMES SECONDS". Frame k carries picture k % K; pixel j of picture b is (31 * j + b) mod 65536, uint16.
 * The pictures are sent without a copy. Ends with status 3 when nobody takes a message for the time limit. */

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#define POOL_BYTES (64L << 20)
#define POOL_MIN 7
#define POOL_MAX 997

static const char *usage =
    "usage: generator [-e endpoint] [-r rows] [-c columns] [-n frames] [-s series] [-i first id] [-f filename]\n"
    "                 [-q queue, messages] [-d delay after the start message, s] [-t time limit, s]\n"
    "\"%ld\" in the filename becomes the series id; \"\" means that nothing is written\n";

static void *socket_;
static long msg_number, limit_ms = 30000;

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

static void keep(void *data, void *hint)
{
    (void)data; /* the pictures live until the program ends */
    (void)hint;
}

static void send_text(const char *text, int flags)
{
    if (zmq_send(socket_, text, strlen(text), flags) < 0)
        die("nobody takes the stream");
}

static void send_picture(uint16_t *picture, size_t size)
{
    zmq_msg_t msg;
    if (zmq_msg_init_data(&msg, picture, size, keep, NULL) || zmq_msg_send(&msg, socket_, 0) < 0)
        die("nobody takes the stream");
}

static uint16_t **render(long pixels, long *count)
{
    long n = POOL_BYTES / (2 * pixels);
    *count = n = n < POOL_MIN ? POOL_MIN : n > POOL_MAX ? POOL_MAX : n;
    uint16_t **pool = calloc((size_t)n, sizeof *pool);
    if (!pool)
        die("memory for the pictures");
    for (long b = 0; b < n; b++) {
        if (!(pool[b] = malloc((size_t)pixels * 2)))
            die("memory for the pictures");
        for (long j = 0; j < pixels; j++)
            pool[b][j] = (uint16_t)(31 * j + b);
    }
    return pool;
}

static void send_series(long id, const char *filename, long frames, long rows, long columns, uint16_t **pool, long count,
                        double delay)
{
    char text[8192], path[4096];
    const char *mark = strstr(filename, "%ld");
    if (mark)
        snprintf(path, sizeof path, "%.*s%ld%s", (int)(mark - filename), filename, id, mark + 3);
    else
        snprintf(path, sizeof path, "%s", filename);
    snprintf(text, sizeof text,
             "{\"htype\": \"header\", \"filename\": \"%s\", \"msg_number\": %ld, \"series\": %ld, \"nframes\": %ld, "
             "\"shape\": [%ld, %ld], \"type\": \"uint16\", \"compression\": \"none\"}",
             path, msg_number++, id, frames, rows, columns);
    send_text(text, ZMQ_SNDMORE);
    send_text("{\"exptime\": 0.001, \"frame_time\": 0.001, \"label\": \"benchmark\"}", 0);
    pause_for(delay); /* a detector, too, waits for "series opened" before it exposes */

    double start = now();
    printf("first %.6f\n", start);
    fflush(stdout);
    for (long k = 0; k < frames; k++) {
        snprintf(text, sizeof text,
                 "{\"htype\": \"image\", \"frame\": %ld, \"shape\": [%ld, %ld], \"type\": \"uint16\", "
                 "\"compression\": \"none\", \"msg_number\": %ld}",
                 k, rows, columns, msg_number++);
        send_text(text, ZMQ_SNDMORE);
        send_picture(pool[k % count], (size_t)(rows * columns) * 2);
    }
    snprintf(text, sizeof text, "{\"htype\": \"series_end\", \"msg_number\": %ld}", msg_number++);
    send_text(text, 0);
    printf("sent %ld %.6f\n", frames, now() - start);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    const char *endpoint = "tcp://127.0.0.1:*", *filename = "";
    long rows = 250, columns = 400, frames = 1000, series = 1, first = 1, queue = 100;
    double delay = 0.3;
    int option;
    while ((option = getopt(argc, argv, "e:r:c:n:s:i:f:q:d:t:")) != -1) {
        switch (option) {
        case 'e': endpoint = optarg; break;
        case 'r': rows = atol(optarg); break;
        case 'c': columns = atol(optarg); break;
        case 'n': frames = atol(optarg); break;
        case 's': series = atol(optarg); break;
        case 'i': first = atol(optarg); break;
        case 'f': filename = optarg; break;
        case 'q': queue = atol(optarg); break;
        case 'd': delay = atof(optarg); break;
        case 't': limit_ms = (long)(1000 * atof(optarg)); break;
        default: fputs(usage, stderr); return 2;
        }
    }
    if (rows < 1 || columns < 1 || frames < 0 || series < 1 || queue < 1 || delay < 0 || limit_ms < 1 || optind < argc) {
        fputs(usage, stderr);
        return 2;
    }

    int hwm = (int)queue, limit = (int)limit_ms;
    char bound[256];
    size_t length = sizeof bound;
    void *context = zmq_ctx_new();
    socket_ = zmq_socket(context, ZMQ_PUSH);
    if (!socket_ || zmq_setsockopt(socket_, ZMQ_SNDHWM, &hwm, sizeof hwm) ||
        zmq_setsockopt(socket_, ZMQ_SNDTIMEO, &limit, sizeof limit) ||
        zmq_setsockopt(socket_, ZMQ_LINGER, &limit, sizeof limit) || zmq_bind(socket_, endpoint) ||
        zmq_getsockopt(socket_, ZMQ_LAST_ENDPOINT, bound, &length))
        die(endpoint);

    long count;
    uint16_t **pool = render(rows * columns, &count);
    printf("endpoint %s\npool %ld\n", bound, count);
    fflush(stdout);
    for (long i = 0; i < series; i++)
        send_series(first + i, filename, frames, rows, columns, pool, count, delay);

    zmq_close(socket_);
    zmq_ctx_term(context); /* waits, up to the limit, until all has left */
    for (long b = 0; b < count; b++)
        free(pool[b]);
    free(pool);
    return 0;
}
