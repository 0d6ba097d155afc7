// silu(gate) * up of the two halves of each row.
#include "common.h"

namespace {

template <class T>
void run(T* out, const T* gate_up, int64_t rows, int64_t width) {
#pragma omp parallel for num_threads(threads_for(rows * width * 16)) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const T* gate = gate_up + row * 2 * width;
    const T* up = gate + width;
    T* to = out + row * width;
#pragma GCC ivdep
    for (int64_t i = 0; i < width; ++i) {
      float g = to_float(gate[i]);
      to[i] = from_float<T>(rounded<T>(g / (1.0f + fast_exp(-g))) * to_float(up[i]));
    }
  }
}

}  // namespace

extern "C" void switchyard_silu_mul(void* out, const void* gate_up, int64_t rows, int64_t width, int64_t dtype) {
  if (dtype == F32) run<float>((float*)out, (const float*)gate_up, rows, width);
  else if (dtype == BF16) run<bf16>((bf16*)out, (const bf16*)gate_up, rows, width);
  else run<f16>((f16*)out, (const f16*)gate_up, rows, width);
}
