// Attention of many query tokens of one request over its blocks of 16 tokens: bfloat16, float32 sums, for processors
// with AVX2 and without AVX512-bf16.
//
// As native.cpp, with panels of 16 columns, 6 rows at a time, and weights that stay in float32.
#include "avx2.h"

#ifdef SWITCHYARD_BF16_WIDENED

constexpr int BLOCK = 16, ROWS = MAX_ROWS, KEYS = 64, MAX_DIM = 256;
static_assert(BLOCK == PANEL, "one block of keys is one panel");

#include "native_frame.h"

namespace {

// One block of one KV head: keys to [padded / 16, dim / 2, 16, 2], values to [dim / 16, padded / 2, 16, 2].
void lay_out(bf16* key_panels, bf16* value_panels, const bf16* keys, const bf16* values, const Chunk& c, int64_t head,
             int64_t block) {
  int64_t first = block * BLOCK, stride = c.kv_heads * c.dim;
  int known = int(std::clamp<int64_t>(c.context - first, 0, BLOCK));
  int64_t place = known ? (int64_t(c.table[block]) * BLOCK) * stride + head * c.dim : 0;
  bf16* to = key_panels + first * c.dim;
  // Slots that nobody wrote may hold anything, and 0 * NaN is NaN.
  if (known < BLOCK) std::memset(to, 0, sizeof(bf16) * PANEL * c.dim);
  for (int t = 0; t < known; ++t)
    for (int64_t pair = 0; pair < c.dim / 2; ++pair)
      std::memcpy(to + (pair * PANEL + t) * 2, keys + place + t * stride + pair * 2, 2 * sizeof(bf16));
  for (int t = 0; t < BLOCK; t += 2)
    for (int64_t panel = 0; panel < c.dim / PANEL; ++panel) {
      const bf16* from = values + place + t * stride + panel * PANEL;
      __m256i one = t < known ? _mm256_loadu_si256((const __m256i*)from) : _mm256_setzero_si256();
      __m256i other = t + 1 < known ? _mm256_loadu_si256((const __m256i*)(from + stride)) : _mm256_setzero_si256();
      __m256i low = _mm256_unpacklo_epi16(one, other), high = _mm256_unpackhi_epi16(one, other);
      bf16* at = value_panels + (panel * (c.padded() / 2) + (first + t) / 2) * 2 * PANEL;
      _mm256_storeu_si256((__m256i*)at, _mm256_permute2x128_si256(low, high, 0x20));
      _mm256_storeu_si256((__m256i*)(at + PANEL), _mm256_permute2x128_si256(low, high, 0x31));
    }
}

void attend(bf16* out, const bf16* query, const bf16* key_panels, const bf16* value_panels, const Chunk& c,
            int64_t head, int64_t first, float scale) {
  alignas(32) float rows[ROWS * MAX_DIM], scores[ROWS * KEYS], sums[ROWS * MAX_DIM];
  float maxima[ROWS], totals[ROWS];
  int64_t positions[ROWS], places[ROWS], group = c.group(), dim = c.dim;
  int64_t count = std::min<int64_t>(ROWS, c.num_new * group - first);
  for (int64_t row = 0; row < count; ++row) {
    int64_t index = first + row;
    positions[row] = c.context - c.num_new + index / group;
    places[row] = (index / group * c.heads + head * group + index % group) * dim;
    for (int64_t d = 0; d < dim; ++d) rows[row * dim + d] = to_float(query[places[row] + d]);
    maxima[row] = -std::numeric_limits<float>::infinity();
    totals[row] = 0;
  }
  std::memset(sums, 0, sizeof(float) * count * dim);
  int64_t oldest = c.window > 0 ? std::max<int64_t>(positions[0] - c.window + 1, 0) : 0;
  for (int64_t key = oldest / KEYS * KEYS; key <= positions[count - 1]; key += KEYS) {
    // Columns after the last key that a row sees are left out, a panel at a time.
    int width = int(std::min<int64_t>(KEYS, (positions[count - 1] - key) / PANEL * PANEL + PANEL));
    std::memset(scores, 0, sizeof(scores));
    for (int64_t panel = 0; panel < width; panel += PANEL)
      add_products(scores + panel, KEYS, rows, dim, key_panels + (key + panel) * dim, dim / 2, count);
    for (int64_t row = 0; row < count; ++row) {
      int last = int(std::min<int64_t>(positions[row] - key, width - 1));
      int begin = c.window > 0 ? int(std::clamp<int64_t>(positions[row] - key - c.window + 1, 0, KEYS)) : 0;
      float maximum, total = weigh_scores(scores + row * KEYS, scale, maxima[row], 0, width, begin, last, &maximum);
      if (maximum > maxima[row]) {
        float correction = std::isinf(maxima[row]) ? 0.0f : fast_exp(maxima[row] - maximum);
        totals[row] *= correction;
        for (int64_t d = 0; d < dim; ++d) sums[row * dim + d] *= correction;
        maxima[row] = maximum;
      }
      totals[row] += total;
    }
    for (int64_t panel = 0; panel < dim / PANEL; ++panel)
      add_products(sums + panel * PANEL, dim, scores, KEYS,
                   value_panels + (panel * (c.padded() / 2) + key / 2) * 2 * PANEL, width / 2, count);
  }
  for (int64_t row = 0; row < count; ++row) {
    float inverse = 1.0f / totals[row];
    for (int64_t d = 0; d < dim; ++d) out[places[row] + d] = from_float<bf16>(sums[row * dim + d] * inverse);
  }
}

}  // namespace

#endif
