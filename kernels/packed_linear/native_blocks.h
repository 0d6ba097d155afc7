// What the narrow and the wide products have in common: x as integers of 16 bits, and the codes of a block.
#pragma once

#include "integer_tile.h"

#include <algorithm>

#ifdef SWITCHYARD_AVX2

constexpr int BLOCK = 32, OUTPUTS = INTEGER_PANEL;
constexpr int PAIRS = BLOCK / 2;
// x as integers. Of each row, `whole` [blocks, 32]; of each of its blocks, the step and the sum of x.
struct Rows {
  int16_t* whole;
  float* steps;
  float* sums;
};

inline void to_integers(Rows to, const bf16* x, int64_t blocks) {
  const __m256i magnitude = _mm256_set1_epi16(0x7fff);
  for (int64_t block = 0; block < blocks; ++block, x += BLOCK) {
    __m256i first = _mm256_loadu_si256((const __m256i*)x), second = _mm256_loadu_si256((const __m256i*)(x + 16));
    // bfloat16 without its sign is ordered as its bits are.
    __m256i most = _mm256_max_epu16(_mm256_and_si256(first, magnitude), _mm256_and_si256(second, magnitude));
    __m128i half = _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256(most, 1));
    int largest = 0xffff - _mm_extract_epi16(_mm_minpos_epu16(_mm_xor_si128(half, _mm_set1_epi16(-1))), 0);
    int exponent = std::max(largest >> 7, 15);
    uint32_t step_bits = uint32_t(exponent - 14) << 23, inverse_bits = uint32_t(std::max(268 - exponent, 1)) << 23;
    float step, inverse;
    std::memcpy(&step, &step_bits, 4);
    std::memcpy(&inverse, &inverse_bits, 4);
    __m256 parts[4] = {widen(x), widen(x + 8), widen(x + 16), widen(x + 24)};
    for (int half = 0; half < 2; ++half) {
      __m256 scale = _mm256_set1_ps(inverse);
      __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(parts[2 * half], scale));
      __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(parts[2 * half + 1], scale));
      __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
      _mm256_storeu_si256((__m256i*)(to.whole + block * BLOCK + 16 * half), both);
    }
    bool is_finite = largest < 0x7f80;
    float nan = std::numeric_limits<float>::quiet_NaN();
    __m256 sum = _mm256_add_ps(_mm256_add_ps(parts[0], parts[1]), _mm256_add_ps(parts[2], parts[3]));
    // Of zeros alone the step would be tiny, and its products with scales denormal, which are slow.
    to.steps[block] = !is_finite ? nan : largest ? step : 0.0f;
    to.sums[block] = is_finite ? sum_of(sum) : nan;
  }
}

struct FourBits {
  static constexpr int WORDS = 4, PAIRS_OF_WORD = 4;
  static constexpr bool HAS_MINIMUM = true;
  // Pair `k` of a word's four.
  static inline __m256i codes(__m256i word, int k) {
    const __m256i mask = _mm256_set1_epi16(15);
    switch (k) {
      case 0: return _mm256_and_si256(word, mask);
      case 1: return _mm256_and_si256(_mm256_srli_epi16(word, 4), mask);
      case 2: return _mm256_and_si256(_mm256_srli_epi16(word, 8), mask);
      default: return _mm256_srli_epi16(word, 12);
    }
  }
};

struct EightBits {
  static constexpr int WORDS = 8, PAIRS_OF_WORD = 2;
  static constexpr bool HAS_MINIMUM = false;
  static inline __m256i codes(__m256i word, int k) {
    return _mm256_srai_epi16(k ? word : _mm256_slli_epi16(word, 8), 8);
  }
};

template <class Format>
constexpr int64_t block_bytes() {
  return OUTPUTS * (2 + 2 * Format::HAS_MINIMUM + 4 * Format::WORDS);
}
#endif
