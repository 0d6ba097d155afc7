// Inner products of queries with many rows, both in 16-bit codes, and of queries with chosen float32 rows.
//
// Products of codes are summed exactly in 32-bit integers: two of them in one instruction, where float32 takes one.
#include "avx2.h"

#include <algorithm>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));

// A tile of queries stays in the first cache while a block of rows passes it.
constexpr int BLOCK = 64, ROWS = 4, TILE_QUERIES = 16;
typedef float Scores __attribute__((vector_size(ROWS * sizeof(float))));
typedef int32_t Sums __attribute__((vector_size(ROWS * sizeof(int32_t))));
// A row is asked from memory while the one so many before it is read.
constexpr int AHEAD = 16;

inline Lanes load(const float* from) {
  Lanes lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

inline float sum_lanes(Lanes lanes) {
  float sum = 0;
  for (int i = 0; i < LANES; ++i) sum += lanes[i];
  return sum;
}

#ifdef SWITCHYARD_AVX2
// GCC reads what several products share from memory for each of them, and waits for the loads.
inline __m256i in_register(const int16_t* from) {
  __m256i codes = _mm256_loadu_si256((const __m256i*)from);
  asm("" : "+x"(codes));
  return codes;
}
#endif

// out[q][r] for ROWS rows and `Q` queries.
template <int Q>
inline void products(Sums* out, const int16_t* const* rows, const int16_t* queries, int64_t dim, bool is_first) {
  int64_t i = 0;
#ifdef SWITCHYARD_AVX2
  __m256i sums[Q][ROWS];
#pragma GCC unroll 2
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) sums[q][r] = _mm256_setzero_si256();
  for (; i + 16 <= dim; i += 16) {
    // The processor guesses long runs by itself, and a row is none.
    if (is_first && i % 32 == 0)
      for (int r = 0; r < ROWS; ++r) __builtin_prefetch(rows[r] + AHEAD * dim + i);
    __m256i asked[Q];
#pragma GCC unroll 2
    for (int q = 0; q < Q; ++q) asked[q] = in_register(queries + q * dim + i);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      __m256i codes = in_register(rows[r] + i);
#pragma GCC unroll 2
      for (int q = 0; q < Q; ++q) sums[q][r] = _mm256_add_epi32(sums[q][r], _mm256_madd_epi16(codes, asked[q]));
    }
  }
  static_assert(ROWS == 4, "as many as are added up at once");
#pragma GCC unroll 2
  for (int q = 0; q < Q; ++q) {
    __m256i halves = _mm256_hadd_epi32(_mm256_hadd_epi32(sums[q][0], sums[q][1]),
                                       _mm256_hadd_epi32(sums[q][2], sums[q][3]));
    out[q] = (Sums)_mm_add_epi32(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  }
#else
  (void)is_first;
  for (int q = 0; q < Q; ++q) out[q] = Sums{};
#endif
  if (i == dim) return;
  for (int q = 0; q < Q; ++q)
    for (int r = 0; r < ROWS; ++r) {
      int32_t sum = 0;
      for (int64_t j = i; j < dim; ++j) sum += int32_t(rows[r][j]) * queries[q * dim + j];
      out[q][r] += sum;
    }
}

}  // namespace

// codes[num_rows][dim] and scales[num_rows] of float32 rows: see the reference.
extern "C" void switchyard_encode_rows(int16_t* codes, float* scales, const float* vectors, float max_norm,
                                       float max_code, int64_t num_rows, int64_t dim) {
#pragma omp parallel for num_threads(threads_for(num_rows * dim)) schedule(static)
  for (int64_t n = 0; n < num_rows; ++n) {
    const float* row = vectors + n * dim;
    double squares = 0, largest = 0;
    for (int64_t i = 0; i < dim; ++i) {
      squares += double(row[i]) * row[i];
      largest = std::max(largest, std::fabs(double(row[i])));
    }
    double step = std::max(std::sqrt(squares) / max_norm, largest / max_code);
    for (int64_t i = 0; i < dim; ++i) codes[n * dim + i] = step > 0 ? int16_t(std::nearbyint(row[i] / step)) : 0;
    scales[n] = float(step);
  }
}

// scores[num_queries][blocks][BLOCK], beyond the last row -inf, and the largest of each block.
extern "C" void switchyard_row_scan(float* scores, float* maxima, const int16_t* rows, const float* row_scales,
                                    const int16_t* queries, const float* query_scales, const uint8_t* allowed,
                                    int64_t num_rows, int64_t num_queries, int64_t dim) {
  int64_t blocks = (num_rows + BLOCK - 1) / BLOCK;
  const Scores lowest = Scores{} - std::numeric_limits<float>::infinity();
#pragma omp parallel for num_threads(threads_for(num_rows * num_queries * dim)) schedule(static)
  for (int64_t block = 0; block < blocks; ++block) {
    int64_t first = block * BLOCK;
    for (int64_t tile = 0; tile < num_queries; tile += TILE_QUERIES) {
      int64_t end = tile + TILE_QUERIES < num_queries ? tile + TILE_QUERIES : num_queries;
      // Scores of one row lie a power of two apart in memory, where they would drive each other out of the cache.
      Scores near[TILE_QUERIES][BLOCK / ROWS];
      for (int64_t row = first; row < first + BLOCK; row += ROWS) {
        const int16_t* from[ROWS];
        Scores scale;
        Sums is_wanted;
        bool is_any_wanted = false;
        for (int r = 0; r < ROWS; ++r) {
          int64_t mine = row + r < num_rows ? row + r : num_rows - 1;
          from[r] = rows + mine * dim;
          scale[r] = row_scales[mine];
          bool is_mine = row + r < num_rows && (allowed == nullptr || allowed[mine]);
          is_wanted[r] = is_mine ? -1 : 0;
          is_any_wanted |= is_mine;
        }
        for (int64_t query = tile; query < end; query += 2) {
          int many = query + 1 < end ? 2 : 1;
          Sums sums[2] = {};
          if (is_any_wanted && many == 2) products<2>(sums, from, queries + query * dim, dim, query == 0);
          else if (is_any_wanted) products<1>(sums, from, queries + query * dim, dim, query == 0);
          for (int q = 0; q < many; ++q) {
            // In this order no product is smaller than float32 can hold while the score is not.
            Scores mine = __builtin_convertvector(sums[q], Scores) * scale * query_scales[query + q];
            near[query + q - tile][(row - first) / ROWS] = is_wanted ? mine : lowest;
          }
        }
      }
      for (int64_t query = tile; query < end; ++query) {
        const Scores* mine = near[query - tile];
        std::memcpy(scores + (query * blocks + block) * BLOCK, mine, sizeof(near[0]));
        Scores most = mine[0];
        for (int i = 1; i < BLOCK / ROWS; ++i) most = mine[i] > most ? mine[i] : most;
        maxima[query * blocks + block] = std::max(std::max(most[0], most[1]), std::max(most[2], most[3]));
      }
    }
  }
}

// The same sum wherever a row stands, so that equal rows get equal scores.
extern "C" void switchyard_row_dots(float* out, const float* rows, const int64_t* indices, const float* queries,
                                    const int64_t* owners, int64_t count, int64_t dim) {
#pragma omp parallel for num_threads(threads_for(count * dim)) schedule(static)
  for (int64_t n = 0; n < count; ++n) {
    const float *row = rows + indices[n] * dim, *query = queries + owners[n] * dim;
    Lanes sums = {};
    int64_t i = 0;
    for (; i + LANES <= dim; i += LANES) sums += load(row + i) * load(query + i);
    float sum = sum_lanes(sums);
    for (; i < dim; ++i) sum += row[i] * query[i];
    out[n] = sum;
  }
}
