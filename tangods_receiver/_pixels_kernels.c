/* See _pixels_kernels.h. Each kernel has a portable form; SSE2 and AVX2 forms are chosen at run time. */

#include "_pixels_kernels.h"

#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "only for little-endian machines; the library path serves others"
#endif

#if (defined(__x86_64__) || defined(_M_X64)) && defined(__GNUC__)
#define X86 1
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2")))
#else
#define X86 0
#endif

#define BLOCK 8192      /* bytes, bitshuffle's own choice */
#define CBF_BLOCK 2048  /* pixels of such a block */
#define SLACK 64        /* bytes that vector stores may write behind what counts */
#define HEAD 12

static int level = 0;

int pixels_choose(int wanted)
{
    int best = 0;
#if X86
    best = 1;
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2"))
        best = 2;
#endif
    level = wanted < best ? wanted : best;
    return level;
}

/* --- byte offset -------------------------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *at, *end;
    uint32_t value; /* of the last pixel; unsigned, because a damaged code may overflow */
} cbf_reader;

static inline uint32_t read_u32(const uint8_t *p)
{
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}

/* One difference of any length. 0: the code is cut. */
static inline int cbf_one(cbf_reader *r)
{
    size_t left = (size_t)(r->end - r->at);
    if (left < 1)
        return 0;
    if (r->at[0] != 0x80) {
        r->value += (uint32_t)(int32_t)(int8_t)*r->at++;
        return 1;
    }
    if (left < 3)
        return 0;
    uint16_t two = (uint16_t)(r->at[1] | r->at[2] << 8);
    if (two != 0x8000) {
        r->value += (uint32_t)(int32_t)(int16_t)two;
        r->at += 3;
        return 1;
    }
    if (left < 7)
        return 0;
    uint32_t four = read_u32(r->at + 3);
    if (four != 0x80000000u) {
        r->value += four;
        r->at += 7;
        return 1;
    }
    if (left < 15)
        return 0;
    r->value += read_u32(r->at + 7); /* of 64 bits only the lower half can matter to 32-bit pixels */
    r->at += 15;
    return 1;
}

static size_t cbf_portable(cbf_reader *r, int32_t *out, size_t n)
{
    size_t i = 0;
    while (i < n) {
        while (i + 8 <= n && r->end - r->at >= 8) { /* eight plain differences at a time */
            uint64_t eight, odd;
            memcpy(&eight, r->at, 8);
            odd = eight ^ 0x8080808080808080u; /* a zero byte is an escape */
            if ((odd - 0x0101010101010101u) & ~odd & 0x8080808080808080u)
                break;
            uint32_t value = r->value;
            for (int k = 0; k < 8; k++)
                out[i + k] = (int32_t)(value += (uint32_t)(int32_t)(int8_t)r->at[k]);
            r->value = value;
            r->at += 8;
            i += 8;
        }
        size_t stop = i + 8 < n ? i + 8 : n;
        for (; i < stop; i++) {
            if (!cbf_one(r))
                return i;
            out[i] = (int32_t)r->value;
        }
    }
    return i;
}

#if X86
/* Sixteen differences: their running sums fit into 16 bits. All sixteen are stored, those before an escape count. */
static size_t cbf_sse2(cbf_reader *r, int32_t *out, size_t n)
{
    size_t i = 0;
    const __m128i escape = _mm_set1_epi8((char)0x80);
    while (i + 16 <= n && r->end - r->at >= 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)r->at);
        unsigned found = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, escape));
        __m128i low = _mm_srai_epi16(_mm_unpacklo_epi8(bytes, bytes), 8);
        __m128i high = _mm_srai_epi16(_mm_unpackhi_epi8(bytes, bytes), 8);
        low = _mm_add_epi16(low, _mm_slli_si128(low, 2));
        high = _mm_add_epi16(high, _mm_slli_si128(high, 2));
        low = _mm_add_epi16(low, _mm_slli_si128(low, 4));
        high = _mm_add_epi16(high, _mm_slli_si128(high, 4));
        low = _mm_add_epi16(low, _mm_slli_si128(low, 8));
        high = _mm_add_epi16(high, _mm_slli_si128(high, 8));
        high = _mm_add_epi16(high, _mm_set1_epi16((short)_mm_extract_epi16(low, 7)));
        __m128i base = _mm_set1_epi32((int)r->value);
        __m128i *to = (__m128i *)(out + i);
        _mm_storeu_si128(to + 0, _mm_add_epi32(base, _mm_srai_epi32(_mm_unpacklo_epi16(low, low), 16)));
        _mm_storeu_si128(to + 1, _mm_add_epi32(base, _mm_srai_epi32(_mm_unpackhi_epi16(low, low), 16)));
        _mm_storeu_si128(to + 2, _mm_add_epi32(base, _mm_srai_epi32(_mm_unpacklo_epi16(high, high), 16)));
        _mm_storeu_si128(to + 3, _mm_add_epi32(base, _mm_srai_epi32(_mm_unpackhi_epi16(high, high), 16)));
        if (!found) {
            r->value += (uint32_t)(int32_t)(int16_t)_mm_extract_epi16(high, 7);
            r->at += 16;
            i += 16;
            continue;
        }
        size_t plain = (size_t)__builtin_ctz(found);
        if (plain) {
            i += plain;
            r->at += plain;
            r->value = (uint32_t)out[i - 1];
        }
        do { /* escapes often follow each other: up a peak and down again */
            if (!cbf_one(r))
                return i;
            out[i++] = (int32_t)r->value;
        } while (i < n && r->at < r->end && *r->at == 0x80);
    }
    return i + cbf_portable(r, out + i, n - i);
}

AVX2 static size_t cbf_avx2(cbf_reader *r, int32_t *out, size_t n)
{
    size_t i = 0;
    const __m128i escape = _mm_set1_epi8((char)0x80);
    const __m256i last_of_low = _mm256_set_epi8(15, 14, 15, 14, 15, 14, 15, 14, 15, 14, 15, 14, 15, 14, 15, 14, -1, -1,
                                                -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    while (i + 16 <= n && r->end - r->at >= 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i *)r->at);
        unsigned found = (unsigned)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, escape));
        __m256i sum = _mm256_cvtepi8_epi16(bytes);
        sum = _mm256_add_epi16(sum, _mm256_slli_si256(sum, 2));
        sum = _mm256_add_epi16(sum, _mm256_slli_si256(sum, 4));
        sum = _mm256_add_epi16(sum, _mm256_slli_si256(sum, 8));
        sum = _mm256_add_epi16(sum, _mm256_shuffle_epi8(_mm256_permute2x128_si256(sum, sum, 0x08), last_of_low));
        __m128i upper = _mm256_extracti128_si256(sum, 1);
        __m256i base = _mm256_set1_epi32((int)r->value);
        __m256i *to = (__m256i *)(out + i);
        _mm256_storeu_si256(to, _mm256_add_epi32(base, _mm256_cvtepi16_epi32(_mm256_castsi256_si128(sum))));
        _mm256_storeu_si256(to + 1, _mm256_add_epi32(base, _mm256_cvtepi16_epi32(upper)));
        if (!found) {
            r->value += (uint32_t)(int32_t)(int16_t)_mm_extract_epi16(upper, 7);
            r->at += 16;
            i += 16;
            continue;
        }
        size_t plain = (size_t)__builtin_ctz(found);
        if (plain) {
            i += plain;
            r->at += plain;
            r->value = (uint32_t)out[i - 1];
        }
        do {
            if (!cbf_one(r))
                return i;
            out[i++] = (int32_t)r->value;
        } while (i < n && r->at < r->end && *r->at == 0x80);
    }
    return i + cbf_portable(r, out + i, n - i);
}
#endif

/* Up to n pixels; fewer when the code is cut. */
static size_t cbf_some(cbf_reader *r, int32_t *out, size_t n)
{
#if X86
    if (level == 2)
        return cbf_avx2(r, out, n);
    if (level == 1)
        return cbf_sse2(r, out, n);
#endif
    return cbf_portable(r, out, n);
}

ptrdiff_t pixels_cbf_decode(const uint8_t *code, size_t size, int32_t *out, size_t pixels)
{
    cbf_reader r = {code, code + size, 0};
    size_t found = cbf_some(&r, out, pixels);
    return found == pixels && r.at != r.end ? -1 : (ptrdiff_t)found;
}

/* --- bits to planes ----------------------------------------------------------------------------------------------- */

/* Byte `which` of each of n elements. */
static void gather_portable(const uint8_t *in, size_t n, size_t itemsize, size_t which, uint8_t *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = in[i * itemsize + which];
}

/* The lowest `bits` bits of n bytes to as many planes, each n / 8 bytes long, `stride` bytes apart. */
static void planes_portable(const uint8_t *in, size_t n, int bits, uint8_t *out, size_t stride)
{
    for (size_t i = 0; i < n / 8; i++) {
        uint64_t x, t; /* a matrix of 8 x 8 bits turned over, in three exchanges */
        memcpy(&x, in + 8 * i, 8);
        t = (x ^ (x >> 7)) & 0x00AA00AA00AA00AAu;
        x = x ^ t ^ (t << 7);
        t = (x ^ (x >> 14)) & 0x0000CCCC0000CCCCu;
        x = x ^ t ^ (t << 14);
        t = (x ^ (x >> 28)) & 0x00000000F0F0F0F0u;
        x = x ^ t ^ (t << 28);
        for (int bit = 0; bit < bits; bit++)
            out[bit * stride + i] = (uint8_t)(x >> (8 * bit));
    }
}

#if X86
static void gather_sse2(const uint8_t *in, size_t n, size_t itemsize, size_t which, uint8_t *out)
{
    size_t i = 0;
    const int shift = (int)(8 * which);
    if (itemsize == 2) {
        const __m128i low = _mm_set1_epi16(255);
        for (; i + 16 <= n; i += 16) {
            const __m128i *from = (const __m128i *)(in + 2 * i);
            __m128i a = _mm_and_si128(_mm_srl_epi16(_mm_loadu_si128(from), _mm_cvtsi32_si128(shift)), low);
            __m128i b = _mm_and_si128(_mm_srl_epi16(_mm_loadu_si128(from + 1), _mm_cvtsi32_si128(shift)), low);
            _mm_storeu_si128((__m128i *)(out + i), _mm_packus_epi16(a, b));
        }
    } else if (itemsize == 4) {
        const __m128i low = _mm_set1_epi32(255), count = _mm_cvtsi32_si128(shift);
        for (; i + 16 <= n; i += 16) {
            const __m128i *from = (const __m128i *)(in + 4 * i);
            __m128i a = _mm_and_si128(_mm_srl_epi32(_mm_loadu_si128(from), count), low);
            __m128i b = _mm_and_si128(_mm_srl_epi32(_mm_loadu_si128(from + 1), count), low);
            __m128i c = _mm_and_si128(_mm_srl_epi32(_mm_loadu_si128(from + 2), count), low);
            __m128i d = _mm_and_si128(_mm_srl_epi32(_mm_loadu_si128(from + 3), count), low);
            _mm_storeu_si128((__m128i *)(out + i), _mm_packus_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d)));
        }
    }
    gather_portable(in + i * itemsize, n - i, itemsize, which, out + i);
}

static void planes_sse2(const uint8_t *in, size_t n, int bits, uint8_t *out, size_t stride)
{
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m128i x = _mm_sll_epi16(_mm_loadu_si128((const __m128i *)(in + i)), _mm_cvtsi32_si128(8 - bits));
        for (int bit = bits - 1; bit >= 0; bit--) { /* the highest bit of each byte, then all a place higher */
            uint16_t mask = (uint16_t)_mm_movemask_epi8(x);
            memcpy(out + bit * stride + i / 8, &mask, 2);
            x = _mm_add_epi8(x, x);
        }
    }
    planes_portable(in + i, n - i, bits, out + i / 8, stride);
}

AVX2 static void gather_avx2(const uint8_t *in, size_t n, size_t itemsize, size_t which, uint8_t *out)
{
    size_t i = 0;
    const __m128i count = _mm_cvtsi32_si128((int)(8 * which));
    if (itemsize == 4) {
        const __m256i low = _mm256_set1_epi32(255), order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
        for (; i + 32 <= n; i += 32) {
            const __m256i *from = (const __m256i *)(in + 4 * i);
            __m256i a = _mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256(from), count), low);
            __m256i b = _mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256(from + 1), count), low);
            __m256i c = _mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256(from + 2), count), low);
            __m256i d = _mm256_and_si256(_mm256_srl_epi32(_mm256_loadu_si256(from + 3), count), low);
            __m256i packed = _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
            _mm256_storeu_si256((__m256i *)(out + i), _mm256_permutevar8x32_epi32(packed, order));
        }
    } else if (itemsize == 2) {
        const __m256i low = _mm256_set1_epi16(255);
        for (; i + 32 <= n; i += 32) {
            const __m256i *from = (const __m256i *)(in + 2 * i);
            __m256i a = _mm256_and_si256(_mm256_srl_epi16(_mm256_loadu_si256(from), count), low);
            __m256i b = _mm256_and_si256(_mm256_srl_epi16(_mm256_loadu_si256(from + 1), count), low);
            __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xD8);
            _mm256_storeu_si256((__m256i *)(out + i), packed);
        }
    }
    gather_sse2(in + i * itemsize, n - i, itemsize, which, out + i);
}

/* All four bytes of each element in one pass. */
AVX2 static void gather4_avx2(const uint8_t *in, size_t n, uint8_t *out)
{
    size_t i = 0;
    const __m256i alike = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9,
                                           13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (; i + 32 <= n; i += 32) {
        const __m256i *from = (const __m256i *)(in + 4 * i);
        /* each vector: 8 bytes number 0, 8 number 1, 8 number 2, 8 number 3 */
        __m256i a = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(_mm256_loadu_si256(from), alike), order);
        __m256i b = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(_mm256_loadu_si256(from + 1), alike), order);
        __m256i c = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(_mm256_loadu_si256(from + 2), alike), order);
        __m256i d = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(_mm256_loadu_si256(from + 3), alike), order);
        __m256i ab02 = _mm256_unpacklo_epi64(a, b), ab13 = _mm256_unpackhi_epi64(a, b);
        __m256i cd02 = _mm256_unpacklo_epi64(c, d), cd13 = _mm256_unpackhi_epi64(c, d);
        _mm256_storeu_si256((__m256i *)(out + i), _mm256_permute2x128_si256(ab02, cd02, 0x20));
        _mm256_storeu_si256((__m256i *)(out + n + i), _mm256_permute2x128_si256(ab13, cd13, 0x20));
        _mm256_storeu_si256((__m256i *)(out + 2 * n + i), _mm256_permute2x128_si256(ab02, cd02, 0x31));
        _mm256_storeu_si256((__m256i *)(out + 3 * n + i), _mm256_permute2x128_si256(ab13, cd13, 0x31));
    }
    for (size_t which = 0; which < 4; which++)
        gather_portable(in + 4 * i, n - i, 4, which, out + which * n + i);
}

AVX2 static void planes_avx2(const uint8_t *in, size_t n, int bits, uint8_t *out, size_t stride)
{
    size_t i = 0;
    const __m128i count = _mm_cvtsi32_si128(8 - bits);
    for (; i + 32 <= n; i += 32) {
        __m256i x = _mm256_sll_epi16(_mm256_loadu_si256((const __m256i *)(in + i)), count);
        for (int bit = bits - 1; bit >= 0; bit--) {
            uint32_t mask = (uint32_t)_mm256_movemask_epi8(x);
            memcpy(out + bit * stride + i / 8, &mask, 4);
            x = _mm256_add_epi8(x, x);
        }
    }
    planes_sse2(in + i, n - i, bits, out + i / 8, stride);
}
#endif

static void gather(const uint8_t *in, size_t n, size_t itemsize, size_t which, uint8_t *out)
{
#if X86
    if (level == 2) {
        gather_avx2(in, n, itemsize, which, out);
        return;
    }
    if (level == 1) {
        gather_sse2(in, n, itemsize, which, out);
        return;
    }
#endif
    gather_portable(in, n, itemsize, which, out);
}

static void planes(const uint8_t *in, size_t n, int bits, uint8_t *out, size_t stride)
{
#if X86
    if (level == 2) {
        planes_avx2(in, n, bits, out, stride);
        return;
    }
    if (level == 1) {
        planes_sse2(in, n, bits, out, stride);
        return;
    }
#endif
    planes_portable(in, n, bits, out, stride);
}

/* Bits from the lowest that differ from an element's highest in any element: those above are copies of it. Counts are
   small, gaps -1 and masked pixels all ones: mostly a few planes of 32 say all. */
static inline __attribute__((always_inline)) int significant(const uint8_t *in, size_t n, size_t itemsize)
{
    uint32_t all = 0;
    if (itemsize == 4)
        for (size_t i = 0; i < n; i++) {
            uint32_t v = read_u32(in + 4 * i);
            all |= v ^ (uint32_t)((int32_t)v >> 31);
        }
    else if (itemsize == 2)
        for (size_t i = 0; i < n; i++) {
            uint16_t v;
            memcpy(&v, in + 2 * i, 2);
            all |= (uint16_t)(v ^ (uint16_t)((int16_t)v >> 15));
        }
    else
        return (int)(8 * itemsize);
    return all ? 32 - __builtin_clz(all) : 0;
}

#if X86
AVX2 static int significant_avx2(const uint8_t *in, size_t n, size_t itemsize)
{
    return significant(in, n, itemsize);
}
#endif

/* Bytes 0 to count - 1 of each of n elements, n bytes for each. */
static void gather_all(const uint8_t *in, size_t n, size_t itemsize, size_t count, uint8_t *out)
{
#if X86
    if (level == 2 && itemsize == 4 && count > 1) {
        gather4_avx2(in, n, out);
        return;
    }
#endif
    for (size_t which = 0; which < count; which++)
        gather(in, n, itemsize, which, out + which * n);
}

/* One block: `bytes` has room for as many bytes. */
static void shuffle(const uint8_t *in, size_t n, size_t itemsize, uint8_t *out, uint8_t *bytes)
{
    const size_t plane = n / 8;
    const int total = (int)(8 * itemsize);
#if X86
    int needed = level == 2 ? significant_avx2(in, n, itemsize) : significant(in, n, itemsize);
#else
    int needed = significant(in, n, itemsize);
#endif
    needed = needed < total ? needed + 1 : total; /* and the highest bit, of which the planes above are copies */
    if (itemsize > 1)
        gather_all(in, n, itemsize, (size_t)(needed + 7) / 8, bytes);
    for (size_t which = 0; (int)(8 * which) < needed; which++) {
        const uint8_t *from = itemsize > 1 ? bytes + which * n : in;
        int bits = needed - (int)(8 * which) < 8 ? needed - (int)(8 * which) : 8;
        planes(from, n, bits, out + 8 * which * plane, plane);
    }
    const uint8_t *highest = out + (size_t)(needed - 1) * plane;
    for (int bit = needed; bit < total; bit++)
        memcpy(out + (size_t)bit * plane, highest, plane);
}

void pixels_bitshuffle(const uint8_t *in, size_t n, size_t itemsize, uint8_t *out)
{
    uint8_t bytes[BLOCK + SLACK];
    shuffle(in, n, itemsize, out, bytes);
}

/* --- chunks of filter 32008 --------------------------------------------------------------------------------------- */

static void put_be32(uint8_t *to, uint32_t v)
{
    for (int k = 0; k < 4; k++)
        to[k] = (uint8_t)(v >> (24 - 8 * k));
}

static void put_head(uint8_t *to, size_t nbytes)
{
    put_be32(to, (uint32_t)((uint64_t)nbytes >> 32));
    put_be32(to + 4, (uint32_t)nbytes);
    put_be32(to + 8, BLOCK);
}

static int block_bound(int nbytes)
{
    return nbytes + nbytes / 255 + 16;
}

size_t pixels_bslz4_bound(size_t elements, size_t itemsize)
{
    size_t nbytes = elements * itemsize, blocks = nbytes / BLOCK + 1;
    return HEAD + nbytes + blocks * (size_t)(4 + BLOCK / 255 + 16) + SLACK;
}

/* One block of n elements (a multiple of 8) behind `out`; its size with the length before it, 0 when LZ4 failed. */
static size_t put_block(const uint8_t *in, size_t n, size_t itemsize, uint8_t *out, lz4_compress_fn lz4)
{
    uint8_t bits[BLOCK + SLACK], bytes[BLOCK + SLACK];
    const int nbytes = (int)(n * itemsize);
    shuffle(in, n, itemsize, bits, bytes);
    int size = lz4((const char *)bits, (char *)out + 4, nbytes, block_bound(nbytes), 1);
    if (size <= 0)
        return 0;
    put_be32(out, (uint32_t)size);
    return 4 + (size_t)size;
}

size_t pixels_bslz4_encode(const uint8_t *in, size_t elements, size_t itemsize, uint8_t *out, lz4_compress_fn lz4)
{
    uint8_t *to = out + HEAD;
    size_t left = elements;
    put_head(out, elements * itemsize);
    while (left >= 8) {
        size_t n = BLOCK / itemsize;
        n = left < n ? left & ~(size_t)7 : n;
        size_t size = put_block(in, n, itemsize, to, lz4);
        if (!size)
            return 0;
        to += size;
        in += n * itemsize;
        left -= n;
    }
    memcpy(to, in, left * itemsize);
    return (size_t)(to - out) + left * itemsize;
}

ptrdiff_t pixels_cbf_to_bslz4(const uint8_t *code, size_t size, size_t pixels, uint8_t *out, size_t *written,
                              lz4_compress_fn lz4)
{
    int32_t block[CBF_BLOCK + SLACK / 4];
    cbf_reader r = {code, code + size, 0};
    uint8_t *to = out + HEAD;
    size_t done = 0;
    put_head(out, 4 * pixels);
    *written = 1; /* no failure of LZ4 so far */
    while (done < pixels) {
        size_t n = pixels - done < CBF_BLOCK ? pixels - done : CBF_BLOCK;
        size_t found = cbf_some(&r, block, n);
        if (found != n)
            return (ptrdiff_t)(done + found);
        size_t whole = n & ~(size_t)7;
        if (whole) {
            size_t length = put_block((const uint8_t *)block, whole, 4, to, lz4);
            if (!length) {
                *written = 0;
                return (ptrdiff_t)done;
            }
            to += length;
        }
        memcpy(to, block + whole, 4 * (n - whole));
        to += 4 * (n - whole);
        done += n;
    }
    *written = (size_t)(to - out);
    return r.at != r.end ? -1 : (ptrdiff_t)done;
}

ptrdiff_t pixels_walk(const uint8_t *chunk, size_t size, size_t blocks, size_t tail)
{
    size_t at = HEAD;
    for (size_t index = 0; index < blocks; index++) {
        if (size - at < 4)
            return (ptrdiff_t)index + 1;
        const uint8_t *p = chunk + at;
        size_t length = (size_t)p[0] << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
        at += 4;
        if (length > size - at)
            return (ptrdiff_t)index + 1;
        at += length;
    }
    return size - at == tail ? 0 : -1;
}

/* --- twelve bits -------------------------------------------------------------------------------------------------- */

void pixels_unpack12(const uint8_t *raw, uint16_t *out, size_t pixels, int high_first)
{
    size_t pairs = pixels / 2;
    if (high_first)
        for (size_t i = 0; i < pairs; i++) {
            const uint8_t *b = raw + 3 * i;
            out[2 * i] = (uint16_t)(b[0] << 4 | (b[1] & 15));
            out[2 * i + 1] = (uint16_t)(b[2] << 4 | b[1] >> 4);
        }
    else
        for (size_t i = 0; i < pairs; i++) {
            const uint8_t *b = raw + 3 * i;
            out[2 * i] = (uint16_t)(b[0] | (b[1] & 15) << 8);
            out[2 * i + 1] = (uint16_t)(b[2] << 4 | b[1] >> 4);
        }
    if (pixels % 2) {
        const uint8_t *b = raw + 3 * pairs;
        out[pixels - 1] = (uint16_t)(high_first ? b[0] << 4 | (b[1] & 15) : b[0] | (b[1] & 15) << 8);
    }
}

/* --- a quarter turn ----------------------------------------------------------------------------------------------- */

#define TILE 32 /* rows and columns that are turned together: what they touch stays in the cache */

/* out[columns - 1 - c][r] = in[r][c] counter-clockwise, out[c][rows - 1 - r] = in[r][c] clockwise */
#define ROTATE(type)                                                                                                   \
    static void rotate_##type(const type *in, type *out, size_t rows, size_t columns, int turns)                       \
    {                                                                                                                  \
        for (size_t top = 0; top < rows; top += TILE)                                                                  \
            for (size_t left = 0; left < columns; left += TILE) {                                                      \
                size_t bottom = top + TILE < rows ? top + TILE : rows;                                                 \
                size_t right = left + TILE < columns ? left + TILE : columns;                                          \
                for (size_t c = left; c < right; c++) {                                                                \
                    type *row = out + (turns == 1 ? columns - 1 - c : c) * rows;                                       \
                    const type *from = in + c;                                                                         \
                    if (turns == 1)                                                                                    \
                        for (size_t r = top; r < bottom; r++)                                                          \
                            row[r] = from[r * columns];                                                                \
                    else                                                                                               \
                        for (size_t r = top; r < bottom; r++)                                                          \
                            row[rows - 1 - r] = from[r * columns];                                                     \
                }                                                                                                      \
            }                                                                                                          \
    }

ROTATE(uint8_t)
ROTATE(uint16_t)
ROTATE(uint32_t)
ROTATE(uint64_t)

void pixels_rotate(const uint8_t *in, uint8_t *out, size_t rows, size_t columns, size_t itemsize, int turns)
{
    if (itemsize == 1)
        rotate_uint8_t(in, out, rows, columns, turns);
    else if (itemsize == 2)
        rotate_uint16_t((const uint16_t *)in, (uint16_t *)out, rows, columns, turns);
    else if (itemsize == 4)
        rotate_uint32_t((const uint32_t *)in, (uint32_t *)out, rows, columns, turns);
    else
        rotate_uint64_t((const uint64_t *)in, (uint64_t *)out, rows, columns, turns);
}
