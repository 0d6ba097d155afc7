// act(x @ weight.T + bias) in float32.
//
// The weight lies in panels (float_panels.h). A slice of one panel stays in the first cache while a chunk of rows, which
// stays in the second, goes over it, and the slice behind it is fetched meanwhile: with few rows the memory is what takes
// time. The activation is done while the sums are still near.
#include "float_panels.h"
#include "native_gelu.h"

#include <algorithm>

namespace {

constexpr int64_t MAX_CHUNK = 16 * FLOAT_ROWS, SLICE = 384;

void rows_of_panel(float* out, const float* x, const float* panel, const float* bias, int64_t rows, int64_t inputs,
                   int64_t outputs, int64_t columns, bool has_gelu) {
  alignas(64) float sums[MAX_CHUNK * FLOAT_PANEL];
  for (int64_t row = 0; row < rows; ++row) std::memcpy(sums + row * FLOAT_PANEL, bias, sizeof(float) * FLOAT_PANEL);
  int64_t tiles = (rows + FLOAT_ROWS - 1) / FLOAT_ROWS;  // of like size
  for (int64_t from = 0; from < inputs; from += SLICE) {
    // Panels lie one after another, so that this is the next slice of any.
    const float *slice = panel + from * FLOAT_PANEL, *next = slice + SLICE * FLOAT_PANEL;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      int64_t first = rows * tile / tiles, count = rows * (tile + 1) / tiles - first;
      add_float_products<true>(sums + first * FLOAT_PANEL, FLOAT_PANEL, x + first * inputs + from, inputs, slice,
                               FLOAT_PANEL, std::min(SLICE, inputs - from), count,
                               next + SLICE * FLOAT_PANEL * tile / tiles, FLOAT_PANEL / tiles);
    }
  }
  if (has_gelu)
    for (int64_t i = 0; i < rows * FLOAT_PANEL; ++i) sums[i] = gelu(sums[i]);
  columns = std::min<int64_t>(columns, FLOAT_PANEL);
  for (int64_t row = 0; row < rows; ++row)
    std::memcpy(out + row * outputs, sums + row * FLOAT_PANEL, sizeof(float) * columns);
}

}  // namespace

// Columns of a panel.
extern "C" int switchyard_float_panel() { return FLOAT_PANEL; }

extern "C" void switchyard_float_linear(void* out, const void* x, const void* panels, const void* bias, int64_t rows,
                                        int64_t inputs, int64_t outputs, int64_t has_gelu) {
  if (rows == 0) return;
  int64_t num_panels = (outputs + FLOAT_PANEL - 1) / FLOAT_PANEL;
  int64_t chunks = (rows + MAX_CHUNK - 1) / MAX_CHUNK;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads_for(inputs* outputs))
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      int64_t row = rows * chunk / chunks, end = rows * (chunk + 1) / chunks, column = panel * FLOAT_PANEL;
      rows_of_panel((float*)out + row * outputs + column, (const float*)x + row * inputs,
                    (const float*)panels + column * inputs, (const float*)bias + column, end - row, inputs, outputs,
                    outputs - column, has_gelu != 0);
    }
}
