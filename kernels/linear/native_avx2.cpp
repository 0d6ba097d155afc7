// x @ weight.T + bias in bfloat16 with float32 sums, for processors with AVX2 and without AVX512-bf16.
//
// The weight lies in panels of 16 outputs: [N / 16, K / 2, 16, 2]. One row of x streams each panel once from memory; many rows keep a
// panel in the cache and go over it 6 rows at a time, 12 sums in registers.
#include "avx2.h"

#include <algorithm>
#include <vector>

#ifdef SWITCHYARD_BF16_WIDENED

namespace {

// `rows` rows of x against one panel, in tiles of like size.
void rows_of_panel(bf16* out, const float* x, const bf16* panel, const float* bias, int64_t rows, int64_t inputs,
                   int64_t outputs, int64_t columns) {
  alignas(32) float sums[MAX_ROWS * PANEL];
  int64_t tiles = (rows + MAX_ROWS - 1) / MAX_ROWS;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    int64_t first = rows * tile / tiles, count = rows * (tile + 1) / tiles - first;
    for (int64_t row = 0; row < count; ++row) std::memcpy(sums + row * PANEL, bias, sizeof(float) * PANEL);
    add_products(sums, PANEL, x + first * inputs, inputs, panel, inputs / 2, count);
    for (int64_t row = 0; row < count; ++row) {
      bf16* to = out + (first + row) * outputs;
      if (columns >= PANEL)
        for (int column = 0; column < PANEL; ++column) to[column] = from_float<bf16>(sums[row * PANEL + column]);
      else
        for (int64_t column = 0; column < columns; ++column) to[column] = from_float<bf16>(sums[row * PANEL + column]);
    }
  }
}

}  // namespace

extern "C" void switchyard_linear(void* out, const void* x, const void* panels, const void* bias, int64_t rows,
                                  int64_t inputs, int64_t outputs) {
  if (rows == 0) return;
  static thread_local std::vector<float> scratch;
  scratch.resize(std::max<size_t>(scratch.size(), rows * inputs));
  float* wide = scratch.data();
  int64_t num_panels = (outputs + PANEL - 1) / PANEL;
#pragma omp parallel num_threads(threads_for(inputs * outputs))
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < rows * inputs; ++i) wide[i] = to_float(((const bf16*)x)[i]);
#pragma omp for schedule(static)
    for (int64_t panel = 0; panel < num_panels; ++panel)
      rows_of_panel((bf16*)out + panel * PANEL, wide, (const bf16*)panels + panel * PANEL * inputs,
                    (const float*)bias + panel * PANEL, rows, inputs, outputs, outputs - panel * PANEL);
  }
}

#endif
