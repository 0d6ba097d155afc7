// Products of 16-bit integers, two to an instruction where float32 has one: a tile of rows against a panel of 16 outputs.
#pragma once

#include "avx2.h"

#ifdef SWITCHYARD_AVX2

constexpr int INTEGER_PANEL = 16;
// 12 sums, two vectors of a panel, a pair of x and a product are all 16 registers.
constexpr int INTEGER_ROWS = 6;

// GCC would add products to each other first, run out of registers and move each sum once more.
__attribute__((always_inline)) inline void add_in_place(__m256i& sum, __m256i product) {
  asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product));
}

// sums[ROWS][16 outputs] = x[ROWS][2 * pairs] . panel[pairs][16][2]. The caller sees to it that no sum exceeds 32 bits.
template <int ROWS>
__attribute__((always_inline)) inline void integer_products(__m256i (&sums)[ROWS][2], const int16_t* x,
                                                            int64_t x_stride, const int16_t* panel, int64_t pairs) {
  // Unrolled in full wherever they are touched, or GCC keeps them in memory.
  auto pair = [&](bool is_first) __attribute__((always_inline)) {
    __m256i codes[2] = {_mm256_loadu_si256((const __m256i*)panel), _mm256_loadu_si256((const __m256i*)(panel + 16))};
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row) {
      int32_t both;
      std::memcpy(&both, x + row * x_stride, 4);
      __m256i values = _mm256_set1_epi32(both);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        __m256i product = _mm256_madd_epi16(codes[half], values);
        if (is_first) sums[row][half] = product;
        else add_in_place(sums[row][half], product);
      }
    }
    panel += 2 * INTEGER_PANEL, x += 2;
  };
  pair(true);
  for (int64_t index = 1; index < pairs; ++index) pair(false);
}
#endif
