/* Random and damaged input for the pixel kernels, each buffer exactly as large as promised: the sanitizers watch. */

#include "_pixels_kernels.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t state = 88172645463325252u;

static uint32_t number(uint32_t below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32) % below;
}

/* As long as its input allows: the first byte of each block tells nothing, only the room counts. */
static int copy(const char *source, char *target, int size, int room, int acceleration)
{
    (void)acceleration;
    if (room < size)
        return 0;
    memcpy(target, source, (size_t)size);
    return size;
}

static void fill(uint8_t *to, size_t size, int kind)
{
    for (size_t i = 0; i < size; i++)
        to[i] = kind == 0 ? (uint8_t)number(256) : kind == 1 ? (uint8_t)(number(9) - 4) : number(4) ? 0x80 : 0;
}

static void cbf(void)
{
    size_t size = number(9000), pixels = 1 + number(5000), written = 0;
    uint8_t *code = malloc(size);
    int32_t *out = malloc(4 * pixels), *again = malloc(4 * pixels);
    uint8_t *chunk = malloc(pixels_bslz4_bound(pixels, 4));
    fill(code, size, (int)number(3));
    ptrdiff_t found = pixels_cbf_decode(code, size, out, pixels);
    if (found != pixels_cbf_to_bslz4(code, size, pixels, chunk, &written, copy) || !written)
        abort();
    pixels_choose(0);
    if (found != pixels_cbf_decode(code, size, again, pixels))
        abort();
    if (memcmp(out, again, 4 * (found < 0 ? pixels : (size_t)found)))
        abort();
    free(code), free(out), free(again), free(chunk);
}

static void encode(void)
{
    size_t itemsize = (size_t)1 << number(4), elements = 1 + number(5000), size = elements * itemsize;
    uint8_t *in = malloc(size), *out = malloc(pixels_bslz4_bound(elements, itemsize));
    fill(in, size, (int)number(3));
    if (pixels_bslz4_encode(in, elements, itemsize, out, copy) < size)
        abort();
    free(in), free(out);
}

static void walk(void)
{
    size_t size = 12 + number(3000);
    uint8_t *chunk = malloc(size);
    for (size_t i = 0; i < size; i++)
        chunk[i] = number(8) ? 0 : (uint8_t)number(256);
    pixels_walk(chunk, size, number(100), number(64));
    free(chunk);
}

static void others(void)
{
    size_t rows = 1 + number(80), columns = 1 + number(80), itemsize = (size_t)1 << number(4), pixels = rows * columns;
    uint8_t *in = malloc(pixels * itemsize), *out = malloc(pixels * itemsize), *raw = malloc((3 * pixels + 1) / 2);
    uint16_t *unpacked = malloc(2 * pixels);
    fill(in, pixels * itemsize, 0);
    fill(raw, (3 * pixels + 1) / 2, 0);
    pixels_rotate(in, out, rows, columns, itemsize, 1);
    pixels_rotate(out, in, columns, rows, itemsize, 3);
    pixels_unpack12(raw, unpacked, pixels, (int)number(2));
    free(in), free(out), free(raw), free(unpacked);
}

int main(int argc, char **argv)
{
    int rounds = argc > 1 ? atoi(argv[1]) : 1000;
    for (int i = 0; i < rounds; i++)
        for (int level = 0; level < 3; level++) {
            pixels_choose(level);
            cbf();
            pixels_choose(level);
            encode();
            walk();
            others();
        }
    printf("%d rounds\n", rounds);
    return 0;
}
