// What the kernels share: number formats, and vectors of 16 floats.
//
// Everything is computed in float32 and rounded to the tensor's format once, where the contract says so.
#pragma once

#include <omp.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#ifdef __F16C__
#include <immintrin.h>
#endif

enum Dtype : int64_t { F32 = 0, BF16 = 1, F16 = 2 };

struct bf16 {
  uint16_t bits;
};

struct f16 {
  uint16_t bits;
};

static inline float to_float(float x) { return x; }

static inline float to_float(bf16 x) {
  uint32_t wide = uint32_t(x.bits) << 16;
  float out;
  std::memcpy(&out, &wide, 4);
  return out;
}

static inline float to_float(f16 x) {
  _Float16 half;
  std::memcpy(&half, &x.bits, 2);
  return float(half);
}

template <class T>
static inline T from_float(float x);

template <>
inline float from_float<float>(float x) {
  return x;
}

template <>
inline bf16 from_float<bf16>(float x) {
  uint32_t wide;
  std::memcpy(&wide, &x, 4);
  uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;  // to nearest, ties to even
  bool is_nan = (wide & 0x7fffffff) > 0x7f800000;
  return bf16{uint16_t(is_nan ? 0x7fc0 : rounded)};
}

template <>
inline f16 from_float<f16>(float x) {
  _Float16 half = _Float16(x);
  f16 out;
  std::memcpy(&out.bits, &half, 2);
  return out;
}

template <class T>
static inline float rounded(float x) {
  return to_float(from_float<T>(x));
}

// Threads for a loop of `work` float operations: starting them costs microseconds.
static inline int threads_for(int64_t work) { return work < 20000 ? 1 : omp_get_max_threads(); }

// exp(x) for 16 lanes that GCC turns into vector code: 2^n * 2^f, |relative error| < 2e-7. Saturates, NaN stays.
static inline float fast_exp(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  float t = x * 1.44269504088896341f;
  float n = std::nearbyint(t);
  float f = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  int32_t bits = (int32_t(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, 4);
  return p * power;
}
