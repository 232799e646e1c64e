/* Reference receiver: PULL, then nothing (null), a flat file (pwrite) or an HDF5 file (chunk, H5Dwrite_chunk).
 *
 * Takes one series, its file name from the start message. Lines on stdout: "opened" and, when the last frame is written
 * and the file closed, "closed FRAMES SECONDS CPU_SECONDS" (first frame to last write; user + system of the process).
 * Ends with status 3 when no message comes for the time limit. */

#include <errno.h>
#include <fcntl.h>
#include <hdf5.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>
#include <zmq.h>

enum mode { NULL_SINK, PWRITE, CHUNK, NO_MODE };

static const char *const modes[] = {"null", "pwrite", "chunk"};

struct file {
    enum mode mode;
    int fd;
    off_t end;
    hid_t hdf, dataset;
};

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

/* What follows "key": in a flat JSON object, or NULL. Enough for the headers of our own generator. */
static const char *value(const char *json, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char *at = strstr(json, quoted);
    return at ? at + strlen(quoted) : NULL;
}

static long number(const char *json, const char *key)
{
    const char *at = value(json, key);
    if (!at)
        die(key, "not in the header");
    return strtol(at, NULL, 10);
}

static hid_t good(hid_t id, const char *what)
{
    if (id < 0)
        die(what, "HDF5 refused");
    return id;
}

static void open_chunked(struct file *f, const char *path, const char *header)
{
    hsize_t dims[3] = {(hsize_t)number(header, "nframes"), 0, 0}, chunk[3];
    const char *shape = value(header, "shape");
    if (!shape || sscanf(shape, "[%llu, %llu]", (unsigned long long *)&dims[1], (unsigned long long *)&dims[2]) != 2)
        die("shape", "not in the start message");
    chunk[0] = 1, chunk[1] = dims[1], chunk[2] = dims[2];
    hid_t space = good(H5Screate_simple(3, dims, NULL), "dataspace");
    hid_t plist = good(H5Pcreate(H5P_DATASET_CREATE), "property list");
    good(H5Pset_chunk(plist, 3, chunk), "chunk");
    f->hdf = good(H5Fcreate(path, H5F_ACC_EXCL, H5P_DEFAULT, H5P_DEFAULT), path);
    f->dataset = good(H5Dcreate2(f->hdf, "data", H5T_STD_U16LE, space, H5P_DEFAULT, plist, H5P_DEFAULT), "dataset");
    H5Sclose(space);
    H5Pclose(plist);
}

static void open_file(struct file *f, const char *header)
{
    char path[4096];
    const char *name = value(header, "filename");
    if (!name || sscanf(name, "\"%4095[^\"]\"", path) != 1)
        path[0] = 0;
    if (f->mode == PWRITE && (f->fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0644)) < 0)
        die(path, strerror(errno));
    if (f->mode == CHUNK)
        open_chunked(f, path, header);
}

static void write_frame(struct file *f, long frame, const char *data, size_t size)
{
    if (f->mode == CHUNK) {
        hsize_t offset[3] = {(hsize_t)frame, 0, 0};
        good(H5Dwrite_chunk(f->dataset, H5P_DEFAULT, 0, offset, size, data), "H5Dwrite_chunk");
    }
    while (f->mode == PWRITE && size) {
        ssize_t n = pwrite(f->fd, data, size, f->end);
        if (n < 0)
            die("pwrite", strerror(errno));
        data += n, size -= (size_t)n, f->end += n;
    }
}

static void close_file(struct file *f)
{
    if (f->mode == PWRITE && close(f->fd))
        die("close", strerror(errno));
    if (f->mode == CHUNK && (H5Dclose(f->dataset) < 0 || H5Fclose(f->hdf) < 0))
        die("close", "HDF5 refused");
}

static void receive(void *socket, zmq_msg_t *msg)
{
    if (zmq_msg_recv(msg, socket, 0) < 0)
        die("receive", zmq_strerror(errno));
}

int main(int argc, char **argv)
{
    struct file f = {NULL_SINK, -1, 0, -1, -1};
    while (argc == 5 && f.mode != NO_MODE && strcmp(argv[1], modes[f.mode]))
        f.mode++;
    if (argc != 5 || f.mode == NO_MODE) {
        fputs("usage: sink null|pwrite|chunk ENDPOINT QUEUE LIMIT_S\n", stderr);
        return 2;
    }
    int hwm = atoi(argv[3]), limit = (int)(1000 * atof(argv[4]));
    void *context = zmq_ctx_new(), *socket = NULL;
    if (!context || zmq_ctx_set(context, ZMQ_IO_THREADS, 2) || !(socket = zmq_socket(context, ZMQ_PULL)) ||
        zmq_setsockopt(socket, ZMQ_RCVHWM, &hwm, sizeof hwm) ||
        zmq_setsockopt(socket, ZMQ_RCVTIMEO, &limit, sizeof limit) || zmq_connect(socket, argv[2]))
        die(argv[2], zmq_strerror(errno));

    long frames = 0;
    double start = 0, last = 0, cpu0 = 0;
    zmq_msg_t head, body;
    zmq_msg_init(&head);
    zmq_msg_init(&body);
    for (;;) {
        char json[8192];
        receive(socket, &head);
        int more = zmq_msg_more(&head);
        if (more)
            receive(socket, &body);
        if (zmq_msg_more(&body) && more)
            die("message", "more than two parts");
        size_t n = zmq_msg_size(&head) < sizeof json ? zmq_msg_size(&head) : sizeof json - 1;
        memcpy(json, zmq_msg_data(&head), n);
        json[n] = 0;
        const char *kind = value(json, "htype");
        if (kind && !strncmp(kind, "\"image\"", 7)) {
            if (!frames++)
                start = now();
            write_frame(&f, number(json, "frame"), zmq_msg_data(&body), zmq_msg_size(&body));
            last = now();
        } else if (kind && !strncmp(kind, "\"header\"", 8)) {
            open_file(&f, json);
            cpu0 = cpu();
            puts("opened");
            fflush(stdout);
        } else if (kind && !strncmp(kind, "\"series_end\"", 12)) {
            break;
        } else {
            die("message", "neither header, image nor series_end");
        }
    }
    close_file(&f);
    printf("closed %ld %.6f %.6f\n", frames, last - start, cpu() - cpu0);
    zmq_msg_close(&head);
    zmq_msg_close(&body);
    zmq_close(socket);
    zmq_ctx_term(context);
    return 0;
}
