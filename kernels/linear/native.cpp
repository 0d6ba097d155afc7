// x @ weight.T + bias in bfloat16 with float32 sums, for AVX512-bf16.
//
// The weight lies in panels of 32 outputs: [N / 32, K / 2, 32, 2], the two inputs of a pair side by side as the
// instruction vdpbf16ps wants them. One row of x streams each panel once from memory in its order; many rows keep a
// panel in the cache and go over it 12 rows at a time, 24 sums in registers.
#include "avx512.h"

#include <algorithm>

#ifdef SWITCHYARD_BF16_PRODUCTS

namespace {

constexpr int MAX_ROWS = 12;
// So much of x passes over one panel after another, and stays in the caches meanwhile.
constexpr int64_t CHUNK_BYTES = 3 << 19;

// ROWS rows of x against one panel.
template <int ROWS, int UNROLL>
inline void tile(bf16* out, const bf16* x, const bf16* panel, const float* bias, int64_t inputs, int64_t outputs,
                 int64_t columns) {
  __m512 sums[ROWS][2];
  for (int row = 0; row < ROWS; ++row)
    for (int half = 0; half < 2; ++half) sums[row][half] = _mm512_loadu_ps(bias + half * 16);
  add_products<ROWS, UNROLL>(sums, x, inputs, panel, inputs / 2);
  __mmask16 first = columns >= 16 ? 0xffff : (1u << columns) - 1;
  __mmask16 second = columns >= 32 ? 0xffff : columns > 16 ? (1u << (columns - 16)) - 1 : 0;
  for (int row = 0; row < ROWS; ++row) {
    bf16* to = out + row * outputs;
    _mm256_mask_storeu_epi16(to, first, (__m256i)_mm512_cvtneps_pbh(sums[row][0]));
    _mm256_mask_storeu_epi16(to + 16, second, (__m256i)_mm512_cvtneps_pbh(sums[row][1]));
  }
}

void rows_of_panel(bf16* out, const bf16* x, const bf16* panel, const float* bias, int64_t rows, int64_t inputs,
                   int64_t outputs, int64_t columns) {
#define TILE(ROWS, UNROLL)                                               \
  case ROWS:                                                             \
    tile<ROWS, UNROLL>(out, x, panel, bias, inputs, outputs, columns); \
    break;
  for (int64_t left = rows; left > 0; left -= MAX_ROWS) {
    switch (left < MAX_ROWS ? left : MAX_ROWS) {
      TILE(1, 4) TILE(2, 4) TILE(3, 2) TILE(4, 2) TILE(5, 2) TILE(6, 1)
      TILE(7, 1) TILE(8, 1) TILE(9, 1) TILE(10, 1) TILE(11, 1) TILE(12, 1)
    }
    x += MAX_ROWS * inputs;
    out += MAX_ROWS * outputs;
  }
#undef TILE
}

}  // namespace

extern "C" void switchyard_linear(void* out, const void* x, const void* panels, const void* bias, int64_t rows,
                                  int64_t inputs, int64_t outputs) {
  if (rows == 0) return;
  int64_t num_panels = (outputs + PANEL - 1) / PANEL;
  // Chunks of like size, in whole tiles, so that no thread waits for another's longer ones.
  int64_t most = std::max<int64_t>(CHUNK_BYTES / (2 * inputs), 4 * MAX_ROWS);
  int64_t chunks = (rows + most - 1) / most;
  int64_t each = (rows + chunks * MAX_ROWS - 1) / (chunks * MAX_ROWS) * MAX_ROWS;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads_for(inputs * outputs))
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      int64_t row = chunk * each, column = panel * PANEL;
      rows_of_panel((bf16*)out + row * outputs + column, (const bf16*)x + row * inputs,
                    (const bf16*)panels + panel * PANEL * inputs, (const float*)bias + column,
                    rows - row < each ? rows - row : each, inputs, outputs, outputs - column);
    }
}

#endif
