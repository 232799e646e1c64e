/* What several threads can write at once, without a network: records of one size, behind each other in the order in which
 * the threads take their places, into one file or a file for each thread; through the page cache or with O_DIRECT.
 *
 * The file is extended first (sparse), as the series file is. Prints "SECONDS SYNC_SECONDS CPU_SECONDS": until the last
 * write has returned, then fdatasync, and user + system time until then. The files are removed. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define THREADS_MAX 64
#define ALIGNED 4096

static const char *usage = "usage: storage -p path [-t threads] [-r record bytes] [-n records] [-f] [-d] [-a]\n"
                           "-f: a file for each thread; -d: O_DIRECT; -a: space allocated beforehand, not sparse\n";

static struct {
    const char *path;
    long threads, records;
    size_t record;
    int own_files, direct, allocate;
    atomic_long next;
    int fds[THREADS_MAX];
} job = {.threads = 1, .record = 200704, .records = 1000};

static void die(const char *what)
{
    fprintf(stderr, "storage: %s: %s\n", what, strerror(errno));
    exit(1);
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

static void *work(void *argument)
{
    long index = (long)argument, own = 0, k;
    char *data;
    if (posix_memalign((void **)&data, ALIGNED, job.record))
        die("memory");
    memset(data, (int)index + 1, job.record);
    while ((k = atomic_fetch_add(&job.next, 1)) < job.records) {
        off_t at = (off_t)job.record * (job.own_files ? own++ : k);
        if (pwrite(job.fds[job.own_files ? index : 0], data, job.record, at) != (ssize_t)job.record)
            die("pwrite");
    }
    free(data);
    return NULL;
}

int main(int argc, char **argv)
{
    char path[4096];
    int option;
    while ((option = getopt(argc, argv, "p:t:r:n:fda")) != -1) {
        switch (option) {
        case 'p': job.path = optarg; break;
        case 't': job.threads = atol(optarg); break;
        case 'r': job.record = (size_t)atol(optarg); break;
        case 'n': job.records = atol(optarg); break;
        case 'f': job.own_files = 1; break;
        case 'd': job.direct = O_DIRECT; break;
        case 'a': job.allocate = 1; break;
        default: fputs(usage, stderr); return 2;
        }
    }
    if (!job.path || job.threads < 1 || job.threads > THREADS_MAX || job.record < 1 || job.records < 1 ||
        (job.direct && job.record % ALIGNED)) {
        fputs(usage, stderr);
        return 2;
    }
    long files = job.own_files ? job.threads : 1;
    off_t size = (off_t)job.record * job.records;
    for (long k = 0; k < files; k++) {
        snprintf(path, sizeof path, "%s.%ld", job.path, k);
        if ((job.fds[k] = open(path, O_WRONLY | O_CREAT | O_EXCL | job.direct, 0644)) < 0)
            die(path);
        unlink(path);
        if (job.allocate ? posix_fallocate(job.fds[k], 0, size / files) : ftruncate(job.fds[k], size))
            die("extend the file");
    }
    pthread_t threads[THREADS_MAX];
    double start = now(), used = cpu();
    for (long k = 0; k < job.threads; k++)
        if (pthread_create(&threads[k], NULL, work, (void *)k))
            die("thread");
    for (long k = 0; k < job.threads; k++)
        pthread_join(threads[k], NULL);
    double written = now();
    used = cpu() - used;
    for (long k = 0; k < files; k++)
        if (fdatasync(job.fds[k]))
            die("fdatasync");
    printf("%.6f %.6f %.6f\n", written - start, now() - written, used);
    return 0;
}
