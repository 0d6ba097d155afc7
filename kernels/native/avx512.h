// Vectors of 16 floats, and products of bfloat16 pairs: what the kernels for AVX512-bf16 share.
//
// A panel holds 32 columns as vdpbf16ps wants them: [pairs, 32, 2], two of the summed dimension side by side.
#pragma once

#include "common.h"

#include <initializer_list>

#ifdef __AVX512F__
// exp(x) of each lane: as fast_exp.
inline __m512 exp_each(__m512 x) {
  x = _mm512_max_ps(_mm512_set1_ps(-87.0f), x);  // of a NaN and a number, max gives the second: a NaN stays one
  __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 0x08);
  __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  f = _mm512_fmadd_ps(n, _mm512_set1_ps(2.12194440e-4f), f);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f})
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(c));
  p = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, f), f, f), _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, n);
}
#endif

#if defined(__AVX512BF16__) && defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define SWITCHYARD_BF16_PRODUCTS 1

constexpr int PANEL = 32;

// The rows `one` and `other`, 32 columns each, side by side: columns 0 to 15 in `low`, the rest in `high`.
inline void side_by_side(__m512i one, __m512i other, __m512i* low, __m512i* high) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  // Column i of `one`, then of `other` (whose columns count from 32).
  const __m512i first = _mm512_or_si512(lanes, _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(32)), 16));
  *low = _mm512_permutex2var_epi16(one, first, other);
  *high = _mm512_permutex2var_epi16(one, _mm512_add_epi16(first, _mm512_set1_epi16(16)), other);
}

// sums[ROWS][32] += x[ROWS][2 * pairs] . panel. UNROLL pairs have sums of their own: a sum waits for the one before it.
template <int ROWS, int UNROLL>
inline void add_products(__m512 (&sums)[ROWS][2], const bf16* x, int64_t x_stride, const bf16* panel, int64_t pairs) {
  __m512 parts[UNROLL][ROWS][2];
  for (int u = 0; u < UNROLL; ++u)
    for (int row = 0; row < ROWS; ++row)
      for (int half = 0; half < 2; ++half) parts[u][row][half] = u ? _mm512_setzero_ps() : sums[row][half];
  auto step = [&](int64_t pair, int u) __attribute__((always_inline)) {
    __m512bh low = (__m512bh)_mm512_loadu_si512(panel + pair * 2 * PANEL);
    __m512bh high = (__m512bh)_mm512_loadu_si512(panel + pair * 2 * PANEL + PANEL);
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row) {
      int32_t both;
      std::memcpy(&both, x + row * x_stride + pair * 2, 4);
      __m512bh value = (__m512bh)_mm512_set1_epi32(both);
      parts[u][row][0] = _mm512_dpbf16_ps(parts[u][row][0], low, value);
      parts[u][row][1] = _mm512_dpbf16_ps(parts[u][row][1], high, value);
    }
  };
  int64_t pair = 0;
  for (; pair + UNROLL <= pairs; pair += UNROLL)
#pragma GCC unroll 8
    for (int u = 0; u < UNROLL; ++u) step(pair + u, u);
  for (; pair < pairs; ++pair) step(pair, 0);
  for (int row = 0; row < ROWS; ++row)
    for (int half = 0; half < 2; ++half) {
      sums[row][half] = parts[0][row][half];
      for (int u = 1; u < UNROLL; ++u) sums[row][half] = _mm512_add_ps(sums[row][half], parts[u][row][half]);
    }
}
#endif
