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
#include "native_wide.h"

#include <vector>

#ifdef SWITCHYARD_AVX2

namespace {

// 8 sums, two words, two vectors of codes, a mask, a pair of x and a product make 15 of 16 registers.
constexpr int ROWS_AT_ONCE = 4;

// Bytes of a panel that are asked for before their turn: with one row the memory takes the time.
constexpr int64_t AHEAD = 1024;

// sums[ROWS][16] += x[ROWS] . panel
template <class Format, int ROWS>
inline void add_blocks(float* sums, Rows x, const uint8_t* panel, int64_t blocks) {
  for (int64_t block = 0; block < blocks; ++block, panel += block_bytes<Format>()) {
    const uint8_t* words = panel + OUTPUTS * (2 + 2 * Format::HAS_MINIMUM);
    for (int64_t byte = 0; byte < block_bytes<Format>(); byte += 64) __builtin_prefetch(panel + AHEAD + byte);
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
            add_in_place(parts[row][half], _mm256_madd_epi16(codes[half], pair));
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
  bool is_wide = rows >= LEAST_WIDE;
  int64_t chunks = is_wide ? (rows + MAX_CHUNK - 1) / MAX_CHUNK : 1;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads_for(inputs* outputs))
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      int64_t first = rows * chunk / chunks, count = rows * (chunk + 1) / chunks - first, done = first * blocks;
      int64_t column = panel * OUTPUTS;
      auto* product = is_wide ? chunk_of_panel<Format> : rows_of_panel<Format>;
      product(out + first * outputs + column, {all.whole + done * BLOCK, all.steps + done, all.sums + done},
              panels + panel * blocks * block_bytes<Format>(), bias + column, count, blocks, outputs, outputs - column);
    }
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
