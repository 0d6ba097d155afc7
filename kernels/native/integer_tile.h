// Products of 16-bit integers, two to an instruction where float32 has one: a tile of rows against a panel of 16 outputs.
#pragma once

#include "avx2.h"

#ifdef SWITCHYARD_AVX2

constexpr int INTEGER_PANEL = 16;
// 12 sums, two vectors of a panel, a pair of x and a product are all 16 registers.
constexpr int INTEGER_ROWS = 6;

// sums[ROWS][16 outputs] = x[ROWS][2 * pairs] . panel[pairs][16][2]. The caller sees to it that no sum exceeds 32 bits.
template <int ROWS>
__attribute__((always_inline)) inline void integer_products(__m256i (&sums)[ROWS][2], const int16_t* x,
                                                            int64_t x_stride, const int16_t* panel, int64_t pairs) {
  // Unrolled in full wherever they are touched, or GCC keeps them in memory.
#pragma GCC unroll 6
  for (int row = 0; row < ROWS; ++row) sums[row][0] = sums[row][1] = _mm256_setzero_si256();
  for (int64_t pair = 0; pair < pairs; ++pair, panel += 2 * INTEGER_PANEL) {
    __m256i codes[2] = {_mm256_loadu_si256((const __m256i*)panel), _mm256_loadu_si256((const __m256i*)(panel + 16))};
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row) {
      int32_t both;
      std::memcpy(&both, x + row * x_stride + 2 * pair, 4);
      __m256i values = _mm256_set1_epi32(both);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        sums[row][half] = _mm256_add_epi32(sums[row][half], _mm256_madd_epi16(codes[half], values));
        asm("" : "+x"(sums[row][half]));  // GCC would add products to each other first, and run out of registers
      }
    }
  }
}
#endif
