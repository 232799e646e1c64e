/* Kernels of the pixel work: no Python, no allocation, nothing global but the choice of instructions. */
#ifndef PIXELS_KERNELS_H
#define PIXELS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

typedef int (*lz4_compress_fn)(const char *source, char *target, int size, int room, int acceleration);

/* 0 portable C, 1 SSE2, 2 AVX2: what this processor has, at most `wanted`. Returns the choice. */
int pixels_choose(int wanted);

/* Byte offset -> int32 in `out`. Returns the pixels found: `pixels` when the code ends exactly with the last one, fewer
   when it is cut, -1 when something follows. Only [code, code + size) is read. */
ptrdiff_t pixels_cbf_decode(const uint8_t *code, size_t size, int32_t *out, size_t pixels);

/* Room that the chunk of filter 32008 can need, its header included. */
size_t pixels_bslz4_bound(size_t elements, size_t itemsize);

/* Plain elements -> chunk of filter 32008. Returns its size, or 0 when LZ4 failed. */
size_t pixels_bslz4_encode(const uint8_t *in, size_t elements, size_t itemsize, uint8_t *out, lz4_compress_fn lz4);

/* Byte offset -> chunk of filter 32008 of int32, block by block. The result as of pixels_cbf_decode; *written is the
   chunk's size, 0 when LZ4 failed. */
ptrdiff_t pixels_cbf_to_bslz4(const uint8_t *code, size_t size, size_t pixels, uint8_t *out, size_t *written,
                              lz4_compress_fn lz4);

/* Bits of n elements (a multiple of 8) to planes, as bitshuffle does with one block. */
void pixels_bitshuffle(const uint8_t *in, size_t n, size_t itemsize, uint8_t *out);

/* A quarter turn: turns 1 counter-clockwise, 3 clockwise. itemsize 1, 2, 4 or 8. */
void pixels_rotate(const uint8_t *in, uint8_t *out, size_t rows, size_t columns, size_t itemsize, int turns);

/* 12 bits -> uint16; high_first: Andor's order. `raw` has (3 * pixels + 1) / 2 bytes. */
void pixels_unpack12(const uint8_t *raw, uint16_t *out, size_t pixels, int high_first);

/* Blocks of a bslz4 chunk: 0 when all lengths stay within it and the rest has `tail` bytes, else the number of the
   first block that does not (from 1), or -1 when only the end is wrong. */
ptrdiff_t pixels_walk(const uint8_t *chunk, size_t size, size_t blocks, size_t tail);

#endif
