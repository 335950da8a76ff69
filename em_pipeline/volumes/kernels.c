/* Inner loops over blocks of voxels (z, y, x): rows without gaps, planes and rows at any distance.

   Distances are in voxels. A cell has `fz`, `fy`, `fx` (1 or 2) voxels; where the extent is odd the last
   voxel stands in for the partner that it lacks. Every result equals, bit by bit, what downsample.py and
   statistics.py compute with numpy. */

#define _XOPEN_SOURCE 700
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

/* SHA-256 of this file, as it was when it was compiled. */
const char *version(void)
{
    return VERSION;
}

typedef struct {
    int64_t nz, ny, nx; /* voxels along each axis */
    int64_t dz, dy;     /* from plane to plane, from row to row */
} extent;

/* Inlined, GCC 12 makes loops of them that take half as long again. */
#if defined(__GNUC__)
#define APART __attribute__((noinline))
#else
#define APART
#endif

/* One is added to counts[value] for each value: 32 bits, so that the bins in use stay near. Values are
   fetched several at a time, for a load would wait for the increments before it. */

/* Four tables: equal neighbours would wait for one another's increment. */
APART static void count_u1(const uint8_t *block, const extent *e, uint32_t *counts)
{
    uint32_t table[4][256];
    memset(table, 0, sizeof table);
    for (int64_t z = 0; z < e->nz; z++)
        for (int64_t y = 0; y < e->ny; y++) {
            const uint8_t *row = block + z * e->dz + y * e->dy;
            int64_t x = 0;
            for (; x + 8 <= e->nx; x += 8) {
                uint64_t eight;
                memcpy(&eight, row + x, 8);
                table[0][eight & 255]++;
                table[1][eight >> 8 & 255]++;
                table[2][eight >> 16 & 255]++;
                table[3][eight >> 24 & 255]++;
                table[0][eight >> 32 & 255]++;
                table[1][eight >> 40 & 255]++;
                table[2][eight >> 48 & 255]++;
                table[3][eight >> 56]++;
            }
            for (; x < e->nx; x++)
                table[0][row[x]]++;
        }
    for (int value = 0; value < 256; value++)
        counts[value] += table[0][value] + table[1][value] + table[2][value] + table[3][value];
}

APART static void count_u2(const uint16_t *block, const extent *e, uint32_t *counts)
{
    for (int64_t z = 0; z < e->nz; z++)
        for (int64_t y = 0; y < e->ny; y++) {
            const uint16_t *row = block + z * e->dz + y * e->dy;
            int64_t x = 0;
            for (; x + 4 <= e->nx; x += 4) {
                uint64_t four;
                memcpy(&four, row + x, 8);
                counts[four & 65535]++;
                counts[four >> 16 & 65535]++;
                counts[four >> 32 & 65535]++;
                counts[four >> 48]++;
            }
            for (; x < e->nx; x++)
                counts[row[x]]++;
        }
}

/* Of some integers: their sum, the sum of their squares, the ends of their range, and the values of two ranks. */
typedef struct {
    int64_t first;
    uint64_t second;
    int64_t low, high, at_rank[2];
} moments;

/* What `found` counts of `bins` bit patterns, into `counts` in the order of their values, and its moments.
   Squares of 16 bits, less than 2^32 of them, sum up to less than 2^64. */
static void order(const uint32_t *found, int64_t bins, int is_signed, const int64_t ranks[2], int64_t *counts,
                  moments *m)
{
    const int64_t half = is_signed ? bins / 2 : 0;
    int64_t seen = 0;
    memset(counts, 0, bins * sizeof *counts);
    memset(m, 0, sizeof *m);
    for (int64_t block = 0; block < bins; block += 128) {
        const uint32_t *of = found + (block + half) % bins;
        uint32_t any = 0;
        for (int i = 0; i < 128; i++)
            any |= of[i];
        /* Most of 65536 bins are empty, and next to each other. */
        for (int i = 0; any && i < 128; i++) {
            if (!of[i])
                continue;
            const int64_t value = block + i - half;
            if (!seen)
                m->low = value;
            m->high = value;
            for (int r = 0; r < 2; r++)
                if (seen < ranks[r] && ranks[r] <= seen + of[i])
                    m->at_rank[r] = value;
            seen += of[i];
            counts[block + i] = of[i];
            m->first += of[i] * value;
            m->second += of[i] * (uint64_t)(value * value);
        }
    }
}

/* `found` holds as many zeros as there are bins. */
void measure_1(const uint8_t *block, const extent *e, int is_signed, const int64_t ranks[2], uint32_t *found,
               int64_t *counts, moments *m)
{
    count_u1(block, e, found);
    order(found, 256, is_signed, ranks, counts, m);
}

void measure_2(const uint16_t *block, const extent *e, int is_signed, const int64_t ranks[2], uint32_t *found,
               int64_t *counts, moments *m)
{
    count_u2(block, e, found);
    order(found, 65536, is_signed, ranks, counts, m);
}

/* The top 16 bits of the total-order key of each value as a float32; all values are finite. */
#define COUNT_KEYS(name, voxel)                                                                     \
    void count_keys_##name(const voxel *block, const extent *e, uint32_t *counts)                    \
    {                                                                                               \
        for (int64_t z = 0; z < e->nz; z++)                                                         \
            for (int64_t y = 0; y < e->ny; y++) {                                                   \
                const voxel *row = block + z * e->dz + y * e->dy;                                   \
                for (int64_t x = 0; x < e->nx; x++) {                                               \
                    float value = (float)row[x] + 0.0f; /* -0 becomes 0 */                          \
                    uint32_t bits;                                                                  \
                    memcpy(&bits, &value, 4);                                                       \
                    counts[(bits & 0x80000000u ? ~bits : bits | 0x80000000u) >> 16]++;              \
                }                                                                                   \
            }                                                                                       \
    }

COUNT_KEYS(f4, float)
COUNT_KEYS(u4, uint32_t)
COUNT_KEYS(i4, int32_t)
COUNT_KEYS(u8, uint64_t)
COUNT_KEYS(i8, int64_t)

/* Calls `name_row` for each row of cells with the four rows of voxels that it is made of; rows that a cell
   does not have are its first ones again. */
#define REDUCTION(name, voxel)                                                                      \
    void name(const voxel *block, const extent *e, int fz, int fy, int fx, voxel *restrict out)     \
    {                                                                                               \
        for (int64_t z = 0; z < e->nz; z += fz)                                                     \
            for (int64_t y = 0; y < e->ny; y += fy) {                                               \
                const int64_t up = fz == 2 && z + 1 < e->nz ? e->dz : 0;                            \
                const int64_t on = fy == 2 && y + 1 < e->ny ? e->dy : 0;                            \
                const voxel *row = block + z * e->dz + y * e->dy;                                   \
                name##_row(row, row + on, row + up, row + up + on, e->nx, fx, out);                 \
                out += (e->nx + fx - 1) / fx;                                                       \
            }                                                                                       \
    }

/* Counting a voxel again for each one that a cell lacks leaves its mean as it is. Halves are rounded
   towards +infinity. */
#define MEAN(type, voxel, wide)                                                                     \
    static inline void mean_##type##_row(const voxel *a, const voxel *b, const voxel *c, const voxel *d, \
                                         int64_t nx, int fx, voxel *restrict out)                   \
    {                                                                                               \
        const int64_t whole = fx == 2 ? nx / 2 : 0;                                                 \
        for (int64_t x = 0; x < whole; x++) {                                                       \
            wide first = (wide)a[2 * x] + (wide)b[2 * x] + (wide)c[2 * x] + (wide)d[2 * x];         \
            wide second = (wide)a[2 * x + 1] + (wide)b[2 * x + 1] + (wide)c[2 * x + 1]              \
                        + (wide)d[2 * x + 1];                                                       \
            out[x] = (voxel)((wide)(first + second + 4) >> 3);                                      \
        }                                                                                           \
        for (int64_t x = 2 * whole; x < nx; x++)                                                    \
            out[x - whole] = (voxel)((wide)((wide)a[x] + (wide)b[x] + (wide)c[x] + (wide)d[x] + 2) >> 2); \
    }                                                                                               \
    REDUCTION(mean_##type, voxel)

MEAN(u1, uint8_t, uint16_t)
MEAN(i1, int8_t, int16_t)
MEAN(u2, uint16_t, uint32_t)
MEAN(i2, int16_t, int32_t)
MEAN(u4, uint32_t, uint64_t)
MEAN(i4, int32_t, int64_t)
MEAN(u8, uint64_t, unsigned __int128)
MEAN(i8, int64_t, __int128)

/* The most frequent of eight values, among equals the smallest. */
#define MODE(type, voxel)                                                                           \
    static voxel mode_of_##type(const voxel *cell)                                                  \
    {                                                                                               \
        voxel best = cell[0];                                                                       \
        int most = 0;                                                                               \
        for (int i = 0; i < 8; i++) {                                                               \
            int times = 0;                                                                          \
            for (int j = 0; j < 8; j++)                                                             \
                times += cell[j] == cell[i];                                                        \
            if (times > most || (times == most && cell[i] < best)) {                                \
                most = times;                                                                       \
                best = cell[i];                                                                     \
            }                                                                                       \
        }                                                                                           \
        return best;                                                                                \
    }                                                                                               \
    static inline void mode_##type##_row(const voxel *a, const voxel *b, const voxel *c, const voxel *d, \
                                         int64_t nx, int fx, voxel *restrict out)                   \
    {                                                                                               \
        for (int64_t x = 0; x < nx; x += fx) {                                                      \
            const int64_t p = x + fx - 1 < nx ? x + fx - 1 : x;                                     \
            const voxel cell[8] = {a[x], a[p], b[x], b[p], c[x], c[p], d[x], d[p]};                 \
            int same = 1;                                                                           \
            for (int k = 1; k < 8; k++)                                                             \
                same &= cell[k] == cell[0];                                                         \
            *out++ = same ? cell[0] : mode_of_##type(cell);                                         \
        }                                                                                           \
    }                                                                                               \
    REDUCTION(mode_##type, voxel)

MODE(u1, uint8_t)
MODE(i1, int8_t)
MODE(u2, uint16_t)
MODE(i2, int16_t)
MODE(u4, uint32_t)
MODE(i4, int32_t)
MODE(u8, uint64_t)
MODE(i8, int64_t)

/* Chunks side by side: `count` of them, each of `shape` voxels of `nbytes` bytes, all along z, y, x and
   without gaps. */
typedef struct {
    int64_t count[3], shape[3], nbytes;
} tiling;

/* Copies a row that begins at voxel (z, y, x) of all chunks to those that it crosses. */
static inline void deal_row(const char *from, int64_t z, int64_t y, int64_t x, int64_t nx, const tiling *t,
                            char *chunks)
{
    const int64_t row_bytes = t->shape[2] * t->nbytes, chunk_bytes = t->shape[0] * t->shape[1] * row_bytes;
    const int64_t chunk = (z / t->shape[0] * t->count[1] + y / t->shape[1]) * t->count[2];
    char *row = chunks + chunk * chunk_bytes + (z % t->shape[0] * t->shape[1] + y % t->shape[1]) * row_bytes;
    const int64_t end = x + nx;
    while (x < end) {
        const int64_t within = x % t->shape[2];
        const int64_t some = end - x < t->shape[2] - within ? end - x : t->shape[2] - within;
        char *to = row + x / t->shape[2] * chunk_bytes + within * t->nbytes;
        if (some * t->nbytes == 128)
            memcpy(to, from, 128); /* of a known length, without a call */
        else
            memcpy(to, from, some * t->nbytes);
        from += some * t->nbytes;
        x += some;
    }
}

/* Copies a block to the chunks that its voxels belong to; `first` is where in them the block begins. */
void deal(const char *block, const extent *e, const int64_t first[3], const tiling *t, char *chunks)
{
    for (int64_t z = 0; z < e->nz; z++)
        for (int64_t y = 0; y < e->ny; y++)
            deal_row(block + (z * e->dz + y * e->dy) * t->nbytes, first[0] + z, first[1] + y, first[2], e->nx, t,
                     chunks);
}

static int read_fully(int descriptor, char *to, int64_t nbytes, int64_t at)
{
    while (nbytes > 0) {
        const ssize_t some = pread(descriptor, to, nbytes, at);
        if (some < 0 && errno == EINTR)
            continue;
        if (some <= 0)
            return 0;
        to += some;
        at += some;
        nbytes -= some;
    }
    return 1;
}

/* Reads a box from a file and copies it to the chunks that its voxels belong to; 0 where the file ends or
   fails before its last voxel. Plane z begins at byte `starts[z]`; `dy` of `e` is from row to row in the file.
   Through `band`, of whole rows but for the end of the last: it stays in the core's cache. */
int deal_file(int descriptor, const int64_t *starts, const extent *e, char *band, int64_t band_rows,
              const int64_t first[3], const tiling *t, char *chunks)
{
    const int64_t row_bytes = e->dy * t->nbytes;
    for (int64_t z = 0; z < e->nz; z++)
        for (int64_t y = 0; y < e->ny; y += band_rows) {
            const int64_t rows = e->ny - y < band_rows ? e->ny - y : band_rows;
            const int64_t nbytes = (rows - 1) * row_bytes + e->nx * t->nbytes;
            if (!read_fully(descriptor, band, nbytes, starts[z] + y * row_bytes))
                return 0;
            for (int64_t row = 0; row < rows; row++)
                deal_row(band + row * row_bytes, first[0] + z, first[1] + y + row, first[2], e->nx, t, chunks);
        }
    return 1;
}
