// act(x @ weight.T + bias) as products of 16-bit integers, of which a processor with AVX2 does two for one of float32.
//
// Both sides are rounded: x to steps of its own for each row and block of 64 inputs, the weight to one step for each
// output. Steps are as small as the sums allow: no block of either side is longer than LONGEST, so by Cauchy and Schwarz no
// sum of a block, whole or part, leaves 32 bits. Blocks are summed up in float32.
//
// The weight lies in panels [outputs / 16, pairs of inputs, 16, 2], blocked as in native.cpp.
#include "integer_tile.h"
#include "native_gelu.h"

#include <algorithm>
#include <vector>

#if defined(SWITCHYARD_AVX2) && !defined(__AVX512F__)
#define SWITCHYARD_INTEGER_LINEAR 1

namespace {

// LONGEST^2 is 2^31, less what rounding 64 numbers adds to either length, which is 4 at most.
constexpr float LONGEST = 46300.0f, LARGEST = 32767.0f;
constexpr int64_t BLOCK = 64, MAX_CHUNK = 16 * INTEGER_ROWS, SLICE = 6;  // blocks
constexpr int64_t LINES = SLICE * BLOCK * INTEGER_PANEL * 2 / 64;        // of the cache, in a slice of a panel

// x as integers [rows, blocks, 64], and the step of each block.
struct Rows {
  int16_t* whole;
  float* steps;
};

// Rounds 64 numbers and returns the step: NaN where one of them is not finite.
float round_block(int16_t* to, const float* x) {
  const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
  __m256 parts[8];
  __m256i bits = _mm256_setzero_si256();
  for (int i = 0; i < 8; ++i) {
    parts[i] = _mm256_loadu_ps(x + 8 * i);
    // Numbers without their sign are ordered as their bits are, NaN last.
    bits = _mm256_max_epu32(bits, _mm256_and_si256(_mm256_castps_si256(parts[i]), magnitude));
  }
  __m128i most = _mm_max_epu32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
  most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0x4e));
  most = _mm_max_epu32(most, _mm_shuffle_epi32(most, 0xb1));
  float largest = _mm_cvtss_f32(_mm_castsi128_ps(most));
  bool is_finite = uint32_t(_mm_cvtsi128_si32(most)) < 0x7f800000u;
  if (!is_finite || largest < 1e-30f) {  // what is smaller has no inverse, and counts as 0
    std::memset(to, 0, sizeof(int16_t) * BLOCK);
    return is_finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  __m256 inverse = _mm256_set1_ps(1.0f / largest), squares = _mm256_setzero_ps();
  for (int i = 0; i < 8; ++i) {
    parts[i] = _mm256_mul_ps(parts[i], inverse);
    squares = _mm256_fmadd_ps(parts[i], parts[i], squares);
  }
  float limit = std::min(LARGEST, LONGEST / std::sqrt(sum_of(squares)));
  __m256 scale = _mm256_set1_ps(limit);
  for (int i = 0; i < 8; i += 2) {
    __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(parts[i], scale));
    __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(parts[i + 1], scale));
    _mm256_storeu_si256((__m256i*)(to + 8 * i), _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
  }
  return largest / limit;
}

void round_row(Rows to, const float* x, int64_t inputs) {
  for (; inputs >= BLOCK; inputs -= BLOCK, x += BLOCK, to.whole += BLOCK) *to.steps++ = round_block(to.whole, x);
  if (inputs == 0) return;
  float padded[BLOCK] = {};
  std::memcpy(padded, x, sizeof(float) * inputs);
  *to.steps = round_block(to.whole, padded);
}

// sums[ROWS][16] += x[ROWS] . panel over `count` blocks of a row's `blocks`, while `lines` from `ahead` on are fetched
// towards the second cache with each.
template <int ROWS>
void add_blocks(float* sums, Rows x, int64_t blocks, const int16_t* panel, int64_t count, const int16_t* ahead,
                int64_t lines) {
  for (int64_t block = 0; block < count; ++block, panel += BLOCK * INTEGER_PANEL) {
    for (int64_t line = 0; line < lines; ++line, ahead += 32) __builtin_prefetch(ahead, 0, 2);
    asm volatile("" ::: "memory");  // GCC would carry all sums from block to block, and run out of registers
    __m256i parts[ROWS][2];
    integer_products<ROWS>(parts, x.whole + block * BLOCK, blocks * BLOCK, panel, BLOCK / 2);
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row) {
      __m256 step = _mm256_broadcast_ss(x.steps + row * blocks + block);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        float* sum = sums + row * INTEGER_PANEL + 8 * half;
        _mm256_storeu_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(parts[row][half]), step, _mm256_loadu_ps(sum)));
      }
    }
  }
}

void rows_of_panel(float* out, Rows x, const int16_t* panel, const float* steps, const float* bias, int64_t rows,
                   int64_t blocks, int64_t outputs, int64_t columns, bool has_gelu) {
  alignas(64) float sums[MAX_CHUNK * INTEGER_PANEL];
  std::memset(sums, 0, sizeof(float) * rows * INTEGER_PANEL);
  int64_t tiles = (rows + INTEGER_ROWS - 1) / INTEGER_ROWS;  // of like size
  for (int64_t from = 0; from < blocks; from += SLICE) {
    // Panels lie one after another, so that this is the next slice of any.
    const int16_t *slice = panel + from * BLOCK * INTEGER_PANEL, *next = slice + SLICE * BLOCK * INTEGER_PANEL;
    int64_t count = std::min(SLICE, blocks - from), lines = (LINES + tiles * count - 1) / (tiles * count);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      int64_t first = rows * tile / tiles, rows_here = rows * (tile + 1) / tiles - first, at = first * blocks + from;
      auto* add = rows_here == 6   ? add_blocks<6>
                  : rows_here == 5 ? add_blocks<5>
                  : rows_here == 4 ? add_blocks<4>
                  : rows_here == 3 ? add_blocks<3>
                  : rows_here == 2 ? add_blocks<2>
                                   : add_blocks<1>;
      add(sums + first * INTEGER_PANEL, {x.whole + at * BLOCK, x.steps + at}, blocks, slice, count,
          next + tile * count * lines * 32, lines);
    }
  }
  columns = std::min<int64_t>(columns, INTEGER_PANEL);
  for (int64_t row = 0; row < rows; ++row) {
    float* sum = sums + row * INTEGER_PANEL;
    for (int64_t i = 0; i < INTEGER_PANEL; ++i) sum[i] = sum[i] * steps[i] + bias[i];
    if (has_gelu)
      for (int64_t i = 0; i < INTEGER_PANEL; ++i) sum[i] = gelu(sum[i]);
    std::memcpy(out + row * outputs, sum, sizeof(float) * columns);
  }
}

}  // namespace

extern "C" void switchyard_integer_linear(void* out, const void* x, const void* panels, const void* steps,
                                          const void* bias, int64_t rows, int64_t inputs, int64_t outputs,
                                          int64_t has_gelu) {
  if (rows == 0) return;
  static thread_local std::vector<int16_t> whole;
  static thread_local std::vector<float> x_steps;
  int64_t blocks = (inputs + BLOCK - 1) / BLOCK;
  whole.resize(std::max<size_t>(whole.size(), rows * blocks * BLOCK));
  x_steps.resize(std::max<size_t>(x_steps.size(), rows * blocks));
  Rows all{whole.data(), x_steps.data()};
#pragma omp parallel for schedule(static) num_threads(threads_for(rows * inputs))
  for (int64_t row = 0; row < rows; ++row)
    round_row({all.whole + row * blocks * BLOCK, all.steps + row * blocks}, (const float*)x + row * inputs, inputs);
  int64_t num_panels = (outputs + INTEGER_PANEL - 1) / INTEGER_PANEL;
  int64_t chunks = (rows + MAX_CHUNK - 1) / MAX_CHUNK;
#pragma omp parallel for collapse(2) schedule(static) num_threads(threads_for(inputs* outputs))
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      int64_t row = rows * chunk / chunks, end = rows * (chunk + 1) / chunks, column = panel * INTEGER_PANEL;
      rows_of_panel((float*)out + row * outputs + column, {all.whole + row * blocks * BLOCK, all.steps + row * blocks},
                    (const int16_t*)panels + column * blocks * BLOCK, (const float*)steps + column,
                    (const float*)bias + column, end - row, blocks, outputs, outputs - column, has_gelu != 0);
    }
}
#endif

// Columns of a panel; 0 where the processor has no AVX2, or multiplies float32 in vectors of 512 bits as fast.
extern "C" int switchyard_integer_panel() {
#ifdef SWITCHYARD_INTEGER_LINEAR
  return INTEGER_PANEL;
#else
  return 0;
#endif
}
