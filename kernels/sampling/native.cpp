// One token of each row of logits: the best one, or a draw by noise. See torch_op.py for the way, noise.py for the noise.
//
// What decides is computed in double precision. Vectors of float only find the few tokens that can win, and sums that
// lie close to a limit are computed again.
#include <algorithm>
#include <type_traits>
#include <utility>
#include <vector>

#include "common.h"
#include "native_best.h"

namespace {

constexpr double NOISE_MOST = 22.88;
// Relative error that sums of fast_exp stay far below.
constexpr double CLOSE = 1e-4;
constexpr int64_t BLOCK = 64;
constexpr float INF = std::numeric_limits<float>::infinity();

uint64_t splitmix(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

inline uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7FEB352D;
  x = (x ^ (x >> 15)) * 0x846CA68B;
  return x ^ (x >> 16);
}

struct Settings {
  float temperature;
  int64_t top_k;
  float top_p, min_p;
  uint64_t seed, position;
};

// Tokens before one of that logit and number, in order of their logits and among equals of their numbers.
struct Before {
  float logit = -INF;
  int64_t id = std::numeric_limits<int64_t>::max();

  bool holds(float x, int64_t i) const { return x > logit || (x == logit && i < id); }
};

class Row {
 public:
  Row(const float* logits, int64_t width, float most, int64_t best, const Settings& settings)
      : logits_(logits), width_(width), most_(most), best_(best), settings_(settings) {
    uint64_t key = splitmix(settings.seed ^ splitmix(settings.position));
    low_ = uint32_t(key);
    high_ = uint32_t(key >> 32);
    inverse_ = std::min(1.0f / settings.temperature, std::numeric_limits<float>::max());
  }

  int64_t draw() const {
    int64_t limit = settings_.top_k > 0 ? std::min(settings_.top_k, width_) : width_;
    bool has_mass = settings_.top_p < 1.0f;
    Before among;
    int64_t chosen = winner(among);
    if (limit == width_ && !has_mass) return chosen;
    Before last = has_mass && limit < width_ ? best_of(limit) : Before();
    while (chosen != best_) {  // which always stays
      among = {logits_[chosen], chosen};
      bool is_kept = limit == width_ || count(among) < limit;
      if (is_kept && has_mass) {
        auto [before, all] = masses(among, last);
        if (std::abs(before - settings_.top_p * all) < CLOSE * all) before = exact_mass(among), all = exact_mass(last);
        is_kept = before < settings_.top_p * all;
      }
      if (is_kept) break;
      chosen = winner(among);
    }
    return chosen;
  }

 private:
  uint32_t hash(uint32_t id) const { return mix(mix(id + low_) ^ high_); }
  double scaled(int64_t i) const { return (double(logits_[i]) - most_) / settings_.temperature; }
  double noise(int64_t i) const { return -std::log(-std::log1p(-(hash(uint32_t(i)) + 0.5) / 4294967296.0)); }

  // The token with the largest sum of scaled logit and noise, of those before `among` that min_p leaves.
  int64_t winner(const Before& among) const {
    double log_share = std::log(double(settings_.min_p));
    int64_t chosen = best_;
    double score = noise(best_);
    for (int64_t start = 0; start < width_; start += BLOCK) {
      int64_t num = std::min(BLOCK, width_ - start);
      const float* x = logits_ + start;
      // Below it no noise lifts a token over the best so far.
      float floor = most_ + settings_.temperature * float(score - NOISE_MOST);
      floor = std::max(floor - 1e-5f * (std::abs(most_) + std::abs(floor)), among.logit);
      int32_t any = 0;
      for (int64_t i = 0; i < num; ++i) any |= x[i] >= floor;
      if (!any) continue;
      // Noise is at most -log(hash / 2^32), so a token can win only where its hash is below that.
      int32_t may_win[BLOCK];
      float lead = float(score);
      for (int64_t i = 0; i < num; ++i) {
        float reach = fast_exp((x[i] - most_) * inverse_ - lead) * 4294967296.0f * 1.001f;
        may_win[i] = (x[i] >= floor) & (float(hash(uint32_t(start + i))) <= reach);
      }
      for (int64_t i = 0; i < num; ++i) {
        int64_t id = start + i;
        if (!may_win[i] || !among.holds(x[i], id)) continue;
        double own = scaled(id);
        if (own < log_share) continue;
        own += noise(id);
        if (own > score || (own == score && id < chosen)) score = own, chosen = id;
      }
    }
    return chosen;
  }

  int64_t count(const Before& before) const {
    int64_t split = std::min(before.id, width_);
    return at_least(before.logit, 0, split) + above(before.logit, split, width_);
  }

  int32_t at_least(float logit, int64_t start, int64_t stop) const {
    int32_t num = 0;
    for (int64_t i = start; i < stop; ++i) num += logits_[i] >= logit;
    return num;
  }

  int32_t above(float logit, int64_t start, int64_t stop) const {
    int32_t num = 0;
    for (int64_t i = start; i < stop; ++i) num += logits_[i] > logit;
    return num;
  }

  // Sums of weights before each of the two.
  std::pair<double, double> masses(const Before& one, const Before& other) const {
    constexpr int LANES = 16;
    constexpr int64_t PART = 64 * LANES;  // summed in float
    const int64_t whole = width_ - width_ % LANES;
    double sums[2] = {};
    for (int64_t start = 0; start < whole; start += PART) {
      int64_t stop = std::min(start + PART, whole);
      float ones[LANES] = {}, others[LANES] = {};
      for (int64_t i = start; i < stop; i += LANES) {
        int32_t split = lanes_before(one.id - i, LANES), other_split = lanes_before(other.id - i, LANES);
        for (int32_t lane = 0; lane < LANES; ++lane) {
          float x = logits_[i + lane], own = weight(x);
          ones[lane] += (x > one.logit) | ((x == one.logit) & (lane < split)) ? own : 0.0f;
          others[lane] += (x > other.logit) | ((x == other.logit) & (lane < other_split)) ? own : 0.0f;
        }
      }
      for (int lane = 0; lane < LANES; ++lane) sums[0] += ones[lane], sums[1] += others[lane];
    }
    for (int64_t i = whole; i < width_; ++i) {
      if (one.holds(logits_[i], i)) sums[0] += weight(logits_[i]);
      if (other.holds(logits_[i], i)) sums[1] += weight(logits_[i]);
    }
    return {sums[0], sums[1]};
  }

  static int32_t lanes_before(int64_t distance, int32_t lanes) {
    return int32_t(std::clamp(distance, int64_t(0), int64_t(lanes)));
  }

  float weight(float x) const { return fast_exp((x - most_) * inverse_); }

  double exact_mass(const Before& before) const {
    double sum = 0.0;
    for (int64_t i = 0; i < width_; ++i)
      if (before.holds(logits_[i], i)) sum += std::exp(scaled(i));
    return sum;
  }

  // What the `limit` best tokens, fewer than all, come before.
  Before best_of(int64_t limit) const {
    // The largest number, in the order of floats' bits, that so many logits reach.
    uint32_t key = 0;
    for (int bit = 31; bit >= 0; --bit) {
      uint32_t higher = key | uint32_t(1) << bit;
      if (higher <= LEAST_KEY || at_least(from_key(higher), 0, width_) >= limit) key = higher;
    }
    float logit = from_key(key);
    int64_t id = 0;
    for (int64_t left = limit - above(logit, 0, width_); left > 0; ++id) left -= logits_[id] == logit;
    return {logit, id};
  }

  // The float of that place in the order of all. No logit lies below LEAST_KEY, minus infinity's; NaN does.
  static constexpr uint32_t LEAST_KEY = 0x007fffff;

  static float from_key(uint32_t key) {
    uint32_t bits = key >> 31 ? key ^ 0x80000000u : ~key;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }

  const float* logits_;
  int64_t width_;
  float most_;
  int64_t best_;
  Settings settings_;
  uint32_t low_, high_;
  float inverse_;
};

const float* widened(const float* row, int64_t) { return row; }

template <class T>
const float* widened(const T* row, int64_t width) {
  thread_local std::vector<float> wide;
  wide.resize(width);
  for (int64_t i = 0; i < width; ++i) wide[i] = to_float(row[i]);
  return wide.data();
}

template <class T>
int64_t choose(const T* row, int64_t width, const Settings& settings) {
  int64_t id;
  float most;
  if constexpr (std::is_same_v<T, f16>) best(&id, &most, widened(row, width), width);
  else best(&id, &most, row, width);
  if (!std::isfinite(most)) return -1;
  if (!(settings.temperature > 0)) return id;
  return Row(widened(row, width), width, most, id, settings).draw();
}

}  // namespace

// `stride` counts the logits between rows.
extern "C" void switchyard_sample(int64_t* ids, const void* logits, int64_t rows, int64_t width, int64_t stride,
                                  int64_t dtype, const float* temperature, const int64_t* top_k, const float* top_p,
                                  const float* min_p, const uint64_t* seed, const uint64_t* position) {
#pragma omp parallel for num_threads(threads_for(rows * width)) schedule(dynamic)
  for (int64_t row = 0; row < rows; ++row) {
    Settings settings{temperature[row], top_k[row], top_p[row], min_p[row], seed[row], position[row]};
    if (dtype == F32) ids[row] = choose((const float*)logits + row * stride, width, settings);
    else if (dtype == BF16) ids[row] = choose((const bf16*)logits + row * stride, width, settings);
    else ids[row] = choose((const f16*)logits + row * stride, width, settings);
  }
}
