// Vectors of 8 floats, and products of bfloat16 for processors with AVX2 and without AVX512-bf16.
#pragma once

#include "avx512.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define SWITCHYARD_AVX2 1

// 8 numbers as float32.
inline __m256 widen(const float* from) { return _mm256_loadu_ps(from); }
inline __m256 widen(const f16* from) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from)); }
inline __m256 widen(const bf16* from) {
  __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

// Sums of the 8 lanes of each of 4 vectors.
inline __m128 sum_each(__m256 a, __m256 b, __m256 c, __m256 d) {
  __m256 halves = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
}

inline float sum_of(__m256 x) {
  __m256 zero = _mm256_setzero_ps();
  return _mm_cvtss_f32(sum_each(x, zero, zero, zero));
}

// exp(x) of each lane: as fast_exp, for x of 88 at most.
inline __m256 exp_each(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-87.0f), x);  // of a NaN and a number, max gives the second: a NaN stays one
  __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)), 0x08);
  __m256 f = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  f = _mm256_fmadd_ps(n, _mm256_set1_ps(2.12194440e-4f), f);
  __m256 p = _mm256_set1_ps(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(c));
  p = _mm256_add_ps(_mm256_fmadd_ps(_mm256_mul_ps(p, f), f, f), _mm256_set1_ps(1.0f));
  __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

inline float largest_of(__m256 x) {
  __m128 most = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  most = _mm_max_ps(most, _mm_movehl_ps(most, most));
  return _mm_cvtss_f32(_mm_max_ss(most, _mm_movehdup_ps(most)));
}

// Turn the scores of keys [first, last] into exp(score * scale - maximum) in place, those of the others in [begin, end),
// which are whole vectors, into 0, and return the sum. `maximum` is the larger of theirs and `before`.
inline float weigh_scores(float* scores, float scale, float before, int begin, int end, int first, int last,
                          float* maximum) {
  const __m256 lowest = _mm256_set1_ps(-std::numeric_limits<float>::infinity());
  auto seen = [&](int t) {
    __m256i place = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(t));
    return _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_cmpgt_epi32(place, _mm256_set1_epi32(last)),
                                                   _mm256_cmpgt_epi32(place, _mm256_set1_epi32(first - 1))));
  };
  __m256 largest = _mm256_set1_ps(before);
  for (int t = begin; t < end; t += 8) {
    __m256 s = _mm256_mul_ps(_mm256_loadu_ps(scores + t), _mm256_set1_ps(scale));
    if (t < first || t + 7 > last) s = _mm256_blendv_ps(lowest, s, seen(t));
    largest = _mm256_max_ps(largest, s);
    _mm256_storeu_ps(scores + t, s);
  }
  *maximum = largest_of(largest);
  __m256 most = _mm256_set1_ps(*maximum), total = _mm256_setzero_ps();
  for (int t = begin; t < end; t += 8) {
    __m256 weights = exp_each(_mm256_sub_ps(_mm256_loadu_ps(scores + t), most));
    if (t < first || t + 7 > last) weights = _mm256_and_ps(weights, seen(t));
    _mm256_storeu_ps(scores + t, weights);
    total = _mm256_add_ps(total, weights);
  }
  return sum_of(total);
}
#endif

#if defined(SWITCHYARD_AVX2) && !defined(SWITCHYARD_BF16_PRODUCTS)
#define SWITCHYARD_BF16_WIDENED 1

// A panel holds 16 columns, [pairs, 16, 2]. Of the two numbers in 32 bits, one is widened by a shift, the other by a
// mask. What they are multiplied by is float32 already.

constexpr int PANEL = 16;
// 12 sums, two vectors of a panel and one number of x make 15 of 16 registers.
constexpr int MAX_ROWS = 6;

// sums[ROWS][16] += x[ROWS][2 * pairs] . panel
template <int ROWS>
inline void add_products(float* sums, int64_t stride, const float* x, int64_t x_stride, const bf16* panel,
                         int64_t pairs) {
  // A sum waits for the one before it: few rows take turns with two sets.
  constexpr int SETS = ROWS <= 3 ? 2 : 1;
  const __m256i upper = _mm256_set1_epi32(int(0xffff0000));
  __m256 parts[SETS][ROWS][2];
  // Unrolled in full wherever they are touched, or GCC keeps them in memory.
#pragma GCC unroll 2
  for (int set = 0; set < SETS; ++set)
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        parts[set][row][half] = set ? _mm256_setzero_ps() : _mm256_loadu_ps(sums + row * stride + half * 8);
  for (int64_t pair = 0; pair < pairs; ++pair, panel += 2 * PANEL)
#pragma GCC unroll 2
    for (int second = 0; second < 2; ++second) {
      __m256 columns[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m256i both = _mm256_loadu_si256((const __m256i*)(panel + half * PANEL));
        columns[half] = _mm256_castsi256_ps(second ? _mm256_and_si256(both, upper) : _mm256_slli_epi32(both, 16));
      }
#pragma GCC unroll 6
      for (int row = 0; row < ROWS; ++row) {
        __m256 value = _mm256_broadcast_ss(x + row * x_stride + pair * 2 + second);
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
          parts[second % SETS][row][half] = _mm256_fmadd_ps(columns[half], value, parts[second % SETS][row][half]);
      }
    }
#pragma GCC unroll 6
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256 sum = parts[0][row][half];
      if (SETS == 2) sum = _mm256_add_ps(sum, parts[SETS - 1][row][half]);
      _mm256_storeu_ps(sums + row * stride + half * 8, sum);
    }
}

// The same for 1 to MAX_ROWS rows.
inline void add_products(float* sums, int64_t stride, const float* x, int64_t x_stride, const bf16* panel,
                         int64_t pairs, int64_t rows) {
  switch (rows) {
    case 1: return add_products<1>(sums, stride, x, x_stride, panel, pairs);
    case 2: return add_products<2>(sums, stride, x, x_stride, panel, pairs);
    case 3: return add_products<3>(sums, stride, x, x_stride, panel, pairs);
    case 4: return add_products<4>(sums, stride, x, x_stride, panel, pairs);
    case 5: return add_products<5>(sums, stride, x, x_stride, panel, pairs);
    default: return add_products<6>(sums, stride, x, x_stride, panel, pairs);
  }
}
#endif
