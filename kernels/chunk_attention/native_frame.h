// What both instruction sets share: the shape of a call, and its loops over KV heads, blocks and tiles of rows.
//
// Included inside `#ifdef` of one instruction set, after BLOCK and ROWS and KEYS, which differ; that file defines
// `lay_out` and `attend`.
#pragma once

#include <algorithm>
#include <vector>

namespace {

struct Chunk {
  const int32_t* table;
  int64_t num_new, context, heads, kv_heads, dim, window;
  int64_t group() const { return heads / kv_heads; }
  int64_t padded() const { return (context + KEYS - 1) / KEYS * KEYS; }
  int64_t head_size() const { return padded() * dim; }  // of one KV head's panels
};

// Key and value panels of one block of 16 tokens of one KV head.
void lay_out(bf16* key_panels, bf16* value_panels, const bf16* keys, const bf16* values, const Chunk& c, int64_t head,
             int64_t block);

// Rows [first, first + ROWS) of one KV head; row = token * group + query head within the group.
void attend(bf16* out, const bf16* query, const bf16* key_panels, const bf16* value_panels, const Chunk& c,
            int64_t head, int64_t first, float scale);

}  // namespace

extern "C" void switchyard_chunk_attention(void* out, const void* query, const void* keys, const void* values,
                                           const void* table, int64_t num_new, int64_t context, int64_t heads,
                                           int64_t kv_heads, int64_t dim, float scale, int64_t window) {
  Chunk c{(const int32_t*)table, num_new, context, heads, kv_heads, dim, window};
  static thread_local std::vector<bf16> scratch;
  scratch.resize(2 * kv_heads * c.head_size());
  bf16* key_panels = scratch.data();
  bf16* value_panels = key_panels + kv_heads * c.head_size();
  int64_t blocks = c.padded() / BLOCK, tiles = (num_new * c.group() + ROWS - 1) / ROWS;
#pragma omp parallel
  {
#pragma omp for collapse(2) schedule(static)
    for (int64_t head = 0; head < kv_heads; ++head)
      for (int64_t block = 0; block < blocks; ++block)
        lay_out(key_panels + head * c.head_size(), value_panels + head * c.head_size(), (const bf16*)keys,
                (const bf16*)values, c, head, block);
#pragma omp for collapse(2) schedule(dynamic, 4)
    for (int64_t head = 0; head < kv_heads; ++head)
      for (int64_t tile = 0; tile < tiles; ++tile)
        attend((bf16*)out, (const bf16*)query, key_panels + head * c.head_size(), value_panels + head * c.head_size(),
               c, head, tile * ROWS, scale);
  }
}
