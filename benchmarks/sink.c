/* Reference receiver: PULL, then nothing (null), a flat file (pwrite) or an HDF5 file (chunk, H5Dwrite_chunk).
 *
 * Takes one series, STINS or Dectris stream V1, its file name from the start message; with -w in several threads, each with
 * a PULL socket to all endpoints. pwrite: all into one file, or (-f) a file for each thread, PATH, PATH.1, PATH.2 ...
 * chunk: one file, one thread at a time in the HDF5 library. Lines on stdout: "opened" and, when all announced frames are
 * written and the files closed, "closed FRAMES SECONDS CPU_SECONDS" (first frame to last write; user + system of the
 * process). Ends with status 3 when no message comes for the time limit. */

#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

#define WORKERS_MAX 64
#define PARTS 9 /* of one message; a start message of Dectris has so many */
#define TURN 100 /* ms between looks at the end */
#define HELD 64 /* frames of a worker that came before the start of their series */

enum mode { NULL_SINK, PWRITE, CHUNK, NO_MODE };
enum kind { START, IMAGE, END };

static const char *const modes[] = {"null", "pwrite", "chunk"};
static const char *usage =
    "usage: sink -m null|pwrite|chunk -e endpoint[,endpoint...] [-w workers] [-o I/O threads] [-s] [-f] [-q queue]\n"
    "            [-t time limit, s]\n"
    "-s: one ZeroMQ context for all workers; -f: a file for each worker\n";

struct worker {
    pthread_t thread;
    void *context, *socket;
    int fd;
    off_t end;
};

static struct {
    enum mode mode;
    char *endpoints;
    long workers, io_threads, limit_ms;
    int shared, own_files, hwm;
    char path[4096];
    hid_t hdf, dataset;
    _Atomic off_t end; /* of the one file */
    atomic_long written;
    long expected; /* -1: not known yet */
    int opened, ended;
    atomic_int done;
    double start, last, cpu0;
    pthread_mutex_t lock, hdf_lock;
    pthread_cond_t changed;
} job = {.expected = -1,
         .workers = 1,
         .io_threads = 2,
         .limit_ms = 30000,
         .hwm = 100,
         .lock = PTHREAD_MUTEX_INITIALIZER,
         .hdf_lock = PTHREAD_MUTEX_INITIALIZER,
         .changed = PTHREAD_COND_INITIALIZER};

static struct worker workers[WORKERS_MAX];

static void die(const char *what, const char *why)
{
    fprintf(stderr, "sink: %s: %s\n", what, why);
    exit(errno == EAGAIN ? 3 : 1);
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double cpu(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + 1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* --- messages ---------------------------------------------------------------------------------------------------- */

struct message {
    zmq_msg_t parts[PARTS];
    int count;
    char json[8192]; /* part 0 */
};

/* False: nothing came within a turn. */
static int receive(void *socket, struct message *m)
{
    m->count = 0;
    do {
        if (m->count == PARTS)
            die("message", "too many parts");
        if (zmq_msg_recv(&m->parts[m->count], socket, 0) < 0) {
            if (m->count == 0 && errno == EAGAIN)
                return 0;
            die("receive", zmq_strerror(errno));
        }
    } while (zmq_msg_more(&m->parts[m->count++]));
    size_t n = zmq_msg_size(&m->parts[0]) < sizeof m->json ? zmq_msg_size(&m->parts[0]) : sizeof m->json - 1;
    memcpy(m->json, zmq_msg_data(&m->parts[0]), n);
    m->json[n] = 0;
    return 1;
}

/* What follows "key": in a flat JSON object, or NULL. Enough for the headers of our own generator. */
static const char *value(const char *json, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    const char *at = strstr(json, quoted);
    if (!at)
        return NULL;
    at += strlen(quoted);
    return at + strspn(at, " ");
}

static long number(const char *json, const char *key)
{
    const char *at = value(json, key);
    if (!at)
        die(key, "not in the header");
    return strtol(at, NULL, 10);
}

static enum kind kind_of(const char *json)
{
    static const struct {
        const char *htype;
        enum kind kind;
    } known[] = {{"\"image\"", IMAGE},       {"\"dimage-1.0\"", IMAGE},    {"\"header\"", START},
                 {"\"dheader-1.0\"", START}, {"\"series_end\"", END},      {"\"dseries_end-1.0\"", END}};
    const char *htype = value(json, "htype");
    for (size_t k = 0; htype && k < sizeof known / sizeof *known; k++)
        if (!strncmp(htype, known[k].htype, strlen(known[k].htype)))
            return known[k].kind;
    die("message", "neither start, image nor end of STINS or Dectris stream V1");
    return END;
}

/* Part k as text; the caller frees it. */
static char *text(struct message *m, int k)
{
    if (k >= m->count)
        die("start message", "too few parts");
    return strndup(zmq_msg_data(&m->parts[k]), zmq_msg_size(&m->parts[k]));
}

/* --- files ------------------------------------------------------------------------------------------------------- */

static hid_t good(hid_t id, const char *what)
{
    if (id < 0)
        die(what, "HDF5 refused");
    return id;
}

static void open_chunked(const char *path, hsize_t frames, hsize_t rows, hsize_t columns)
{
    hsize_t dims[3] = {frames, rows, columns}, chunk[3] = {1, rows, columns};
    hid_t space = good(H5Screate_simple(3, dims, NULL), "dataspace");
    hid_t plist = good(H5Pcreate(H5P_DATASET_CREATE), "property list");
    good(H5Pset_chunk(plist, 3, chunk), "chunk");
    job.hdf = good(H5Fcreate(path, H5F_ACC_EXCL, H5P_DEFAULT, H5P_DEFAULT), path);
    job.dataset = good(H5Dcreate2(job.hdf, "data", H5T_STD_U16LE, space, H5P_DEFAULT, plist, H5P_DEFAULT), "dataset");
    H5Sclose(space);
    H5Pclose(plist);
}

static void open_flat(void)
{
    char path[4200];
    for (long k = 0; k < (job.own_files ? job.workers : 1); k++) {
        snprintf(path, sizeof path, k ? "%s.%ld" : "%s", job.path, k);
        if ((workers[k].fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644)) < 0)
            die(path, strerror(errno));
    }
}

static void open_files(struct message *m)
{
    unsigned long long rows, columns;
    char *configuration = strstr(m->json, "dheader") ? text(m, 1) : strdup(m->json);
    char *naming = strstr(m->json, "dheader") ? text(m, m->count - 1) : strdup(m->json); /* the appendix is the last */
    const char *name = value(naming, "filename"), *shape = value(configuration, "shape");
    if (shape) {
        if (sscanf(shape, "[%llu, %llu]", &rows, &columns) != 2)
            die("shape", "not [rows, columns]");
        job.expected = number(configuration, "nframes");
    } else {
        rows = (unsigned long long)number(configuration, "y_pixels_in_detector");
        columns = (unsigned long long)number(configuration, "x_pixels_in_detector");
        job.expected = number(configuration, "nimages") * number(configuration, "ntrigger");
    }
    if (!name || sscanf(name, "\"%4095[^\"]\"", job.path) != 1)
        job.path[0] = 0;
    if (job.mode == PWRITE)
        open_flat();
    if (job.mode == CHUNK)
        open_chunked(job.path, (hsize_t)job.expected, rows, columns);
    free(configuration);
    free(naming);
}

static void write_flat(struct worker *w, const char *data, size_t size)
{
    struct worker *owner = job.own_files ? w : &workers[0];
    off_t at = job.own_files ? w->end : atomic_fetch_add(&job.end, (off_t)size);
    w->end += (off_t)size;
    while (size) {
        ssize_t n = pwrite(owner->fd, data, size, at);
        if (n < 0)
            die("pwrite", strerror(errno));
        data += n, size -= (size_t)n, at += n;
    }
}

static void write_frame(struct worker *w, long frame, const char *data, size_t size)
{
    if (job.mode == PWRITE)
        write_flat(w, data, size);
    if (job.mode == CHUNK) {
        hsize_t offset[3] = {(hsize_t)frame, 0, 0};
        pthread_mutex_lock(&job.hdf_lock);
        good(H5Dwrite_chunk(job.dataset, H5P_DEFAULT, 0, offset, size, data), "H5Dwrite_chunk");
        pthread_mutex_unlock(&job.hdf_lock);
    }
}

static void close_files(void)
{
    for (long k = 0; job.mode == PWRITE && k < (job.own_files ? job.workers : 1); k++)
        if (close(workers[k].fd))
            die("close", strerror(errno));
    if (job.mode == CHUNK && (H5Dclose(job.dataset) < 0 || H5Fclose(job.hdf) < 0))
        die("close", "HDF5 refused");
}

/* --- the series -------------------------------------------------------------------------------------------------- */

static void start_series(struct message *m)
{
    pthread_mutex_lock(&job.lock);
    open_files(m);
    job.cpu0 = cpu();
    job.opened = 1;
    puts("opened");
    fflush(stdout);
    pthread_cond_broadcast(&job.changed);
    pthread_mutex_unlock(&job.lock);
}

/* The start message may come to another worker. */
static void wait_for_start(void)
{
    pthread_mutex_lock(&job.lock);
    while (!job.opened)
        pthread_cond_wait(&job.changed, &job.lock);
    if (!job.start)
        job.start = now();
    pthread_mutex_unlock(&job.lock);
}

static void end_when_complete(int ended)
{
    pthread_mutex_lock(&job.lock);
    job.ended |= ended;
    if (job.ended && atomic_load(&job.written) == job.expected) {
        job.done = 1;
        pthread_cond_broadcast(&job.changed);
    }
    pthread_mutex_unlock(&job.lock);
}

static void take_frame(struct worker *w, struct message *m)
{
    int data = m->count > 2 ? 2 : 1; /* Dectris: the third of four parts */
    if (m->count <= data)
        die("image", "no pixels");
    write_frame(w, number(m->json, "frame"), zmq_msg_data(&m->parts[data]), zmq_msg_size(&m->parts[data]));
    if (atomic_fetch_add(&job.written, 1) + 1 == job.expected)
        job.last = now(), end_when_complete(0);
}

static void *work(void *argument)
{
    struct worker *w = argument;
    struct message slots[HELD + 1];
    int started = 0, held = 0;
    for (int k = 0; k < (HELD + 1) * PARTS; k++)
        zmq_msg_init(&slots[k / PARTS].parts[k % PARTS]);
    while (!job.done) {
        struct message *m = &slots[held];
        int came = receive(w->socket, m);
        enum kind kind = came ? kind_of(m->json) : END;
        if (came && kind == START)
            start_series(m);
        else if (came && kind == END)
            end_when_complete(1);
        if (!started && (job.opened || held == HELD)) {
            wait_for_start();
            for (int k = 0; k < held; k++)
                take_frame(w, &slots[k]);
            held = 0, started = 1;
        }
        if (came && kind != START && kind != END) {
            if (started)
                take_frame(w, m);
            else /* the start may be the next message of the other sender to this very worker */
                held++;
        }
    }
    for (int k = 0; k < (HELD + 1) * PARTS; k++)
        zmq_msg_close(&slots[k / PARTS].parts[k % PARTS]);
    return NULL;
}

static void connect_all(struct worker *w)
{
    int turn = TURN, linger = 0;
    char *list = strdup(job.endpoints), *rest = list, *endpoint;
    if (!(w->socket = zmq_socket(w->context, ZMQ_PULL)) ||
        zmq_setsockopt(w->socket, ZMQ_RCVHWM, &job.hwm, sizeof job.hwm) ||
        zmq_setsockopt(w->socket, ZMQ_LINGER, &linger, sizeof linger) ||
        zmq_setsockopt(w->socket, ZMQ_RCVTIMEO, &turn, sizeof turn))
        die("socket", zmq_strerror(errno));
    while ((endpoint = strsep(&rest, ",")))
        if (zmq_connect(w->socket, endpoint))
            die(endpoint, zmq_strerror(errno));
    free(list);
}

static void wait_until_done(void)
{
    long before = -1;
    pthread_mutex_lock(&job.lock);
    while (!job.done) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += 1 + job.limit_ms / 1000;
        int late = pthread_cond_timedwait(&job.changed, &job.lock, &until) == ETIMEDOUT;
        if (late && atomic_load(&job.written) == before && !job.done) {
            errno = EAGAIN;
            die("receive", "no message within the time limit");
        }
        before = atomic_load(&job.written);
    }
    pthread_mutex_unlock(&job.lock);
}

int main(int argc, char **argv)
{
    int option;
    while ((option = getopt(argc, argv, "m:e:w:o:sfq:t:")) != -1) {
        switch (option) {
        case 'm':
            while (job.mode != NO_MODE && strcmp(optarg, modes[job.mode]))
                job.mode++;
            break;
        case 'e': job.endpoints = optarg; break;
        case 'w': job.workers = atol(optarg); break;
        case 'o': job.io_threads = atol(optarg); break;
        case 's': job.shared = 1; break;
        case 'f': job.own_files = 1; break;
        case 'q': job.hwm = atoi(optarg); break;
        case 't': job.limit_ms = (long)(1000 * atof(optarg)); break;
        default: fputs(usage, stderr); return 2;
        }
    }
    if (!job.endpoints || job.mode == NO_MODE || job.workers < 1 || job.workers > WORKERS_MAX || job.io_threads < 1 ||
        job.hwm < 1 || job.limit_ms < 1 || optind < argc) {
        fputs(usage, stderr);
        return 2;
    }
    for (long k = 0; k < job.workers; k++) {
        struct worker *w = &workers[k];
        w->context = k && job.shared ? workers[0].context : zmq_ctx_new();
        if (!w->context || zmq_ctx_set(w->context, ZMQ_IO_THREADS, (int)job.io_threads))
            die("ZeroMQ context", zmq_strerror(errno));
        connect_all(w);
    }
    for (long k = 0; k < job.workers; k++)
        if (pthread_create(&workers[k].thread, NULL, work, &workers[k]))
            die("thread", strerror(errno));
    wait_until_done();
    close_files();
    printf("closed %ld %.6f %.6f\n", atomic_load(&job.written), job.last - job.start, cpu() - job.cpu0);
    fflush(stdout);
    for (long k = 0; k < job.workers; k++) {
        pthread_join(workers[k].thread, NULL);
        zmq_close(workers[k].socket);
    }
    for (long k = 0; k < (job.shared ? 1 : job.workers); k++)
        zmq_ctx_term(workers[k].context);
    return 0;
}
