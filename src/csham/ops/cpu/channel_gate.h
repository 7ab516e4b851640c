// CSHAM's channel weights of one image, from the statistics of its channels, and their gradients.
//
// forward    a' = act(conv(a)), m' = act(conv(m)), w = sigmoid(act(conv([a'; m'])))
// backward   recomputes a' and m', which are cheaper to compute than to keep
// All arrays (C) float32.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "pool_backward.h"
#include "vectors.h"

namespace csham {
namespace CPU_CAPABILITY {

// Rows of channels begin .. end with zeros on both sides, so that neither convolutions along them nor whole vectors
// need bounds. The memory is the thread's, for one object at a time.
class PaddedRows {
 public:
  PaddedRows(int count, int64_t begin, int64_t end, int64_t reach)
      : begin_(begin), end_(end), reach_(reach), stride_(end - begin + 2 * reach + kWidth) {
    static thread_local std::vector<float> memory;
    memory.assign(count * stride_, 0.f);
    memory_ = memory.data();
  }

  // Channel c of a row.
  float* at(int row, int64_t c) const { return memory_ + row * stride_ + reach_ + c - begin_; }

  // f(c), a vector, for all channels.
  template <typename F>
  void fill(int row, const F& f) const {
    for (int64_t c = begin_; c < end_; c += kWidth) store(at(row, c), f(c), std::min(kWidth, end_ - c));
  }
  // Those channels of a row of C that there are.
  void copy(int row, const float* values, int64_t C) const {
    const int64_t first = std::max<int64_t>(0, begin_), last = std::min(C, end_);
    std::copy(values + first, values + last, at(row, first));
  }
  // Zeros where a row of C has no channel.
  void cut(int row, int64_t C) const {
    std::fill(at(row, begin_), at(row, std::max<int64_t>(0, begin_)), 0.f);
    std::fill(at(row, std::min(C, end_)), at(row, end_), 0.f);
  }

 private:
  int64_t begin_, end_, reach_, stride_;
  float* memory_;
};

// sum_j weight[j] * x[j - k / 2], and the same with the weights turned, for the vector that begins at x.
inline Vec correlate(const float* weight, int64_t k, const float* x) {
  Vec total(0.f);
  for (int64_t j = 0; j < k; ++j) total = at::vec::fmadd(Vec(weight[j]), load(x + j - k / 2), total);
  return total;
}
inline Vec correlate_turned(const float* weight, int64_t k, const float* x) {
  Vec total(0.f);
  for (int64_t j = 0; j < k; ++j) total = at::vec::fmadd(Vec(weight[j]), load(x + k / 2 - j), total);
  return total;
}

// The gradients of a correlation's k weights and of its bias; both rows have zeros around their C channels.
inline void correlate_backward(const float* out_grad, const float* x, int64_t k, int64_t C, float* dweight,
                               float* dbias) {
  Vec bias(0.f);
  for (int64_t c = 0; c < C; c += kWidth) bias = bias + load(out_grad + c);
  *dbias = sum(bias);
  for (int64_t j = 0; j < k; ++j) {
    Vec total(0.f);
    for (int64_t c = 0; c < C; c += kWidth) {
      total = at::vec::fmadd(load(out_grad + c), load(x + c + j - k / 2), total);
    }
    dweight[j] = sum(total);
  }
}

// NaN stays NaN.
inline Vec activate(const Vec& value, bool relu) { return relu ? at::vec::clamp_min(value, Vec(0.f)) : value; }

// What act passes of a gradient; not where out > 0, for the gradient at NaN passes.
inline Vec activate_backward(const Vec& gradient, const Vec& out, bool relu) {
  return relu ? Vec::blendv(gradient, Vec(0.f), out <= Vec(0.f)) : gradient;
}

enum GateRow { kMean, kMax, kAvg, kMost, kForwardRows, kLogits = kForwardRows, kAvgGradient, kMostGradient, kGateRows };

// The rows a' and m' from the statistics.
inline void activate_statistics(const ChannelGate& gate, const float* mean, const float* max, int64_t C,
                                const PaddedRows& rows) {
  const int64_t k = gate.kernel_size;
  const auto row = [&](int in, int out, const float* statistics, const float* weight, const float* bias) {
    rows.copy(in, statistics, C);
    rows.fill(out, [&](int64_t c) {
      return activate(correlate(weight, k, rows.at(in, c)) + Vec(*bias), gate.relu);
    });
    rows.cut(out, C);
  };
  row(kMean, kAvg, mean, gate.avg_weight, gate.avg_bias);
  row(kMax, kMost, max, gate.max_weight, gate.max_bias);
}

inline Vec channel_logits(const ChannelGate& gate, const PaddedRows& rows, int64_t c) {
  const int64_t k = gate.kernel_size;
  const Vec total =
      correlate(gate.fuse_weight, k, rows.at(kAvg, c)) + correlate(gate.fuse_weight + k, k, rows.at(kMost, c));
  return activate(total + Vec(*gate.fuse_bias), gate.relu);
}

// w[c] for c0 <= c < c1, which needs the statistics of channels up to c1 + 2 * (k / 2).
inline void channel_weights(const ChannelGate& gate, const float* mean, const float* max, int64_t C, int64_t c0,
                            int64_t c1, float* w) {
  const int64_t reach = gate.kernel_size / 2;
  const PaddedRows rows(kForwardRows, c0 - 2 * reach, c1 + 2 * reach, reach);
  activate_statistics(gate, mean, max, C, rows);
  for (int64_t c = c0; c < c1; c += kWidth) {
    const Vec logits = channel_logits(gate, rows, c);
    store(w + c, Vec(1.f) / (Vec(1.f) + logits.neg().exp()), std::min(kWidth, c1 - c));
  }
}

// From dw: dmean and dmax (C), and dgate (gate.parameters()) of this image, all overwritten.
inline void channel_weights_backward(const ChannelGate& gate, const float* mean, const float* max, int64_t C,
                                     const float* dw, float* dmean, float* dmax, float* dgate) {
  const int64_t k = gate.kernel_size;
  const PaddedRows rows(kGateRows, 0, C, k / 2);
  activate_statistics(gate, mean, max, C, rows);
  rows.fill(kLogits, [&](int64_t c) {
    const Vec logits = channel_logits(gate, rows, c);
    // sigmoid(logit) sigmoid(-logit), exact where the weight is nearly one.
    const Vec slope_inverse = (Vec(1.f) + logits.neg().exp()) * (Vec(1.f) + logits.exp());
    return activate_backward(load(dw + c, std::min(kWidth, C - c)) / slope_inverse, logits, gate.relu);
  });
  const auto branch = [&](int in, int out, int gradient, const float* weight, const float* fuse_weight, float* dweight,
                          float* dfuse_weight, float* dfuse_bias, float* dstatistics) {
    correlate_backward(rows.at(kLogits, 0), rows.at(out, 0), k, C, dfuse_weight, dfuse_bias);
    rows.fill(gradient, [&](int64_t c) {
      return activate_backward(correlate_turned(fuse_weight, k, rows.at(kLogits, c)), load(rows.at(out, c)), gate.relu);
    });
    correlate_backward(rows.at(gradient, 0), rows.at(in, 0), k, C, dweight, dweight + k);
    for (int64_t c = 0; c < C; c += kWidth) {
      store(dstatistics + c, correlate_turned(weight, k, rows.at(gradient, c)), std::min(kWidth, C - c));
    }
  };
  float *davg = dgate, *dmost = davg + k + 1, *dfuse = dmost + k + 1, *dfuse_bias = dfuse + 2 * k;
  branch(kMean, kAvg, kAvgGradient, gate.avg_weight, gate.fuse_weight, davg, dfuse, dfuse_bias, dmean);
  branch(kMax, kMost, kMostGradient, gate.max_weight, gate.fuse_weight + k, dmost, dfuse + k, dfuse_bias, dmax);
}

}  // namespace CPU_CAPABILITY
}  // namespace csham
