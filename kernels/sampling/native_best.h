// The best token of a row of logits: its number, the lowest among equals, and its logit; NaN where the row holds one.
#pragma once

#include "common.h"

namespace {

// bfloat16 as integers of the same order. Those of NaN lie beyond those of infinity.
inline int16_t ordered(bf16 x) { return int16_t(x.bits ^ ((int16_t(x.bits) >> 15) & 0x7fff)); }
constexpr int16_t PLUS_INFINITY = 0x7f80, MINUS_INFINITY = int16_t(0xff80 ^ 0x7fff);

void best(int64_t* index, float* value, const bf16* row, int64_t width) {
  int16_t most = INT16_MIN, least = INT16_MAX;
  for (int64_t i = 0; i < width; ++i) {
    int16_t key = ordered(row[i]);
    most = key > most ? key : most;
    least = key < least ? key : least;
  }
  float largest = to_float(bf16{uint16_t(ordered(bf16{uint16_t(most)}))});
  int64_t at = 0;
  while (at + 1 < width && to_float(row[at]) != largest) ++at;  // 0 and -0 are equals
  *index = at;
  *value = most > PLUS_INFINITY || least < MINUS_INFINITY ? std::numeric_limits<float>::quiet_NaN() : largest;
}

void best(int64_t* index, float* value, const float* row, int64_t width) {
  constexpr int LANES = 16;
  float most[LANES], largest = -std::numeric_limits<float>::infinity();
  int32_t has_nan[LANES] = {}, any_nan = 0;
  for (float& lane : most) lane = largest;
  int64_t i = 0;
  for (; i + LANES <= width; i += LANES)
    for (int lane = 0; lane < LANES; ++lane) {
      float x = row[i + lane];
      most[lane] = x > most[lane] ? x : most[lane];
      has_nan[lane] |= x != x;
    }
  for (; i < width; ++i) {
    largest = row[i] > largest ? row[i] : largest;
    any_nan |= row[i] != row[i];
  }
  for (int lane = 0; lane < LANES; ++lane) {
    largest = most[lane] > largest ? most[lane] : largest;
    any_nan |= has_nan[lane];
  }
  int64_t at = 0;
  while (at + 1 < width && row[at] != largest) ++at;
  *index = at;
  *value = any_nan ? std::numeric_limits<float>::quiet_NaN() : largest;
}

}  // namespace
