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

// Turns scores into weights that are still to be divided by what it returns.
float softmax(float* scores, int64_t tokens, float scale) {
  float most = -std::numeric_limits<float>::infinity(), total = 0;
#pragma omp simd reduction(max : most)
  for (int64_t t = 0; t < tokens; ++t) most = scores[t] > most ? scores[t] : most;
#pragma omp simd reduction(+ : total)
  for (int64_t t = 0; t < tokens; ++t) total += scores[t] = fast_exp((scores[t] - most) * scale);
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
