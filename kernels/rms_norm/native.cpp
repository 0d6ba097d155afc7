// RMS norm of each row, after adding x to the residual stream in place if there is one.
#include "common.h"

namespace {

template <class T>
void run(T* out, const T* x, T* residual, const T* weight, int64_t rows, int64_t width, float eps) {
#pragma omp parallel for num_threads(threads_for(rows * width * 4)) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const T* in = x + row * width;
    T* to = out + row * width;
    if (residual != nullptr) {
      T* stream = residual + row * width;
      for (int64_t i = 0; i < width; ++i) stream[i] = from_float<T>(to_float(stream[i]) + to_float(in[i]));
      in = stream;
    }
    float lanes[16] = {};
    int64_t i = 0;
    for (; i + 16 <= width; i += 16)
      for (int lane = 0; lane < 16; ++lane) {
        float value = to_float(in[i + lane]);
        lanes[lane] += value * value;
      }
    float sum = 0;
    for (; i < width; ++i) sum += to_float(in[i]) * to_float(in[i]);
    for (float lane : lanes) sum += lane;
    float scale = 1.0f / std::sqrt(sum / float(width) + eps);
    for (int64_t j = 0; j < width; ++j)
      to[j] = from_float<T>(rounded<T>(to_float(in[j]) * scale) * to_float(weight[j]));
  }
}

}  // namespace

extern "C" void switchyard_rms_norm(void* out, const void* x, void* residual, const void* weight, int64_t rows,
                                    int64_t width, float eps, int64_t dtype) {
#define RUN(T) run<T>((T*)out, (const T*)x, (T*)residual, (const T*)weight, rows, width, eps)
  if (dtype == F32) RUN(float);
  else if (dtype == BF16) RUN(bf16);
  else RUN(f16);
#undef RUN
}
