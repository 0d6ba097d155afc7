// Norm of each query and key head (where the model has it), rotation, and the scatter of keys and values to the cache.
#include "common.h"

namespace {

// One head: norm into `head` (float), then rotate the halves. `head` holds values already rounded to T.
template <class T>
inline void norm_and_rotate(const T* in, float* head, const T* norm, float eps, const float* cos, const float* sin,
                            int64_t dim) {
  for (int64_t i = 0; i < dim; ++i) head[i] = to_float(in[i]);
  if (norm != nullptr) {
    float sum = 0;
    for (int64_t i = 0; i < dim; ++i) sum += head[i] * head[i];
    float scale = 1.0f / std::sqrt(sum / float(dim) + eps);
    for (int64_t i = 0; i < dim; ++i) head[i] = rounded<T>(rounded<T>(head[i] * scale) * to_float(norm[i]));
  }
  int64_t half = dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    float low = head[i], high = head[i + half];
    head[i] = low * cos[i] - high * sin[i];
    head[i + half] = high * cos[i] + low * sin[i];
  }
}

template <class T>
void run(T* query, const T* qkv, const float* cos, const float* sin, const int64_t* slots, T* keys, T* values,
         const T* q_norm, const T* k_norm, float eps, int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim) {
  int64_t row_size = (heads + 2 * kv_heads) * dim;
#pragma omp parallel for num_threads(threads_for(tokens * row_size * 8)) schedule(static)
  for (int64_t token = 0; token < tokens; ++token) {
    float head[512];
    const T* row = qkv + token * row_size;
    const float* c = cos + token * (dim / 2);
    const float* s = sin + token * (dim / 2);
    for (int64_t h = 0; h < heads; ++h) {
      norm_and_rotate(row + h * dim, head, q_norm, eps, c, s, dim);
      T* to = query + (token * heads + h) * dim;
      for (int64_t i = 0; i < dim; ++i) to[i] = from_float<T>(head[i]);
    }
    if (slots[token] < 0) continue;
    T* key = keys + slots[token] * kv_heads * dim;
    for (int64_t h = 0; h < kv_heads; ++h) {
      norm_and_rotate(row + (heads + h) * dim, head, k_norm, eps, c, s, dim);
      for (int64_t i = 0; i < dim; ++i) key[h * dim + i] = from_float<T>(head[i]);
    }
    std::memcpy(values + slots[token] * kv_heads * dim, row + (heads + kv_heads) * dim, kv_heads * dim * sizeof(T));
  }
}

}  // namespace

extern "C" void switchyard_kv_write(void* query, const void* qkv, const void* cos, const void* sin, const void* slots,
                                    void* keys, void* values, const void* q_norm, const void* k_norm, float eps,
                                    int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t dtype) {
#define RUN(T)                                                                                                        \
  run<T>((T*)query, (const T*)qkv, (const float*)cos, (const float*)sin, (const int64_t*)slots, (T*)keys, (T*)values, \
         (const T*)q_norm, (const T*)k_norm, eps, tokens, heads, kv_heads, dim)
  if (dtype == F32) RUN(float);
  else if (dtype == BF16) RUN(bf16);
  else RUN(f16);
#undef RUN
}
