// The highest inner products of queries with rows: codes of 8 bits tell which rows may have them, float32 what they are.
//
// A code is so near to what it stands for that the product of two vectors is within a margin of that of their codes
// (Cauchy and Schwarz); rows whose score is lower than the k-th highest by more than the margin are not among the
// highest. Codes of rows have no sign, as the instructions want one side; they lie in panels [dim / 4][ROWS][4].
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#ifdef __AVX2__
#include <immintrin.h>

namespace {

// Sums are added to in place, or GCC runs out of registers and moves each once more.
#ifdef __AVX512VNNI__
constexpr int LANES = 16, VECTORS = 4, TILE = 6;  // 24 sums, 4 vectors of a panel and one of a query: 29 of 32 registers
constexpr int MAX_CODE = 127;
typedef __m512i Vector;
inline Vector load(const void* from) { return _mm512_loadu_si512(from); }
inline void store(void* to, Vector v) { _mm512_storeu_si512(to, v); }
inline Vector each(int32_t four) { return _mm512_set1_epi32(four); }
inline void add_products(Vector& sum, Vector rows, Vector query) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(rows), "v"(query));
}
#else
constexpr int LANES = 8, VECTORS = 2, TILE = 4;  // 8 sums, 2 vectors of a panel, a query, ones and a product: 13 of 16
// Two products of 127 and 127 fit the 16 bits in which they are added; of 255 they would not.
constexpr int MAX_CODE = 63;
typedef __m256i Vector;
inline Vector load(const void* from) { return _mm256_loadu_si256((const __m256i*)from); }
inline void store(void* to, Vector v) { _mm256_storeu_si256((__m256i*)to, v); }
inline Vector each(int32_t four) { return _mm256_set1_epi32(four); }
inline void add_products(Vector& sum, Vector rows, Vector query) {
  Vector products = _mm256_madd_epi16(_mm256_maddubs_epi16(rows, query), _mm256_set1_epi16(1));
  asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
}
#endif
constexpr int ROWS = LANES * VECTORS, BLOCK = 64, MAX_QUERY_CODE = 127;
// Queries that pass over the rows together: their scores stay in the second cache.
constexpr int64_t CHUNK = 32;
// Of the lengths of both sides: what summing up in float32 may err by.
constexpr float ROUNDING = 1e-5f;

// Queries in codes [num][4 * groups], and of each what a step is worth, MAX_CODE + 1 times its sum, and how far the
// product with a row may be from that of the codes; a negative margin for a query that is not finite.
struct Queries {
  std::vector<int8_t> codes;
  std::vector<float> steps, margins;
  std::vector<int32_t> offsets;
};

void encode(Queries& to, const float* queries, int64_t num, int64_t dim, int64_t groups, float row_error,
            float row_length) {
  to.codes.assign(num * groups * 4, 0);
  to.steps.resize(num), to.margins.resize(num), to.offsets.resize(num);
  for (int64_t q = 0; q < num; ++q) {
    const float* query = queries + q * dim;
    float largest = 0;
    bool is_finite = true;
    for (int64_t i = 0; i < dim; ++i) {
      largest = std::max(largest, std::fabs(query[i]));
      is_finite &= std::isfinite(query[i]);
    }
    float step = largest / MAX_QUERY_CODE, inverse = largest > 1e-30f && is_finite ? 1 / step : 0;
    int8_t* codes = to.codes.data() + q * groups * 4;
    double length = 0, error = 0, coded = 0;
    int32_t sum = 0;
    for (int64_t i = 0; i < dim; ++i) {
      int32_t code = int32_t(std::nearbyint(query[i] * inverse));
      double held = double(code) * step, lost = query[i] - held;
      codes[i] = int8_t(code);
      sum += code;
      length += double(query[i]) * query[i], error += lost * lost, coded += held * held;
    }
    to.steps[q] = step;
    to.offsets[q] = (MAX_CODE + 1) * sum;
    to.margins[q] = is_finite ? float(std::sqrt(error) * row_length + std::sqrt(coded) * row_error +
                                      ROUNDING * std::sqrt(length) * row_length)
                              : -1.0f;
  }
}

// scores[q][ROWS] of one panel, `stride` apart, for `Q` queries from `first` on.
template <int Q>
void score(float* scores, int64_t stride, const uint8_t* panel, const float* row_steps, const Queries& queries,
           int64_t first, int64_t groups) {
  // Unrolled in full wherever they are touched, or GCC keeps them in memory.
  Vector sums[Q][VECTORS];
#pragma GCC unroll 6
  for (int q = 0; q < Q; ++q)
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sums[q][v] = each(-queries.offsets[first + q]);
  const int8_t* codes = queries.codes.data() + first * groups * 4;
  for (int64_t group = 0; group < groups; ++group, panel += ROWS * 4) {
    Vector rows[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) rows[v] = load(panel + v * LANES * 4);
#pragma GCC unroll 6
    for (int q = 0; q < Q; ++q) {
      int32_t four;
      std::memcpy(&four, codes + (q * groups + group) * 4, 4);
      Vector query = each(four);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) add_products(sums[q][v], rows[v], query);
    }
  }
#pragma GCC unroll 6
  for (int q = 0; q < Q; ++q) {
    int32_t whole[ROWS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) store(whole + v * LANES, sums[q][v]);
    float step = queries.steps[first + q];
    for (int row = 0; row < ROWS; ++row) scores[q * stride + row] = float(whole[row]) * (row_steps[row] * step);
  }
}

typedef float Lanes __attribute__((vector_size(64)));
typedef float Half __attribute__((vector_size(32)));

float largest_of_block(const float* scores) {
  Lanes most, other;
  std::memcpy(&most, scores, sizeof(most));
  for (int i = 16; i < BLOCK; i += 16) {
    std::memcpy(&other, scores + i, sizeof(other));
    most = other > most ? other : most;
  }
  float largest = most[0];
  for (int lane = 1; lane < 16; ++lane) largest = std::max(largest, most[lane]);
  return largest;
}

float product(const float* a, const float* b, int64_t dim) {
  // A sum waits for the one before it: four take turns.
  Lanes sums[4] = {};
  auto add = [&](Lanes& sum, int64_t i) {
    Lanes x, y;
    std::memcpy(&x, a + i, sizeof(x)), std::memcpy(&y, b + i, sizeof(y));
    sum += x * y;
  };
  int64_t i = 0;
  for (; i + 64 <= dim; i += 64)
#pragma GCC unroll 4
    for (int set = 0; set < 4; ++set) add(sums[set], i + 16 * set);
  for (; i + 16 <= dim; i += 16) add(sums[0], i);
  Lanes whole = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  Half half[2];
  std::memcpy(half, &whole, sizeof(whole));
  half[0] += half[1];
  float sum = ((half[0][0] + half[0][1]) + (half[0][2] + half[0][3])) +
              ((half[0][4] + half[0][5]) + (half[0][6] + half[0][7]));
  for (; i < dim; ++i) sum += a[i] * b[i];
  return sum;
}

// out[k], descending, for one query with its scores of all rows in `blocks` blocks.
void select(float* out, int64_t k, const float* scores, std::vector<float>& maxima, int64_t blocks, float margin,
            const float* query, const float* rows, int64_t num_rows, int64_t dim) {
  maxima.resize(2 * blocks);
  for (int64_t block = 0; block < blocks; ++block)
    maxima[block] = maxima[blocks + block] = largest_of_block(scores + block * BLOCK);
  // Each maximum is of a row of its own, so the k-th highest row scores no less than the k-th highest maximum.
  float least = -std::numeric_limits<float>::infinity();
  std::fill(out, out + k, least);
  if (blocks >= k) {
    auto ordered = maxima.begin() + blocks;
    std::nth_element(ordered, ordered + (k - 1), maxima.end(), std::greater<float>());
    least = ordered[k - 1] - margin;
  }
  for (int64_t block = 0; block < blocks; ++block) {
    if (maxima[block] + margin < least) continue;
    int64_t end = std::min((block + 1) * BLOCK, num_rows);
    for (int64_t row = block * BLOCK; row < end; ++row) {
      if (scores[row] + margin < least) continue;
      float exact = product(query, rows + row * dim, dim);
      if (exact <= out[k - 1]) continue;
      int64_t place = k - 1;
      for (; place > 0 && out[place - 1] < exact; --place) out[place] = out[place - 1];
      out[place] = exact;
      least = std::max(least, out[k - 1]);
    }
  }
}

}  // namespace

// Rows of a panel.
extern "C" int64_t switchyard_near_panel() { return ROWS; }

// Largest code of a row; what is added to it makes it a number without sign.
extern "C" int64_t switchyard_near_code() { return MAX_CODE; }

// out[num_queries][k], k at most num_rows; row_error and row_length bound what rows lose in codes, and their lengths.
extern "C" void switchyard_near_rows(float* out, const float* queries, const uint8_t* panels, const float* row_steps,
                                     const float* rows, int64_t num_queries, int64_t num_rows, int64_t dim, int64_t k,
                                     float row_error, float row_length) {
  static thread_local Queries coded;
  static thread_local std::vector<float> scores, maxima;
  int64_t groups = (dim + 3) / 4, num_panels = (num_rows + ROWS - 1) / ROWS, blocks = (num_rows + BLOCK - 1) / BLOCK;
  int64_t stride = blocks * BLOCK;
  for (int64_t first = 0; first < num_queries; first += CHUNK) {
    int64_t num = std::min(CHUNK, num_queries - first);
    const float* mine = queries + first * dim;
    encode(coded, mine, num, dim, groups, row_error, row_length);
    if (int64_t(scores.size()) < num * stride) scores.resize(num * stride);
    for (int64_t panel = 0; panel < num_panels; ++panel)
      for (int64_t q = 0; q < num; q += TILE) {
        auto* tile = num - q >= TILE ? score<TILE> : num - q >= 4 ? score<4> : num - q >= 2 ? score<2> : score<1>;
        int64_t done = num - q >= TILE ? TILE : num - q >= 4 ? 4 : num - q >= 2 ? 2 : 1;
        tile(scores.data() + q * stride + panel * ROWS, stride, panels + panel * groups * ROWS * 4,
             row_steps + panel * ROWS, coded, q, groups);
        q += done - TILE;
      }
    for (int64_t q = 0; q < num; ++q) {
      float* to = out + (first + q) * k;
      if (coded.margins[q] < 0) {
        std::fill(to, to + k, std::numeric_limits<float>::quiet_NaN());
        continue;
      }
      float* all = scores.data() + q * stride;
      std::fill(all + num_rows, all + stride, -std::numeric_limits<float>::infinity());
      select(to, k, all, maxima, blocks, coded.margins[q], mine + q * dim, rows, num_rows, dim);
    }
  }
}
#else
extern "C" int64_t switchyard_near_panel() { return 0; }
extern "C" int64_t switchyard_near_code() { return 0; }
extern "C" void switchyard_near_rows(float*, const float*, const uint8_t*, const float*, const float*, int64_t, int64_t,
                                     int64_t, int64_t, float, float) {}
#endif
