// A decoder's whole forward over a flat batch: the kernels of its parts in turn, without a way back to Python between
// them. With few rows those ways back are a third of a step.
#include "avx2.h"

#include <algorithm>
#include <vector>

#ifdef SWITCHYARD_AVX2

// What each does is said where it is defined.
extern "C" {
void switchyard_rms_norm(void* out, const void* x, void* residual, const void* weight, int64_t rows, int64_t width,
                         float eps, int64_t dtype);
void switchyard_linear(void* out, const void* x, const void* panels, const void* bias, int64_t rows, int64_t inputs,
                       int64_t outputs);
void switchyard_packed_linear(void* out, const void* x, const void* panels, const void* bias, int64_t bits,
                              int64_t rows, int64_t inputs, int64_t outputs);
void switchyard_lora_add(void* out, const void* x, const void* a, const void* b, const void* runs, int64_t num_runs,
                         const void* parts, int64_t num_parts, int64_t inputs, int64_t outputs, int64_t rank,
                         int64_t dtype);
void switchyard_kv_write(void* query, const void* qkv, const void* cos, const void* sin, const void* slots, void* keys,
                         void* values, const void* q_norm, const void* k_norm, float eps, int64_t tokens,
                         int64_t heads, int64_t kv_heads, int64_t dim, int64_t dtype);
void switchyard_paged_attention(void* out, const void* query, const void* keys, const void* values,
                                const void* table_of_item, const void* first_block, const void* last_block,
                                const void* rows_of_item, const void* rows, const void* partials_of_row,
                                const void* partials, const void* positions, const void* tables, int64_t items,
                                int64_t tokens, int64_t max_blocks, int64_t heads, int64_t kv_heads, int64_t dim,
                                float scale, int64_t window, int64_t dtype);
void switchyard_chunk_attention(void* out, const void* query, const void* keys, const void* values, const void* table,
                                int64_t num_new, int64_t context, int64_t heads, int64_t kv_heads, int64_t dim,
                                float scale, int64_t window);
void switchyard_silu_mul(void* out, const void* gate_up, int64_t rows, int64_t width, int64_t dtype);
}

namespace {

// The structs of structs.py, field by field.
struct Matrix {
  const void *data, *bias;
  int64_t bits, inputs, outputs;  // 4 or 8 bits: of packed_linear; 16: of linear
};

struct LowRank {
  const void *a, *b, *parts;  // a is null where no adapter changes the linear
  int64_t num_parts, rank;
};

struct LayerLowRank {
  LowRank qkv, output, gate_up, down;
};

struct Layer {
  const void *attention_norm, *q_norm, *k_norm, *mlp_norm;
  int64_t window;
  Matrix qkv, output, gate_up, down;
};

struct Model {
  const void *embedding, *norm;
  const Layer* layers;
  int64_t num_layers, hidden, heads, kv_heads, dim;
  float eps, head_eps, scale;
};

struct Chunk {
  const void* table;
  int64_t start, tokens, context;
};

struct Step {
  const int64_t* tokens;
  int64_t rows;
  const void *cos, *sin, *slots;
  bf16 *keys, *values;
  int64_t layer_size;  // numbers of one layer's keys
  const void* paged[9];
  int64_t items, max_blocks, short_rows;
  const Chunk* chunks;
  int64_t num_chunks;
  const LayerLowRank* adapters;  // null where no row uses one
  const void* runs;
  int64_t num_runs;
  const int64_t* wanted;
  int64_t num_wanted;
  Matrix head;
  double* seconds;  // by Part, added to; null: nobody asks
};

enum Part { LINEAR, LOW_RANK, NORM, KV_WRITE, ATTENTION, ACTIVATION };

// Adds to a part what passed since the last call.
struct Clock {
  double* seconds;
  double last;
  explicit Clock(double* to) : seconds(to), last(to ? omp_get_wtime() : 0) {}
  void pass(Part part) {
    if (seconds == nullptr) return;
    double now = omp_get_wtime();
    seconds[part] += now - last;
    last = now;
  }
};

// Room for the numbers between two parts, kept by the thread.
struct Scratch {
  std::vector<bf16> memory;
  bf16 *residual, *x, *normed, *qkv, *query, *attended, *gate_up, *inner, *picked, *picked_residual;

  void fit(int64_t rows, const Model& model, int64_t inner_width) {
    int64_t heads = model.heads * model.dim, all_heads = heads + 2 * model.kv_heads * model.dim;
    const struct {
      bf16** part;
      int64_t width;
    } parts[] = {{&residual, model.hidden}, {&x, model.hidden},           {&normed, model.hidden},
                 {&qkv, all_heads},         {&query, heads},              {&attended, heads},
                 {&gate_up, 2 * inner_width}, {&inner, inner_width},      {&picked, model.hidden},
                 {&picked_residual, model.hidden}};
    int64_t total = 0;
    for (const auto& each : parts) total += rows * each.width;
    if (int64_t(memory.size()) < total) memory.resize(total);
    bf16* at = memory.data();
    for (const auto& each : parts) {
      *each.part = at;
      at += rows * each.width;
    }
  }
};

struct Forward {
  const Model& model;
  const Step& step;
  Scratch& s;
  Clock clock;

  void multiply(bf16* out, const bf16* x, const Matrix& matrix, int64_t rows) {
    if (matrix.bits == 16)
      switchyard_linear(out, x, matrix.data, matrix.bias, rows, matrix.inputs, matrix.outputs);
    else
      switchyard_packed_linear(out, x, matrix.data, matrix.bias, matrix.bits, rows, matrix.inputs, matrix.outputs);
    clock.pass(LINEAR);
  }

  void linear(bf16* out, const bf16* x, const Matrix& matrix, const LowRank* low) {
    multiply(out, x, matrix, step.rows);
    if (low == nullptr || low->a == nullptr) return;
    switchyard_lora_add(out, x, low->a, low->b, step.runs, step.num_runs, low->parts, low->num_parts, matrix.inputs,
                        matrix.outputs, low->rank, BF16);
    clock.pass(LOW_RANK);
  }

  void norm(const bf16* x, bf16* residual, const void* weight, int64_t rows) {
    switchyard_rms_norm(s.normed, x, residual, weight, rows, model.hidden, model.eps, BF16);
    clock.pass(NORM);
  }

  void attention(int64_t index) {
    const Layer& layer = model.layers[index];
    bf16 *keys = step.keys + index * step.layer_size, *values = step.values + index * step.layer_size;
    switchyard_kv_write(s.query, s.qkv, step.cos, step.sin, step.slots, keys, values, layer.q_norm, layer.k_norm,
                        model.head_eps, step.rows, model.heads, model.kv_heads, model.dim, BF16);
    clock.pass(KV_WRITE);
    const void* const* p = step.paged;
    if (step.short_rows)
      switchyard_paged_attention(s.attended, s.query, keys, values, p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7],
                                 p[8], step.items, step.short_rows, step.max_blocks, model.heads, model.kv_heads,
                                 model.dim, model.scale, layer.window, BF16);
    for (const Chunk* chunk = step.chunks; chunk < step.chunks + step.num_chunks; ++chunk) {
      int64_t from = chunk->start * model.heads * model.dim;
      switchyard_chunk_attention(s.attended + from, s.query + from, keys, values, chunk->table, chunk->tokens,
                                 chunk->context, model.heads, model.kv_heads, model.dim, model.scale, layer.window);
    }
    clock.pass(ATTENTION);
  }

  void run(bf16* logits) {
    int64_t hidden = model.hidden, inner = model.layers[0].down.inputs, width = model.heads * model.dim;
    s.fit(step.rows, model, inner);
    for (int64_t row = 0; row < step.rows; ++row)
      std::memcpy(s.residual + row * hidden, (const bf16*)model.embedding + step.tokens[row] * hidden, 2 * hidden);
    int64_t used = step.short_rows;
    for (int64_t i = 0; i < step.num_chunks; ++i) used += step.chunks[i].tokens;
    std::fill(s.attended + used * width, s.attended + step.rows * width, bf16{0});  // rows of nobody
    norm(s.residual, nullptr, model.layers[0].attention_norm, step.rows);
    for (int64_t index = 0; index < model.num_layers; ++index) {
      const Layer& layer = model.layers[index];
      const LayerLowRank* low = step.adapters ? step.adapters + index : nullptr;
      linear(s.qkv, s.normed, layer.qkv, low ? &low->qkv : nullptr);
      attention(index);
      linear(s.x, s.attended, layer.output, low ? &low->output : nullptr);
      norm(s.x, s.residual, layer.mlp_norm, step.rows);
      linear(s.gate_up, s.normed, layer.gate_up, low ? &low->gate_up : nullptr);
      switchyard_silu_mul(s.inner, s.gate_up, step.rows, inner, BF16);
      clock.pass(ACTIVATION);
      linear(s.x, s.inner, layer.down, low ? &low->down : nullptr);
      if (index + 1 < model.num_layers) norm(s.x, s.residual, model.layers[index + 1].attention_norm, step.rows);
    }
    // Only these rows are looked at: the others' last norm and logits would be thrown away.
    for (int64_t i = 0; i < step.num_wanted; ++i) {
      std::memcpy(s.picked + i * hidden, s.x + step.wanted[i] * hidden, 2 * hidden);
      std::memcpy(s.picked_residual + i * hidden, s.residual + step.wanted[i] * hidden, 2 * hidden);
    }
    if (step.num_wanted == 0) return;
    norm(s.picked, s.picked_residual, model.norm, step.num_wanted);
    multiply(logits, s.normed, step.head, step.num_wanted);
  }
};

}  // namespace

extern "C" void switchyard_decoder_forward(void* logits, const void* model, const void* step) {
  static thread_local Scratch scratch;
  const Step& of = *(const Step*)step;
  Forward{*(const Model*)model, of, scratch, Clock(of.seconds)}.run((bf16*)logits);
}

#endif
