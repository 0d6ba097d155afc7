// Layer norm of each row of x + residual.
#include "common.h"

extern "C" void switchyard_add_norm(void* out, const void* x, const void* residual, const void* weight,
                                    const void* bias, int64_t rows, int64_t width, float eps) {
  const float *scales = (const float*)weight, *shifts = (const float*)bias;
#pragma omp parallel for num_threads(threads_for(rows * width)) schedule(static)
  for (int64_t row = 0; row < rows; ++row) {
    const float* one = (const float*)x + row * width;
    const float* other = (const float*)residual + row * width;
    float* to = (float*)out + row * width;
    float mean = 0, variance = 0;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < width; ++i) mean += to[i] = one[i] + other[i];
    mean /= float(width);
#pragma omp simd reduction(+ : variance)
    for (int64_t i = 0; i < width; ++i) variance += (to[i] - mean) * (to[i] - mean);
    float scale = 1.0f / std::sqrt(variance / float(width) + eps);
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) to[i] = (to[i] - mean) * scale * scales[i] + shifts[i];
  }
}
