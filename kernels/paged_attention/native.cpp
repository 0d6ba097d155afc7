// Attention of a few query tokens per request over keys and values in blocks of 16 tokens.
//
// The work is a list of items: a run of blocks, and the query rows that attend to it (several where requests share
// the blocks, so these are read from memory once). Each pair of item and row leaves a partial result: maximum, sum
// and weighted values of its scores; a second pass merges the partial results of each row. (FlashDecoding, split KV.)
#include "avx2.h"

#include <algorithm>
#include <vector>

namespace {

// A row goes over RUN_BLOCKS blocks at once: the largest score and the sum of weights are found once for all of them.
constexpr int BLOCK = 16, RUN_BLOCKS = 4, SPAN = RUN_BLOCKS * BLOCK, MAX_DIM = 256;

struct Shape {
  int64_t heads, kv_heads, dim;
  int64_t group() const { return heads / kv_heads; }
  int64_t token_stride() const { return kv_heads * dim; }
};

// Keys or values of one KV head in the blocks of a run: the first token of each, the next is `stride` further. `ahead` are
// those of the next run, whose lines are asked for while this run is computed: all at once they would be waited for.
template <class T>
struct Blocks {
  const T *at[RUN_BLOCKS], *ahead[RUN_BLOCKS];
  int64_t stride;
  const T* token(int t) const { return at[t / BLOCK] + t % BLOCK * stride; }
  void fetch_ahead(int t, int64_t dim) const {
    const char* from = (const char*)(ahead[t / BLOCK] + t % BLOCK * stride);
    for (int64_t byte = 0; byte < dim * int64_t(sizeof(T)); byte += 64) __builtin_prefetch(from + byte, 0, 2);
  }
};

// As `dot_products` and `add_values` below, for any processor and dimension.
template <class T>
inline void dot_products_plain(float (*scores)[SPAN], const T* query, const Blocks<T>& keys, int64_t group, int64_t dim,
                               int begin, int end) {
  for (int t = begin; t < end; ++t)
    for (int64_t g = 0; g < group; ++g) {
      float sum = 0;
      for (int64_t d = 0; d < dim; ++d) sum += to_float(query[g * dim + d]) * to_float(keys.token(t)[d]);
      scores[g][t] = sum;
    }
}

template <class T>
inline void add_values_plain(float* sums, const float (*weights)[SPAN], const Blocks<T>& values, int64_t group,
                             int64_t dim, int first, int last) {
  for (int t = first; t <= last; ++t)
    for (int64_t g = 0; g < group; ++g)
      for (int64_t d = 0; d < dim; ++d) sums[g * dim + d] += weights[g][t] * to_float(values.token(t)[d]);
}

#ifdef SWITCHYARD_AVX2

// scores[g][t] = query head g . key t, for HEADS heads and t in [begin, end), whole blocks.
template <class T, int HEADS>
inline void dot_heads(float (*scores)[SPAN], const T* query, const Blocks<T>& keys, int64_t dim, int begin, int end) {
  alignas(32) float wide[HEADS * MAX_DIM];
  for (int64_t i = 0; i < HEADS * dim; i += 8) _mm256_store_ps(wide + i, widen(query + i));
  for (int t = begin; t < end; t += 4) {
    const T* key_at = keys.token(t);
    for (int i = 0; i < 4; ++i) keys.fetch_ahead(t + i, dim);
    __m256 sums[HEADS][4];
#pragma GCC unroll 3
    for (int g = 0; g < HEADS; ++g)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) sums[g][i] = _mm256_setzero_ps();
    for (int64_t d = 0; d < dim; d += 8)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        __m256 key = widen(key_at + i * keys.stride + d);
#pragma GCC unroll 3
        for (int g = 0; g < HEADS; ++g)
          sums[g][i] = _mm256_fmadd_ps(key, _mm256_load_ps(wide + g * dim + d), sums[g][i]);
      }
#pragma GCC unroll 3
    for (int g = 0; g < HEADS; ++g)
      _mm_storeu_ps(scores[g] + t, sum_each(sums[g][0], sums[g][1], sums[g][2], sums[g][3]));
  }
}

// sums[g] += sum over t of weights[g][t] * value t, for HEADS heads and 32 dimensions at a time.
template <class T, int HEADS>
inline void add_heads(float* sums, const float (*weights)[SPAN], const Blocks<T>& values, int64_t dim, int first,
                      int last) {
  for (int64_t d = 0; d < dim; d += 32) {
    __m256 parts[HEADS][4];
#pragma GCC unroll 3
    for (int g = 0; g < HEADS; ++g)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) parts[g][i] = _mm256_loadu_ps(sums + g * dim + d + i * 8);
    for (int t = first; t <= last; ++t) {
      const T* value_at = values.token(t) + d;
      if (d == 0) values.fetch_ahead(t, dim);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        __m256 value = widen(value_at + i * 8);
#pragma GCC unroll 3
        for (int g = 0; g < HEADS; ++g)
          parts[g][i] = _mm256_fmadd_ps(value, _mm256_broadcast_ss(weights[g] + t), parts[g][i]);
      }
    }
#pragma GCC unroll 3
    for (int g = 0; g < HEADS; ++g)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) _mm256_storeu_ps(sums + g * dim + d + i * 8, parts[g][i]);
  }
}

template <class T>
inline void dot_products(float (*scores)[SPAN], const T* query, const Blocks<T>& keys, int64_t group, int64_t dim,
                         int begin, int end) {
  if (dim % 8) return dot_products_plain(scores, query, keys, group, dim, begin, end);
  for (; group >= 3; group -= 3, scores += 3, query += 3 * dim) dot_heads<T, 3>(scores, query, keys, dim, begin, end);
  if (group == 2) dot_heads<T, 2>(scores, query, keys, dim, begin, end);
  if (group == 1) dot_heads<T, 1>(scores, query, keys, dim, begin, end);
}

template <class T>
inline void add_values(float* sums, const float (*weights)[SPAN], const Blocks<T>& values, int64_t group, int64_t dim,
                       int first, int last) {
  if (dim % 32) return add_values_plain(sums, weights, values, group, dim, first, last);
  for (; group >= 3; group -= 3, sums += 3 * dim, weights += 3)
    add_heads<T, 3>(sums, weights, values, dim, first, last);
  if (group == 2) add_heads<T, 2>(sums, weights, values, dim, first, last);
  if (group == 1) add_heads<T, 1>(sums, weights, values, dim, first, last);
}
#else
template <class T>
inline void dot_products(float (*scores)[SPAN], const T* query, const Blocks<T>& keys, int64_t group, int64_t dim,
                         int begin, int end) {
  dot_products_plain(scores, query, keys, group, dim, begin, end);
}

template <class T>
inline void add_values(float* sums, const float (*weights)[SPAN], const Blocks<T>& values, int64_t group, int64_t dim,
                       int first, int last) {
  add_values_plain(sums, weights, values, group, dim, first, last);
}
#endif

#ifdef SWITCHYARD_BF16_PRODUCTS

// Sums of the 16 lanes of each of 16 vectors, as one vector.
inline __m512 sum_each(const __m512* a) {
  __m512 t[8], u[4];
  for (int i = 0; i < 8; ++i)
    t[i] = _mm512_add_ps(_mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]), _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]));
  for (int i = 0; i < 4; ++i) {
    __m512d x = _mm512_castps_pd(t[2 * i]), y = _mm512_castps_pd(t[2 * i + 1]);
    u[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
  }
  __m512 v0 = _mm512_add_ps(_mm512_shuffle_f32x4(u[0], u[1], 0x88), _mm512_shuffle_f32x4(u[0], u[1], 0xdd));
  __m512 v1 = _mm512_add_ps(_mm512_shuffle_f32x4(u[2], u[3], 0x88), _mm512_shuffle_f32x4(u[2], u[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(v0, v1, 0x88), _mm512_shuffle_f32x4(v0, v1, 0xdd));
}

template <int PAIRS>  // dim / 32
inline void dot_products_fast(float (*scores)[SPAN], const bf16* query, const Blocks<bf16>& keys, int64_t group,
                              int begin, int end) {
  for (int block = begin; block < end; block += BLOCK)
    for (int64_t g = 0; g < group; ++g) {
      __m512bh q[PAIRS];
      for (int i = 0; i < PAIRS; ++i) q[i] = (__m512bh)_mm512_loadu_si512(query + g * PAIRS * 32 + i * 32);
      const bf16* key = keys.token(block);
      __m512 sums[BLOCK];
      for (int t = 0; t < BLOCK; ++t) {
        if (g == 0) keys.fetch_ahead(block + t, PAIRS * 32);
        __m512 sum = _mm512_setzero_ps();
        for (int i = 0; i < PAIRS; ++i)
          sum = _mm512_dpbf16_ps(sum, q[i], (__m512bh)_mm512_loadu_si512(key + t * keys.stride + i * 32));
        sums[t] = sum;
      }
      _mm512_storeu_ps(scores[g] + block, sum_each(sums));
    }
}

// Values of two tokens at a time, side by side as vdpbf16ps wants them; the weights are rounded to bfloat16 for it.
template <int LANES, int HEADS>  // dim / 16, query heads at once
inline void add_values_fast(float* sums, const float (*weights)[SPAN], const Blocks<bf16>& values, int first,
                            int last) {
  alignas(32) bf16 rounded_weights[HEADS][SPAN];
  for (int g = 0; g < HEADS; ++g)
    for (int block = first / BLOCK * BLOCK; block <= last; block += BLOCK)
      _mm256_store_si256((__m256i*)(rounded_weights[g] + block),
                         (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(weights[g] + block)));
  __m512 acc[HEADS][LANES];
  for (int g = 0; g < HEADS; ++g)
    for (int i = 0; i < LANES; ++i) acc[g][i] = _mm512_loadu_ps(sums + (g * LANES + i) * 16);
  for (int t = first & ~1; t <= last; t += 2) {
    // A slot that nobody wrote may hold anything, and 0 * NaN is NaN.
    __mmask32 has_one = t >= first ? ~0u : 0, has_other = t + 1 <= last ? ~0u : 0;
    const bf16* value = values.token(t);
    values.fetch_ahead(t, LANES * 16);
    values.fetch_ahead(t + 1, LANES * 16);
    __m512bh both[LANES];
    for (int i = 0; i < LANES; i += 2) {
      __m512i one = _mm512_maskz_loadu_epi16(has_one, value + i * 16);
      __m512i other = _mm512_maskz_loadu_epi16(has_other, value + values.stride + i * 16);
      __m512i low, high;
      side_by_side(one, other, &low, &high);
      both[i] = (__m512bh)low;
      both[i + 1] = (__m512bh)high;
    }
    for (int g = 0; g < HEADS; ++g) {
      int32_t pair;
      std::memcpy(&pair, rounded_weights[g] + t, 4);
      __m512bh weight = (__m512bh)_mm512_set1_epi32(pair);
      for (int i = 0; i < LANES; ++i) acc[g][i] = _mm512_dpbf16_ps(acc[g][i], both[i], weight);
    }
  }
  for (int g = 0; g < HEADS; ++g)
    for (int i = 0; i < LANES; ++i) _mm512_storeu_ps(sums + (g * LANES + i) * 16, acc[g][i]);
}

template <int LANES, int MOST>
inline void add_values_grouped(float* sums, const float (*weights)[SPAN], const Blocks<bf16>& values, int64_t group,
                               int first, int last) {
  int64_t g = 0;
  for (; g + MOST <= group; g += MOST)
    add_values_fast<LANES, MOST>(sums + g * LANES * 16, weights + g, values, first, last);
  if (MOST >= 3 && g + 3 <= group) {
    add_values_fast<LANES, 3>(sums + g * LANES * 16, weights + g, values, first, last);
    g += 3;
  }
  for (; g < group; ++g) add_values_fast<LANES, 1>(sums + g * LANES * 16, weights + g, values, first, last);
}

template <>
inline void dot_products<bf16>(float (*scores)[SPAN], const bf16* query, const Blocks<bf16>& keys, int64_t group,
                               int64_t dim, int begin, int end) {
  if (dim == 64) return dot_products_fast<2>(scores, query, keys, group, begin, end);
  if (dim == 128) return dot_products_fast<4>(scores, query, keys, group, begin, end);
  dot_products_plain(scores, query, keys, group, dim, begin, end);
}
#endif

template <class T>
inline void accumulate(float* sums, const float (*weights)[SPAN], const Blocks<T>& values, const Shape& shape,
                       int first, int last) {
#ifdef SWITCHYARD_BF16_PRODUCTS
  if constexpr (std::is_same<T, bf16>::value) {
    if (shape.dim == 64) return add_values_grouped<4, 4>(sums, weights, values, shape.group(), first, last);
    if (shape.dim == 128) return add_values_grouped<8, 2>(sums, weights, values, shape.group(), first, last);
  }
#endif
  add_values(sums, weights, values, shape.group(), shape.dim, first, last);
}

// Turn the scores of keys [first, last] into exp(score * scale - maximum) in place, those of other keys of their blocks
// into 0, and return the sum. `maximum` is the larger of theirs and `before`.
#ifdef __AVX512F__
inline float weigh(float* scores, float scale, float before, int first, int last, float* maximum) {
  int begin = first / BLOCK * BLOCK;
  auto seen = [&](int t) {
    int from = first > t ? first - t : 0, to = last - t < BLOCK - 1 ? last - t : BLOCK - 1;
    return __mmask16((0xffffu >> (BLOCK - 1 - to)) & (0xffffu << from));
  };
  __m512 largest = _mm512_set1_ps(before), total = _mm512_setzero_ps();
  for (int t = begin; t <= last; t += BLOCK) {
    __m512 s = _mm512_mul_ps(_mm512_loadu_ps(scores + t), _mm512_set1_ps(scale));
    largest = _mm512_mask_max_ps(largest, seen(t), largest, s);
    _mm512_storeu_ps(scores + t, s);
  }
  *maximum = _mm512_reduce_max_ps(largest);
  __m512 most = _mm512_set1_ps(*maximum);
  for (int t = begin; t <= last; t += BLOCK) {
    __m512 weights = _mm512_maskz_mov_ps(seen(t), exp_each(_mm512_sub_ps(_mm512_loadu_ps(scores + t), most)));
    _mm512_storeu_ps(scores + t, weights);
    total = _mm512_add_ps(total, weights);
  }
  return _mm512_reduce_add_ps(total);
}
#elif defined(SWITCHYARD_AVX2)
inline float weigh(float* scores, float scale, float before, int first, int last, float* maximum) {
  return weigh_scores(scores, scale, before, first / BLOCK * BLOCK, last / BLOCK * BLOCK + BLOCK, first, last, maximum);
}
#else
inline float weigh(float* scores, float scale, float before, int first, int last, float* maximum) {
  float most = before, total = 0;
  for (int t = first; t <= last; ++t) {
    scores[t] *= scale;
    most = scores[t] > most ? scores[t] : most;
  }
  for (int t = first; t <= last; ++t) total += scores[t] = fast_exp(scores[t] - most);
  *maximum = most;
  return total;
}
#endif

// A run of blocks for one row and KV head: online softmax. `sums` holds dim weighted sums per query head. Keys [first,
// last] of the run are seen.
template <class T>
inline void attend_run(float* maxima, float* totals, float* sums, const T* query, const Blocks<T>& keys,
                       const Blocks<T>& values, const Shape& shape, float scale, int first, int last) {
  alignas(64) float scores[64][SPAN];
  int64_t group = shape.group();
  dot_products<T>(scores, query, keys, group, shape.dim, first / BLOCK * BLOCK, last / BLOCK * BLOCK + BLOCK);
  for (int64_t g = 0; g < group; ++g) {
    float maximum, total = weigh(scores[g], scale, maxima[g], first, last, &maximum);
    if (maximum > maxima[g]) {
      float correction = std::isinf(maxima[g]) ? 0.0f : fast_exp(maxima[g] - maximum);
      totals[g] *= correction;
      float* to = sums + g * shape.dim;
      for (int64_t d = 0; d < shape.dim; ++d) to[d] *= correction;
      maxima[g] = maximum;
    }
    totals[g] += total;
  }
  accumulate<T>(sums, scores, values, shape, first, last);
}

struct Plan {
  const int32_t *table_of_item, *first_block, *last_block;  // [items]; blocks [first, last) of that request's table
  const int32_t *rows_of_item;                              // [items + 1] into `rows`
  const int32_t *rows;                                      // [partials] query row of each pair of item and row
  const int32_t *partials_of_row;                           // [tokens + 1] into `partials`
  const int32_t *partials;                                  // [partials]
  const int32_t *positions;                                 // [tokens]
  const int32_t *tables;                                    // [requests, max_blocks]
  int64_t items, tokens, max_blocks;

  // The number of block `i` of the run after the one at `block`, in this item or the next.
  int64_t block_after(int64_t item, int32_t block, int i) const {
    int32_t next = block + RUN_BLOCKS;
    if (next >= last_block[item]) {
      item = std::min(item + 1, items - 1);
      next = first_block[item];
    }
    return tables[table_of_item[item] * max_blocks + std::min(next + i, last_block[item] - 1)];
  }
};

template <class T>
void run(T* out, const T* query, const T* keys, const T* values, const Plan& plan, const Shape& shape, float scale,
         int64_t window) {
  static thread_local std::vector<float> scratch;
  int64_t partials = plan.rows_of_item[plan.items], heads = shape.heads, dim = shape.dim, group = shape.group();
  scratch.resize(partials * heads * (dim + 2));
  float* sums = scratch.data();                    // [partials, heads, dim]
  float* maxima = sums + partials * heads * dim;   // [partials, heads]
  float* totals = maxima + partials * heads;       // [partials, heads]
  int threads = plan.items > 1 ? omp_get_max_threads() : 1;
  // Neighbours to the same thread, which fetches the next item's blocks ahead, in parts that still even out.
  int64_t part = std::max<int64_t>(plan.items / (4 * threads), 1);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, part)
    for (int64_t item = 0; item < plan.items; ++item) {
      const int32_t* table = plan.tables + int64_t(plan.table_of_item[item]) * plan.max_blocks;
      int32_t begin = plan.rows_of_item[item], end = plan.rows_of_item[item + 1];
      for (int64_t i = int64_t(begin) * heads; i < int64_t(end) * heads; ++i) {
        maxima[i] = -std::numeric_limits<float>::infinity();
        totals[i] = 0;
      }
      std::memset(sums + int64_t(begin) * heads * dim, 0, sizeof(float) * (end - begin) * heads * dim);
      // All heads of a run, then the next run: keys and values are then read in the order they lie in memory.
      for (int32_t block = plan.first_block[item]; block < plan.last_block[item]; block += RUN_BLOCKS)
        for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
          int blocks = std::min(RUN_BLOCKS, plan.last_block[item] - block);
          Blocks<T> key_blocks, value_blocks;
          key_blocks.stride = value_blocks.stride = shape.token_stride();
          auto place = [&](int32_t number) { return number * BLOCK * shape.token_stride() + kv_head * dim; };
          for (int i = 0; i < blocks; ++i) {
            int64_t here = place(table[block + i]), next = place(plan.block_after(item, block, i));
            key_blocks.at[i] = keys + here;
            value_blocks.at[i] = values + here;
            key_blocks.ahead[i] = keys + next;
            value_blocks.ahead[i] = values + next;
          }
          for (int32_t pair = begin; pair < end; ++pair) {
            int64_t row = plan.rows[pair], position = plan.positions[row];
            int64_t start = int64_t(block) * BLOCK, size = int64_t(blocks) * BLOCK;
            int64_t oldest = window > 0 ? position - window + 1 : 0;
            int64_t first = std::max<int64_t>(oldest - start, 0), last = std::min(position - start, size - 1);
            if (first > last) continue;
            int64_t head = int64_t(pair) * heads + kv_head * group;
            attend_run<T>(maxima + head, totals + head, sums + head * dim,
                          query + (row * heads + kv_head * group) * dim, key_blocks, value_blocks, shape, scale,
                          int(first), int(last));
          }
        }
    }
#pragma omp for schedule(static)
    for (int64_t place = 0; place < plan.tokens * heads; ++place) {
      int64_t row = place / heads, head = place % heads;
      float merged[256] = {};
      float most = -std::numeric_limits<float>::infinity(), total = 0;
      for (int32_t i = plan.partials_of_row[row]; i < plan.partials_of_row[row + 1]; ++i) {
        float maximum = maxima[int64_t(plan.partials[i]) * heads + head];
        most = maximum > most ? maximum : most;
      }
      for (int32_t i = plan.partials_of_row[row]; i < plan.partials_of_row[row + 1]; ++i) {
        int64_t partial = int64_t(plan.partials[i]) * heads + head;
        if (totals[partial] == 0) continue;  // nothing of it lies in the window
        float weight = fast_exp(maxima[partial] - most);
        total += weight * totals[partial];
        for (int64_t d = 0; d < dim; ++d) merged[d] += weight * sums[partial * dim + d];
      }
      float inverse = 1.0f / total;
      for (int64_t d = 0; d < dim; ++d) out[place * dim + d] = from_float<T>(merged[d] * inverse);
    }
  }
}

}  // namespace

extern "C" void switchyard_paged_attention(void* out, const void* query, const void* keys, const void* values,
                                           const void* table_of_item, const void* first_block, const void* last_block,
                                           const void* rows_of_item, const void* rows, const void* partials_of_row,
                                           const void* partials, const void* positions, const void* tables,
                                           int64_t items, int64_t tokens, int64_t max_blocks, int64_t heads,
                                           int64_t kv_heads, int64_t dim, float scale, int64_t window, int64_t dtype) {
  Plan plan{(const int32_t*)table_of_item, (const int32_t*)first_block, (const int32_t*)last_block,
            (const int32_t*)rows_of_item,  (const int32_t*)rows,        (const int32_t*)partials_of_row,
            (const int32_t*)partials,      (const int32_t*)positions,   (const int32_t*)tables,
            items,                         tokens,                      max_blocks};
  Shape shape{heads, kv_heads, dim};
#define RUN(T) run<T>((T*)out, (const T*)query, (const T*)keys, (const T*)values, plan, shape, scale, window)
  if (dtype == F32) RUN(float);
  else if (dtype == BF16) RUN(bf16);
  else RUN(f16);
#undef RUN
}
