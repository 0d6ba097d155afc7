// Products of many rows: a slice of a panel's codes is unpacked once for a chunk of rows, and stays in the first cache
// while the chunk, which stays in the second, goes over it in tiles.
#pragma once

#include "native_blocks.h"

#ifdef SWITCHYARD_AVX2

// Fewer rows do not pay for the unpacking.
constexpr int64_t LEAST_WIDE = 16;
constexpr int64_t MAX_CHUNK = 16 * INTEGER_ROWS;
// Blocks: 18 KB of codes, which leaves room for a tile's x in a first cache of 32.
constexpr int64_t SLICE = 18;

// A slice of a panel as the tiles take it.
struct Slice {
  alignas(64) int16_t codes[SLICE * BLOCK * OUTPUTS];  // [pairs, 16, 2]
  alignas(64) float scales[SLICE][OUTPUTS];
  alignas(64) float minimums[SLICE][OUTPUTS];
};

template <class Format>
inline void unpack(Slice& to, const uint8_t* panel, int64_t blocks) {
  __m256i* codes = (__m256i*)to.codes;
  for (int64_t block = 0; block < blocks; ++block, panel += block_bytes<Format>()) {
    const f16* numbers = (const f16*)panel;
    const __m256i* words = (const __m256i*)(numbers + OUTPUTS * (1 + Format::HAS_MINIMUM));
    for (int half = 0; half < 2; ++half) {
      _mm256_store_ps(to.scales[block] + 8 * half, widen(numbers + 8 * half));
      if (Format::HAS_MINIMUM) _mm256_store_ps(to.minimums[block] + 8 * half, widen(numbers + OUTPUTS + 8 * half));
    }
    for (int index = 0; index < Format::WORDS; ++index, words += 2)
#pragma GCC unroll 4
      for (int k = 0; k < Format::PAIRS_OF_WORD; ++k, codes += 2)
#pragma GCC unroll 2
        for (int half = 0; half < 2; ++half)
          _mm256_store_si256(codes + half, Format::codes(_mm256_loadu_si256(words + half), k));
  }
}

// sums[ROWS][16] += x[ROWS] . slice, in the order of the narrow product, so that a row is the same in steps of any width;
// `all` is the number of blocks of a row of x.
template <class Format, int ROWS>
__attribute__((noinline)) void add_slice(float* sums, Rows x, int64_t all, const Slice& slice, int64_t blocks) {
  for (int64_t block = 0; block < blocks; ++block) {
    __m256i parts[ROWS][2];
    integer_products(parts, x.whole + block * BLOCK, all * BLOCK, slice.codes + block * BLOCK * OUTPUTS, PAIRS);
    __m256 scales[2] = {_mm256_load_ps(slice.scales[block]), _mm256_load_ps(slice.scales[block] + 8)};
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row) {
      __m256 step = _mm256_broadcast_ss(x.steps + row * all + block);
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        float* to = sums + row * OUTPUTS + 8 * half;
        __m256 part = _mm256_cvtepi32_ps(parts[row][half]);
        __m256 sum = _mm256_fmadd_ps(part, _mm256_mul_ps(step, scales[half]), _mm256_load_ps(to));
        if (Format::HAS_MINIMUM) {
          __m256 minimum = _mm256_load_ps(slice.minimums[block] + 8 * half);
          sum = _mm256_fmadd_ps(_mm256_broadcast_ss(x.sums + row * all + block), minimum, sum);
        }
        _mm256_store_ps(to, sum);
      }
    }
    asm volatile("" ::: "memory");  // GCC would keep the sums on the stack as well
  }
}

template <class Format>
inline void add_slice(float* sums, Rows x, int64_t all, const Slice& slice, int64_t blocks, int64_t rows) {
  switch (rows) {
    case 1: return add_slice<Format, 1>(sums, x, all, slice, blocks);
    case 2: return add_slice<Format, 2>(sums, x, all, slice, blocks);
    case 3: return add_slice<Format, 3>(sums, x, all, slice, blocks);
    case 4: return add_slice<Format, 4>(sums, x, all, slice, blocks);
    case 5: return add_slice<Format, 5>(sums, x, all, slice, blocks);
    default: return add_slice<Format, 6>(sums, x, all, slice, blocks);
  }
}

// At most MAX_CHUNK rows times one panel.
template <class Format>
void chunk_of_panel(bf16* out, Rows x, const uint8_t* panel, const float* bias, int64_t rows, int64_t blocks,
                    int64_t outputs, int64_t columns) {
  alignas(64) float sums[MAX_CHUNK * OUTPUTS];
  Slice slice;
  for (int64_t row = 0; row < rows; ++row) std::memcpy(sums + row * OUTPUTS, bias, sizeof(float) * OUTPUTS);
  int64_t tiles = (rows + INTEGER_ROWS - 1) / INTEGER_ROWS;  // of like size
  for (int64_t from = 0; from < blocks; from += SLICE) {
    int64_t count = std::min(SLICE, blocks - from);
    unpack<Format>(slice, panel + from * block_bytes<Format>(), count);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      int64_t first = rows * tile / tiles, next = rows * (tile + 1) / tiles, done = first * blocks + from;
      add_slice<Format>(sums + first * OUTPUTS, {x.whole + done * BLOCK, x.steps + done, x.sums + done}, blocks, slice,
                        count, next - first);
    }
  }
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < std::min<int64_t>(columns, OUTPUTS); ++column)
      out[row * outputs + column] = from_float<bf16>(sums[row * OUTPUTS + column]);
}
#endif
