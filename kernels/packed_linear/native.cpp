// x @ weight.T + bias for weights in blocks of 32 inputs: 4-bit codes with a scale and a minimum, or 8-bit codes with a
// scale. For processors with AVX2; those with AVX512 run the same.
//
// A panel holds 16 outputs. Of each block it has the scales, the minimums if any, and words of 32 bits, one for each
// output side by side: [N / 16, K / 32, (scales 16, minimums 16, words 4 * 16)]. A word's halves of 16 bits hold the
// codes of even and odd inputs, so that a shift and a mask make the pairs that vpmaddwd multiplies.
//
// x is multiplied as integers of 16 bits, whose step is a power of two for each block of 32: bfloat16 numbers down to
// 1/128 of the block's largest are exact in that, smaller ones are off by at most 2^-16 of the largest. That is less
// than rounding the weights to bfloat16 does, and two products an instruction rather than one.
#include "avx2.h"

#include <algorithm>
#include <vector>

#ifdef SWITCHYARD_AVX2

namespace {

constexpr int BLOCK = 32, OUTPUTS = 16;
constexpr int PAIRS = BLOCK / 2;
// 8 sums, two words, two vectors of codes, a mask, a pair of x and a product make 15 of 16 registers.
constexpr int ROWS_AT_ONCE = 4;

// x as integers. Of each row, `whole` [blocks, 32]; of each of its blocks, the step and the sum of x.
struct Rows {
  int16_t* whole;
  float* steps;
  float* sums;
};

void to_integers(Rows to, const bf16* x, int64_t blocks) {
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

// sums[ROWS][16] += x[ROWS] . panel
template <class Format, int ROWS>
inline void add_blocks(float* sums, Rows x, const uint8_t* panel, int64_t blocks) {
  for (int64_t block = 0; block < blocks; ++block, panel += block_bytes<Format>()) {
    const uint8_t* words = panel + OUTPUTS * (2 + 2 * Format::HAS_MINIMUM);
    __m256i parts[ROWS][2];
    // Unrolled in full wherever they are touched, or GCC keeps them in memory.
#pragma GCC unroll 4
    for (int row = 0; row < ROWS; ++row) parts[row][0] = parts[row][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int index = 0; index < Format::WORDS; ++index) {
      __m256i word[2];
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
        word[half] = _mm256_loadu_si256((const __m256i*)(words + (2 * index + half) * 32));
#pragma GCC unroll 4
      for (int k = 0; k < Format::PAIRS_OF_WORD; ++k) {
        __m256i codes[2] = {Format::codes(word[0], k), Format::codes(word[1], k)};
#pragma GCC unroll 4
        for (int row = 0; row < ROWS; ++row) {
          int32_t both;
          std::memcpy(&both, x.whole + (row * blocks + block) * BLOCK + 2 * (index * Format::PAIRS_OF_WORD + k), 4);
          __m256i pair = _mm256_set1_epi32(both);
#pragma GCC unroll 2
          for (int half = 0; half < 2; ++half) {
            parts[row][half] = _mm256_add_epi32(parts[row][half], _mm256_madd_epi16(codes[half], pair));
            asm("" : "+x"(parts[row][half]));  // GCC would add products to each other first, and run out of registers
          }
        }
      }
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      __m256 scale = widen((const f16*)panel + 8 * half);
      __m256 minimum = Format::HAS_MINIMUM ? widen((const f16*)panel + OUTPUTS + 8 * half) : _mm256_setzero_ps();
#pragma GCC unroll 4
      for (int row = 0; row < ROWS; ++row) {
        __m256 sum = _mm256_loadu_ps(sums + row * OUTPUTS + 8 * half);
        __m256 step = _mm256_broadcast_ss(x.steps + row * blocks + block);
        sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(parts[row][half]), _mm256_mul_ps(step, scale), sum);
        if (Format::HAS_MINIMUM)
          sum = _mm256_fmadd_ps(_mm256_broadcast_ss(x.sums + row * blocks + block), minimum, sum);
        _mm256_storeu_ps(sums + row * OUTPUTS + 8 * half, sum);
      }
    }
  }
}

template <class Format>
void rows_of_panel(bf16* out, Rows x, const uint8_t* panel, const float* bias, int64_t rows, int64_t blocks,
                   int64_t outputs, int64_t columns) {
  alignas(32) float sums[ROWS_AT_ONCE * OUTPUTS];
  for (int64_t first = 0; first < rows; first += ROWS_AT_ONCE) {
    int64_t count = std::min<int64_t>(rows - first, ROWS_AT_ONCE), done = first * blocks;
    Rows these{x.whole + done * BLOCK, x.steps + done, x.sums + done};
    for (int64_t row = 0; row < count; ++row) std::memcpy(sums + row * OUTPUTS, bias, sizeof(float) * OUTPUTS);
    switch (count) {
      case 1: add_blocks<Format, 1>(sums, these, panel, blocks); break;
      case 2: add_blocks<Format, 2>(sums, these, panel, blocks); break;
      case 3: add_blocks<Format, 3>(sums, these, panel, blocks); break;
      default: add_blocks<Format, 4>(sums, these, panel, blocks);
    }
    for (int64_t row = 0; row < count; ++row)
      for (int64_t column = 0; column < std::min<int64_t>(columns, OUTPUTS); ++column)
        out[(first + row) * outputs + column] = from_float<bf16>(sums[row * OUTPUTS + column]);
  }
}

template <class Format>
void multiply(bf16* out, const bf16* x, const uint8_t* panels, const float* bias, int64_t rows, int64_t inputs,
              int64_t outputs) {
  static thread_local std::vector<int16_t> whole;
  static thread_local std::vector<float> numbers;
  int64_t blocks = inputs / BLOCK;
  whole.resize(std::max<size_t>(whole.size(), rows * inputs));
  numbers.resize(std::max<size_t>(numbers.size(), 2 * rows * blocks));
  Rows all{whole.data(), numbers.data(), numbers.data() + rows * blocks};
#pragma omp parallel for schedule(static) num_threads(threads_for(rows * inputs))
  for (int64_t row = 0; row < rows; ++row)
    to_integers({all.whole + row * inputs, all.steps + row * blocks, all.sums + row * blocks}, x + row * inputs, blocks);
  int64_t num_panels = (outputs + OUTPUTS - 1) / OUTPUTS;
#pragma omp parallel for schedule(static) num_threads(threads_for(inputs * outputs))
  for (int64_t panel = 0; panel < num_panels; ++panel)
    rows_of_panel<Format>(out + panel * OUTPUTS, all, panels + panel * blocks * block_bytes<Format>(),
                          bias + panel * OUTPUTS, rows, blocks, outputs, outputs - panel * OUTPUTS);
}

}  // namespace

extern "C" void switchyard_packed_linear(void* out, const void* x, const void* panels, const void* bias, int64_t bits,
                                         int64_t rows, int64_t inputs, int64_t outputs) {
  if (rows == 0) return;
  auto* of = bits == 4 ? multiply<FourBits> : multiply<EightBits>;
  of((bf16*)out, (const bf16*)x, (const uint8_t*)panels, (const float*)bias, rows, inputs, outputs);
}

#endif

// Outputs of a panel; 0 where this processor has no such product.
extern "C" int switchyard_packed_panel() {
#ifdef SWITCHYARD_AVX2
  return OUTPUTS;
#else
  return 0;
#endif
}
