// Products of float32 with a weight in panels: [columns / FLOAT_PANEL, inputs, FLOAT_PANEL], for any vector width.
#pragma once

#include "common.h"

#if defined(__AVX512F__)
constexpr int FLOAT_LANES = 16, FLOAT_ROWS = 12;  // 24 sums, two vectors of a panel: 26 of 32 registers
#elif defined(__AVX__)
constexpr int FLOAT_LANES = 8, FLOAT_ROWS = 6;  // 12 sums, two vectors of a panel and one of x: 15 of 16 registers
#else
constexpr int FLOAT_LANES = 4, FLOAT_ROWS = 6;
#endif
constexpr int FLOAT_PANEL = 2 * FLOAT_LANES;

typedef float floats __attribute__((vector_size(4 * FLOAT_LANES), aligned(4), may_alias));

// sums[ROWS][FLOAT_PANEL] += x[ROWS][inputs] . panel[inputs][FLOAT_PANEL]; strides are in floats. With HAS_AHEAD, `ahead`
// is fetched towards the second cache meanwhile, `step` floats with every input.
template <int ROWS, bool HAS_AHEAD>
inline void add_float_products(float* sums, int64_t stride, const float* x, int64_t x_stride, const float* panel,
                               int64_t panel_stride, int64_t inputs, const float* ahead, int64_t step) {
  // A sum waits for the one before it: few rows take turns with two sets.
  constexpr int SETS = ROWS <= 3 ? 2 : 1;
  floats parts[SETS][ROWS][2];
  // Unrolled in full wherever they are touched, or GCC keeps them in memory.
#pragma GCC unroll 2
  for (int set = 0; set < SETS; ++set)
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        parts[set][row][half] = set ? floats{} : *(const floats*)(sums + row * stride + half * FLOAT_LANES);
  int64_t input = 0;
  for (; input + SETS <= inputs; input += SETS)
#pragma GCC unroll 2
    for (int set = 0; set < SETS; ++set, panel += panel_stride) {
      if (HAS_AHEAD) __builtin_prefetch(ahead + (input + set) * step, 0, 2);
      floats columns[2] = {*(const floats*)panel, *(const floats*)(panel + FLOAT_LANES)};
#pragma GCC unroll 12
      for (int row = 0; row < ROWS; ++row) {
        float value = x[row * x_stride + input + set];
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half) parts[set][row][half] += columns[half] * value;
      }
    }
  for (; input < inputs; ++input, panel += panel_stride)
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        parts[0][row][half] += *(const floats*)(panel + half * FLOAT_LANES) * x[row * x_stride + input];
#pragma GCC unroll 12
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
      *(floats*)(sums + row * stride + half * FLOAT_LANES) =
          SETS == 2 ? parts[0][row][half] + parts[SETS - 1][row][half] : parts[0][row][half];
}

// The same for 1 to FLOAT_ROWS rows.
template <bool HAS_AHEAD = false>
inline void add_float_products(float* sums, int64_t stride, const float* x, int64_t x_stride, const float* panel,
                               int64_t panel_stride, int64_t inputs, int64_t rows, const float* ahead = nullptr,
                               int64_t step = 0) {
#define ROWS(N) \
  case N: return add_float_products<N, HAS_AHEAD>(sums, stride, x, x_stride, panel, panel_stride, inputs, ahead, step);
  switch (rows) {
    ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6)
#if defined(__AVX512F__)
    ROWS(7) ROWS(8) ROWS(9) ROWS(10) ROWS(11) ROWS(12)
#endif
  }
#undef ROWS
}
