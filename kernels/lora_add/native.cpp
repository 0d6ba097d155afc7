// out[t] += B[slot] (A[slot] x[t]) for runs of rows that share an adapter, summed in float32 and rounded once.
//
// A lies in panels of 8 of the rank, [S, P * R / 8, in, 8], B in panels of 8 outputs, [S, out / 8, R, 8]. Part p of a
// fused weight has its own R of A's rows, and only those reach its outputs. An adapter whose rank is below R is
// computed at its own: the padding is not read.
#include "common.h"

#include <algorithm>
#include <vector>

namespace {

constexpr int LANES = 8;
constexpr int MAX_ROWS = 6;
// Outputs of one task, so that even a single row has work for several threads.
constexpr int64_t BLOCK_PANELS = 32;

typedef float vec __attribute__((vector_size(4 * LANES)));

inline vec load(const float* from) {
  vec out;
  std::memcpy(&out, from, sizeof out);
  return out;
}

inline vec widen(const float* from) { return load(from); }

inline vec widen(const bf16* from) {
  typedef uint16_t narrow __attribute__((vector_size(2 * LANES)));
  typedef uint32_t wide __attribute__((vector_size(4 * LANES)));
  narrow bits;
  std::memcpy(&bits, from, sizeof bits);
  return (vec)(__builtin_convertvector(bits, wide) << 16);
}

inline vec widen(const f16* from) {
  alignas(32) float lanes[LANES];
  for (int lane = 0; lane < LANES; ++lane) lanes[lane] = to_float(from[lane]);
  return load(lanes);
}

// sums[ROWS][PANELS * 8] += x[ROWS][count] . panels
template <int ROWS, int PANELS, class T>
inline void products(float* sums, int64_t stride, const float* x, int64_t x_stride, const T* panels,
                     int64_t panel_stride, int64_t count) {
  // Unrolled in full wherever they are touched, or GCC keeps them in memory.
  vec parts[ROWS][PANELS];
#pragma GCC unroll 6
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
    for (int panel = 0; panel < PANELS; ++panel) parts[row][panel] = load(sums + row * stride + panel * LANES);
  for (int64_t i = 0; i < count; ++i) {
    vec columns[PANELS];
#pragma GCC unroll 4
    for (int panel = 0; panel < PANELS; ++panel) columns[panel] = widen(panels + panel * panel_stride + i * LANES);
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row) {
      float value = x[row * x_stride + i];
#pragma GCC unroll 4
      for (int panel = 0; panel < PANELS; ++panel) parts[row][panel] += columns[panel] * value;
    }
  }
#pragma GCC unroll 6
  for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 4
    for (int panel = 0; panel < PANELS; ++panel)
      std::memcpy(sums + row * stride + panel * LANES, &parts[row][panel], sizeof(vec));
}

// The same for 1 to MAX_ROWS rows and 1, 2 or 4 panels: few rows take more panels, as a sum waits for the one before.
template <class T>
inline void products(int64_t rows, int64_t panels, float* sums, int64_t stride, const float* x, int64_t x_stride,
                     const T* from, int64_t panel_stride, int64_t count) {
#define CASE(ROWS, PANELS)                                                                     \
  case ROWS * 8 + PANELS:                                                                      \
    return products<ROWS, PANELS>(sums, stride, x, x_stride, from, panel_stride, count);
  switch (rows * 8 + panels) {
    CASE(1, 1) CASE(1, 2) CASE(1, 4) CASE(2, 1) CASE(2, 2) CASE(2, 4) CASE(3, 1) CASE(3, 2)
    CASE(4, 1) CASE(4, 2) CASE(5, 1) CASE(5, 2) CASE(6, 1) CASE(6, 2)
  }
#undef CASE
}

inline int64_t panels_at_once(int64_t rows, int64_t left) { return rows <= 2 && left >= 4 ? 4 : left >= 2 ? 2 : 1; }

struct Tile {
  int64_t row, rows, slot, rank;
};

// Runs of rows in tiles of like size.
std::vector<Tile> tiles_of(const int64_t* runs, int64_t count) {
  std::vector<Tile> tiles;
  for (int64_t i = 0; i < count; ++i, runs += 4) {
    int64_t rows = runs[1] - runs[0], number = (rows + MAX_ROWS - 1) / MAX_ROWS;
    for (int64_t tile = 0; tile < number; ++tile) {
      int64_t first = rows * tile / number, last = rows * (tile + 1) / number;
      tiles.push_back({runs[0] + first, last - first, runs[2], runs[3]});
    }
  }
  return tiles;
}

template <class T>
void run(T* out, const T* x, const T* a, const T* b, const int64_t* runs, int64_t num_runs, const int64_t* parts,
         int64_t num_parts, int64_t inputs, int64_t outputs, int64_t rank) {
  std::vector<Tile> tiles = tiles_of(runs, num_runs);
  int64_t num_tiles = tiles.size(), width = num_parts * rank, work = 0;
  for (const Tile& tile : tiles) work += tile.rows * tile.rank * (num_parts * inputs + outputs);
  // The inner numbers of every tile's rows, MAX_ROWS apart.
  static thread_local std::vector<float> inner;
  inner.assign(num_tiles * MAX_ROWS * width, 0.0f);
  float* shrunk = inner.data();
#pragma omp parallel num_threads(threads_for(work))
  {
    static thread_local std::vector<float> buffer;
    buffer.resize(std::max<size_t>(buffer.size(), MAX_ROWS * inputs));
    float* rows_of_x = buffer.data();
#pragma omp for collapse(2) schedule(static)
    for (int64_t index = 0; index < num_tiles; ++index)
      for (int64_t part = 0; part < num_parts; ++part) {
        const Tile& tile = tiles[index];
        for (int64_t i = 0; i < tile.rows * inputs; ++i) rows_of_x[i] = to_float(x[tile.row * inputs + i]);
        const T* from = a + (tile.slot * width + part * rank) * inputs;
        float* to = shrunk + index * MAX_ROWS * width + part * rank;
        for (int64_t panel = 0, count; panel < tile.rank / LANES; panel += count) {
          count = panels_at_once(tile.rows, tile.rank / LANES - panel);
          products(tile.rows, count, to + panel * LANES, width, rows_of_x, inputs, from + panel * LANES * inputs,
                   LANES * inputs, inputs);
        }
      }
    for (int64_t part = 0, first = 0; part < num_parts; first += parts[part++]) {
      int64_t panels = parts[part] / LANES, blocks = (panels + BLOCK_PANELS - 1) / BLOCK_PANELS;
#pragma omp for collapse(2) schedule(static) nowait
      for (int64_t index = 0; index < num_tiles; ++index)
        for (int64_t block = 0; block < blocks; ++block) {
          const Tile& tile = tiles[index];
          const float* from = shrunk + index * MAX_ROWS * width + part * rank;
          int64_t stop = std::min((block + 1) * BLOCK_PANELS, panels);
          for (int64_t panel = block * BLOCK_PANELS, count; panel < stop; panel += count) {
            count = panels_at_once(tile.rows, stop - panel);
            alignas(32) float sums[MAX_ROWS * 4 * LANES];
            int64_t columns = count * LANES, column = first + panel * LANES;
            for (int64_t row = 0; row < tile.rows; ++row)
              for (int64_t i = 0; i < columns; ++i)
                sums[row * columns + i] = to_float(out[(tile.row + row) * outputs + column + i]);
            products(tile.rows, count, sums, columns, from, width, b + (tile.slot * outputs + column) * rank,
                     rank * LANES, tile.rank);
            for (int64_t row = 0; row < tile.rows; ++row)
              for (int64_t i = 0; i < columns; ++i)
                out[(tile.row + row) * outputs + column + i] = from_float<T>(sums[row * columns + i]);
          }
        }
    }
  }
}

}  // namespace

extern "C" void switchyard_lora_add(void* out, const void* x, const void* a, const void* b, const void* runs,
                                    int64_t num_runs, const void* parts, int64_t num_parts, int64_t inputs,
                                    int64_t outputs, int64_t rank, int64_t dtype) {
#define RUN(T)                                                                                                     \
  run<T>((T*)out, (const T*)x, (const T*)a, (const T*)b, (const int64_t*)runs, num_runs, (const int64_t*)parts, \
         num_parts, inputs, outputs, rank)
  if (dtype == F32) RUN(float);
  else if (dtype == BF16) RUN(bf16);
  else RUN(f16);
#undef RUN
}
