// Attention of every token of a sequence to all tokens of it, over sequences that lie one after another: float32.
//
// One task is one head of one sequence. Its keys and values are laid out in panels: where they lie, rows are so far apart
// that they push each other out of the cache. A few queries at a time keep all their scores, so the softmax is taken once.
#include "float_panels.h"

#include <algorithm>
#include <vector>

namespace {

struct Head {
  const float *queries, *keys, *values;  // rows of `stride`
  int64_t tokens, stride, dim;
  int64_t scratch() const { return (padded() + tokens + FLOAT_ROWS) * dim + FLOAT_ROWS * padded(); }
  int64_t padded() const { return (tokens + FLOAT_PANEL - 1) / FLOAT_PANEL * FLOAT_PANEL; }
};

// Keys to [padded / P, dim, P], values to [dim / P, tokens, P].
void lay_out(float* keys, float* values, const Head& head) {
  if (head.padded() > head.tokens)
    std::memset(keys + (head.padded() - FLOAT_PANEL) * head.dim, 0, sizeof(float) * FLOAT_PANEL * head.dim);
  for (int64_t token = 0; token < head.tokens; ++token) {
    const float *key = head.keys + token * head.stride, *value = head.values + token * head.stride;
    float* to = keys + token / FLOAT_PANEL * FLOAT_PANEL * head.dim + token % FLOAT_PANEL;
    for (int64_t d = 0; d < head.dim; ++d) to[d * FLOAT_PANEL] = key[d];
    for (int64_t d = 0; d < head.dim; d += FLOAT_PANEL)
      std::memcpy(values + (d / FLOAT_PANEL * head.tokens + token) * FLOAT_PANEL, value + d, sizeof(float) * FLOAT_PANEL);
  }
}

// 2^x for x <= 0, |relative error| < 2e-7 near 0; NaN stays.
inline floats power_of_two(floats x) {
  typedef int32_t ints __attribute__((vector_size(4 * FLOAT_LANES)));
  const float rounder = 12582912.0f;  // 1.5 * 2^23: adding it rounds, and leaves the whole number in the low bits
  floats lowest = floats{} - 126.0f;
  x = lowest > x ? lowest : x;
  floats shifted = x + rounder, f = x - (shifted - rounder);
  floats p = f * 1.32669704e-3f + 9.67545975e-3f;
  p = p * f + 5.55074262e-2f;
  p = p * f + 2.40221218e-1f;
  p = p * f + 6.93146949e-1f;
  p = p * f + 1.0f;
  return (floats)((ints)p + ((ints)shifted << 23));
}

// Turns scores into weights that are still to be divided by what it returns; there is room up to the next panel.
float softmax(float* scores, int64_t tokens, float scale) {
  const float absent = -std::numeric_limits<float>::max();
  int64_t vectors = (tokens + FLOAT_LANES - 1) / FLOAT_LANES;
  floats* lanes = (floats*)scores;
  std::fill(scores + tokens, scores + vectors * FLOAT_LANES, absent);
  floats maxima = lanes[0], totals = {};
  for (int64_t i = 1; i < vectors; ++i) maxima = lanes[i] > maxima ? lanes[i] : maxima;
  float most = maxima[0], total = 0;
  for (int lane = 1; lane < FLOAT_LANES; ++lane) most = maxima[lane] > most ? maxima[lane] : most;
  scale *= 1.44269504088896341f;
  for (int64_t i = 0; i < vectors; ++i) totals += lanes[i] = power_of_two((lanes[i] - most) * scale);
  for (int lane = 0; lane < FLOAT_LANES; ++lane) total += totals[lane];
  return total;
}

void attend(float* out, int64_t out_stride, const Head& head, float* scratch, float scale) {
  int64_t padded = head.padded(), dim = head.dim;
  float *keys = scratch, *values = keys + padded * dim, *scores = values + head.tokens * dim;
  float* sums = scores + FLOAT_ROWS * padded;
  lay_out(keys, values, head);
  int64_t tiles = (head.tokens + FLOAT_ROWS - 1) / FLOAT_ROWS;  // of like size
  for (int64_t tile = 0; tile < tiles; ++tile) {
    int64_t first = head.tokens * tile / tiles, rows = head.tokens * (tile + 1) / tiles - first;
    std::memset(scores, 0, sizeof(float) * (rows * padded));
    std::memset(sums, 0, sizeof(float) * (rows * dim));
    for (int64_t key = 0; key < padded; key += FLOAT_PANEL)
      add_float_products(scores + key, padded, head.queries + first * head.stride, head.stride, keys + key * dim,
                         FLOAT_PANEL, dim, rows);
    float totals[FLOAT_ROWS];
    for (int64_t row = 0; row < rows; ++row) totals[row] = softmax(scores + row * padded, head.tokens, scale);
    for (int64_t d = 0; d < dim; d += FLOAT_PANEL)
      add_float_products(sums + d, dim, scores, padded, values + d * head.tokens, FLOAT_PANEL, head.tokens, rows);
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t d = 0; d < dim; ++d) out[(first + row) * out_stride + d] = sums[row * dim + d] / totals[row];
  }
}

}  // namespace

extern "C" void switchyard_self_attention(void* out, const void* qkv, const void* starts, int64_t sequences,
                                          int64_t heads, int64_t dim, float scale) {
  const int64_t* begin = (const int64_t*)starts;
  int64_t width = heads * dim;
#pragma omp parallel num_threads(threads_for(begin[sequences] * width * 16))
  {
    static thread_local std::vector<float> scratch;
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t sequence = 0; sequence < sequences; ++sequence)
      for (int64_t index = 0; index < heads; ++index) {
        const float* queries = (const float*)qkv + begin[sequence] * 3 * width + index * dim;
        Head head{queries, queries + width, queries + 2 * width, begin[sequence + 1] - begin[sequence], 3 * width, dim};
        scratch.resize(std::max<size_t>(scratch.size(), head.scratch()));
        attend((float*)out + begin[sequence] * width + index * dim, width, head, scratch.data(), scale);
      }
  }
}
