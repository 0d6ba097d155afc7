// Inner products of float32 queries with many float16 rows, summed in float32, and of one query with chosen float32 rows.
//
// Eight rows are widened once into the first cache. Three queries at a time pass over four of them: 12 sums in registers.
#include "avx2.h"

#include <algorithm>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

constexpr int BLOCK = 64, WIDE_ROWS = 8, ROWS = 4, QUERIES = 3, MAX_DIM = 4096;
// A row is asked from memory while the one so many before it is widened.
constexpr int AHEAD = 8;

inline Lanes load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

// Without it GCC reads what several products share from memory for each of them, and waits for the loads.
inline void keep_in_register(Lanes& lanes) {
#ifdef __AVX__
  asm("" : "+v"(lanes));
#else
  (void)lanes;
#endif
}

inline float sum_lanes(Lanes lanes) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += lanes[i];
  return sum;
}

inline void widen_row(float* to, const f16* from, int64_t dim) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= dim; i += 8) {
    // The processor guesses long runs by itself, and a row is none.
    if (i % 32 == 0) __builtin_prefetch(from + AHEAD * dim + i);
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
  }
#endif
  for (; i < dim; ++i) to[i] = to_float(from[i]);
}

// out[r] of the sums of ROWS rows.
inline void sum_rows(float* out, const Lanes* sums) {
#if defined(SWITCHYARD_AVX2) && !defined(__AVX512F__)
  static_assert(ROWS == 4, "as many as sum_each takes");
  _mm_storeu_ps(out, sum_each((__m256)sums[0], (__m256)sums[1], (__m256)sums[2], (__m256)sums[3]));
#else
  for (int r = 0; r < ROWS; ++r) out[r] = sum_lanes(sums[r]);
#endif
}

// out[q * ROWS + r] for ROWS rows and `Q` queries.
template <int Q>
inline void products(float* out, const float* rows, const float* queries, int64_t dim) {
  Lanes sums[Q][ROWS] = {};
  int64_t i = 0;
  for (; i + LANES <= dim; i += LANES) {
    Lanes asked[Q];
#pragma GCC unroll 3
    for (int q = 0; q < Q; ++q) {
      asked[q] = load(queries + q * dim + i);
      keep_in_register(asked[q]);
    }
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      Lanes numbers = load(rows + r * dim + i);
#pragma GCC unroll 3
      for (int q = 0; q < Q; ++q) sums[q][r] += numbers * asked[q];
    }
  }
#pragma GCC unroll 3
  for (int q = 0; q < Q; ++q) {
    sum_rows(out + q * ROWS, sums[q]);
    for (int64_t j = i; j < dim; ++j)
      for (int r = 0; r < ROWS; ++r) out[q * ROWS + r] += rows[r * dim + j] * queries[q * dim + j];
  }
}

}  // namespace

extern "C" void switchyard_row_scan(float* scores, float* maxima, const void* rows, const float* queries,
                                    const uint8_t* allowed, int64_t num_rows, int64_t num_queries, int64_t dim) {
  int64_t blocks = (num_rows + BLOCK - 1) / BLOCK;
  const float lowest = -std::numeric_limits<float>::infinity();
#pragma omp parallel for num_threads(threads_for(num_rows * num_queries * dim)) schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    alignas(64) float wide[WIDE_ROWS * MAX_DIM];
    int64_t first = block * BLOCK, last = first + BLOCK < num_rows ? first + BLOCK : num_rows;
    for (int64_t row = first; row < last; row += WIDE_ROWS) {
      int count = int(last - row < WIDE_ROWS ? last - row : WIDE_ROWS);
      bool is_wanted = allowed == nullptr;
      for (int r = 0; r < count && !is_wanted; ++r) is_wanted = allowed[row + r];
      if (!is_wanted) {
        for (int64_t query = 0; query < num_queries; ++query)
          std::fill_n(scores + query * num_rows + row, count, lowest);
        continue;
      }
      for (int r = 0; r < WIDE_ROWS; ++r)  // what is left of a last tile repeats its last row
        widen_row(wide + r * dim, (const f16*)rows + (row + (r < count ? r : count - 1)) * dim, dim);
      for (int64_t query = 0; query < num_queries; query += QUERIES) {
        int64_t many = num_queries - query < QUERIES ? num_queries - query : QUERIES;
        const float* from = queries + query * dim;
        for (int part = 0; part < count; part += ROWS) {
          float tile[QUERIES * ROWS];
          if (many == 3) products<3>(tile, wide + part * dim, from, dim);
          else if (many == 2) products<2>(tile, wide + part * dim, from, dim);
          else products<1>(tile, wide + part * dim, from, dim);
          for (int64_t q = 0; q < many; ++q)
            for (int r = 0; r < ROWS && part + r < count; ++r)
              scores[(query + q) * num_rows + row + part + r] =
                  allowed == nullptr || allowed[row + part + r] ? tile[q * ROWS + r] : lowest;
        }
      }
    }
    for (int64_t query = 0; query < num_queries; ++query) {
      const float* mine = scores + query * num_rows;
      float most = lowest;
      for (int64_t row = first; row < last; ++row) most = mine[row] > most ? mine[row] : most;
      maxima[query * blocks + block] = most;
    }
  }
}

// The same sum wherever a row stands, so that equal rows get equal scores.
extern "C" void switchyard_row_dots(float* out, const float* rows, const int64_t* indices, const float* query,
                                    int64_t count, int64_t dim) {
  for (int64_t n = 0; n < count; ++n) {
    const float* row = rows + indices[n] * dim;
    Lanes sums = {};
    int64_t i = 0;
    for (; i + LANES <= dim; i += LANES) sums += load(row + i) * load(query + i);
    float sum = sum_lanes(sums);
    for (; i < dim; ++i) sum += row[i] * query[i];
    out[n] = sum;
  }
}
