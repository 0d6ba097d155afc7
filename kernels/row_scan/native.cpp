// Inner products of float32 queries with many float16 rows, summed in float32, and of one query with chosen float32 rows.
//
// Four rows are widened once into the first cache and multiplied by three queries at a time: 12 sums in registers.
#include "common.h"

#include <algorithm>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

constexpr int BLOCK = 64, ROWS = 4, QUERIES = 3, MAX_DIM = 4096;

inline Lanes load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

inline float sum_of(Lanes lanes) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += lanes[i];
  return sum;
}

inline void widen(float* to, const f16* from, int64_t dim) {
  int64_t i = 0;
#ifdef __F16C__
  for (; i + 8 <= dim; i += 8) _mm256_storeu_ps(to + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(from + i))));
#endif
  for (; i < dim; ++i) to[i] = to_float(from[i]);
}

// out[q * stride + r] for ROWS rows and `Q` queries.
template <int Q>
inline void products(float* out, int64_t stride, const float* rows, const float* queries, int64_t dim) {
  Lanes sums[Q][ROWS] = {};
  int64_t i = 0;
  for (; i + LANES <= dim; i += LANES) {
    Lanes x[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) x[r] = load(rows + r * dim + i);
#pragma GCC unroll 3
    for (int q = 0; q < Q; ++q) {
      Lanes y = load(queries + q * dim + i);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; ++r) sums[q][r] += x[r] * y;
    }
  }
#pragma GCC unroll 3
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      float sum = sum_of(sums[q][r]);
      for (int64_t j = i; j < dim; ++j) sum += rows[r * dim + j] * queries[q * dim + j];
      out[q * stride + r] = sum;
    }
}

}  // namespace

extern "C" void switchyard_row_scan(float* scores, float* maxima, const void* rows, const float* queries,
                                    const uint8_t* allowed, int64_t num_rows, int64_t num_queries, int64_t dim) {
  int64_t blocks = (num_rows + BLOCK - 1) / BLOCK;
  const float lowest = -std::numeric_limits<float>::infinity();
#pragma omp parallel for num_threads(threads_for(num_rows * num_queries * dim)) schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    alignas(64) float wide[ROWS * MAX_DIM];
    int64_t first = block * BLOCK, last = first + BLOCK < num_rows ? first + BLOCK : num_rows;
    for (int64_t row = first; row < last; row += ROWS) {
      int count = int(last - row < ROWS ? last - row : ROWS);
      bool is_wanted = allowed == nullptr;
      for (int r = 0; r < count && !is_wanted; ++r) is_wanted = allowed[row + r];
      float tile[QUERIES * ROWS];
      if (is_wanted)
        for (int r = 0; r < ROWS; ++r)  // what is left of a last tile repeats its last row
          widen(wide + r * dim, (const f16*)rows + (row + (r < count ? r : count - 1)) * dim, dim);
      for (int64_t query = 0; query < num_queries; query += QUERIES) {
        int64_t many = num_queries - query < QUERIES ? num_queries - query : QUERIES;
        const float* from = queries + query * dim;
        if (!is_wanted) std::fill(tile, tile + QUERIES * ROWS, lowest);
        else if (many == 3) products<3>(tile, ROWS, wide, from, dim);
        else if (many == 2) products<2>(tile, ROWS, wide, from, dim);
        else products<1>(tile, ROWS, wide, from, dim);
        for (int64_t q = 0; q < many; ++q)
          for (int r = 0; r < count; ++r)
            scores[(query + q) * num_rows + row + r] =
                allowed == nullptr || allowed[row + r] ? tile[q * ROWS + r] : lowest;
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
    float sum = sum_of(sums);
    for (; i < dim; ++i) sum += row[i] * query[i];
    out[n] = sum;
  }
}
