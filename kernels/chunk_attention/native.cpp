// Attention of many query tokens of one request over its blocks of 16 tokens: bfloat16, float32 sums, AVX512-bf16.
//
// Keys and values are laid out once a call in panels of 32 columns as vdpbf16ps wants them, two of the summed dimension
// side by side. The query heads of a KV head are rows; 12 rows at a time pass over 64 keys at a time with online
// softmax. (FlashAttention-2's loop order.)
#include "avx512.h"

#ifdef SWITCHYARD_BF16_PRODUCTS

constexpr int BLOCK = 16, ROWS = 12, KEYS = 64, MAX_DIM = 256;

#include "native_frame.h"

namespace {

// out[ROWS][32] += x[ROWS][2 * pairs] . panel
inline void add_product(float* out, int64_t out_stride, const bf16* x, int64_t x_stride, const bf16* panel,
                        int64_t pairs) {
  __m512 sums[ROWS][2];
  for (int row = 0; row < ROWS; ++row)
    for (int half = 0; half < 2; ++half) sums[row][half] = _mm512_loadu_ps(out + row * out_stride + half * 16);
  add_products<ROWS, 1>(sums, x, x_stride, panel, pairs);
  for (int row = 0; row < ROWS; ++row)
    for (int half = 0; half < 2; ++half) _mm512_storeu_ps(out + row * out_stride + half * 16, sums[row][half]);
}

// One block of one KV head: keys to [padded / 32, dim / 2, 32, 2], values to [dim / 32, padded / 2, 32, 2].
void lay_out(bf16* key_panels, bf16* value_panels, const bf16* keys, const bf16* values, const Chunk& c, int64_t head,
             int64_t block) {
  int64_t first = block * BLOCK, stride = c.kv_heads * c.dim;
  int known = int(std::clamp<int64_t>(c.context - first, 0, BLOCK));
  // Slots that nobody wrote may hold anything, and 0 * NaN is NaN.
  int64_t place = known ? (int64_t(c.table[block]) * BLOCK) * stride + head * c.dim : 0;
  __mmask16 mask = __mmask16((1u << known) - 1);
  __m512i index = _mm512_mullo_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                     _mm512_set1_epi32(int(stride * 2)));
  bf16* to = key_panels + first / PANEL * PANEL * c.dim + first % PANEL * 2;
  for (int64_t pair = 0; pair < c.dim / 2; ++pair)
    _mm512_storeu_si512(to + pair * 2 * PANEL, _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), mask, index,
                                                                           keys + place + pair * 2, 1));
  for (int t = 0; t < BLOCK; t += 2)
    for (int64_t panel = 0; panel < c.dim / PANEL; ++panel) {
      const bf16* from = values + place + t * stride + panel * PANEL;
      __m512i a = t < known ? _mm512_loadu_si512(from) : _mm512_setzero_si512();
      __m512i b = t + 1 < known ? _mm512_loadu_si512(from + stride) : _mm512_setzero_si512();
      bf16* at = value_panels + (panel * (c.padded() / 2) + (first + t) / 2) * 2 * PANEL;
      __m512i low, high;
      side_by_side(a, b, &low, &high);
      _mm512_storeu_si512(at, low);
      _mm512_storeu_si512(at + PANEL, high);
    }
}

void attend(bf16* out, const bf16* query, const bf16* key_panels, const bf16* value_panels, const Chunk& c,
            int64_t head, int64_t first, float scale) {
  alignas(64) bf16 rows[ROWS * MAX_DIM], weights[ROWS * KEYS];
  alignas(64) float scores[ROWS * KEYS], sums[ROWS * MAX_DIM];
  float maxima[ROWS], totals[ROWS];
  int64_t positions[ROWS], places[ROWS], group = c.group(), dim = c.dim;
  int64_t count = std::min<int64_t>(ROWS, c.num_new * group - first);
  for (int row = 0; row < ROWS; ++row) {
    int64_t index = first + std::min<int64_t>(row, count - 1);  // what is left of a last tile repeats its last row
    positions[row] = c.context - c.num_new + index / group;
    places[row] = (index / group * c.heads + head * group + index % group) * dim;
    std::memcpy(rows + row * dim, query + places[row], dim * sizeof(bf16));
    maxima[row] = -std::numeric_limits<float>::infinity();
    totals[row] = 0;
  }
  std::memset(sums, 0, sizeof(float) * ROWS * dim);
  int64_t oldest = c.window > 0 ? std::max<int64_t>(positions[0] - c.window + 1, 0) : 0;
  for (int64_t key = oldest / KEYS * KEYS; key <= positions[ROWS - 1]; key += KEYS) {
    std::memset(scores, 0, sizeof(scores));
    for (int64_t panel = 0; panel < KEYS / PANEL; ++panel)
      add_product(scores + panel * PANEL, KEYS, rows, dim, key_panels + (key + panel * PANEL) * dim, dim / 2);
    for (int row = 0; row < ROWS; ++row) {
      int64_t last = positions[row] - key, begin = c.window > 0 ? last - c.window + 1 : 0;
      uint64_t seen = last >= KEYS - 1 ? ~0ull : last < 0 ? 0 : (1ull << (last + 1)) - 1;
      if (begin > 0) seen &= begin >= KEYS ? 0 : ~0ull << begin;
      __m512 s[4], most = _mm512_set1_ps(maxima[row]);
      for (int i = 0; i < 4; ++i) {
        s[i] = _mm512_mul_ps(_mm512_load_ps(scores + row * KEYS + i * 16), _mm512_set1_ps(scale));
        most = _mm512_mask_max_ps(most, __mmask16(seen >> (16 * i)), most, s[i]);
      }
      float maximum = _mm512_reduce_max_ps(most);
      float base = std::isinf(maximum) ? 0.0f : maximum;  // nothing of it seen yet
      __m512 total = _mm512_setzero_ps();
      for (int i = 0; i < 4; ++i) {
        __m512 w = _mm512_maskz_mov_ps(__mmask16(seen >> (16 * i)), exp_each(_mm512_sub_ps(s[i], _mm512_set1_ps(base))));
        total = _mm512_add_ps(total, w);
        _mm256_store_si256((__m256i*)(weights + row * KEYS + i * 16), (__m256i)_mm512_cvtneps_pbh(w));
      }
      if (maximum > maxima[row]) {
        float correction = std::isinf(maxima[row]) ? 0.0f : fast_exp(maxima[row] - maximum);
        totals[row] *= correction;
        for (int64_t d = 0; d < dim; ++d) sums[row * dim + d] *= correction;
        maxima[row] = maximum;
      }
      totals[row] += _mm512_reduce_add_ps(total);
    }
    for (int64_t panel = 0; panel < dim / PANEL; ++panel)
      add_product(sums + panel * PANEL, dim, weights, KEYS,
                  value_panels + (panel * (c.padded() / 2) + key / 2) * 2 * PANEL, KEYS / 2);
  }
  for (int row = 0; row < count; ++row) {
    float inverse = 1.0f / totals[row];
    for (int64_t d = 0; d < dim; ++d) out[places[row] + d] = from_float<bf16>(sums[row * dim + d] * inverse);
  }
}

}  // namespace

#endif
